"""The journal's way to a store: nothing is sent before its intent is there, and little is lost with the machine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from embedctl.errors import ShardLost
from embedctl.journal import Journal, Trust, recover
from embedctl.journal.shard_log import ShardLog, boot_time
from embedctl.journal.shipping import ShippingDisk, ShippingTurnstile, fetch
from embedctl.records import UsageEvent, VectorRef
from embedctl.storage.store import LocalStore, OutputFolder
from tests.support.attempts import HASHES, SECRET, intent, vectors

SENT, UNSHIPPED = 4, 2


@dataclass(frozen=True, slots=True)
class Gated(LocalStore):
    """A folder whose puts of answers wait until they are let through."""

    opened: threading.Event = field(default_factory=threading.Event)

    def put_if_absent(self, name: str, content: Any, *, write_id: str | None = None) -> bool:
        if "/answers/" in name:
            assert self.opened.wait(60)
        return LocalStore.put_if_absent(self, name, content, write_id=write_id)


@dataclass(frozen=True, slots=True)
class HeldUp(LocalStore):
    """A folder whose first put of answers waits until it is let through; the others pass."""

    opened: threading.Event = field(default_factory=threading.Event)
    first: threading.Lock = field(default_factory=threading.Lock)
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    passed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def put_if_absent(self, name: str, content: Any, *, write_id: str | None = None) -> bool:
        held_up = "/answers/" in name and self.first.acquire(blocking=False)
        if held_up:
            self.waiting.release()
            assert self.opened.wait(60)
        put = LocalStore.put_if_absent(self, name, content, write_id=write_id)
        if "/answers/" in name and not held_up:
            self.passed.release()
        return put


@contextmanager
def shipping(folder: Path, clock: Callable[[], float] = boot_time) -> Iterator[tuple[Gated, ShippingDisk]]:
    store = Gated(folder / "store")
    log = ShardLog(store, "00000", "worker", lease_s=600, clock=clock)
    assert log.claim(0)
    disk = ShippingDisk(log)
    try:
        yield store, disk
    finally:
        store.opened.set()
        disk.end()


def opened(folder: Path, disk: ShippingDisk, *, unshipped: int = UNSHIPPED) -> tuple[Journal, ShippingTurnstile]:
    turnstile = ShippingTurnstile(disk, most_sent=SENT, most_unshipped=unshipped, proceed=lambda: None)

    def spool(segment_id: str, events: Sequence[UsageEvent]) -> bool:
        return True

    return Journal.open(folder / "journal", secret=SECRET, spool=spool, disk=disk, turnstile=turnstile), turnstile


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what is to come, and then for what is not."""
    end = time.monotonic() + 60
    while not holds() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    await settled()


async def settled() -> None:
    """Whatever can go on without a store has gone on."""
    for _ in range(20):
        await asyncio.sleep(0.01)


def entries(store: LocalStore) -> list[bytes]:
    """Intents that are on the store, entry by entry."""
    return [content for name in store.list() if "/log/" in name and b'"segment"' in (content := store.read(name))]


def are_there(store: LocalStore, events: Sequence[UsageEvent]) -> bool:
    """Whether the intents of all of them are on the store."""
    there = entries(store)
    return all(any(str(event.event_id).encode() in one for one in there) for event in events)


def test_intents_are_on_the_store_before_their_requests(tmp_path: Path) -> None:
    """However many begin at once, whoever may send finds its own intent on the store."""
    there: list[bool] = []

    async def run() -> None:
        book, _ = opened(tmp_path, disk)
        store.opened.set()

        async def request() -> None:
            event = intent()
            await book.intend(event)
            there.append(any(str(event.event_id).encode() in one for one in entries(store)))
            await book.answer(event, HASHES, vectors(1))

        await asyncio.gather(*(request() for _ in range(24)))
        await book.close()

    with shipping(tmp_path) as (store, disk):
        asyncio.run(run())

    assert there == [True] * 24


def test_on_a_folder_answers_are_written_once(tmp_path: Path) -> None:
    """A folder of the same disk holds the journal's own file of answers; another worker finds all of it there."""
    log = ShardLog(OutputFolder(tmp_path / "out"), "00000", "worker", lease_s=600)
    assert log.claim(0)
    disk = ShippingDisk(log)

    async def run() -> None:
        book, _ = opened(tmp_path, disk)
        event = intent()
        await book.intend(event)
        await book.answer(event, HASHES, vectors(1))
        await book.sync()
        (own,) = (tmp_path / "journal").glob("*.answers")
        (held,) = (tmp_path / "out" / log.folder / "answers").iterdir()
        assert held.samefile(own)
        await book.close()

    try:
        asyncio.run(run())
    finally:
        disk.end()

    fetch(log, tmp_path / "fetched")
    (answer,) = recover(tmp_path / "fetched", Trust(SECRET), fenced=True).answers
    assert answer.hashes == HASHES


def test_intents_go_together_while_enough_are_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While half as many as are in flight wait with their intents on the store, others are gathered for one entry."""
    monkeypatch.setattr("embedctl.journal.shipping.GATHER_S", 3600)

    async def run() -> None:
        book, _ = opened(tmp_path, disk)
        events = [intent() for _ in range(SENT)]
        await asyncio.gather(*map(book.intend, events))
        before = len(entries(store))
        waiting = []
        for ready in (1, 2, 2, 2):
            waiting.append(asyncio.ensure_future(book.intend(intent())))
            await until(lambda: len(entries(store)) - before >= ready)  # noqa: B023 - asked at once
            assert len(entries(store)) - before == ready

        await book.settle(events[0])
        await until(lambda: len(entries(store)) - before >= 3)
        assert len(entries(store)) - before == 3

        store.opened.set()
        for event in events[1:]:
            await book.answer(event, HASHES, vectors(1))
        await asyncio.gather(*waiting)
        await book.close()

    with shipping(tmp_path) as (store, disk):
        asyncio.run(run())


def test_intents_are_not_gathered_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while all are on the store, though nothing is sent: answers that come at once let as many go at once."""
    monkeypatch.setattr("embedctl.journal.shipping.GATHER_S", 0.01)

    async def run() -> None:
        book, _ = opened(tmp_path, disk)
        await asyncio.gather(*(book.intend(intent()) for _ in range(SENT)))
        events = [intent() for _ in range(SENT)]
        waiting = [asyncio.ensure_future(book.intend(event)) for event in events]
        await until(lambda: are_there(store, events))

        assert are_there(store, events)

        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await book.close()

    with shipping(tmp_path) as (store, disk):
        asyncio.run(run())


def test_answers_that_come_at_once_stop_no_request(tmp_path: Path) -> None:
    """What is sent and not on the store is never more than both limits, and never less while the store is slow: answers
    on their way stop only as many requests as there would be too many.
    """

    async def run() -> None:
        book, _ = opened(tmp_path, disk)
        inside: list[UsageEvent] = []

        async def begin() -> None:
            event = intent()
            await book.intend(event)
            inside.append(event)

        first = [asyncio.ensure_future(begin()) for _ in range(SENT)]
        await asyncio.gather(*first)
        later = [asyncio.ensure_future(begin()) for _ in range(SENT)]
        await settled()
        assert len(inside) == SENT

        await asyncio.gather(*(book.answer(event, HASHES, vectors(1)) for event in list(inside)))
        await until(lambda: len(inside) >= SENT + UNSHIPPED)
        assert len(inside) == SENT + UNSHIPPED

        store.opened.set()
        await asyncio.gather(*later)
        for event in inside[SENT:]:
            await book.answer(event, HASHES, vectors(1))
        await book.close()

    with shipping(tmp_path) as (store, disk):
        asyncio.run(run())


@pytest.mark.parametrize("is_taken", [False, True])
def test_who_slept_asks_before_it_sends(is_taken: bool, tmp_path: Path) -> None:
    """After more than a lease of silence nothing goes that was announced before it, unless the shard is still ours."""
    now = 0.0

    async def run() -> list[BaseException | None]:
        nonlocal now
        book, _ = opened(tmp_path, disk)
        first = [intent() for _ in range(SENT)]
        await asyncio.gather(*map(book.intend, first))
        announced = [asyncio.ensure_future(book.intend(intent())) for _ in range(SENT)]
        await settled()
        store.opened.set()
        assert not any(one.done() for one in announced)

        now = 601.0
        if is_taken:
            assert ShardLog(store, "00000", "another", lease_s=600).claim(1 + len(entries(store)))
        await asyncio.gather(*(book.answer(event, HASHES, vectors(1)) for event in first))
        ends = await asyncio.gather(*announced, return_exceptions=True)
        with suppress(ShardLost):
            await book.close()
        return ends

    with shipping(tmp_path, lambda: now) as (store, disk):
        ends = asyncio.run(run())

    assert [type(end) for end in ends] == [ShardLost if is_taken else type(None)] * SENT


def test_who_gives_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """Requests that are cancelled, before their intents are written or after, stop no later one."""

    async def run() -> None:
        book, turnstile = opened(tmp_path, disk)
        store.opened.set()
        events = [intent() for _ in range(SENT)]
        await asyncio.gather(*map(book.intend, events))
        for _ in range(3):
            waiting = [asyncio.ensure_future(book.intend(intent())) for _ in range(3 * SENT)]
            await settled()
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            for task in waiting:
                with suppress(asyncio.CancelledError):
                    await task
        for event in events:
            await book.answer(event, HASHES, vectors(1))
        for _ in range(3 * SENT):
            event = intent()
            await asyncio.wait_for(book.intend(event), 30)
            await book.answer(event, HASHES, vectors(1))
        await book.close()
        assert turnstile._sent == 0

    with shipping(tmp_path) as (store, disk):
        asyncio.run(run())


def test_answers_wait_for_nobody_who_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long answers may wait for others to go with: who syncs, or may send nothing more, does not wait."""
    monkeypatch.setattr("embedctl.journal.shipping._LINGER_S", 3600)
    monkeypatch.setattr("embedctl.journal.writer.SYNC_AFTER_S", 3600)

    async def run() -> None:
        book, turnstile = opened(tmp_path, disk)
        store.opened.set()
        for _ in range(3 * (SENT + UNSHIPPED) + 1):
            event = intent()
            await book.intend(event)
            await book.answer(event, HASHES, vectors(1))
        await book.sync()
        assert turnstile._left() == 0
        await book.close()

    with shipping(tmp_path) as (store, disk):
        asyncio.run(run())


def test_who_syncs_does_not_wait_for_what_might_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that nothing else would send on their way are sent by who waits for them, each time."""
    monkeypatch.setattr("embedctl.journal.shipping._LINGER_S", 3600)
    monkeypatch.setattr("embedctl.journal.writer.SYNC_AFTER_S", 3600)

    async def run() -> None:
        book, turnstile = opened(tmp_path, disk, unshipped=1000)
        store.opened.set()
        for _ in range(3):
            event = intent()
            await book.intend(event)
            await book.answer(event, HASHES, vectors(1))
            await settled()
            assert turnstile._left() == 1
            await asyncio.wait_for(book.sync(), 60)
            assert turnstile._left() == 0
        await book.close()

    with shipping(tmp_path) as (store, disk):
        asyncio.run(run())


def test_an_answer_counts_when_all_before_it_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects with answers go side by side; one that arrives before an earlier one does not count until then."""
    monkeypatch.setattr("embedctl.journal.shipping._LINGER_S", 0)
    refs: list[VectorRef] = []

    async def answered(book: Journal) -> None:
        event = intent()
        await book.intend(event)
        refs.append(await book.answer(event, HASHES, vectors(1)))

    async def run() -> None:
        book, _ = opened(tmp_path, disk, unshipped=1000)
        await answered(book)
        assert await asyncio.to_thread(store.waiting.acquire, timeout=60)  # the first one is on its way, and held up
        await answered(book)
        assert await asyncio.to_thread(store.passed.acquire, timeout=60)  # the second one is there
        await settled()
        assert [disk.has(ref.segment, ref.offset + 1) for ref in refs] == [False, False]
        store.opened.set()
        await book.sync()
        assert [disk.has(ref.segment, ref.offset + 1) for ref in refs] == [True, True]
        await book.close()

    store = HeldUp(tmp_path / "store")
    log = ShardLog(store, "00000", "worker", lease_s=600)
    assert log.claim(0)
    disk = ShippingDisk(log)
    try:
        asyncio.run(run())
    finally:
        store.opened.set()
        disk.end()

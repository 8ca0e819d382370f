"""The journal dies at its durable operations, whole and torn, with and without the power, and nothing is lost.

Here every write is torn, and the other sweeps take turns at the operations, so that each is taken; `--long` takes all
of them in each.

The session under test keeps two requests in flight in two open segments, meets a throttled and a lost request,
publishes parts, spools and removes segments. Its provider keeps its own books; afterwards they are compared.

The ordering rules. Each is taken away once in `MUTANTS`, and the checks must notice:

 1. an intent is written before its request is sent
 2. an intent is on the disk before its request is sent
 3. an answer's vectors and usage stand in one frame
 4. an answer is written before it counts as received
 5. an answer stands in the segment of its intent
 6. a segment is spooled only when nothing in it is in flight
 7. a segment is removed only after its events are in the spool
 8. a segment is removed only after its vectors are in published parts
 9. segment ids are never used again, and no spool file is put over another
10. a frame counts only if its mac, and the checksum of its vectors, are right
11. an attempt without an end is perhaps billed
12. an event's id is made before it is sent, and is the same at every recovery
13. a part or spool file appears whole or not at all
14. answers are on the disk before the spool calls them answered
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import msgspec
import numpy as np
import pytest

from embedctl import storage
from embedctl.journal import Journal, frames, recover, recovery, segments, writer
from embedctl.records import UsageEvent, text_hash, uuid7
from tests.support.attempts import SECRET, TRUST
from tests.support.crashing import Crashed, CrashingDisk, wait_for_end

BATCHES = [[f"text {batch}.{index}" for index in range(3)] for batch in range(5)]
SLOTS = [BATCHES[:2], BATCHES[2:4], BATCHES[4:]]
FATES = {1: "throttled", 3: "lost"}
DIMENSIONS = 4


def vector(text: str) -> np.ndarray:
    return np.frombuffer(blake2b(text.encode(), digest_size=16).digest(), "<u4").astype("<f4")


def intent(batch: int, attempt: int) -> UsageEvent:
    return UsageEvent(
        event_id=uuid7(),
        workspace_id="default",
        operation_id=f"operation {batch}",
        provider="fake",
        model="fake",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        status="ok",
        billable="yes",
        tokens_total=0,
        tokens_estimated=10 + batch,
        usage_mode="auto",
        usage_source="native",
        attempt=attempt,
        input_count=3,
        content_bytes=30,
    )


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Every writer and keeper of a test ends with it."""
    others = set(threading.enumerate())  # of a test before, in the same process
    yield
    mine = [one for one in threading.enumerate() if one.name.startswith("journal-") and one not in others]
    wait_for_end(mine)

    assert not [thread.name for thread in mine if thread.is_alive()]


class World:
    """A folder with an output, a provider that keeps its own books, and a ledger."""

    def __init__(self, folder: Path, at_once_bytes: int = 0) -> None:
        self.folder = folder
        self.at_once_bytes = at_once_bytes
        self.spool = folder / "spool"
        self.parts = folder / "out"
        self.journal = folder / "state" / "journal"
        for place in (self.spool, self.parts, self.journal.parent, folder / "graves"):
            place.mkdir(parents=True)
        self.charged: dict[UUID, int] = {}
        self.sends: collections.Counter[int] = collections.Counter()
        self.received: set[int] = set()
        self.ledger: dict[str, list[UsageEvent]] = {}
        self.violations: list[str] = []

    # one run

    def run(self, disk: CrashingDisk) -> bool:
        """Recover and finish; whether it lived to the end."""
        others = set(threading.enumerate())
        try:
            asyncio.run(self._run(disk))
        except Crashed:
            pass
        except Exception as error:
            self.violations.append(f"a run raised {error!r}")
        if disk.dead:
            disk.bury(others)
            disk.lose_power()
        return not disk.dead

    async def _run(self, disk: CrashingDisk) -> None:
        storage.remove_leftovers(disk, self.parts)
        storage.remove_leftovers(disk, self.spool)
        recovered = recover(self.journal, TRUST)
        book = Journal.open(
            self.journal,
            secret=SECRET,
            spool=lambda segment_id, events: self._spool(disk, segment_id, events),
            recovered=recovered,
            disk=disk,
            segment_bytes=1,  # every intent that finds another in the segment opens a new one
            at_once_bytes=self.at_once_bytes,
        )
        places = {
            hashed: answer.place.row(index)
            for answer in recovered.answers
            for index, hashed in enumerate(_split(answer.hashes))
        }
        workers = asyncio.Semaphore(2)

        async def one(batch: int) -> None:
            async with workers:
                await self._buy(book, batch, places)

        tasks = [asyncio.ensure_future(one(batch)) for batch in self._missing(places)]
        try:
            for number, slot in enumerate(SLOTS):
                while (
                    tasks
                    and not all(text_hash(t) in places for b in slot for t in b)
                    and not self._part(number).exists()
                ):
                    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                        tasks.remove(task)
                await self._publish(disk, book, number, slot, places)
            await book.close(published=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(Crashed, Exception):  # a dead run has nothing to say any more; its threads end
                await book.close()

    def _missing(self, places: dict[bytes, Any]) -> list[int]:
        published = {text for slot, texts in enumerate(SLOTS) if self._part(slot).exists() for b in texts for text in b}
        return [
            number
            for number, texts in enumerate(BATCHES)
            if not all(text in published or text_hash(text) in places for text in texts)
        ]

    async def _buy(self, book: Journal, batch: int, places: dict[bytes, Any]) -> None:
        for attempt in itertools.count(1):
            event = intent(batch, attempt)
            await book.intend(event)
            fate = FATES.get(batch) if attempt == 1 else None
            if fate != "throttled":
                self.charged[event.event_id] = 10 + batch
            self.sends[batch] += 1
            if batch in self.received:
                self.violations.append(f"batch {batch} was bought again after its answer was kept")
            await asyncio.sleep(0.002 if batch % 2 else 0)
            if fate == "throttled":
                await book.settle(dataclasses.replace(event, status="error", billable="no", error_class="throttled"))
            elif fate == "lost":
                await book.settle(dataclasses.replace(event, status="timeout", billable="unknown"))
            else:
                done = dataclasses.replace(event, tokens_total=10 + batch, tokens_native=10 + batch)
                texts = BATCHES[batch]
                hashes = b"".join(map(text_hash, texts))
                place = await book.answer(done, hashes, np.stack([vector(text) for text in texts]))
                self.received.add(batch)
                for index, text in enumerate(texts):
                    places[text_hash(text)] = place.row(index)
                return

    async def _publish(
        self, disk: CrashingDisk, book: Journal, number: int, slot: list[list[str]], places: dict[bytes, Any]
    ) -> None:
        if not self._part(number).exists():
            texts = [text for batch in slot for text in batch]
            await book.sync()
            rows = {text: book.read(places[text_hash(text)])[0].tolist() for text in texts}
            storage.publish(disk, self._part(number), json.dumps(rows).encode())
        for batch in slot:
            for text in batch:
                if text_hash(text) in places:
                    book.release(places[text_hash(text)].segment, 1)

    def _part(self, number: int) -> Path:
        return self.parts / f"part-{number}"

    def _spool(self, disk: CrashingDisk, segment_id: str, events: Any) -> bool:
        lines = b"\n".join(frames.draft("outcome", event).json for event in events)
        return storage.publish(disk, self.spool / segment_id, lines)

    # what must hold

    def ingest(self) -> None:
        """Take the spool into the ledger and set its files aside; a spool id counts once."""
        for path in sorted(self.spool.iterdir()):
            if not path.name.startswith(storage.TEMPORARY_PREFIX):
                self.ledger.setdefault(path.name, list(_events(path)))
                path.unlink()

    def check_now(self) -> None:
        """Between two runs: what the ledger, the spool and the journal say together."""
        self.ingest()
        said = {segment.segment_id: list(segment.events) for segment in recover(self.journal, TRUST).segments}
        self._check_bill({**said, **self.ledger})
        answered = [event for spool in (said | self.ledger).values() for event in spool if event.billable == "yes"]
        self.received |= {int(event.operation_id.split()[1]) for event in answered}

    def check_end(self) -> None:
        self.ingest()
        self._check_bill(self.ledger)
        for number, slot in enumerate(SLOTS):
            rows = _loaded(self._part(number))
            expected = {text: vector(text).tolist() for batch in slot for text in batch}
            if rows != expected:
                self.violations.append(f"part {number} is wrong")
        left = [path.name for path in self.journal.iterdir()] if self.journal.exists() else []
        if left:
            self.violations.append(f"left behind: {left}")

    def _check_bill(self, spools: dict[str, list[UsageEvent]]) -> None:
        events = [event for spool in spools.values() for event in spool]
        ids = collections.Counter(event.event_id for event in events)
        if max(ids.values(), default=1) > 1:
            self.violations.append("an attempt is there twice")
        if missing := self.charged.keys() - ids.keys():
            self.violations.append(f"{len(missing)} charges without an event")
        for event in events:
            charged = self.charged.get(event.event_id, 0)
            confirmed = event.tokens_total if event.billable == "yes" else 0
            unknown = (event.tokens_estimated or 0) if event.billable == "unknown" else 0
            if not confirmed <= charged <= confirmed + unknown:
                self.violations.append(f"charged {charged}, {confirmed} confirmed, {unknown} unknown")


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + 16] for at in range(0, len(hashes), 16)]


def _events(path: Path) -> Iterator[UsageEvent]:
    """As the ledger reads them: a broken line is left out."""
    for line in path.read_bytes().splitlines():
        with suppress(msgspec.DecodeError):
            yield frames._DECODER.decode(line).event


def _loaded(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


# sweeps


def sweep(
    tmp_path: Path,
    *,
    torn: bool,
    power: bool = False,
    points: Iterable[int] | None = None,
    first_only: bool = False,
    at_once_bytes: int = 0,
    lacks: int | None = None,
    counts: Callable[[str], bool] = lambda operation: True,
) -> tuple[int, list[str]]:
    """Crash at every operation, once more while recovering, then finish; crash points tried and violations seen."""
    violations: list[str] = []
    tried = 0
    for at in itertools.count(1) if points is None else points:
        tried += 1
        world = World(tmp_path / f"{torn}{power}{at}", at_once_bytes)
        graves = world.folder / "graves" if power else None
        lived = world.run(CrashingDisk(at, torn=torn, lacks=lacks, counts=counts, graveyard=graves, seed=at))
        if power:
            world.received.clear()
        world.check_now()
        if not lived:
            again = random.Random(at).randrange(1, 40)
            world.run(CrashingDisk(again, torn=not torn, graveyard=graves, seed=at + 1))
            if power:
                world.received.clear()
            world.check_now()
            world.run(CrashingDisk())
        world.check_end()
        violations += [f"{at}: {violation}" for violation in world.violations]
        if lived or (first_only and violations):
            break
    return tried, violations


CRASHES: list[dict[str, Any]] = [
    {"torn": False, "at_once_bytes": 0},
    {"torn": True, "at_once_bytes": 0},
    {"torn": True, "at_once_bytes": 1 << 16},
]
TORN_ANSWERS: dict[str, Any] = {
    "torn": True,
    "at_once_bytes": 0,
    "lacks": 1,
    "counts": lambda operation: operation.startswith("write") and operation.endswith(segments.ANSWERS),
}
"""Each answer's frame looks whole then, and its last vector is another: nothing but its checksum knows."""

POWER_CUTS: list[dict[str, Any]] = [
    {"torn": False, "power": True, "at_once_bytes": 0},
    {"torn": False, "power": True, "at_once_bytes": 1 << 16},
]


def chosen(tmp_path: Path, about: dict[str, Any]) -> list[int] | None:
    """The operations of a sweep when `--long` is not asked for: all writes to tear, or those whose turn it is; None:
    all that it counts.
    """
    if "counts" in about:
        return None
    disk = CrashingDisk()
    World(tmp_path / "counted", about["at_once_bytes"]).run(disk)
    if about["torn"]:
        return [at for at, name in enumerate(disk.trace, 1) if name.startswith("write")]
    sweeps = [sweep for sweep in (*CRASHES, *POWER_CUTS) if not sweep["torn"]]
    return [*range(1 + sweeps.index(about), disk.count + 1, len(sweeps))]


def named(about: dict[str, Any]) -> str:
    return "-".join(str(value) for value in about.values() if not callable(value))


@pytest.mark.parametrize("about", CRASHES, ids=named)
def test_a_crash_at_any_operation_loses_and_doubles_nothing(tmp_path: Path, about: dict[str, Any]) -> None:
    """Killed at any durable operation, and again while recovering, a run ends exact: rows, vectors and bill."""
    points, violations = sweep(tmp_path, **about, points=chosen(tmp_path, about))

    assert violations == []
    assert points > 10


@pytest.mark.parametrize("about", POWER_CUTS, ids=named)
def test_losing_the_power_loses_no_charge_and_no_row(tmp_path: Path, about: dict[str, Any]) -> None:
    """When unsynced bytes and names are lost, kept, torn or zeroed at random, every charge has one event."""
    points, violations = sweep(tmp_path, **about, points=chosen(tmp_path, about))

    assert violations == []
    assert points > 20


@pytest.mark.long
@pytest.mark.parametrize("about", [*CRASHES, *POWER_CUTS], ids=str)
def test_every_sweep_whole(tmp_path: Path, about: dict[str, Any]) -> None:
    """The same with every operation in every sweep."""
    points, violations = sweep(tmp_path, **about)

    assert violations == []
    assert points > 80


# the rules, taken away one by one

Patch = Iterator[None]
original = {
    "append": segments.Log.append,
    "sync": segments.Log.sync,
    "append_ends": writer.Writer._append_ends,
    "spool_segment": writer.Writer._spool_segment,
    "remove": segments.Segment.remove,
    "interrupted": recovery.interrupted,
}


@contextmanager
def intents_not_written() -> Patch:
    def append(log: segments.Log, drafts: Any) -> list[frames.Placed]:
        if drafts[0].kind == "intent":
            return [frames.Placed([], 0, 0, 0)] * len(drafts)
        return original["append"](log, drafts)

    with patch.object(segments.Log, "append", append):
        yield


@contextmanager
def intents_not_synced() -> Patch:
    def sync(log: segments.Log) -> None:
        if not log.path.name.endswith(segments.INTENTS):
            original["sync"](log)

    with patch.object(segments.Log, "sync", sync):
        yield


@contextmanager
def usage_and_vectors_apart() -> Patch:
    def append_ends(writer: Any, segment: Any, log: Any, entries: Any, results: Any) -> None:
        for entry in entries:
            if entry.draft.kind == "answer":
                segment.intents.append([frames.draft("outcome", entry.draft.event)])
        original["append_ends"](writer, segment, log, entries, results)

    with patch.object(writer.Writer, "_append_ends", append_ends):
        yield


@contextmanager
def answers_written_later() -> Patch:
    later: dict[Path, list[tuple[int, list[Any]]]] = {}

    def append(log: segments.Log, drafts: Any) -> list[frames.Placed]:
        if drafts[0].kind != "answer":
            return original["append"](log, drafts)
        placed = []
        for made in drafts:
            one = log._keyed.placed(made, log.end, log._begun.intents, log._begun.tokens)
            later.setdefault(log.path, []).append((log.end, one.buffers))
            log.end, log.dirty = log.end + one.size, True
            placed.append(one)
        return placed

    def sync(log: segments.Log) -> None:
        for offset, buffers in later.pop(log.path, []):
            log._disk.write(log._open_fd, buffers, offset, log.path)
        original["sync"](log)

    with patch.object(segments.Log, "append", append), patch.object(segments.Log, "sync", sync):
        yield


@contextmanager
def answers_in_the_newest_segment() -> Patch:
    def append_ends(writer: Any, segment: Any, log: Any, entries: Any, results: Any) -> None:
        newest = writer._current
        if newest is not None and log is segment.answers:
            log = newest.answers
        original["append_ends"](writer, segment, log, entries, results)

    with patch.object(writer.Writer, "_append_ends", append_ends):
        yield


@contextmanager
def spooled_while_in_flight() -> Patch:
    with patch.object(segments.Segment, "idle", property(lambda segment: segment.sealed)):
        yield


@contextmanager
def removed_before_the_spool() -> Patch:
    spools: dict[str, tuple[Any, list[UsageEvent]]] = {}

    def spool_segment(writer: Any, segment: Any) -> None:
        spools[segment.segment_id] = (writer._spool, segment.events)
        segment.sync()

    def remove(segment: segments.Segment, disk: Any) -> None:
        original["remove"](segment, disk)
        spool, events = spools[segment.segment_id]
        if events:
            spool(segment.segment_id, events)

    with (
        patch.object(writer.Writer, "_spool_segment", spool_segment),
        patch.object(segments.Segment, "remove", remove),
    ):
        yield


@contextmanager
def removed_before_the_part() -> Patch:
    def append_ends(writer: Any, segment: Any, log: Any, entries: Any, results: Any) -> None:
        original["append_ends"](writer, segment, log, entries, results)
        segment.released = segment.vectors

    with patch.object(writer.Writer, "_append_ends", append_ends):
        yield


@contextmanager
def ids_used_again() -> Patch:
    def create(disk: Any, folder: Path, secret: bytes, opened_at: float) -> segments.Segment:
        number = next(n for n in itertools.count() if not any(folder.glob(f"{n}.*")))
        one = patch.object(segments, "uuid7", lambda: type("Id", (), {"hex": str(number)}))
        with one:
            return create_original(disk, folder, secret, opened_at)

    create_original = segments.Segment.create
    with patch.object(segments.Segment, "create", create):
        yield


@contextmanager
def checksums_not_checked() -> Patch:
    with patch.object(frames.Keyed, "mac", lambda *_: bytes(16)), patch.object(frames, "vectors_checksum", lambda _: 7):
        yield


@contextmanager
def unknown_is_free() -> Patch:
    def interrupted(event: UsageEvent) -> UsageEvent:
        return dataclasses.replace(original["interrupted"](event), billable="no")

    with patch.object(recovery, "interrupted", interrupted), patch.object(writer, "interrupted", interrupted):
        yield


@contextmanager
def ids_made_at_recovery() -> Patch:
    def interrupted(event: UsageEvent) -> UsageEvent:
        return dataclasses.replace(original["interrupted"](event), event_id=uuid7())

    with patch.object(recovery, "interrupted", interrupted):
        yield


@contextmanager
def published_in_place() -> Patch:
    def publish(disk: Any, path: Path, content: bytes) -> bool:
        if path.exists():
            return False
        fd = disk.create(path)
        disk.write(fd, [content], 0, path)
        disk.sync(fd, path)
        disk.sync_folder(path.parent)
        disk.close(fd)
        return True

    with patch.object(storage, "publish", publish):
        yield


@contextmanager
def spooled_before_the_answers_are_synced() -> Patch:
    def spool_segment(writer: Any, segment: Any) -> None:
        for log in segment.logs:
            log.dirty = False
        original["spool_segment"](writer, segment)

    with patch.object(writer.Writer, "_spool_segment", spool_segment):
        yield


MUTANTS: list[tuple[int, Callable[[], Any], list[dict[str, Any]]]] = [
    (1, intents_not_written, CRASHES),
    (2, intents_not_synced, POWER_CUTS),
    (3, usage_and_vectors_apart, CRASHES),
    (4, answers_written_later, CRASHES),
    (5, answers_in_the_newest_segment, CRASHES),
    (6, spooled_while_in_flight, CRASHES),
    (7, removed_before_the_spool, CRASHES),
    (8, removed_before_the_part, CRASHES),
    (9, ids_used_again, CRASHES),
    (10, checksums_not_checked, [*CRASHES, TORN_ANSWERS]),
    (11, unknown_is_free, CRASHES),
    (12, ids_made_at_recovery, CRASHES),
    (13, published_in_place, CRASHES),
    (14, spooled_before_the_answers_are_synced, POWER_CUTS),
]


@pytest.mark.parametrize(("rule", "mutant", "sweeps"), MUTANTS, ids=[mutant.__name__ for _, mutant, _ in MUTANTS])
def test_every_ordering_rule_is_needed(
    tmp_path: Path, rule: int, mutant: Callable[[], Any], sweeps: list[dict[str, Any]]
) -> None:
    """With one rule of the journal taken away, a crash somewhere breaks a promise, and one of the sweeps sees it."""
    with mutant():
        violations = any(
            sweep(tmp_path / named(about), **about, points=chosen(tmp_path / named(about), about), first_only=True)[1]
            for about in reversed(sweeps)
        )

    assert violations, f"rule {rule} may be broken and nobody notices"

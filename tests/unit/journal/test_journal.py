"""What goes into the journal comes out of it: every attempt once, every vector with its text."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedctl.errors import InvariantBroken, StorageFailed
from embedctl.journal import Journal, Recovered, frames, recover
from embedctl.journal.recovery import interrupted
from embedctl.journal.segments import ANSWERS, INTENTS
from embedctl.records import JOURNAL_DAMAGED, UsageEvent, uuid7
from embedctl.storage import Buffer, Disk
from tests.support import places
from tests.support.attempts import HASHES, SECRET, TRUST, die, intent, vectors
from tests.support.crashing import CrashingDisk


class Spool:
    """Takes each id once, and can be told to fail."""

    def __init__(self) -> None:
        self.files: dict[str, list[UsageEvent]] = {}
        self.broken = False

    def __call__(self, segment_id: str, events: Sequence[UsageEvent]) -> bool:
        if self.broken:
            raise StorageFailed("no space left to write the spool")
        put = segment_id not in self.files
        self.files.setdefault(segment_id, list(events))
        return put

    @property
    def events(self) -> dict[UUID, UsageEvent]:
        return {event.event_id: event for events in self.files.values() for event in events}


@pytest.fixture
def spool() -> Spool:
    return Spool()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_answer_is_read_back_as_it_was(tmp_path: Path, spool: Spool) -> None:
    """Vectors, hashes, usage, tokens and extras of an answer come back equal, in this run and after it."""
    event = intent(tokens_total=30, cost_provider=Decimal("0.000000012345678901"), tags={"team": "ä"})

    async def run() -> tuple[object, np.ndarray]:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool)
        await book.intend(event)
        place = await book.answer(event, HASHES, vectors(1), tokens_each=[1, 2, 3], extra={"note": "x"})
        await book.sync()
        read = book.read(place)
        await book.close()
        return place, read

    place, read = asyncio.run(run())
    recovered = recover(tmp_path, TRUST)
    (answer,) = recovered.answers

    assert np.array_equal(read, vectors(1))
    assert not read.flags.writeable
    assert place.offset % 64 == 0
    assert (answer.place, answer.hashes, answer.event) == (place, HASHES, event)
    assert (answer.tokens_each, answer.extra) == ((1, 2, 3), {"note": "x"})
    assert (answer.provider, answer.model, answer.operation_id) == ("fake", "fake", "operation")
    assert list(recovered.events) == [event]
    assert spool.events == {event.event_id: event}


def test_what_a_dead_run_left_is_taken_over(tmp_path: Path, spool: Spool) -> None:
    """A new run reads the vectors of the old, spools its events, and removes its segments once released."""

    async def killed() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool)
        answered, lost = intent(), intent()
        await book.intend(answered)
        await book.intend(lost)
        await book.answer(answered, HASHES, vectors(1))
        die(book)

    async def live(recovered: Recovered) -> np.ndarray:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, recovered=recovered)
        (answer,) = recovered.answers
        read = np.array(book.read(answer.place))
        book.release(answer.place.segment, 3)
        await book.close()
        return read

    asyncio.run(killed())
    recovered = recover(tmp_path, TRUST)
    read = asyncio.run(live(recovered))

    assert np.array_equal(read, vectors(1))
    assert recovered.interrupted == 1
    assert sorted(event.status for event in spool.events.values()) == ["interrupted", "ok"]
    assert names(tmp_path) == []


def test_a_seal_hands_over_what_has_ended(tmp_path: Path, spool: Spool) -> None:
    """After `seal` ended events are in the spool, each once; what shares a segment with one under way goes with it."""
    first, second, slow = (intent() for _ in range(3))

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool)
        assert await book.seal() is None  # there is nothing
        await book.intend(first)
        await book.answer(first, HASHES, vectors(1))
        assert await book.seal() is None
        assert set(spool.events) == {first.event_id}

        await book.intend(second)
        await book.intend(slow)
        await book.answer(second, HASHES, vectors(2))
        assert await book.seal() is not None
        assert set(spool.events) == {first.event_id}

        await book.settle(dataclasses.replace(slow, status="error", billable="no", tokens_total=0))
        assert await book.seal() is None
        assert set(spool.events) == {first.event_id, second.event_id, slow.event_id}
        await book.close(published=True)
        with pytest.raises(InvariantBroken):
            await book.seal()

    asyncio.run(run())

    assert sum(len(events) for events in spool.files.values()) == 3
    assert names(tmp_path) == []


def test_a_segment_stays_until_all_its_vectors_are_released(tmp_path: Path, spool: Spool) -> None:
    """Events go to the spool when a segment ends; its files go when the last vector stands elsewhere."""

    async def run() -> tuple[list[str], list[str]]:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, segment_bytes=1)
        first, second = intent(), intent()
        await book.intend(first)
        place = await book.answer(first, HASHES, vectors(1))
        book.release(place.segment, 2)
        await book.intend(second)  # seals the first segment
        while place.segment not in spool.files:
            await asyncio.sleep(0.001)
        await book.sync()
        before = names(tmp_path)
        book.release(place.segment, 1)
        await book.settle(dataclasses.replace(second, status="error", billable="no"))
        await book.close()
        return before, names(tmp_path)

    before, after = asyncio.run(run())

    assert len(before) == 4
    assert after == []


def test_a_segment_is_sealed_by_age(tmp_path: Path, spool: Spool) -> None:
    """After `segment_s` the next intent opens a new segment; an answer still goes where its intent is."""
    now = [0.0]

    async def run() -> list[str]:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, segment_s=30, clock=lambda: now[0])
        first, second = intent(), intent()
        await book.intend(first)
        now[0] = 31
        await book.intend(second)
        places = [await book.answer(second, HASHES, vectors(2)), await book.answer(first, HASHES, vectors(1))]
        await book.close()
        return [place.segment for place in places]

    newer, older = asyncio.run(run())
    recovered = recover(tmp_path, TRUST)

    assert older != newer
    assert {segment.segment_id for segment in recovered.segments} == {older, newer}
    assert [segment.interrupted for segment in recovered.segments] == [0, 0]


def test_intents_of_a_group_share_one_sync(tmp_path: Path, spool: Spool) -> None:
    """Many intents at once are on the disk after few syncs; without `sync_intents` after none."""

    async def run(disk: CrashingDisk, folder: Path, sync_intents: bool) -> int:
        book = Journal.open(folder, secret=SECRET, spool=spool, disk=disk, sync_intents=sync_intents)
        await asyncio.gather(*(book.intend(intent()) for _ in range(200)))
        die(book)
        return sum(step.startswith("sync ") for step in disk.trace)

    synced = asyncio.run(run(CrashingDisk(), tmp_path / "a", True))
    free = asyncio.run(run(CrashingDisk(), tmp_path / "b", False))

    assert 1 <= synced <= 20
    assert free == 0
    assert recover(tmp_path / "a", TRUST).interrupted == 200


def test_a_cancelled_intent_was_never_sent(tmp_path: Path, spool: Spool) -> None:
    """An intent whose caller is cancelled before it is written costs nothing, and is said so."""
    event = intent()

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool)
        task = asyncio.ensure_future(book.intend(event))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await book.close()

    asyncio.run(run())

    assert [(event.status, event.billable) for event in spool.events.values()] == [("cancelled", "no")]


def test_an_attempt_nobody_ended_is_perhaps_billed(tmp_path: Path, spool: Spool) -> None:
    """Closing with an attempt in flight books it as interrupted, unknown, with its estimate."""
    known, unknown = intent(), intent(tokens_estimated=None)

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool)
        await book.intend(known)
        await book.intend(unknown)
        await book.close()
        await book.close()

    asyncio.run(run())
    said = spool.events

    assert said == {event.event_id: interrupted(event) for event in (known, unknown)}
    assert (said[known.event_id].billable, said[known.event_id].tokens_total) == ("unknown", 0)
    assert said[known.event_id].tokens_estimated == 30
    assert (said[unknown.event_id].tokens_estimated, said[unknown.event_id].tokenizer_id) == (4, "bytes/4")
    assert names(tmp_path) == []


def test_an_end_without_its_intent_is_a_bug(tmp_path: Path, spool: Spool) -> None:
    """An attempt ends once, after it began, and not after the journal is closed."""
    event = intent()

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool)
        with pytest.raises(InvariantBroken):
            await book.settle(event)
        await book.intend(event)
        await book.settle(event)
        with pytest.raises(InvariantBroken):
            await book.answer(event, HASHES, vectors(1))
        await book.close()
        for late in (book.intend(event), book.settle(event)):
            with pytest.raises(InvariantBroken, match="closed"):
                await late

    asyncio.run(run())


@pytest.mark.parametrize(
    ("hashes", "array", "tokens"),
    [
        (HASHES, vectors(1, count=2), None),
        (HASHES, vectors(1).astype("f8"), None),
        (HASHES, np.asfortranarray(vectors(1)), None),
        (HASHES, vectors(1), [1, 2]),
        (b"", np.empty((0, 5), "f4"), None),
    ],
)
def test_arrays_that_do_not_fit_are_refused(hashes: bytes, array: np.ndarray, tokens: list[int] | None) -> None:
    """An answer is float32 in rows, one hash and one token count each."""
    with pytest.raises(InvariantBroken):
        frames.draft_answer(intent(), hashes, array, tokens, None)


# disks that fail


class FullDisk(Disk):
    """Full from `full = True` on: only reserved bytes can still be written."""

    def __init__(self) -> None:
        self.full = False
        self.reserved: dict[int, int] = {}

    def reserve(self, fd: int, end: int, path: Path) -> bool:
        if self.full and end > self.reserved.get(fd, 0):
            raise StorageFailed(f"no space left to reserve space in {path}")
        self.reserved[fd] = end
        return True

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int, path: Path) -> int:
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        if self.full and offset + size > self.reserved.get(fd, 0):
            super().write(fd, [b"half a frame"], offset, path)
            raise StorageFailed(f"no space left to write {path}")
        return super().write(fd, buffers, offset, path)


def test_a_full_disk_keeps_what_is_in_flight_and_begins_nothing(tmp_path: Path, spool: Spool) -> None:
    """Room for answers is kept when they are asked for: a disk that fills up stops new requests only."""
    disk = FullDisk()
    events = [intent(input_count=1000) for _ in range(6)]
    many = vectors(1, count=1000, dimensions=300)

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, disk=disk, dimensions=300)
        for event in events:
            await book.intend(event)
        disk.full = True
        hashes = bytes(16 * 1000)
        await asyncio.gather(*(book.answer(event, hashes, many) for event in events))
        begun = await asyncio.gather(
            *(book.intend(intent(input_count=1000)) for _ in range(100)), return_exceptions=True
        )
        assert any(isinstance(refusal, StorageFailed) for refusal in begun)
        with pytest.raises(StorageFailed):
            await book.intend(intent())
        await book.close()

    asyncio.run(run())
    answers = list(recover(tmp_path, TRUST).answers)

    assert {answer.event.event_id for answer in answers} >= {event.event_id for event in events}


def test_a_frame_that_did_not_fit_spoils_no_other(tmp_path: Path, spool: Spool) -> None:
    """After a failed write the next frame goes over the half one: both ends of it are read back."""
    disk = FullDisk()
    large, small = intent(input_count=100_000), intent()

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, disk=disk)
        await book.intend(large)
        await book.intend(small)
        disk.full = True
        with pytest.raises(StorageFailed, match="no space"):
            await book.answer(large, bytes(16 * 100_000), vectors(1, 100_000, 64))
        await book.answer(small, HASHES, vectors(2))
        die(book)

    asyncio.run(run())
    recovered = recover(tmp_path, TRUST)
    (answer,) = recovered.answers

    assert answer.event == small
    assert recovered.interrupted == 1


def test_after_a_failed_sync_nothing_more_is_sent(tmp_path: Path, spool: Spool) -> None:
    """A device error at an intent's sync is StorageFailed for it and every later one, and is not tried again."""

    class Broken(Disk):
        syncs = 0

        def sync(self, fd: int, path: Path) -> None:
            Broken.syncs += 1
            raise StorageFailed(f"cannot sync {path}: Input/output error")

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, disk=Broken())
        for _ in range(2):
            with pytest.raises(StorageFailed, match="Input/output error"):
                await book.intend(intent())

    asyncio.run(run())

    assert Broken.syncs == 1


def test_answers_that_cannot_be_synced_are_in_no_part(tmp_path: Path, spool: Spool) -> None:
    """Who waits for answers to be on the disk is told that they may not be; so is who closes the journal."""

    class Broken(Disk):
        def sync(self, fd: int, path: Path) -> None:
            if path.name.endswith(ANSWERS):
                raise StorageFailed(f"cannot sync {path}: Input/output error")
            super().sync(fd, path)

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, disk=Broken())
        event = intent()
        await book.intend(event)
        await book.answer(event, HASHES, vectors(2))
        with pytest.raises(StorageFailed, match="Input/output error"):
            await book.sync()
        with pytest.raises(StorageFailed, match="Input/output error"):
            await book.close()

    asyncio.run(run())


def test_a_spool_that_fails_is_told_at_the_end(tmp_path: Path, spool: Spool) -> None:
    """When the spool cannot be written, closing says so, and the segment stays for recovery."""
    event = intent()
    spool.broken = True

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool)
        await book.intend(event)
        await book.answer(event, HASHES, vectors(1))
        with pytest.raises(StorageFailed, match="the spool"):
            await book.close(published=True)

    asyncio.run(run())

    assert list(recover(tmp_path, TRUST).events) == [event]


# what recovery makes of damage


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes, bytes]:
    """A journal of eight attempts: id, intents file, answers file."""
    folder = tmp_path_factory.mktemp("written")

    async def run() -> None:
        book = Journal.open(folder, secret=SECRET, spool=lambda *_: True)
        for number in range(8):
            event = intent(operation_id=f"{number}")
            await book.intend(event)
            if number % 4 == 3:
                await book.settle(dataclasses.replace(event, status="error", billable="no"))
            else:
                await book.answer(event, HASHES, vectors(number))
        await book.close()

    asyncio.run(run())
    (segment,) = recover(folder, TRUST).segments
    files = [(folder / f"{segment.segment_id}{kind}").read_bytes() for kind in (INTENTS, ANSWERS)]
    return segment.segment_id, files[0], files[1]


damages = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["flip", "cut", "zeros", "noise", "insert", "drop", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=4,
)


def damaged(raw: bytes, how: str, where: float, noise: bytes) -> bytes:
    at = int(len(raw) * where)
    match how:
        case "flip":
            return raw[:at] + bytes([raw[at] ^ (noise[0] or 1)]) + raw[at + 1 :] if raw else noise
        case "cut":
            return raw[:at]
        case "zeros":
            return raw[:at] + bytes(len(raw) - at)
        case "noise":
            return raw[:at] + noise + raw[at + len(noise) :]
        case "insert":
            return raw[:at] + noise + raw[at:]
        case "drop":
            return raw[:at] + raw[at + len(noise) :]
        case _:
            return raw[at:] + raw[:at]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(harm=damages)
def test_damage_never_yields_a_wrong_vector(
    tmp_path_factory: pytest.TempPathFactory,
    written: tuple[str, bytes, bytes],
    harm: list[tuple[int, str, float, bytes]],
) -> None:
    """Whatever happens to the bytes of a segment, recovery does not raise, and what it returns is what was written."""
    segment_id, *files = written
    for which, how, where, noise in harm:
        files[which] = damaged(files[which], how, where, noise)
    folder = tmp_path_factory.mktemp("damaged")
    for kind, raw in zip((INTENTS, ANSWERS), files, strict=True):
        (folder / f"{segment_id}{kind}").write_bytes(raw)
    recovered = recover(folder, TRUST)

    async def read() -> None:
        book = Journal.open(folder, secret=SECRET, spool=lambda *_: True, recovered=recovered)
        for answer in recovered.answers:
            assert answer.hashes == HASHES
            assert np.array_equal(book.read(answer.place), vectors(int(answer.operation_id)))
        await book.close()

    asyncio.run(read())
    ids = [event.event_id for event in recovered.events]
    known = [event for event in recovered.events if event.error_class != JOURNAL_DAMAGED]

    assert len(ids) == len(set(ids))
    assert len(known) <= 8
    assert len(ids) - len(known) <= 1


def test_frames_of_another_segment_do_not_count(tmp_path: Path, written: tuple[str, bytes, bytes]) -> None:
    """Valid frames under another segment's name are not this home's."""
    other = uuid7().hex
    (tmp_path / f"{other}{INTENTS}").write_bytes(written[1])
    (tmp_path / f"{other}{ANSWERS}").write_bytes(written[2])
    recovered = recover(tmp_path, TRUST)

    assert (list(recovered.events), len(recovered.foreign)) == ([], 2)


def test_zeros_are_no_frames_and_no_damage(tmp_path: Path, written: tuple[str, bytes, bytes]) -> None:
    """The rest of a reserved file is zeros: its frames end there, and nothing is torn."""
    (tmp_path / f"{written[0]}{INTENTS}").write_bytes(written[1] + bytes(100_000))
    (tmp_path / f"{written[0]}{ANSWERS}").write_bytes(bytes(100_000))
    recovered = recover(tmp_path, TRUST)

    assert len(list(recovered.events)) == 8
    assert (recovered.lost_bytes, list(recovered.answers)) == (0, [])


def test_journals_of_another_format_are_left_alone(tmp_path: Path, spool: Spool) -> None:
    """Files that a later embedctl wrote are neither read nor removed."""
    strange = tmp_path / f"{uuid7().hex}.v9.intents"
    strange.write_bytes(b"later")

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=spool, recovered=recover(tmp_path, TRUST))
        await book.close(published=True)

    asyncio.run(run())

    assert names(tmp_path) == [strange.name]


@given(
    event=st.builds(
        UsageEvent,
        event_id=st.uuids(),
        occurred_at=st.datetimes(timezones=st.just(UTC)),
        operation_id=st.text(st.characters(exclude_categories=["Cs"])),
        cost_provider=st.none() | st.decimals(allow_nan=False, allow_infinity=False),
        tags=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("x"), max_size=3),
        status=st.sampled_from(["ok", "error", "timeout", "cancelled", "interrupted"]),
        tokens_total=st.integers(0, 2**53),
    )
)
def test_an_event_is_read_back_equal(event: UsageEvent) -> None:
    """A usage event survives its JSON, to the last digit of its cost."""
    back = frames._DECODER.decode(frames.draft("outcome", event).json).event

    assert back == event


# a real process, really killed

VICTIM = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from tests.support.attempts import HASHES, SECRET, intent, vectors
from embedctl.journal.journal import Journal

async def run():
    book = Journal.open(Path(sys.argv[1]), secret=SECRET, spool=lambda *_: True, segment_bytes=20_000)
    books = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
    async def one(number):
        event = intent(operation_id=str(number))
        await book.intend(event)
        os.write(books, f"sent {event.event_id}\\n".encode())
        await asyncio.sleep(0)
        await book.answer(event, HASHES, vectors(number))
        os.write(books, f"kept {event.event_id}\\n".encode())
    for begin in range(0, 100_000, 8):
        await asyncio.gather(*map(one, range(begin, begin + 8)))
asyncio.run(run())
"""


def test_a_killed_process_loses_nothing_it_was_told(tmp_path: Path) -> None:
    """After SIGKILL at any moment every sent attempt has an event, and every kept answer its vectors."""
    for generation in range(24):
        folder, books = tmp_path / f"{generation}", tmp_path / f"{generation}.books"
        books.touch()
        command = [sys.executable, "-c", VICTIM, str(folder), str(books), str(places.ROOT)]
        process = subprocess.Popen(command)
        while books.stat().st_size < 500 + generation * 850 and process.poll() is None:
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
        process.wait()
        said = [line.split() for line in books.read_text().splitlines()]
        recovered = recover(folder, TRUST)
        events = {str(event.event_id): event.status for event in recovered.events}
        sent = {event_id for word, event_id in said if word == "sent"}
        kept = {event_id for word, event_id in said if word == "kept"}

        assert process.returncode == -signal.SIGKILL
        assert sent <= events.keys()
        assert kept <= {event_id for event_id, status in events.items() if status == "ok"}
        asyncio.run(_compare(folder, recovered))


async def _compare(folder: Path, recovered: Recovered) -> None:
    book = Journal.open(folder, secret=SECRET, spool=lambda *_: True, recovered=recovered)
    for answer in recovered.answers:
        assert np.array_equal(book.read(answer.place), vectors(int(answer.operation_id)))
    await book.close(published=True)
    assert names(folder) == []

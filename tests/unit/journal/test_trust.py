"""A journal is evidence only of the home that made it, and damage in it hides nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import stat
import zlib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import orjson
import pytest

from embedctl.errors import StorageFailed
from embedctl.journal import Journal, Trust, frames, home_secret, recover
from embedctl.journal.frames import Keyed
from embedctl.journal.rescue import foreign_journals, rescue, set_aside
from embedctl.journal.segments import ANSWERS, INTENTS, OLD_INTENTS, Views
from embedctl.journal.trust import SECRET_FILE
from embedctl.records import JOURNAL_DAMAGED, UsageEvent, VectorRef, uuid7
from tests.support.attempts import HASHES, SECRET, TRUST, die, intent, vectors

OTHER = Trust(bytes(32))


def made(folder: Path, attempts: int = 6, secret: bytes = SECRET) -> list[UsageEvent]:
    """A killed run's journal: every third attempt failed, every third has no end; what each was billed stands in it."""
    billed = []

    async def run() -> None:
        book = Journal.open(folder, secret=secret, spool=lambda *_: True)
        for number in range(attempts):
            event = intent(operation_id=f"{number}", tokens_estimated=10 + number)
            await book.intend(event)
            if number % 3 == 0:
                done = dataclasses.replace(event, tokens_total=10 + number)
                await book.answer(done, HASHES, vectors(number))
                billed.append(done)
            elif number % 3 == 1:
                failed = dataclasses.replace(event, status="error", billable="no")
                await book.settle(failed)
                billed.append(failed)
            else:
                billed.append(dataclasses.replace(event, tokens_total=10 + number))
        await book.sync()
        die(book)

    asyncio.run(run())
    return billed


def files(folder: Path) -> tuple[Path, Path]:
    (intents,) = folder.glob(f"*{INTENTS}")
    return intents, intents.with_name(intents.name.replace(INTENTS, ANSWERS))


def bounds(events: Sequence[UsageEvent]) -> tuple[int, int]:
    confirmed = sum(event.tokens_total for event in events if event.billable == "yes")
    unknown = sum(event.tokens_estimated or 0 for event in events if event.billable == "unknown")
    return confirmed, confirmed + unknown


def test_a_journal_of_another_home_is_not_believed(tmp_path: Path) -> None:
    """Frames that another secret has made are no events and no vectors: their files are foreign."""
    made(tmp_path, secret=OTHER.secret)
    recovered = recover(tmp_path, TRUST)

    assert (list(recovered.events), list(recovered.answers)) == ([], [])
    assert {path.name for path in recovered.foreign} == {path.name for path in tmp_path.iterdir()}


def test_a_frame_counts_only_where_it_was_written(tmp_path: Path) -> None:
    """A frame that is copied to another place of its file, or into the other file, is none."""
    made(tmp_path, 1)
    intents, answers = files(tmp_path)
    head = frames.read_head(os.open(intents, os.O_RDONLY))
    content = intents.read_bytes()
    begin = content.index(frames.MAGIC, 4)
    intents.write_bytes(content + content[begin:])
    answers.write_bytes(content)
    recovered = recover(tmp_path, TRUST)

    assert head is not None
    assert head.key == frames.fingerprint(SECRET)
    assert [event.operation_id for event in recovered.events if event.error_class != JOURNAL_DAMAGED] == ["0"]
    assert list(recovered.answers) == []
    assert recovered.lost_bytes > 0


@pytest.mark.parametrize("kind", ["credit", "adjustment", "true_up"])
def test_a_journal_holds_usage_alone(tmp_path: Path, kind: str) -> None:
    """A correction or credit in a journal is no frame, whoever wrote it."""
    asyncio.run(_written(tmp_path, intent(entry_kind=kind, cost_provider=Decimal(-1000))))

    recovered = recover(tmp_path, TRUST)

    assert list(recovered.events) == []
    assert recovered.lost_bytes > 0


async def _written(folder: Path, event: UsageEvent) -> None:
    book = Journal.open(folder, secret=SECRET, spool=lambda *_: True)
    await book.intend(event)
    die(book)


@pytest.mark.parametrize("registered", [False, True])
def test_the_older_format_is_believed_where_the_home_knows_the_run(tmp_path: Path, registered: bool) -> None:
    """Anybody can make frames of format 1: they count when `runs/` names the state folder for an unfinished run."""
    journal = tmp_path / "journal"
    journal.mkdir()
    segment, event = uuid7().hex, intent()
    json = frames.draft("intent", event).json
    seed = zlib.crc32(segment.encode(), zlib.crc32(b"embedctl journal"))
    numbers = len(json).to_bytes(4, "little")
    checksum = zlib.crc32(json, zlib.crc32(numbers * 2, seed)).to_bytes(4, "little")
    (journal / f"{segment}{OLD_INTENTS}").write_bytes(numbers + checksum + numbers + json)
    asked: list[Path] = []

    def is_registered(state: Path) -> bool:
        asked.append(state)
        return registered

    recovered = recover(journal, Trust(SECRET, is_registered))

    assert asked == [tmp_path]
    assert [one.event_id for one in recovered.events] == ([event.event_id] if registered else [])
    assert len(recovered.foreign) == (0 if registered else 1)


@pytest.mark.timeout(300)
def test_no_flipped_byte_hides_a_charge(tmp_path: Path) -> None:
    """Wherever a byte of a killed run's journal changes, the bill lies between confirmed and confirmed + unknown."""
    billed = made(tmp_path / "whole")
    truth = sum(event.tokens_total for event in billed)
    said = 0
    for which, path in enumerate(files(tmp_path / "whole")):
        content = path.read_bytes()
        for at in range(0, len(content.rstrip(b"\0")) + 100, 37):
            folder = tmp_path / f"{which}-{at}"
            folder.mkdir()
            for other in files(tmp_path / "whole"):
                (folder / other.name).write_bytes(other.read_bytes())
            (folder / path.name).write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
            recovered = recover(folder, TRUST)
            low, high = bounds(list(recovered.events))
            said += recovered.lost_bytes > 0

            assert low <= truth <= high, (path.name, at)
            assert len({event.event_id for event in recovered.events}) == len(list(recovered.events))
            assert list(recover(folder, TRUST).events) == list(recovered.events)
    assert said > 100


def test_reading_goes_on_after_damage(tmp_path: Path) -> None:
    """Of an answers file with a stretch of zeros in the middle only the answers that stood there are lost."""
    made(tmp_path, 12)
    _, answers = files(tmp_path)
    content = bytearray(answers.read_bytes())
    middle = content.index(b'"operation_id":"3"')
    content[middle : middle + 200] = bytes(200)
    answers.write_bytes(content)
    recovered = recover(tmp_path, TRUST)

    assert [answer.operation_id for answer in recovered.answers] == ["0", "6", "9"]
    assert 200 < recovered.lost_bytes < 3000


def test_intents_that_cannot_be_read_count_as_unknown(tmp_path: Path) -> None:
    """The frames after a gap say how many attempts stood in it, and for how many tokens: one event says it all."""
    billed = made(tmp_path, 12)
    intents, _ = files(tmp_path)
    content = bytearray(intents.read_bytes())
    begin, end = content.index(b'"operation_id":"2"'), content.index(b'"operation_id":"6"')
    content[begin:end] = b"\xff" * (end - begin)
    intents.write_bytes(content)
    recovered = recover(tmp_path, TRUST)
    (lost,) = [event for event in recovered.events if event.error_class == JOURNAL_DAMAGED]
    low, high = bounds(list(recovered.events))

    assert (lost.billable, lost.status, lost.input_count) == ("unknown", "interrupted", 5)
    assert lost.tokens_estimated == 12 + 13 + 14 + 15 + 16
    assert lost.content_bytes == recovered.lost_bytes
    assert low <= sum(event.tokens_total for event in billed) <= high


def test_a_file_of_beginnings_takes_no_hours(tmp_path: Path) -> None:
    """Reading on gives up after so many frames that do not check."""
    made(tmp_path, 1)
    intents, _ = files(tmp_path)
    intents.write_bytes(intents.read_bytes() + frames.MAGIC * 400_000)

    assert recover(tmp_path, TRUST).lost_bytes >= 1_600_000


def test_a_later_version_s_segment_is_left_alone(tmp_path: Path) -> None:
    """A frame of an unknown kind that this home made: the segment is neither spooled nor removed."""
    made(tmp_path, 1)
    intents, answers = files(tmp_path)
    content = intents.read_bytes()
    keyed = Keyed(SECRET, intents.name.removesuffix(INTENTS), "intents")
    json = orjson.dumps({"kind": "submitted", "batch": {"id": "b-1", "texts": 3}})
    later = keyed._framed(json, b"", None, len(content), 1, 10)
    intents.write_bytes(content + b"".join(later.buffers))
    spooled: list[str] = []

    put = rescue(tmp_path, lambda segment, _: bool(spooled.append(segment)), TRUST, keeps_vectors=False)

    assert (put, spooled, recover(tmp_path, TRUST).foreign) == (0, [], ())
    assert intents.exists()
    assert answers.exists()


def test_a_segment_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """A living process's segment is no dead run's, though nobody holds the lock."""
    spooled: list[str] = []

    async def run() -> tuple[int, tuple[str, ...]]:
        book = Journal.open(tmp_path, secret=SECRET, spool=lambda *_: True)
        await book.intend(intent())
        put = rescue(tmp_path, lambda segment, _: bool(spooled.append(segment)), TRUST, keeps_vectors=False)
        living = recover(tmp_path, TRUST).living
        die(book)
        return put, living

    put, living = asyncio.run(run())

    assert (put, spooled) == (0, [])
    assert len(living) == 1
    assert recover(tmp_path, TRUST).living == ()


def test_what_another_machine_has_just_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks do not reach from machine to machine on every share: a young segment of another host may live."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("embedctl.journal.frames.socket.gethostname", lambda: "another")
        made(tmp_path, 1)
    assert len(recover(tmp_path, TRUST).living) == 1
    for path in files(tmp_path):
        os.utime(path, (1e9, 1e9))

    assert recover(tmp_path, TRUST).living == ()


def test_vectors_that_changed_are_not_published(tmp_path: Path) -> None:
    """An answer is checked when it is first read: one that is not what was written is refused, once and for all."""

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=lambda *_: True)
        event, other = intent(), intent()
        for one in (event, other):
            await book.intend(one)
        place = await book.answer(event, HASHES, vectors(1))
        whole = await book.answer(other, HASHES, vectors(2))
        with files(tmp_path)[1].open("r+b") as file:
            file.seek(place.offset + 8)
            file.write(bytes(4))
        for _ in range(2):
            with pytest.raises(StorageFailed, match="changed after it was written") as refusal:
                book.read(place.row(2))
        assert "bought anew" in str(refusal.value.hint)
        assert (book.read(whole) == vectors(2)).all()
        await book.close()

    asyncio.run(run())


def test_a_journal_that_was_cut_is_refused(tmp_path: Path) -> None:
    """Vectors that are gone from the file are an error, not zeros."""

    async def run() -> None:
        book = Journal.open(tmp_path, secret=SECRET, spool=lambda *_: True)
        event = intent()
        await book.intend(event)
        place = await book.answer(event, HASHES, vectors(1))
        os.truncate(files(tmp_path)[1], place.offset + 4)
        with pytest.raises(StorageFailed):
            book.read(place)
        await book.close()

    asyncio.run(run())


def test_only_answers_are_read(tmp_path: Path) -> None:
    """A place that is no answer's is refused, whatever stands in the file."""
    segment = uuid7().hex
    (tmp_path / "answers").write_bytes(bytes(64))
    views = Views(tmp_path)
    with pytest.raises(StorageFailed):
        views.read(VectorRef(segment, 0, 1, 4))
    views.expect(segment, "answers", 16, 16, frames.vectors_checksum(bytes(16)))

    assert views.read(VectorRef(segment, 16, 1, 4)).tolist() == [[0, 0, 0, 0]]
    for begin in (0, 20, 48):
        with pytest.raises(StorageFailed):
            views.read(VectorRef(segment, begin, 1, 4))


@pytest.mark.parametrize("size", [5, 4096, 4100, 60_000])
def test_the_checksum_sees_what_happens_to_vectors(size: int) -> None:
    """A changed byte, two bits that cancel out, swapped blocks and zeros change the checksum."""
    content = bytearray(os.urandom(size))
    kept = frames.vectors_checksum(content)
    for at in range(0, size, max(1, size // 50)):
        content[at] ^= 1
        assert frames.vectors_checksum(content) != kept
        content[at] ^= 1
    assert frames.vectors_checksum(bytes(content)) == kept
    assert frames.vectors_checksum(bytes(size)) != kept
    if size > 8192:
        swapped = content[4096:8192] + content[:4096] + content[8192:]
        assert frames.vectors_checksum(swapped) != kept
        one, other = int.from_bytes(content[0:8], "little"), int.from_bytes(content[80:88], "little")
        moved = bytearray(content)
        moved[0:8] = ((one + 4) % 2**64).to_bytes(8, "little")
        moved[80:88] = ((other - 4) % 2**64).to_bytes(8, "little")
        assert frames.vectors_checksum(moved) != kept


# the secret


def test_a_home_has_one_secret(tmp_path: Path) -> None:
    """It is made once, for its owner's eyes alone, and is another one in another home."""
    first = home_secret(tmp_path / "a")
    mode = stat.S_IMODE((tmp_path / "a" / SECRET_FILE).stat().st_mode)

    assert home_secret(tmp_path / "a") == first
    assert mode == 0o600
    assert len(first) == 32
    assert home_secret(tmp_path / "b") != first


def test_looking_makes_no_secret(tmp_path: Path) -> None:
    """Who changes nothing makes none, and believes nothing."""
    assert len(home_secret(tmp_path / "a", make=False)) == 32
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("what", ["too short", "too large", "link", "pipe", "folder"])
def test_a_secret_that_is_none_is_refused(tmp_path: Path, what: str) -> None:
    """Something else in its place ends the command with 74, and the hint says what to do."""
    path = tmp_path / SECRET_FILE
    if what.startswith("too"):
        path.write_bytes(bytes(31 if what == "too short" else 33))
    elif what == "link":
        (tmp_path / "other").write_bytes(bytes(32))
        path.symlink_to(tmp_path / "other")
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(StorageFailed) as refusal:
        home_secret(tmp_path)
    assert "remove it" in str(refusal.value.hint)


# what is set aside


def test_what_was_set_aside_is_still_found_by_its_home(tmp_path: Path) -> None:
    """Another home moves a journal out of its way; the one that made it spools its events from there."""
    made(tmp_path / "journal", 3)
    folder = set_aside(tmp_path, recover(tmp_path / "journal", OTHER))
    spooled: list[int] = []

    assert list((tmp_path / "journal").iterdir()) == []
    assert foreign_journals(tmp_path) == [folder]
    assert folder is not None
    assert rescue(folder, lambda *_: True, OTHER, keeps_vectors=False) == 0
    assert rescue(folder, lambda _, events: bool(spooled.append(len(events)) or 1), TRUST, keeps_vectors=False) == 3
    assert spooled == [3]
    assert list(folder.iterdir()) == []

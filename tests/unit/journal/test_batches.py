"""What a run has of batches, on the disk: read back as it was written, torn or not, from its folder or the home."""

from __future__ import annotations

import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from embedctl.errors import Locked
from embedctl.journal import Trust, recover
from embedctl.journal.batches import BATCHES, Batch, BatchLog, Line, known, new_mark, take_over
from embedctl.journal.frames import Step

SECRET = b"s" * 32
TRUST = Trust(SECRET)
STEPS: list[Step] = ["planned", "uploaded", "creating", "submitted", "collected", "cleaned"]


def batch(place: Path, **about: object) -> Batch:
    values = {
        "mark": new_mark(),
        "provider": "openai",
        "model": "m",
        "folder": str((place / "state").absolute()),
        "workspaces": ["a", "b"],
        "lines": [Line(2, 8, 30, 30, 0), Line(1, 4, 15, 15, 1)],
        "hashes": b"1" * 16 + b"2" * 16 + b"3" * 16,
        "risk": {"a": 8, "b": 4},
        "tokens": 12,
        "unit_price": Decimal("0.01"),
    }
    return Batch(**(values | about))  # type: ignore[arg-type]


def places(folder: Path) -> tuple[Path, Path]:
    journal = folder / "state" / "journal"
    journal.mkdir(parents=True, exist_ok=True)
    return journal, folder / "home" / "batches"


def written(folder: Path, *batches: Batch, upto: Step = "submitted") -> Path:
    """A file of a process that is gone; in the home it stands once more."""
    journal, copies = places(folder)
    log = BatchLog(journal, copies, secret=SECRET)
    for one in batches:
        for step in STEPS[: STEPS.index(upto) + 1]:
            one.step = step
            one.batch_id = "b1" if step in ("submitted", "collected", "cleaned") else None
            log.put(one)
    log.close()
    return next(journal.glob(f"*{BATCHES}"))


@pytest.mark.parametrize("upto", STEPS)
def test_says_how_far_it_is(upto: Step, tmp_path: Path) -> None:
    """The last step counts, and lines and text hashes are as they were planned."""
    one = batch(tmp_path)
    written(tmp_path, one, upto=upto)

    found = take_over(*places(tmp_path), TRUST)

    (read,) = found.batches.values()
    assert (read.step, read.hashes, read.lines) == (upto, one.hashes, one.lines)
    assert read.pending == (upto in ("creating", "submitted"))
    assert read.hashes_of(1) == b"3" * 16
    assert read.payers == ["a", "a", "b"]
    assert (read.cost_at_risk(), read.cost_at_risk("b")) == (Decimal("0.00000012"), Decimal("0.00000004"))


@pytest.mark.parametrize("where", ["state", "home"])
def test_any_tear_leaves_an_earlier_step(where: str, tmp_path: Path) -> None:
    """A file that is cut anywhere says less, never something else; the other one says all the same what is at risk."""
    path = written(tmp_path, batch(tmp_path))
    torn = tmp_path / ("state/journal" if where == "state" else "home/batches") / path.name
    whole = torn.read_bytes()
    for size in range(0, len(whole), 97):
        torn.write_bytes(whole[:size])

        (read,) = take_over(*places(tmp_path), TRUST).batches.values()

        assert (read.step, read.batch_id) == ("submitted", "b1")


def test_another_home_is_not_believed(tmp_path: Path) -> None:
    """Nobody who does not know the home's secret can tell of a batch."""
    written(tmp_path, batch(tmp_path))

    assert take_over(*places(tmp_path), Trust(b"o" * 32)).batches == {}


def test_a_living_process_is_left_alone(tmp_path: Path) -> None:
    """A file that is being written is nobody else's."""
    journal, copies = places(tmp_path)
    log = BatchLog(journal, copies, secret=SECRET)
    log.put(batch(tmp_path))

    with pytest.raises(Locked):
        take_over(journal, copies, TRUST)
    assert [living for _, _, living in known(copies, TRUST)] == [True]
    log.remove()
    assert list(journal.iterdir()) + list(copies.iterdir()) == []


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """The home still tells what is under way, and another output's is not taken for it."""
    written(tmp_path, batch(tmp_path))
    written(tmp_path, batch(tmp_path, folder="/elsewhere"))
    shutil.rmtree(tmp_path / "state")

    assert len(take_over(*places(tmp_path), TRUST).batches) == 1
    assert len(known(places(tmp_path)[1], TRUST)) == 2


def test_segments_are_not_concerned(tmp_path: Path) -> None:
    """Recovery of attempts passes over files of batches: what is pending is not interrupted, nor foreign, nor newer."""
    written(tmp_path, batch(tmp_path))

    found = recover(places(tmp_path)[0], TRUST)

    assert (found.segments, found.foreign, found.remains, found.living) == ((), (), (), ())


def test_line_ids_and_events() -> None:
    """A line is known by its id alone, and its event is the same whoever collects it; a twin's is another."""
    one = batch(Path("/x"), batch_id="b1")

    assert [one.line_number(one.line_id(number)) for number in range(2)] == [0, 1]
    assert [one.line_number(said) for said in ("l-2", "l-", "0", "l-00", "l--1", "l-1 ", "x" * 64)] == [None] * 7
    assert one.event_id(0) == batch(Path("/x"), batch_id="b1", mark=one.mark).event_id(0)
    assert len({one.event_id(0), one.event_id(1), batch(Path("/x"), batch_id="b2", mark=one.mark).event_id(0)}) == 3
    assert one.event_id(0).version == 7

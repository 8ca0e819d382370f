"""A whole run dies at every durable operation it does, whole and torn; the next one finishes it.

Each row once with its vector, no answered text bought again, confirmed ≤ billed ≤ confirmed + unknown, no leftovers.
The journal's own operations are taken one by one in test_journal_crash.py, with the power going too. Here a sample of
all operations of a run is taken; `--long` takes every one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashed_runs import CrashingDisk, Small
from processes import sentence

from embedctl import slots
from embedctl.receipt import Receipt
from tests.wire.client import Wire, started

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEXTS = [sentence(number) for number in range(17)] + [sentence(3)]
CHANGED = [*TEXTS[:4], sentence(100), *TEXTS[5:14], sentence(101), sentence(102)]
POINTS = 20


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with started() as server:
        yield server


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SLOT_BYTES", 1)


Prepare = Callable[[Path, Wire], Small]


def fresh(kind: str) -> Prepare:
    """An input and nothing else."""

    def world(folder: Path, wire: Wire) -> Small:
        small = Small(folder, wire, kind)
        small.fill(TEXTS)
        return small

    return world


def changed(kind: str) -> Prepare:
    """A finished output whose input has changed since."""

    def world(folder: Path, wire: Wire) -> Small:
        small = fresh(kind)(folder, wire)
        assert isinstance(small.run(), Receipt)
        small.fill(CHANGED)
        return small

    return world


CASES = {
    "batch": (fresh("folder"), TEXTS, {}),
    "embed": (fresh("file"), TEXTS, {}),
    "batch changed": (changed("folder"), CHANGED, {}),
    "embed changed": (changed("file"), CHANGED, {}),
    "batch overwritten": (changed("folder"), CHANGED, {"overwrite": True}),
}


def crash_everywhere(case: str, folder: Path, wire: Wire, points: int | None) -> int:
    """Die at so many operations (None: all), in each as a whole and torn; how often."""
    prepare, texts, about = CASES[case]
    counting = CrashingDisk()
    wire.reset()
    assert isinstance(prepare(folder / "counted", wire).run(counting, **about), Receipt)
    every = counting.count
    assert every > 20
    step = 1 if points is None else max(1, every // points)
    crashes = 0
    for at in range(1, every + 1, step):
        torn = counting.trace[at - 1].startswith("write") and (points is None or at // step % 2 == 0)
        for half in (False, True) if torn and points is None else (torn,):
            wire.reset()
            small = prepare(folder / f"{at}-{half}", wire)
            crashes += crash_once(small, at, half, texts, about)
    return crashes


def crash_once(small: Small, at: int, torn: bool, texts: list[str], about: dict[str, object]) -> bool:
    """Die there, then finish; whether it died."""
    disk = CrashingDisk(at, torn=torn)
    small.run(disk, **about)
    safe, seen = small.safe(overwritten=bool(about.get("overwrite"))), len(small.wire.truth())
    finished = small.run(**about)

    where = f"operation {at}{' torn' if torn else ''}: {disk.trace[-1]}"
    assert isinstance(finished, Receipt), f"{where}: {finished}"
    assert finished.exit_code == 0, f"{where}: {finished.error}"
    assert not safe & {h for one in small.wire.truth()[seen:] for h in one["text_hashes"]}, where
    small.check_rows(texts)
    small.check_bill()
    small.check_no_leftovers()
    return disk.dead


@pytest.mark.parametrize("case", CASES)
def test_crash_anywhere(case: str, tmp_path: Path, wire: Wire) -> None:
    """A run that dies at a durable operation is finished by the next one, nothing lost, nothing bought twice."""
    assert crash_everywhere(case, tmp_path, wire, POINTS) > POINTS // 2


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_crash_everywhere(case: str, tmp_path: Path, wire: Wire) -> None:
    """The same at every single operation, whole and torn."""
    print(f"{case}: {crash_everywhere(case, tmp_path, wire, None)} crashes")

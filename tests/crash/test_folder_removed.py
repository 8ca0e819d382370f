"""A whole run dies at a durable operation, and its folder is removed: the ledger has what was spent all the same.

Also when the command that takes it in dies in the middle, with the folder there or not.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from embedctl.errors import EmbedctlError
from embedctl.journal import Trust, home_secret, recover
from embedctl.planning import slice as slices
from embedctl.runs import intake
from embedctl.storage import DISK, Disk
from tests.support.crashed_runs import Crashed, CrashingDisk, Small
from tests.support.crashing import each_kind
from tests.support.processes import sentence
from tests.support.wire.client import Wire

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEXTS = [sentence(number) for number in range(17)] + [sentence(3)]


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)


def take_in(small: Small, disk: Disk = DISK) -> None:
    """What every command that reads the ledger does first."""
    paths = small.order().settings.paths
    if intake._is_left(paths):
        intake.recover(paths, disk=disk)
    small._take_in(intake.LedgerPaths.of(paths))


def attempts(small: Small) -> set[UUID]:
    """Attempts that the folder's journal knows."""
    trust = Trust(home_secret(small.folder / "home"))
    return {event.event_id for event in recover(small.state / "journal", trust).events}


def booked(small: Small) -> set[UUID]:
    return {UUID(event["event_id"]) for file in small.books.values() for event in file}


WORLDS = [(kind, removed) for kind in ("folder", "file") for removed in (True, False)]
worlds = pytest.mark.parametrize(
    ("kind", "removed"), WORLDS, ids=[f"{kind}-folder {'removed' if removed else 'there'}" for kind, removed in WORLDS]
)


def die_everywhere(kind: str, removed: bool, folder: Path, wire: Wire, *, sample: bool) -> int:
    """Die at every operation, or at those kinds that are this world's; how often it did."""
    counting = CrashingDisk()
    small = Small(folder / "whole", wire, kind)
    small.fill(TEXTS)
    small.run(counting)
    turn = WORLDS.index((kind, removed))
    points = each_kind(counting.trace, turn, len(WORLDS)) if sample else range(1, counting.count)
    died = 0
    for at in points:
        wire.reset()
        small = Small(folder / f"at{at}", wire, kind)
        small.fill(TEXTS)
        disk = CrashingDisk(at, torn=at % 2 == 0 and counting.trace[at - 1].startswith("write"))
        if isinstance(small.run(disk), EmbedctlError):
            continue
        died += disk.dead
        known = attempts(small)
        if removed:
            shutil.rmtree(small.output if kind == "folder" else small.state, ignore_errors=True)
        dying, others = CrashingDisk(1 + at % 5), threading.enumerate()
        try:
            take_in(small, dying)
        except Crashed:
            dying.bury(others)
        take_in(small)

        assert known <= booked(small), f"operation {at}: {disk.trace[-1]}"
        small.check_bill()
        assert not intake._is_left(small.order().settings.paths)
        take_in(small)
        small.check_bill()
    return died


@worlds
def test_a_run_that_died_is_booked(
    kind: str, removed: bool, tmp_path: Path, wire: Wire, counted: Callable[[object], None]
) -> None:
    """Wherever a run dies, and whatever becomes of its folder: confirmed ≤ billed ≤ confirmed + unknown, each once."""
    died = die_everywhere(kind, removed, tmp_path, wire, sample=True)
    counted(f"{died} deaths")

    assert died


@pytest.mark.long
@pytest.mark.timeout(3600)
@worlds
def test_a_run_that_died_anywhere_is_booked(
    kind: str, removed: bool, tmp_path: Path, wire: Wire, counted: Callable[[object], None]
) -> None:
    """The same at every single operation."""
    died = die_everywhere(kind, removed, tmp_path, wire, sample=False)
    counted(f"{died} deaths")

"""A whole run dies, or its disk refuses, at every durable operation it does; the next one finishes it.

Each row once with its vector, no answered text bought again, confirmed ≤ billed ≤ confirmed + unknown, no leftovers.
It dies there, whole or torn; the power goes with it; the disk is full, or read-only, from there on. The journal's own
operations are taken one by one in test_journal_crash.py. Here each end takes a quarter of the kinds of operations that
a run does beside them, once; `--long` takes every operation with every end.

The ordering rules of a run. Each is taken away once in `MUTANTS`, and the checks must notice:

 1. what a run that cannot be continued has put into parts is kept until the next one is done
 2. old parts are replaced only after the commit record is there
 3. the run counts as finished only when its parts and failures are in place
 4. the journal is emptied only after the output is in place
 5. a finished output's journal is spooled before it is removed
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from embedctl import storage
from embedctl.errors import EmbedctlError
from embedctl.journal.segments import Segment
from embedctl.journal.writer import Writer
from embedctl.outputs import FolderOutput, Record
from embedctl.planning import slice as slices
from embedctl.runs.receipt import Receipt
from embedctl.storage import Disk
from tests.support.crashed_runs import CrashingDisk, Small
from tests.support.crashing import RefusingDisk, each_kind
from tests.support.processes import sentence
from tests.support.wire.client import Wire

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEXTS = [sentence(number) for number in range(17)] + [sentence(3)]
JOURNAL = re.compile(r"^(?!link|unlink).*\.(intents|answers|attempts)$| (journal|spool|home)$")
SHOWN = re.compile(r"(link|rename) (part-|out\.parquet|commit\.json|run\.json)")
"""What a reader sees changes with it: a run dies there in any case."""

CHANGED = [*TEXTS[:4], sentence(100), *TEXTS[5:14], sentence(101), sentence(102)]


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)


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


class DiesAtPart(CrashingDisk):
    """Dies when this part would get its name."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._last = f"part-{number:06d}.parquet"

    def link(self, source: Path, target: Path) -> bool:
        if target.name == self._last:
            time.sleep(0.05)  # what is done behind the scenes comes to its end first
            self.at = self.count + 1
        return super().link(source, target)


def crashed_then_changed(folder: Path, wire: Wire) -> Small:
    """A finished output; a run for changed rows that died in the middle; then rows have changed again."""
    small = changed("folder")(folder, wire)
    small.fill([sentence(number) for number in range(200, 218)])
    small.run(DiesAtPart(2))
    small.fill([*(sentence(number) for number in range(200, 212)), *CHANGED[:6]])
    return small


TWICE = [*(sentence(number) for number in range(200, 212)), *CHANGED[:6]]

CASES = {
    "batch": (fresh("folder"), TEXTS, {}),
    "embed": (fresh("file"), TEXTS, {}),
    "batch changed": (changed("folder"), CHANGED, {}),
    "embed changed": (changed("file"), CHANGED, {}),
    "batch twice": (crashed_then_changed, TWICE, {}),
    "batch overwritten": (changed("folder"), CHANGED, {"overwrite": True}),
}


def dies(folder: Path, at: int, torn: bool) -> CrashingDisk:
    return CrashingDisk(at, torn=torn)


def loses_power(folder: Path, at: int, torn: bool) -> CrashingDisk:
    """What was not synced is lost, kept, torn or zeroed."""
    (folder / "graves").mkdir()
    return CrashingDisk(at, torn=torn, graveyard=folder / "graves", seed=at)


def is_full(folder: Path, at: int, torn: bool) -> RefusingDisk:
    return RefusingDisk(at, torn=torn)


def is_read_only(folder: Path, at: int, torn: bool) -> RefusingDisk:
    return RefusingDisk(at, read_only=True)


NEVER_REFUSED = {
    "is full": ("sync_folder", "remove_folder", "unlink", "truncate"),
    "is read-only": ("sync_folder", "remove_folder"),
}
"""What a disk that refuses does not count."""

ENDS = {"dies": dies, "loses power": loses_power, "is full": is_full, "is read-only": is_read_only}


def end_everywhere(end: str, case: str, folder: Path, wire: Wire, *, sample: bool) -> int:
    """Let it end so at every operation, in writes as a whole and torn; how often it did.

    Args:
        sample: Only at those operations that are this end's.
    """
    prepare, texts, about = CASES[case]
    counting = CrashingDisk()
    wire.reset()
    assert isinstance(prepare(folder / "counted", wire).run(counting, **about), Receipt)
    assert counting.count > 20
    trace: Sequence[str] = counting.trace
    points: Sequence[int] = range(1, len(trace) + 1)
    if sample:
        trace = [name for name in trace if name.split(" ", 1)[0] not in NEVER_REFUSED.get(end, ())]
        beside = [at for at, name in enumerate(trace, 1) if not JOURNAL.search(name)]
        names = [trace[at - 1] for at in beside]
        kinds = each_kind(names, list(ENDS).index(end), len(ENDS))
        if end == "dies":
            kinds = sorted({*kinds, *(place for place, name in enumerate(names, 1) if SHOWN.match(name))})
        points = [beside[place - 1] for place in kinds]
    ends = 0
    for at in points:
        torn = trace[at - 1].startswith("write")
        for half in ((True,) if sample else (False, True)) if torn else (False,):
            wire.reset()
            small = prepare(folder / f"{at}-{half}", wire)
            ends += end_once(small, ENDS[end](small.folder, at, half), texts, about)
            shutil.rmtree(small.folder)
    return ends


def end_once(small: Small, disk: CrashingDisk | RefusingDisk, texts: list[str], about: dict[str, object]) -> bool:
    """End there, then finish; whether it did end there."""
    had = small.safe(overwritten=bool(about.get("overwrite")))
    before, shown = len(small.wire.truth()), small.shown()
    ended = small.run(disk, **about)
    where = f"operation {disk.at}{' torn' if disk.torn else ''}: {disk.trace[-1]}"
    assert not had & {h for one in small.wire.truth()[before:] for h in one["text_hashes"]}, f"{where}: bought again"
    small.check_whole(shown)
    safe, seen = small.safe(overwritten=bool(about.get("overwrite"))), len(small.wire.truth())

    if isinstance(disk, RefusingDisk):
        code = ended.exit_code if ended is not None else None
        if code == 0:  # or nothing but its entry in the registry could not be written
            small.check_rows(texts)
        assert code in (0, 73, 74) if disk.refused else code == 0, f"{where}: {ended}"
    finished = small.run(**about)
    assert isinstance(finished, Receipt), f"{where}: {finished}"
    assert finished.exit_code == 0, f"{where}: {finished.error}"
    assert not safe & {h for one in small.wire.truth()[seen:] for h in one["text_hashes"]}, where
    small.check_rows(texts)
    small.check_bill()
    small.check_no_leftovers()
    return disk.dead if isinstance(disk, CrashingDisk) else bool(disk.refused)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("case", CASES)
def test_ends_anywhere(case: str, end: str, tmp_path: Path, wire: Wire, counted: Callable[[object], None]) -> None:
    """A run that ends at a durable operation is finished by the next one, nothing lost, nothing bought twice."""
    ends = end_everywhere(end, case, tmp_path, wire, sample=True)
    counted(f"{ends} times")

    assert ends


def thrown_away(self: FolderOutput) -> None:
    """Rule 1: what was bought for `next` is removed with it."""
    storage.remove_tree(self.disk, self.next)
    storage.remove_tree(self.disk, self.failed)


def swapped_at_once(self: FolderOutput, layout: object, facts: object, record: Record) -> None:
    """Rule 2: parts are moved, the record is written at the end, and nothing says that it began."""
    for part in self.parts(self.next):
        self.disk.rename(part, self.folder / part.name)
    self.replacing = False
    self.record(record)


def finished_too_soon(self: FolderOutput, record: Record) -> None:
    """Rule 3: the record says "complete" from the beginning."""
    content = orjson.dumps({**record, "state": "complete", "parts": len(self.parts(self.into))}, default=str)
    storage.replace(self.disk, self.state / "run.json", content)


def emptied_too_soon(writer: Writer, segment: Segment) -> None:
    """Rule 4: a segment counts as published as soon as it is spooled."""
    keep(writer, segment)
    segment.released = segment.vectors


keep = Writer._spool_segment


def forgotten(journal: Path, *_: object, disk: Disk = storage.DISK, **__: object) -> int:
    """Rule 5: the journal of a finished output is removed as it is."""
    storage.remove_tree(disk, journal)
    return 0


MUTANTS: dict[str, tuple[str, str, object]] = {
    "1 bought parts are thrown away": ("batch twice", "embedctl.outputs.folder.FolderOutput.keep_aside", thrown_away),
    "2 no commit record": ("batch changed", "embedctl.outputs.folder.FolderOutput.finish", swapped_at_once),
    "3 finished too soon": ("batch", "embedctl.outputs.folder.FolderOutput.record", finished_too_soon),
    "4 emptied too soon": ("embed", "embedctl.journal.writer.Writer._spool_segment", emptied_too_soon),
    "5 journal not spooled": ("batch", "embedctl.runs.run.rescue", forgotten),
}


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS)
def test_checks_bite(mutant: str, tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without one of its ordering rules is found out: the fifth by all operations, the others by the sample."""
    case, target, instead = MUTANTS[mutant]
    monkeypatch.setattr(target, instead)

    def sampled() -> None:
        for end in ENDS:
            end_everywhere(end, case, tmp_path / end, wire, sample=not mutant.startswith("5"))

    with pytest.raises((AssertionError, EmbedctlError, OSError, pa.ArrowException)):
        sampled()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("case", CASES)
def test_ends_everywhere(case: str, end: str, tmp_path: Path, wire: Wire, counted: Callable[[object], None]) -> None:
    """The same at every single operation, whole and torn."""
    ends = end_everywhere(end, case, tmp_path, wire, sample=False)
    counted(f"{ends} times")

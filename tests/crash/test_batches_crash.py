"""A run with batches dies at each kind of durable operation it does, and answers of its provider are lost on top.

The next one finishes it: each row once with its vector, each text once on the provider's invoice, confirmed ≤ invoice ≤
confirmed + unknown, and nothing left over. The ordering rules of batches; each is taken away once in `MUTANTS`, and the
checks must notice:

 1. the intent to create is on the disk before the create
 2. a create whose answer was lost is not repeated before the whole list was walked, later than the grace time
 3. a batch is collected only when all of its lines are in the journal
 4. what is under way is written down anew before the dead run's file goes
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedctl.embedding.batch_answers import BatchAnswers
from embedctl.embedding.batch_calls import BatchCalls
from embedctl.errors import EmbedctlError
from embedctl.journal.batches import Batch, BatchLog
from embedctl.runs.receipt import Receipt
from tests.support.crashed_runs import CrashingDisk, Small
from tests.support.crashing import each_kind
from tests.support.processes import sentence
from tests.support.wire.client import Wire

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEXTS = [sentence(number) for number in range(17)] + [sentence(3)]
CONFIG = """
[providers.openai]
batch = true
batch_poll_s = 0.005
batch_grace_s = 1
batch_max_inputs = 6
"""

TROUBLE: dict[str, dict[str, Any]] = {
    "all well": {},
    "creates lost": {"create": ["lost", "ok", "lost"], "each": {"lag_s": 0.02}},
    "never made": {"create": ["lost_before", "lost"]},
    "uploads lost": {"upload": ["lost", "cut", "lost_before"]},
    "two with one mark": {"create": ["twice"]},
    "half expired": {"batches": [{"ends": "expired"}, {"ends": "expired", "left": "absent"}]},
    "limits": {"enqueued_limit": 50, "enqueued_how": "failed"},
}


class Batched(Small):
    """A small world whose provider has a Batch API."""

    waits = True

    @property
    def config(self) -> str:
        path = self.folder / "config.toml"
        path.write_text(CONFIG, "utf-8")
        return str(path)

    def order(self, *words: Any, **about: Any) -> Any:
        return super().order(flags={"mode": "batch", "wait": self.waits}, **about)

    def check_invoice(self, *, twins: int = 0) -> None:
        """Each text is on the provider's invoice once; the ledger is what it should be."""
        times = [sum(tiers.values()) for tiers in self.wire.invoice()["texts"].values()]
        assert sorted(times) == [1] * (len(set(TEXTS)) - twins) + [2] * twins
        self.check_bill()

    def check_nothing_waits(self) -> None:
        assert not [*(self.folder / "home" / "batches").glob("*")]
        assert not [one for one in self.wire.batches()["batches"] if one["status"] in ("open", "cancelling")]


def world(folder: Path, wire: Wire) -> Batched:
    small = Batched(folder, wire, "folder")
    small.fill(TEXTS)
    return small


def die_everywhere(
    trouble: str, folder: Path, wire: Wire, *, sample: bool, where: Callable[[list[str]], list[int]] | None = None
) -> int:
    """Let it die at every operation, or at those kinds that are this trouble's, or there; how often it did."""
    plan = TROUBLE[trouble]
    counting = CrashingDisk()
    wire.reset()
    wire.plan(batch=plan)
    whole = world(folder / "counted", wire)
    assert isinstance(whole.run(counting), Receipt)
    turn = list(TROUBLE).index(trouble)
    points = each_kind(counting.trace, turn, len(TROUBLE)) if sample else range(1, counting.count + 1)
    points = where(counting.trace) if where else points
    deaths = 0
    for at in points:
        wire.reset()
        wire.plan(batch=plan)
        small = world(folder / f"{at}", wire)
        deaths += die_once(small, at, torn=counting.trace[at - 1].startswith("write") and at % 2 == 0)
        shutil.rmtree(small.folder)
    return deaths


def die_once(small: Batched, at: int, *, torn: bool) -> bool:
    """Die there, then finish; whether it did die there."""
    disk = CrashingDisk(at, torn=torn)
    died = small.run(disk) is None
    finished = small.run()
    where = f"operation {at}{' torn' if torn else ''}: {disk.trace[-1]}"

    assert isinstance(finished, Receipt), f"{where}: {finished}"
    assert finished.exit_code == 0, f"{where}: {finished.error}"
    small.check_rows(TEXTS)
    twins = sum(times["batch"] > 1 for times in small.wire.invoice()["texts"].values())
    assert twins == 0 or twice(small.wire), where
    small.check_invoice(twins=twins)
    small.check_no_leftovers()
    small.check_nothing_waits()
    return died


def twice(wire: Wire) -> bool:
    """Whether the provider itself has made two batches of one create."""
    marks = [one["mark"] for one in wire.batches()["batches"]]
    return len(set(marks)) < len(marks)


@pytest.mark.parametrize("trouble", TROUBLE)
def test_dies_anywhere(trouble: str, tmp_path: Path, wire: Wire, counted: Callable[[object], None]) -> None:
    """A run that dies at a durable operation is finished by the next one: each text is bought once."""
    deaths = die_everywhere(trouble, tmp_path, wire, sample=True)
    counted(f"{deaths} times")

    assert deaths


def where_the_record_begins(trace: list[str]) -> list[int]:
    """Its two files are made, one after the other, and then written to."""
    made = [number for number, name in enumerate(trace, 1) if name.endswith(".batches")]
    return [*range(made[0], made[1] + 2)]


def test_dies_between_the_two_records_of_batches(tmp_path: Path, wire: Wire) -> None:
    """What a run had begun to write of its batches in the home goes with the next one, wherever between it died."""
    assert die_everywhere("all well", tmp_path, wire, sample=True, where=where_the_record_begins) >= 3


put, collect = BatchLog.put, BatchAnswers._collect


def without_intent(self: BatchLog, batch: Batch, *, sync: bool = True) -> None:
    """Rule 1: that a batch is being made is not written down before."""
    if batch.step != "creating":
        put(self, batch, sync=sync)


async def never_found(self: BatchCalls, mark: str, file_id: str | None, since: float) -> tuple[list[Any], bool]:
    """Rule 2: a batch whose answer was lost counts as never made."""
    return [], True


async def collected_too_soon(self: BatchAnswers, one: Any) -> None:
    """Rule 3: a batch counts as collected before its lines are in the journal."""
    one.batch.step = "collected"
    await self._put(one.batch)
    await collect(self, one)


def forgotten(self: BatchLog, batch: Batch, *, sync: bool = True) -> None:
    """Rule 4: what a dead run has under way is not written down anew."""
    if batch.step == "planned" or batch.key in self._told:
        put(self, batch, sync=sync)


MUTANTS: dict[str, tuple[str, str, object]] = {
    "1 no intent": ("all well", "embedctl.journal.batches.BatchLog.put", without_intent),
    "2 made again": ("creates lost", "embedctl.embedding.batch_calls.BatchCalls.find", never_found),
    "3 collected too soon": ("all well", "embedctl.embedding.batch_answers.BatchAnswers._collect", collected_too_soon),
}


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS)
def test_checks_bite(mutant: str, tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without one of its ordering rules is found out."""
    trouble, target, instead = MUTANTS[mutant]
    monkeypatch.setattr(target, instead)

    with pytest.raises((AssertionError, EmbedctlError, KeyError)):
        die_everywhere(trouble, tmp_path, wire, sample=False)


@pytest.mark.long
@pytest.mark.parametrize("instead", [put, forgotten])
def test_dies_again(instead: Any, tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 4: runs that only look at what is under way may die as often as they like; without it, it is forgotten."""
    wire.reset()
    wire.plan(batch={"each": {"polls": 60}})
    small = world(tmp_path, wire)
    small.waits = False
    small.run()
    monkeypatch.setattr("embedctl.journal.batches.BatchLog.put", instead)
    for at in range(1, 100, 2):
        small.run(CrashingDisk(at))
    monkeypatch.undo()
    small.waits = True
    assert isinstance(small.run(), Receipt)

    assert (len(wire.batches()["batches"]) == 3) == (instead is put)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("trouble", TROUBLE)
def test_dies_everywhere(trouble: str, tmp_path: Path, wire: Wire, counted: Callable[[object], None]) -> None:
    """The same at every single operation."""
    deaths = die_everywhere(trouble, tmp_path, wire, sample=False)
    counted(f"{deaths} times")

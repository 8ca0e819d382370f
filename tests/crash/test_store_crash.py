"""A job on a store, by one worker: whatever becomes of the machine, rows once and right, and the bill bounded."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedctl.errors import EmbedctlError
from embedctl.journal.segments import INTENTS
from embedctl.journal.shipping import ShippingDisk
from embedctl.runs.receipt import Receipt
from embedctl.storage.store import LocalStore, OutputFolder
from tests.support.processes import sentence
from tests.support.store_world import WORKERS_DIE, CrashingStore, ForgetfulStore, StoreWorld
from tests.support.wire.client import hash_of

pytestmark = WORKERS_DIE

TEXTS = [sentence(number) for number in range(17)] + [sentence(3)]
CHANGED = [*TEXTS[:8], sentence(100), *TEXTS[9:]]


@pytest.fixture
def world(store_world: StoreWorld) -> StoreWorld:
    store_world.fill(TEXTS)
    return store_world


def test_a_job_is_done_by_one_worker(world: StoreWorld) -> None:
    """Every row has its vector, the bill is what the usage says, and nothing is left but the output."""
    receipt = world.work()

    assert isinstance(receipt, Receipt), receipt
    assert receipt.exit_code == 0, receipt.error
    assert (receipt.rows, receipt.vectors, receipt.output) == (18, 18, world.place.url)
    world.check_rows(TEXTS)
    world.check_bill()
    world.check_no_leftovers()


def test_a_finished_job_is_not_begun_again(world: StoreWorld) -> None:
    """The same command again sends nothing, and says what is there."""
    world.work()
    seen = len(world.wire.truth())
    receipt = world.work()

    assert isinstance(receipt, Receipt), receipt
    assert (receipt.exit_code, receipt.rows, receipt.reused, receipt.attempts) == (0, 18, 18, 0)
    assert len(world.wire.truth()) == seen


POINTS = 7


def end_everywhere(world: StoreWorld, points: int | None, *, rerun: bool = False) -> int:
    """Let the worker die at so many of its changes (None: at all), before they are done and after; how often it did.

    Args:
        rerun: It is one that changes a finished output.
    """
    texts = CHANGED if rerun else TEXTS
    if rerun:
        change(world)
    counting = CrashingStore(world.place)
    assert isinstance(world.work(counting), Receipt)
    every, ends = counting.count, 0
    for at in range(1, every + 1, 1 if points is None else max(1, every // points)):
        for after in (False, True) if points is None else (bool(at // max(1, every // points) % 2),):
            begun = StoreWorld(world.folder / f"{at}-{after}", world.wire, kind=world.kind)
            begun.fill(TEXTS)
            world.wire.reset()
            if rerun:
                change(begun)
            dying = CrashingStore(begun.place, at, after)
            ended = begun.work(dying)
            where = f"change {at} {'after' if after else 'before'}: {dying.trace[-1]}"
            ends += ended is None
            kept, seen = begun.kept(), len(world.wire.truth())
            finished = begun.work()
            assert isinstance(finished, Receipt), f"{where}: {finished}"
            assert finished.exit_code == 0, f"{where}: {finished.error}"
            again = {h for one in world.wire.truth()[seen:] for h in one["text_hashes"]}
            assert not (kept & again) - TWICE, f"{where}: bought again"
            begun.check_rows(texts)
            begun.check_bill()
            begun.check_no_leftovers(generations=1 + rerun)
            shutil.rmtree(begun.folder)
    return ends


def change(world: StoreWorld) -> None:
    """A finished output whose input has changed since: one text of its second shard."""
    assert isinstance(world.work(), Receipt)
    old = [path.stat().st_mtime_ns for path in sorted((world.folder / "in").iterdir())]
    world.fill(CHANGED)
    for path, mtime in zip(sorted((world.folder / "in").iterdir()), old, strict=True):
        if path.name != "1.parquet":
            os.utime(path, ns=(mtime, mtime))


def test_a_rerun_dies_anywhere(world: StoreWorld, counted: Callable[[object], None]) -> None:
    """A rerun that dies at a change is finished by the next one; what is unchanged is never bought again."""
    ends = end_everywhere(world, 3, rerun=True)
    counted(f"{ends} times")

    assert ends > 1


TWICE = {hash_of(sentence(3))}
"""Bought once for each shard that has it."""


@pytest.mark.parametrize("kind", [LocalStore, OutputFolder])
def test_dies_anywhere(world: StoreWorld, kind: type[LocalStore], counted: Callable[[object], None]) -> None:
    """Where a worker dies at a change, another goes on with nothing but the store; nothing kept is bought again."""
    world.kind = kind
    ends = end_everywhere(world, POINTS)
    counted(f"{ends} times")

    assert ends > POINTS // 2


def test_answers_of_puts_are_lost(world: StoreWorld) -> None:
    """However many answers of the store are lost, a worker knows its own objects."""
    receipt = world.work(ForgetfulStore(world.place))

    assert isinstance(receipt, Receipt), receipt
    assert receipt.exit_code == 0, receipt.error
    world.check_rows(TEXTS)
    world.check_bill()
    world.check_no_leftovers()


def test_without_the_read_back_a_job_is_not_done(world: StoreWorld) -> None:
    """The test bites: a store's client that takes its own object for another's never ends the job."""
    ended = world.work(ForgetfulStore(world.place, reads_back=False), flags={"wait": False})

    assert not isinstance(ended, Receipt) or ended.exit_code != 0


def ships_after_sending(disk: ShippingDisk, fd: int, path: Path) -> None:
    """A mutant: an intent gets to the store some time after its request has gone out."""
    if path.name.endswith(INTENTS):
        threading.Timer(0.05, lambda: keep(disk, fd, path)).start()
    else:
        keep(disk, fd, path)


keep = ShippingDisk.sync


@pytest.mark.long
def test_checks_bite(world: StoreWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ships after sending is found out: its requests are on the invoice and in no ledger."""
    monkeypatch.setattr(ShippingDisk, "sync", ships_after_sending)

    with pytest.raises((AssertionError, EmbedctlError)):
        end_everywhere(world, 30)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_dies_everywhere(world: StoreWorld, counted: Callable[[object], None]) -> None:
    """The same at every single change, before and after."""
    counted(f"{end_everywhere(world, None)} times")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_rerun_dies_everywhere(world: StoreWorld, counted: Callable[[object], None]) -> None:
    """The same of a rerun."""
    counted(f"{end_everywhere(world, None, rerun=True)} times")

"""Several workers on one machine, by real processes, judged by the provider's invoice: whichever of them dies.

Rows once and right; confirmed ≤ billed ≤ confirmed + unknown; texts bought again ≤ kills × requests at risk.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import orjson
import pytest

from embedctl.journal.shard_log import tail
from embedctl.storage.store import OutputFolder, Store
from tests.support.processes import Child, Zygote
from tests.support.store_stories import StoreStory
from tests.support.stores import StoreServer
from tests.support.wire.client import Wire

Tell = Callable[[object], None]
PRICE = Decimal("0.02")


@dataclass
class WorkersStory(StoreStory):
    """A job of several workers, over a folder or a store."""

    folder_as_store: bool = True
    lease_s: float = 15.0  # longer than a busy machine keeps one that works from saying that it lives
    workers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder_as_store:
            self.url = str(self.folder / "out")

    @property
    def store(self) -> Store:
        return OutputFolder(Path(self.url)) if self.folder_as_store else super().store

    def command(self, *more: object) -> tuple[object, ...]:
        rows = max(1, len(self.texts) // 6)
        return super().command("--shard-rows", rows, "--workers", self.workers, *more)

    def children(self, child: Child) -> list[int]:
        """Worker processes of a command."""
        listed = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        found = []
        for pid in map(int, listed):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except FileNotFoundError:
                continue
            found += [pid] if b"process_worker" in words else []
        return found

    def kill_worker(self, child: Child) -> None:
        """One of them."""
        os.kill(self.children(child)[0], signal.SIGKILL)
        self.kills += 1

    def holder(self, shard: str) -> int | None:
        """The living process that has a shard."""
        end = tail(self.store, shard)
        for lock in (self.world.home / "scratch").glob(f"*/{end.worker}/lock") if end else ():
            pid = int(orjson.loads(lock.read_bytes())["pid"])
            return pid if _lives(pid) else None
        return None

    def gone(self, pids: list[int]) -> None:
        """Until these processes have ended by themselves."""
        end = time.monotonic() + 60
        while any(_lives(pid) for pid in pids):
            assert time.monotonic() < end, "a worker outlives its command"
            time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def job(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer) -> WorkersStory:
    made = WorkersStory(tmp_path, wire, forks, s3)
    made.begin(144, files=12, latency_s=0.05)
    return made


def test_workers_share_a_folder(job: WorkersStory) -> None:
    """Two workers embed everything once; one receipt has it all, and the ledger is the invoice. Run again: nothing."""
    ended = job.start("--job", "nightly").wait()
    assert ended.code == 0, ended.err
    again = job.start("--workers", 3).wait()

    receipt = ended.receipt
    assert (receipt["rows"], receipt["vectors"], receipt["requests"]) == (144, 144, 48)
    assert receipt["tokens"] == job.wire.billed()
    assert again.code == 0, again.err
    assert (again.receipt["reused"], again.receipt["requests"]) == (144, 0)
    assert job.check() == 0
    ledger = job.world.ledger()
    assert (ledger["confirmed"], ledger["unknown"]) == (job.wire.billed(), 0)


def test_workers_share_a_store(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer, counted: Tell) -> None:
    """The same on S3; a worker is killed, another takes its place, and the command ends with 0."""
    job = WorkersStory(tmp_path, wire, forks, s3, folder_as_store=False, workers=3)
    job.begin(144, files=12, latency_s=0.05)
    child = job.at_work()
    job.kill_worker(child)
    job.go_on()
    ended = child.wait()

    assert ended.code == 0, ended.err
    assert "died by signal SIGKILL" in ended.err
    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_the_command_is_killed(job: WorkersStory, counted: Tell) -> None:
    """Its workers keep what is in flight, send nothing more and end; a rerun buys nothing of that again."""
    child = job.at_work()
    workers = job.children(child)
    child.kill()
    assert child.wait().code == -9
    job.kills += len(workers)
    job.go_on()
    job.gone(workers)
    seen = len(job.wire.truth())
    assert seen < 48
    job.finish()

    counted(f"{job.check()} texts bought again after the command was killed")


def test_all_are_killed(job: WorkersStory, counted: Tell) -> None:
    """Command and workers at once: a plain run, without --workers, goes on where they were."""
    child = job.at_work()
    for pid in [child.pid, *job.children(child)]:
        os.kill(pid, signal.SIGKILL)
    assert child.wait().code == -9
    job.kills += 2
    job.go_on()
    ended = job.start("--workers", 1).wait()

    assert ended.code == 0, ended.err
    counted(f"{job.check()} texts bought again after all were killed")


def test_a_signal_costs_nothing(job: WorkersStory) -> None:
    """SIGTERM to the command is passed on once: all keep what is in flight, and nothing is bought again."""
    child = job.at_work()
    child.told_to_stop()
    job.go_on()
    ended = child.wait()
    assert ended.code == 143, ended.err
    job.finish()

    assert job.check() == 0
    ledger = job.world.ledger()
    assert (ledger["confirmed"], ledger["unknown"]) == (job.wire.billed(), 0)


def test_a_second_signal_ends_all_at_once(job: WorkersStory) -> None:
    """Who does not want to wait for answers in flight sends a second signal: nobody is left, nothing was drained."""
    child = job.at_work()
    job.wait_until_held()
    workers = job.children(child)
    child.told_to_stop()
    child.goes_on()  # its workers have been told too
    child.kill(signal.SIGTERM)

    assert child.wait().code == -15
    job.gone(workers)
    job.kills += len(workers)
    job.go_on()
    job.finish()
    job.check()
    assert job.world.ledger()["unknown"] > 0, "answers were waited for"


def test_no_number_of_workers_passes_the_budget(job: WorkersStory) -> None:
    """Four workers under one --max-cost: never more is billed than it allows, and the job ends with 4, resumable."""
    job.workers = 4
    limit = Decimal("0.0000040")
    ended = job.start("--max-cost", limit).wait()
    spent = job.wire.billed() * PRICE / 1_000_000

    assert ended.code == 4, ended.err
    assert limit / 2 < spent <= limit
    assert "--max-cost is reached" in ended.err
    ended = job.start("--max-cost", 1).wait()
    assert ended.code == 0, ended.err
    assert job.check() == 0


def test_a_worker_killed_under_a_budget(job: WorkersStory, counted: Tell) -> None:
    """What a dead worker had set aside counts as spent, then and in the next run: the limit holds."""
    limit = Decimal("0.0000060")
    child = job.at_work("--max-cost", limit)
    job.kill_worker(child)
    job.go_on()
    ended = child.wait()
    assert ended.code == 4, ended.err
    again = job.start("--max-cost", limit).wait()

    assert again.code == 4, again.err
    assert job.wire.billed() * PRICE / 1_000_000 <= limit
    assert job.start("--max-cost", 1).wait().code == 0
    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_a_second_command_on_a_limited_job_is_refused(job: WorkersStory) -> None:
    """Two commands that know nothing of each other cannot share a limit: the second one ends with 78, and buys nothing;
    with another job's options it is refused with 73.
    """
    child = job.at_work("--max-cost", 1)
    second, plain = job.start("--max-cost", 1), job.start("--max-cost", 1, "--workers", 1)
    other = job.start("--dtype", "float16").wait()
    refused = [second.wait(), plain.wait()]
    job.go_on()
    ended = child.wait()

    assert other.code == 73, other.err
    assert [one.code for one in refused] == [78, 78], refused
    assert ended.code == 0, ended.err
    assert job.check() == 0


def test_a_paused_worker_is_woken(job: WorkersStory, counted: Tell) -> None:
    """Stopped for longer than a lease a worker loses its shard; woken, it sends nothing more of it, and all is done."""
    child = job.at_work()
    paused = job.children(child)[0]
    os.kill(paused, signal.SIGSTOP)
    job.kills += 1
    job.go_on()
    job.wait_for_requests(48)  # as many as the job needs: none is left but in flight where it stands still
    os.kill(paused, signal.SIGCONT)
    ended = child.wait()

    assert ended.code == 0, ended.err
    counted(f"{job.check()} texts bought again after a pause")


def test_a_text_that_is_refused_fails_alone(job: WorkersStory) -> None:
    """What one shard holds costs the others nothing: the row is listed, the rest has vectors, the code is 3."""
    job.wire.plan(latency_s=0.01, poison=[job.texts[50]])
    ended = job.start().wait()

    assert ended.code == 3, ended.err
    assert (ended.receipt["vectors"], ended.receipt["failed"]) == (143, 1)
    assert ended.receipt["rows"] == 144


def test_a_shard_that_kills_its_workers(job: WorkersStory) -> None:
    """Three workers of one shard are dead: the job ends, naming the shard, and what others did is kept."""
    child = job.at_work("--batch-size", 1)
    for _ in range(3):
        end = time.monotonic() + 60
        while (holder := job.holder("00000")) is None:
            assert time.monotonic() < end, "nobody takes the shard"
            time.sleep(0.02)
        os.kill(holder, signal.SIGKILL)
        job.kills += 1
        while _lives(holder):
            time.sleep(0.02)
    job.go_on()
    ended = child.wait()

    assert ended.code == 70, ended.err
    assert "shard 00000 has ended 3 workers, the last one by signal SIGKILL" in ended.out + ended.err
    job.finish()
    job.check()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("who", ["a worker", "the command", "all"])
def test_many_kills(who: str, tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer, counted: Tell) -> None:
    """The same again and again, at any moment, also of those who took a dead one's place."""
    again = kills = 0
    for seed in range(6):
        job, chance = WorkersStory(tmp_path / str(seed), wire, forks, s3, workers=3), random.Random(seed)
        job.begin(144, files=12, latency_s=0.05)
        child = job.start()
        for _ in range(4):
            job.wait_for_requests(min(len(wire.truth()) + chance.randrange(2, 10), 44))
            workers = job.children(child)
            dying = {"a worker": workers[:1], "the command": [child.pid], "all": [child.pid, *workers]}[who]
            for pid in dying:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if who == "a worker":
                job.kills += len(dying)
                continue
            job.kills += len(workers)
            child.wait()
            job.gone(workers)
            child = job.start()
        ended = child.wait()
        if ended.code != 0:
            assert "has ended 3 workers" in ended.err or "ended before they took a shard" in ended.err, ended.err
            job.finish()
        again += job.check()
        kills += job.kills
    counted(f"{again} texts bought again after {kills} deaths of workers")

"""A job on S3 by real processes, judged by the provider's invoice: whatever happens to machine, network and store.

Rows once and right; confirmed ≤ billed ≤ confirmed + unknown; texts bought again ≤ kills × requests at risk.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fault_proxy import fault_proxy
from tests.support.processes import Child, Zygote
from tests.support.store_stories import CONCURRENCY, StoreStory, story
from tests.support.stores import StoreServer
from tests.support.wire.client import Wire, hash_of

Tell = Callable[[object], None]


@pytest.fixture
def job(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer) -> StoreStory:
    made = StoreStory(tmp_path, wire, forks, s3)
    made.begin(72)
    return made


def test_a_worker_is_killed(job: StoreStory, counted: Tell) -> None:
    """Killed twice, with its scratch and without: the next one goes on, and buys again at most what was in flight."""
    job.kill(5)
    job.lose_scratch()
    job.kill(4)
    job.finish()

    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_a_machine_is_gone(job: StoreStory, counted: Tell) -> None:
    """Nothing of the machine is left: another one finishes, and its ledger takes in what the first one spent."""
    job.kill(6)
    job.lose_machine()
    job.finish()

    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_a_signal_costs_nothing(job: StoreStory) -> None:
    """A worker told to stop keeps what is in flight: the next one takes its shard at once and buys nothing again."""
    child = job.at_work(after=5)
    child.told_to_stop()
    job.go_on()
    ended = child.wait()
    assert ended.code == 143, ended.err
    job.lose_machine()
    job.finish()

    assert job.check() == 0
    ledger = job.world.ledger()
    assert (ledger["confirmed"], ledger["unknown"]) == (job.wire.billed(), 0)


def test_a_paused_worker_is_fenced(job: StoreStory, counted: Tell) -> None:
    """Stopped for longer than a lease, then woken: another has its shard, it sends nothing more and ends with 75."""
    child = job.at_work(after=4)
    job.wait_until_held(CONCURRENCY)  # what is half sent when it is stopped is sent when it is woken
    child.kill(signal.SIGSTOP)
    job.kills += 1
    job.go_on()
    other = job.machine()
    ended = job.start(world=other).wait()
    assert ended.code == 0, ended.err
    seen = len(job.wire.truth())
    child.kill(signal.SIGCONT)
    woken = child.wait()
    time.sleep(0.1)

    assert woken.code == 75, woken.err
    assert len(job.wire.truth()) == seen
    counted(f"{job.check()} texts bought again after a pause")


def two_shares(job: StoreStory) -> tuple[Child, Child]:
    """Two workers on machines of their own, at work."""
    job.hold(6)
    first, second = job.start("--shard", "0/2"), job.start("--shard", "1/2", world=job.machine())
    job.wait_for_requests(6)
    return first, second


def test_one_of_two_shares_is_killed(job: StoreStory, counted: Tell) -> None:
    """The other one waits for it, its rerun goes on where it was, and both end with 0."""
    first, second = two_shares(job)
    first.kill()
    assert first.wait().code == -9
    job.kills += 1
    job.go_on()
    again = job.start("--shard", "0/2", world=job.machine())
    ended = [again.wait(), second.wait()]

    assert [one.code for one in ended] == [0, 0], ended
    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_one_of_two_shares_is_told_to_stop(job: StoreStory) -> None:
    """SIGTERM, as a scheduler sends it: run again it buys nothing twice, and the ledger is the invoice."""
    first, second = two_shares(job)
    first.told_to_stop()
    job.go_on()
    assert first.wait().code == 143
    again = job.start("--shard", "0/2", world=job.machine())
    ended = [again.wait(), second.wait()]

    assert [one.code for one in ended] == [0, 0], ended
    assert job.check() == 0
    ledger = job.world.ledger()
    assert (ledger["confirmed"], ledger["unknown"]) == (job.wire.billed(), 0)


def test_two_workers_without_shares_race(job: StoreStory, counted: Tell) -> None:
    """Started at once: one plan, each shard is one's; what a killed one held is taken over by the other."""
    job.lease_s = 4.0  # longer than a busy machine keeps the other one from saying that it lives
    job.hold(6)
    first, second = job.start(), job.start(world=job.machine())
    job.wait_for_requests(6)
    first.kill()
    assert first.wait().code == -9
    job.kills += 1
    job.go_on()
    ended = second.wait()

    assert ended.code == 0, ended.err
    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_the_store_is_down_for_longer_than_a_lease(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer) -> None:
    """While the store is away nothing is sent; when it is back the worker goes on, and nothing is bought twice."""
    with fault_proxy(s3.port) as proxy:
        job = StoreStory(tmp_path, wire, forks, s3.behind(proxy.port))
        job.begin(72)
        child = job.at_work(after=5)
        proxy.always = "unavailable"
        job.go_on()
        time.sleep(2.5 * job.lease_s)
        proxy.always = None
        ended = child.wait()

        assert ended.code == 0, ended.err
        assert job.check() == 0


def test_answers_of_puts_are_lost_on_the_wire(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer) -> None:
    """The connection ends before the answer to a put, or the store says "conflict": nothing is taken for another's."""
    with fault_proxy(s3.port) as proxy:
        job = StoreStory(tmp_path, wire, forks, s3.behind(proxy.port))
        job.begin(36)
        proxy.faults += ["drop answer", "conflict", "unavailable", "drop request"] * 5
        job.finish()

        assert job.check() == 0
        assert len({what for _, what in proxy.puts}) == 5


def test_another_job_is_refused(job: StoreStory) -> None:
    """A plan of other options stays as it is: 73, naming what differs, and nothing is sent."""
    job.finish()
    seen = len(job.wire.truth())
    ended = job.start("--dtype", "float16", "--on-blank", "fail").wait()

    assert ended.code == 73, ended.err
    assert "dtype is float32 there, float16 here" in ended.out + ended.err
    assert len(job.wire.truth()) == seen


def test_a_rerun_buys_what_is_new(job: StoreStory) -> None:
    """A finished job whose input has changed: only the new text is bought, by a machine that has never seen the job."""
    job.finish()
    seen = len(job.wire.truth())
    job.texts[-1] = "another text"
    job.world.tables(job.texts, files=4)
    job.lose_machine()
    job.finish()

    assert {h for one in job.wire.truth()[seen:] for h in one["text_hashes"]} == {hash_of("another text")}
    job.check_rows(generations=2)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("gone", ["nothing", "scratch", "machine"])
def test_many_kills(gone: str, tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer, counted: Tell) -> None:
    """The same for many kills at any moment."""
    again = kills = 0
    for seed in range(6):
        with story(tmp_path / str(seed), wire, forks, s3, seed=seed) as (job, chance):
            for _ in range(4):
                job.kill(chance.randrange(1, 7))
                if gone == "scratch":
                    job.lose_scratch()
                if gone == "machine":
                    job.lose_machine()
            job.finish()
            again += job.check()
            kills += job.kills
    counted(f"{again} texts bought again after {kills} kills")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_shares_are_killed_again_and_again(
    tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer, counted: Tell
) -> None:
    """Three shares, each killed and run again at any moment."""
    again = kills = 0
    for seed in range(4):
        with story(tmp_path / str(seed), wire, forks, s3, seed=seed, texts=108) as (job, chance):
            worlds = [job.machine() for _ in range(3)]
            workers = [job.start("--shard", f"{index}/3", world=world) for index, world in enumerate(worlds)]
            for _ in range(4):
                seen = len(wire.truth())
                index = chance.randrange(3)
                job.wait_for_requests(min(seen + chance.randrange(1, 4), 30))
                workers[index].kill()
                if workers[index].wait().code == -9:
                    job.kills += 1
                workers[index] = job.start("--shard", f"{index}/3", world=worlds[index])
            ended = [worker.wait() for worker in workers]
            assert [one.code for one in ended] == [0, 0, 0], ended
            again += job.check()
            kills += job.kills
    counted(f"{again} texts bought again after {kills} kills")

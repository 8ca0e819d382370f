"""Workers on a Ray cluster, by real processes, judged by the provider's invoice: whichever of them dies.

Rows once and right; confirmed ≤ billed ≤ confirmed + unknown; texts bought again ≤ kills × requests at risk.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.processes import Zygote
from tests.support.ray_head import RayHead, ray_head
from tests.support.store_stories import StoreStory
from tests.support.stores import StoreServer
from tests.support.wire.client import Wire

pytest.importorskip("ray", reason="Ray is not installed here (extra `ray`)")
pytestmark = pytest.mark.xdist_group("ray")

Tell = Callable[[object], None]
PRICE = Decimal("0.02")
"""USD per million tokens of the model."""
TURNS = 3
"""Of a worker with --concurrency 1: two more have theirs while their intents are on the way to the store."""


@dataclass
class RayStory(StoreStory):
    """A job whose workers are Ray's."""

    address: str = "local"
    workers: int = 2
    lease_s: float = 10.0

    def command(self, *more: object) -> tuple[object, ...]:
        ray = ("--engine", "ray", "--ray-address", self.address, "--workers", self.workers)
        return super().command("--shard-rows", max(1, len(self.texts) // 6), *ray, *more)

    def spent(self) -> Decimal:
        """USD on the invoice."""
        return self.wire.billed() * PRICE / 1_000_000


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, wire: Wire, s3: StoreServer) -> Iterator[RayHead]:
    """A cluster whose machine has a home and keys of its own."""
    with ray_head(of_a_machine(tmp_path_factory.mktemp("node"), wire, s3)) as found:
        yield found


def of_a_machine(home: Path, wire: Wire, s3: StoreServer) -> dict[str, str]:
    """The environment of its workers."""
    keys = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": wire.base_url()}
    return {"EMBEDCTL_HOME": str(home), "EMBEDCTL_CANARY": "off", **keys, **s3.environment}


@pytest.fixture
def job(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer, head: RayHead) -> RayStory:
    made = RayStory(tmp_path, wire, forks, s3, address=head.address)
    made.begin(144, files=12, latency_s=0.05)
    return made


def one_of(head: RayHead, title: str) -> int:
    """A living process of the cluster that Ray calls so."""
    end = time.monotonic() + 60
    while not (found := head.pids(title)):
        assert time.monotonic() < end, f"no {title}"
        time.sleep(0.05)
    return found[0]


def check_exact(job: RayStory) -> None:
    """Nothing was bought twice, and the ledger is the invoice."""
    assert job.check() == 0
    ledger = job.world.ledger()
    assert (ledger["confirmed"], ledger["unknown"]) == (job.wire.billed(), 0)


def test_a_cluster_of_its_own(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer) -> None:
    """`local`: rows once and right, one receipt, one run, the ledger is the invoice; then nothing of Ray is left."""
    job = RayStory(tmp_path, wire, forks, s3)
    job.begin(48)
    job.world.variables["TMPDIR"] = str(tmp_path)
    before = set(Path("/tmp").glob("embedctl-ray-*"))
    ended = job.start().wait()

    assert ended.code == 0, ended.err
    assert (ended.receipt["vectors"], ended.receipt["tokens"]) == (48, wire.billed())
    assert [line for line in ended.err.splitlines() if not line.startswith("warning: ")] == []
    check_exact(job)
    assert set(Path("/tmp").glob("embedctl-ray-*")) <= before
    assert not (job.world.folder / "home/.ray").exists()
    runs = job.world.run("batch", "list", "--json")
    assert runs.out.count('"run_id"') == 1, "workers are no runs of their own"


def test_a_worker_is_killed(job: RayStory, head: RayHead, counted: Tell) -> None:
    """Ray starts it again, that one takes the shard over at once, and the command says so: exit code 0."""
    child = job.at_work()
    os.kill(one_of(head, "embedctl worker"), signal.SIGKILL)
    job.kills += 1
    job.go_on()
    ended = child.wait()

    assert ended.code == 0, ended.err
    assert "another one takes its place" in ended.err
    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_a_machine_is_told_to_go(job: RayStory, head: RayHead) -> None:
    """SIGTERM to a worker: what is in flight is kept, another one goes on, and nothing is bought twice."""
    child = job.at_work()
    os.kill(one_of(head, "embedctl worker"), signal.SIGTERM)
    job.go_on()
    ended = child.wait()

    assert ended.code == 0, ended.err
    check_exact(job)


def test_the_command_is_killed(job: RayStory, counted: Tell) -> None:
    """Its workers end with it; run again, it goes on with what they had."""
    child = job.at_work()
    child.kill()
    assert child.wait().code == -9
    job.kills += job.workers
    job.go_on()
    job.finish()

    counted(f"{job.check()} texts bought again after {job.kills} kills")


def test_the_command_is_told_to_stop(job: RayStory) -> None:
    """SIGTERM: all workers end in order with what is in flight, and run again nothing is bought twice."""
    child = job.at_work()
    child.told_to_stop()
    job.go_on()
    ended = child.wait()
    assert ended.code == 143, ended.err
    job.finish()

    check_exact(job)


def test_four_workers_share_a_limit_and_a_budget(job: RayStory) -> None:
    """Together they send what the provider takes: it refuses nothing. They stop before --max-cost.

    However late requests are, no more of them come at once than have their turn, and the provider takes so many. All
    four workers are at work before it looks: each on its own would send the whole limit.
    """
    job.begin(240, files=12)
    job.workers = 4
    job.wire.plan(hold_after=0)
    limit = Decimal("0.000016")
    child = job.start("--rpm", 720, "--burst", 1, "--concurrency", 1, "--max-cost", limit)
    job.wait_until_held(job.workers)
    job.wire.plan(per_second=12, burst=job.workers * TURNS + 2)
    ended = child.wait()

    assert ended.code == 4, ended.err
    assert "--max-cost is reached" in ended.err
    assert limit / 2 < job.spent() <= limit
    truth = job.wire.truth()
    assert len(truth) >= 20
    assert [one for one in truth if one["status"] == 429] == []


def test_the_budget_dies(job: RayStory, head: RayHead) -> None:
    """What its actor had set aside counts as spent when it is started again: --max-cost is never passed."""
    limit = Decimal("0.000004")
    child = job.at_work("--max-cost", limit)
    os.kill(one_of(head, "EmbedctlBudget"), signal.SIGKILL)
    job.go_on()
    ended = child.wait()

    assert ended.code == 4, ended.err
    assert 0 < job.spent() <= limit


@pytest.mark.long
def test_the_limiter_dies(job: RayStory, head: RayHead) -> None:
    """Its actor is started again, workers ask it anew, and the job ends as if nothing had been."""
    child = job.at_work()
    os.kill(one_of(head, "EmbedctlLimiter"), signal.SIGKILL)
    job.go_on()
    ended = child.wait()

    assert ended.code == 0, ended.err
    check_exact(job)


def test_a_worker_has_no_key(job: RayStory) -> None:
    """Keys are taken where the worker runs, and never sent there: without one the job ends with 78 and names the
    variable, and nothing is bought.
    """
    job.world.variables |= {"MISTRAL_API_KEY": "CANARY-key", "MISTRAL_BASE_URL": job.wire.base_url("mistral")}
    ended = job.start("-m", "mistral:mistral-embed", "--dimensions", 1024).wait()

    assert ended.code == 78, ended.err
    said = ended.out + ended.err
    assert "MISTRAL_API_KEY" in said
    assert "worker on " in said
    assert "CANARY" not in said
    assert job.wire.truth() == []


def test_no_key_is_in_ray_s_logs(job: RayStory, head: RayHead) -> None:
    """Neither those of the machines, which workers use, nor those of the command."""
    job.world.variables["OPENAI_API_KEY"] = "CANARY-of-the-command"
    job.begin(12)
    job.finish()

    logs = [path for path in head.folder.rglob("*") if path.is_file()]
    assert len(logs) > 10
    assert [path for path in logs if b"CANARY" in path.read_bytes()] == []


@pytest.mark.long
def test_another_version_of_ray(job: RayStory, tmp_path: Path, s3: StoreServer) -> None:
    """A cluster that says it has another version of Ray is not joined: 78, naming both, and nothing is bought."""
    with ray_head(of_a_machine(tmp_path / "node", job.wire, s3), version="2.49.0") as other:
        job.address = other.address
        ended = job.start().wait()

    assert ended.code == 78, ended.err
    assert "is of another version: it has Ray 2.49.0 and Python 3." in ended.receipt["message"]
    assert ended.receipt["message"].count("\n") == 0
    assert job.wire.truth() == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_machines_of_a_cluster_go(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer, counted: Tell) -> None:
    """Two machines work; one is gone from one moment to the next: the other one does all, and the bill is bounded."""
    with ray_head(of_a_machine(tmp_path / "node", wire, s3), cpus=2, machines=3) as cluster:
        job = RayStory(tmp_path, wire, forks, s3, address=cluster.address, workers=4)
        job.begin(360, files=12, latency_s=0.1)
        child = job.at_work()
        cluster.remove_machine()
        job.kills += 2
        job.go_on()
        ended = child.wait()

        assert ended.code == 0, ended.err
        counted(f"{job.check()} texts bought again after {job.kills} kills")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_kills(tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer, head: RayHead, counted: Tell) -> None:
    """The same for many kills, of workers and of the command, at any moment."""
    again = kills = 0
    for number in range(6):
        job = RayStory(tmp_path / str(number), wire, forks, s3, address=head.address)
        job.begin(288, files=12, latency_s=0.1)
        child = job.start()
        job.wait_for_requests(8)
        if number % 2:
            for _ in range(2):
                os.kill(one_of(head, "embedctl worker"), signal.SIGKILL)
                job.kills += 1
                job.wait_for_requests(len(wire.truth()) + 6)
        else:
            job.wait_for_requests(8 + 6 * number)
            child.kill()
            job.kills += job.workers
            child.wait()
            child = job.start()
        ended = child.wait()
        assert ended.code == 0, ended.err
        again += job.check()
        kills += job.kills
    counted(f"{again} texts bought again after {kills} kills")

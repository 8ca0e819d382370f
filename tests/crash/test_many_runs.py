"""Twenty processes with whole runs on one ledger at once, as cron starts them: what it says is what was billed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from pathlib import Path

import duckdb
import pytest

from embedctl.errors import Locked
from embedctl.storage import locks
from tests.support.processes import MODEL, Child, Ended, World, Zygote, hash_of, sentence
from tests.support.wire.client import Wire

PROCESSES = 20
ROWS = 30
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "6", "--concurrency", "3")
BY_WORKSPACE = """
SELECT workspace_id, coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0)::BIGINT,
       coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0)::BIGINT
FROM usage_event GROUP BY ALL
"""


class Crowd:
    """Runs with inputs and workspaces of their own, half of them `batch run`, half `embed`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.texts = [[sentence(place * ROWS + row) for row in range(ROWS)] for place in range(PROCESSES)]
        for place, texts in enumerate(self.texts):
            world.table(texts, f"{place}.parquet")

    def output(self, place: int) -> str:
        return f"out{place}" if place % 2 else f"out{place}.parquet"

    def command(self, place: int) -> Sequence[str]:
        command = ("batch", "run", "--job", f"job{place}") if place % 2 else ("embed", "--no-cache")
        return (*command, f"{place}.parquet", "-o", self.output(place), "-w", f"team{place}", *OPENAI)

    def run(self, kill_within_s: float | None = None, seed: int = 0) -> list[Ended]:
        """All at once; how they ended. When asked to, each dies so long after its start at most."""
        chance = random.Random(seed)
        children: list[Child] = []
        dying: list[tuple[float, int]] = []
        while len(children) < PROCESSES or dying:
            if len(children) < PROCESSES:
                children.append(self.world.start(*self.command(len(children))))
                if kill_within_s is not None:
                    heappush(dying, (time.monotonic() + chance.uniform(0, kill_within_s), len(children) - 1))
            else:
                time.sleep(max(0.0, dying[0][0] - time.monotonic()))
            while dying and dying[0][0] <= time.monotonic():
                children[heappop(dying)[1]].kill()
        return [child.wait() for child in children]

    def check(self) -> None:
        """Every output, the bill as a whole, and the bill of each workspace."""
        for place, texts in enumerate(self.texts):
            self.world.check_rows(self.output(place), texts, dimensions=8)
        self.world.check_bill()
        team = {hash_of(text): f"team{place}" for place, texts in enumerate(self.texts) for text in texts}
        billed = dict.fromkeys(team.values(), 0)
        for one in self.world.wire.truth():
            (whose,) = {team[text] for text in one["text_hashes"]}
            billed[whose] += one["tokens_billed"]
        with duckdb.connect(str(self.world.home / "usage.duckdb"), read_only=True) as connection:
            rows = connection.execute(BY_WORKSPACE).fetchall()

        assert {row[0] for row in rows} == set(billed)
        for workspace, confirmed, unknown in rows:
            assert confirmed <= billed[workspace] <= confirmed + unknown


@pytest.fixture
def crowd(tmp_path: Path, wire: Wire, forks: Zygote) -> Crowd:
    wire.reset()
    wire.plan(latency_s=0.02)
    return Crowd(World(tmp_path, wire, forks, hurried=True))


def check_finished(runs: Sequence[Ended]) -> None:
    assert [(ended.code, ended.err) for ended in runs if ended.code] == []


def test_twenty_runs_at_once(crowd: Crowd) -> None:
    """The sum in the ledger is the provider's, to the token, and so is each workspace's."""
    check_finished(crowd.run())

    crowd.check()
    ledger = crowd.world.ledger()
    assert (ledger["confirmed"], ledger["unknown"]) == (crowd.world.wire.billed(), 0)
    assert ledger["events"] == len(crowd.world.wire.truth())


def test_twenty_runs_at_once_killed(crowd: Crowd, counted: Callable[[object], None]) -> None:
    """Killed, all of them and again, and finished at last: what the ledger says bounds what was billed."""
    killed = sum(ended.code == -9 for seed in range(3) for ended in crowd.run(1.0, seed))
    counted(f"{killed} kills of {PROCESSES} runs at once on one ledger")

    assert killed >= PROCESSES
    check_finished(crowd.run())
    crowd.check()


def test_a_recovery_is_waited_for(tmp_path: Path) -> None:
    """Who is to continue a dead run waits for the command that just takes its spending in, and for nothing else."""
    path = tmp_path / "lock"
    with locks.hold(path, command=locks.RECOVERY) as recovery, ThreadPoolExecutor(1) as pool:
        with pytest.raises(Locked):
            locks.hold(path, command=locks.RECOVERY)
        run = pool.submit(locks.hold, path, command="batch run")
        time.sleep(3 * locks.GLANCE_S)
        assert not run.done()
        recovery.release()
        lock = run.result(5)
        with lock, pytest.raises(Locked):
            locks.hold(path, command="batch run")

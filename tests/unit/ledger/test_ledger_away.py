"""A ledger that cannot be had stops no run: what was spent waits in the spool."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--no-cache")
HOLDS = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


class Impatient(World):
    """A world whose runs wait for the ledger's budgets no longer than for its lock."""

    @property
    def constants(self) -> dict[str, Any]:
        return {
            **super().constants,
            "embedctl.budgets.limits:LEDGER_WAIT_S": 0.5,
            "embedctl.runs.run:INGEST_WAIT_S": 0.5,
        }


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = Impatient(tmp_path, wire, forks)
    found.table([sentence(number) for number in range(5)])
    return found


@contextmanager
def opened_elsewhere(world: World) -> Iterator[None]:
    """Another program has the ledger open for writing, as a desktop tool would all day."""
    command = [sys.executable, "-c", HOLDS, str(world.home / "usage.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield
        other.communicate()


def test_a_run_does_not_need_the_ledger(world: World) -> None:
    """While a foreign program has the ledger open a paid run ends well, says so, and is in the ledger afterwards."""
    world.run("embed", "in.parquet", "-o", "before.parquet", *OPENAI)
    world.ledger()
    with opened_elsewhere(world):
        ended = world.run("embed", "in.parquet", "-o", "during.parquet", *OPENAI)

    assert ended.code == 0, ended.err
    assert "usage is spooled, not in the ledger yet" in ended.err
    assert "PID" in ended.err
    assert world.ledger()["events"] == 2
    world.check_bill()


def test_a_damaged_ledger_stops_no_run(world: World) -> None:
    """A ledger that is no database is set aside by the run that finds it, said so, and made anew with all events."""
    world.run("embed", "in.parquet", "-o", "before.parquet", *OPENAI)
    (world.home / "usage.duckdb").write_bytes(b"no database" * 1000)
    ended = world.run("embed", "in.parquet", "-o", "after.parquet", *OPENAI)

    assert ended.code == 0, ended.err
    assert "set aside" in ended.err
    assert world.ledger()["events"] == 2
    assert len(list(world.home.glob("usage.duckdb.bad-*"))) == 1


def test_a_budget_needs_the_ledger(world: World) -> None:
    """Where a budget blocks, a ledger that cannot be read stops the run with 75: nobody knows what is left."""
    world.run("embed", "in.parquet", "-o", "before.parquet", *OPENAI)
    world.run("usage", "budget", "set", "--amount", "5")
    world.wire.reset()
    with opened_elsewhere(world):
        ended = world.run("embed", "in.parquet", "-o", "during.parquet", *OPENAI)

    assert ended.code == 75, ended.err
    assert world.wire.truth() == []
    assert world.run("embed", "in.parquet", "-o", "during.parquet", *OPENAI).code == 0

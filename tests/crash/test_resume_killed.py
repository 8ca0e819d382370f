"""What a killed run leaves behind: each event in exactly one ledger, and no folder. Real processes, real kills."""

from __future__ import annotations

import time
from pathlib import Path

import duckdb
import pytest

from tests.support.processes import MODEL, Child, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(60)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "3", "--concurrency", "2", "--no-cache")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.tables(TEXTS, files=4)
    return found


class Elsewhere(World):
    """The same world with another state folder."""

    @property
    def home(self) -> Path:
        return self.folder / "other"


def killed(world: World, after: int, *words: object) -> None:
    """Run, and kill it when so many requests have been billed."""
    seen = len(world.wire.truth())
    world.wire.plan(latency_s=0.05, hold_after=max(0, after - seen) + 2)
    child: Child = world.start(*words)
    while len(world.wire.truth()) < after:
        time.sleep(0.01)
    child.kill()
    assert child.wait().code == -9
    world.wire.plan()


def events(path: Path) -> dict[str, tuple[str, int]]:
    """Event id → (billable, tokens); an id that is there twice is an error."""
    if not path.exists():
        return {}
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = connection.execute(
            "SELECT event_id, billable, greatest(tokens_total, coalesce(tokens_estimated, 0)) FROM usage_event"
        ).fetchall()
    assert len({row[0] for row in rows}) == len(rows)
    return {str(row[0]): (row[1], row[2]) for row in rows}


@pytest.mark.parametrize("kind", [("batch", "run"), ("embed",)])
@pytest.mark.parametrize("ingested", [False, True])
@pytest.mark.parametrize("generations", [1, 2])
def test_another_ledger(world: World, kind: tuple[str, ...], ingested: bool, generations: int) -> None:
    """Killed under one ledger and continued under another: no event is in both, and none is missing."""
    output = "out" if kind == ("batch", "run") else "out.parquet"
    words = (*kind, "in", "-o", output, *OPENAI, "--ledger")
    ledgers = [world.folder / name for name in ("one.duckdb", "two.duckdb")]
    for number in range(generations):
        killed(world, 4 * (number + 1), *words, ledgers[number % 2])
        if ingested:
            assert world.run("usage", "ingest", "--ledger", ledgers[number % 2]).code == 0
    last = ledgers[generations % 2]
    ended = world.run(*words, last)
    for path in ledgers:
        assert world.run("usage", "ingest", "--ledger", path).code == 0
    first, second = (events(path) for path in ledgers)

    assert ended.code == 0, ended.err
    assert first.keys() & second.keys() == set()
    both = first | second
    confirmed = sum(tokens for billable, tokens in both.values() if billable == "yes")
    unknown = sum(tokens for billable, tokens in both.values() if billable == "unknown")
    assert confirmed <= world.wire.billed() <= confirmed + unknown
    assert len(both) >= len(world.wire.truth())
    assert first  # what the first one bought stayed its own
    assert second
    world.check_rows(output, TEXTS, dimensions=8)
    world.check_no_leftovers(output)


def test_it_is_said(world: World) -> None:
    """A run under another ledger says where what was spent before is counted."""
    words = ("batch", "run", "in", "-o", "out", *OPENAI, "--ledger")
    killed(world, 4, *words, world.folder / "one.duckdb")
    ended = world.run(*words, world.folder / "two.duckdb")

    assert f"counted in the ledger it ran under: {world.folder / 'one.duckdb'}" in ended.err


def test_another_state_folder(world: World) -> None:
    """The same when it is EMBEDCTL_HOME that is another one."""
    words = ("batch", "run", "in", "-o", "out", *OPENAI)
    killed(world, 4, *words)
    other = Elsewhere(world.folder, world.wire, world.zygote)
    assert other.run(*words).code == 0
    for one in (world, other):
        assert one.run("usage", "ingest").code == 0
    first, second = (events(one.home / "usage.duckdb") for one in (world, other))

    assert first
    assert first.keys() & second.keys() == set()
    assert len(first | second) >= len(world.wire.truth())


def test_a_state_folder_that_was_moved(world: World) -> None:
    """When the ledger of a killed run was moved, the run counts where the ledger is now, and counts once."""
    words = ("batch", "run", "in", "-o", "out", *OPENAI)
    killed(world, 4, *words)
    assert world.run("usage", "ingest").code == 0
    before = events(world.home / "usage.duckdb")
    world.home.rename(world.folder / "other")
    other = Elsewhere(world.folder, world.wire, world.zygote)
    ended = other.run(*words)
    assert other.run("usage", "ingest").code == 0
    after = events(other.home / "usage.duckdb")

    assert ended.code == 0, ended.err
    assert before.keys() < after.keys()
    assert not world.home.exists()
    other.check_bill()


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_killed_stream_leaves_no_folder(world: World, after: int) -> None:
    """`embed -o -` that was killed leaves a folder only until the next command, and all it spent is counted."""
    killed(world, after, "embed", "in", "-o", "-", *OPENAI)
    assert world.run("embed", "in/000.parquet", "-o", "small.parquet", *OPENAI).code == 0

    assert list((world.home / "journal").glob("*")) == []
    world.check_bill()


def test_only_dead_ones_are_swept(world: World) -> None:
    """The folder of a stream that goes on is left alone by other commands."""
    world.wire.plan(hold_after=1)
    child = world.start("embed", "in", "-o", "-", *OPENAI)
    while not world.wire.truth():
        time.sleep(0.01)
    assert world.run("usage", "ingest").code == 0
    there = list((world.home / "journal").glob("*/lock"))
    world.wire.plan()
    ended = child.wait()

    assert len(there) == 1
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == len(TEXTS)
    assert list((world.home / "journal").glob("*")) == []
    world.check_bill()

"""What is under way at once: as many requests at the provider as `--concurrency` says, and a few beside them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.processes import MODEL, Child, World, Zygote, sentence
from tests.support.wire.client import Wire

CONCURRENCY, BESIDE = 8, 2
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "1", "--concurrency", str(CONCURRENCY))


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.tables([sentence(number) for number in range(40)], files=1)
    return found


def intents(output: Path) -> int:
    return sum(path.read_bytes().count(b'"intent"') for path in output.rglob("*.intents"))


def unanswered(world: World) -> Child:
    """A run that has begun as much as it begins while nobody answers."""
    world.wire.plan(hold_after=0)
    child = world.start("batch", "run", "in", "-o", "out", *OPENAI)
    end = time.monotonic() + 60
    while (held := world.wire.held()) < CONCURRENCY or intents(world.folder / "out") < CONCURRENCY + BESIDE:
        assert time.monotonic() < end, f"{held} are held, {intents(world.folder / 'out')} on record"
        time.sleep(0.01)
    return child


def test_no_more_are_sent_than_asked_for_and_a_quarter_more_are_written_down(world: World) -> None:
    """Of requests that nobody answers the provider gets `--concurrency`; a quarter more are on record."""
    child = unanswered(world)

    assert world.wire.held() == CONCURRENCY
    assert intents(world.folder / "out") == CONCURRENCY + BESIDE

    child.kill(9)
    child.wait()


def test_what_is_only_written_down_is_not_sent_any_more(world: World) -> None:
    """A run that is told to stop sends nothing that waits for a place, and books it as never sent."""
    child = unanswered(world)
    child.told_to_stop()
    world.wire.plan()
    ended = child.wait()

    assert ended.code == 143, ended.err
    assert len(world.wire.truth()) == CONCURRENCY
    assert world.ledger()["unknown"] == 0

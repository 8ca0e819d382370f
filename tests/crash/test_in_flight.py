"""What is under way at once: as many requests at the provider as `--concurrency` says, and a few beside them."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

CONCURRENCY, BESIDE = 8, 2
TEXTS = [sentence(number) for number in range(40)]
COMMAND = ("batch", "run", "in", "-o", "out", "-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "1")


def test_no_more_are_sent_than_asked_for_and_a_quarter_more_are_written_down(
    tmp_path: Path, wire: Wire, forks: Zygote
) -> None:
    """Of requests that nobody answers the provider gets `--concurrency`; a quarter more are on record."""
    wire.reset()
    wire.plan(hold_after=0)
    world = World(tmp_path, wire, forks)
    world.tables(TEXTS, files=1)
    child = world.start(*COMMAND, "--concurrency", str(CONCURRENCY))
    end = time.monotonic() + 60
    while wire.held() < CONCURRENCY or intents(world.folder / "out") < CONCURRENCY + BESIDE:
        assert time.monotonic() < end, f"{wire.held()} are held, {intents(world.folder / 'out')} written down"
        time.sleep(0.01)
    assert wire.held() == CONCURRENCY
    assert intents(world.folder / "out") == CONCURRENCY + BESIDE

    child.kill(9)
    child.wait()


def intents(output: Path) -> int:
    return sum(path.read_bytes().count(b'"intent"') for path in output.rglob("*.intents"))

"""Real processes, killed at random moments, again and again, with a provider that fails: nothing lost, nothing twice.

`--long` kills many more.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import MODEL, World, Zygote, sentence

from tests.wire.client import Wire

FAULTS = {
    "rate": {"p": 0.08, "form": "ms", "seconds": 0.02},
    "status": {"p": 0.02, "status": 503, "form": "ms", "seconds": 0.02},
    "reset_after": 0.015,
    "truncated": 0.015,
    "count": 0.015,
    "usage_missing": 0.05,
    "shuffled": 0.1,
}
KILLS = 16
LONG_KILLS = 1000


@dataclass(frozen=True)
class Case:
    """A command, where its output is, and about how long it takes."""

    args: tuple[str, ...]
    output: str
    lasts_s: float


CASES = {
    "batch": Case(
        ("batch", "run", "in", "-o", "out", "-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "7"),
        "out",
        0.9,
    ),
    "embed": Case(
        ("embed", "in", "-o", "out.parquet", "-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "7",
         "--no-cache"),
        "out.parquet",
        0.9,
    ),
}  # fmt: skip


def texts_of(seed: int, count: int = 160) -> list[str]:
    """Texts, one in ten of them again later."""
    chance = random.Random(seed)
    texts = [sentence(number + 160 * (seed % 20)) for number in range(count)]
    return [chance.choice(texts[:place]) if place and chance.random() < 0.1 else texts[place] for place in range(count)]


def survive(world: World, case: Case, seed: int, kills: int) -> int:
    """Kill a run so often, finish it, and check everything; how many kills came before its end."""
    chance = random.Random(seed)
    texts = texts_of(seed)
    world.wire.reset()
    world.wire.plan(latency_s=0.02, faults=FAULTS, seed=seed)
    world.tables(texts, files=5)
    killed = 0
    for _ in range(kills):
        safe, seen = world.safe(case.output), len(world.wire.truth())
        ended = world.run_killed(chance.uniform(0.15, case.lasts_s), *case.args)
        again = {h for one in world.wire.truth()[seen:] for h in one["text_hashes"]}

        assert again & safe == set()
        assert ended.code in (-9, 0), ended.err
        killed += ended.code == -9
    safe, seen = world.safe(case.output), len(world.wire.truth())
    ended = world.run(*case.args)

    assert ended.code == 0, ended.err
    assert {h for one in world.wire.truth()[seen:] for h in one["text_hashes"]} & safe == set()
    world.check_rows(case.output, texts, dimensions=8)
    world.check_bill()
    world.check_no_leftovers(case.output)
    return killed


@pytest.mark.parametrize("kind", CASES)
def test_killed_runs_lose_and_repeat_nothing(kind: str, tmp_path: Path, wire: Wire, forks: Zygote) -> None:
    """However often a run is killed: each row once with its vector, nothing answered bought again, the bill bounded."""
    killed = 0
    for seed in range(100):
        if killed >= KILLS // len(CASES):
            break
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed += survive(World(folder, wire, forks), CASES[kind], seed, kills=4)

    assert killed >= KILLS // len(CASES)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", CASES)
def test_killed_runs_lose_and_repeat_nothing_long(kind: str, tmp_path: Path, wire: Wire, forks: Zygote) -> None:
    """The same, a thousand times."""
    killed = seed = 0
    while killed < LONG_KILLS // len(CASES):
        seed += 1
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed += survive(World(folder, wire, forks), CASES[kind], seed, kills=1 + seed % 6)
    print(f"{kind}: {killed} kills in {seed} worlds")

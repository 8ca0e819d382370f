"""Runs with batches are killed, one after the other, wherever they are; the last one finishes. Real processes, SIGKILL.

The provider loses answers meanwhile. Each text is on its invoice once, and the ledger says what the invoice says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(60)]
CONFIG = """
[providers.openai]
batch = true
batch_poll_s = 0.05
batch_grace_s = 1
batch_max_inputs = 9
"""
RUN = ("batch", "run", "in", "-o", "out", "-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "3")
FAULTS: list[dict[str, Any]] = [
    {"create": ["lost", "ok", "lost_before", "lost"], "upload": ["ok", "lost"], "each": {"lag_s": 0.1}},
    {"create": ["ok", "odd", {"status": 503, "made": True}], "upload": ["lost_before"], "list": ["lost", "cut"]},
    {"each": {"polls": 1}, "batches": [{"ends": "expired"}, {"fails": 0.5}], "create": ["lost"]},
]


def moves(wire: Wire) -> int:
    """How far the provider has seen a run come: files, batches, looks at them, files that are gone."""
    truth = wire.batches()
    looks = sum(one["polls"] for one in truth["batches"])
    gone = sum(one["deleted"] for one in truth["uploads"])
    return len(truth["uploads"]) + len(truth["batches"]) + looks + gone


def story(world: World, seed: int) -> int:
    """Kill runs of one output until one comes to its end; how many were."""
    chance, kills = random.Random(seed), 0
    wire = world.wire
    wire.reset()
    wire.plan(batch=FAULTS[seed % len(FAULTS)])
    world.home.mkdir(parents=True, exist_ok=True)
    (world.home / "config.toml").write_text(CONFIG, "utf-8")
    world.tables(TEXTS, files=3)
    waits = "--wait" if seed % 2 else "--no-wait"
    for _ in range(6):
        goal = moves(wire) + chance.randrange(1, 6)
        child = world.start(*RUN, "--mode", "batch", waits)
        deadline = time.monotonic() + 4
        while moves(wire) < goal and time.monotonic() < deadline and not _has_ended(child.pid):
            time.sleep(0.005)
        child.kill()
        kills += child.wait().code == -9
    ended = world.run(*RUN, "--mode", "batch", "--wait")

    assert ended.code == 0, ended.err
    world.check_rows("out", TEXTS, dimensions=8)
    times = [sum(tiers.values()) for tiers in wire.invoice()["texts"].values()]
    assert times == [1] * len(TEXTS)
    ledger = world.ledger()
    billed = sum(tokens for tiers in wire.invoice()["models"].values() for tokens in tiers.values())
    assert ledger["confirmed"] == billed
    world.check_no_leftovers("out")
    assert not list((world.home / "batches").glob("*"))
    assert not [one for one in wire.batches()["batches"] if one["status"] in ("open", "cancelling")]
    return kills


def _has_ended(pid: int) -> bool:
    """Whether a child is a zombie by now: its parent waits for it later."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("seed", range(3))
def test_killed(seed: int, tmp_path: Path, wire: Wire, forks: Zygote, counted: Callable[[object], None]) -> None:
    """However often a run is killed, and whatever answers are lost on top, each text is bought once."""
    kills = story(World(tmp_path, wire, forks), seed)
    counted(f"{kills} kills")

    assert kills


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_often(tmp_path: Path, wire: Wire, forks: Zygote, counted: Callable[[object], None]) -> None:
    """The same 200 times."""
    kills, seed = 0, 100
    while kills < 200:
        kills += story(World(tmp_path / str(seed), wire, forks), seed)
        seed += 1
    counted(f"{kills} kills of {seed - 100} outputs")

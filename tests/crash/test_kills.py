"""Real processes, killed with SIGKILL at random moments, again and again, with a provider that fails.

What must hold after each kill, and after the run that finishes, stands in killing.py. CI kills some dozens; `--long`
thousands. The counts are printed behind the test's results.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.killing import KINDS, stories
from tests.support.processes import World, Zygote
from tests.support.wire.client import Wire

KILLS = 9
LONG_KILLS = 300
SEGMENT_BYTES = 8000
"""Of the journal: several segments a run, so that some are spooled and removed while it goes on."""


@pytest.fixture
def world(wire: Wire, forks: Zygote) -> Callable[[Path], World]:
    def made(folder: Path) -> World:
        folder.mkdir()
        return World(folder, wire, forks, segment_bytes=SEGMENT_BYTES, hurried=True)

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_lose_and_repeat_nothing(
    kind: str, tmp_path: Path, world: Callable[[Path], World], counted: Callable[[object], None]
) -> None:
    """However often runs are killed: each row once with its vector, nothing answered bought again, the bill bounded."""
    tally = stories(KINDS[kind], world, tmp_path, kills=KILLS)
    counted(tally)

    assert tally.hits > 0 or kind != "embed with cache"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_lose_and_repeat_nothing_long(
    kind: str, tmp_path: Path, world: Callable[[Path], World], counted: Callable[[object], None]
) -> None:
    """The same, hundreds of times each."""
    counted(stories(KINDS[kind], world, tmp_path, kills=LONG_KILLS, seed=10_000))

"""`usage ingest` of several processes at once, each killed with SIGKILL at a random moment: each event counts once.

Also while the ledger is made for the first time, and while it is rebuilt from what was taken in before.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from embedctl.ledger import spool
from tests.support.killing import Pace
from tests.support.ledger_events import event
from tests.support.processes import World, Zygote
from tests.support.wire.client import Wire

AT_ONCE = 3
KILLS = 36
LONG_KILLS = 1000
TOTALS = "SELECT count(*), count(DISTINCT event_id), coalesce(sum(tokens_total), 0) FROM usage_event"


class Books:
    """A ledger, what was ever spooled for it, and who takes it in.

    Attributes:
        sent: Events and their tokens.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.sent = [0, 0]
        self.files = 0
        self.kills = 0

    def spool(self) -> None:
        """A few files more."""
        for _ in range(self.chance.randrange(1, 6)):
            events = [event(tokens_total=self.chance.randrange(1000)) for _ in range(self.chance.randrange(1, 40))]
            self.files += 1
            assert spool.publish(self.world.home / "spool", f"file-{self.files:05d}", events)
            self.sent[0] += len(events)
            self.sent[1] += sum(one.tokens_total for one in events)

    def ingest_killed(self, pace: Pace) -> None:
        """Several processes take the spool in at once; each dies, unless it is done before."""
        self.spool()
        started = time.monotonic()
        commands = [("usage", "ingest", *self.chance.choice([(), (), (), ("--rebuild",)])) for _ in range(AT_ONCE)]
        children = [self.world.start(*command) for command in commands]
        dying = sorted((self.chance.uniform(0, pace.lasts_s), place) for place in range(AT_ONCE))
        for after_s, place in dying:
            time.sleep(max(0.0, started + after_s - time.monotonic()))
            children[place].kill()
        for child in children:
            ended = child.wait()
            pace.learn(killed=ended.code == -9)
            self.kills += ended.code == -9

            assert ended.code in (-9, 0), ended.err

    def check(self) -> None:
        """One ingest more, and everything is there, once."""
        ended = self.world.run("usage", "ingest")

        assert ended.code == 0, ended.err
        with duckdb.connect(str(self.world.home / "usage.duckdb"), read_only=True) as connection:
            row = connection.execute(TOTALS).fetchone()
        assert row == (self.sent[0], self.sent[0], self.sent[1])
        assert spool.pending(self.world.home / "spool") == []


def killed_ingests(world: World, kills: int, seed: int) -> str:
    """So many kills, looked at after every few; in words."""
    pace, done, ledgers = Pace(0.3), 0, 0
    while done < kills:
        ledgers += 1
        folder = world.folder / str(ledgers)
        folder.mkdir()
        books = Books(replace(world, folder=folder), seed + ledgers)
        for _ in range(6):
            for _ in range(books.chance.randrange(1, 4)):
                books.ingest_killed(pace)
            books.check()
        done += books.kills
    return f"{done} kills of ingests into {ledgers} ledgers, {AT_ONCE} at once"


def test_killed_ingests_lose_and_double_nothing(
    tmp_path: Path, wire: Wire, forks: Zygote, counted: Callable[[object], None]
) -> None:
    """However many processes take the spool in at once and die at it: each event is in the ledger exactly once."""
    counted(killed_ingests(World(tmp_path, wire, forks), KILLS, seed=0))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_ingests_lose_and_double_nothing_long(
    tmp_path: Path, wire: Wire, forks: Zygote, counted: Callable[[object], None]
) -> None:
    """The same, hundreds of times."""
    counted(killed_ingests(World(tmp_path, wire, forks), LONG_KILLS, seed=10_000))

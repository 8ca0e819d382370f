"""Stories of one output whose runs are killed at random moments, generation after generation, and then finished.

After each kill: what is safe on the disk is not asked of the provider again, and what stands under the output's name
is whole. After the finish: each row once with its vector, each answered text bought once, the bill bounded, nothing
left over.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq

from tests.support.processes import MODEL, World, hash_of, sentence

FAULTS = {
    "rate": {"p": 0.04, "form": "ms", "seconds": 0.01},
    "status": {"p": 0.02, "status": 500, "form": "ms", "seconds": 0.01},
    "drip": {"p": 0.03, "seconds": 0.03},
    "reset_after": 0.015,
    "truncated": 0.015,
    "count": 0.015,
    "usage_missing": 0.05,
    "shuffled": 0.1,
}
"""429, 500, slow, lost, cut and wrong answers."""

OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "3", "--concurrency", "4")
BATCH = ("batch", "run", "in", "-o", "out")
EMBED = ("embed", "in", "-o", "out.parquet")
TEXTS = 36
LOCAL_TEXTS = 150
GENERATIONS = 3
"""Runs of one output that are killed one after the other, at least once."""

PAID = """
SELECT workspace_id, coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0),
       coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0)
FROM usage_event WHERE purpose <> 'test' GROUP BY ALL
"""
PAYERS = ("acme", "initech", "umbrella")


@dataclass(frozen=True)
class Kind:
    """What is killed.

    Attributes:
        made: A finished output whose input has changed since is what the killed runs replace.
        first: The command that made it, where it is another.
        local: No provider: what a row's vector is, a run that nobody kills has said.
    """

    command: tuple[str, ...]
    output: str
    made: bool = False
    first: tuple[str, ...] = ()
    columns: bool = False
    local: bool = False


KINDS = {
    "batch": Kind((*BATCH, *OPENAI), "out"),
    "batch changed": Kind((*BATCH, *OPENAI), "out", made=True),
    "batch of workspaces": Kind((*BATCH, *OPENAI, "--workspace-column", "payer"), "out", columns=True),
    "embed": Kind((*EMBED, *OPENAI, "--no-cache"), "out.parquet"),
    "embed changed": Kind((*EMBED, *OPENAI, "--no-cache"), "out.parquet", made=True),
    "embed with cache": Kind(
        (*EMBED, *OPENAI, "--cache"), "out.parquet", first=("embed", "in", "-o", "other.parquet", *OPENAI, "--cache")
    ),
    "local model": Kind((*EMBED, "--batch-size", "6", "--concurrency", "2"), "out.parquet", local=True),
}


@dataclass
class Tally:
    """What was done; added up over stories.

    Attributes:
        generations: Runs of one output that were killed one after the other, at most.
        hits: Texts that came from the shared cache.
    """

    kills: int = 0
    stories: int = 0
    generations: int = 0
    hits: int = 0

    def add(self, other: Tally) -> None:
        self.kills += other.kills
        self.stories += other.stories
        self.generations = max(self.generations, other.generations)
        self.hits += other.hits

    def __str__(self) -> str:
        return f"{self.kills} kills of {self.stories} outputs, up to {self.generations} of one"


@dataclass
class Pace:
    """About how long a run takes here and now, so that a moment before its end can be chosen."""

    lasts_s: float

    def learn(self, *, killed: bool) -> None:
        """Of five runs that are to be killed about four are: the moments are spread over the whole of a run."""
        self.lasts_s *= 1.02 if killed else 0.92


@dataclass
class Story:
    """One output, from its first run to its last.

    Attributes:
        vectors: Text → vector, where no provider says.
    """

    world: World
    kind: Kind
    seed: int
    pace: Pace = field(default_factory=lambda: Pace(0))
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        pool = range(LOCAL_TEXTS if self.kind.local else 4096)
        self.numbers = self.chance.sample(pool, len(pool))
        self.texts: list[str] = []
        self.before: list[list[str]] = []  # what may stand in the output instead, if that is there
        self.ever: set[str] = set()

    # the input

    def begin(self) -> None:
        """The provider as it is, the input, and the output that is there before."""
        if not self.kind.local:
            self.world.wire.reset()
            self.world.wire.plan(latency_s=0.004, faults=FAULTS, seed=self.seed)
        self.texts = [sentence(self.numbers.pop()) for _ in range(TEXTS)]
        if not self.kind.columns:
            self.texts[-3:] = self.chance.sample(self.texts[:-3], 3)  # the same text again, in another part
        self.write()
        if self.kind.first:
            self.finish(self.kind.first)
        if self.kind.made:
            self.finish()
            self.change()

    def change(self) -> None:
        """Other rows: some replaced, some gone, some new."""
        self.before.append(self.texts)
        self.texts = [
            sentence(self.numbers.pop()) if self.chance.random() < 0.25 else text
            for text in self.texts
            if self.chance.random() < 0.9
        ]
        self.texts += [sentence(self.numbers.pop()) for _ in range(self.chance.randrange(6))]
        self.write()

    def write(self) -> None:
        self.ever |= set(self.texts)
        if self.kind.columns:
            (self.world.folder / "in").mkdir(exist_ok=True)
            payers = [PAYERS[number % len(PAYERS)] for number in range(len(self.texts))]
            for file, places in enumerate(np.array_split(range(len(self.texts)), 3)):
                some = [self.texts[place] for place in places]
                about = {"id": places.tolist(), "payer": [payers[place] for place in places]}
                self.world.table(some, f"in/{file}.parquet", **about)
        else:
            self.world.tables(self.texts, files=3)

    # its runs

    def kill(self, after_s: float) -> bool:
        """A run that is killed after so long; whether it lived so long."""
        safe, seen = self.world.safe(self.kind.output), self.asked()
        ended = self.world.run_killed(after_s, *self.kind.command)

        assert ended.code in (-9, 0, 75), ended.err
        self.check_nothing_again(safe, seen)
        self.check_whole()
        self.tally.kills += ended.code == -9
        return ended.code == -9

    def kill_again_and_again(self, generations: int) -> None:
        """So many runs, each killed at any moment of what the ones before left to do."""
        left = 1.0
        while self.tally.generations < generations:
            share = self.chance.uniform(0, left)
            killed = self.kill(share * self.pace.lasts_s)
            self.pace.learn(killed=killed)
            left = max(left - share, 0.4)
            self.tally.generations += killed
            if not killed and not self.kind.made:
                break
            if not killed or (self.kind.made and self.chance.random() < 0.2):
                self.change()
                left = 1.0

    def finish(self, command: Sequence[str] = ()) -> float:
        """A run that nobody kills, and another one while the provider is too sick; how long the last one took."""
        for _ in range(6):
            safe, seen = self.world.safe(self.kind.output), self.asked()
            started = time.monotonic()
            ended = self.world.run(*(command or self.kind.command))
            took_s = time.monotonic() - started
            if not command:
                self.check_nothing_again(safe, seen)
            if ended.code != 75:
                break

        assert ended.code == 0, ended.err
        return took_s

    def tell(self, generations: int) -> Tally:
        """The whole story."""
        self.begin()
        self.kill_again_and_again(generations)
        self.finish()
        self.check()
        self.tally.stories = 1
        return self.tally

    # what must hold

    def asked(self) -> int:
        return 0 if self.kind.local else len(self.world.wire.truth())

    def check_nothing_again(self, safe: set[str], seen: int) -> None:
        if not self.kind.local:
            again = {h for one in self.world.wire.truth()[seen:] for h in one["text_hashes"]}

            assert again & safe == set(), "an answered text was sent again"

    def check_whole(self) -> None:
        """Whatever stands under the output's name can be read; a single file is the old output or the new one."""
        place = self.world.folder / self.kind.output
        if place.is_file():
            found = pq.read_table(place, columns=["text"]).column("text").to_pylist()

            assert found in (*self.before, self.texts)
        for part in place.glob("part-*"):
            pq.read_metadata(part)
        if self.kind.made:
            assert place.exists()

    def check(self) -> None:
        """After the finish."""
        ledger = self.world.ledger_as_it_is()
        self.check_each_bought_once(ledger)
        self.world.check_no_leftovers(self.kind.output)
        if self.kind.local:
            self.check_vectors()
            return
        self.world.check_rows(self.kind.output, self.texts, dimensions=8)
        self.world.check_billed(ledger)
        if self.kind.columns:
            self.check_payers()

    def check_vectors(self) -> None:
        rows = self.world.rows(self.kind.output)

        assert [row["text"] for row in rows] == self.texts
        for row in rows:
            assert np.allclose(row["embedding"], self.vectors[row["text"]], atol=1e-4)

    def check_each_bought_once(self, ledger: dict[str, int]) -> None:
        """As many texts were answered, by the ledger, as there are."""
        texts, self.tally.hits = ledger["texts"], ledger["hits"]
        if self.kind.first:  # what was in no cache yet when a run died is bought for the other output too
            assert len(set(self.texts)) <= texts + self.tally.hits <= 2 * len(self.ever)
        else:
            assert len(set(self.texts)) <= texts <= len(self.ever)

    def check_payers(self) -> None:
        """No request mixes workspaces, and each one's bill is bounded by its own lines in the ledger."""
        payer = {hash_of(text): PAYERS[number % len(PAYERS)] for number, text in enumerate(self.texts)}
        billed = dict.fromkeys(PAYERS, 0)
        for one in self.world.wire.truth():
            (whose,) = {payer[h] for h in one["text_hashes"] if h in payer} or {PAYERS[0]}
            billed[whose] += one["tokens_billed"]
        with duckdb.connect(str(self.world.home / "usage.duckdb"), read_only=True) as connection:
            rows = connection.execute(PAID).fetchall()

        for workspace, confirmed, unknown in rows:
            assert confirmed <= billed[workspace] <= confirmed + unknown


def stories(kind: Kind, world: Callable[[Path], World], folder: Path, *, kills: int, seed: int = 0) -> Tally:
    """Story after story, until so many runs were killed, and some of one output one after the other.

    In one of four the ledger is made by a run that is killed.
    """
    vectors = _vectors(world(folder / "vectors"), kind) if kind.local else {}
    whole = Story(world(folder / "whole"), kind, seed, vectors=vectors)
    whole.world.ledger()
    empty = shutil.copy(whole.world.home / "usage.duckdb", folder)
    whole.begin()
    pace = Pace(whole.finish())
    whole.check()
    total = Tally()
    while total.kills < kills or total.generations < GENERATIONS:
        seed += 1
        told = Story(world(folder / str(seed)), kind, seed, pace, vectors)
        if seed % 4 != 1:
            told.world.home.mkdir(parents=True)
            shutil.copy(empty, told.world.home)
        total.add(told.tell(2 + random.Random(seed).randrange(9)))
        shutil.rmtree(told.world.folder)
    return total


def _vectors(world: World, kind: Kind) -> dict[str, np.ndarray]:
    """What the local model says of every text that a story may have."""
    texts = [sentence(number) for number in range(LOCAL_TEXTS)]
    world.tables(texts, files=1)
    ended = world.run(*kind.command)

    assert ended.code == 0, ended.err
    return {row["text"]: row["embedding"] for row in world.rows(kind.output)}

"""Stories of a job on a store whose workers are real processes: killed, paused, cut off; and what must hold then."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedctl.outputs.parquet import matrix
from embedctl.runs import store_plan
from embedctl.storage.store import Store
from tests.support.processes import MODEL, Child, World, Zygote, sentence
from tests.support.stores import StoreServer
from tests.support.wire.client import Wire, expected

CONCURRENCY, BATCH = 4, 3
UNSHIPPED = 2
AT_RISK = (CONCURRENCY + UNSHIPPED) * BATCH
"""Texts, at each kill: what the start of a run says, times the texts of a request."""


@dataclass
class StoreStory:
    """One job.

    Attributes:
        kills: Workers that died with requests in flight, so far.
    """

    folder: Path
    wire: Wire
    zygote: Zygote
    server: StoreServer
    texts: list[str] = field(default_factory=list)
    kills: int = 0
    lease_s: float = 1.0
    latency_s: float = 0.02
    machines: int = 0

    def __post_init__(self) -> None:
        self.url = self.server.new()
        self.world = self.machine()

    def machine(self) -> World:
        """A machine that has nothing but the input."""
        self.machines += 1
        folder = self.folder / f"machine-{self.machines}"
        folder.mkdir(parents=True)
        return World(folder, self.wire, self.zygote, hurried=True, variables=dict(self.server.environment))

    def begin(self, texts: int, *, latency_s: float = 0.02, files: int = 4) -> None:
        """The provider and the input."""
        self.wire.reset()
        self.latency_s = latency_s
        self.go_on()
        self.texts = [sentence(number) for number in range(texts)]
        self.world.tables(self.texts, files=files)
        self.files = self.world.folder / "in"

    @property
    def store(self) -> Store:
        return self.server.open(self.url)

    def command(self, *more: object) -> tuple[object, ...]:
        model = ("-m", f"openai:{MODEL}", "--dimensions", 8, "--batch-size", BATCH, "--concurrency", CONCURRENCY)
        cut = ("--shard-rows", max(1, len(self.texts) // 3), "--lease", self.lease_s)
        return ("batch", "run", str(self.files), "-o", self.url, *model, *cut, "--json", *more)

    def start(self, *more: object, world: World | None = None) -> Child:
        return (world or self.world).start(*self.command(*more))

    def wait_for_requests(self, count: int) -> None:
        """Until the provider was asked so often since the last reset."""
        end = time.monotonic() + 60
        while len(self.wire.truth()) < count:
            assert time.monotonic() < end, "nothing is sent"
            time.sleep(0.01)

    def go_on(self) -> None:
        """The provider answers all that it holds back, and whatever comes."""
        self.wire.plan(latency_s=self.latency_s)

    def hold(self, after: int) -> None:
        """The provider answers so often and a little more; then it holds all back until `go_on`: nobody is done before,
        however slow those are who look.
        """
        self.wire.plan(latency_s=self.latency_s, hold_after=after + CONCURRENCY)

    def at_work(self, *more: object, after: int = 8) -> Child:
        """The command, once the provider has answered so often more, which holds its answers back from now on."""
        seen = len(self.wire.truth())
        self.hold(after)
        child = self.start(*more)
        self.wait_for_requests(seen + after)
        return child

    def wait_until_held(self, count: int = 1) -> None:
        """Until the provider holds so many requests back."""
        end = time.monotonic() + 60
        while self.wire.held() < count:
            assert time.monotonic() < end, f"{self.wire.held()} requests are held"
            time.sleep(0.01)

    def kill(self, after_requests: int) -> None:
        """A worker that is killed once the provider has been asked so often more."""
        child = self.at_work(after=after_requests)
        child.kill()
        assert child.wait().code == -9
        self.kills += 1
        self.go_on()

    def lose_scratch(self) -> None:
        """The dead machine's disk is gone, but for its home's ledger."""
        shutil.rmtree(self.world.home / "scratch", ignore_errors=True)

    def lose_machine(self) -> None:
        """Nothing of the machine is left: another one goes on."""
        shutil.rmtree(self.world.home, ignore_errors=True)
        self.world = self.machine()

    def finish(self) -> None:
        ended = self.start().wait()
        assert ended.code == 0, ended.err
        assert ended.receipt["vectors"] == len(self.texts)

    def check(self) -> int:
        """Rows once and right, the bill bounded; how many texts were bought more than once."""
        self.check_rows()
        self.world.run("usage", "ingest", "--from", self.url)
        ledger = self.world.ledger()
        truth = self.wire.truth()
        billed = sum(one["tokens_billed"] for one in truth)
        assert ledger["confirmed"] <= billed <= ledger["confirmed"] + ledger["unknown"], (ledger, billed)
        again = sum(times - 1 for times in self.world.bought().values())
        assert again <= self.kills * AT_RISK, f"{again} texts bought again after {self.kills} kills"
        return again

    def check_rows(self, generations: int = 1) -> None:
        manifest = store_plan.read_manifest(self.store)
        assert manifest is not None
        names = [part.name for part in manifest.parts]
        assert sorted(names) == self.store.list("part-")
        tables = [pq.read_table(pa.BufferReader(self.store.read(name))) for name in names]
        whole = pa.concat_tables(tables).combine_chunks()
        assert whole.column("id").to_pylist() == list(range(len(self.texts)))
        assert whole.column("text").to_pylist() == self.texts
        assert np.allclose(matrix(whole.column("embedding"), 8), expected(self.texts, MODEL, dimensions=8), atol=1e-6)
        kinds = {name.split("/")[1] for name in self.store.list("_embedctl/")}
        later = [f"{what}-{number:04d}" for number in range(2, generations + 1) for what in ("plan", "inputs")]
        own = {kind for kind in kinds if kind.rpartition(".")[0] not in later}
        assert own == {"plan.json", "inputs.parquet", "space.json", "done", "usage", "manifest"}


@contextmanager
def story(
    folder: Path, wire: Wire, zygote: Zygote, server: StoreServer, *, texts: int = 72, seed: int = 0
) -> Iterator[tuple[StoreStory, random.Random]]:
    """A job, and chance."""
    told = StoreStory(folder, wire, zygote, server)
    told.begin(texts)
    yield told, random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)

"""Runs whose output is on a store, in this process, judged by the test server's invoice."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import EmbedctlError, StoreUnreachable
from embedctl.journal import recover
from embedctl.journal.shard_log import Patience, ShardLog, boot_time, tail
from embedctl.journal.shipping import fetch
from embedctl.outputs.parquet import matrix
from embedctl.runs import store_plan, store_usage
from embedctl.runs.job import JobRequest
from embedctl.runs.receipt import Receipt
from embedctl.runs.store_run import StoreRun
from embedctl.storage.store import PROBES, LocalStore, Store, StoredObject
from tests.support.crashed_runs import MODEL, WIDTH, Small, clear_away
from tests.support.crashing import Crashed
from tests.support.wire.client import expected

WORKERS_DIE = [
    pytest.mark.usefixtures("small_slices"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
"""Marks of tests whose workers die in this process, at parts of a few rows: what they leave behind is no error."""


@dataclass
class CrashingStore:
    """A store whose client dies at one of its calls that change something, before or after it is done.

    Attributes:
        at: Number of the call; None: it never dies.
        after: It is done, and nobody learns of it.
    """

    inner: Store
    at: int | None = None
    after: bool = False
    count: int = 0
    dead: bool = False
    trace: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)

    @property
    def url(self) -> str:
        return self.inner.url

    def _change(self, what: str, do: Callable[[], Any]) -> Any:
        with self.lock:
            if self.dead:
                raise Crashed
            self.count += 1
            self.trace.append(what)
            if self.count == self.at:
                self.dead = True
                if self.after:
                    do()
                raise Crashed
            return do()

    def _look(self) -> None:
        if self.dead:
            raise Crashed

    def put_if_absent(self, name: str, content: Any, *, write_id: str | None = None) -> bool:
        return bool(self._change(f"put {name}", lambda: self.inner.put_if_absent(name, content, write_id=write_id)))

    def hold(self, name: str, path: Path) -> bool:
        return bool(self._change(f"hold {name}", lambda: self.inner.hold(name, path)))

    def remove(self, name: str) -> None:
        self._change(f"remove {name}", lambda: self.inner.remove(name))

    def remove_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.remove(name)

    def read(self, name: str) -> bytes:
        self._look()
        return self.inner.read(name)

    def read_range(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        self._look()
        return self.inner.read_range(name, start, end, etag=etag)

    def view(self, name: str, start: int, end: int, *, etag: str | None = None) -> Any:
        self._look()
        return self.inner.view(name, start, end, etag=etag)

    def stat(self, name: str) -> StoredObject | None:
        self._look()
        return self.inner.stat(name)

    def list(self, prefix: str = "") -> Sequence[str]:
        self._look()
        return self.inner.list(prefix)

    def objects(self, prefix: str = "") -> Any:
        self._look()
        return self.inner.objects(prefix)


class ForgetfulStore(CrashingStore):
    """Of each put the first answer is lost, whether it was done or not; who put what is kept with it."""

    def __init__(self, inner: Store, *, reads_back: bool = True) -> None:
        super().__init__(inner)
        self.reads_back = reads_back
        self._ids: dict[str, str | None] = {}
        self._told: set[tuple[str, str | None]] = set()

    def put_if_absent(self, name: str, content: Any, *, write_id: str | None = None) -> bool:
        if name.startswith(PROBES):
            return self.inner.put_if_absent(name, content, write_id=write_id)
        with self.lock:
            put = self.inner.put_if_absent(name, content, write_id=write_id)
            if put:
                self._ids[name] = write_id
            if (name, write_id) not in self._told:
                self._told.add((name, write_id))
                raise StoreUnreachable(f"the answer about {name} is lost")
            return put or (self.reads_back and self._ids.get(name) == write_id)


@dataclass
class StoreWorld(Small):
    """A small world whose output is on a store.

    Attributes:
        store: By default a folder as a store, of this kind.
    """

    store: Store | None = None
    kind: type[LocalStore] = LocalStore

    @property
    def place(self) -> Store:
        return self.store or self.kind(self.folder / "store")

    def job(self, store: Store | None = None, **about: Any) -> JobRequest:
        flags = {"shard_rows": 6, "lease": 1.0, **about.pop("flags", {})}
        return replace(self.order(flags=flags, **about), output=None, store=store or self.place)

    def begin(self, store: Store | None = None, *, hurried: bool = True, **about: Any) -> StoreRun:
        """A worker, whose leases pass a hundred times as fast when it is `hurried`, and who waits for no store."""
        patience = Patience(5.0, sleep=lambda seconds: time.sleep(seconds / 100)) if hurried else Patience(5.0)
        clock = (lambda: boot_time() * 100) if hurried else boot_time
        job = self.job(store, **about)
        return StoreRun(job, ingest=self._take_in, segment_bytes=1, patience=patience, clock=clock)

    def work(self, store: Store | None = None, **about: Any) -> Receipt | EmbedctlError | None:
        """The receipt; the error that came instead; None when it died."""
        others = set(threading.enumerate())
        try:
            return self.begin(store, **about).execute(asyncio.run)
        except EmbedctlError as error:
            return error
        except Crashed:
            clear_away(others)
            return None

    def kept(self) -> set[str]:
        """Hashes of texts whose answers, or vectors, are on the store."""
        store, plan, found = self.place, store_plan.read_plan(self.place), set()
        for name in store.list("part-"):
            table = pq.read_table(pa.BufferReader(store.read(name)), columns=["embedding_text_hash"])
            found |= {digest.hex() for digest in table.column(0).to_pylist()}
        done = store_plan.done_ordinals(store, plan) if plan else set()
        for shard in plan.shards if plan else ():
            if shard.ordinal in done:
                continue
            end = tail(store, plan.label(shard))
            if end is None:
                continue
            log = ShardLog(store, plan.label(shard), "test", lease_s=60)
            log._next = end.number + 1
            with TemporaryDirectory() as folder:
                fetch(log, Path(folder) / "journal")
                for answer in recover(Path(folder) / "journal", store_usage.trust(plan), fenced=True).answers:
                    found |= {answer.hashes[at : at + 16].hex() for at in range(0, len(answer.hashes), 16)}
        return found

    def table(self) -> pa.Table:
        """What a reader finds under the prefix, in the order of the newest manifest."""
        manifest = store_plan.read_manifest(self.place)
        assert manifest is not None
        names = [part.name for part in manifest.parts]
        assert sorted(names) == [name for name in self.place.list() if name.startswith("part-")]
        tables = [pq.read_table(pa.BufferReader(self.place.read(name))) for name in names]
        return pa.concat_tables(tables).combine_chunks()

    def check_rows(self, texts: Sequence[str]) -> None:
        """Each text once, in order, with its vector; manifest and parts agree."""
        whole = self.table()
        manifest = store_plan.read_manifest(self.place)

        assert whole.column("id").to_pylist() == list(range(len(texts)))
        assert whole.column("text").to_pylist() == list(texts)
        assert np.allclose(matrix(whole.column("embedding"), WIDTH), expected(list(texts), MODEL, WIDTH), atol=1e-6)
        assert manifest is not None
        assert manifest.counts.vectors == len(texts)

    def check_no_leftovers(self, generations: int = 1) -> None:
        """Nothing is left but what an output is made of; no scratch, nothing in the local spool."""
        later = range(2, generations + 1)
        more = {f"plan-{number:04d}.json" for number in later} | {f"inputs-{number:04d}.parquet" for number in later}
        kinds = {name.split("/")[1] for name in self.place.list("_embedctl/")}
        assert kinds - {"probe"} - more == {"plan.json", "inputs.parquet", "space.json", "done", "usage", "manifest"}
        assert not [path for path in (self.folder / "home" / "scratch").glob("*/*") if path.name != "lock"]
        assert not list((self.folder / "home" / "spool").glob("*.spool"))

    def usage(self) -> list[dict[str, Any]]:
        """Every event among the job's usage."""
        found = []
        for name in self.place.list("_embedctl/usage/"):
            lines = self.place.read(name).splitlines()
            found += [orjson.loads(line[9:]) for line in lines if int(line[:8], 16) == zlib.crc32(line[9:])]
        return found

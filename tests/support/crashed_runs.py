"""Runs in this process that die at one durable operation, and a ledger that is only what the spool said."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from embedctl import settings
from embedctl.errors import EmbedctlError
from embedctl.journal import Trust, home_secret, recover
from embedctl.ledger.paths import LedgerPaths
from embedctl.outputs.parquet import matrix
from embedctl.runs.job import JobRequest
from embedctl.runs.receipt import Receipt
from embedctl.runs.run import Run
from embedctl.storage import DISK, Disk
from tests.support.crashing import Crashed, CrashingDisk, wait_for_end
from tests.support.wire.client import Wire, expected

MODEL = "text-embedding-3-small"
WIDTH = 8

_TAKING = threading.Lock()
"""A ledger has one writer, also where two runs of this process take in at once."""


@dataclass
class Small:
    """A small world: input, output, state, provider.

    Attributes:
        kind: "folder" or "file".
        books: Spool file → its events: the ledger.
    """

    folder: Path
    wire: Wire
    kind: str = "folder"
    books: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """The settings file; "" without one."""
        return ""

    @property
    def output(self) -> Path:
        return self.folder / ("out" if self.kind == "folder" else "out.parquet")

    @property
    def state(self) -> Path:
        return self.output / "_embedctl" if self.kind == "folder" else self.folder / ".out.parquet.embedctl"

    def fill(self, texts: Sequence[str], files: int = 3) -> None:
        """The input: so many files, each a slot."""
        shutil.rmtree(self.folder / "in", ignore_errors=True)
        (self.folder / "in").mkdir(parents=True)
        each = -(-len(texts) // files)
        for number in range(files):
            some = list(texts[number * each : (number + 1) * each])
            ids = list(range(number * each, number * each + len(some)))
            if some:
                pq.write_table(pa.table({"id": ids, "text": some}), self.folder / "in" / f"{number}.parquet")

    def order(self, model: str = MODEL, **about: Any) -> JobRequest:
        environment = {
            "EMBEDCTL_HOME": str(self.folder / "home"),
            "EMBEDCTL_CANARY": "off",
            "EMBEDCTL_CONFIG": self.config,
            "HOME": str(self.folder),
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": self.wire.base_url(),
        }
        flags = {"model": f"openai:{model}", "dimensions": WIDTH, "batch_size": 3, "concurrency": 2, "fallback": "off"}
        flags["cache"] = False
        flags |= about.pop("flags", {})
        found = settings.load(flags=flags, environment=environment, folder=self.folder)
        inputs = [str(self.folder / "in")]
        return JobRequest(settings=found, inputs=inputs, kind=self.kind, output=self.output, **about)  # type: ignore[arg-type]

    def run(self, disk: Disk = DISK, **about: Any) -> Receipt | EmbedctlError | None:
        """The receipt; the error that came instead; None when it died."""
        others = set(threading.enumerate())
        try:
            return Run(self.order(**about), disk=disk, ingest=self._take_in, segment_bytes=1).execute(asyncio.run)
        except EmbedctlError as error:
            return error
        except Crashed:
            clear_away(others)
            if isinstance(disk, CrashingDisk):
                disk.bury(others)
                disk.lose_power()
            return None

    def _take_in(self, paths: LedgerPaths) -> None:
        with _TAKING:
            for path in sorted(paths.spool.glob("*.spool")):
                lines = path.read_bytes().splitlines()
                events = [orjson.loads(line[9:]) for line in lines if int(line[:8], 16) == zlib.crc32(line[9:])]
                assert self.books.setdefault(path.name, events) == events
                (paths.spool / "done").mkdir(exist_ok=True)
                path.replace(paths.spool / "done" / path.name)

    def safe(self, *, overwritten: bool = False) -> set[str]:
        """Hashes of texts whose answers are on the disk; when overwritten, not those of the output as it stands."""
        found = {
            h.hex()
            for answer in recover(self.state / "journal", Trust(home_secret(self.folder / "home"))).answers
            for h in _each(answer.hashes)
        }
        parts = [] if overwritten else [*self.folder.glob("out.parquet"), *self.output.glob("part-*")]
        parts += [*self.state.glob("next/part-*"), *self.state.glob("kept/*.parquet")]
        for path in parts:
            with suppress(pa.ArrowException):
                column = pq.read_table(path, columns=["embedding_text_hash"]).column(0)
                found |= {digest.hex() for digest in column.to_pylist()}
        return found

    def shown(self) -> list[tuple[str, int]]:
        """The output as a reader finds it: names and inodes of its files."""
        paths = [*self.output.glob("part-*"), *self.folder.glob("out.parquet")]
        return sorted((path.name, path.stat().st_ino) for path in paths)

    def check_whole(self, before: list[tuple[str, int]]) -> None:
        """What a dead run leaves is the old output, or the new one, or a swap that the next run finishes."""
        if before and self.shown() != before and self.kind == "folder":
            record = orjson.loads((self.state / "run.json").read_bytes())
            assert (self.state / "commit.json").exists() or record["state"] == "complete"

    def check_rows(self, texts: Sequence[str]) -> None:
        """Each text once, in order, with its vector."""
        paths = sorted(self.output.glob("part-*.parquet")) if self.kind == "folder" else [self.output]
        tables = [pq.read_table(path) for path in paths]
        whole = pa.concat_tables(tables).combine_chunks()

        assert whole.column("id").to_pylist() == list(range(len(texts)))
        assert whole.column("text").to_pylist() == list(texts)
        assert np.allclose(matrix(whole.column("embedding"), WIDTH), expected(list(texts), MODEL, WIDTH), atol=1e-6)

    def check_bill(self) -> None:
        """Confirmed ≤ billed ≤ confirmed + unknown, each event once."""
        events = [event for file in self.books.values() for event in file]
        confirmed = sum(event.get("tokens_total", 0) for event in events if event["billable"] == "yes")
        unknown = sum(event.get("tokens_estimated") or 0 for event in events if event["billable"] == "unknown")

        assert len({event["event_id"] for event in events}) == len(events)
        assert confirmed <= self.wire.billed() <= confirmed + unknown

    def check_no_leftovers(self) -> None:
        """Nothing unfinished is left beside the output."""
        assert not list(self.folder.glob("out*/.tmp-*")) + list(self.folder.glob(".tmp-*"))
        if self.kind == "folder":
            assert {path.name for path in self.state.iterdir()} | {"journal"} == {"journal", "lock", "run.json"}
            assert not list(self.state.glob("journal/*"))
        else:
            assert not self.state.exists()
        assert not list((self.folder / "home" / "spool").glob("*.spool"))


def clear_away(others: set[threading.Thread]) -> None:
    """Collect what a run that died has left, and wait for its threads: those that are not the others'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sockets that a dead process would have lost too
        gc.collect()
    gc.freeze()  # what is left stays: the next collection looks at the next run alone
    wait_for_end(set(threading.enumerate()) - others)


def _each(hashes: bytes) -> list[bytes]:
    return [hashes[start : start + 16] for start in range(0, len(hashes), 16)]


__all__ = ["Crashed", "CrashingDisk", "Small"]

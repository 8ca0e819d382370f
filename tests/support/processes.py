"""embedctl in processes of its own, and what must hold of their output, their ledger and the provider's books."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedctl.journal import Trust, home_secret, recover
from embedctl.outputs.parquet import matrix
from tests.support import places
from tests.support.wire.client import Wire, expected, hash_of

MODEL = "text-embedding-3-small"
WORDS = ["the", "one", "red", "big", "old", "new", "day", "man", "sun", "sea", "war", "law", "art", "car", "dog", "cat"]
ROOT = places.ROOT
LEDGER = """
SELECT coalesce(sum(tokens_total) FILTER (billable = 'yes' AND entry_kind = 'usage'), 0),
       coalesce(sum(tokens_estimated) FILTER (billable = 'unknown' AND entry_kind = 'usage'), 0),
       count(*) FILTER (entry_kind = 'usage'),
       count(DISTINCT event_id) FILTER (entry_kind = 'usage'),
       coalesce(sum(input_count) FILTER (status = 'ok' AND purpose <> 'test' AND entry_kind = 'usage'), 0),
       coalesce(sum(input_count) FILTER (entry_kind = 'cache_hit'), 0)
FROM usage_event
"""
HURRY = {
    "embedctl.routing.retry:TRANSIENT_BASE_S": 0.02,
    "embedctl.routing.retry:THROTTLE_BASE_S": 0.04,
    "embedctl.routing.pace:SLOWEST": 200.0,
}
"""Constants for tests that are not about waiting."""


@dataclass
class Ended:
    """A command that has ended: its exit code (negative: a signal), and what it printed."""

    code: int
    out: str
    err: str

    @property
    def receipt(self) -> dict[str, Any]:
        return json.loads(self.out)


@dataclass
class Child:
    """A command that runs."""

    pid: int
    out: Path
    err: Path
    zygote: Zygote

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def told_to_stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal; it has said that it stops when this returns."""
        self.kill(number)
        end = time.monotonic() + 60
        while "stopping" not in self.err.read_text():
            assert time.monotonic() < end, "it does not stop"
            time.sleep(0.01)

    def goes_on(self) -> None:
        """Until its loop has waited for something a few times more: what it was about to say is said."""
        seen, end = self._waits(), time.monotonic() + 60
        while self._waits() < seen + 4:
            assert time.monotonic() < end, "it does not go on"
            time.sleep(0.01)

    def _waits(self) -> int:
        """How often its main thread has waited for something."""
        said = Path(f"/proc/{self.pid}/status").read_text()
        return int(said.partition("voluntary_ctxt_switches:")[2].split()[0])

    def wait(self) -> Ended:
        code = self.zygote.ask({"wait": self.pid})
        return Ended(code, self.out.read_text(), self.err.read_text())


class Zygote:
    """Starts commands fast; one at a time is waited for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._count = 0

    def ask(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, args: Sequence[object], world: World) -> Child:
        self._count += 1
        out, err = (world.folder / f".{self._count}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()  # it may be killed before it opens them
        order = {"args": [str(arg) for arg in args], "cwd": str(world.folder), "env": world.environment}
        order |= {"constants": world.constants, "run": world.run_with}
        pid = self.ask({**order, "out": str(out), "err": str(err)})
        return Child(pid, out, err, self)


@contextmanager
def zygote() -> Iterator[Zygote]:
    """A zygote, ended with the block."""
    command = [sys.executable, "-m", "tests.support.zygote"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        yield Zygote(process)
        process.stdin.close()


@dataclass
class World:
    """A folder to work in, a provider, and a state folder.

    Attributes:
        slot_bytes: Small ones make many parts of few rows.
        segment_bytes: Of the journal; None: as ever.
        hurried: Waits after failures take a 25th of their time.
        variables: Of its environment, beside the usual ones.
    """

    folder: Path
    wire: Wire
    zygote: Zygote
    slot_bytes: int = 1
    segment_bytes: int | None = None
    hurried: bool = False
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")},
            "HOME": str(self.folder / "home"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "EMBEDCTL_HOME": str(self.home),
            "EMBEDCTL_CANARY": "off",
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": self.wire.base_url(),
            **self.variables,
        }

    @property
    def constants(self) -> dict[str, Any]:
        """What is other than usual in its processes."""
        calm = {"embedctl.planning.slice:SLICE_BYTES": self.slot_bytes, "embedctl.cli._progress:FIRST_LINE_S": 3600.0}
        return {**calm, **(HURRY if self.hurried else {})}

    @property
    def run_with(self) -> dict[str, Any]:
        """Arguments of its processes' `Run`."""
        return {} if self.segment_bytes is None else {"segment_bytes": self.segment_bytes}

    @property
    def home(self) -> Path:
        return self.folder / "state"

    def start(self, *args: object) -> Child:
        return self.zygote.start(args, self)

    def run(self, *args: object) -> Ended:
        return self.start(*args).wait()

    def run_killed(self, after_s: float, *args: object) -> Ended:
        """Run, and kill it after so long if it lives."""
        child = self.start(*args)
        time.sleep(after_s)
        child.kill()
        return child.wait()

    def tables(self, texts: Sequence[str | None], files: int, name: str = "in") -> Path:
        """The same as `table`, in a folder of so many files: with small slots, each is one."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir()
        each = -(-len(texts) // files)
        for number in range(files):
            some = texts[number * each : (number + 1) * each]
            ids = range(number * each, number * each + len(some))
            self.table(some, f"{name}/{number:03d}.parquet", id=list(ids))
        return self.folder / name

    def table(self, texts: Sequence[str | None], name: str = "in.parquet", **columns: Any) -> Path:
        """An input of these texts; ids are their places unless given."""
        path = self.folder / name
        columns = {"id": list(range(len(texts))), **columns}
        pq.write_table(pa.table({**columns, "text": pa.array(texts, pa.string())}), path)
        return path

    def rows(self, output: str) -> list[dict[str, Any]]:
        """All rows of an output, vectors as arrays."""
        place = self.folder / output
        paths = sorted(place.glob("part-*.parquet")) if place.is_dir() else [place]
        found = []
        for path in paths:
            table = pq.read_table(path)
            vectors = matrix(table.column("embedding"), table.schema.field("embedding").type.list_size)
            rest = table.drop_columns(["embedding"]).to_pylist()
            found += [{**row, "embedding": vector} for row, vector in zip(rest, vectors, strict=True)]
        return found

    def check_rows(self, output: str, texts: Sequence[str], ids: Sequence[Any] | None = None, **about: Any) -> None:
        """Every text stands once in the output, in order, with its own vector."""
        rows = self.rows(output)

        assert [row["id"] for row in rows] == list(ids if ids is not None else range(len(texts)))
        assert [row["text"] for row in rows] == list(texts)
        vectors = expected(list(texts), MODEL, **about)
        assert np.allclose(np.stack([row["embedding"] for row in rows]), vectors, atol=1e-6)

    def ledger(self) -> dict[str, int]:
        """Confirmed and possibly billed tokens, and events, after taking in what waits."""
        ended = self.run("usage", "ingest")
        assert ended.code == 0, (ended.code, ended.err)
        return self.ledger_as_it_is()

    def ledger_as_it_is(self) -> dict[str, int]:
        """The same, and how many texts were answered or came from the cache; what waits is left out."""
        with duckdb.connect(str(self.home / "usage.duckdb"), read_only=True) as connection:
            row = connection.execute(LEDGER).fetchone()
        assert row is not None
        found = dict(zip(("confirmed", "unknown", "events", "ids", "texts", "hits"), map(int, row), strict=True))
        assert found["events"] == found.pop("ids"), "an event is in the ledger twice"
        return found

    def check_bill(self) -> None:
        """Confirmed ≤ the provider's invoice ≤ confirmed + unknown, and every attempt that got there is an event."""
        self.check_billed(self.ledger())

    def check_billed(self, ledger: dict[str, int]) -> None:
        truth = self.wire.truth()
        billed = sum(one["tokens_billed"] for one in truth)

        assert ledger["confirmed"] <= billed <= ledger["confirmed"] + ledger["unknown"]
        assert ledger["events"] >= len(truth)

    def bought(self) -> Counter[str]:
        """How often each text was answered with a bill, by hash."""
        return Counter(h for one in self.wire.truth() if one["tokens_billed"] for h in one["text_hashes"])

    def safe(self, output: str) -> set[str]:
        """Hashes of all texts whose answers are safe on the disk now, in journals and parts."""
        state = self.folder / output / "_embedctl"
        file = self.folder / output
        if not state.is_dir():
            state = self.folder / f".{output}.embedctl"
        found = {
            h.hex()
            for answer in recover(state / "journal", Trust(home_secret(self.home))).answers
            for h in _each(answer.hashes)
        }
        parts = [file] if file.is_file() else [*file.glob("part-*"), *state.glob("next/part-*"), *state.glob("kept/*")]
        for path in parts:
            hashes = pq.read_table(path, columns=["embedding_text_hash"]).column(0).to_pylist()
            found |= {digest.hex() for digest in hashes}
        return found

    def check_no_leftovers(self, output: str) -> None:
        """Nothing unfinished is left: no temporary files, no journal, no spool that waits."""
        assert list((self.folder / output).rglob(".tmp-*")) == []
        state = self.folder / output / "_embedctl"
        if state.is_dir():
            assert sorted(path.name for path in state.iterdir()) == ["journal", "lock", "run.json"]
            assert list((state / "journal").iterdir()) == []
        else:
            assert not (self.folder / f".{output}.embedctl").exists()
        assert list((self.home / "spool").glob("*.spool")) == []


def sentence(number: int) -> str:
    """A text of its own for each number below 4096, which cl100k_base counts as the provider does: 4 tokens."""
    return " ".join(WORDS[number >> shift & 15] for shift in (8, 4, 0)) + "."


def _each(hashes: bytes) -> Iterator[bytes]:
    return (hashes[start : start + 16] for start in range(0, len(hashes), 16))


__all__ = ["MODEL", "Child", "Ended", "World", "Zygote", "hash_of", "sentence", "zygote"]

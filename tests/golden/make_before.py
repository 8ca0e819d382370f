"""Makes `made_before.tar.xz`: what a version leaves on the disk, finished and killed, for later versions to go on with.

Run by hand, with the interpreter of a checkout of that version (whose package is installed editable):

    OLD/.venv/bin/python tests/golden/make_before.py tests/golden/made_before.tar.xz

The only names of the package that it knows are those in `SMALL`, which make parts of few rows and segments of one
request. In small JSON files the folder, the provider's address and the time are replaced by `@HERE@`, `@WIRE@` and
`@NOW@`, which `tests/test_made_before.py` puts back; journal, spool, Parquet and database hold none of them.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT)]

from tests.support.goldens import sentence  # noqa: E402
from tests.support.wire.client import Wire, started  # noqa: E402

SMALL = """
import functools, sys
from embedctl import slots
from embedctl.__main__ import main
from embedctl.cli import running
slots.SLOT_BYTES = 1
running.Run = functools.partial(running.Run, segment_bytes=1)
main()
"""
MODEL = "text-embedding-3-small"
POISON = "the dog war."
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "6", "--concurrency", "1")
ROWS = 6
"""In each file of an input: one part, and two requests of a server that takes three texts."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "finished": ("batch", "run", "in", "-o", "out", "--job", "nightly", "-w", "acme", *OPENAI),
    "file": ("embed", "lines.txt", "--split", "lines", "-o", "lines.parquet", "-w", "acme", *OPENAI),
    "swapped": ("batch", "run", "swap", "-o", "swapped", *OPENAI),
    "renewed": ("batch", "run", "new", "-o", "renewed", "-w", "zeta", *OPENAI),
    "cut": ("batch", "run", "long", "-o", "cut", "--job", "weekly", "-w", "acme", *OPENAI),
    "cut file": ("embed", "more.txt", "--split", "lines", "-o", "more.parquet", "-w", "zeta", "--no-cache", *OPENAI),
    "cut call": ("providers", "test", "openai", "-w", "zeta"),
}
"""What was run, for whoever goes on with it."""


@dataclass
class Making:
    """The folders of a user while things happen in them.

    Attributes:
        asked: Name of a command → the provider's own log of it.
    """

    folder: Path
    wire: Wire
    asked: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "EMBEDCTL_HOME": str(self.folder / "state"),
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": self.wire.base_url(),
        }
        return subprocess.Popen([sys.executable, "-c", SMALL, *words], cwd=self.folder, env=environment)

    def run(self, *words: str, code: int = 0) -> None:
        ended = self.start(*words).wait(60)
        assert ended == code, (words, ended)

    def finish(self, name: str, code: int = 0) -> None:
        """A command that ends by itself."""
        self.run(*COMMANDS[name], code=code)
        self._note(name)

    def kill(self, name: str, answers: int, when: Callable[[], bool] = lambda: True) -> None:
        """A command that gets so many answers, waits for another one, and dies."""
        self.wire.plan(script=["ok"] * answers, faults={"hang": {"p": 1.0, "seconds": 60}})
        process = self.start(*COMMANDS[name])
        until = time.monotonic() + 60
        while len(self.wire.truth()) <= answers or not when():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)  # what is sealed is spooled
        process.send_signal(signal.SIGKILL)
        process.wait()
        self._note(name)

    def _note(self, name: str) -> None:
        kept = ("status", "items", "tokens_billed", "text_hashes")
        self.asked.setdefault(name, []).extend({key: one[key] for key in kept} for one in self.wire.truth())
        self.wire.reset()

    def table(self, folder: str, numbers: range, *more: str) -> None:
        """An input of files of a few rows each."""
        (self.folder / folder).mkdir(exist_ok=True)
        texts = [*map(sentence, numbers), *more]
        for start in range(0, len(texts), ROWS):
            some = texts[start : start + ROWS]
            path = self.folder / folder / f"{start // ROWS}.parquet"
            pq.write_table(pa.table({"id": list(range(start, start + len(some))), "text": some}), path)
            os.utime(path, (1_790_000_000 + start, 1_790_000_000 + start))

    def lines(self, name: str, numbers: range) -> None:
        path = self.folder / name
        path.write_text("".join(f"{sentence(number)}\n" for number in numbers))
        os.utime(path, (1_790_000_000, 1_790_000_000))


def make(making: Making) -> None:
    """Everything, in an order in which nobody recovers what another one left."""
    folder, wire = making.folder, making.wire
    making.run("prices", "set", f"openai:{MODEL}", "0.02", "--from", "2024-01-01")
    making.run("usage", "budget", "set", "-w", "acme", "--amount", "50")
    making.table("in", range(16), POISON, " ")
    wire.plan(poison=[POISON], max_items=3)
    making.finish("finished", code=3)
    making.lines("lines.txt", range(100, 106))
    making.finish("file")
    making.table("swap", range(200, 206))
    making.finish("swapped")
    making.table("new", range(300, 312))
    making.finish("renewed")
    making.table("swap", range(203, 208), " ")
    os.utime(folder / "swap" / "0.parquet", (1_790_001_000, 1_790_001_000))
    (folder / "swapped" / "failures.jsonl").mkdir()  # the new parts are complete, and cannot be put in place
    making.finish("swapped", code=74)
    (folder / "swapped" / "failures.jsonl").rmdir()
    making.table("new", range(306, 324))
    making.kill("renewed", 3, lambda: len(list(folder.glob("renewed/_embedctl/next/part-*"))) == 2)
    making.kill("cut call", 0)
    making.table("long", range(400, 424))
    making.kill("cut", 5, lambda: len(list(folder.glob("cut/part-*"))) == 2)
    making.lines("more.txt", range(500, 512))
    making.kill("cut file", 2)  # the last one: what it has spooled waits
    (folder / "made.json").write_text(json.dumps({"commands": COMMANDS, "asked": making.asked}))


def anonymous(making: Making) -> None:
    """No file says where it was made; the ids of processes and hosts in locks are nobody's."""
    here, address = str(making.folder), f"http://127.0.0.1:{making.wire.port}"
    state = making.folder / "state"
    for path in [*making.folder.rglob("lock"), *state.glob("runs/*.lock")]:
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": 1, "host": "elsewhere"}))
    for path in [*state.glob("runs/*.json"), *making.folder.rglob("ledger.json"), state / "usage.duckdb.budgets"]:
        path.write_text(path.read_text().replace(here, "@HERE@"))
    hints = state / "hints.json"
    told = json.loads(hints.read_text().replace(address, "@WIRE@"))
    for kind in ("limits", "floats_only", "trusted"):
        told[kind] = [[*entry[:-1], "@NOW@"] for entry in told[kind]]
    hints.write_text(json.dumps(told))
    with duckdb.connect(str(state / "usage.duckdb"), read_only=True) as connection:
        tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        rows = str([connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables])
    contents = [rows.encode(), *(path.read_bytes() for path in making.folder.rglob("*") if path.is_file())]
    for secret in (here, f":{making.wire.port}", os.environ["HOME"] + "/", f'"{socket.gethostname()}"'):
        assert not any(secret.encode() in content for content in contents), secret


def packed(folder: Path) -> bytes:
    """The folder as tar.xz, as small as it gets; the same folder gives the same bytes."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            about = archive.gettarinfo(path, str(path.relative_to(folder)))
            about.uid = about.gid = 0
            about.uname = about.gname = ""
            about.mtime = int(about.mtime)
            with path.open("rb") if path.is_file() else io.BytesIO() as content:
                archive.addfile(about, content if path.is_file() else None)
    return lzma.compress(sink.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    target = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as place, started() as wire:
        making = Making(Path(place).resolve(), wire)
        make(making)
        anonymous(making)
        target.write_bytes(packed(making.folder))
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

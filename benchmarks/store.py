"""What an output on a store costs beside one in a folder: CPU seconds, time, and memory of the same run.

    python benchmarks/store.py --store gs --rows 1000 20000 --rounds 3 --put-ms 0 30

The store is the tests' stub of Google's, or moto's S3, behind a proxy that waits before each request when it is told to
(0: no proxy). The provider is the tests' wire server. CPU is that of embedctl's process alone; of several rounds the
least counts, for others work on the machine too. With two sizes what a run costs is told from what a row costs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.stores import StoreServer, gcs_server, s3_server
from tests.support.wire.client import Wire, started

FOLDER = "folder"
Measured = tuple[float, float, float]
"""CPU seconds, seconds, and peak memory in MB."""


def measured(command: list[str], environment: dict[str, str], folder: Path) -> Measured:
    """What a command takes."""
    began = time.monotonic()
    pid = os.posix_spawn(command[0], command, environment, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, str(folder / "out.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, str(folder / "err.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ])  # fmt: skip
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit((folder / "err.txt").read_text() + (folder / "out.txt").read_text())
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024


class Bench:
    """Runs of one table after the other, each into a new output."""

    def __init__(self, args: argparse.Namespace, wire: Wire, server: StoreServer, proxy: FaultProxy, folder: Path):
        self.args, self.wire, self.server, self.proxy, self.folder = args, wire, server, proxy, folder
        self.numbers = count()

    def table(self, rows: int) -> Path:
        """The input."""
        path = self.folder / f"{rows}.parquet"
        if not path.exists():
            texts = [f"text number {number} of a table that is embedded" for number in range(rows)]
            pq.write_table(pa.table({"id": range(rows), "text": texts}), path)
        return path

    def run(self, rows: int, put_ms: float | None) -> Measured:
        """One run.

        Args:
            put_ms: What is waited before each request; None: the output is a folder.
        """
        number, slow = next(self.numbers), put_ms or 0.0
        self.wire.reset()
        self.wire.plan(latency_s=self.args.latency)
        self.proxy.always, self.proxy.slow_s = ("slow", slow / 1000) if slow else (None, 0.0)
        server = self.server.behind(self.proxy.port) if slow else self.server
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "EMBEDCTL_HOME": str(self.folder / f"home{number}"),
            "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": self.wire.base_url(), **server.environment,
        }  # fmt: skip
        output = str(self.folder / f"out{number}") if put_ms is None else server.new()
        asked = ["-m", "openai:text-embedding-3-small", "--batch-size", "100", "--dimensions", self.args.dimensions]
        command = [sys.executable, "-m", "embedctl", "batch", "run", str(self.table(rows)), "-o", output, *asked]
        took = measured([*command, "--concurrency", str(self.args.concurrency), "--json"], environment, self.folder)
        shutil.rmtree(self.folder / f"out{number}", ignore_errors=True)
        return took


def main() -> None:
    """Interleaved rounds, then the least of each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=("s3", "gs"), default="gs")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--dimensions", default="1536")
    parser.add_argument("--latency", type=float, default=0.3)
    parser.add_argument("--put-ms", type=float, nargs="*", default=[0, 30])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    kinds: dict[str, float | None] = {FOLDER: None} | {f"store, {ms:g} ms a request": ms for ms in args.put_ms}
    taken: dict[tuple[int, str], list[Measured]] = {}
    folder, opened = Path(tempfile.mkdtemp()), s3_server if args.store == "s3" else gcs_server
    try:
        with started() as wire, opened() as server, fault_proxy(server.port) as proxy:
            bench = Bench(args, wire, server, proxy, folder)
            for _ in range(args.rounds):
                for rows in args.rows:
                    for kind, put_ms in kinds.items():
                        taken.setdefault((rows, kind), []).append(bench.run(rows, put_ms))
    finally:
        shutil.rmtree(folder)
    least = {which: [min(values) for values in zip(*took, strict=True)] for which, took in taken.items()}
    print(f"{'rows':>9}  {'':26}{'CPU s':>8}{'x':>7}{'s':>8}{'x':>7}{'MB':>8}")
    for (rows, kind), (cpu, seconds, memory) in least.items():
        of_cpu, of_seconds, _ = least[rows, FOLDER]
        shares = f"{cpu:8.2f}{cpu / of_cpu:7.3f}{seconds:8.2f}{seconds / of_seconds:7.3f}"
        print(f"{rows:9}  {kind:26}{shares}{memory:8.0f}")
    few, many = min(args.rows), max(args.rows)
    for kind in kinds if many > few else ():
        each = [(b - a) / (many - few) for a, b in zip(least[few, kind], least[many, kind], strict=True)]
        run = [value - few * one for value, one in zip(least[few, kind], each, strict=True)]
        print(f"{'a run':>9}  {kind:26}{run[0]:8.2f}{'':7}{run[1]:8.2f}")
        print(f"{'1000 rows':>9}  {kind:26}{1000 * each[0]:8.4f}{'':7}{1000 * each[1]:8.4f}")


if __name__ == "__main__":
    main()

"""What an output on a store costs beside one in a folder: CPU seconds, time, and memory of the same run.

    python benchmarks/store.py --rows 1000 20000                           # plain http: what a run costs, what a row
    python benchmarks/store.py --store s3 --rows 20000                     # signed
    python benchmarks/store.py --latency 0 100 500 --concurrency 8 16 --seconds 20 --put-ms 0 30

Store and provider are the Rust servers of benchmarks/server, each in a process of its own: a late answer is a thread
that sleeps, so that they take little of the machine while the run is measured. --put-ms is how late each request of the
store is answered. CPU is that of embedctl's process alone. Of several rounds, in turn, the middle one counts, with
--least the least. With two sizes what a run costs is told from what a row costs. On a busy machine run it with a
priority (`nice -n -15`): times are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SERVERS = Path(__file__).parent / "server"
FOLDER = "folder"
MODEL = "openai:text-embedding-3-small"
BATCH = 100
TEXTS_A_SECOND = 12_000
"""About what embedctl does on one core."""
Measured = tuple[float, float, float]
"""CPU seconds, seconds, and peak memory in MB."""
Setting = tuple[int, int, int]
"""Rows, latency of the provider in ms, requests in flight."""


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


class Server:
    """One of the Rust servers; its settings are asked for by addresses."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"

    def ask(self, path: str) -> bytes:
        """What it answers."""
        with urllib.request.urlopen(f"{self.root}/{path}", timeout=20) as answer:
            return bytes(answer.read())


@contextmanager
def started(name: str, port: int, *arguments: str) -> Iterator[Server]:
    """One of them, on a port of its own, while the block lasts."""
    command = [SERVERS / "target/release" / name, str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(port)
    try:
        for _ in range(200):
            try:
                server.ask("-/stats" if name == "mockstore" else "stats")
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise SystemExit(f"{name} does not answer")
        yield server
    finally:
        process.kill()
        process.wait(20)


def reached(kind: str, store: Server) -> dict[str, str]:
    """The variables by which a store is found."""
    if kind == "s3":
        return {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": store.root, "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip
    account = {
        "gcs_base_url": store.root, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""
    }  # fmt: skip
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "GOOGLE_ALLOW_HTTP": "true"}


class Bench:
    """Runs of one table after the other, each into a new output."""

    def __init__(self, args: argparse.Namespace, provider: Server, store: Server, folder: Path):
        self.args, self.provider, self.store, self.folder = args, provider, store, folder
        self.numbers = count()
        self.requests: dict[tuple[Setting, str], int] = {}

    def table(self, rows: int) -> Path:
        """The input."""
        path = self.folder / f"{rows}.parquet"
        if not path.exists():
            texts = [f"text number {number} of a table that is embedded" for number in range(rows)]
            pq.write_table(pa.table({"id": range(rows), "text": texts}), path)
        return path

    def run(self, setting: Setting, kind: str, put_ms: int | None) -> Measured:
        """One run.

        Args:
            put_ms: How late the store answers; None: the output is a folder.
        """
        rows, latency_ms, concurrency = setting
        number = next(self.numbers)
        self.provider.ask(f"config?latency_ms={latency_ms}")
        self.store.ask(f"-/config?delay_ms={put_ms or 0}&keep_bytes=100000")
        self.store.ask("-/reset")
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "EMBEDCTL_HOME": str(self.folder / f"home{number}"),
            "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": f"{self.provider.root}/v1",
            **reached(self.args.store, self.store),
        }  # fmt: skip
        output = str(self.folder / f"out{number}") if put_ms is None else f"{self.args.store}://bucket/out{number}"
        asked = ["-m", MODEL, "--batch-size", str(BATCH), "--dimensions", self.args.dimensions]
        command = [sys.executable, "-m", "embedctl", "batch", "run", str(self.table(rows)), "-o", output, *asked]
        took = measured([*command, "--concurrency", str(concurrency), "--json"], environment, self.folder)
        self.requests[setting, kind] = json.loads(self.store.ask("-/stats"))["requests"]
        if self.args.log is not None and put_ms is not None:
            self.args.log.write_bytes(self.store.ask("-/log"))
        self.store.ask("-/reset")
        shutil.rmtree(self.folder / f"out{number}", ignore_errors=True)
        shutil.rmtree(self.folder / f"home{number}", ignore_errors=True)
        return took

    def settings(self) -> list[Setting]:
        """What is measured, each in all kinds."""
        found = []
        for latency_ms, concurrency in product(self.args.latency, self.args.concurrency):
            sizes = self.args.rows
            if self.args.seconds:
                most = BATCH * concurrency * 1000 / latency_ms if latency_ms else TEXTS_A_SECOND
                sizes = [int(self.args.seconds * min(most, TEXTS_A_SECOND)) // BATCH * BATCH]
            found += [(rows, latency_ms, concurrency) for rows in sizes]
        return found


def named(setting: tuple[str | int, int, int]) -> str:
    """The beginning of a line."""
    return f"{setting[0]:>9}{setting[1]:5}{setting[2]:10}  "


def shares_of_rows(
    counted: Mapping[tuple[Setting, str], Sequence[float]], few: Setting, many: Setting, kinds: Sequence[str]
) -> None:
    """What a run takes whatever its rows are, and what a thousand rows take more."""
    of_folder: list[float] = []
    for kind in kinds:
        both = zip(counted[few, kind], counted[many, kind], strict=True)
        each = [(b - a) / (many[0] - few[0]) for a, b in both]
        run = [value - few[0] * one for value, one in zip(counted[few, kind], each, strict=True)]
        of_folder = of_folder or each
        print(f"{named(('a run', *few[1:]))}{kind:26}{run[0]:8.2f}{'':7}{run[1]:8.2f}")
        shares = [f"{1000 * one:8.4f}{one / of:7.3f}" for one, of in zip(each, of_folder, strict=True)]
        print(f"{named(('1000 rows', *few[1:]))}{kind:26}{''.join(shares[:2])}")


def main() -> None:
    """Interleaved rounds, then the middle of each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=("s3", "gs"), default="gs")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--seconds", type=float, help="as many rows as take about so long in a folder")
    parser.add_argument("--dimensions", default="1536")
    parser.add_argument("--latency", type=int, nargs="+", default=[300])
    parser.add_argument("--put-ms", type=int, nargs="*", default=[0, 30])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--least", action="store_true")
    parser.add_argument("--all", action="store_true", help="also each run")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16])
    parser.add_argument("--port", type=int, default=8140, help="the provider's; the store's is the next")
    parser.add_argument("--log", type=Path, help="write the requests of the last run on the store there")
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=SERVERS, check=True)
    kinds: dict[str, int | None] = {FOLDER: None} | {f"store, {ms} ms a request": ms for ms in args.put_ms}
    taken: dict[tuple[Setting, str], list[Measured]] = {}
    folder = Path(tempfile.mkdtemp())
    try:
        with (
            started("mockemb", args.port, "0", args.dimensions) as provider,
            started("mockstore", args.port + 1) as store,
        ):
            bench = Bench(args, provider, store, folder)
            for _ in range(args.rounds):
                for setting in bench.settings():
                    for kind, put_ms in kinds.items():
                        taken.setdefault((setting, kind), []).append(bench.run(setting, kind, put_ms))
    finally:
        shutil.rmtree(folder)
    one_of = min if args.least else statistics.median
    if args.all:
        for which, took in taken.items():
            print(which, [tuple(round(one, 2) for one in each) for each in took])
    counted = {which: [one_of(values) for values in zip(*took, strict=True)] for which, took in taken.items()}
    print(f"{'rows':>9}{'ms':>5}{'in flight':>10}  {'':26}{'CPU s':>8}{'x':>7}{'s':>8}{'x':>7}{'MB':>6}{'requests':>9}")
    for (setting, kind), (cpu, seconds, memory) in counted.items():
        of_cpu, of_seconds, _ = counted[setting, FOLDER]
        shares = f"{cpu:8.2f}{cpu / of_cpu:7.3f}{seconds:8.2f}{seconds / of_seconds:7.3f}{memory:6.0f}"
        print(f"{named(setting)}{kind:26}{shares}{bench.requests[setting, kind]:9}")
    few, many = min(args.rows), max(args.rows)
    if many > few and not args.seconds:
        for latency_ms, concurrency in product(args.latency, args.concurrency):
            shares_of_rows(counted, (few, latency_ms, concurrency), (many, latency_ms, concurrency), list(kinds))


if __name__ == "__main__":
    main()

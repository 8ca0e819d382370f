"""What several workers of one machine bring: rows a second, CPU and memory of the same run with 1, 2, … of them.

    python benchmarks/workers.py local --rows 6000 --workers 1 2 --rounds 3
    python benchmarks/workers.py http --rows 100000 --workers 1 2          (the mock server of benchmarks/server)
    python benchmarks/workers.py limit --rows 8000 --workers 1 4 --per-second 40 [--told] [--ray]

Runs are interleaved. CPU is that of the command and its workers, and beside it the mock server's; memory is that of the
largest of these processes. With --ray several workers are Ray's, over moto's S3: what they need is in the extras. The
bundled model uses a thread for each core in one process, too: `--threads 1` says what a single thread does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import run

if TYPE_CHECKING:
    from tests.support.stores import StoreServer

PORT = 18_097

TEXT = "the sea and the sun over an old city, a letter from a friend, the price of bread, a road to the north"
WORDS = TEXT.split()


def corpus(path: Path, rows: int, words: int) -> None:
    """Rows of about so many words, in one file of one row group."""
    texts = [
        " ".join(WORDS[(row * 7 + place * place) % len(WORDS)] for place in range(words)) + f" {row}"
        for row in range(rows)
    ]
    pq.write_table(pa.table({"id": list(range(rows)), "text": texts}), path)


def measured(words: list[str], environment: dict[str, str], folder: Path) -> tuple[float, float, float, dict[str, int]]:
    """CPU seconds, seconds, peak memory in MB of the largest process, and the receipt."""
    began = time.monotonic()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    pid = os.posix_spawn(words[0], words, environment, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, str(folder / "out.txt"), flags, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, str(folder / "err.txt"), flags, 0o600),
    ])  # fmt: skip
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 75):
        raise SystemExit((folder / "err.txt").read_text() + (folder / "out.txt").read_text())
    said = orjson.loads((folder / "out.txt").read_bytes())
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024, said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["local", "http", "limit"])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of the model in a single process")
    parser.add_argument("--per-second", type=int, default=40, help="requests that the provider takes")
    parser.add_argument("--told", action="store_true", help="--rpm says so")
    parser.add_argument("--latency", type=int, nargs="*", default=[0], help="of the provider, in ms")
    parser.add_argument("--concurrency", type=int, help="of each worker")
    parser.add_argument("--batch-size", type=int, help="texts of a request, at most")
    parser.add_argument("--ray", action="store_true", help="several workers are Ray's")
    parser.add_argument("--server", type=Path, help="a mock server that is built already")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        corpus(folder / "in.parquet", args.rows, args.words)
        environment = {**os.environ, "EMBEDCTL_HOME": str(folder / "home"), "EMBEDCTL_CANARY": "off"}
        {"local": local, "http": http, "limit": limit}[args.what](args, folder, environment)
    finally:
        shutil.rmtree(folder)


def command(folder: Path, workers: int, *more: object, output: object = None) -> list[str]:
    """A run into a new folder, or another output."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    output = output or folder / "out"
    words = ["batch", "run", folder / "in.parquet", "-o", output, "--json", "-q", "--workers", workers, *more]
    return [sys.executable, "-m", "embedctl", *map(str, words)]


def compared(
    args: argparse.Namespace, folder: Path, environment: dict[str, str], *more: object, server: int | None = None
) -> None:
    """The table of all rounds.

    Args:
        server: Process id of the mock server.
    """
    print("workers  ms   rows/s     s  CPU s  rows/CPU s  server CPU s  peak MB  load")
    for latency in args.latency * args.rounds:
        for workers in args.workers:
            env = dict(environment)
            if workers == 1 and args.threads:
                env["OMP_NUM_THREADS"] = str(args.threads)
            if server is not None:
                run.configure(latency_ms=latency)
            served = cpu_of(server)
            cpu, seconds, rss, _ = measured(command(folder, workers, *more), env, folder)
            served, load = cpu_of(server) - served, os.getloadavg()[0]
            print(
                f"{workers:7} {latency:3}  {args.rows / seconds:7,.0f}  {seconds:4.1f}  {cpu:5.1f}"
                f"  {args.rows / cpu:10,.0f}  {served:12.1f}  {rss:7.0f}  {load:.1f}",
                flush=True,
            )


def cpu_of(pid: int | None) -> float:
    """CPU seconds that a process has used."""
    if pid is None:
        return 0.0
    user, kernel = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(kernel)) / os.sysconf("SC_CLK_TCK")


def local(args: argparse.Namespace, folder: Path, environment: dict[str, str]) -> None:
    """With the bundled model."""
    compared(args, folder, environment)


@contextmanager
def provider(args: argparse.Namespace, folder: Path) -> Iterator[tuple[int, tuple[object, ...]]]:
    """The mock server's process id, and the flags of a run that asks it."""
    run.PORT = PORT
    with run.serve(args.server) as server:
        try:
            (folder / "config.toml").write_text(
                f'[providers.mock]\nprotocol = "openai"\nbase_url = "http://127.0.0.1:{PORT}/v1"\nprice_as = "openai"\n'
            )
            given = (("--concurrency", args.concurrency), ("--batch-size", args.batch_size))
            more = [word for flag in given if flag[1] is not None for word in flag]
            yield server.pid, ("-m", "mock:text-embedding-3-small", "--config", folder / "config.toml", *more)
        finally:
            server.kill()


def http(args: argparse.Namespace, folder: Path, environment: dict[str, str]) -> None:
    """Over the mock server."""
    with provider(args, folder) as (server, asked):
        compared(args, folder, {**environment, "MOCK_API_KEY": "k"}, *asked, server=server)


@contextmanager
def stores() -> Iterator[StoreServer]:
    """A place for Ray's workers to share."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.stores import s3_server

    with s3_server() as server:
        yield server


def limit(args: argparse.Namespace, folder: Path, environment: dict[str, str]) -> None:
    """How much of a provider's requests a second several workers use together, and how often they are refused."""
    store = stores() if args.ray else nullcontext()
    with provider(args, folder) as (_, asked), store as server:
        run.configure(per_second=args.per_second, latency_ms=100, retry_after_ms=25)
        told = ("--rpm", 60 * args.per_second, "--burst", 1) if args.told else ()
        print("workers  of the limit  refused  load")
        for workers in args.workers:
            output, env, by = None, {**environment, "MOCK_API_KEY": "k"}, ()
            if server is not None and workers > 1:
                output, by = server.new(), ("--engine", "ray", "--ray-address", "local")
                env |= server.environment
            words = command(folder, workers, *asked, "--batch-size", 8, "--concurrency", 8, *told, *by, output=output)
            _, seconds, _, said = measured(words, env, folder)
            share = said["requests"] / (seconds * args.per_second)
            refused = 1 - said["requests"] / said["attempts"]
            print(f"{workers:7}  {share:12.0%}  {refused:7.1%}  {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()

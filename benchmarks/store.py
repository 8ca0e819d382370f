"""What an output on a store costs beside one in a folder: CPU seconds, time, and memory of the same run.

    python benchmarks/store.py --rows 20000 --latency 0.3 --put-ms 0 30

The store is moto's S3 behind a proxy that waits before each request; the provider is the tests' wire server. CPU is
that of embedctl's process alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.fault_proxy import fault_proxy
from tests.support.stores import s3_server
from tests.support.wire.client import started


def measured(command: list[str], environment: dict[str, str], folder: Path) -> tuple[float, float, float]:
    """CPU seconds, seconds, and peak memory in MB."""
    began = time.monotonic()
    pid = os.posix_spawn(command[0], command, environment, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, str(folder / "out.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, str(folder / "err.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ])  # fmt: skip
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit((folder / "err.txt").read_text() + (folder / "out.txt").read_text())
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--latency", type=float, default=0.3)
    parser.add_argument("--put-ms", type=float, nargs="*", default=[0, 30])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    texts = [f"text number {number} of a table that is embedded" for number in range(args.rows)]
    pq.write_table(pa.table({"id": range(args.rows), "text": texts}), folder / "in.parquet")
    embedctl = [sys.executable, "-m", "embedctl", "batch", "run", str(folder / "in.parquet")]
    model = [
        "-m",
        "openai:text-embedding-3-small",
        "--batch-size",
        "100",
        "--concurrency",
        str(args.concurrency),
        "--json",
    ]
    print(f"{'':24}{'CPU s':>8}{'s':>8}{'MB':>8}")
    with started() as wire, s3_server() as s3, fault_proxy(s3.port) as proxy:
        server, number = s3.behind(proxy.port), 0
        for _ in range(args.rounds):
            for put_ms in (None, *args.put_ms):
                number += 1
                wire.reset()
                wire.plan(latency_s=args.latency)
                environment = {
                    "PATH": os.environ["PATH"],
                    "HOME": str(folder),
                    "EMBEDCTL_HOME": str(folder / f"home{number}"),
                }
                environment |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": wire.base_url(), **server.environment}
                proxy.always, proxy.slow_s = ("slow", put_ms / 1000) if put_ms else (None, 0.0)
                output = str(folder / f"out{number}") if put_ms is None else f"{server.new()}"
                cpu, seconds, memory = measured([*embedctl, "-o", output, *model], environment, folder)
                name = "folder" if put_ms is None else f"store, {put_ms:g} ms a put"
                print(f"{name:24}{cpu:8.2f}{seconds:8.2f}{memory:8.0f}", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

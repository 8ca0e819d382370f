"""The gateway's own part: CPU per 1,000 requests and latency, straight to a provider and through `embedctl serve`.

    python benchmarks/serve.py [--requests 2000] [--at-once 1,8] [--delay-ms 0] [--litellm ENVIRONMENT]

The stub is the test server (tests/support/wire), the client one keep-alive connection a task. Direct and through the
gateway interleave, so that a busy machine is busy for both. CPU seconds of the gateway's process come first: wall time
is noise on shared cores. Rows: what is asked, requests at once, p50 and p99 in ms, CPU ms a request of the gateway, and
requests a core second.

Beside it, where an environment has it (`uv venv E && uv pip install -p E 'litellm[proxy]'`): the litellm proxy, one
worker, without a database, so that it writes no spending down. Its part of the gateway's work is passing on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.serving import MODEL, serving
from tests.support.wire.client import Wire, started

WARM_UP = 200


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def litellm(environment: Path, folder: Path, base: str) -> Iterator[tuple[int, int]]:
    """Its proxy: process and port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = folder / "litellm.yaml"
    settings.write_text(
        f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/{MODEL}\n    api_base: {base}\n"
        "    api_key: sk-provider-0123456789abcdef\nlitellm_settings:\n  telemetry: false\n"
    )
    flags = ["--config", str(settings), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # as ours without keys: this machine alone
    }
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [str(environment / "bin" / "litellm"), *flags], cwd=folder, env=env, stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None:
                    sys.exit((folder / "litellm.log").read_text()[-2000:])
                time.sleep(0.2)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait()


def rss_mb(pid: int) -> float:
    """Resident memory now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def ask(port: int, path: str, texts: list[str], free: bool) -> list[float]:
    """One request after the other over one connection; seconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took = []
    for text in texts:
        model = "free:small" if free else MODEL
        body = b'{"model":"%s","input":"%s","encoding_format":"base64"}' % (model.encode(), text.encode())
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + body)
        status = await reader.readline()
        length = 0
        while (line := await reader.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        answer = await reader.readexactly(length)
        took.append(time.perf_counter() - began)
        assert b" 200 " in status, answer[:300]
    writer.close()
    return took


async def round_of(port: int, path: str, number: int, at_once: int, name: str, free: bool) -> list[float]:
    """So many requests with texts of their own."""
    share = number // at_once
    calls = [ask(port, path, [f"{name} {lane} {n}" for n in range(share)], free) for lane in range(at_once)]
    return [one for some in await asyncio.gather(*calls) for one in some]


def shown(name: str, at_once: int, took: list[float], cpu: float | None) -> str:
    """One row."""
    ordered = sorted(took)
    p50, p99 = statistics.median(ordered) * 1000, ordered[int(len(ordered) * 0.99)] * 1000
    cost = "" if cpu is None else f"{cpu / len(took) * 1000:8.3f}  {len(took) / cpu:8.0f}"
    return f"{name:28} {at_once:4d} {p50:9.2f} {p99:9.2f} {cost}"


def measured(
    wire: Wire, folder: Path, number: int, lanes: list[int], flags: list[str], beside: Path | None = None
) -> None:
    """All rows, printed as they come."""
    base = f"http://127.0.0.1:{wire.port}/p/openai/v1"
    settings = (
        f'[providers.free]\nprotocol = "openai"\nbase_url = "{base}"\nfree = true\nmodels = {{ small = "{MODEL}" }}\n'
        "[providers.openai]\nconcurrency = 64\n"
    )
    direct = "/p/openai/v1/embeddings"
    with ExitStack() as stack:
        server = stack.enter_context(serving(folder, wire, *flags, settings=settings))
        pid = server.process.pid
        pids, ports = dict.fromkeys(("direct", "free", "paid", "hit"), pid), {"direct": wire.port}
        if beside is not None:
            pids["litellm"], ports["litellm"] = stack.enter_context(litellm(beside, folder, base))
            asyncio.run(round_of(ports["litellm"], "/v1/embeddings", WARM_UP, 1, "warm litellm", False))
        asyncio.run(round_of(server.port, "/v1/embeddings", WARM_UP, 1, "warm", True))
        asyncio.run(round_of(server.port, "/v1/embeddings", WARM_UP, 1, "warm paid", False))
        print(f"{'':28} {'at':>4} {'p50 ms':>9} {'p99 ms':>9} {'CPU ms':>8}  {'per core':>8}")
        for at_once in lanes:
            took: dict[str, list[float]] = {kind: [] for kind in pids}
            spent = dict.fromkeys(took, 0.0)
            for part in range(4):
                for kind in took:
                    before = cpu_s(pids[kind])
                    name = f"{kind} {at_once} {part}" if kind != "hit" else f"paid {at_once} {part}"
                    port, path = ports.get(kind, server.port), direct if kind == "direct" else "/v1/embeddings"
                    took[kind] += asyncio.run(round_of(port, path, number // 4, at_once, name, kind == "free"))
                    spent[kind] += cpu_s(pids[kind]) - before
            print(shown("direct to the provider", at_once, took["direct"], None))
            for kind in ("free", "paid", "hit"):
                print(shown(f"gateway, {kind}", at_once, took[kind], spent[kind]))
            if beside is not None:
                print(shown("litellm proxy", at_once, took["litellm"], spent["litellm"]))
        for kind in ("paid", "litellm")[: 1 if beside is None else 2]:
            print(f"RSS of {'the litellm proxy' if kind == 'litellm' else 'the gateway'}: {rss_mb(pids[kind]):.0f} MB")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", default="1,8")
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--durability", default="sync")
    parser.add_argument("--litellm", type=Path, help="an environment that has its proxy")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started() as wire:
        wire.plan(latency_s=given.delay_ms / 1000)
        lanes = [int(one) for one in given.at_once.split(",")]
        flags = ["--durability", given.durability]
        measured(wire, Path(folder) / "gateway", given.requests, lanes, flags, given.litellm)


if __name__ == "__main__":
    main()

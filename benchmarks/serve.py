"""The gateway's own part: CPU per 1,000 requests and latency, straight to a provider and through `embedctl serve`.

    python benchmarks/serve.py [--requests 2000] [--at-once 1,8] [--delay-ms 0]

The stub is the test server (tests/support/wire), the client one keep-alive connection a task. Direct and through the
gateway interleave, so that a busy machine is busy for both. CPU seconds of the gateway's process come first: wall time
is noise on shared cores. Rows: what is asked, requests at once, p50 and p99 in ms, CPU ms a request of the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.serving import MODEL, serving
from tests.support.wire.client import Wire, started

WARM_UP = 200


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def measured(wire: Wire, folder: Path, number: int, lanes: list[int], flags: list[str]) -> None:
    """All rows, printed as they come."""
    base = f"http://127.0.0.1:{wire.port}/p/openai/v1"
    settings = (
        f'[providers.free]\nprotocol = "openai"\nbase_url = "{base}"\nfree = true\nmodels = {{ small = "{MODEL}" }}\n'
        "[providers.openai]\nconcurrency = 64\n"
    )
    direct = "/p/openai/v1/embeddings"
    with serving(folder, wire, *flags, settings=settings) as server:
        pid = server.process.pid
        asyncio.run(round_of(server.port, "/v1/embeddings", WARM_UP, 1, "warm", True))
        asyncio.run(round_of(server.port, "/v1/embeddings", WARM_UP, 1, "warm paid", False))
        print(f"{'':28} {'at':>4} {'p50 ms':>9} {'p99 ms':>9} {'CPU ms':>8}  {'per core':>8}")
        for at_once in lanes:
            took: dict[str, list[float]] = {"direct": [], "free": [], "paid": [], "hit": []}
            spent = dict.fromkeys(took, 0.0)
            for part in range(4):
                for kind in took:
                    before = cpu_s(pid)
                    name = f"{kind} {at_once} {part}" if kind != "hit" else f"paid {at_once} {part}"
                    port, path = (wire.port, direct) if kind == "direct" else (server.port, "/v1/embeddings")
                    took[kind] += asyncio.run(round_of(port, path, number // 4, at_once, name, kind == "free"))
                    spent[kind] += cpu_s(pid) - before
            print(shown("direct to the provider", at_once, took["direct"], None))
            for kind in ("free", "paid", "hit"):
                print(shown(f"gateway, {kind}", at_once, took[kind], spent[kind]))
        print(f"RSS {rss_mb(pid):.0f} MB")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", default="1,8")
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--durability", default="sync")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started() as wire:
        wire.plan(latency_s=given.delay_ms / 1000)
        lanes = [int(one) for one in given.at_once.split(",")]
        measured(wire, Path(folder) / "gateway", given.requests, lanes, ["--durability", given.durability])


if __name__ == "__main__":
    main()

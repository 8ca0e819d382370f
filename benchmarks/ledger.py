"""The ledger at size: ingest, reports, a cron cycle, bytes per event, peak memory.

    python benchmarks/ledger.py [--events 10000000] [--rounds 5] [--folder DIR]

Targets (10M events): month x workspace x provider x model <= 2 s, one workspace-month <= 0.2 s, <= 60 bytes per event,
ingest >= 100,000 events/s, a cron cycle of 50 events <= 100 ms, ingest within 300 MB.
"""

from __future__ import annotations

import argparse
import random
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

from embedctl.ledger import database, spool
from embedctl.ledger.ingest import ingest
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.periods import Range
from embedctl.records import UsageEvent, new_operation_id, uuid7
from embedctl.reports.report import ReportQuery, report

YEAR = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 12, 31, tzinfo=UTC)
PLACES = [("openai", "text-embedding-3-small"), ("openai", "text-embedding-3-large"), ("voyage", "voyage-4"),
          ("cohere", "embed-v4.0"), ("google", "gemini-embedding-001"), ("onnx", "all-MiniLM-L6-v2")]  # fmt: skip
PRICES = "".join(
    f'[[price]]\nprovider = "{provider}"\nmodel = "{model}"\nkind = "contract"\nusd_per_million = "{usd}"\n'
    f'valid_from = 2025-01-01\nsource = "benchmark"\n'
    for (provider, model), usd in zip(PLACES, ("0.018", "0.117", "0.054", "0.108", "0.135"), strict=False)
)
"""For all of the year, and beside the list prices, so that each event has a cost and most have two."""

PER_FILE = 5000
AT_ONCE = 1_000_000  # events that wait in the spool together, so that 10M do not take 6 GB of disk twice


def events(number: int, share: float, chance: random.Random) -> list[UsageEvent]:
    """One run's events: a slice of the year, one workspace and job."""
    workspace, run_id = chance.randrange(200), uuid7()
    provider, model = chance.choice(PLACES)
    start = YEAR + timedelta(days=364 * share)
    found = []
    for place in range(number):
        at = start + timedelta(seconds=place, microseconds=chance.randrange(1_000_000))
        lost = chance.random() < 0.01
        tokens = 0 if lost else chance.randrange(500, 9000)
        event_id, operation_id, request_id = minted(provider, at)
        found.append(
            UsageEvent(
                event_id=event_id,
                workspace_id=f"team-{workspace:03d}",
                job_id=f"job-{workspace % 40}",
                run_id=run_id,
                operation_id=operation_id,
                provider=provider,
                price_as="free" if provider == "onnx" else provider,
                model=model,
                response_model=model,
                provider_account=None if provider == "onnx" else "4b227777d4dd",
                occurred_at=at,
                duration_ms=chance.randrange(80, 900),
                status="timeout" if lost else "ok",
                billable="unknown" if lost else "yes",
                tokens_total=tokens,
                quantity=tokens,
                tokens_native=None if lost else tokens,
                tokens_estimated=3000 if lost else tokens + chance.randrange(20) if chance.random() < 0.01 else None,
                usage_mode="auto",
                usage_source="fallback" if lost else "native",
                tokenizer_id="tiktoken:cl100k_base" if lost else None,
                input_count=96,
                content_bytes=tokens * 4 + chance.randrange(500),
                provider_request_id=request_id,
                tool_version="1.0",
            )
        )
    return found


def minted(provider: str, at: datetime) -> tuple[UUID, str, str | None]:
    """The ids of an attempt at `at`, as the call point and the planner mint them, and the provider (or it does not)."""
    request_id = {"openai": f"req_{secrets.token_hex(16)}", "cohere": str(uuid4())}.get(provider)
    return uuid7(now_s=at.timestamp()), new_operation_id(), request_id


def fill(paths: LedgerPaths, count: int, done: int, total: int, chance: random.Random) -> None:
    """Spool `count` events, in as many files as runs would; a run's numbers return in 20 files, its ids never."""
    base = events(PER_FILE, 0, chance)
    for number in range(0, count, PER_FILE):
        share = (done + number) / total
        if number % (20 * PER_FILE) == 0:
            base = events(PER_FILE, share, chance)
        lines = []
        for one in base:
            body = spool.line(one)[9:-1]
            fresh = minted(one.provider, one.occurred_at)
            for old, new in zip((one.event_id, one.operation_id, one.provider_request_id), fresh, strict=True):
                body = body.replace(str(old).encode(), str(new).encode()) if old else body
            lines.append(b"%08x %s\n" % (zlib.crc32(body), body))
        paths.spool.mkdir(parents=True, exist_ok=True)
        (paths.spool / f"{done + number:010d}.spool").write_bytes(b"".join(lines))


def timed(work: Callable[[], object], rounds: int) -> float:
    """Median seconds."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def in_a_process(paths: LedgerPaths) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MB) of an ingest in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--ingest", str(paths.database.parent)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return time.perf_counter() - start, float(told[0]), float(told[1])


def ingested(folder: Path) -> None:
    """In the child: ingest, and say what it took."""
    ingest(of(folder), now=NOW)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def of(folder: Path) -> LedgerPaths:
    return LedgerPaths(folder / "usage.duckdb", folder / "spool", folder / "prices.toml")


def ask(paths: LedgerPaths, question: ReportQuery) -> Decimal | None:
    with database.reader(paths, now=NOW) as connection:
        return report(connection, question, now=NOW).totals["cost"]  # type: ignore[no-any-return]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=10_000_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path)
    options.add_argument("--ingest", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.ingest:
        ingested(given.ingest)
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="embedctl-ledger-"))
    paths, chance = of(folder), random.Random(7)
    wall = cpu = peak = 0.0
    try:
        paths.price_file.write_text(PRICES)
        for done in range(0, given.events, AT_ONCE):
            fill(paths, min(AT_ONCE, given.events - done), done, given.events, chance)
            took = in_a_process(paths)
            wall, cpu, peak = wall + took[0], cpu + took[1], max(peak, took[2])
            shutil.rmtree(paths.done)
        size = paths.database.stat().st_size
        month = Range(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
        wide = ReportQuery(by=["month", "workspace", "provider", "model"])
        narrow = ReportQuery(by=["provider", "model"], within=month, only={"workspace": [busiest(paths)]})

        def cycle() -> None:
            spool.publish(paths.spool, str(uuid7()), events(50, 0.99, chance))
            ingest(paths, now=NOW)

        rows = [
            ("events", f"{given.events:,}"),
            ("ingest, events/s", f"{given.events / wall:,.0f} ({given.events / cpu:,.0f} per CPU second)"),
            ("ingest, peak MB", f"{peak:,.0f}"),
            ("bytes per event", f"{size / given.events:.1f}"),
            ("month x workspace x provider x model, s", f"{timed(lambda: ask(paths, wide), given.rounds):.2f}"),
            ("one workspace-month, s", f"{timed(lambda: ask(paths, narrow), given.rounds):.3f}"),
            ("cron cycle of 50 events, ms", f"{timed(cycle, 4 * given.rounds) * 1000:.0f}"),
        ]
        for name, value in rows:
            print(f"{name:<42}{value}")
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def busiest(paths: LedgerPaths) -> str:
    """The workspace with most events."""
    sql = "SELECT workspace_id FROM usage_event GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
    with database.reader(paths, now=NOW) as connection:
        return str(connection.execute(sql).fetchall()[0][0])


if __name__ == "__main__":
    main()

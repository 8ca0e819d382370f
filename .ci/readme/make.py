"""Draws README's pictures anew from the sample data: `.venv/bin/python .ci/readme/make.py` (needs chromium, Pillow).

The map is that of sample_data/tickets.parquet. The usage page is that of eleven weeks in which the files of sample_data
were embedded again and again, by two models, more on weekdays, with one night on which a job ran wild.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SAMPLE = HERE.parent.parent / "sample_data"
DAYS = 77
# job, workspace, file, model, how often a night
JOBS = (
    ("tickets", "support", "tickets.parquet", "text-embedding-3-large", 2600),
    ("handbook", "docs", "handbook.md", "text-embedding-3-large", 1400),
    ("products", "shop", "products.csv", "text-embedding-3-small", 9000),
    ("faq", "support", "faq.jsonl", "text-embedding-3-small", 5000),
)


def embedctl(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "embedctl", *words], check=True)


def spend(home: Path) -> None:
    """Usage events of eleven weeks, in a ledger of its own."""
    from embedctl.ledger import spool
    from embedctl.records import UsageEvent, uuid7

    chance = random.Random(7)
    midnight = datetime.combine(datetime.now(UTC).date(), time(3), UTC)
    events = []
    for ago in range(DAYS, 0, -1):
        night = midnight - timedelta(days=ago)
        for job, workspace, file, model, times in JOBS:
            tokens = (SAMPLE / file).stat().st_size // 4 * times
            share = (0.25 if night.weekday() > 4 else 1.0) * chance.uniform(0.75, 1.25)
            share *= 5 if (job, ago) == ("handbook", 9) else 1
            lost = chance.random() < 0.02
            counted = 0 if lost else int(tokens * share)
            events.append(
                UsageEvent(
                    event_id=uuid7(), workspace_id=workspace, job_id=job, operation_id=str(uuid7()), provider="openai",
                    price_as="openai", model=model, occurred_at=night, status="timeout" if lost else "ok",
                    billable="unknown" if lost else "yes", tokens_total=counted, tokens_native=counted or None,
                    tokens_estimated=int(tokens * share) if lost else None, usage_mode="auto", tool_version="1",
                    usage_source="fallback" if job == "faq" and chance.random() < 0.1 else "native",
                    tags={"team": workspace},
                )
            )  # fmt: skip
    spool.publish(home / "spool", str(uuid7()), events)


def photograph(page: Path, width: int, height: int) -> None:
    """The page in the browser, as a small picture beside this script."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=6000"]
        flags += [f"--user-data-dir={folder}", f"--window-size={width},{height}", f"--screenshot={shot}"]
        subprocess.run(["chromium", *flags, page.as_uri()], check=True, capture_output=True)
        picture = Image.open(shot).convert("RGB").quantize(64)
        picture.save(HERE / f"{page.stem}.png", optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["EMBEDCTL_HOME"] = folder
        first = (datetime.now(UTC) - timedelta(days=DAYS + 9)).date().isoformat()
        lower = (datetime.now(UTC) - timedelta(days=30)).date().isoformat()
        embedctl("prices", "set", "openai:text-embedding-3-large", "0.13", "--from", first)
        embedctl("prices", "set", "openai:text-embedding-3-small", "0.04", "--from", first)
        embedctl("prices", "set", "openai:text-embedding-3-small", "0.02", "--from", lower)
        spend(home)
        embedctl("usage", "budget", "set", "-w", "docs", "--amount", "18")
        embedctl("usage", "report", "--html", str(home / "usage.html"), "--workspace")
        tickets = str(SAMPLE / "tickets.parquet")
        embedctl("batch", "run", tickets, "-o", str(home / "tickets"), "--on-too-long", "chunk", "-q")
        embedctl("vectors", "map", str(home / "tickets"), "-o", str(home / "map.html"), "--color", "product")
        photograph(home / "usage.html", 1180, 1100)
        photograph(home / "map.html", 1000, 760)


if __name__ == "__main__":
    main()

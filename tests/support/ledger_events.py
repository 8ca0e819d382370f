"""Usage events and ledgers for the ledger's tests."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedctl.ledger import database, spool
from embedctl.ledger.ingest import Ingested, ingest
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import UsageEvent, uuid7

NOON = datetime(2026, 11, 15, 12, tzinfo=UTC)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)

PRICES = """
[[price]]
provider = "pay"
model = "m"
usd_per_million = "0.02"
valid_from = 2024-01-25
source = "list"

[[price]]
provider = "pay"
model = "m"
tier = "batch"
usd_per_million = "0.01"
valid_from = 2024-01-25
source = "list"

[[price]]
provider = "pay"
model = "moving"
usd_per_million = "0.10"
valid_from = 2025-01-01
source = "list"

[[price]]
provider = "pay"
model = "moving"
usd_per_million = "0.05"
valid_from = 2026-11-10
source = "list"

[[price]]
provider = "pay"
model = "cached"
usd_per_million = "0.10"
valid_from = 2025-01-01
source = "list"

[[price]]
provider = "pay"
model = "cached"
meter = "input_token_cached"
usd_per_million = "0.025"
valid_from = 2025-01-01
source = "list"

[[price]]
provider = "pay"
model = "m"
region = "eu"
usd_per_million = "0.022"
valid_from = 2024-01-25
source = "list"

[[price]]
provider = "pay"
model = "agreed"
usd_per_million = "0.13"
valid_from = 2024-01-25
source = "list"

[[price]]
provider = "pay"
model = "agreed"
kind = "contract"
usd_per_million = "0.10"
valid_from = 2024-01-25
source = "contract 7"

[[price]]
provider = "place"
model = "told"
kind = "contract"
usd_per_million = "0.5"
valid_from = 2024-01-25
source = "told"

[[price]]
provider = "pay"
model = "gift"
usd_per_million = "0"
is_free = true
valid_from = 2024-01-25
source = "list"
"""


def event(**changes: Any) -> UsageEvent:
    """A confirmed call of 1,000 native tokens that costs 0.00002 USD."""
    values: dict[str, Any] = {
        "event_id": uuid7(),
        "workspace_id": "acme",
        "operation_id": str(uuid7()),
        "provider": "pay",
        "price_as": "pay",
        "model": "m",
        "occurred_at": NOON,
        "status": "ok",
        "billable": "yes",
        "tokens_total": 1000,
        "tokens_native": 1000,
        "usage_mode": "auto",
        "usage_source": "native",
        "tool_version": "1",
    }
    return UsageEvent(**values | changes)


def place(folder: Path, prices: str = PRICES) -> LedgerPaths:
    """An empty ledger's paths, with prices of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prices.toml").write_text(prices)
    return LedgerPaths(folder / "usage.duckdb", folder / "spool", folder / "prices.toml")


def take(paths: LedgerPaths, *events: UsageEvent, spool_id: str | None = None) -> Ingested:
    """Spool `events` as one file and ingest everything."""
    if events:
        spool.publish(paths.spool, spool_id or str(uuid7()), events)
    return ingest(paths, wait_s=30, now=NOW)


def rows(paths: LedgerPaths, sql: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
    """The rows of a query on the ledger."""
    with database.reader(paths, now=NOW) as connection:
        return connection.execute(sql, list(values)).fetchall()


def one(paths: LedgerPaths, sql: str) -> Any:
    """The only value of a query on the ledger."""
    ((value,),) = rows(paths, sql)
    return value

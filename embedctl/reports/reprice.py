"""Prices that came late, or were wrong: fill in what is unknown, and correct the rest by rows of its own."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.ledger import database, prices, rating
from embedctl.ledger.database import Connection
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.rating import microseconds
from embedctl.records import uuid7

REASON = "reprice"

# One correction per key and UTC day. Free, reported and entered money is nobody's list price: it stays.
_DELTAS = f"""
SELECT b.workspace_id, b.job_id, b.provider, b.model, b.price_tier, b.currency, max(b.occurred_at) AS occurred_at,
       sum(r.cost - b.cost) - coalesce(any_value(done.delta), 0) AS delta, count(*) AS calls
FROM usage_event b JOIN rerated r USING (event_id) LEFT JOIN (
  SELECT workspace_id, job_id, provider, model, price_tier, occurred_at::DATE AS day, sum(cost) AS delta
  FROM usage_event WHERE entry_kind = 'correction' AND reason = '{REASON}' GROUP BY ALL) done
  ON done.workspace_id = b.workspace_id AND done.job_id IS NOT DISTINCT FROM b.job_id AND done.provider = b.provider
 AND done.model = b.model AND done.price_tier = b.price_tier AND done.day = b.occurred_at::DATE
WHERE b.cost_status = 'priced' AND r.cost IS NOT NULL
GROUP BY b.workspace_id, b.job_id, b.provider, b.model, b.price_tier, b.currency, b.occurred_at::DATE
HAVING delta <> 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repriced:
    """What a repricing changes, or would change.

    Attributes:
        filled_events: Calls that had no price and get one; their sum is `filled_cost`, beside what stays at risk.
        corrections: One mapping per correction row: workspace, job, provider, model, day, calls, delta.
    """

    filled_events: int
    filled_cost: Decimal
    filled_at_risk: Decimal
    corrections: Sequence[dict[str, Any]]

    @property
    def correction(self) -> Decimal:
        """Sum of all corrections, signed."""
        return sum((row["delta"] for row in self.corrections), Decimal(0))


def reprice(paths: LedgerPaths, *, since: datetime | None, apply: bool, wait_s: float = 60, now: datetime) -> Repriced:
    """Rate events from `since` on again by the prices of today's price files, each by its own moment.

    Unknown costs are filled in; a cost once known is never changed: its difference becomes a correction row on its day.
    Doing it twice changes nothing more.

    Raises:
        Locked, ConfigurationInvalid, StorageFailed: As for `ingest`.
    """
    book = prices.price_texts(paths.price_file)
    nothing = not (apply or paths.database.exists())
    ledger = database.reader if nothing else database.writer  # a dry run makes no ledger
    with ledger(paths, wait_s=wait_s, now=now) as connection:
        connection.execute("BEGIN")
        if rating.known_fingerprint(connection) != prices.fingerprint(book):
            rating.sync_prices(connection, prices.load(book), now)
        _rerate(connection, since)
        found = _found(connection)
        if apply:
            _write(connection, found, now)
        connection.execute("COMMIT" if apply else "ROLLBACK")
    return found


def _rerate(connection: Connection, since: datetime | None) -> None:
    """The temporary table `rerated`: what each event would cost."""
    whole_day = (
        None if since is None else since.replace(hour=0, minute=0, second=0, microsecond=0)
    )  # as corrections are
    condition = "true" if whole_day is None else f"occurred_at >= make_timestamptz({microseconds(whole_day)})"
    rated = "price_id, unit_price, currency, cost_list, cost, cost_at_risk, cost_provider, cost_status"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE batch AS SELECT u.* EXCLUDE ({rated}), CAST(NULL AS DECIMAL(28,15)) AS amount, "
        "CASE WHEN a.provider IS NULL THEN u.provider ELSE a.price_as END AS price_as "
        "FROM usage_event u LEFT JOIN price_alias a ON a.provider = u.provider "
        f"WHERE {condition} AND entry_kind = 'usage' AND cost_status IN ('unpriced', 'at_risk', 'priced')"
    )
    rating.make_rates(connection)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE rerated AS "
        f"SELECT event_id, price_id, unit_price, cost_list, cost, cost_at_risk, cost_status FROM ({rating.RATED})"
    )


_FILLABLE = (
    "u.event_id = r.event_id AND ((u.cost_status = 'unpriced' AND r.cost_status <> 'unpriced') OR "
    "(u.cost_status = 'at_risk' AND u.cost_at_risk IS NULL AND (r.cost_at_risk IS NOT NULL OR r.cost IS NOT NULL)))"
)


def _found(connection: Connection) -> Repriced:
    row = connection.execute(
        "SELECT count(*), coalesce(sum(r.cost), 0), coalesce(sum(r.cost_at_risk), 0) "
        f"FROM usage_event u, rerated r WHERE {_FILLABLE}"
    ).fetchone()
    events, cost, at_risk = row or (0, Decimal(0), Decimal(0))
    cursor = connection.execute(
        "SELECT workspace_id, job_id, provider, model, price_tier, CAST(occurred_at::DATE AS VARCHAR) AS day, "
        f"epoch_us(occurred_at) AS occurred_us, calls, delta FROM ({_DELTAS}) ORDER BY ALL"
    )
    header = [column[0] for column in cursor.description or ()]
    corrections = [dict(zip(header, each, strict=True)) for each in cursor.fetchall()]
    return Repriced(filled_events=events, filled_cost=cost, filled_at_risk=at_risk, corrections=corrections)


def _write(connection: Connection, found: Repriced, now: datetime) -> None:
    run = uuid7()
    connection.execute(
        "UPDATE usage_event u SET price_id = r.price_id, unit_price = r.unit_price, cost_list = r.cost_list, "
        "cost = r.cost, cost_at_risk = r.cost_at_risk, cost_status = r.cost_status, rated_at = ?, rating_run_id = ? "
        f"FROM rerated r WHERE {_FILLABLE}",
        [now, run],
    )
    for row in found.corrections:
        _correct(connection, row, run, now)
    connection.execute(
        "INSERT INTO rating_run VALUES (?, ?, 'reprice', NULL, ?, ?, NULL)",
        [run, now, found.filled_events + len(found.corrections), found.filled_cost + found.correction],
    )


def _correct(connection: Connection, row: dict[str, Any], run: Any, now: datetime) -> None:
    """One correction row. Not by the spool: a ledger rebuilt from it has the new price in the events themselves."""
    event_id = uuid7()
    values = {
        "event_id": event_id,
        "entry_kind": "correction",
        "workspace_id": row["workspace_id"],
        "job_id": row["job_id"],
        "operation_id": f"correction:{event_id}",
        "operation_kind": "manual",
        "provider": row["provider"],
        "model": row["model"],
        "price_tier": row["price_tier"],
        "occurred_at": rating.moment(row["occurred_us"]),
        "recorded_at": now,
        "status": "ok",
        "billable": "no",
        "quantity": 0,
        "tokens_total": 0,
        "usage_mode": "native",
        "usage_source": "native",
        "cost": row["delta"],
        "cost_status": "manual",
        "rated_at": now,
        "rating_run_id": run,
        "reason": REASON,
        "spool_id": f"{REASON}-{run}",
        "tool_version": __version__,
    }
    connection.execute(
        f"INSERT INTO usage_event ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", list(values.values())
    )

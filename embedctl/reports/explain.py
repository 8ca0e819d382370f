"""Why an event, an operation or a run costs what it costs: units x unit price = cost, and whose price that is."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.ledger.database import Connection
from embedctl.records import NO_USAGE
from embedctl.reports.report import plain

_COLUMNS = (
    "event_id", "occurred_at", "workspace_id", "job_id", "run_id", "operation_id", "attempt", "purpose", "entry_kind",
    "provider", "model", "fallback_from", "region", "price_tier", "meter", "status", "error_class", "billable",
    "quantity", "tokens_total", "tokens_native", "tokens_estimated", "tokens_cached", "usage_source", "tokenizer_id",
    "unit_price", "cost", "cost_list", "cost_at_risk", "cost_status", "reason", "corrects_event_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """Lines of arithmetic, each a mapping with a `sum` in words, and their total."""

    lines: Sequence[dict[str, Any]]
    cost: Decimal | None


def event(connection: Connection, name: str) -> Explanation:
    """Every attempt of the operation that `name` (an event id, or an operation id) belongs to.

    Raises:
        WrongUsage: It is in no row.
    """
    if not re.fullmatch(r"[0-9A-Za-z._:-]{1,200}", name):
        raise WrongUsage(f"not an event or operation id: {name!r}")
    found = _select(
        connection,
        "operation_id = ? OR operation_id IN (SELECT operation_id FROM usage_event "
        "WHERE event_id = try_cast(? AS UUID)) OR corrects_event_id = try_cast(? AS UUID)",
        [name, name, name],
    )
    if not found:
        raise WrongUsage(
            f"no event or operation {name!r} is in the ledger",
            hint="an id stands in `embedding_operation_id` of an output, and in `usage sql`",
        )
    return Explanation(found, _total(found))


def run(connection: Connection, run_id: str) -> Explanation:
    """One line per provider, model, price and status of a run.

    Raises:
        WrongUsage: The run is in no row.
    """
    cursor = connection.execute(
        "SELECT provider, model, price_tier, meter, status, billable, cost_status, unit_price, price_id, usage_source, "
        "CASE WHEN cost_status = 'unpriced' THEN reason "
        "WHEN ends_with(reason, 'USD an hour') THEN regexp_extract(reason, '[0-9.]+ USD an hour$') END AS reason, "
        "count(*) AS calls, sum(quantity)::BIGINT AS quantity, sum(tokens_estimated)::BIGINT AS tokens_estimated, "
        "sum(cost) AS cost, sum(cost_at_risk) AS cost_at_risk "
        "FROM usage_event WHERE run_id = try_cast(? AS UUID) GROUP BY ALL ORDER BY ALL",
        [run_id],
    )
    found = _rows(connection, cursor)
    if not found:
        raise WrongUsage(f"no run {run_id!r} is in the ledger", hint="`embedctl batch list` names the runs")
    return Explanation(found, _total(found))


def _select(connection: Connection, condition: str, values: list[Any]) -> list[dict[str, Any]]:
    columns = ", ".join(f"CAST({name} AS VARCHAR) AS {name}" if name == "occurred_at" else name for name in _COLUMNS)
    cursor = connection.execute(
        f"SELECT {columns}, price_id FROM usage_event WHERE {condition} ORDER BY occurred_at, attempt", values
    )
    return _rows(connection, cursor)


def _rows(connection: Connection, cursor: Connection) -> list[dict[str, Any]]:
    header = [column[0] for column in cursor.description or ()]
    rows = [dict(zip(header, row, strict=True)) for row in cursor.fetchall()]
    sources = _sources(connection, {row["price_id"] for row in rows if row["price_id"]})
    for row in rows:
        row["price"] = sources.get(row.pop("price_id"))
        row["sum"] = arithmetic(row)
    return rows


def _sources(connection: Connection, ids: set[Any]) -> dict[Any, dict[str, Any]]:
    columns = (
        "price_id, kind, unit_price, CAST(valid_from AS VARCHAR) AS valid_from, CAST(valid_to AS VARCHAR) AS valid_to, "
        "source, source_ref, confidence"
    )
    cursor = connection.execute(
        f"SELECT {columns} FROM price_superseded WHERE price_id IN (SELECT unnest(?)) "
        f"UNION ALL SELECT {columns} FROM price WHERE price_id IN (SELECT unnest(?))",
        [list(ids), list(ids)],
    )
    header = [column[0] for column in cursor.description or ()]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in cursor.fetchall()}


def arithmetic(row: dict[str, Any]) -> str:
    """The cost of a row in words and numbers."""
    unit = "tokens" if row["meter"].startswith("input_token") else f"{row['meter']}s"
    about = "~" if row["usage_source"] == "fallback" else ""
    match row["cost_status"]:
        case "priced":
            cached = row.get("tokens_cached")
            note = f" (of these {cached:,} cached)" if cached else ""
            return (
                f"{about}{row['quantity']:,} {unit}{note} x {plain(row['unit_price'])} USD per million "
                f"= {plain(row['cost'])} USD"
            )
        case "at_risk":
            if row["cost_at_risk"] is None:
                return f"~{row['tokens_estimated'] or 0:,} {unit} sent, no answer, no price: unknown"
            return (
                f"~{row['tokens_estimated'] or 0:,} {unit} sent, no answer: up to {plain(row['cost_at_risk'])} USD "
                f"at {plain(row['unit_price'])} USD per million"
            )
        case "unpriced" if str(row["reason"]).startswith(NO_USAGE):
            return f"answered, and nothing said of {unit}: unknown"
        case "unpriced":
            return f"{about}{row['quantity']:,} {unit}, no price: unknown"
        case "provider_reported" if str(row["reason"]).endswith("USD an hour"):
            rate = str(row["reason"]).rpartition(" at ")[2]
            what = "microhours that no call was charged" if row["meter"] == "idle_microhour" else unit
            return f"{about}{row['quantity']:,} {what}: {plain(row['cost'])} USD of its machine's time, at {rate}"
        case "provider_reported":
            return f"{about}{row['quantity']:,} {unit}: {plain(row['cost'])} USD, as the provider says"
        case "manual":
            return f"entered: {plain(row['cost'])} USD"
        case "free":
            return f"{about}{row['quantity']:,} {unit}, free: 0 USD"
        case _:
            return "no work done: 0 USD"


def _total(lines: Sequence[dict[str, Any]]) -> Decimal | None:
    known = [line["cost"] for line in lines if line["cost"] is not None]
    return sum(known, Decimal(0)) if known else None

"""The numbers of a report: tokens, money, calls and operations per group, and over all."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from embedctl.ledger.database import Connection
from embedctl.reports import exchange_rates
from embedctl.reports.query import ReportQuery, keys, where_clause

# Rows are summed by what the measures tell apart first: there are few such groups, and then all else is cheap.
_SUMS = """
  SELECT {names} entry_kind, billable, meter = 'idle_microhour' AS idle,
    usage_source, cost_status, status = 'ok' AS fine, count(*) AS n,
    count(*) FILTER (entry_kind = 'usage' AND NOT ({repeats})) AS single,
    count(*) FILTER (cost_status = 'at_risk' AND cost_at_risk IS NULL) AS unknown_risk,
    count(*) FILTER (cost_list IS NULL AND entry_kind = 'usage' AND billable = 'yes') AS unlisted,
    sum(tokens_total) AS tokens_total, sum(tokens_estimated) AS tokens_estimated,
    sum(cost) AS cost, sum(cost_list) AS cost_list, sum(cost_at_risk) AS cost_at_risk
  FROM chosen GROUP BY ALL
"""
_MEASURES = """
  coalesce(sum(n) FILTER (entry_kind = 'usage' AND NOT idle), 0)::BIGINT AS calls,
  coalesce(sum(n) FILTER (entry_kind = 'usage' AND NOT fine), 0)::BIGINT AS errors,
  coalesce(sum(single), 0)::BIGINT AS single,
  coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0) AS tokens,
  coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0) AS tokens_unknown,
  coalesce(sum(tokens_total) FILTER (billable = 'yes' AND usage_source = 'fallback'), 0) AS tokens_fallback,
  coalesce(sum(tokens_total) FILTER (cost_status = 'unpriced'), 0) AS unpriced_tokens,
  coalesce(sum(n) FILTER (cost_status = 'unpriced'), 0)::BIGINT AS unpriced_calls,
  coalesce(sum(n) FILTER (cost_status = 'at_risk'), 0)::BIGINT AS at_risk_calls,
  coalesce(sum(unlisted), 0)::BIGINT AS unlisted_calls,
  coalesce(sum(unknown_risk), 0)::BIGINT AS unpriced_at_risk_calls,
  coalesce(sum(n), 0)::BIGINT AS events,
  coalesce(sum(cost) FILTER (entry_kind NOT IN ('usage', 'cache_hit')), 0) AS adjustments,
  sum(cost) AS cost, sum(cost_list) AS cost_list, sum(cost_at_risk) AS cost_at_risk
"""

_REPEATS = "attempt <> 1 OR fallback_from IS NOT NULL OR meter <> 'input_token' OR operation_kind <> 'request'"
"""Events that may share their operation with another; all others stand alone: the call point counts attempts from 1."""

_PROVEN = 2_000_000
"""Up to so many calls the report does not take the call point's word for it; `usage doctor` checks all."""


def measured(
    connection: Connection, question: ReportQuery
) -> tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], dict[str, Any]]:
    """(keys, measures) of every group, and the measures over all.

    Raises:
        WrongUsage: An unknown key, filter or time zone.
    """
    condition, values = where_clause(question)
    expressions, key_values = keys(connection, question)
    names = [f"k{index}" for index in range(len(expressions))]
    selected = "".join(f"{expression} AS {name}, " for expression, name in zip(expressions, names, strict=True))
    source = "usage_event"
    if question.currency != exchange_rates.OWN:
        source = exchange_rates.convert(connection, question.currency, question.fx_date, condition, values)
    chosen = f"WITH chosen AS NOT MATERIALIZED (SELECT {selected}* FROM {source} WHERE {condition})"
    bound = [*key_values, *values]
    by_name = "".join(f"{name}, " for name in names)
    groups = f"GROUP BY GROUPING SETS (({', '.join(names)}), ())" if names else ""
    is_total = f"grouping({names[0]})" if names else "1"
    cursor = connection.execute(
        f"{chosen}, summed AS ({_SUMS.format(names=by_name, repeats=_REPEATS)}) "
        f"SELECT {by_name}{is_total} AS is_total, {_MEASURES} FROM summed {groups}",
        bound,
    )
    header = [column[0] for column in cursor.description or ()]
    rows = [dict(zip(header, row, strict=True)) for row in cursor.fetchall()]
    operations = _operations(connection, chosen, bound, names, rows)
    found = []
    total: dict[str, Any] = {}
    for row, count in zip(rows, operations, strict=True):
        if row["is_total"]:
            total = _measures(row, count)
        else:
            found.append((tuple(row[name] for name in names), _measures(row, count)))
    return found, total


def _operations(
    connection: Connection,
    chosen: str,
    bound: list[Any],
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> list[int]:
    """Distinct operations of each row.

    Counting distinct ids group by group costs more than all the rest of a report. So events that stand alone are
    counted, and only those whose operation has several are told apart.
    """
    by_name = "".join(f"{name}, " for name in names)
    groups = f"GROUP BY GROUPING SETS (({', '.join(names)}), ())" if names else ""
    is_total = f"grouping({names[0]})" if names else "1"

    def asked(source: str, measures: str) -> dict[tuple[Any, ...], tuple[int, ...]]:
        found = connection.execute(f"{source} SELECT {by_name}{is_total}, {measures} {groups}", bound).fetchall()
        width = len(names) + 1
        return {tuple(row[:width]): tuple(row[width:]) for row in found}

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*(row[name] for name in names), row["is_total"])

    usage = "entry_kind = 'usage' AND meter <> 'idle_microhour'"  # the time of a machine is no call
    alone = all(row["calls"] == row["single"] for row in rows)
    shared = (
        {}
        if alone
        else asked(
            f"{chosen}, several AS (SELECT DISTINCT operation_id FROM chosen WHERE {usage} AND ({_REPEATS}))",
            f"count(DISTINCT operation_id), count(*) FILTER (NOT ({_REPEATS})) "
            f"FROM (SELECT * FROM chosen SEMI JOIN several USING (operation_id) WHERE {usage})",
        )
    )
    counts = [row["single"] - shared.get(key(row), (0, 0))[1] + shared.get(key(row), (0, 0))[0] for row in rows]
    calls, total = next((row["calls"], count) for row, count in zip(rows, counts, strict=True) if row["is_total"])
    if calls > _PROVEN:
        return counts
    proof = connection.execute(
        f"{chosen} SELECT count(DISTINCT operation_id) FROM chosen WHERE {usage}", bound
    ).fetchone()
    if proof is not None and proof[0] == total:
        return counts
    exact = asked(chosen, f"count(DISTINCT operation_id) FROM chosen WHERE {usage}")
    return [exact.get(key(row), (0,))[0] for row in rows]


def _measures(row: Mapping[str, Any], operations: int) -> dict[str, Any]:
    calls, tokens = row["calls"], int(row["tokens"])
    unknown_cost = row["cost"] is None and row["events"] > 0
    unknown_risk = row["cost_at_risk"] is None and row["at_risk_calls"] > 0
    share = round(int(row["tokens_fallback"]) / tokens, 6) if tokens else None
    return {
        "tokens": tokens,
        "tokens_unknown": int(row["tokens_unknown"]),
        "cost": None if unknown_cost else row["cost"] or Decimal(0),
        "cost_is_lower_bound": bool(row["unpriced_calls"]),
        "cost_list": row["cost_list"],
        "cost_list_is_lower_bound": bool(row["unlisted_calls"]),
        "adjustments": row["adjustments"],
        "unpriced_tokens": int(row["unpriced_tokens"]),
        "cost_at_risk": None if unknown_risk else row["cost_at_risk"] or Decimal(0),
        "fallback_share": share,
        "calls": calls,
        "operations": operations,
        "errors": row["errors"],
        "success_rate": round((calls - row["errors"]) / calls, 6) if calls else None,
        "estimated_share": share,
        "unpriced_calls": row["unpriced_calls"],
        "at_risk_calls": row["at_risk_calls"],
        "unpriced_at_risk_calls": row["unpriced_at_risk_calls"],
        "events": row["events"],
    }

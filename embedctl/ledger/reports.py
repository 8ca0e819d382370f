"""Reports: usage grouped by anything, in any time zone, with what is not known said beside what is."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb

from embedctl.errors import WrongUsage
from embedctl.ledger import periods
from embedctl.ledger.periods import Range
from embedctl.ledger.rating import microseconds, moment

SCHEMA_VERSION = 1
DRIFT_THRESHOLD = 0.05
_LARGEST_EXACT = 1 << 53  # larger integers lose digits in other programs' JSON

_COLUMNS = {
    "workspace": "workspace_id",
    "provider": "provider",
    "model": "model",
    "job": "job_id",
    "run": "CAST(run_id AS VARCHAR)",
    "tier": "price_tier",
    "source": "usage_source",
    "status": "status",
    "purpose": "purpose",
}
_UNITS = {"day": "day", "week": "week", "month": "month"}
KEYS = (*_UNITS, *_COLUMNS)
"""What a report may be grouped by, beside `tag:KEY`."""

_MEASURES = """
  count(*) FILTER (entry_kind = 'usage') AS calls,
  count(*) FILTER (entry_kind = 'usage' AND status <> 'ok') AS errors,
  count(DISTINCT hash(operation_id)) FILTER (entry_kind = 'usage') AS operations,
  coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0) AS tokens,
  coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0) AS tokens_unknown,
  coalesce(sum(tokens_total) FILTER (billable = 'yes' AND usage_source = 'fallback'), 0) AS tokens_fallback,
  coalesce(sum(tokens_total) FILTER (cost_status = 'unpriced'), 0) AS unpriced_tokens,
  count(*) FILTER (cost_status = 'unpriced') AS unpriced_calls,
  count(*) FILTER (cost_status = 'at_risk') AS at_risk_calls,
  count(*) FILTER (cost_status = 'at_risk' AND cost_at_risk IS NULL) AS unpriced_at_risk_calls,
  count(*) AS events, sum(cost) AS cost, sum(cost_list) AS cost_list, sum(cost_at_risk) AS cost_at_risk
"""
# hash(): 64 bits of each id, several times faster; two of ten million ids collide with a chance of 3 in a million.


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a report is asked.

    Attributes:
        by: Keys to group by, from KEYS or "tag:KEY".
        only: Column (a key of KEYS but the times) → the values that count.
        timezone: IANA name; decides days, weeks and months.
        top: Keep the N dearest groups; None keeps all.
        descending: Latest first, where grouped by time.
    """

    by: Sequence[str] = ()
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    within: Range = field(default_factory=Range)
    timezone: str = "UTC"
    top: int | None = None
    descending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An answered question. Money is exact, None where nothing is known.

    Attributes:
        groups: One mapping per group: its keys, and the measures of `totals`.
        warnings: What is missing in the numbers, in sentences.
        incomplete: Whether something has no price or no outcome (`--strict`).
    """

    question: Question
    generated_at: datetime
    prices_as_of: str | None
    groups: Sequence[Mapping[str, Any]]
    totals: Mapping[str, Any]
    warnings: Sequence[str]
    incomplete: bool

    def envelope(self) -> dict[str, Any]:
        """The JSON document of every report."""
        within = self.question.within
        where = periods.zone(self.question.timezone)
        return {
            "schema_version": SCHEMA_VERSION,
            "generated_at": self.generated_at,
            "timezone": self.question.timezone,
            "since": within.since.astimezone(where) if within.since else None,
            "until": within.until.astimezone(where) if within.until else None,
            "currency": "USD",
            "prices_as_of": self.prices_as_of,
            "by": list(self.question.by),
            "filters": {key: list(values) for key, values in self.question.only.items()},
            "groups": [dict(group) for group in self.groups],
            "totals": dict(self.totals),
            "warnings": list(self.warnings),
        }


def report(connection: duckdb.DuckDBPyConnection, question: Question, *, now: datetime) -> Report:
    """Answer `question` from the ledger.

    Raises:
        WrongUsage: An unknown key, time zone, or a name that is nowhere in the ledger.
    """
    condition, values = where_clause(question)
    expressions, key_values = _keys(connection, question)
    names = [f"k{index}" for index in range(len(expressions))]
    selected = "".join(f"{expression} AS {name}, " for expression, name in zip(expressions, names, strict=True))
    groups = f"GROUP BY GROUPING SETS (({', '.join(names)}), ())" if names else ""
    grouping = f"grouping({names[0]})" if names else "1"
    cursor = connection.execute(
        f"WITH chosen AS (SELECT {selected}* FROM usage_event WHERE {condition}) "
        f"SELECT {''.join(name + ', ' for name in names)}{grouping} AS is_total, {_MEASURES} FROM chosen {groups}",
        [*key_values, *values],
    )
    header = [column[0] for column in cursor.description or ()]
    rows = [dict(zip(header, row, strict=True)) for row in cursor.fetchall()]
    if not any(row["events"] for row in rows):
        refuse_unknown_names(connection, question)
    totals = _measures(next(row for row in rows if row["is_total"]))
    found = [
        {key: _key(row[name]) for key, name in zip(question.by, names, strict=True)} | _measures(row)
        for row in rows
        if not row["is_total"]
    ]
    found.sort(key=lambda group: _rank(group, question))
    kept = found if question.top is None else found[: question.top]
    warnings = _warnings(connection, condition, values, totals)
    if len(kept) < len(found):
        warnings.append(f"{len(found) - len(kept)} more groups are in the total only (--top {question.top})")
    return Report(
        question=question,
        generated_at=now,
        prices_as_of=prices_as_of(connection, now),
        groups=[_published(group) for group in kept],
        totals=_published(totals),
        warnings=warnings,
        incomplete=bool(totals["unpriced_calls"] or totals["at_risk_calls"]),
    )


def where_clause(question: Question) -> tuple[str, list[Any]]:
    """SQL over usage_event, values bound, for the range and the filters of `question`.

    Raises:
        WrongUsage: An unknown filter.
    """
    parts: list[str] = ["true"]
    values: list[Any] = []
    if question.within.since is not None:
        parts.append("occurred_at >= make_timestamptz(?)")
        values.append(microseconds(question.within.since))
    if question.within.until is not None:
        parts.append("occurred_at < make_timestamptz(?)")
        values.append(microseconds(question.within.until))
    for key, wanted in question.only.items():
        if wanted:
            parts.append(f"{_COLUMNS[key]} IN ({', '.join('?' * len(wanted))})")
            values.extend(wanted)
    return " AND ".join(parts), values


def _keys(connection: duckdb.DuckDBPyConnection, question: Question) -> tuple[list[str], list[Any]]:
    """One SQL expression per key, and the values they bind."""
    expressions, values = [], []
    for key in question.by:
        if key.startswith("tag:") and len(key) > 4:
            expressions.append("json_extract_string(tags, ?)")
            values.append("/" + key[4:].replace("~", "~0").replace("/", "~1"))
        elif key in _UNITS:
            expressions.append(f"date_trunc('{key}', {_local_time(connection, question)})::DATE")
        elif key in _COLUMNS:
            expressions.append(_COLUMNS[key])
        else:
            close = difflib.get_close_matches(key, KEYS, n=1)
            raise WrongUsage(
                f"cannot group by {key!r}",
                hint=f"did you mean {close[0]}?" if close else f"one of {', '.join(KEYS)}, tag:KEY",
            )
    return expressions, values


def _local_time(connection: duckdb.DuckDBPyConnection, question: Question) -> str:
    """SQL for the local time of an event: UTC plus the offset of its stretch, which is whole seconds and ours."""
    where = periods.zone(question.timezone)
    ends = connection.execute(
        "SELECT epoch_us(min(occurred_at)), epoch_us(max(occurred_at)) FROM usage_event"
    ).fetchone()
    if ends is None or ends[0] is None:
        return "occurred_at::TIMESTAMP"
    since, until = question.within.since, question.within.until
    first = max(moment(ends[0]), since) if since else moment(ends[0])
    last = min(moment(ends[1]), until) if until else moment(ends[1])
    stretches = periods.offsets(where, first, max(first, last))
    if all(offset == timedelta() for _, offset in stretches):
        return "occurred_at::TIMESTAMP"
    cases = [
        f"WHEN epoch_us(occurred_at) < {microseconds(following[0])} THEN to_seconds({seconds(stretch[1])})"
        for stretch, following in itertools.pairwise(stretches)
    ]
    rest = f"to_seconds({seconds(stretches[-1][1])})"
    shift = f"CASE {' '.join(cases)} ELSE {rest} END" if cases else rest
    return f"occurred_at::TIMESTAMP + {shift}"


def seconds(offset: timedelta) -> int:
    """An offset to UTC as SQL takes it."""
    return int(offset.total_seconds())


def _measures(row: Mapping[str, Any]) -> dict[str, Any]:
    calls, tokens = row["calls"], int(row["tokens"])
    unknown_cost = row["cost"] is None and row["events"] > 0
    unknown_risk = row["cost_at_risk"] is None and row["at_risk_calls"] > 0
    return {
        "tokens": tokens,
        "tokens_unknown": int(row["tokens_unknown"]),
        "cost": None if unknown_cost else row["cost"] or Decimal(0),
        "cost_is_lower_bound": bool(row["unpriced_calls"]),
        "cost_list": row["cost_list"],
        "unpriced_tokens": int(row["unpriced_tokens"]),
        "cost_at_risk": None if unknown_risk else row["cost_at_risk"] or Decimal(0),
        "fallback_share": round(int(row["tokens_fallback"]) / tokens, 6) if tokens else None,
        "calls": calls,
        "operations": row["operations"],
        "errors": row["errors"],
        "success_rate": round((calls - row["errors"]) / calls, 6) if calls else None,
        "unpriced_calls": row["unpriced_calls"],
        "at_risk_calls": row["at_risk_calls"],
        "unpriced_at_risk_calls": row["unpriced_at_risk_calls"],
    }


_PUBLIC = ("unpriced_calls", "at_risk_calls", "unpriced_at_risk_calls")


def _published(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Without the counters that only the warnings need; integers beyond 2^53 as strings."""
    return {
        key: str(value) if isinstance(value, int) and value > _LARGEST_EXACT else value
        for key, value in measures.items()
        if key not in _PUBLIC
    }


def _key(value: Any) -> str | None:
    return None if value is None else str(value)


def _rank(group: Mapping[str, Any], question: Question) -> tuple[Any, ...]:
    """By time first, then dearest first, then by name."""
    times = []
    for key in question.by:
        if key in _UNITS:
            day = datetime.fromisoformat(group[key]).toordinal()
            times.append(-day if question.descending else day)
    names = tuple(str(group[key] or "") for key in question.by)
    if question.top is not None:
        times = []
    return (*times, group["cost"] is None, -(group["cost"] or 0), -group["tokens"], names)


def _warnings(
    connection: duckdb.DuckDBPyConnection, condition: str, values: list[Any], totals: Mapping[str, Any]
) -> list[str]:
    sentences = []
    if totals["unpriced_calls"]:
        sentences.extend(_unpriced(connection, condition, values))
    if totals["at_risk_calls"]:
        amount = totals["cost_at_risk"]
        upto = f"up to {plain(amount)} USD" if amount is not None else "an unknown amount"
        sentences.append(
            f"{upto} unconfirmed ({counted(totals['at_risk_calls'], 'call')} without an answer, "
            f"{totals['tokens_unknown']:,} tokens); not included in the cost"
        )
    if totals["unpriced_at_risk_calls"] and totals["cost_at_risk"] is not None:
        sentences.append(f"{counted(totals['unpriced_at_risk_calls'], 'unconfirmed call')} have no price")
    if totals["fallback_share"]:
        sentences.append(f"{totals['fallback_share']:.1%} of the tokens are estimated (~)")
    sentences.extend(_drifting(connection, condition, values))
    return sentences


def _unpriced(connection: duckdb.DuckDBPyConnection, condition: str, values: list[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT provider, model, sum(tokens_total)::BIGINT, count(*), "
        "count(*) FILTER (reason = 'native usage missing') FROM usage_event "
        f"WHERE {condition} AND cost_status = 'unpriced' GROUP BY provider, model ORDER BY 3 DESC, 1, 2",
        values,
    ).fetchall()
    sentences = []
    for provider, model, tokens, calls, uncounted in rows[:10]:
        if calls > uncounted:
            sentences.append(
                f"{tokens:,} tokens on {provider}:{model} have no price: the cost is a lower bound "
                f"(`embedctl prices set {provider}:{model} USD --from DAY`, then `usage reprice --apply`)"
            )
        if uncounted:
            sentences.append(f"{counted(uncounted, 'call')} to {provider}:{model} came without usage: not in the cost")
    if len(rows) > 10:
        sentences.append(f"{len(rows) - 10} more models have no price")
    return sentences


def _drifting(connection: duckdb.DuckDBPyConnection, condition: str, values: list[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT provider, model, sum(tokens_native) / sum(tokens_estimated)::DOUBLE - 1 AS drift FROM usage_event "
        f"WHERE {condition} AND entry_kind = 'usage' AND tokens_native IS NOT NULL AND tokens_estimated > 0 "
        "GROUP BY provider, model HAVING abs(drift) > ? ORDER BY 1, 2",
        [*values, DRIFT_THRESHOLD],
    ).fetchall()
    return [
        f"{provider}:{model} counts {drift:+.1%} against the tokenizer here (`embedctl usage drift`)"
        for provider, model, drift in rows
    ]


def refuse_unknown_names(connection: duckdb.DuckDBPyConnection, question: Question) -> None:
    """Tell an empty answer from a misspelt name.

    Raises:
        WrongUsage: A filter names what is nowhere in the ledger, though the ledger holds other names.
    """
    for key, wanted in question.only.items():
        rows = connection.execute(f"SELECT DISTINCT {_COLUMNS[key]} FROM usage_event").fetchall()
        known = sorted(str(row[0]) for row in rows if row[0] is not None)
        for name in wanted:
            if known and name not in known:
                close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                raise WrongUsage(
                    f"no usage of {key} {name!r} is in the ledger",
                    hint=f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known[:10])}",
                )


def prices_as_of(connection: duckdb.DuckDBPyConnection, now: datetime) -> str | None:
    """The day of the youngest price that holds; None without prices."""
    row = connection.execute(
        "SELECT CAST(max(valid_from)::TIMESTAMP::DATE AS VARCHAR) FROM price WHERE epoch_us(valid_from) <= ?",
        [microseconds(now)],
    ).fetchone()
    return row[0] if row else None


def plain(amount: Decimal) -> str:
    """An amount for people: six decimals, all of them where that would show zero for something."""
    rounded = amount.quantize(Decimal("0.000001"))
    return format(rounded if rounded or not amount else amount.normalize(), "f")


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 call, 2 calls."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

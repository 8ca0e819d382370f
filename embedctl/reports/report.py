"""Reports: usage grouped by anything, in any time zone, with what is not known said beside what is."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.ledger import periods, prices, spool
from embedctl.ledger.database import Connection
from embedctl.ledger.rating import microseconds, moment
from embedctl.records import JOURNAL_DAMAGED, NO_USAGE
from embedctl.reports.measures import measured
from embedctl.reports.query import KEYS, UNITS, ReportQuery, refuse_unknown_names, where_clause

__all__ = ["KEYS", "Report", "ReportQuery", "report"]

SCHEMA_VERSION = 1
DRIFT_THRESHOLD = 0.05
_LARGEST_EXACT = 1 << 53  # larger integers lose digits in other programs' JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An answered question. Money is exact, None where nothing is known.

    Attributes:
        groups: One mapping per group: its keys, and the measures of `totals`.
        warnings: What is missing in the numbers, in sentences.
        incomplete: Whether something has no price, an old one, or no outcome (`--strict`).
        pending: Batches under way, which are in no total; None when there are none.
    """

    question: ReportQuery
    generated_at: datetime
    prices_as_of: str | None
    groups: Sequence[Mapping[str, Any]]
    totals: Mapping[str, Any]
    warnings: Sequence[str]
    incomplete: bool
    pending: Mapping[str, Any] | None = None

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
            "currency": self.question.currency,
            "prices_as_of": self.prices_as_of,
            "by": list(self.question.by),
            "filters": {key: list(values) for key, values in self.question.only.items()},
            "groups": [dict(group) for group in self.groups],
            "totals": dict(self.totals),
            "warnings": list(self.warnings),
            **({} if self.pending is None else {"pending": dict(self.pending)}),
        }


def report(connection: Connection, question: ReportQuery, *, now: datetime, known_names: bool = True) -> Report:
    """Answer `question` from the ledger.

    Args:
        known_names: Refuse filters that name what is nowhere in the ledger: misspelt ones.

    Raises:
        WrongUsage: An unknown key, time zone, or a name that is nowhere in the ledger.
    """
    groups, totals = measured(connection, question)
    if known_names and not totals["events"]:
        refuse_unknown_names(connection, question)
    found = [dict(zip(question.by, map(_key, names), strict=True)) | measures for names, measures in groups]
    found.sort(key=lambda group: _rank(group, question))
    kept = found if question.top is None else found[: question.top]
    condition, values = where_clause(question)
    warnings = _warnings(connection, condition, values, totals, question.currency)
    if not totals["events"]:
        warnings += _elsewhere(connection, question)
    listed_on = prices_as_of(connection, now)
    stale_tokens = _stale_tokens(connection, condition, values, listed_on)
    if stale_tokens:
        warnings.append(
            f"{stale_tokens:,} tokens are priced by a list of {listed_on}, by then {prices.STALE_AFTER.days} days old "
            "or more (a newer embedctl has a newer one; `embedctl prices import` or `set` tells what holds)"
        )
    if bad := _bad_lines(connection, question.within):
        warnings.append(spool.bad_lines_note(bad))
    if len(kept) < len(found):
        warnings.append(f"{len(found) - len(kept)} more groups are in the total only (--top {question.top})")
    return Report(
        question=question,
        generated_at=now,
        prices_as_of=listed_on,
        groups=[_published(group) for group in kept],
        totals=_published(totals),
        warnings=warnings,
        incomplete=bool(totals["unpriced_calls"] or totals["at_risk_calls"] or stale_tokens),
    )


def _bad_lines(connection: Connection, within: periods.Range) -> int:
    """Spool lines that were no events, in files of segments that began in a range; of others nobody knows when."""
    since, until = (None if one is None else int(one.timestamp() * 1000) for one in (within.since, within.until))
    row = connection.execute(
        "SELECT sum(lines_bad) FROM (SELECT lines_bad, "
        "CASE WHEN regexp_full_match(spool_id, '[0-9a-f]{12}7[0-9a-f]{19}') "
        "THEN ('0x' || spool_id[:12])::BIGINT END AS began FROM spool_offset WHERE lines_bad > 0) "
        "WHERE began IS NULL OR ((? IS NULL OR began >= ?) AND (? IS NULL OR began < ?))",
        [since, since, until, until],
    ).fetchone()
    return int(row[0] or 0) if row else 0


_INTERNAL = ("unpriced_calls", "at_risk_calls", "unpriced_at_risk_calls", "events")


def _published(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Without the counters that only the warnings need; integers beyond 2^53 as strings."""
    return {
        key: str(value) if isinstance(value, int) and value > _LARGEST_EXACT else value
        for key, value in measures.items()
        if key not in _INTERNAL
    }


def _key(value: Any) -> str | None:
    return None if value is None else str(value)


def _rank(group: Mapping[str, Any], question: ReportQuery) -> tuple[Any, ...]:
    """By time first, then dearest first, then by name."""
    times = []
    for key in question.by:
        if key in UNITS:
            day = datetime.fromisoformat(group[key]).toordinal()
            times.append(-day if question.descending else day)
    names = tuple(str(group[key] or "") for key in question.by)
    if question.top is not None:
        times = []
    return (*times, group["cost"] is None, -(group["cost"] or 0), -group["tokens"], names)


def _warnings(
    connection: Connection, condition: str, values: list[Any], totals: Mapping[str, Any], currency: str
) -> list[str]:
    sentences = []
    if totals["unpriced_calls"]:
        sentences.extend(_unpriced(connection, condition, values))
    if totals["at_risk_calls"]:
        amount = totals["cost_at_risk"]
        upto = f"up to {plain(amount)} {currency}" if amount is not None else "an unknown amount"
        sentences.append(
            f"{upto} unconfirmed ({counted(totals['at_risk_calls'], 'call')} without an answer, "
            f"{totals['tokens_unknown']:,} tokens); not included in the cost"
        )
    if totals["unpriced_at_risk_calls"] and totals["cost_at_risk"] is not None:
        sentences.append(f"{counted(totals['unpriced_at_risk_calls'], 'unconfirmed call')} have no price")
    if totals["fallback_share"]:
        sentences.append(f"{totals['fallback_share']:.1%} of the tokens are estimated (~)")
    sentences.extend(_unread(connection, condition, values))
    sentences.extend(_drifting(connection, condition, values))
    return sentences


def _elsewhere(connection: Connection, question: ReportQuery) -> list[str]:
    """When there is usage, for who asked about a time that has none."""
    condition, values = where_clause(replace(question, within=periods.Range()))
    row = connection.execute(
        f"SELECT epoch_us(min(occurred_at)), epoch_us(max(occurred_at)) FROM usage_event WHERE {condition}", values
    ).fetchone()
    if row is None or row[0] is None:
        return []
    where = periods.zone(question.timezone)
    first, last = (moment(at).astimezone(where).date() for at in row)
    return [f"no usage in this period: the ledger's begins on {first} and ends on {last}"]


def _unread(connection: Connection, condition: str, values: list[Any]) -> list[str]:
    """What damaged journals of killed runs did not tell."""
    row = connection.execute(
        "SELECT count(*), coalesce(sum(content_bytes), 0)::BIGINT, coalesce(sum(input_count), 0)::BIGINT "
        f"FROM usage_event WHERE {condition} AND error_class = '{JOURNAL_DAMAGED}'",
        values,
    ).fetchone()
    journals, size, attempts = row or (0, 0, 0)
    if not journals:
        return []
    return [
        f"{size:,} bytes in {counted(journals, 'journal')} of killed runs could not be read: up to "
        f"{counted(attempts, 'attempt')} stood there, counted as unconfirmed"
    ]


def _unpriced(connection: Connection, condition: str, values: list[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT provider, model, sum(tokens_total)::BIGINT, count(*), "
        f"count(*) FILTER (starts_with(reason, '{NO_USAGE}')) FROM usage_event "
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


def _drifting(connection: Connection, condition: str, values: list[Any]) -> list[str]:
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


def prices_as_of(connection: Connection, now: datetime) -> str | None:
    """The day of the price list: of its youngest price that holds. A ledger without prices will take the catalog's."""
    row = connection.execute(
        "SELECT max(valid_from)::TIMESTAMP::DATE FROM price WHERE kind = 'list' AND epoch_us(valid_from) <= ?",
        [microseconds(now)],
    ).fetchone()
    day = row[0] if row and row[0] else prices.catalog_day(now)
    return day.isoformat() if day else None


def _stale_tokens(connection: Connection, condition: str, values: list[Any], listed_on: str | None) -> int:
    """Tokens at list prices, when the list was older than STALE_AFTER; what a contract says holds until it ends."""
    if listed_on is None:
        return 0
    end = datetime.fromisoformat(listed_on).replace(tzinfo=UTC) + prices.STALE_AFTER
    row = connection.execute(
        f"SELECT coalesce(sum(tokens_total), 0)::BIGINT FROM usage_event WHERE {condition} "
        "AND occurred_at >= make_timestamptz(?) AND cost_status = 'priced' AND price_id NOT IN "
        "(SELECT price_id FROM (FROM price UNION ALL SELECT * EXCLUDE (superseded_at) FROM price_superseded) "
        "WHERE kind = 'contract')",
        [*values, microseconds(end)],
    ).fetchone()
    return int(row[0]) if row else 0


def plain(amount: Decimal) -> str:
    """An amount for people: six decimals, all of them where that would show zero for something."""
    rounded = amount.quantize(Decimal("0.000001"))
    return format(rounded if rounded or not amount else amount.normalize(), "f")


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 call, 2 calls."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

"""Days far from the weekday pattern, and the job and workspace that made them."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Literal

from embedctl.dataclass import dataclass
from embedctl.ledger import periods
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.records import format_cents
from embedctl.reports import history, pattern
from embedctl.reports.history import DailyUse, Key, Measure
from embedctl.reports.pattern import Usual
from embedctl.reports.query import ReportQuery, keys, where_clause
from embedctl.reports.report import Report, counted, report

LAST_DAYS = 7
"""Days that are looked at when nobody says otherwise."""

_LEAST: Mapping[Measure, float] = {"cost": 0.01, "tokens": 1000}  # a difference that is worth a look
_MOST_CAUSES = 3
_WEEKS = pattern.HISTORY_DAYS // 7
_CAUSES = ("workspace", "job", "provider", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """A day of a group that is far from the pattern.

    Attributes:
        key: Its group, in the order of the question's keys.
        amount: USD, or tokens, as `measure` says.
        history_days: How many days before it say what is usual.
        causes: Workspace, job and model with what they used beside what they usually do, the largest difference first.
    """

    day: date
    key: Key
    measure: Measure
    amount: float
    usual: Usual
    history_days: int
    causes: Sequence[Mapping[str, Any]]

    @property
    def direction(self) -> Literal["high", "low"]:
        """Whether it is far above or far below."""
        return "high" if self.amount > self.usual.high else "low"

    def as_dict(self, by: Sequence[str]) -> dict[str, Any]:
        """For people and programs."""
        cause = self.causes[0] if self.causes else dict.fromkeys(_CAUSES)
        found = {"day": self.day.isoformat()} | dict(zip(by, self.key, strict=True))
        found |= {name: cause[name] for name in _CAUSES if name not in by}
        return found | {
            "measure": self.measure,
            "direction": self.direction,
            "amount": _shown(self.amount, self.measure),
            "expected": _shown(self.usual.expected, self.measure),
            "low": _shown(self.usual.low, self.measure),
            "high": _shown(self.usual.high, self.measure),
            "causes": [dict(each) for each in self.causes],
        }

    def sentence(self, by: Sequence[str]) -> str:
        """What happened, in words."""
        names = [f"{key} {name or 'none'}" for key, name in zip(by, self.key, strict=True)]
        what = f"{_told(self.amount, self.measure)} where {_told(self.usual.expected, self.measure)} is usual"
        made = [f"{key} {self.causes[0][key]}" for key in _CAUSES[:2] if self.causes and self.causes[0][key]]
        return f"{' '.join([str(self.day), *names])}: {what}" + (f" ({', '.join(made)})" if made else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomalies:
    """What a search for anomalous days found.

    Attributes:
        found: The latest day first.
        looked_at: Days that were compared with a pattern, over all groups.
        warnings: Of the report on the same range, and what was left out.
    """

    whole: Report
    by: Sequence[str]
    found: Sequence[Anomaly]
    looked_at: int
    warnings: Sequence[str]

    def envelope(self) -> dict[str, Any]:
        """The JSON document: a report's, whose groups are the anomalous days."""
        return self.whole.envelope() | {
            "by": list(self.by),
            "groups": [each.as_dict(self.by) for each in self.found],
            "days_compared": self.looked_at,
            "history_days": pattern.HISTORY_DAYS,
            "warnings": list(self.warnings),
        }


def anomalies(connection: Connection, question: ReportQuery, *, now: datetime, known_names: bool = True) -> Anomalies:
    """Look at each day of the question's range; the last LAST_DAYS when it has no beginning.

    Raises:
        WrongUsage: A key that has no days of its own, or what `report` refuses.
    """
    history.check_keys(question)
    where = periods.zone(question.timezone)
    today = now.astimezone(where).date()
    since, until = question.within.since, question.within.until
    first = since.astimezone(where).date() if since else today - timedelta(days=LAST_DAYS - 1)
    last = min(today, (until - timedelta(microseconds=1)).astimezone(where).date() if until else today)
    within = Range(periods.start_of(first, where), until)
    whole = report(connection, replace(question, by=(), within=within), now=now, known_names=known_names)
    recent = replace(question, within=_recent(first, last, where))
    uses = history.daily(connection, recent)
    found, looked_at, short = strange_days(connection, recent, uses, (first, last), today)
    warnings = list(whole.warnings)
    if short:
        warnings.append(
            f"{counted(short, 'day')} could not be compared: fewer than {pattern.LEAST_DAYS} days of history before"
        )
    return Anomalies(whole=whole, by=list(question.by), found=found, looked_at=looked_at, warnings=warnings)


def _recent(first: date, last: date, where: tzinfo) -> Range:
    """The days from `first` to `last`, and the history before them."""
    start = periods.start_of(first - timedelta(days=pattern.HISTORY_DAYS), where)
    return Range(start, periods.start_of(last + timedelta(days=1), where))


def strange_days(
    connection: Connection,
    recent: ReportQuery,
    uses: Mapping[Key, DailyUse],
    days: tuple[date, date],
    today: date,
) -> tuple[list[Anomaly], int, int]:
    """(days far from the pattern, the latest first; how many were compared; how many had too little history).

    Args:
        recent: Its range holds `days`, from the first to the last of them, and HISTORY_DAYS before.
        uses: What `history.daily` found for it.
    """
    first, last = days
    judged, looked_at, short = [], 0, 0
    for key, use in uses.items():
        measure = "tokens" if use.unpriced else use.measure()  # a price that begins is no jump in use
        for ahead in range(max(0, (last - first).days + 1)):
            day = first + timedelta(days=ahead)
            before = use.before(day, measure, pattern.HISTORY_DAYS)
            usual = pattern.usual(before)
            if usual is None:
                short += day >= use.first
                continue
            looked_at += 1
            amount = use.on(day, measure)
            low = amount < usual.low and day < today  # a day that is not over yet is not low
            if (low or amount > usual.high) and abs(amount - usual.expected) >= _LEAST[measure]:
                judged.append(
                    Anomaly(
                        day=day,
                        key=key,
                        measure=measure,
                        amount=amount,
                        usual=usual,
                        history_days=len(before),
                        causes=(),
                    )
                )
    found = _explained(connection, recent, judged) if judged else []
    found.sort(key=lambda each: (-each.day.toordinal(), tuple(name or "" for name in each.key)))
    return found, looked_at, short


def _explained(connection: Connection, recent: ReportQuery, judged: Sequence[Anomaly]) -> list[Anomaly]:
    """With the jobs, workspaces and models that differ most from what they usually use on such a day."""
    asked: dict[tuple[date, Measure, str], dict[Key, list[tuple[Any, ...]]]] = {}
    found = []
    for each in judged:
        question = (each.day, each.measure, each.direction)
        if question not in asked:
            asked[question] = _differences(connection, recent, *question)
        weeks = max(1, min(_WEEKS, each.history_days // 7))
        causes = [
            dict(zip(_CAUSES, names, strict=True))
            | {"amount": _shown(float(amount), each.measure), "usual": _shown(float(before) / weeks, each.measure)}
            for *names, amount, before in asked[question].get(each.key, ())
        ]
        found.append(replace(each, causes=causes))
    return found


def _differences(
    connection: Connection, recent: ReportQuery, day: date, measure: Measure, direction: str
) -> dict[Key, list[tuple[Any, ...]]]:
    """By group: workspace, job, provider, model, amount of the day, and that of such weekdays before, added up."""
    count = len(recent.by)
    names = [f"n{index}" for index in range(count + len(_CAUSES))]
    expressions, bound = keys(connection, replace(recent, by=[*recent.by, *_CAUSES, "day"]))
    condition, values = where_clause(recent)
    amount = "cost" if measure == "cost" else "CASE WHEN billable = 'yes' THEN tokens_total END"
    listed = ", ".join(f"{expression} AS {name}" for expression, name in zip(expressions, [*names, "day"], strict=True))
    difference = f"(now - before / {_WEEKS})" if direction == "high" else f"(before / {_WEEKS} - now)"
    order = f"{difference} DESC, {', '.join(names)}"
    rows = connection.execute(
        f"""
        WITH used AS (SELECT {listed}, {amount} AS used FROM usage_event WHERE {condition} AND entry_kind = 'usage'),
        summed AS (
          SELECT {", ".join(names)}, coalesce(sum(used) FILTER (day = ?), 0)::DOUBLE AS now,
            coalesce(sum(used) FILTER (day <> ?), 0)::DOUBLE AS before
          FROM used WHERE list_contains(?::DATE[], day) GROUP BY ALL)
        FROM summed WHERE {difference} > 0
        QUALIFY row_number() OVER (PARTITION BY {", ".join(names[:count]) or "1"} ORDER BY {order}) <= {_MOST_CAUSES}
        ORDER BY {order}
        """,
        [*bound, *values, day, day, [day - timedelta(days=7 * ago) for ago in range(_WEEKS + 1)]],
    ).fetchall()
    found: dict[Key, list[tuple[Any, ...]]] = {}
    for row in rows:
        key = tuple(None if name is None else str(name) for name in row[:count])
        found.setdefault(key, []).append(row[count:])
    return found


def _shown(amount: float, measure: Measure) -> Decimal | int:
    return Decimal(amount).quantize(Decimal("0.000001")) if measure == "cost" else round(amount)


def _told(amount: float, measure: Measure) -> str:
    return f"{format_cents(Decimal(amount))} USD" if measure == "cost" else f"{amount:,.0f} tokens"

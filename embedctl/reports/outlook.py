"""What a report that reaches until now says beside its numbers: the month's end, budgets, days far from the pattern."""

# ruff: noqa: S608 - conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from embedctl.dataclass import dataclass
from embedctl.ledger import budgets, periods
from embedctl.ledger.budgets import Budget
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.records import format_cents
from embedctl.reports import history, pattern
from embedctl.reports.anomalies import LAST_DAYS, strange_days
from embedctl.reports.forecast import budget_forecast, following, projection
from embedctl.reports.query import ReportQuery, where_clause

_MOST = 3  # days far from the pattern; the rest is `usage anomalies`


@dataclass(frozen=True, slots=True)
class Outlook:
    """Sentences beside a report.

    Attributes:
        month_end: None when there is too little history, or nothing costs anything.
        warnings: What somebody should look at.
    """

    month_end: str | None = None
    warnings: Sequence[str] = ()


def outlook(
    connection: Connection, question: ReportQuery, *, budgets_set: Iterable[Budget] = (), now: datetime
) -> Outlook:
    """For the workspaces, models and jobs of `question`; nothing when its range ends before now."""
    if question.within.until is not None and question.within.until < now:
        return Outlook()
    where = periods.zone(question.timezone)
    today = now.astimezone(where).date()
    first, end = today.replace(day=1), following(today)
    begin = today - timedelta(days=LAST_DAYS - 1)
    start = min(first, begin - timedelta(days=pattern.HISTORY_DAYS))
    plain = replace(question, by=(), top=None, within=Range(periods.start_of(start, where)))
    uses = history.daily(connection, plain)
    if question.within.since is not None:
        begin = max(begin, question.within.since.astimezone(where).date())
    strange, _, _ = strange_days(connection, plain, uses, (begin, today), today)
    warnings = [] if _narrow(question) else _budgets(connection, question, budgets_set, now)
    warnings += [f"far from the pattern: {each.sentence(())}" for each in strange[:_MOST]]
    if len(strange) > _MOST:
        warnings.append(f"{len(strange) - _MOST} more days are far from the pattern (`embedctl usage anomalies`)")
    comes = projection(uses.get(()), "cost", today, end)
    if comes is None or not comes.high:
        return Outlook(None, warnings)
    spent = _spent(connection, replace(plain, within=Range(periods.start_of(first, where))))
    about, low, high = (format_cents(spent + Decimal(each)) for each in (comes.expected, comes.low, comes.high))
    told = (
        f"{first:%Y-%m} so far {format_cents(spent)} USD; by {end - timedelta(days=1)} about {about} USD, "
        f"{low} to {high} (`embedctl usage forecast`)"
    )
    return Outlook(told, warnings)


def _narrow(question: ReportQuery) -> bool:
    """Whether budgets, which are of whole workspaces, are beside the question."""
    return any(names for key, names in question.only.items() if key != "workspace")


def _budgets(connection: Connection, question: ReportQuery, budgets_set: Iterable[Budget], now: datetime) -> list[str]:
    wanted = question.only.get("workspace")
    return [
        each.sentence()
        for standing in budgets.standings(connection, budgets_set, now=now)
        if not wanted or standing.budget.workspace in wanted
        if (each := budget_forecast(connection, standing, now=now)).alarming
    ]


def _spent(connection: Connection, question: ReportQuery) -> Decimal:
    """Known cost, corrections and all."""
    condition, values = where_clause(question)
    row = connection.execute(f"SELECT coalesce(sum(cost), 0) FROM usage_event WHERE {condition}", values).fetchone()
    return Decimal(row[0]) if row else Decimal(0)

"""What a report that reaches until now says beside its numbers: the month's end, budgets, days far from the pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from embedctl.ledger import periods
from embedctl.ledger.budgets import Budget
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.records import format_cents
from embedctl.reports.anomalies import LAST_DAYS, anomalies
from embedctl.reports.forecast import forecast
from embedctl.reports.query import ReportQuery

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
    plain = replace(question, by=(), top=None)
    month = forecast(connection, plain, budgets_set=budgets_set, now=now, known_names=False)
    narrow = any(names for key, names in question.only.items() if key != "workspace")
    warnings = [] if narrow else [each.sentence() for each in month.budgets if each.alarming]
    totals, end = month.totals, month.end - timedelta(days=1)
    told = None
    if totals["cost_projected"]:
        told = (
            f"{month.first:%Y-%m} so far {format_cents(totals['cost'])} USD; by {end} about "
            f"{format_cents(totals['cost_projected'])} USD, {format_cents(totals['cost_low'])} to "
            f"{format_cents(totals['cost_high'])} (`embedctl usage forecast`)"
        )
    where = periods.zone(question.timezone)
    first = periods.start_of(month.today - timedelta(days=LAST_DAYS - 1), where)
    since = max(first, question.within.since) if question.within.since else first
    strange = anomalies(connection, replace(plain, within=Range(since)), now=now, known_names=False).found
    warnings += [f"far from the pattern: {each.sentence(())}" for each in strange[:_MOST]]
    if len(strange) > _MOST:
        warnings.append(f"{len(strange) - _MOST} more days are far from the pattern (`embedctl usage anomalies`)")
    return Outlook(told, warnings)

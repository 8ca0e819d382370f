"""Where the month ends: what is spent so far, what the weekday pattern adds, and which budgets will not hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from embedctl.dataclass import dataclass
from embedctl.ledger import budgets, periods
from embedctl.ledger.budgets import Budget, BudgetStatus
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.records import format_cents
from embedctl.reports import history, pattern
from embedctl.reports.history import DailyUse, Key, Measure
from embedctl.reports.measures import measured
from embedctl.reports.pattern import Projection
from embedctl.reports.report import Report, ReportQuery, counted, report

Outlook = Literal["passed", "will_pass", "may_pass", "within", "unknown"]
_MICRO = Decimal("0.000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetForecast:
    """A budget and where its period ends.

    Attributes:
        projected: Spent, at risk and to come; None when there is too little history. `low` and `high`: its interval.
        passes_on: The local day on which the amount is expected to be passed; None when it is not, or already is.
    """

    standing: BudgetStatus
    projected: Decimal | None = None
    low: Decimal | None = None
    high: Decimal | None = None
    passes_on: date | None = None

    @property
    def outlook(self) -> Outlook:
        """Whether it is passed, will be, may be, holds, or nobody knows."""
        amount = self.standing.budget.amount
        if self.standing.state == "exceeded":
            return "passed"
        if self.projected is None or self.high is None:
            return "unknown"
        if self.projected >= amount:
            return "will_pass"
        return "may_pass" if self.high >= amount else "within"

    @property
    def alarming(self) -> bool:
        """Whether somebody should look."""
        return self.outlook in ("passed", "will_pass", "may_pass")

    @property
    def fails(self) -> bool:
        """Whether it is passed or will be."""
        return self.outlook in ("passed", "will_pass")

    def as_dict(self) -> dict[str, Any]:
        """For people and programs."""
        return self.standing.as_dict() | {
            "projected": self.projected,
            "low": self.low,
            "high": self.high,
            "outlook": self.outlook,
            "passes_on": self.passes_on,
        }

    def sentence(self) -> str:
        """What it comes to, in words."""
        budget = self.standing.budget
        name = f"the budget of {budget.workspace} ({format_cents(budget.amount)} USD a {budget.period})"
        if self.outlook == "passed":
            return f"{name} is used up"
        if self.projected is None or self.low is None or self.high is None:
            return f"{name}: too little history to say whether it holds"
        end = f"about {format_cents(self.projected)} USD, {format_cents(self.low)} to {format_cents(self.high)}"
        if self.outlook == "will_pass":
            return f"{name} will be passed on {self.passes_on}: {end}"
        return f"{name} {'may be passed' if self.outlook == 'may_pass' else 'holds'}: {end}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A month and where it ends.

    Attributes:
        month: The report of the month so far; its `within` is the whole month.
        groups: Keys, what is spent so far and what is projected, the dearest first.
        totals: The same over all.
        total_use: Days of all together: what curves are drawn from; None without any usage.
        group_uses: The same, by group.
        warnings: Of the report, and what this adds.
    """

    month: Report
    today: date
    groups: Sequence[Mapping[str, Any]]
    totals: Mapping[str, Any]
    total_use: DailyUse | None
    group_uses: Mapping[Key, DailyUse]
    budgets: Sequence[BudgetForecast]
    warnings: Sequence[str]

    @property
    def first(self) -> date:
        """The month's first day."""
        return self.today.replace(day=1)

    @property
    def end(self) -> date:
        """The first day of the next month."""
        return following(self.today)

    def envelope(self) -> dict[str, Any]:
        """The JSON document: a report's, with projections and budgets."""
        return self.month.envelope() | {
            "groups": [dict(group) for group in self.groups],
            "totals": dict(self.totals),
            "confidence": pattern.CONFIDENCE,
            "history_days": pattern.HISTORY_DAYS,
            "budgets": [each.as_dict() for each in self.budgets],
            "warnings": list(self.warnings),
        }


def following(day: date) -> date:
    """The first day of the month after that of `day`."""
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def forecast(
    connection: Connection,
    question: ReportQuery,
    *,
    budgets_set: Iterable[Budget] = (),
    now: datetime,
    known_names: bool = True,
) -> Forecast:
    """Answer for the month that `now` is in, in the question's time zone.

    Args:
        question: Keys that are no times, filters and time zone; its range does not count.
        budgets_set: Those of the settings.

    Raises:
        WrongUsage: A key that has no days of its own, or what `report` refuses.
    """
    history.check_keys(question)
    where = periods.zone(question.timezone)
    today = now.astimezone(where).date()
    first, end = today.replace(day=1), following(today)
    before = (first - timedelta(days=1)).replace(day=1)
    this_month = Range(periods.start_of(first, where), periods.start_of(end, where))
    month = report(connection, replace(question, within=this_month), now=now, known_names=known_names)
    last_month = Range(periods.start_of(before, where), this_month.since)
    last_groups, last_total = measured(connection, replace(question, within=last_month))
    since = periods.start_of(min(before, today - timedelta(days=pattern.HISTORY_DAYS)), where)
    recent = replace(question, within=Range(since, this_month.until))
    uses = {key: use for key, use in history.daily(connection, recent).items() if use.tokens or use.cost}
    whole = history.daily(connection, replace(recent, by=())).get(()) if question.by else uses.get(())
    so_far = {tuple(group[key] for key in question.by): group for group in month.groups}
    last = {tuple(None if name is None else str(name) for name in names): found for names, found in last_groups}
    groups = [
        dict(zip(question.by, key, strict=True)) | _outcome(so_far.get(key), last.get(key), uses.get(key), today, end)
        for key in (dict.fromkeys([*so_far, *uses]) if question.by else ())
    ]
    groups.sort(key=lambda each: (-(each["cost_projected"] or each["cost"] or 0), -int(each["tokens"]), str(each)))
    if question.top is not None:
        groups = groups[: question.top]
    totals = dict(month.totals) | _outcome(month.totals, last_total, whole, today, end)
    standings = [
        budget_forecast(connection, standing, now=now)
        for standing in budgets.standings(connection, budgets_set, now=now)
        if not question.only.get("workspace") or standing.budget.workspace in question.only["workspace"]
    ]
    warnings = [*month.warnings, *(each.sentence() for each in standings if each.alarming)]
    if totals["too_little_history"]:
        days = counted(totals["history_days"], "whole day")
        warnings.append(f"too little history for a projection: {days}, {pattern.LEAST_DAYS} are needed")
    return Forecast(
        month=month,
        today=today,
        groups=groups,
        totals=totals,
        total_use=whole,
        group_uses=uses,
        budgets=standings,
        warnings=warnings,
    )


def projection(use: DailyUse | None, measure: Measure, today: date, end: date) -> Projection | None:
    """What comes from now until the day before `end`; None when there is too little history."""
    if use is None:
        return None
    before = use.before(today, measure, pattern.HISTORY_DAYS)
    return pattern.project(before, (end - today).days, use.on(today, measure))


def budget_forecast(connection: Connection, standing: BudgetStatus, *, now: datetime) -> BudgetForecast:
    """Where the period of a budget ends, in the budget's own time zone."""
    budget = standing.budget
    where = periods.zone(budget.timezone)
    today = now.astimezone(where).date()
    since = periods.start_of(today - timedelta(days=pattern.HISTORY_DAYS), where)
    question = ReportQuery(only={"workspace": [budget.workspace]}, within=Range(since, None), timezone=budget.timezone)
    assert standing.spent.within.until is not None  # noqa: S101 - a budget's period has an end
    end = standing.spent.within.until.astimezone(where).date()
    comes = projection(history.daily(connection, question).get(()), "cost", today, end)
    if comes is None:
        return BudgetForecast(standing=standing)
    spent = standing.spent.cost + standing.spent.at_risk
    passes_on, running = None, float(spent)
    for ahead, amount in enumerate(comes.daily):
        running += amount
        if running >= float(budget.amount):
            passes_on = today + timedelta(days=ahead)
            break
    projected, low, high = (spent + _money(amount) for amount in (comes.expected, comes.low, comes.high))
    if projected >= budget.amount and passes_on is None:
        passes_on = end - timedelta(days=1)  # by less than a float can tell
    used_up = standing.state == "exceeded"
    return BudgetForecast(
        standing=standing,
        projected=projected,
        low=low,
        high=high,
        passes_on=passes_on if projected >= budget.amount and not used_up else None,
    )


def _outcome(
    so_far: Mapping[str, Any] | None, last: Mapping[str, Any] | None, use: DailyUse | None, today: date, end: date
) -> dict[str, Any]:
    """So far, last month, and what it comes to; None where nobody knows."""
    so_far, last = so_far or _NOTHING, last or _NOTHING
    cost, tokens = projection(use, "cost", today, end), projection(use, "tokens", today, end)
    spent, used = so_far["cost"], int(so_far["tokens"])
    money = None if cost is None or spent is None else cost
    days = len(use.before(today, use.measure(), pattern.HISTORY_DAYS)) if use else 0
    return {
        "tokens": so_far["tokens"],
        "tokens_last_month": last["tokens"],
        "tokens_projected": None if tokens is None else used + round(tokens.expected),
        "tokens_low": None if tokens is None else used + round(tokens.low),
        "tokens_high": None if tokens is None else used + round(tokens.high),
        "cost": spent,
        "cost_is_lower_bound": so_far["cost_is_lower_bound"],
        "cost_at_risk": so_far["cost_at_risk"],
        "cost_last_month": last["cost"],
        "cost_projected": None if money is None else spent + _money(money.expected),
        "cost_low": None if money is None else spent + _money(money.low),
        "cost_high": None if money is None else spent + _money(money.high),
        "history_days": days,
        "too_little_history": days < pattern.LEAST_DAYS,
    }


_NOTHING: Mapping[str, Any] = {
    "tokens": 0,
    "cost": Decimal(0),
    "cost_is_lower_bound": False,
    "cost_at_risk": Decimal(0),
}


def _money(amount: float) -> Decimal:
    return Decimal(amount).quantize(_MICRO)

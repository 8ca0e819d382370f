"""What the service's dashboard shows of the ledger: today, this month, the last days, who and what, budgets."""

# ruff: noqa: S608 - conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.ledger import budgets, periods
from embedctl.ledger.budgets import Budget, BudgetStatus
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.reports.measures import measured
from embedctl.reports.page_content import shown_name
from embedctl.reports.query import ReportQuery, where_clause
from embedctl.reports.report import Report, report

DAYS = 30
MOST_SERIES = 9
"""Names that bars tell apart; the rest is one more."""

MOST_ROWS = 40
OTHERS = "others"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOfKey:
    """What a key of the service may spend."""

    key: str
    name: str
    budget: Budget


def dashboard(
    connection: Connection,
    workspace: str | None,
    *,
    budgets_set: Iterable[Budget],
    keys: Sequence[BudgetOfKey],
    timezone: str,
    now: datetime,
) -> dict[str, Any]:
    """Everything, as JSON; money is exact, None where nothing is known.

    Args:
        workspace: Only this one's; None: everybody's.
        budgets_set: Those of the settings.

    Raises:
        WrongUsage: There is no such time zone.
    """
    where = periods.zone(timezone)
    today = now.astimezone(where).date()
    only = {} if workspace is None else {"workspace": [workspace]}
    whole = ReportQuery(only=only, timezone=timezone)
    day = replace(whole, within=Range(periods.start_of(today, where), None))
    month = replace(whole, within=Range(periods.start_of(today.replace(day=1), where), None))
    first = today - timedelta(days=DAYS - 1)
    days = [first + timedelta(days=ahead) for ahead in range(DAYS)]
    lately = replace(whole, within=Range(periods.start_of(first, where), None))
    stacks = {"model": ["provider", "model"]} | ({"workspace": ["workspace"]} if workspace is None else {})
    this_month = report(connection, month, now=now, known_names=False)
    return {
        "timezone": timezone,
        "today": today,
        "month": f"{today:%Y-%m}",
        "of_today": _totals(connection, report(connection, day, now=now, known_names=False)),
        "of_month": _totals(connection, this_month),
        "days": days,
        "by_day": {name: _by_day(connection, replace(lately, by=["day", *by]), days) for name, by in stacks.items()},
        "of_month_by": {name: _rows(connection, replace(month, by=by)) for name, by in stacks.items()},
        "budgets": [
            *(_budget(each) for each in budgets.standings(connection, budgets_set, workspace=workspace, now=now)),
            *(_budget_of_key(connection, each, now) for each in keys),
        ],
        "warnings": [_shown_sentence(line) for line in this_month.warnings],
    }


def _shown_sentence(sentence: str) -> str:
    """A sentence in which a foreign name may stand."""
    from embedctl import terminal

    return terminal.safe(sentence)[:500]


def _totals(connection: Connection, found: Report) -> dict[str, Any]:
    """The measures of a report, and what only a service has beside them.

    Latencies are of providers' good answers, in milliseconds; None without any.
    """
    condition, values = where_clause(found.question)
    good = "entry_kind = 'usage' AND status = 'ok' AND meter <> 'idle_microhour'"
    row = connection.execute(
        "SELECT coalesce(sum(input_count) FILTER (entry_kind = 'cache_hit'), 0)::BIGINT, "
        f"coalesce(sum(input_count) FILTER ({good}), 0)::BIGINT, "
        f"quantile_cont(duration_ms, 0.5) FILTER ({good}), quantile_cont(duration_ms, 0.95) FILTER ({good}) "
        f"FROM usage_event WHERE {condition}",
        values,
    ).fetchone()
    hits, bought, median, most = row or (0, 0, None, None)
    return {
        **found.totals,
        "cache_hits": hits,
        "texts_bought": bought,
        "latency_ms": {"median": median, "p95": most},
    }


def _by_day(connection: Connection, question: ReportQuery, days: Sequence[date]) -> list[dict[str, Any]]:
    """A series for each of the dearest names, and one for the rest: what each day's bar is made of."""
    place = {day: index for index, day in enumerate(days)}
    series: dict[str, dict[str, Any]] = {}
    for names, group in measured(connection, question)[0]:
        name = _name(names[1:])
        found = series.setdefault(name, _series(name, len(days)))
        at = place.get(names[0])
        if at is None:
            continue
        tokens = int(group["tokens"])
        found["cost"][at] += group["cost"] or Decimal(0)
        found["tokens"][at] += tokens
        found["estimated"][at] += round(tokens * (group["fallback_share"] or 0))
        found["calls"][at] += group["calls"]
        found["errors"][at] += group["errors"]
        found["lower"] |= bool(group["cost_is_lower_bound"]) or group["cost"] is None
    ranked = sorted(series.values(), key=lambda one: (-sum(one["cost"]), -sum(one["tokens"]), str(one["name"])))
    if len(ranked) <= MOST_SERIES + 1:
        return ranked
    rest = _series(OTHERS, len(days))
    for one in ranked[MOST_SERIES:]:
        for measure in ("cost", "tokens", "estimated", "calls", "errors"):
            rest[measure] = [left + right for left, right in zip(rest[measure], one[measure], strict=True)]
        rest["lower"] |= one["lower"]
    return [*ranked[:MOST_SERIES], rest]


def _series(name: str, length: int) -> dict[str, Any]:
    counts = {measure: [0] * length for measure in ("tokens", "estimated", "calls", "errors")}
    return {"name": name, "cost": [Decimal(0)] * length, **counts, "lower": False}


def _rows(connection: Connection, question: ReportQuery) -> dict[str, Any]:
    groups, _ = measured(connection, question)
    groups.sort(key=lambda group: (-(group[1]["cost"] or 0), -int(group[1]["tokens"]), str(group[0])))
    measures = ("tokens", "estimated_share", "cost", "cost_is_lower_bound", "cost_at_risk", "calls", "errors")
    rows = [
        {"name": _name(names), **{measure: group[measure] for measure in measures}}
        for names, group in groups[:MOST_ROWS]
    ]
    return {"rows": rows, "left": len(groups) - len(rows)}


def _name(names: Sequence[Any]) -> str:
    return shown_name(":".join(map(str, names)))


def _budget(each: BudgetStatus) -> dict[str, Any]:
    found = each.as_dict()
    return found | {"workspace": shown_name(found["workspace"]), "key": None, "key_name": None}


def _budget_of_key(connection: Connection, each: BudgetOfKey, now: datetime) -> dict[str, Any]:
    budget = each.budget
    spent = budgets.spent(connection, budget.workspace, budget.period, timezone=budget.timezone, now=now, key=each.key)
    return _budget(BudgetStatus(budget=budget, spent=spent)) | {"key": each.key, "key_name": shown_name(each.name)}

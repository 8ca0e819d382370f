"""What a workspace may spend, and what it has spent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import duckdb

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.ledger import periods
from embedctl.ledger.periods import Range, Unit
from embedctl.ledger.rating import microseconds

Action = Literal["warn", "block"]
State = Literal["ok", "warn", "exceeded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """USD per whole day, week or month in `timezone`; "block" stops runs, "warn" does not."""

    workspace: str
    amount: Decimal
    period: Unit = "month"
    timezone: str = "UTC"
    action: Action = "block"
    warn_ratio: Decimal = Decimal("0.8")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodCost:
    """USD of a workspace in a period.

    Attributes:
        cost: Confirmed.
        at_risk: Perhaps billed beside it.
        unpriced_calls: Calls whose cost nobody knows: `cost` is a lower bound.
    """

    within: Range
    cost: Decimal
    at_risk: Decimal
    unpriced_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """A budget and how it stands. What is at risk counts as spent."""

    budget: Budget
    spent: PeriodCost

    @property
    def used_ratio(self) -> Decimal:
        """Spent and at risk, of the amount."""
        if not self.budget.amount:
            return Decimal(1)
        return (self.spent.cost + self.spent.at_risk) / self.budget.amount

    @property
    def remaining(self) -> Decimal:
        """USD left; 0 when none."""
        return max(Decimal(0), self.budget.amount - self.spent.cost - self.spent.at_risk)

    @property
    def state(self) -> State:
        """Whether it is used up, past its warning line, or neither."""
        if self.used_ratio >= 1:
            return "exceeded"
        return "warn" if self.used_ratio >= self.budget.warn_ratio else "ok"

    def as_dict(self) -> dict[str, Any]:
        """For people and programs."""
        budget = asdict(self.budget)
        return budget | {
            "since": self.spent.within.since,
            "until": self.spent.within.until,
            "spent": self.spent.cost,
            "at_risk": self.spent.at_risk,
            "remaining": self.remaining,
            "used_ratio": round(float(self.used_ratio), 4),
            "unpriced_calls": self.spent.unpriced_calls,
            "state": self.state,
        }


def spent(
    connection: duckdb.DuckDBPyConnection,
    workspace: str,
    period: Unit,
    *,
    timezone: str = "UTC",
    now: datetime,
    without_runs: Sequence[str] = (),
    key: str | None = None,
) -> PeriodCost:
    """What `workspace` spent in the period that `now` is in.

    Args:
        without_runs: Ids of runs whose spending is left out.
        key: Only what came through a server with this key: a tag of its events.
    """
    within = periods.current(period, periods.zone(timezone), now)
    assert within.since is not None and within.until is not None  # noqa: S101, PT018
    row = connection.execute(
        "SELECT coalesce(sum(cost), 0), coalesce(sum(cost_at_risk), 0), count(*) FILTER (cost_status = 'unpriced') "
        "FROM usage_event WHERE workspace_id = ? AND occurred_at >= make_timestamptz(?) "
        "AND occurred_at < make_timestamptz(?) AND NOT coalesce(list_contains(?::UUID[], run_id), false) "
        "AND (? IS NULL OR json_extract_string(tags, '$.key') = ?)",
        [workspace, microseconds(within.since), microseconds(within.until), list(without_runs), key, key],
    ).fetchone()
    cost, at_risk, unpriced = row or (Decimal(0), Decimal(0), 0)
    return PeriodCost(within=within, cost=cost, at_risk=at_risk, unpriced_calls=unpriced)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """What a job's runs came to, all of them.

    Attributes:
        cost: USD, confirmed; None when something was billed and nothing of it has a price.
        at_risk: USD, perhaps billed beside it.
    """

    tokens: int
    cost: Decimal | None
    at_risk: Decimal


def spent_by_job(connection: duckdb.DuckDBPyConnection, job: str) -> JobCost:
    """What all runs of a job spent."""
    row = connection.execute(
        "SELECT coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0)::BIGINT, sum(cost), "
        "coalesce(sum(cost_at_risk), 0), count(*) FILTER (cost_status = 'unpriced') FROM usage_event WHERE job_id = ?",
        [job],
    ).fetchone()
    tokens, cost, at_risk, unpriced = row or (0, None, Decimal(0), 0)
    return JobCost(tokens=tokens, cost=Decimal(0) if cost is None and not unpriced else cost, at_risk=at_risk)


def stored(connection: duckdb.DuckDBPyConnection) -> list[Budget]:
    """Budgets set by `usage budget set`."""
    rows = connection.execute(
        "SELECT workspace_id, amount, period, timezone, action, warn_ratio FROM budget ORDER BY ALL"
    ).fetchall()
    return [
        Budget(workspace=row[0], amount=row[1], period=row[2], timezone=row[3], action=row[4], warn_ratio=row[5])
        for row in rows
    ]


def workspaces(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """All that spent anything, or have a budget here."""
    rows = connection.execute("SELECT workspace_id FROM usage_event UNION SELECT workspace_id FROM budget ORDER BY ALL")
    return [row[0] for row in rows.fetchall()]


def configured(workspaces: Mapping[str, Any]) -> list[Budget]:
    """Budgets of the settings' `[workspaces.NAME]`; `workspaces` is `Settings.workspaces`."""
    return [
        Budget(
            workspace=name,
            amount=entry.budget.amount,
            period=entry.budget.period,
            timezone=entry.budget.timezone,
            action=entry.budget.action,
            warn_ratio=entry.budget.warn_ratio,
        )
        for name, entry in workspaces.items()
        if entry.budget is not None
    ]


def put(connection: duckdb.DuckDBPyConnection, budget: Budget) -> None:
    """Set a workspace's budget for its period, in place of the one before.

    Raises:
        WrongUsage: Negative amount, warning line outside (0, 1], or an unknown time zone.
    """
    if budget.amount < 0 or not 0 < budget.warn_ratio <= 1:
        raise WrongUsage("a budget is an amount from 0 on, with a warning line above 0 and up to 1")
    periods.zone(budget.timezone)
    remove(connection, budget.workspace, budget.period)
    connection.execute(
        "INSERT INTO budget VALUES (?, ?, ?, ?, 'USD', ?, ?)",
        [budget.workspace, budget.period, budget.timezone, budget.amount, budget.action, budget.warn_ratio],
    )


def remove(connection: duckdb.DuckDBPyConnection, workspace: str, period: Unit) -> bool:
    """Forget a budget; whether there was one."""
    row = connection.execute("DELETE FROM budget WHERE workspace_id = ? AND period = ?", [workspace, period]).fetchone()
    return bool(row and row[0])


def standings(
    connection: duckdb.DuckDBPyConnection,
    extra: Iterable[Budget] = (),
    *,
    workspace: str | None = None,
    now: datetime,
    without_runs: Sequence[str] = (),
) -> Sequence[BudgetStatus]:
    """How every budget stands: the ledger's own, and `extra` from the settings.

    Args:
        workspace: Only this one's.
        without_runs: See `spent`.
    """
    budgets = [b for b in (*stored(connection), *extra) if workspace is None or b.workspace == workspace]
    return [
        BudgetStatus(
            budget=b,
            spent=spent(connection, b.workspace, b.period, timezone=b.timezone, now=now, without_runs=without_runs),
        )
        for b in budgets
    ]


def remaining(standings: Iterable[BudgetStatus]) -> Decimal | None:
    """USD that a run may spend under all blocking budgets; None when none blocks."""
    left = [standing.remaining for standing in standings if standing.budget.action == "block"]
    return min(left, default=None)

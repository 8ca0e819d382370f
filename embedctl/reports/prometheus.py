"""Numbers for Prometheus, as a file that node_exporter's textfile collector reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import OutputRefused
from embedctl.ledger import budgets, spool
from embedctl.ledger.budgets import Budget
from embedctl.ledger.database import Connection
from embedctl.ledger.paths import LedgerPaths
from embedctl.reports import anomalies, forecast, report
from embedctl.reports.prometheus_queries import QUERIES
from embedctl.reports.query import ReportQuery
from embedctl.storage.sqlite_cache import CacheStats
from embedctl.telemetry.metric_names import METRICS
from embedctl.telemetry.prometheus import Metric, Sample, count_cache
from embedctl.telemetry.prometheus import circuits as circuit_states
from embedctl.telemetry.prometheus import text as text

FILE_NAME = "embedctl_usage.prom"


@dataclass(frozen=True, slots=True)
class Ended:
    """The last end of a job's run.

    Attributes:
        succeeded_at: Of the last run with exit code 0; None when there was none.
        exit_code: Of the last run that ended, well or not.
    """

    job: str
    succeeded_at: datetime | None
    exit_code: int


def collect(
    connection: Connection,
    paths: LedgerPaths,
    *,
    budgets_set: Iterable[Budget] = (),
    jobs: Iterable[Ended] = (),
    circuits: Iterable[Mapping[str, Any]] = (),
    counts: Sequence[tuple[str, CacheStats]] = (),
    by_workspace: bool = True,
    now: datetime,
) -> list[Metric]:
    """Every metric of the ledger and of what runs.

    Args:
        budgets_set: Those of the settings.
        circuits: `provider`, `model` and `state` of every circuit that is not closed now.
        counts: What was looked up in stores of token counts; they begin anew with `cache clear`, as a counter may.
    """
    workspace = "workspace_id" if by_workspace else "'*'"
    found = []
    for name, sql in QUERIES:
        labels = METRICS[name].labels
        rows = connection.execute(sql.format(w=workspace)).fetchall()
        samples = sorted(
            ((dict(zip(labels, map(str, row[:-1]), strict=True)), row[-1]) for row in rows),
            key=lambda sample: tuple(sample[0].values()),
        )
        found.append(Metric(name, samples))
    waiting = sum(map(storage.size_of, spool.pending(paths.spool)))
    found.append(Metric("embedctl_ledger_spool_pending_bytes", [({}, waiting)]))
    found.append(_prices_age(connection, now))
    budgets_set = list(budgets_set)
    used: list[Sample] = [
        ({"workspace": each.budget.workspace, "period": each.budget.period}, float(each.used_ratio))
        for each in budgets.standings(connection, budgets_set, now=now)
    ]
    found.append(Metric("embedctl_budget_used_ratio", used))
    found += _pattern_metrics(connection, budgets_set, by_workspace=by_workspace, now=now)
    return [*found, *_job_metrics(jobs), _circuit_metric(connection, circuits), *count_cache(counts)]


def _pattern_metrics(
    connection: Connection, budgets_set: Iterable[Budget], *, by_workspace: bool, now: datetime
) -> list[Metric]:
    """Where the month ends, and how many days were far from the pattern; nothing where history is too short."""
    question = ReportQuery(by=["workspace"] if by_workspace else [])
    month = forecast.forecast(connection, question, budgets_set=budgets_set, now=now)
    groups = [
        ({"workspace": str(group.get("workspace", "*"))}, group)
        for group in (month.groups if by_workspace else [month.totals])
    ]
    found = [
        Metric(
            f"embedctl_usage_month_projected{end}_usd",
            [(labels, group[f"cost{end or '_projected'}"]) for labels, group in groups],
        )
        for end in ("", "_low", "_high")
    ]
    ratios: list[Sample] = [
        (
            {"workspace": each.standing.budget.workspace, "period": each.standing.budget.period},
            None
            if each.projected is None or not each.standing.budget.amount
            else float(each.projected / each.standing.budget.amount),
        )
        for each in month.budgets
    ]
    found.append(Metric("embedctl_budget_projected_ratio", ratios))
    days = Counter(
        each.key[0] if each.key else "*" for each in anomalies.anomalies(connection, question, now=now).found
    )
    strange: list[Sample] = [(labels, days[labels["workspace"]]) for labels, _ in groups]
    return [*found, Metric("embedctl_usage_anomalies", strange)]


def _prices_age(connection: Connection, now: datetime) -> Metric:
    day = report.prices_as_of(connection, now)
    age = None if day is None else (now - datetime.fromisoformat(day).replace(tzinfo=UTC)).total_seconds()
    return Metric("embedctl_prices_age_seconds", [({}, age)])


def _job_metrics(jobs: Iterable[Ended]) -> list[Metric]:
    ended = sorted(jobs, key=lambda each: each.job)
    succeeded: list[Sample] = [
        ({"job": each.job}, each.succeeded_at.timestamp() if each.succeeded_at else None) for each in ended
    ]
    codes: list[Sample] = [({"job": each.job}, each.exit_code) for each in ended]
    return [
        Metric("embedctl_job_last_success_timestamp_seconds", succeeded),
        Metric("embedctl_job_last_exit_code", codes),
    ]


def _circuit_metric(connection: Connection, circuits: Iterable[Mapping[str, Any]]) -> Metric:
    """Every model that was ever called; the worst of its circuits where several runs are at it."""
    called = connection.execute("SELECT DISTINCT provider, model FROM usage_event WHERE entry_kind = 'usage'")
    closed = [(str(row[0]), str(row[1]), "closed") for row in called.fetchall()]
    return circuit_states([*closed, *((str(one["provider"]), str(one["model"]), one["state"]) for one in circuits)])


def write(metrics: Iterable[Metric], folder: Path) -> Path:
    """Replace our file in `folder` in one step; readable by the collector.

    Raises:
        OutputRefused: The folder is not there.
    """
    if not folder.is_dir():
        raise OutputRefused(f"no such folder: {folder}", hint="node_exporter's --collector.textfile.directory")
    place = folder / FILE_NAME
    storage.replace(storage.DISK, place, text(metrics).encode(), mode=0o644, for_all=True)
    return place

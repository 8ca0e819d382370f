"""Numbers for Prometheus, as a file that node_exporter's textfile collector reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from embedctl import storage
from embedctl.errors import OutputRefused
from embedctl.ledger import budgets, spool
from embedctl.ledger.budgets import Budget
from embedctl.ledger.database import Connection
from embedctl.ledger.paths import LedgerPaths
from embedctl.reports import anomalies, forecast, report
from embedctl.reports.prometheus_queries import QUERIES
from embedctl.reports.query import ReportQuery

FILE_NAME = "embedctl_usage.prom"
CIRCUIT_STATES = ("closed", "half_open", "open", "dead")

Sample = tuple[dict[str, str], int | float | Decimal | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric and its samples; a sample without a value is left out."""

    name: str
    kind: Literal["counter", "gauge"]
    sentence: str
    samples: Sequence[Sample]


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
    counts: tuple[int, int] | None = None,
    by_workspace: bool = True,
    now: datetime,
) -> list[Metric]:
    """Every metric of the ledger and of what runs.

    Args:
        budgets_set: Those of the settings.
        circuits: `provider`, `model` and `state` of every circuit that is not closed now.
        counts: Look-ups in the token-count cache that found something, and that did not; None without one.
    """
    workspace = "workspace_id" if by_workspace else "'*'"
    found = []
    for name, kind, sentence, labels, sql in QUERIES:
        rows = connection.execute(sql.format(w=workspace)).fetchall()
        samples = sorted(
            ((dict(zip(labels, map(str, row[:-1]), strict=True)), row[-1]) for row in rows),
            key=lambda sample: tuple(sample[0].values()),
        )
        found.append(Metric(name, kind, sentence, samples))
    waiting = sum(path.stat().st_size for path in spool.pending(paths.spool))
    found.append(Metric("embedctl_ledger_spool_pending_bytes", "gauge", "Events that wait.", [({}, waiting)]))
    found.append(_prices_age(connection, now))
    budgets_set = list(budgets_set)
    used: list[Sample] = [
        ({"workspace": each.budget.workspace, "period": each.budget.period}, float(each.used_ratio))
        for each in budgets.standings(connection, budgets_set, now=now)
    ]
    found.append(Metric("embedctl_budget_used_ratio", "gauge", "Spent and at risk, of the budget.", used))
    found += _pattern_metrics(connection, budgets_set, by_workspace=by_workspace, now=now)
    return [*found, *_job_metrics(jobs), _circuit_metric(connection, circuits), *_count_metrics(counts)]


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
    ends = (("", "Expected cost of this month (UTC)."), ("_low", "Lower end of its 90 % interval."),
            ("_high", "Upper end of its 90 % interval."))  # fmt: skip
    found = [
        Metric(
            f"embedctl_usage_month_projected{end}_usd", "gauge", sentence,
            [(labels, group[f"cost{end or '_projected'}"]) for labels, group in groups],
        )
        for end, sentence in ends
    ]  # fmt: skip
    ratios: list[Sample] = [
        (
            {"workspace": each.standing.budget.workspace, "period": each.standing.budget.period},
            None
            if each.projected is None or not each.standing.budget.amount
            else float(each.projected / each.standing.budget.amount),
        )
        for each in month.budgets
    ]
    found.append(Metric("embedctl_budget_projected_ratio", "gauge", "Expected at the period's end.", ratios))
    days = Counter(
        each.key[0] if each.key else "*" for each in anomalies.anomalies(connection, question, now=now).found
    )
    strange: list[Sample] = [(labels, days[labels["workspace"]]) for labels, _ in groups]
    sentence = "How many of the last 7 days are far from the pattern of the 8 weeks before."
    return [*found, Metric("embedctl_usage_anomalies", "gauge", sentence, strange)]


def _count_metrics(counts: tuple[int, int] | None) -> list[Metric]:
    """They begin anew with `cache clear`, as a counter may."""
    hits, misses = counts or (None, None)
    told = (
        ("hits", hits, "Token counts taken from the cache."),
        ("misses", misses, "Texts whose tokens were counted."),
    )
    return [Metric(f"embedding_token_count_cache_{n}_total", "counter", text, [({}, v)]) for n, v, text in told]


def _prices_age(connection: Connection, now: datetime) -> Metric:
    day = report.prices_as_of(connection, now)
    age = None if day is None else (now - datetime.fromisoformat(day).replace(tzinfo=UTC)).total_seconds()
    return Metric("embedctl_prices_age_seconds", "gauge", "Since the day of the price list.", [({}, age)])


def _job_metrics(jobs: Iterable[Ended]) -> list[Metric]:
    ended = sorted(jobs, key=lambda each: each.job)
    succeeded: list[Sample] = [
        ({"job": each.job}, each.succeeded_at.timestamp() if each.succeeded_at else None) for each in ended
    ]
    codes: list[Sample] = [({"job": each.job}, each.exit_code) for each in ended]
    return [
        Metric("embedctl_job_last_success_timestamp_seconds", "gauge", "Last run that ended with 0.", succeeded),
        Metric("embedctl_job_last_exit_code", "gauge", "Of the last run that ended.", codes),
    ]


def _circuit_metric(connection: Connection, circuits: Iterable[Mapping[str, Any]]) -> Metric:
    """Every model that was ever called; the worst of its circuits where several runs are at it."""
    called = connection.execute("SELECT DISTINCT provider, model FROM usage_event WHERE entry_kind = 'usage'")
    states = dict.fromkeys(((str(row[0]), str(row[1])) for row in called.fetchall()), 0)
    for each in circuits:
        key = (str(each["provider"]), str(each["model"]))
        states[key] = max(states.get(key, 0), CIRCUIT_STATES.index(each["state"]))
    samples: list[Sample] = [({"provider": key[0], "model": key[1]}, states[key]) for key in sorted(states)]
    return Metric(
        "embedding_provider_circuit_state", "gauge", "0 closed, 1 half open, 2 open, 3 dead, in any run.", samples
    )


def text(metrics: Iterable[Metric]) -> str:
    """The exposition format, without time stamps (the collector refuses them), a newline at the end.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
    """
    lines: list[str] = []
    for metric in metrics:
        samples = [(labels, value) for labels, value in metric.samples if value is not None]
        if not samples:
            continue
        lines.append(f"# HELP {metric.name} {metric.sentence}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for labels, value in samples:
            pairs = ",".join(f'{key}="{_label(name)}"' for key, name in labels.items())
            lines.append(f"{metric.name}{'{' + pairs + '}' if pairs else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


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


def _label(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: Any) -> str:
    return format(value, "f") if isinstance(value, Decimal) else repr(value)

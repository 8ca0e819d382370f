"""Numbers for Prometheus, as a file that node_exporter's textfile collector reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import duckdb

from embedctl import storage
from embedctl.errors import OutputRefused
from embedctl.ledger import budgets, spool
from embedctl.ledger.budgets import Budget
from embedctl.ledger.paths import LedgerPaths

FILE_NAME = "embedctl_usage.prom"

Sample = tuple[dict[str, str], int | float | Decimal | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric and its samples; a sample without a value is left out."""

    name: str
    kind: Literal["counter", "gauge"]
    sentence: str
    samples: Sequence[Sample]


# (name, kind, sentence, labels in column order, SQL: labels…, value)
_QUERIES: tuple[tuple[str, Literal["counter", "gauge"], str, tuple[str, ...], str], ...] = (
    (
        "embedctl_usage_tokens_total", "counter", "Confirmed tokens.", ("workspace", "provider", "model", "source"),
        "SELECT {w}, provider, model, usage_source, sum(tokens_total)::BIGINT FROM usage_event "
        "WHERE entry_kind = 'usage' AND billable = 'yes' GROUP BY ALL",
    ),
    (
        "embedctl_usage_cost_usd_total", "counter", "Known cost of usage.", ("workspace", "provider", "model"),
        "SELECT {w}, provider, model, sum(cost) FROM usage_event WHERE entry_kind = 'usage' GROUP BY ALL",
    ),
    (
        "embedctl_usage_adjustments_usd", "gauge", "Corrections, refunds, credits and true-ups, signed.",
        ("workspace", "kind"),
        "SELECT {w}, entry_kind, sum(cost) FROM usage_event "
        "WHERE entry_kind NOT IN ('usage', 'cache_hit') GROUP BY ALL",
    ),
    (
        "embedctl_usage_calls_total", "counter", "Attempts by status.", ("workspace", "provider", "model", "status"),
        "SELECT {w}, provider, model, status, count(*) FROM usage_event WHERE entry_kind = 'usage' GROUP BY ALL",
    ),
    (
        "embedctl_usage_unpriced_tokens_total", "counter", "Tokens whose price nobody knows.", ("provider", "model"),
        "SELECT provider, model, sum(tokens_total)::BIGINT FROM usage_event "
        "WHERE cost_status = 'unpriced' GROUP BY ALL",
    ),
    (
        "embedctl_usage_at_risk_usd", "gauge", "Perhaps billed, beside the cost.", ("provider", "model"),
        "SELECT provider, model, sum(cost_at_risk) FROM usage_event WHERE cost_status = 'at_risk' GROUP BY ALL",
    ),
    (
        "embedctl_usage_fallback_ratio", "gauge", "Share of the confirmed tokens that are estimated.", (),
        "SELECT sum(tokens_total) FILTER (usage_source = 'fallback') / nullif(sum(tokens_total), 0)::DOUBLE "
        "FROM usage_event WHERE billable = 'yes'",
    ),
    (
        "embedctl_usage_drift_ratio", "gauge", "Provider's count over the tokenizer's, less one.",
        ("provider", "model"),
        "SELECT provider, model, sum(tokens_native) / nullif(sum(tokens_estimated), 0)::DOUBLE - 1 "
        "FROM drift GROUP BY ALL",
    ),
    (
        "embedctl_usage_drift_over_5pct_ratio", "gauge", "Share of compared calls that are off by more than 5 %.",
        ("provider", "model"),
        "SELECT provider, model, sum(share_over_5pct * pairs) / sum(pairs) FROM drift GROUP BY ALL",
    ),
    (
        "embedding_provider_failures_total", "counter", "Attempts that failed.", ("provider", "model", "reason"),
        "SELECT provider, model, coalesce(error_class, status), count(*) FROM usage_event "
        "WHERE entry_kind = 'usage' AND status <> 'ok' GROUP BY ALL",
    ),
    (
        "embedding_fallbacks_total", "counter", "Operations another provider took over.",
        ("from_provider", "to_provider"),
        "SELECT split_part(fallback_from, ':', 1), provider, count(DISTINCT operation_id) FROM usage_event "
        "WHERE fallback_from IS NOT NULL GROUP BY ALL",
    ),
    (
        "embedding_vector_cache_hits_total", "counter", "Texts whose vector came from the cache.",
        ("provider", "model"),
        "SELECT provider, model, sum(input_count)::BIGINT FROM usage_event WHERE entry_kind = 'cache_hit' GROUP BY ALL",
    ),
    (
        "embedding_vector_cache_misses_total", "counter", "Texts that were sent.", ("provider", "model"),
        "SELECT provider, model, sum(input_count)::BIGINT FROM usage_event "
        "WHERE entry_kind = 'usage' AND status = 'ok' GROUP BY ALL",
    ),
    (
        "embedctl_job_last_success_timestamp_seconds", "gauge", "Last answered call of the job.", ("job",),
        "SELECT job_id, max(epoch_us(occurred_at)) / 1000000.0 FROM usage_event "
        "WHERE job_id IS NOT NULL AND entry_kind = 'usage' AND status = 'ok' GROUP BY ALL",
    ),
    (
        "embedctl_ledger_spool_bad_lines_total", "counter", "Spool lines that were damaged or foreign.", (),
        "SELECT coalesce(sum(lines_bad), 0)::BIGINT FROM spool_offset",
    ),
    (
        "embedctl_ledger_last_ingest_timestamp_seconds", "gauge", "When the ledger last took events in.", (),
        "SELECT max(epoch_us(updated_at)) / 1000000.0 FROM spool_offset",
    ),
)  # fmt: skip


def collect(
    connection: duckdb.DuckDBPyConnection,
    paths: LedgerPaths,
    *,
    budgets_set: Iterable[Budget] = (),
    by_workspace: bool = True,
    now: datetime,
) -> list[Metric]:
    """Every metric of the ledger; `budgets_set` are those of the settings."""
    workspace = "workspace_id" if by_workspace else "'*'"
    found = []
    for name, kind, sentence, labels, sql in _QUERIES:
        rows = connection.execute(sql.format(w=workspace)).fetchall()
        samples = sorted(
            ((dict(zip(labels, map(str, row[:-1]), strict=True)), row[-1]) for row in rows),
            key=lambda sample: tuple(sample[0].values()),
        )
        found.append(Metric(name, kind, sentence, samples))
    waiting = sum(path.stat().st_size for path in spool.pending(paths.spool))
    found.append(Metric("embedctl_ledger_spool_pending_bytes", "gauge", "Events that wait.", [({}, waiting)]))
    age = connection.execute("SELECT max(epoch_us(loaded_at)) / 1000000.0 FROM price").fetchone()
    loaded = age[0] if age else None
    found.append(
        Metric(
            "embedctl_prices_age_seconds",
            "gauge",
            "Since the prices were last loaded.",
            [({}, None if loaded is None else now.timestamp() - float(loaded))],
        )
    )
    used: list[Sample] = [
        ({"workspace": each.budget.workspace, "period": each.budget.period}, float(each.used_ratio))
        for each in budgets.standings(connection, budgets_set, now=now)
    ]
    found.append(Metric("embedctl_budget_used_ratio", "gauge", "Spent and at risk, of the budget.", used))
    return found


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
    storage.replace(storage.DISK, place, text(metrics).encode(), mode=0o644)
    return place


def _label(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: Any) -> str:
    return format(value, "f") if isinstance(value, Decimal) else repr(value)

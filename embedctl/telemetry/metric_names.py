"""Every metric that Prometheus is told: one table, for the ledger's (`usage metrics`) and for the service's (/metrics).

Where both tell of the same thing it is one row. `embedctl_usage_*` is the whole ledger, `embedctl_serve_*` one process
since it began: two totals, which nobody should add up. Names and labels are contracts with dashboards.
Names: https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from embedctl.dataclass import dataclass

Kind = Literal["counter", "gauge", "histogram", "summary"]


@dataclass(frozen=True, slots=True)
class MetricName:
    """What a metric is."""

    kind: Kind
    sentence: str
    labels: tuple[str, ...] = ()


_MODEL = ("provider", "model")
_WHO = ("workspace", *_MODEL)

# fmt: off
METRICS: Mapping[str, MetricName] = {
    # of both
    "embedding_provider_failures_total": MetricName("counter", "Attempts that failed.", (*_MODEL, "reason")),
    "embedding_fallbacks_total": MetricName(
        "counter", "Operations another provider took over.", ("from_provider", "to_provider")),
    "embedding_token_count_cache_hits_total": MetricName("counter", "Token counts taken from the cache.", ("store",)),
    "embedding_token_count_cache_misses_total": MetricName("counter", "Texts whose tokens were counted.", ("store",)),
    "embedding_token_count_cache_lookup_seconds": MetricName(
        "summary", "Of look-ups, each of any number of texts.", ("store",)),
    "embedding_provider_circuit_state": MetricName(
        "gauge", "0 closed, 1 half open, 2 open, 3 dead; the worst of a model's.", _MODEL),
    # of the ledger
    "embedctl_usage_tokens_total": MetricName("counter", "Confirmed tokens.", (*_WHO, "source")),
    "embedctl_usage_cost_usd_total": MetricName("counter", "Known cost of usage.", _WHO),
    "embedctl_usage_adjustments_usd": MetricName(
        "gauge", "Corrections, refunds, credits and true-ups, signed.", ("workspace", "kind")),
    "embedctl_usage_calls_total": MetricName("counter", "Attempts by status.", (*_WHO, "status")),
    "embedctl_usage_unpriced_tokens": MetricName("gauge", "Tokens whose price nobody knows yet.", _MODEL),
    "embedctl_usage_at_risk_usd": MetricName("gauge", "Perhaps billed, beside the cost.", _MODEL),
    "embedctl_usage_fallback_ratio": MetricName("gauge", "Share of the confirmed tokens that are estimated."),
    "embedctl_usage_drift_ratio": MetricName("gauge", "Provider's count over the tokenizer's, less one.", _MODEL),
    "embedctl_usage_drift_over_5pct_ratio": MetricName(
        "gauge", "Share of compared calls that are off by more than 5 %.", _MODEL),
    "embedding_vector_cache_hits_total": MetricName("counter", "Texts whose vector came from the cache.", _MODEL),
    "embedding_vector_cache_misses_total": MetricName("counter", "Texts that were sent.", _MODEL),
    "embedctl_ledger_spool_bad_lines_total": MetricName("counter", "Spool lines that were damaged or foreign."),
    "embedctl_ledger_last_ingest_timestamp_seconds": MetricName("gauge", "When the ledger last took events in."),
    "embedctl_ledger_spool_pending_bytes": MetricName("gauge", "Events that wait."),
    "embedctl_prices_age_seconds": MetricName("gauge", "Since the day of the price list."),
    "embedctl_budget_used_ratio": MetricName("gauge", "Spent and at risk, of the budget.", ("workspace", "period")),
    "embedctl_usage_month_projected_usd": MetricName("gauge", "Expected cost of this month (UTC).", ("workspace",)),
    "embedctl_usage_month_projected_low_usd": MetricName("gauge", "Lower end of its 90 % interval.", ("workspace",)),
    "embedctl_usage_month_projected_high_usd": MetricName("gauge", "Upper end of its 90 % interval.", ("workspace",)),
    "embedctl_budget_projected_ratio": MetricName("gauge", "Expected at the period's end.", ("workspace", "period")),
    "embedctl_usage_anomalies": MetricName(
        "gauge", "How many of the last 7 days are far from the pattern of the 8 weeks before.", ("workspace",)),
    "embedctl_job_last_success_timestamp_seconds": MetricName("gauge", "Last run that ended with 0.", ("job",)),
    "embedctl_job_last_exit_code": MetricName("gauge", "Of the last run that ended.", ("job",)),
    # of the service
    "embedding_requests_total": MetricName("counter", "Requests answered.", (*_MODEL, "status")),
    "embedding_request_duration_seconds": MetricName("histogram", "Of requests."),
    "embedctl_serve_overhead_seconds": MetricName("histogram", "Of them, without providers."),
    "embedding_cache_hits_total": MetricName("counter", "Inputs whose vectors were not bought."),
    "embedding_cache_size": MetricName("gauge", "Vectors that are kept."),
    "active_embedding_requests": MetricName("gauge", "In flight."),
    "embedding_policy_denied_total": MetricName("counter", "Requests that a list forbade.", ("policy_type",)),
    "embedding_token_inputs_total": MetricName("counter", "Inputs by kind.", ("mode",)),
    "embedding_dimension_adjustments_total": MetricName(
        "counter", "Requests whose vectors were cut or filled up to the width asked for.", (*_MODEL, "method")),
    "embedctl_serve_coalesced_requests_total": MetricName(
        "counter", "Requests that waited for a text which another one was buying."),
    "embedctl_serve_intents_open": MetricName("gauge", "Attempts written down that have no outcome yet."),
    "embedctl_serve_journal_fsync_seconds": MetricName("histogram", "Of the journal's syncs."),
    "embedctl_serve_rejected_total": MetricName("counter", "Requests refused.", ("code",)),
    "embedctl_serve_tokens_total": MetricName("counter", "Tokens billed.", (*_WHO, "source")),
    "embedctl_serve_cost_usd_total": MetricName("counter", "USD billed.", _WHO),
    "embedctl_serve_cost_at_risk_usd_total": MetricName("counter", "USD perhaps billed."),
}
# fmt: on

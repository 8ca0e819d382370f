"""What Prometheus is told, as SQL over the ledger. Counters are of usage rows only: they never decrease."""

from __future__ import annotations

from typing import Literal

# (name, kind, sentence, labels in column order, SQL: labels…, value)
QUERIES: tuple[tuple[str, Literal["counter", "gauge"], str, tuple[str, ...], str], ...] = (
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
        "SELECT {w}, provider, model, status, count(*) FROM usage_event "
        "WHERE entry_kind = 'usage' AND meter <> 'idle_microhour' GROUP BY ALL",
    ),
    (
        "embedctl_usage_unpriced_tokens", "gauge", "Tokens whose price nobody knows yet.", ("provider", "model"),
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
        "embedctl_ledger_spool_bad_lines_total", "counter", "Spool lines that were damaged or foreign.", (),
        "SELECT coalesce(sum(lines_bad), 0)::BIGINT FROM spool_offset",
    ),
    (
        "embedctl_ledger_last_ingest_timestamp_seconds", "gauge", "When the ledger last took events in.", (),
        "SELECT max(epoch_us(updated_at)) / 1000000.0 FROM spool_offset",
    ),
)  # fmt: skip

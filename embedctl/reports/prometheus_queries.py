"""What Prometheus is told, as SQL over the ledger. Counters are of usage rows only: they never decrease."""

from __future__ import annotations

# (name in the table of metrics, SQL: its labels in their order, value)
QUERIES: tuple[tuple[str, str], ...] = (
    (
        "embedctl_usage_tokens_total",
        "SELECT {w}, provider, model, usage_source, sum(tokens_total)::BIGINT FROM usage_event "
        "WHERE entry_kind = 'usage' AND billable = 'yes' GROUP BY ALL",
    ),
    (
        "embedctl_usage_cost_usd_total",
        "SELECT {w}, provider, model, sum(cost) FROM usage_event WHERE entry_kind = 'usage' GROUP BY ALL",
    ),
    (
        "embedctl_usage_adjustments_usd",
        "SELECT {w}, entry_kind, sum(cost) FROM usage_event "
        "WHERE entry_kind NOT IN ('usage', 'cache_hit') GROUP BY ALL",
    ),
    (
        "embedctl_usage_calls_total",
        "SELECT {w}, provider, model, status, count(*) FROM usage_event "
        "WHERE entry_kind = 'usage' AND meter <> 'idle_microhour' GROUP BY ALL",
    ),
    (
        "embedctl_usage_unpriced_tokens",
        "SELECT provider, model, sum(tokens_total)::BIGINT FROM usage_event "
        "WHERE cost_status = 'unpriced' GROUP BY ALL",
    ),
    (
        "embedctl_usage_at_risk_usd",
        "SELECT provider, model, sum(cost_at_risk) FROM usage_event WHERE cost_status = 'at_risk' GROUP BY ALL",
    ),
    (
        "embedctl_usage_fallback_ratio",
        "SELECT sum(tokens_total) FILTER (usage_source = 'fallback') / nullif(sum(tokens_total), 0)::DOUBLE "
        "FROM usage_event WHERE billable = 'yes'",
    ),
    (
        "embedctl_usage_drift_ratio",
        "SELECT provider, model, sum(tokens_native) / nullif(sum(tokens_estimated), 0)::DOUBLE - 1 "
        "FROM drift GROUP BY ALL",
    ),
    (
        "embedctl_usage_drift_over_5pct_ratio",
        "SELECT provider, model, sum(share_over_5pct * pairs) / sum(pairs) FROM drift GROUP BY ALL",
    ),
    (
        "embedding_provider_failures_total",
        "SELECT provider, model, coalesce(error_class, status), count(*) FROM usage_event "
        "WHERE entry_kind = 'usage' AND status <> 'ok' GROUP BY ALL",
    ),
    (
        "embedding_fallbacks_total",
        "SELECT split_part(fallback_from, ':', 1), provider, count(DISTINCT operation_id) FROM usage_event "
        "WHERE fallback_from IS NOT NULL GROUP BY ALL",
    ),
    (
        "embedding_vector_cache_hits_total",
        "SELECT provider, model, sum(input_count)::BIGINT FROM usage_event WHERE entry_kind = 'cache_hit' GROUP BY ALL",
    ),
    (
        "embedding_vector_cache_misses_total",
        "SELECT provider, model, sum(input_count)::BIGINT FROM usage_event "
        "WHERE entry_kind = 'usage' AND status = 'ok' GROUP BY ALL",
    ),
    (
        "embedctl_ledger_spool_bad_lines_total",
        "SELECT coalesce(sum(lines_bad), 0)::BIGINT FROM spool_offset",
    ),
    (
        "embedctl_ledger_last_ingest_timestamp_seconds",
        "SELECT max(epoch_us(updated_at)) / 1000000.0 FROM spool_offset",
    ),
)  # fmt: skip

-- Whose prices a configured provider is charged by, as its latest events said (NULL: nobody's): late prices find old events by it.
CREATE TABLE IF NOT EXISTS price_alias (provider VARCHAR NOT NULL, price_as VARCHAR);

-- `price` is what holds now; rows that left it stay here, because events name them by price_id.
CREATE TABLE IF NOT EXISTS price_superseded AS SELECT *, now() AS superseded_at FROM price WHERE false;

CREATE OR REPLACE VIEW usage_daily AS
SELECT CAST(occurred_at AT TIME ZONE 'UTC' AS DATE) AS day_utc, workspace_id, job_id, provider, model, price_tier, purpose,
       count(*) FILTER (entry_kind = 'usage') AS calls,
       count(*) FILTER (entry_kind = 'usage' AND status <> 'ok') AS errors,
       coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0) AS tokens,
       coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0) AS tokens_unknown,
       coalesce(sum(tokens_total) FILTER (cost_status = 'unpriced'), 0) AS unpriced_tokens,
       sum(cost) AS cost, sum(cost_at_risk) AS cost_at_risk, currency
FROM usage_event GROUP BY ALL;

CREATE OR REPLACE VIEW usage_by_workspace AS
SELECT workspace_id, provider, model,
       count(*) FILTER (entry_kind = 'usage') AS calls,
       count(DISTINCT operation_id) FILTER (entry_kind = 'usage') AS operations,
       coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0) AS tokens,
       coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0) AS tokens_unknown,
       coalesce(sum(tokens_total) FILTER (cost_status = 'unpriced'), 0) AS unpriced_tokens,
       sum(cost) AS cost, sum(cost_at_risk) AS cost_at_risk, currency,
       min(occurred_at) AS first_used, max(occurred_at) AS last_used
FROM usage_event GROUP BY workspace_id, provider, model, currency;

-- Only attempts that were counted by both sides can be compared. Ratios are of our count: +0.5 = the provider counts half as much again.
CREATE OR REPLACE VIEW drift AS
SELECT provider, model, tokenizer_id, count(*) AS pairs,
       sum(tokens_native) AS tokens_native, sum(tokens_estimated) AS tokens_estimated,
       (sum(tokens_native) - sum(tokens_estimated)) / nullif(sum(tokens_estimated), 0)::DOUBLE AS weighted_drift,
       quantile_cont(abs(tokens_native - tokens_estimated) / tokens_estimated::DOUBLE, 0.95) AS p95_drift,
       avg((abs(tokens_native - tokens_estimated) / tokens_estimated::DOUBLE > 0.05)::INTEGER) AS share_over_5pct
FROM usage_event
WHERE entry_kind = 'usage' AND tokens_native IS NOT NULL AND tokens_estimated > 0
GROUP BY provider, model, tokenizer_id;

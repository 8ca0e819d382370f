"""The ledger in other people's formats: FOCUS, Parquet, CloudEvents. Names that move live here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import duckdb

from embedctl.errors import OutputRefused, WrongUsage
from embedctl.ledger.questions import Question, where_clause
from embedctl.storage import DISK, TEMPORARY_PREFIX

FOCUS_VERSION = "1.4"
"""FinOps Open Cost and Usage Specification; ratified 2026-06-04 (facts/accounting.md 2.9)."""

MAPPING_VERSION = "3"
"""Of what is below: which of our columns becomes which of FOCUS's. Stands in each row as x_MappingVersion."""

FOCUS_COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType", "BillingCurrency",
    "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
    "ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost",
    "ContractedUnitPrice", "EffectiveCost", "HostProviderName", "InvoiceDetailId", "InvoiceId",
    "InvoiceIssuerName", "ListCost",
    "ListUnitPrice", "PricingCategory", "PricingCurrency", "PricingQuantity", "PricingUnit", "RegionId", "RegionName",
    "ServiceCategory", "ServiceName", "ServiceProviderName", "ServiceSubcategory", "SkuId", "SkuMeter",
    "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName", "SubAccountType", "Tags",
)  # fmt: skip
"""Columns of the Cost and Usage dataset that we fill; our own start with x_."""

_FOCUS = """
WITH day AS (
  SELECT occurred_at::DATE AS charge_day, workspace_id, provider, model, region, price_tier, meter, entry_kind,
    unit_price, price_id, cost_status, usage_source, coalesce(tags, '{{}}') AS tags, currency,
    date_trunc('month', recorded_at) > date_trunc('month', occurred_at) AS closed,
    sum(cost) AS cost, sum(cost_list) AS cost_list, sum(cost_at_risk) AS cost_at_risk,
    sum(CASE WHEN billable = 'yes' THEN quantity ELSE 0 END)::BIGINT AS quantity, count(*) AS requests,
    sum(CASE WHEN usage_source = 'fallback' THEN tokens_total ELSE 0 END)
      / nullif(sum(tokens_total), 0)::DOUBLE AS share
  FROM usage_event WHERE {condition} GROUP BY ALL),
named AS (
  SELECT *, entry_kind NOT IN ('usage', 'cache_hit') AS entered, starts_with(meter, 'input_token') AS in_tokens,
    closed AND entry_kind IN ('correction', 'refund') AS corrects,
    date_trunc('month', charge_day)::DATE AS month, coalesce(cost, 0) AS paid, coalesce(cost_list, paid) AS listed,
    quantity * 0.000001::DECIMAL(7,6) AS millions,
    provider || '/' || model || '/' || price_tier || '/' || meter AS sku FROM day)
SELECT
  paid AS BilledCost, provider AS BillingAccountId, provider AS BillingAccountName,
  'Provider account' AS BillingAccountType, currency AS BillingCurrency,
  strftime(month + INTERVAL 1 MONTH, '%Y-%m-%dT00:00:00Z') AS BillingPeriodEnd,
  strftime(month, '%Y-%m-%dT00:00:00Z') AS BillingPeriodStart,
  CASE WHEN entry_kind = 'credit' THEN 'Credit' WHEN entered AND NOT corrects THEN 'Adjustment' ELSE 'Usage' END
    AS ChargeCategory,
  CASE WHEN corrects THEN 'Correction' END AS ChargeClass,
  provider || ' ' || model || ' ' || meter || CASE WHEN entered THEN ' ' || entry_kind ELSE '' END AS ChargeDescription,
  CASE WHEN entered THEN 'One-Time' ELSE 'Usage-Based' END AS ChargeFrequency,
  strftime(charge_day + INTERVAL 1 DAY, '%Y-%m-%dT00:00:00Z') AS ChargePeriodEnd,
  strftime(charge_day, '%Y-%m-%dT00:00:00Z') AS ChargePeriodStart,
  CASE WHEN NOT entered THEN quantity END AS ConsumedQuantity,
  CASE WHEN NOT entered THEN CASE WHEN in_tokens THEN 'Tokens' ELSE meter END END AS ConsumedUnit,
  paid AS ContractedCost,
  CASE WHEN NOT entered AND paid = millions * coalesce(unit_price, 0) THEN coalesce(unit_price, 0) END
    AS ContractedUnitPrice, paid AS EffectiveCost,
  provider AS HostProviderName, NULL::VARCHAR AS InvoiceDetailId, NULL::VARCHAR AS InvoiceId,
  provider AS InvoiceIssuerName,
  listed AS ListCost, CASE WHEN NOT entered THEN coalesce(
    (SELECT max(p.unit_price) FROM price p WHERE p.model = named.model AND p.price_tier = named.price_tier
      AND p.meter = named.meter AND p.kind = 'list' AND millions * p.unit_price = listed),
    CASE WHEN listed = millions * coalesce(unit_price, 0) THEN coalesce(unit_price, 0) END) END AS ListUnitPrice,
  CASE WHEN entered THEN NULL WHEN price_tier = 'standard' THEN 'Standard' ELSE 'Other' END AS PricingCategory,
  currency AS PricingCurrency,
  CASE WHEN NOT entered THEN millions END AS PricingQuantity,
  CASE WHEN NOT entered
    THEN CASE WHEN in_tokens THEN '1000000 Tokens' ELSE '1000000 ' || meter END END AS PricingUnit,
  nullif(region, '*') AS RegionId, nullif(region, '*') AS RegionName,
  'AI and Machine Learning' AS ServiceCategory, 'Embeddings' AS ServiceName, provider AS ServiceProviderName,
  'Other (AI and Machine Learning)' AS ServiceSubcategory,
  sku AS SkuId, meter AS SkuMeter,
  CASE WHEN NOT entered
    THEN json_object('x_ModelId', model, 'x_TokenDirection', 'Input', 'x_PriceTier', price_tier)::VARCHAR END
    AS SkuPriceDetails,
  CASE WHEN NOT entered THEN sku END AS SkuPriceId,
  workspace_id AS SubAccountId, workspace_id AS SubAccountName, 'Workspace' AS SubAccountType, tags AS Tags,
  usage_source AS x_UsageSource, cost_status AS x_CostStatus, price_id::VARCHAR AS x_PriceId,
  requests AS x_RequestCount, cost_at_risk AS x_AtRiskCost, share AS x_FallbackShare,
  '{focus}' AS x_FocusVersion, '{mapping}' AS x_MappingVersion
FROM named {priced_only} ORDER BY charge_day, SubAccountId, SkuId
"""

# CloudEvents 1.0.2, JSON format: the id is ours, so that a receiver can drop what it has.
_CLOUDEVENTS = """
SELECT '1.0' AS specversion, event_id::VARCHAR AS id, '/embedctl/' || provider AS source,
  'embedctl.usage.' || entry_kind AS "type", strftime(occurred_at::TIMESTAMP, '%Y-%m-%dT%H:%M:%S.%fZ') AS "time",
  workspace_id AS subject, 'application/json' AS datacontenttype,
  {{'operation_id': operation_id, 'attempt': attempt, 'job_id': job_id, 'run_id': run_id::VARCHAR, 'purpose': purpose,
    'provider': provider, 'model': model, 'status': status, 'billable': billable, 'tokens_total': tokens_total,
    'tokens_estimated': tokens_estimated, 'usage_source': usage_source, 'cost': cost::VARCHAR,
    'cost_at_risk': cost_at_risk::VARCHAR, 'cost_status': cost_status, 'currency': currency}} AS "data"
FROM usage_event WHERE {condition} ORDER BY occurred_at, event_id
"""

_PARQUET = "SELECT * FROM usage_event WHERE {condition} ORDER BY occurred_at, event_id"

FORMATS = {
    "focus": (_FOCUS, "FORMAT csv, HEADER"),
    "parquet": (_PARQUET, "FORMAT parquet, COMPRESSION zstd"),
    "cloudevents": (_CLOUDEVENTS, "FORMAT json"),
}


def export(
    connection: duckdb.DuckDBPyConnection,
    question: Question,
    place: Path,
    form: str,
    *,
    overwrite: bool = False,
    priced_only: bool = False,
) -> int:
    """Write the events of `question` to a new file, whole or not at all.

    Args:
        form: One of FORMATS. FOCUS is a CSV of UTC days, in which unpriced usage has cost 0 and x_CostStatus says so.
        priced_only: FOCUS without unpriced usage.

    Returns:
        Rows written.

    Raises:
        WrongUsage: An unknown format.
        OutputRefused: `place` exists, or cannot be created.
    """
    if form not in FORMATS:
        raise WrongUsage(f"unknown export format {form!r}", hint=f"one of {', '.join(FORMATS)}")
    if os.path.lexists(place) and not overwrite:
        raise OutputRefused(f"{place} exists", hint="--overwrite replaces it")
    if not place.parent.is_dir():
        raise OutputRefused(f"no such folder: {place.parent}")
    sql, options = FORMATS[form]
    condition, values = where_clause(question)
    only = "WHERE cost IS NOT NULL" if priced_only else ""
    temporary = place.with_name(f"{TEMPORARY_PREFIX}{place.name}.{os.getpid()}")
    quoted = str(temporary).replace("'", "''")
    query = sql.format(condition=condition, priced_only=only, focus=FOCUS_VERSION, mapping=MAPPING_VERSION)
    try:
        row = connection.execute(f"COPY ({query}) TO '{quoted}' ({options})", values).fetchone()
        temporary.chmod(0o600)
        _put(temporary, place, overwrite)
    finally:
        temporary.unlink(missing_ok=True)
    DISK.sync_folder(place.parent)
    return int(row[0]) if row else 0


def _put(temporary: Path, place: Path, overwrite: bool) -> None:
    step: Callable[[Path, Path], object] = DISK.rename if overwrite else DISK.link
    if step(temporary, place) is False:
        raise OutputRefused(f"{place} exists", hint="--overwrite replaces it")

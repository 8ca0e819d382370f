"""The ledger in other people's formats: FOCUS, Parquet, CloudEvents. Names that move live here and nowhere else."""

# ruff: noqa: S608 - names are ours or quoted; every foreign value is bound

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from embedctl.errors import WrongUsage
from embedctl.ledger.database import Connection
from embedctl.providers import catalog
from embedctl.reports.query import UNITS, ReportQuery, where_clause
from embedctl.storage import named
from embedctl.terminal import FORMULA_STARTS

if TYPE_CHECKING:
    from embedctl.reports.report import Report

VERSIONS = ("1.2", "1.4", "1.5")
"""Of the FinOps Open Cost and Usage Specification: what most readers take, the ratified one (2026-06-04), the next."""

FOCUS_VERSION = "1.4"
"""What is written unless told otherwise."""

MAPPING_VERSION = "5"
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
"""Columns of the Cost and Usage dataset that we fill, as 1.4 and 1.5 name them; our own start with x_."""

_UNTIL_1_3 = {"ServiceProviderName": "ProviderName", "HostProviderName": "PublisherName"}
"""What 1.3 took the places of. Who makes a model is no column of either: ModelDeveloper says it.

Source: FOCUS_Spec v1.2, specification/columns/provider.md and publisher.md (2026-11-25)
"""

_SINCE_1_3 = ("InvoiceDetailId",)


def columns(version: str) -> tuple[str, ...]:
    """The specification's columns that a file of this version has."""
    if version == "1.2":
        return tuple(_UNTIL_1_3.get(name, name) for name in FOCUS_COLUMNS if name not in _SINCE_1_3)
    return FOCUS_COLUMNS


# The specification wants both unit prices for all usage, and cost = unit price x quantity. So a call with full and
# cached tokens is two charges, at the prices that its cost was made of; and an amount that the provider reports is
# billed as it is, beside what the list says (the amount itself where no list has the model).
_FOCUS = """
WITH told AS (
  SELECT *, CASE WHEN billable = 'yes' THEN quantity ELSE 0 END AS units, 1 AS requests,
    least(coalesce(tokens_cached, 0), units) AS reread, unit_price * 0.000001::DECIMAL(7,6) AS each,
    CASE WHEN cost_status = 'priced' AND reread > 0 AND cost <> units * each
      THEN cost - (units - reread) * each END AS reread_cost
  FROM usage_event WHERE {condition}),
charge AS (
  SELECT * REPLACE (CASE WHEN reread_cost IS NULL THEN units ELSE units - reread END AS units,
    cost - coalesce(reread_cost, 0) AS cost, cost_list - coalesce(reread_cost, 0) AS cost_list)
  FROM told WHERE reread_cost IS NULL OR units > reread
  UNION ALL
  SELECT * REPLACE (meter || '_cached' AS meter, reread AS units, reread_cost AS cost, reread_cost AS cost_list,
    NULL AS price_id, (reread_cost / reread * 1000000)::DECIMAL(18,9) AS unit_price,
    (units = reread)::INTEGER AS requests)
  FROM told WHERE reread_cost IS NOT NULL),
day AS (
  SELECT occurred_at::DATE AS charge_day, workspace_id, provider, model, region, price_tier, meter, entry_kind,
    unit_price, price_id, cost_status, usage_source, coalesce(tags, '{{}}') AS tags, currency,
    CASE WHEN cost_status = 'priced' AND units > 0 THEN (cost_list / units * 1000000)::DECIMAL(18,9) END AS list_price,
    date_trunc('month', recorded_at) > date_trunc('month', occurred_at) AS closed,
    sum(cost) AS cost, sum(cost_list) AS cost_list, sum(cost_at_risk) AS cost_at_risk,
    sum(units)::BIGINT AS quantity, sum(requests)::BIGINT AS requests,
    sum(CASE WHEN usage_source = 'fallback' THEN tokens_total ELSE 0 END)
      / nullif(sum(tokens_total), 0)::DOUBLE AS share
  FROM charge GROUP BY ALL),
named AS (
  SELECT *, entry_kind NOT IN ('usage', 'cache_hit') AS entered, starts_with(meter, 'input_token') AS in_tokens,
    closed AND entry_kind IN ('correction', 'refund') AS corrects,
    date_trunc('month', charge_day)::DATE AS month, coalesce(cost, 0) AS paid,
    quantity * 0.000001::DECIMAL(7,6) AS millions,
    CASE WHEN NOT entered THEN coalesce(list_price,
      CASE WHEN cost_status = 'provider_reported' AND quantity > 0
        THEN (coalesce(cost_list, paid) / quantity * 1000000)::DECIMAL(18,9) END, unit_price, 0) END AS list_unit,
    CASE WHEN NOT entered THEN CASE WHEN cost_status = 'provider_reported' THEN list_unit
      ELSE coalesce(unit_price, 0) END END AS agreed_unit,
    coalesce(millions * list_unit, paid) AS listed, coalesce(millions * agreed_unit, paid) AS agreed,
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
  agreed AS ContractedCost, agreed_unit AS ContractedUnitPrice, paid AS EffectiveCost,
  provider AS HostProviderName, NULL::VARCHAR AS InvoiceDetailId, NULL::VARCHAR AS InvoiceId,
  provider AS InvoiceIssuerName,
  listed AS ListCost, list_unit AS ListUnitPrice,
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
    THEN json_merge_patch(coalesce(identity, '{{}}'), {tokens}, json_object('x_PriceTier', price_tier))::VARCHAR END
    AS SkuPriceDetails,
  CASE WHEN NOT entered THEN sku END AS SkuPriceId,
  workspace_id AS SubAccountId, workspace_id AS SubAccountName, 'Workspace' AS SubAccountType, tags AS Tags,
  usage_source AS x_UsageSource, cost_status AS x_CostStatus, price_id::VARCHAR AS x_PriceId,
  requests AS x_RequestCount, cost_at_risk AS x_AtRiskCost, share AS x_FallbackShare,
  '{focus}' AS x_FocusVersion, '{mapping}' AS x_MappingVersion
FROM named LEFT JOIN
  (SELECT unnest(from_json(?::JSON, '[{{"p": "VARCHAR", "m": "VARCHAR", "identity": "VARCHAR"}}]'), recursive := true))
  ON p = provider AND m = model {priced_only}
ORDER BY charge_day, SubAccountId, SkuId, ChargeDescription, x_CostStatus, x_UsageSource, Tags, BilledCost
"""

# Properties that 1.5 defines begin with x_ before it; who made a model, and which it is, have their names at once.
_TOKENS = {
    "1.5": "json_object('TokenDirection', 'Input', 'TokenCacheAction', "
    "CASE WHEN ends_with(meter, '_cached') THEN 'Read' END)",
}
_TOKENS_BEFORE = (
    "json_object('x_ModelId', model, 'x_TokenDirection', 'Input', 'x_TokenCacheAction', "
    "CASE WHEN ends_with(meter, '_cached') THEN 'Read' ELSE 'None' END)"
)

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
    connection: Connection,
    question: ReportQuery,
    place: Path,
    form: str,
    *,
    overwrite: bool = False,
    priced_only: bool = False,
    version: str = FOCUS_VERSION,
) -> int:
    """Write the events of `question` to a new file, whole or not at all.

    Args:
        form: One of FORMATS. FOCUS is a CSV of UTC days, in which unpriced usage has cost 0 and x_CostStatus says so.
        priced_only: FOCUS without unpriced usage.
        version: One of VERSIONS, of FOCUS.

    Returns:
        Rows written.

    Raises:
        WrongUsage: An unknown format.
        OutputRefused: `place` exists, or cannot be created.
    """
    if form not in FORMATS:
        raise WrongUsage(f"unknown export format {form!r}", hint=f"one of {', '.join(FORMATS)}")
    sql, options = FORMATS[form]
    condition, values = where_clause(question)
    only = "WHERE cost IS NOT NULL" if priced_only else ""
    tokens = _TOKENS.get(version, _TOKENS_BEFORE)
    query = sql.format(condition=condition, priced_only=only, focus=version, mapping=MAPPING_VERSION, tokens=tokens)
    if form == "focus":
        values = [*values, _json(_identities(connection, condition, values))]
        query = _guarded(connection, _named(query, version), values)
    return _copy(connection, query, values, place, options, overwrite=overwrite)


def _named(query: str, version: str) -> str:
    """The query with the columns of this version."""
    if version != "1.2":
        return query
    renamed = ", ".join(f"{new} AS {old}" for new, old in _UNTIL_1_3.items())
    return f"SELECT * EXCLUDE ({', '.join(_SINCE_1_3)}) RENAME ({renamed}) FROM ({query})"


def _identities(connection: Connection, condition: str, values: list[Any]) -> list[dict[str, str]]:
    """What FOCUS 1.5 wants to know of each model: its id always, the rest of those that the catalog knows.

    Family and version are read from the name: "text-embedding" and "3" of text-embedding-3-small.
    """
    asked = f"SELECT DISTINCT provider, model FROM usage_event WHERE {condition}"
    found = []
    for provider, model in connection.execute(asked, values).fetchall():
        entry = catalog.find(provider, model) or next(iter(catalog.named(model)), None)  # weights have one name
        identity = {"ModelId": model}
        if entry is not None:
            developer, _, name = entry.canonical.rpartition("/")
            words = name.split("-")
            numbered = next((at for at, word in enumerate(words) if at and any(c.isdigit() for c in word)), None)
            version = entry.revision or (words[numbered] if numbered else None)
            known = {"ModelDeveloper": developer, "ModelFamily": "-".join(words[:numbered]), "ModelVersion": version}
            identity |= {key: value for key, value in known.items() if value}
        found.append({"p": provider, "m": model, "identity": _json(identity)})
    return found


_COUNTED = ("tokens", "tokens_unknown", "unpriced_tokens", "calls", "operations", "errors")
_SAID = ("cost_is_lower_bound", "cost_list_is_lower_bound")
_SHARES = ("fallback_share", "estimated_share", "success_rate")


def export_report(connection: Connection, found: Report, place: Path, *, overwrite: bool = False) -> int:
    """Write a report's groups as Parquet to a new file; the rest of its envelope is metadata `embedctl`.

    Returns:
        Groups written.

    Raises:
        OutputRefused: `place` exists, or cannot be created.
    """
    kinds = {key: "DATE" if key in UNITS else "VARCHAR" for key in found.question.by}
    kinds |= dict.fromkeys(found.totals, "DECIMAL(38,15)")
    kinds |= dict.fromkeys(_COUNTED, "BIGINT") | dict.fromkeys(_SAID, "BOOLEAN") | dict.fromkeys(_SHARES, "DOUBLE")
    columns = ", ".join(f"x->>{_quoted(_pointer(key))} AS {_name(key)}" for key in kinds)
    typed = ", ".join(f"{_name(key)}::{kind} AS {_name(key)}" for key, kind in kinds.items())
    envelope = {key: value for key, value in found.envelope().items() if key != "groups"}
    options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{embedctl: {_quoted(_json(envelope))}}}"
    query = f"SELECT {typed} FROM (SELECT {columns} FROM (SELECT unnest(from_json(?::JSON, '[\"JSON\"]')) AS x))"
    return _copy(connection, query, [_json(found.groups)], place, options, overwrite=overwrite)


def _copy(connection: Connection, query: str, values: list[Any], place: Path, options: str, *, overwrite: bool) -> int:
    """The rows of `query` as a file, whole or not at all; how many."""
    with named.filled(place, overwrite=overwrite) as made:
        row = connection.execute(f"COPY ({query}) TO {_quoted(str(made))} ({options})", values).fetchone()
    return int(row[0]) if row else 0


def _guarded(connection: Connection, query: str, values: list[Any]) -> str:
    """The query for a CSV: no text of it is a formula to a spreadsheet, and its numbers are as they were."""
    columns = connection.execute(f"DESCRIBE {query}", values).fetchall()
    texts = [_name(name) for name, kind, *_ in columns if kind == "VARCHAR"]
    starts = ", ".join(f"chr({ord(start)})" for start in FORMULA_STARTS)
    guard = f"THEN {_quoted(chr(39))} || "
    guarded = ", ".join(f"CASE WHEN {text}[1] IN ({starts}) {guard}{text} ELSE {text} END AS {text}" for text in texts)
    return f"SELECT * REPLACE ({guarded}) FROM ({query})"


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _pointer(key: str) -> str:
    """A JSON pointer to one member."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _name(key: str) -> str:
    return '"' + key.replace('"', '""') + '"'

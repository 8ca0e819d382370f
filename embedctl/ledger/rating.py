"""From units to money in SQL, in exact decimals; unknown stays NULL. Works on the temporary table `batch`."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import orjson

from embedctl.ledger.prices import PriceBook
from embedctl.ledger.prices import price as pricing
from embedctl.ledger.prices.price import BELIEVED_FACTOR, BELIEVED_USD, Price, PriceKey
from embedctl.records import BY_THE_HOUR, NO_USAGE, uuid7

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MILLIONTH = "0.000001::DECIMAL(7,6)"  # "/ 1000000" would make a DOUBLE
_FOREVER = "TIMESTAMPTZ '9999-01-01 00:00:00+00'"

_RATE_COLUMNS = {
    "provider": "VARCHAR",
    "price_as": "VARCHAR",
    "model": "VARCHAR",
    "region": "VARCHAR",
    "price_tier": "VARCHAR",
    "meter": "VARCHAR",
    "since": "BIGINT",
    "until": "BIGINT",
    "price_id": "UUID",
    "list_price": "DECIMAL(18,9)",
    "unit_price": "DECIMAL(18,9)",
    "cached_price": "DECIMAL(18,9)",
}

_MOST_BELIEVED = (
    f"{BELIEVED_USD} + b.quantity * greatest(coalesce(r.list_price, 0), coalesce(r.unit_price, 0)) "
    f"* {BELIEVED_FACTOR * Decimal('0.000001'):f}::DECIMAL(7,6)"
)
"""`price.most_believed`, of what an answer says it costs."""


def not_believed(said: str, condition: str) -> str:
    """SQL of `reason`, with what was said of the cost behind it where that is not believed."""
    words = f"'not believed: a cost of ' || left({said}, 60)"
    return f"CASE WHEN {said} IS NOT NULL AND {condition} THEN concat_ws('; ', reason, {words}) ELSE reason END"


# What decides the cost of an event, strongest first.
_BASIS = f"""
CASE WHEN b.entry_kind = 'cache_hit' THEN 'nothing'
     WHEN b.entry_kind <> 'usage' THEN 'manual'
     WHEN b.billable = 'no' THEN 'nothing'
     WHEN b.amount >= 0 AND (b.price_as = '{BY_THE_HOUR}' OR b.amount <= {_MOST_BELIEVED}) THEN 'reported'
     WHEN b.price_as = 'free' OR r.unit_price = 0 THEN 'free'
     WHEN b.billable = 'unknown' THEN 'risk'
     WHEN b.usage_mode = 'native' AND b.usage_source = 'native' AND b.tokens_native IS NULL
          AND b.tokens_total = 0 AND b.meter = 'input_token' THEN 'uncounted'
     WHEN r.unit_price IS NULL THEN 'unpriced'
     ELSE 'priced' END
"""


def _amount(unit_price: str) -> str:
    return f"(full_units * {unit_price} * {_MILLIONTH} + cached_units * coalesce(cached_price, 0) * {_MILLIONTH})"


_TOO_MUCH = "entry_kind = 'usage' AND basis NOT IN ('reported', 'nothing')"

RATED = f"""
WITH matched AS (
  SELECT b.*, {_BASIS} AS basis, r.price_id, r.list_price, r.unit_price, r.cached_price,
    CASE WHEN r.cached_price IS NULL THEN 0 ELSE least(coalesce(b.tokens_cached, 0), b.quantity) END AS cached_units,
    b.quantity - cached_units AS full_units
  FROM batch b LEFT JOIN rate r
    ON r.provider = b.provider AND r.price_as = coalesce(b.price_as, '') AND r.model = b.model
   AND r.region = b.region AND r.price_tier = b.price_tier AND r.meter = b.meter
   AND epoch_us(b.occurred_at) >= r.since AND epoch_us(b.occurred_at) < r.until)
SELECT * EXCLUDE (price_as, amount, basis, list_price, cached_price, cached_units, full_units, price_id, unit_price,
                  reason, told),
  CASE WHEN basis IN ('priced', 'risk') THEN price_id END AS price_id,
  CASE WHEN basis IN ('priced', 'risk') THEN unit_price END AS unit_price,
  'USD' AS currency,
  CASE WHEN basis IN ('nothing', 'free') THEN 0
       WHEN basis = 'reported' AND price_as = '{BY_THE_HOUR}' THEN amount
       WHEN basis IN ('priced', 'reported') THEN {_amount("list_price")} END::DECIMAL(28,15) AS cost_list,
  CASE WHEN basis IN ('nothing', 'free') THEN 0
       WHEN basis IN ('reported', 'manual') THEN amount
       WHEN basis = 'priced' THEN {_amount("unit_price")} END::DECIMAL(28,15) AS cost,
  CASE WHEN basis = 'risk' THEN tokens_estimated * unit_price * {_MILLIONTH} END::DECIMAL(28,15) AS cost_at_risk,
  CASE WHEN basis = 'reported' THEN amount END::DECIMAL(28,15) AS cost_provider,
  CASE basis WHEN 'nothing' THEN 'not_billable' WHEN 'reported' THEN 'provider_reported' WHEN 'risk' THEN 'at_risk'
       WHEN 'uncounted' THEN 'unpriced' ELSE basis END AS cost_status,
  CASE WHEN basis = 'uncounted' AND NOT starts_with(coalesce(reason, ''), '{NO_USAGE}')
         THEN concat_ws('; ', '{NO_USAGE}', told) ELSE told END AS reason
FROM (SELECT *, {not_believed("CAST(amount AS VARCHAR)", _TOO_MUCH)} AS told FROM matched)
"""
"""Every column of usage_event that rating decides; `batch` holds the others, with `price_as` and `amount`."""


def sync_prices(connection: duckdb.DuckDBPyConnection, book: PriceBook, now: datetime) -> None:
    """Make the `price` table hold `book`; prices that left it move to price_superseded. Inside a transaction."""
    rows = [
        {
            "price_id": str(price.price_id),
            "provider": price.provider,
            "model": price.model,
            "region": price.region,
            "price_tier": price.tier,
            "meter": price.meter,
            "kind": price.kind,
            "unit_price": format(price.usd_per_million, "f"),
            "is_free": price.is_free,
            "currency": "USD",
            "valid_from": microseconds(price.valid_from),
            "valid_to": None if price.valid_to is None else microseconds(price.valid_to),
            "source": price.source,
            "source_ref": price.source_ref,
            "confidence": price.confidence,
        }
        for price in book.prices
    ]
    shape = dict.fromkeys(rows[0] if rows else (), "VARCHAR") | {"valid_from": "BIGINT", "valid_to": "BIGINT"}
    connection.execute(
        "INSERT INTO price_superseded SELECT *, ? FROM price p "
        "WHERE NOT EXISTS (SELECT 1 FROM price_superseded s WHERE s.price_id = p.price_id)",
        [now],
    )
    connection.execute("DELETE FROM price")
    if rows:
        connection.execute(
            "INSERT INTO price BY NAME SELECT * REPLACE (make_timestamptz(valid_from) AS valid_from, "
            "make_timestamptz(valid_to) AS valid_to), ?::TIMESTAMPTZ AS loaded_at FROM "
            "(SELECT unnest(from_json(?::JSON, ?::JSON), recursive := true))",
            [now, orjson.dumps(rows).decode(), orjson.dumps([shape]).decode()],
        )
    connection.execute(
        "INSERT INTO rating_run VALUES (?, ?, 'prices', ?, ?, NULL, NULL)",
        [uuid7(), now, book.fingerprint, len(rows)],
    )


def known_fingerprint(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Of the prices in the `price` table; None when none were ever loaded."""
    row = connection.execute(
        "SELECT price_set FROM rating_run WHERE kind = 'prices' ORDER BY started_at DESC, rating_run_id DESC LIMIT 1"
    ).fetchone()
    return row[0] if row else None


def make_rates(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill the temporary table `rate` with the rates of every key in `batch`, by the rule of `price.rate_at`."""
    keys = connection.execute(
        "SELECT DISTINCT provider, price_as, model, region, price_tier, meter FROM batch "
        "WHERE entry_kind = 'usage' AND billable <> 'no'"
    ).fetchall()
    names = {(model, price_as): model and pricing.bare_name(model, price_as) for _, price_as, model, *_ in keys}
    known = stored_prices(connection, [*names.values()])
    rates: list[dict[str, Any]] = []
    for provider, price_as, model, region, tier, meter in keys:
        key = PriceKey(provider=provider, price_as=price_as, model=model, region=region, tier=tier, meter=meter)
        bare = names[model, price_as]
        for rate in pricing.timeline(known.get(model, ()), key) or pricing.timeline(
            known.get(bare, ()), replace(key, model=bare)
        ):
            rates.append(
                {
                    "provider": provider,
                    "price_as": price_as or "",
                    "model": model,
                    "region": region,
                    "price_tier": tier,
                    "meter": meter,
                    "since": microseconds(rate.since),
                    "until": (1 << 62) if rate.until is None else microseconds(rate.until),
                    "price_id": str(rate.effective.price_id) if rate.effective else None,
                    "list_price": _digits(rate.listed),
                    "unit_price": _digits(rate.effective),
                    "cached_price": _digits(rate.cached),
                }
            )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE rate (" + ", ".join(f"{n} {t}" for n, t in _RATE_COLUMNS.items()) + ")"
    )
    if rates:
        shape = {name: "BIGINT" if kind == "BIGINT" else "VARCHAR" for name, kind in _RATE_COLUMNS.items()}
        connection.execute(
            "INSERT INTO rate BY NAME SELECT unnest(from_json(?::JSON, ?::JSON), recursive := true)",
            [orjson.dumps(rates).decode(), orjson.dumps([shape]).decode()],
        )


def stored_prices(connection: duckdb.DuckDBPyConnection, bare_names: Sequence[str] = ()) -> dict[str, list[Price]]:
    """The `price` table's rows for the models in `batch`, and for these names, by model."""
    rows = connection.execute(
        "SELECT provider, model, region, price_tier, meter, kind, unit_price, is_free, epoch_us(valid_from), "
        "epoch_us(valid_to), source, source_ref, confidence FROM price "
        "WHERE model IN (SELECT model FROM batch) OR list_contains(?, model)",
        [list(bare_names)],
    ).fetchall()
    found: dict[str, list[Price]] = {}
    for row in rows:
        price = Price(
            provider=row[0],
            model=row[1],
            region=row[2],
            tier=row[3],
            meter=row[4],
            kind=row[5],
            usd_per_million=row[6],
            is_free=row[7],
            valid_from=moment(row[8]),
            valid_to=None if row[9] is None else moment(row[9]),
            source=row[10],
            source_ref=row[11],
            confidence=row[12],
        )
        found.setdefault(price.model, []).append(price)
    return found


def microseconds(value: datetime) -> int:
    """Since 1970 in UTC, exactly; DuckDB gives times as such: its own need pytz."""
    return (value - EPOCH) // timedelta(microseconds=1)


def moment(epoch_us: int) -> datetime:
    """The inverse of `microseconds`."""
    return EPOCH + timedelta(microseconds=epoch_us)


def _digits(price: Price | None) -> str | None:
    return None if price is None else format(price.usd_per_million, "f")

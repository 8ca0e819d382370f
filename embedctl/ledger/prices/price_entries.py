"""One [[price]] table of a price file, read and checked: exact, dated, in the right unit. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any

from embedctl.errors import ConfigurationInvalid
from embedctl.ledger.prices.price import Price, named
from embedctl.settings import toml_files
from embedctl.storage.given_files import shortened

CONFIDENCES = ("confirmed", "listed", "derived", "observed_only")
LOWEST, HIGHEST = Decimal("0.0001"), Decimal(1000)
"""USD per million tokens outside of which a price is a unit mix-up (accounting.md 1.12: 1,000x and 100,000x)."""

_TOO_MUCH = Decimal(10) ** 12
"""USD per million units, of whatever unit."""

_TEXTS = {"provider", "model", "region", "tier", "meter", "kind", "source", "source_ref", "confidence"}
_KEYS = {field.name for field in fields(Price)}


def entries(place: str, text: str) -> list[dict[str, Any]]:
    """The [[price]] tables of a file, unchecked."""
    entries = toml_files.parsed(text, place).get("price", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationInvalid(f"{place}: prices are [[price]] tables")
    return entries


def parse(entry: Mapping[str, Any]) -> Price:
    """One [[price]] table.

    Raises:
        ValueError: What is wrong with it.
    """
    unknown = sorted(entry.keys() - _KEYS)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    missing = [key for key in ("provider", "model", "usd_per_million", "valid_from", "source") if not entry.get(key)]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    for key in _TEXTS & entry.keys():
        if not isinstance(entry[key], str):
            raise ValueError(f"{key} must be a string")  # noqa: TRY004 - a wrong file, not a wrong call
    if not isinstance(entry.get("is_free", False), bool):
        raise ValueError("is_free must be true or false")  # noqa: TRY004
    values = dict(entry)
    values["usd_per_million"] = exact(entry["usd_per_million"])
    values["valid_from"] = moment(entry["valid_from"])
    values["valid_to"] = moment(entry["valid_to"]) if entry.get("valid_to") else None
    values.setdefault("confidence", "listed")
    price = Price(**values)
    _check(price)
    return price


def _check(price: Price) -> None:
    if price.confidence not in CONFIDENCES:
        raise ValueError(f"confidence {price.confidence!r} is none of {', '.join(CONFIDENCES)}")
    if price.kind not in ("list", "contract"):
        raise ValueError(f"kind {price.kind!r} is neither list nor contract")
    if price.is_free != (price.usd_per_million == 0):
        raise ValueError(f"{named(price)}: is_free says one thing, usd_per_million = {price.usd_per_million} another")
    if price.meter.startswith("input_token") and not price.is_free and not LOWEST <= price.usd_per_million <= HIGHEST:
        raise ValueError(
            f"{named(price)}: {price.usd_per_million} USD per million tokens is not between {LOWEST} and {HIGHEST}: "
            "another unit?"
        )
    if price.valid_to is not None and price.valid_to <= price.valid_from:
        raise ValueError(f"{named(price)}: valid_to is not after valid_from")


def exact(value: object) -> Decimal:
    """A price as a decimal of at most nine places.

    Raises:
        ValueError: It is none, is negative, or a binary float.
    """
    if isinstance(value, float) or not isinstance(value, str | int | Decimal):
        raise ValueError(f'usd_per_million must be a string like "0.02", not {shortened(value)}')  # noqa: TRY004
    try:
        price = Decimal(value)
    except InvalidOperation:
        raise ValueError(f"usd_per_million {shortened(value)} is no number") from None
    if not price.is_finite() or not 0 <= price < _TOO_MUCH:
        raise ValueError(f"usd_per_million {shortened(value)} is no price")
    if price != price.quantize(Decimal("0.000000001")):
        raise ValueError(f"usd_per_million {shortened(value)} has more than nine decimal places")
    return price


def moment(value: object) -> datetime:
    """A day or time of TOML, or an ISO 8601 string, as a moment in UTC; without a zone it is UTC.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        try:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"{value.isoformat()} is beyond the calendar") from None
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise ValueError(f"{shortened(value)} is no date")

"""Prices: what one million units cost, from when, and who says so. Shared by receipts, --max-cost and the ledger.

prices.toml is a list of tables, the catalog's own and the user's (`$EMBEDCTL_HOME/prices.toml`) alike:

    [[price]]
    provider = "openai"
    model = "text-embedding-3-small"
    tier = "standard"                # batch, flex …; "standard" by default
    region = "*"                     # "*" (any) by default
    meter = "input_token"            # input_token_cached, image …; "input_token" by default
    kind = "list"                    # or "contract": your own, stronger than any list price; "list" by default
    usd_per_million = "0.02"         # a string: exact
    valid_from = 2024-01-25          # a day (UTC) or a time
    valid_to = 2025-01-01            # not included; by default until the next price of the same key
    source = "https://…"
    source_ref = "…"                 # optional
    confidence = "confirmed"         # listed, derived, observed_only
    is_free = false                  # true exactly where usd_per_million is 0
"""

from __future__ import annotations

import hashlib
import tomllib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from embedctl.errors import ConfigurationInvalid

Kind = Literal["list", "contract"]
CONFIDENCES = ("confirmed", "listed", "derived", "observed_only")
LOWEST, HIGHEST = Decimal("0.0001"), Decimal(1000)
"""USD per million tokens outside of which a price is a unit mix-up (accounting.md 1.12: 1,000x and 100,000x)."""

_MILLIONTH = Decimal("0.000001")
_NAMESPACE = uuid.UUID("7b0d6f0e-5f0a-5e0c-9a57-3f8e6b0c2d11")


def cost(units: int, usd_per_million: Decimal) -> Decimal:
    """USD for `units`, exact to the last digit: nothing is rounded before it is printed."""
    return units * usd_per_million * _MILLIONTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One price over one half-open interval of time.

    Attributes:
        usd_per_million: USD per 1,000,000 units of `meter`, always.
        region: "*" is any; an exact region is stronger.
        kind: "contract" is stronger than "list".
        valid_to: First instant at which it no longer holds; None while it does.
    """

    provider: str
    model: str
    usd_per_million: Decimal
    valid_from: datetime
    source: str
    confidence: str
    region: str = "*"
    tier: str = "standard"
    meter: str = "input_token"
    kind: Kind = "list"
    valid_to: datetime | None = None
    source_ref: str | None = None
    is_free: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        """What two prices share that must not hold at once."""
        return (self.provider, self.model, self.region, self.tier, self.meter, self.kind)

    @property
    def price_id(self) -> uuid.UUID:
        """The same for the same price wherever it is loaded."""
        text = "|".join((*self.key, format(self.usd_per_million.normalize(), "f"), self.valid_from.isoformat()))
        return uuid.uuid5(_NAMESPACE, text)

    def holds(self, moment: datetime) -> bool:
        """Whether it is valid at `moment`."""
        return self.valid_from <= moment and (self.valid_to is None or moment < self.valid_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceKey:
    """What an event is rated by.

    Attributes:
        provider: The configured provider; a contract price may be set for it by name.
        price_as: The catalog provider whose prices apply; None when nobody's do.
    """

    provider: str
    price_as: str | None
    model: str
    region: str = "*"
    tier: str = "standard"
    meter: str = "input_token"


@dataclass(frozen=True, slots=True)
class Rate:
    """The prices of one key over one interval without a change in it.

    Attributes:
        listed: The list price, None when there is none.
        effective: What is paid: the contract's, else the list price.
        cached: For the provider-side cached part, None when it costs the same.
    """

    since: datetime
    until: datetime | None
    listed: Price | None
    effective: Price | None
    cached: Price | None = None


def rate_at(prices: Iterable[Price], key: PriceKey, moment: datetime) -> Rate:
    """The rate of `key` at one moment: an exact region before "*", a contract before a list price."""
    holding = [price for price in prices if price.holds(moment)]

    def best(meter: str, kind: Kind) -> Price | None:
        owners = (key.provider, key.price_as) if kind == "contract" else (key.price_as,)
        for owner in owners:
            for region in dict.fromkeys((key.region, "*")):
                for price in holding:
                    if price.key == (owner, key.model, region, key.tier, meter, kind):
                        return price
        return None

    listed = best(key.meter, "list")
    cached = best(f"{key.meter}_cached", "contract") or best(f"{key.meter}_cached", "list")
    return Rate(moment, None, listed, best(key.meter, "contract") or listed, cached)


def timeline(prices: Iterable[Price], key: PriceKey) -> list[Rate]:
    """The rates of `key` over all time, in order, without overlap; empty when no price was ever known."""
    own = [price for price in prices if price.model == key.model and price.tier == key.tier]
    borders = sorted({b for price in own for b in (price.valid_from, price.valid_to) if b is not None})
    rates = []
    for index, since in enumerate(borders):
        rate = rate_at(own, key, since)
        if rate.effective is not None:
            until = borders[index + 1] if index + 1 < len(borders) else None
            rates.append(replace(rate, until=until))
    return rates


@dataclass(frozen=True)
class PriceBook:
    """All prices that hold or held, checked.

    Attributes:
        fingerprint: Of the files they came from.
    """

    prices: tuple[Price, ...]
    fingerprint: str

    @cached_property
    def _by_model(self) -> Mapping[str, list[Price]]:
        found: dict[str, list[Price]] = {}
        for price in self.prices:
            found.setdefault(price.model, []).append(price)
        return found

    def price_at(
        self,
        provider: str | None,
        model: str,
        *,
        at: datetime,
        region: str = "*",
        tier: str = "standard",
        meter: str = "input_token",
        place: str | None = None,
    ) -> Price | None:
        """What is paid at `at`; None means unknown, never free.

        Args:
            provider: Whose prices (`price_as`).
            place: The configured provider's own name where it differs, for a contract set by that name.
        """
        key = PriceKey(
            provider=place or provider or "", price_as=provider, model=model, region=region, tier=tier, meter=meter
        )
        return rate_at(self._by_model.get(model, ()), key, at).effective


def catalog_text() -> str:
    """The shipped prices.toml; empty when this installation has none."""
    file = resources.files("embedctl.catalog") / "prices.toml"
    return file.read_text("utf-8") if file.is_file() else ""


def price_texts(own: Path | None) -> list[tuple[str, str]]:
    """(place, TOML) of the shipped prices and the user's own, weaker first."""
    texts = [("the catalog's prices.toml", catalog_text())]
    if own is not None and own.is_file():
        texts.append((str(own), own.read_text("utf-8")))
    return texts


def fingerprint(texts: Iterable[tuple[str, str]]) -> str:
    """Changes when any price does."""
    return hashlib.blake2b("\0".join(text for _, text in texts).encode(), digest_size=16).hexdigest()


def load(texts: Iterable[tuple[str, str]]) -> PriceBook:
    """Read, check and join price files; of two prices with one key and start the later file's holds.

    Raises:
        ConfigurationInvalid: A file is no TOML, or a price in it is wrong; all that is wrong is named.
    """
    texts = list(texts)
    found: dict[tuple[Any, ...], Price] = {}
    problems: list[str] = []
    for place, text in texts:
        here: set[tuple[Any, ...]] = set()
        for index, entry in enumerate(entries(place, text), 1):
            try:
                price = parse(entry)
            except ValueError as error:
                problems.append(f"{place}, price {index}: {error}")
                continue
            identity = (*price.key, price.valid_from)
            if identity in here:
                problems.append(f"{place}, price {index}: twice the same key and valid_from: {named(price)}")
            here.add(identity)
            found[identity] = price
    prices = _closed(found.values(), problems)
    if problems:
        raise ConfigurationInvalid(
            problems[0] if len(problems) == 1 else f"{len(problems)} prices are wrong; first: {problems[0]}",
            hint="correct the file; `embedctl prices check` looks closer",
            details=[{"problem": problem} for problem in problems],
        )
    return PriceBook(tuple(prices), fingerprint(texts))


def named(price: Price) -> str:
    """A price in words, for messages."""
    extra = [part for part in (price.tier, price.region, price.meter, price.kind) if part not in _USUAL]
    return f"{price.provider}:{price.model}" + (f" ({', '.join(extra)})" if extra else "")


_USUAL = ("standard", "*", "input_token", "list")
_KEYS = {field.name for field in fields(Price)}


def entries(place: str, text: str) -> list[dict[str, Any]]:
    """The [[price]] tables of a file, unchecked."""
    try:
        content = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(f"{place}: {error}", hint="the file must be TOML") from None
    entries = content.get("price", [])
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
    values = dict(entry)
    values["usd_per_million"] = exact(entry["usd_per_million"])
    values["valid_from"] = moment(entry["valid_from"])
    values["valid_to"] = moment(entry["valid_to"]) if entry.get("valid_to") else None
    values.setdefault("confidence", "listed")
    values["is_free"] = bool(entry.get("is_free", False))
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
        raise ValueError(f'usd_per_million must be a string like "0.02", not {value!r}')  # noqa: TRY004
    try:
        price = Decimal(value)
    except InvalidOperation:
        raise ValueError(f"usd_per_million {value!r} is no number") from None
    if not price.is_finite() or price < 0:
        raise ValueError(f"usd_per_million {value!r} is no price")
    if price != price.quantize(Decimal("0.000000001")):
        raise ValueError(f"usd_per_million {value!r} has more than nine decimal places")
    return price


def moment(value: object) -> datetime:
    """A day or time of TOML, or an ISO 8601 string, as a moment in UTC; without a zone it is UTC.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise ValueError(f"{value!r} is no date")


def _closed(prices: Iterable[Price], problems: list[str]) -> list[Price]:
    """Each price until the next of its key; overlaps are problems."""
    ordered = sorted(prices, key=lambda price: (price.key, price.valid_from))
    closed = []
    for index, price in enumerate(ordered):
        after = ordered[index + 1] if index + 1 < len(ordered) and ordered[index + 1].key == price.key else None
        if after is not None and price.valid_to is not None and price.valid_to > after.valid_from:
            problems.append(f"{named(price)}: two prices hold from {after.valid_from:%Y-%m-%d} on")
        closed.append(replace(price, valid_to=after.valid_from) if after and price.valid_to is None else price)
    return closed

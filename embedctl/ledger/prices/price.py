"""A price over time, which one holds when, and what units cost at it. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Literal

from embedctl.dataclass import dataclass

Kind = Literal["list", "contract"]

_MILLIONTH = Decimal("0.000001")
_NAMESPACE = uuid.UUID("7b0d6f0e-5f0a-5e0c-9a57-3f8e6b0c2d11")


def cost(units: int, usd_per_million: Decimal) -> Decimal:
    """USD for `units`, exact to the last digit: nothing is rounded before it is printed."""
    return units * usd_per_million * _MILLIONTH


BELIEVED_FACTOR = 10
BELIEVED_USD = 1
"""What an answer may say it costs: from 0 up to so many times the price of its tokens, and so much more."""


def most_believed(priced: Decimal) -> Decimal:
    """USD of an answer whose tokens cost `priced`, 0 where they have no price, up to which its own amount counts."""
    return BELIEVED_FACTOR * priced + BELIEVED_USD


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


def bare_name(model: str, price_as: str | None) -> str:
    """A model's name without a gateway's prefix ("openai:", "openai/"), when that is whose prices apply."""
    for mark in ":/":
        if price_as and model.startswith(f"{price_as}{mark}"):
            return model[len(price_as) + 1 :]
    return model


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


def named(price: Price) -> str:
    """A price in words, for messages."""
    extra = [part for part in (price.tier, price.region, price.meter, price.kind) if part not in _USUAL]
    return f"{price.provider}:{price.model}" + (f" ({', '.join(extra)})" if extra else "")


_USUAL = ("standard", "*", "input_token", "list")

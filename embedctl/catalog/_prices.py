"""List prices as observed, before the ledger takes them in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Literal

from embedctl.catalog._tables import table

Confidence = Literal["confirmed", "listed", "derived", "observed_only"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One list price.

    Attributes:
        usd_per_million: USD per 1,000,000 units of `meter`.
        region: "*" where the region does not matter.
        tier: "standard" or "batch".
        valid_from: The day it was first seen, or from which its source says it holds (UTC midnight).
    """

    provider: str
    model: str
    usd_per_million: Decimal
    valid_from: date
    source: str
    confidence: Confidence
    region: str = "*"
    tier: Literal["standard", "batch"] = "standard"
    meter: str = "input_token"
    source_ref: str | None = None
    is_free: bool = False


@cache
def prices() -> tuple[Price, ...]:
    """Every list price of the catalog; a model without one has no known price."""
    return tuple(
        Price(**{**row, "usd_per_million": Decimal(row["usd_per_million"])}) for row in table("prices")["price"]
    )

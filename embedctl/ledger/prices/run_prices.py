"""What tokens cost in one run: the prices as they stand when it begins."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path

from embedctl.ledger.prices import price_list
from embedctl.ledger.prices.price_list import PriceBook
from embedctl.routing.endpoint import Endpoint


class RunPrices:
    """Prices at one moment.

    Args:
        price_file: The user's own prices.
    """

    def __init__(self, price_file: Path, at: datetime) -> None:
        self._price_file = price_file
        self._book: PriceBook | None = None  # read when something has a price: not for free runs
        self._at = at
        self._found: dict[tuple[str, str, str | None, str], Decimal | None] = {}

    def price(self, provider: str, model: str, price_as: str | None, tier: str = "standard") -> Decimal | None:
        """USD per million tokens; 0 when it is free, None when nobody knows."""
        if price_as == "free":
            return Decimal(0)
        key = (provider, model, price_as, tier)
        if key not in self._found:  # asked three times for each request
            if self._book is None:
                self._book = price_list.load(price_list.price_texts(self._price_file))
            found = self._book.price_at(price_as, model, at=self._at, place=provider, tier=tier)
            self._found[key] = found.usd_per_million if found else None
        return self._found[key]

    def of(self, endpoint: Endpoint, tier: str = "standard") -> Decimal | None:
        """The same, of an offer."""
        for name in (endpoint.model, endpoint.wire_model):  # the first is what the ledger looks up
            if (found := self.price(endpoint.provider, name, endpoint.price_as, tier)) is not None:
                return found
        return None

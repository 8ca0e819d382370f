"""The prices that are known here: those of the catalog, and the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedctl.ledger import prices

if TYPE_CHECKING:
    from embedctl.ledger.prices import PriceBook
    from embedctl.settings import Settings


def price_book(settings: Settings) -> PriceBook:
    """All of them, over time."""
    return prices.load(prices.price_texts(settings.paths.price_file))

"""What `models list` says of a model; `models show` begins with the same."""

from __future__ import annotations

from typing import Any

from embedctl.ledger.prices import PriceBook
from embedctl.providers import catalog
from embedctl.providers.catalog import ModelEntry
from embedctl.records import format_money, utc_now
from embedctl.routing import allow
from embedctl.routing.fallback import ChainEntry, allowed
from embedctl.settings import Settings


def row(model: ModelEntry, settings: Settings, book: PriceBook) -> dict[str, Any]:
    """Name, dimensions, limit and price of a model, and whether the settings allow it."""
    lists = allow.lists(settings, settings.options.workspace)
    entry = ChainEntry(provider=model.provider, model=model.name, canonical=model.canonical)
    default = catalog.default_model(model.provider)
    return {
        "called": model.id,
        "provider": model.provider,
        "model": model.name,
        "canonical": model.canonical,
        "dimensions": model.dimensions,
        "max_tokens": model.max_tokens,
        "usd_per_million": _price(model, settings, book),
        "status": model.status,
        "allowed": bool(allowed([entry], lists)[0]),
        "default": default is not None and default.id == model.id,
    }


def _price(model: ModelEntry, settings: Settings, book: PriceBook) -> str | None:
    """USD per million tokens now, "free", or so much an hour; None where nobody knows."""
    own = settings.providers.get(model.provider)
    if own is not None and own.per_hour is not None:
        return f"{format_money(own.per_hour)} an hour"
    provider = catalog.providers().get(model.provider)
    if provider is None:
        return None
    if provider.free:
        return "free"
    if not provider.price_as:
        return None
    price = book.price_at(provider.price_as, model.name, at=utc_now())
    return format_money(price.usd_per_million) if price else None

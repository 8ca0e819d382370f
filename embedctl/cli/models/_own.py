"""Models that the catalog does not know: of the settings, pulled, with a price of the user's, or that answered here."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from embedctl.backends import folders, local
from embedctl.errors import EmbedctlError
from embedctl.ledger import prices
from embedctl.ledger.prices import PriceBook, price_list
from embedctl.providers import catalog
from embedctl.records import format_money, utc_now
from embedctl.routing import allow, chain
from embedctl.routing.fallback import allowed
from embedctl.runs.registry import RunRegistry
from embedctl.settings import Settings


def rows(settings: Settings, book: PriceBook) -> list[dict[str, Any]]:
    """A row per model as those of the catalog have it, and how it is known."""
    found = [_row(settings, book, *name, why) for name, why in _names(settings).items() if catalog.find(*name) is None]
    return [row for row in found if row is not None]


def _names(settings: Settings) -> dict[tuple[str, str], str]:
    """(provider, model) → how it is known; the first reason counts."""
    known: dict[tuple[str, str], str] = {}
    for provider, place in settings.providers.items():
        for name in (*place.models, *([place.model] if place.model else [])):
            known.setdefault((provider, name), "settings")
    for name, folder in folders.pulled_names(settings.paths.models).items():
        with suppress(EmbedctlError):  # a folder that is no model is none that can be asked for
            known.setdefault((local.protocol_of(folder), name), "pulled")
    own = price_list.own_text(settings.paths.price_file)
    for price in prices.load([(str(settings.paths.price_file), own)]).prices if own else ():
        if "*" not in (price.provider, price.model):
            known.setdefault((price.provider, price.model), "prices")
    for run in RunRegistry(settings.paths.runs).all():
        provider, colon, name = run.model.partition(":")
        if colon and run.counts.get("vectors"):
            known.setdefault((provider, name), "runs")
    return known


def _row(settings: Settings, book: PriceBook, provider: str, name: str, why: str) -> dict[str, Any] | None:
    """None where the settings have no such place any more, or it cannot be used."""
    try:
        endpoint = chain.endpoint(settings, provider, name)
    except EmbedctlError:
        return None
    price = book.price_at(endpoint.price_as, name, at=utc_now(), place=provider)
    costs = format_money(price.usd_per_million) if price else None
    if endpoint.per_hour is not None:
        costs = f"{format_money(endpoint.per_hour)} an hour"
    elif endpoint.price_as == "free":
        costs = "free"
    lists = allow.lists(settings, settings.options.workspace)
    return {
        "called": f"{provider}:{name}",
        "provider": provider,
        "model": name,
        "canonical": endpoint.canonical,
        "dimensions": endpoint.dimensions,
        "max_tokens": endpoint.max_tokens,
        "usd_per_million": costs,
        "status": f"own ({why})",
        "allowed": bool(allowed([endpoint.in_chain], lists)[0]),
        "default": False,
    }

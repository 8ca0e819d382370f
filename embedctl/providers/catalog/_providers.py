"""Built-in providers: where models are served, and how fast one may ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import cache
from types import MappingProxyType
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.providers.catalog._tables import table

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEntry:
    """One built-in provider.

    Attributes:
        base_url: Upper-case words in it (RESOURCE, REGION) are for the user to replace; None = local.
        api_key_env: Environment variables of the key, first that is set wins; () = none is taken by itself.
        price_as: Whose prices apply; None = nobody's.
        requests_per_minute: Known rate of the lowest paid tier, None where unknown.
        requests_count_items: The rate counts texts, not requests.
        fallback: Default chain, of providers or provider:model.
        takes_tokens: Whether token arrays may be sent; None = as the protocol says.
        batch: Whether its own address has a Batch API for embeddings.
        batch_refused: Why it has none that can be used, whatever the user says; None: nothing is against it.
        options: For the protocol; the user's own come on top.
    """

    name: str
    protocol: str
    base_url: str | None = None
    api_key_env: tuple[str, ...] = ()
    price_as: str | None = None
    free: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    burst: int | None = None
    concurrency: int | None = None
    requests_count_items: bool = False
    default_model: str | None = None
    fallback: tuple[str, ...] = ()
    takes_tokens: bool | None = None
    batch: bool = False
    batch_refused: str | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


@cache
def providers() -> Mapping[str, ProviderEntry]:
    """Every built-in provider by name, in the catalog's order."""
    return MappingProxyType({name: _provider(name, row) for name, row in table("providers").items()})


def _provider(name: str, row: Mapping[str, Any]) -> ProviderEntry:
    merged = dict(row)
    for key in ("api_key_env", "fallback"):
        merged[key] = tuple(merged.get(key, ()))
    merged["options"] = MappingProxyType(merged.get("options", {}))
    return ProviderEntry(name=name, **merged)


def default_chain(provider: str) -> tuple[str, ...]:
    """Who may take over for a provider when the user says nothing; () for nobody."""
    place = providers().get(provider)
    return place.fallback if place else ()

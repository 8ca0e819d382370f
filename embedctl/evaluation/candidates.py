"""The models that are compared: who is asked, at what price, and at which widths they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from embedctl.budgets.limits import check_priced
from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.providers.catalog import ModelEntry
from embedctl.records import UNOBSERVED, Observer
from embedctl.routing import chain as chains
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint, check_usable
from embedctl.settings import Settings

_WIDTHS = (2048, 1024, 512, 256, 128, 64)
_LEAST_SHARE = 8
"""Of a model that makes any width, those of _WIDTHS are looked at down to an eighth of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model, and how its texts and questions are asked for.

    Attributes:
        settings: Of calls for texts; `query_settings`, of calls for questions: the input type may be another.
        price: USD per million tokens; None where nobody knows, or time is what costs. `batch_price`: likewise, through
            the provider's own batch interface.
    """

    settings: Settings
    query_settings: Settings
    documents: FallbackChain
    questions: FallbackChain
    price: Decimal | None
    batch_price: Decimal | None

    @property
    def endpoint(self) -> Endpoint:
        """Who is asked for texts."""
        return self.documents.first

    def widths(self, native: int, asked: Sequence[int]) -> list[tuple[int, bool]]:
        """(dimensions, whether the model was trained for them), its own first.

        Args:
            asked: Those to look at beside its own; none: those that it was trained for.
        """
        trained = trained_widths(self.endpoint.entry, native)
        shorter = [(width, width in trained or self._makes(width)) for width in asked if width < native]
        return [(native, True), *(shorter if asked else [(width, True) for width in trained])]

    def _makes(self, width: int) -> bool:
        entry = self.endpoint.entry
        return bool(entry and entry.reducible and (not entry.dimensions_allowed or entry.makes(width)))

    def close(self) -> None:
        """Nobody counts any more."""
        self.documents.close()
        self.questions.close()


def candidates(
    settings: Settings, names: Sequence[str], prices: RunPrices, observer: Observer = UNOBSERVED
) -> list[Candidate]:
    """All candidates, checked before anything is bought.

    Raises:
        WrongUsage: Nobody knows one, or one has no price and --max-cost is to hold.
        NotAllowed: An allow-list forbids one.
        ConfigurationInvalid: One has no key, no address, or is retired or not here.
    """
    found: dict[str, Candidate] = {}
    for name in names:
        own = _settings(settings, model=name)
        asking = _settings(settings, model=name, input_type="query")
        documents = chains.chain(own, observer=observer)
        if documents.first.id in found:
            continue
        check_usable(documents.first)
        first = documents.first
        found[first.id] = Candidate(
            settings=own,
            query_settings=asking,
            documents=documents,
            questions=chains.chain(asking),
            price=prices.of(first),
            batch_price=None if first.local or first.price_as == "free" else prices.of(first, "batch"),
        )
    if not found:
        raise WrongUsage("no candidates", hint="--candidates PROVIDER:MODEL,PROVIDER:MODEL")
    check_priced([one.endpoint for one in found.values()], prices.of, settings.options)
    return list(found.values())


def trained_widths(entry: ModelEntry | None, native: int) -> list[int]:
    """Widths below its own that a model was trained for, widest first; of many, a few."""
    if entry is None or not entry.reducible:
        return []
    allowed = entry.dimensions_allowed
    if isinstance(allowed, range) or not allowed:
        return [
            width for width in _WIDTHS if native // _LEAST_SHARE <= width < native and (not allowed or width in allowed)
        ]
    return sorted((width for width in allowed if width < native), reverse=True)


def with_cap(settings: Settings, left: Decimal | None) -> Settings:
    """The same, with what is left of --max-cost."""
    return replace(settings, options=replace(settings.options, max_cost=left))


def _settings(settings: Settings, *, model: str, **options: Any) -> Settings:
    """Settings that ask one model for its own vectors, and nobody else when it cannot be had."""
    ours = {
        "provider": None, "dimensions": None, "fallback": "off", "purpose": "test", "on_too_long": "chunk",
        "input_type": "document", "workspace_column": None, **options,
    }  # fmt: skip
    return replace(settings, options=replace(settings.options, model=model, **ours))

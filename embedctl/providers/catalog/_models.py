"""Models: one provider's offer of one set of weights, and the look-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Literal

from embedctl.dataclass import dataclass
from embedctl.providers.catalog._providers import providers
from embedctl.providers.catalog._tables import table
from embedctl.records import InputType, Limits, UsageMode

Status = Literal["active", "legacy", "retired"]
CostClass = Literal["free", "low", "medium", "high"]
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One provider's offer of a model.

    Attributes:
        name: As the provider calls it on the wire.
        canonical: The weights, whoever serves them ("openai/text-embedding-3-small").
        dimensions: Native width; None where nobody says.
        dimensions_allowed: Other widths the provider makes: a list, a range, or () for none.
        reducible: Trained so that the first N dimensions, scaled to length 1, are a good vector.
        max_tokens: Tokens per text.
        limits: Per request; empty means the protocol's own.
        tokenizer: "tiktoken:…", "hf:…" or "bundled:minilm"; None where it is not public.
        input_types: Those that the model tells apart; () = none.
        prefixes: Literal text before each text, by input type; {} when a field says it, or the model is symmetric.
        field_input_type: Whether the input type travels in a field of the request.
        normalized: Whether vectors arrive with length 1; None where nobody says.
        status: "retired": requests fail.
        batch: Whether the provider's Batch API serves it; None where nobody says.
        served: Whether a built-in provider can be asked for it.
        retires: ISO date on which it stops.
        quality: As the API guide rates it; None where it does not. `speed` likewise.
        cost_class: free, low, medium, high; None where no price is known.
        sources: Fact ("limits", "price") to where it was read.
        unverified: Names of facts that no primary source was seen for.
    """

    provider: str
    name: str
    canonical: str
    revision: str | None = None
    dimensions: int | None = None
    dimensions_allowed: Sequence[int] = ()
    reducible: bool = False
    max_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)
    tokenizer: str | None = None
    usage_mode: UsageMode = "auto"
    input_types: tuple[InputType, ...] = ()
    prefixes: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    field_input_type: bool = False
    normalized: bool | None = None
    status: Status = "active"
    batch: bool | None = None
    served: bool = True
    retires: str | None = None
    quality: str | None = None
    speed: str | None = None
    cost_class: CostClass | None = None
    multilingual: bool | None = None
    bundled: bool = False
    sources: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    unverified: tuple[str, ...] = ()
    notes: str = ""

    @property
    def id(self) -> str:
        """As a user names it: "provider:name"."""
        return f"{self.provider}:{self.name}"

    def makes(self, dimensions: int) -> bool:
        """Whether the provider itself answers with this width when asked."""
        return dimensions == self.dimensions or dimensions in self.dimensions_allowed


@cache
def models() -> tuple[ModelEntry, ...]:
    """Every offer, retired ones and those of no built-in provider too, in the catalog's order."""
    found = table("models")
    weights = found["weights"]
    return tuple(_model(row, weights[row["weights"]]) for row in found["model"])


def _model(row: Mapping[str, Any], weights: Mapping[str, Any]) -> ModelEntry:
    merged = {**weights, **row}
    merged["canonical"] = merged.pop("weights")
    merged["limits"] = Limits(**merged.get("limits", {}))
    merged["dimensions_allowed"] = _widths(merged.get("dimensions_allowed", ()))
    merged["input_types"] = tuple(merged.get("input_types", ()))
    # a field in the request takes the place of the literal prefix of the same weights
    merged["prefixes"] = MappingProxyType({} if row.get("field_input_type") else merged.get("prefixes", {}))
    merged["sources"] = MappingProxyType(merged.get("sources", {}))
    # what runs here was measured here
    shared = () if row.get("bundled") else weights.get("unverified", ())
    merged["unverified"] = tuple(sorted({*shared, *row.get("unverified", ())}))
    return ModelEntry(**merged)


def _widths(value: str | Sequence[int]) -> Sequence[int]:
    if isinstance(value, str):
        low, high = value.split("..")
        return range(int(low), int(high) + 1)
    return tuple(value)


@cache
def _by_provider() -> Mapping[tuple[str, str], ModelEntry]:
    return {(one.provider, one.name): one for one in models()}


def find(provider: str, name: str) -> ModelEntry | None:
    """One provider's offer, by the provider's name for it, the canonical one, or its last part."""
    found = _by_provider().get((provider, name)) or _by_provider().get((provider, _untagged(name)))
    if found is None:
        found = next((one for one in named(name) if one.provider == provider), None)
    return found


def serving(canonical: str) -> tuple[ModelEntry, ...]:
    """Everyone who serves these weights through a built-in provider, retired offers left out."""
    return tuple(one for one in models() if one.canonical == canonical and one.served and one.status != "retired")


@lru_cache(1024)
def named(bare_name: str) -> tuple[ModelEntry, ...]:
    """Every offer that a name without a provider may mean, best match first, bundled first among equals.

    The provider's own name counts before the canonical one, and that before its last part.
    """
    bare_name = _untagged(bare_name)
    ranked: list[tuple[int, bool, int, ModelEntry]] = []
    for place, one in enumerate(models()):
        tests = (
            one.name == bare_name,
            one.canonical == bare_name,
            bare_name in (one.name.rpartition("/")[2], one.canonical.rpartition("/")[2]),
        )
        if any(tests):
            ranked.append((tests.index(True), not one.bundled, place, one))
    return tuple(entry[3] for entry in sorted(ranked, key=lambda entry: entry[:3]))


def _untagged(name: str) -> str:
    return name.removesuffix(":latest")


def default_model(provider: str) -> ModelEntry | None:
    """What a chain entry means that names this provider alone; None where the provider decides."""
    place = providers().get(provider)
    return find(provider, place.default_model) if place and place.default_model else None

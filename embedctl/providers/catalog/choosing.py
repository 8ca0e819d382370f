"""Which model for which wish. Pure.

The order of the rules and their models are those of the API guide, "Choosing a Provider"; quality and speed are its
table "Model Comparison" (catalog/models.toml).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from embedctl.dataclass import dataclass
from embedctl.providers import catalog
from embedctl.providers.catalog import ModelEntry

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_QUALITIES = ("very high", "high", "medium", "low")

STATIC = (
    "static models (static:minishlab/potion-retrieval-32M …) embed thousands of texts per CPU second, and lose by it: "
    "the best keeps about 82 % of all-MiniLM-L6-v2's retrieval score"
)
"""Source: model2vec, results/README.md, "Retrieval Results" (2026-05-29): 35.06 of 42.92."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted; several at once are looked at in the order of the fields."""

    cost: Literal["free", "low"] | None = None
    quality: Literal["highest"] | None = None
    speed: Literal["fastest"] | None = None
    multilingual: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What fits.

    Attributes:
        offers: The weights chosen, as each provider offers them; the best place first.
        why: The rule that decided.
        unmet: Wishes that the choice does not fulfil, as sentences.
        lost: What the fastest models lose, where one is chosen or would fit, as sentences.
    """

    offers: tuple[ModelEntry, ...]
    why: str
    unmet: tuple[str, ...]
    lost: tuple[str, ...] = ()


def choose(wish: Wish, allowed: Callable[[ModelEntry], bool]) -> Choice:
    """The weights that a wish leads to, and who serves them; no offers where no list allows one."""
    why, offers = _for_many_languages(wish) or _decided(wish)
    kept = tuple(one for one in offers if allowed(one))
    return Choice(kept, why, tuple(_unmet(wish, kept[0])), _lost(wish, kept)) if kept else Choice((), why, ())


def _decided(wish: Wish) -> tuple[str, Sequence[ModelEntry]]:
    if wish.cost == "free":
        free = [one for one in catalog.serving(_MINILM) if _is_free(one)]
        return "--cost free: it runs on this machine", sorted(free, key=lambda one: not one.bundled)
    if wish.cost == "low":
        return "--cost low: the best rated of those up to 0.05 USD per million tokens", _low_cost()
    if wish.quality == "highest":
        return "--quality highest: the best rated of all", _served("openai/text-embedding-3-large", "openai")
    if wish.speed == "fastest":
        return "--speed fastest: the fastest rated of all", _served(_MINILM, "onnx")
    if wish.multilingual:
        return "--multilingual: an open model for a hundred languages", _served(
            "intfloat/multilingual-e5-large", "huggingface"
        )
    return "no wish: good quality at a low price", _served("openai/text-embedding-3-small", "openai")


def _for_many_languages(wish: Wish) -> tuple[str, Sequence[ModelEntry]] | None:
    """What a wish for many languages and a price leads to; None where nothing is known to be both.

    No model that is known to work in many languages is rated: with --quality or --speed this can only be said.
    """
    if not wish.multilingual or wish.cost is None:
        return None
    able = [one for one in catalog.models() if one.multilingual and one.served and one.status == "active"]
    if wish.cost == "free":
        found = [one for one in able if _is_free(one)]
        why = "--cost free --multilingual: an open model for many languages"
    else:
        found = [one for one in able if one.cost_class == "low"]
        why = "--cost low --multilingual: for many languages, up to 0.05 USD per million tokens"
    return (why, found) if found else None


def _served(canonical: str, first: str) -> list[ModelEntry]:
    return sorted(catalog.serving(canonical), key=lambda one: one.provider != first)


def _low_cost() -> list[ModelEntry]:
    rated = [
        one
        for one in catalog.models()
        if one.cost_class == "low" and one.quality in _QUALITIES and one.served and one.status == "active"
    ]
    return sorted(rated, key=lambda one: _QUALITIES.index(one.quality or "low"))


def _lost(wish: Wish, kept: Sequence[ModelEntry]) -> tuple[str, ...]:
    chosen = [one for one in kept if one.provider == "static"]
    if not (chosen or wish.cost == "free" or wish.speed == "fastest"):
        return ()
    return (STATIC, *(f"{one.id}: {one.notes}" for one in chosen))


def _is_free(one: ModelEntry) -> bool:
    place = catalog.providers().get(one.provider)
    return one.cost_class == "free" or bool(place and place.free)


def _unmet(wish: Wish, chosen: ModelEntry) -> list[str]:
    unmet = []
    if wish.cost == "free" and not _is_free(chosen):
        unmet.append(f"{chosen.id} is not free")
    if wish.quality == "highest" and chosen.quality != _QUALITIES[0]:
        unmet.append(f"the quality of {chosen.id} is rated {chosen.quality or 'by nobody'}")
    if wish.speed == "fastest" and chosen.speed != "very fast":
        unmet.append(f"the speed of {chosen.id} is rated {chosen.speed or 'by nobody'}")
    if wish.multilingual and not chosen.multilingual:
        unmet.append(f"{chosen.id} is not known to work in many languages")
    return unmet

"""How many tokens an attempt used, and how sure that is: the provider's count, or ours. Pure but for the tokenizer.

Rules: design.md 8, facts/accounting.md 2.4 (2026-11-21).
"""

from __future__ import annotations

from uuid import UUID

from embedctl import tokens as tokenizers
from embedctl.records import Request, Usage
from embedctl.serving import Offer

FIRST_CHECKED = 3
"""Answers of each offer that are counted here too before its counts are believed; then 1 %."""


def exact(offer: Offer, request: Request) -> tuple[int, str]:
    """Tokens of a request as counted here, and who counted."""
    if request.token_arrays:
        return sum(len(array) for array in request.texts), "token arrays"
    if request.tokens is not None:
        return request.tokens, offer.tokenizer or "token arrays"
    counter = tokenizers.counter(offer.tokenizer, offer.fallback_tokenizer)
    return sum(counter.count([str(text) for text in request.texts])), counter.tokenizer_id


def ceiling(request: Request) -> int:
    """More tokens than a request can have: a token is at least one byte, and each text gets a few special ones."""
    if request.tokens is not None:
        return request.tokens
    return request.content_bytes + 16 * len(request)


def usage(offer: Offer, request: Request, native: int | None, cached: int | None, event_id: UUID, seen: int) -> Usage:
    """The usage of an answer.

    Args:
        native: The provider's count, None where it gave none.
        seen: How many answers of this offer came before.
    """
    mode = offer.usage_mode
    if offer.local:
        return Usage(
            tokens_total=native or 0, source="native", mode=mode, tokens_native=native, tokenizer_id=offer.tokenizer
        )
    if mode == "native" and native is not None:
        return Usage(tokens_total=native, source="native", mode=mode, tokens_native=native, tokens_cached=cached)
    if mode == "native":
        return Usage(tokens_total=0, source="native", mode=mode)
    sampled = mode == "fallback" or native is None or seen < FIRST_CHECKED or event_id.int % 100 == 0
    sampled = sampled or _suspicious(request, native)
    if not sampled and native is not None:
        return Usage(tokens_total=native, source="native", mode=mode, tokens_native=native, tokens_cached=cached)
    estimated, tokenizer_id = exact(offer, request)
    believed = mode != "fallback" and native is not None and plausible(request, native, estimated)
    return Usage(
        tokens_total=native if believed and native is not None else estimated,
        source="native" if believed else "fallback",
        mode=mode,
        tokens_native=native,
        tokens_estimated=estimated,
        tokens_cached=cached if believed else None,
        tokenizer_id=tokenizer_id,
    )


def _suspicious(request: Request, native: int | None) -> bool:
    """Zero for text, or more than bytes allow: no tokenizer is needed to doubt it."""
    return native is not None and (native <= 0 or native > ceiling(request))


def plausible(request: Request, native: int, estimated: int) -> bool:
    """Whether a provider's count can be one of tokens: not 0, not the characters, not 3x off."""
    if native <= 0 or native > ceiling(request):
        return False
    if not request.token_arrays and len(request) > 0:
        characters = sum(len(str(text)) for text in request.texts)
        if native == characters and characters > estimated * 2:
            return False
    slack = 8 * len(request)  # short texts: special tokens weigh more than words
    return estimated / 3 - slack <= native <= estimated * 3 + slack

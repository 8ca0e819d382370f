"""How many tokens an attempt used, and how sure that is: the provider's count, or ours. Pure but for the tokenizer.

Rules: design.md 8, facts/accounting.md 2.4 (2026-11-21).
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from embedctl import tokens as tokenizers
from embedctl.dataclass import dataclass
from embedctl.records import Request, Usage
from embedctl.routing.endpoint import Endpoint

FIRST_CHECKED = 3
"""Answers of each endpoint that are counted here too before its counts are believed; then 1 %."""

_CHARACTERS_NO_CHANCE = 4  # texts, over any number of answers
_CONSTANT_ANSWERS = 4
_CONSTANT_BYTES = 200


@dataclass(slots=True)
class CountTrust:
    """Whether the counts of one server are believed.

    Attributes:
        answers: How many there were.
        doubted: One of its counts was none of tokens: all further ones are counted here too.
        characters: Texts whose count was that of their characters where the tokenizer's was another, and since which
            no count was another than that of the characters.
        lately: (count, bytes of content) of the last few answers; never changed in place: who counts in a thread adds
            to them while the loop looks at them.
    """

    answers: int = 0
    doubted: bool = False
    characters: int = 0
    lately: tuple[tuple[int, int], ...] = ()

    def took(self, request: Request, native: int | None) -> None:
        """One more answer."""
        self.answers += 1
        if native is not None:
            self.lately = (*self.lately, (native, request.content_bytes))[-_CONSTANT_ANSWERS:]

    def counts_characters(self, request: Request, native: int, estimated: int) -> bool:
        """Whether its counts are those of characters: of one short text that may be chance, of some it is none."""
        if native != _characters(request):
            self.characters = 0
        elif native != estimated:
            self.characters += len(request)
        return self.characters >= _CHARACTERS_NO_CHANCE

    @property
    def suspects(self) -> bool:
        """Whether its next count is compared with the tokenizer's."""
        return self.doubted or self.constant or self.characters > 0

    @property
    def constant(self) -> bool:
        """Whether it says the same number whatever it is sent (xinference: "always 37"; facts/providers.md 12)."""
        lately = self.lately
        if len(lately) < _CONSTANT_ANSWERS or len({count for count, _ in lately}) > 1:
            return False
        sizes = [size for _, size in lately]
        return max(sizes) > max(1.5 * min(sizes), min(sizes) + _CONSTANT_BYTES)


def exact(endpoint: Endpoint, request: Request) -> tuple[int, str]:
    """Tokens of a request as counted here, and who counted; a tokenizer that fails at it is replaced by bytes/4."""
    if request.tokens is not None and not request.token_arrays:
        return request.tokens, endpoint.tokenizer or "token arrays"
    each, tokenizer_id = _each(endpoint, request)
    return sum(each), tokenizer_id


def _each(endpoint: Endpoint, request: Request) -> tuple[tuple[int, ...], str]:
    """Tokens of each text."""
    if request.token_arrays:
        return tuple(len(array) for array in request.texts), "token arrays"
    texts = [str(text) for text in request.texts]
    counter = tokenizers.counter(endpoint.tokenizer, endpoint.fallback_tokenizer)
    try:
        return tuple(endpoint.counts.of(counter, texts)), counter.tokenizer_id
    except Exception:  # loaded, and yet it has no token for this text: it must not cost the run
        counter = tokenizers.counter(tokenizers.BYTES)
        return tuple(counter.count(texts)), counter.tokenizer_id


def tokens_each(request: Request, used: Usage, said: Sequence[int] | None) -> Sequence[int] | None:
    """Tokens of each text of an answered request, where they are known without counting for it; None where not.

    The provider's word comes first, then what was counted before it was sent, then a text that was alone, then a
    tokenizer that ran anyway: in all cases only counts that add up to what is booked.
    """
    if said is not None:
        return said
    if request.tokens_each is not None:
        return request.tokens_each
    if len(request) == 1 and 0 < used.tokens_total <= upper_bound(request):
        return (used.tokens_total,)
    return used.tokens_each if used.tokens_each and sum(used.tokens_each) == used.tokens_total else None


def upper_bound(request: Request) -> int:
    """More tokens than a request can have: a token is at least one byte, and each text gets a few special ones."""
    if request.tokens is not None:
        return request.tokens
    return request.content_bytes + 16 * len(request)


def must_count(endpoint: Endpoint, request: Request, native: int | None, event_id: UUID, trust: CountTrust) -> bool:
    """Whether `usage` will count with a tokenizer, which takes its time."""
    if endpoint.local or endpoint.usage_mode == "native":
        return False
    looked_at = endpoint.usage_mode == "fallback" or trust.suspects or trust.answers < FIRST_CHECKED
    return looked_at or native is None or _absurd(request, native) or not event_id.int % 100


def usage(
    endpoint: Endpoint, request: Request, native: int | None, cached: int | None, event_id: UUID, scale: CountTrust
) -> Usage:
    """The usage of an answer.

    Args:
        native: The provider's count, None where it gave none.
        scale: Learns from this answer.
    """
    mode = endpoint.usage_mode
    seen = scale.answers
    scale.took(request, native)
    if endpoint.local:
        return Usage(
            tokens_total=native or 0, source="native", mode=mode, tokens_native=native, tokenizer_id=endpoint.tokenizer
        )
    if mode == "native":
        return Usage(tokens_total=native or 0, source="native", mode=mode, tokens_native=native, tokens_cached=cached)
    looked_at = mode == "fallback" or scale.suspects or seen < FIRST_CHECKED
    if native is not None and not looked_at and not _absurd(request, native) and event_id.int % 100:
        return Usage(tokens_total=native, source="native", mode=mode, tokens_native=native, tokens_cached=cached)
    each = None
    if request.tokens is None:
        each, tokenizer_id = _each(endpoint, request)
        estimated = sum(each)
    else:
        estimated, tokenizer_id = exact(endpoint, request)
    believed = native is not None and plausible(request, native, estimated) and not scale.constant
    if native is not None and scale.counts_characters(request, native, estimated):
        believed = False
    scale.doubted |= native is not None and not believed
    if mode == "fallback":
        believed = False
    return Usage(
        tokens_each=each,
        tokens_total=native if believed and native is not None else estimated,
        source="native" if believed else "fallback",
        mode=mode,
        tokens_native=native,
        tokens_estimated=estimated,
        tokens_cached=cached if believed else None,
        tokenizer_id=tokenizer_id,
    )


def unusable(endpoint: Endpoint, request: Request, native: int | None) -> Usage:
    """The usage of an answer that cannot be used, and is billed all the same.

    Args:
        native: The provider's count, where it could be read.
    """
    mode = endpoint.usage_mode
    if mode == "native":
        return Usage(tokens_total=native or 0, source="native", mode=mode, tokens_native=native)
    estimated, tokenizer_id = exact(endpoint, request)
    believed = mode == "auto" and native is not None and plausible(request, native, estimated)
    return Usage(
        tokens_total=native if believed and native is not None else estimated,
        source="native" if believed else "fallback",
        mode=mode,
        tokens_native=native,
        tokens_estimated=estimated,
        tokenizer_id=tokenizer_id,
    )


def _characters(request: Request) -> int | None:
    """Of all its texts; None of token arrays."""
    return None if request.token_arrays else sum(len(str(text)) for text in request.texts)


def _absurd(request: Request, native: int) -> bool:
    """Zero for text, or more than bytes allow: no tokenizer is needed to doubt it."""
    return native <= 0 or native > upper_bound(request)


def plausible(request: Request, native: int, estimated: int) -> bool:
    """Whether a provider's count can be one of tokens: not 0, not the characters, not a third of ours.

    A count that can be one is never replaced by a lower one of ours: the tokenizer here may be another, or a bad one,
    and the invoice is made of the provider's. A number of characters is known for one only beside a tokenizer that
    finds words in the text.
    """
    if _absurd(request, native):
        return False
    if native == _characters(request) and native > estimated * 2:
        return False
    texts = len(request)  # of short texts the special tokens weigh more than the words
    return estimated / 3 - texts <= native <= estimated * 3 + 8 * texts

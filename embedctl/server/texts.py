"""What a request's inputs become on their way to a model: prefixed, decoded, hashed, and none longer than it takes."""

from __future__ import annotations

from collections.abc import Sequence

from embedctl import tokens
from embedctl.dataclass import dataclass
from embedctl.planning import splitter
from embedctl.records import text_hash, tokens_hash
from embedctl.routing.endpoint import Endpoint
from embedctl.server.fields import Asked
from embedctl.server.refusals import Refused
from embedctl.server.served_routes import ServedRoute

LARGE_BYTES = 64 << 10
"""From here on a request is prepared in a thread."""

_BYTES_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Texts:
    """Inputs as they go out.

    Attributes:
        wire: Exact texts, prefix included; or token arrays where `are_tokens`.
        hashes: One 16-byte hash each.
        sizes: UTF-8 bytes of each.
        tokens: Of each, where they are known: arrays were counted by who sent them.
        cut: Places of those whose end was left out, because they were too long.
    """

    wire: Sequence[str] | Sequence[Sequence[int]]
    hashes: Sequence[bytes]
    sizes: Sequence[int]
    tokens: Sequence[int] | None = None
    are_tokens: bool = False
    cut: Sequence[int] = ()


def are_large(asked: Asked, endpoint: Endpoint) -> bool:
    """Whether preparing them takes so long that it must not be done in the event loop."""
    if asked.token_arrays:
        return True
    limit = endpoint.max_tokens or LARGE_BYTES
    total = 0
    for text in asked.inputs:
        total += len(text)
        if len(text) * 4 > limit and len(str(text).encode("utf-8")) > limit:
            return True  # it must be counted
    return total * 4 >= LARGE_BYTES


def prepared(asked: Asked, route: ServedRoute, *, cl100k: bool) -> Texts:
    """A request's inputs for the model of a route.

    Args:
        cl100k: Token arrays for a model whose tokenizer nobody knows are taken for cl100k_base.

    Raises:
        Refused: One is too long, or is no token array of this model.
    """
    endpoint = route.first
    own = tokens.counter(endpoint.tokenizer, tokens.BYTES)
    known = own if own.tokenizer_id != tokens.BYTES else None
    if asked.token_arrays:
        return _of_arrays(asked, route, known or (tokens.counter(tokens.FALLBACK) if cl100k else None))
    wire = [f"{endpoint.prefix}{text}" for text in asked.inputs] if endpoint.prefix else [*map(str, asked.inputs)]
    sizes = [len(text.encode("utf-8")) for text in wire]
    cut: list[int] = []
    if endpoint.max_tokens is not None and known is not None:
        doubtful = [place for place, size in enumerate(sizes) if size > endpoint.max_tokens]
        counted = endpoint.counts.of(known, [wire[place] for place in doubtful]) if doubtful else []
        cut = _too_long(endpoint, dict(zip(doubtful, counted, strict=True)))
        for place in cut:
            wire[place] = _shortened(wire[place], endpoint, endpoint.max_tokens, known)
            sizes[place] = len(wire[place].encode("utf-8"))
    return Texts(wire, [text_hash(text) for text in wire], sizes, cut=cut)


def _shortened(text: str, endpoint: Endpoint, limit: int, counter: tokens.Counter) -> str:
    """Its beginning, as `--on-too-long truncate` cuts it."""
    measure = tokens.splitter_source(endpoint.tokenizer, endpoint.fallback_tokenizer)
    return splitter.truncated(text, limit - counter.count([""])[0], measure)


def _of_arrays(asked: Asked, route: ServedRoute, counter: tokens.Counter | None) -> Texts:
    endpoint = route.first
    arrays: list[Sequence[int]] = list(asked.inputs)  # type: ignore[arg-type]
    if counter is not None and counter.vocabulary is not None:
        for place, array in enumerate(arrays):
            if max(array) >= counter.vocabulary:
                at = next(i for i, token in enumerate(array) if token >= (counter.vocabulary or 0))
                raise Refused(
                    "invalid_token_array", f"{array[at]} is no token of {endpoint.model}", param=f"input[{place}][{at}]"
                )
    cut = _too_long(endpoint, dict(enumerate(map(len, arrays))))
    for place in cut:
        arrays[place] = arrays[place][: endpoint.max_tokens]
    counts = [len(array) for array in arrays]
    if route.sends_tokens:
        sizes = [_BYTES_A_TOKEN * n for n in counts]
        return Texts(arrays, [*map(tokens_hash, arrays)], sizes, counts, are_tokens=True, cut=cut)
    if counter is None:
        raise Refused(
            "invalid_token_array",
            f"{endpoint.model} takes texts, and its tokenizer is not known here: tokens cannot be turned into text",
            param="input",
        )
    wire = [f"{endpoint.prefix}{text}" if (text := counter.decode(array)) else "" for array in arrays]
    if "" in wire:
        raise Refused("invalid_token_array", "the tokens are no text", param=f"input[{wire.index('')}]")
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in wire]
    return Texts(wire, [text_hash(text) for text in wire], sizes, counts, cut=cut)


def _too_long(endpoint: Endpoint, counts: dict[int, int]) -> list[int]:
    """Places of those to be cut; none when nothing is too long.

    Raises:
        Refused: Something is, and nothing may be cut.
    """
    limit = endpoint.max_tokens
    if limit is None:
        return []
    too_long = [{"index": place, "tokens": count} for place, count in counts.items() if count > limit]
    if too_long and endpoint.truncation != "truncate":
        raise Refused(
            "input_too_long",
            f"One or more inputs exceed max tokens {limit} for model {endpoint.model}: "
            f"this model's maximum context length is {limit} tokens",
            param=f"input[{too_long[0]['index']}]",
            details=too_long,
        )
    return [one["index"] for one in too_long]

"""Cohere v2 /embed.

Source: cohere 7.3.1 and cohere-openapi @e814c8a (facts/providers.md 4; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=96)
KEY_VARIABLES = ("CO_API_KEY", "COHERE_API_KEY")
BASE_URL = "https://api.cohere.com"
BASE_URL_VARIABLES = ("CO_API_URL", "COHERE_API_BASE")
TAKES_TOKENS = False
BATCH_REFUSED = (
    "a cancelled embed job of Cohere is charged and delivers nothing, and no price of its batches is published"
)
"""Source: cohere 7.3.1, cohere-developer-experience @e814c8a (facts/batch_apis.md 7; 2026-11-25)."""

INPUT_TYPES: Mapping[InputType | None, str] = {
    None: "search_document",  # the field is required
    "document": "search_document",
    "query": "search_query",
    "classification": "classification",
    "clustering": "clustering",
}


class _Typed(msgspec.Struct, gc=False):
    float: msgspec.Raw = msgspec.Raw()


class _CohereBody(msgspec.Struct, gc=False):
    embeddings: _Typed | None = None
    id: Any = None
    meta: Any = None


_BODY = msgspec.json.Decoder(_CohereBody)


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/v2/embed; `truncate: NONE`, because the default cuts silently."""
    body = {"model": model, **fields(texts, options)}
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(place, BASE_URL)}/v2/embed", body, secret)


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The value of `input_type`."""
    return INPUT_TYPES[input_type]


def fields(texts: Sequence[Any], options: RequestOptions) -> dict[str, Any]:
    """The body but for the model, as Bedrock takes it too."""
    found: dict[str, Any] = {
        "texts": texts,
        "input_type": INPUT_TYPES[options.input_type],
        "embedding_types": ["float"],
        "truncate": "NONE",
    }
    if options.dimensions is not None:
        found["output_dimension"] = options.dimensions
    return found


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read `embeddings.float`, in the request's order; billed units are what the invoice counts."""
    if status != 200:
        raise _errors.refusal("cohere", status, headers, body, request)
    return read(headers, body)


def read(headers: Mapping[str, str], body: bytes) -> WireAnswer:
    """Read the answer's body, here and from Bedrock."""
    found = _foreign.decoded(_BODY, body)
    tokens = _billed(found.meta)
    with _vectors.billed(tokens):
        raw = found.embeddings.float if found.embeddings else msgspec.Raw()
        vectors = _vectors.matrix(raw, "embeddings.float")
    return WireAnswer(
        vectors=vectors,
        tokens=tokens,
        embedding_id=_vectors.text(found.id) or _http.request_id(headers),
    )


def _billed(meta: Any) -> int | None:
    units = meta.get("billed_units") if isinstance(meta, dict) else None
    return _foreign.whole(units.get("input_tokens")) if isinstance(units, dict) else None

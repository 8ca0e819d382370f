"""Nomic Atlas /embedding/text.

The API cuts long texts or averages their parts, and cannot refuse: texts are measured before they are sent.
Option of the place: `long_text_mode` ("truncate", "mean").

Source: nomic 3.9.0 (facts/providers.md 14.4; 2026-11-21); 10 items are what its client sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=10)
KEY_VARIABLES = ("NOMIC_API_KEY",)
BASE_URL = "https://api-atlas.nomic.ai/v1"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False

TASK_TYPES: Mapping[InputType | None, str] = {
    None: "search_document",
    "document": "search_document",
    "query": "search_query",
    "classification": "classification",
    "clustering": "clustering",
}


class _NomicBody(msgspec.Struct, gc=False):
    embeddings: tuple[msgspec.Raw, ...] = ()
    model: Any = None
    usage: msgspec.Raw = msgspec.Raw()


_BODY = msgspec.json.Decoder(_NomicBody)


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embedding/text."""
    body: dict[str, Any] = {"model": model, "texts": texts, "task_type": TASK_TYPES[options.input_type]}
    if options.dimensions is not None:
        body["dimensionality"] = options.dimensions
    if place.options.get("long_text_mode"):
        body["long_text_mode"] = str(place.options["long_text_mode"])
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(place, BASE_URL)}/embedding/text", body, secret)


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The value of `task_type`."""
    return TASK_TYPES[input_type]


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read `embeddings`, in the request's order."""
    if status != 200:
        raise _errors.refusal("nomic", status, headers, body, request)
    found = _foreign.decoded(_BODY, body)
    tokens = _vectors.counts(found.usage).total
    with _vectors.billed(tokens):
        vectors = _vectors.rows(found.embeddings, "embeddings[{}]")
    return WireAnswer(
        vectors=vectors,
        tokens=tokens,
        embedding_id=_http.request_id(headers),
        response_model=_vectors.text(found.model),
    )

"""Gemini API, models/…:batchEmbedContents.

One entry of `requests` per text: several parts in one entry become one vector, without an error.
The API has no switch against truncation; texts are measured before they are sent. Option of the place:
`api_version` ("v1beta", as documented; google-genai 3.4.0 itself uses "v1").

Source: google-genai 3.4.0, generative_service.proto @f8291d2 (facts/providers.md 6; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=100, bytes=4_000_000)
KEY_VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
BASE_URL = "https://generativelanguage.googleapis.com"
BASE_URL_VARIABLES = ("GEMINI_API_BASE",)
TAKES_TOKENS = False

INPUT_TYPES: Mapping[InputType, str] = {
    "document": "RETRIEVAL_DOCUMENT",
    "query": "RETRIEVAL_QUERY",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
}
UNIT_ONLY_AT = {"gemini-embedding-001": 3072}
"""Models whose narrower vectors do not have length 1, and their full width."""


class _Embedding(msgspec.Struct, gc=False):
    values: msgspec.Raw = msgspec.Raw()


class _GoogleBody(msgspec.Struct, rename="camel", gc=False):
    embeddings: tuple[_Embedding, ...] = ()
    usage_metadata: Any = None


_BODY = msgspec.json.Decoder(_GoogleBody)


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/v1beta/models/{model}:batchEmbedContents; the key in a header, never in the URL."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    model = model.removeprefix("models/")
    shared: dict[str, Any] = {"model": f"models/{model}"}
    if options.input_type is not None and (word := input_type_word(place, model, options.input_type)):
        shared["taskType"] = word
    if options.dimensions is not None:
        shared["outputDimensionality"] = options.dimensions
    body = {"requests": [{**shared, "content": {"parts": [{"text": text}]}} for text in texts]}
    version = _http.segment(str(place.options.get("api_version") or "v1beta"))
    url = f"{_http.base(place, BASE_URL)}/{version}/models/{_http.segment(model)}:batchEmbedContents"
    reading = {"unit_only_at": UNIT_ONLY_AT.get(model)}
    return _http.post(place, url, body, secret, auth="x-goog-api-key", reading=reading)


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The value of `taskType`; gemini-embedding-2 is told in the text alone."""
    return "" if model.startswith("gemini-embedding-2") else INPUT_TYPES[input_type]


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read `embeddings[].values`, scaled to length 1 where the API leaves that to the client."""
    if status != 200:
        raise _errors.refusal("google", status, headers, body, request)
    found = _foreign.decoded(_BODY, body)
    usage = found.usage_metadata if isinstance(found.usage_metadata, dict) else {}
    tokens = _foreign.whole(usage.get("promptTokenCount"))
    with _vectors.billed(tokens):
        vectors = _vectors.rows([one.values for one in found.embeddings], "embeddings[{}].values")
    full = request.reading.get("unit_only_at")
    if full is not None and vectors.shape[1] < full:
        vectors = _vectors.unit(vectors)
    return WireAnswer(vectors=vectors, tokens=tokens, embedding_id=_http.request_id(headers))

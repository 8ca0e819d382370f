"""Voyage AI /embeddings.

Keys that begin with `al-` (MongoDB Atlas) work only at ai.mongodb.com, so that they go there by themselves.

Source: voyageai 0.5.0, docs.voyageai.com/reference/embeddings-api (facts/providers.md 5; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedctl.providers import _http, _listed
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=1000, tokens=120_000)
KEY_VARIABLES = ("VOYAGE_API_KEY", "VOYAGE_AI_API_KEY", "VOYAGE_AI_TOKEN")
BASE_URL = "https://api.voyageai.com/v1"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False

ATLAS_BASE_URL = "https://ai.mongodb.com/v1"


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings; `truncation: false`, because the default cuts silently and bills the cut."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    base = _http.base(place, BASE_URL)
    if secret is not None and secret.reveal().startswith("al-") and base == BASE_URL:
        base = ATLAS_BASE_URL
    body: dict[str, Any] = {"model": model, "input": texts, "truncation": False}
    if options.input_type is not None and (word := input_type_word(place, model, options.input_type)):
        body["input_type"] = word
    if options.dimensions is not None:
        body["output_dimension"] = options.dimensions
    if options.base64:
        body["encoding_format"] = "base64"  # "float" is no value here: floats come when it is left out
    return _http.post(place, f"{base}/embeddings", body, secret)


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The value of `input_type`, which knows documents and queries."""
    return input_type if input_type in ("document", "query") else ""


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer; usage is `total_tokens` alone."""
    return _listed.answer("voyage", status, headers, body, request)

"""Mistral /embeddings: the OpenAI dialect with `output_dimension`. Over-length is refused, never cut.

Source: mistralai 3.7.0 and its public docs @222f4ba (facts/providers.md 7; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedctl.providers import _http, _listed
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=512, tokens=16_384)
KEY_VARIABLES = ("MISTRAL_API_KEY",)
BASE_URL = "https://api.mistral.ai/v1"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings."""
    body: dict[str, Any] = {
        "model": model,
        "input": texts,
        "encoding_format": "base64" if options.base64 else "float",
    }
    if options.dimensions is not None:
        body["output_dimension"] = options.dimensions
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(place, BASE_URL)}/embeddings", body, secret)


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer."""
    return _listed.answer("mistral", status, headers, body, request)

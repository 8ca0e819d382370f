"""Jina /embeddings: the OpenAI dialect's answer to a body of its own.

Source: Jina's OpenAPI 0.1.85 and its current client (facts/providers.md 8; 2026-11-21). The items of one request
are in neither: 512 is a careful guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedctl.providers import _http, _listed
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=512)
KEY_VARIABLES = ("JINA_AI_API_KEY", "JINA_API_KEY", "JINA_AI_TOKEN")
BASE_URL = "https://api.jina.ai/v1"
BASE_URL_VARIABLES = ("JINA_AI_API_BASE",)
TAKES_TOKENS = False

TASKS: Mapping[InputType, str] = {
    "document": "retrieval.passage",
    "query": "retrieval.query",
    "classification": "classification",
    "clustering": "separation",
}
_WITHOUT_TASKS = "jina-embeddings-v2"
_WITHOUT_SWITCH = ("jina-embeddings-v2", "jina-embeddings-v3")  # whose schema knows no `truncate`, and which refuse


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings; `truncate: false` where the model knows the switch, an error by default elsewhere."""
    body: dict[str, Any] = {
        "model": model,
        "input": texts,
        "embedding_type": "base64" if options.base64 else "float",
        "normalized": True,
    }
    if options.input_type is not None and not model.startswith(_WITHOUT_TASKS):
        newer = options.input_type == "clustering" and model.startswith("jina-embeddings-v5")
        body["task"] = "clustering" if newer else TASKS[options.input_type]
    if options.dimensions is not None:
        body["dimensions"] = options.dimensions
    if not model.startswith(_WITHOUT_SWITCH):
        body["truncate"] = False
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(place, BASE_URL)}/embeddings", body, secret)


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer."""
    return _listed.answer("jina", status, headers, body, request)

"""Jina /embeddings: the OpenAI dialect's answer to a body of its own.

Source: Jina's OpenAPI 2026.04.02 (https://api.jina.ai/openapi.json, as tryAGI/Jina @2a3f424 keeps it; 2026-11-25).
The items of one request are not in it: 512 is a careful guess.
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
BATCH_REFUSED = "a batch of Jina carries no mark: one whose answer is lost could not be found again"
"""Source: tryAGI/Jina @2a3f424, made from Jina's OpenAPI (facts/batch_apis.md 9; 2026-11-25)."""

TASKS: Mapping[str, Mapping[InputType, str]] = {
    "jina-embeddings-v2": {},
    "jina-embeddings-v4": {
        "document": "retrieval.passage",
        "query": "retrieval.query",
        "classification": "text-matching",
        "clustering": "text-matching",
    },
    "jina-embeddings-v5": {
        "document": "retrieval.passage",
        "query": "retrieval.query",
        "classification": "classification",
        "clustering": "clustering",
    },
    "jina-code-embeddings": {"document": "nl2code.passage", "query": "nl2code.query"},
    "jina-clip-v1": {},
    "jina-clip-v2": {"query": "retrieval.query"},  # "leave unset for documents"
    "": {
        "document": "retrieval.passage",
        "query": "retrieval.query",
        "classification": "classification",
        "clustering": "separation",
    },
}
"""Values of `task` by the beginning of the model's name; "": v3, and whatever comes."""

_WITHOUT_NORMALIZED = ("jina-embeddings-v4", "jina-code-embeddings")  # their schemas do not have it
_WITHOUT_DIMENSIONS = ("jina-embeddings-v2", "jina-clip-v1")


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings; `truncate: false` is the default, and said all the same."""
    body: dict[str, Any] = {
        "model": model,
        "input": texts,
        "embedding_type": "base64" if options.base64 else "float",
        "truncate": False,
    }
    if not model.startswith(_WITHOUT_NORMALIZED):
        body["normalized"] = True
    if options.input_type is not None and (task := input_type_word(place, model, options.input_type)):
        body["task"] = task
    if options.dimensions is not None and not model.startswith(_WITHOUT_DIMENSIONS):
        body["dimensions"] = options.dimensions
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(place, BASE_URL)}/embeddings", body, secret)


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The value of `task`."""
    beginning = next(one for one in TASKS if model.startswith(one))
    return TASKS[beginning].get(input_type, "")


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer."""
    return _listed.answer("jina", status, headers, body, request)

"""Hugging Face's router, hf-inference, feature-extraction.

Some models answer a matrix of token vectors per text. That is refused, unless the place's option `pool` says how
they become one: "mean" or "cls". Further options: `bill_to` (an organisation), `prompt_name`.

Source: huggingface_hub 2.4.0, hub-docs @242f4a1 (facts/providers.md 9; 2026-11-21). The items of one request are
not documented: 32 as in TEI, which stands behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from embedctl.errors import RequestRefused
from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=32, bytes=2_000_000)
KEY_VARIABLES = ("HF_TOKEN", "HUGGINGFACE_API_KEY")
BASE_URL = "https://router.huggingface.co"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False

_ROWS = msgspec.json.Decoder(tuple[msgspec.Raw, ...])


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/hf-inference/models/{repo}/pipeline/feature-extraction; `truncate: false`."""
    body: dict[str, Any] = {"inputs": texts, "normalize": True, "truncate": False}
    if place.options.get("prompt_name"):
        body["prompt_name"] = str(place.options["prompt_name"])
    bill_to = {"x-hf-bill-to": str(place.options["bill_to"])} if place.options.get("bill_to") else {}
    base = _http.base(place, BASE_URL)
    url = f"{base}/hf-inference/models/{quote(model)}/pipeline/feature-extraction"
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, url, body, secret, headers=bill_to, reading={"pool": place.options.get("pool")})


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read a bare `[[float, …], …]`; tokens stand in a header where TEI is behind it.

    Raises:
        RequestRefused: The model answers token vectors, and nobody said how to pool them.
    """
    if status != 200:
        raise _errors.refusal("huggingface", status, headers, body, request)
    tokens = _foreign.counted(headers.get("x-compute-tokens"))
    with _vectors.billed(tokens):
        each = _foreign.decoded(_ROWS, body)
        if any(_is_matrix(raw) for raw in each):
            vectors = _stacked([_pooled(raw, request) for raw in each])
        else:
            vectors = _vectors.rows(each, "[{}]")
    return WireAnswer(vectors=vectors, tokens=tokens, embedding_id=_http.request_id(headers))


def _stacked(vectors: list[Any]) -> Any:
    for number, vector in enumerate(vectors):
        if vector.size != vectors[0].size:
            raise _foreign.unusable(f"[{number}] has {vector.size} numbers, [0] has {vectors[0].size}")
    return np.stack(vectors)


def _is_matrix(raw: msgspec.Raw) -> bool:
    start = bytes(memoryview(raw)[:32]).translate(None, b" \t\r\n")
    return start.startswith(b"[[")


def _pooled(raw: msgspec.Raw, request: HttpRequest) -> Any:
    """One vector of length 1 from a text's token vectors; a wrapper around a single one is taken off."""
    matrix = _vectors.matrix(raw, "token vectors")
    pool = request.reading.get("pool")
    if pool == "mean":
        vector = matrix.mean(axis=0, keepdims=True)
    elif pool == "cls" or len(matrix) == 1:
        vector = matrix[:1]
    else:
        raise RequestRefused(
            "the model answers a vector per token, not one per text",
            status=200,
            hint='choose a sentence-transformers model, or set the option pool = "mean" or "cls" of the provider',
        )
    return _vectors.unit(vector)[0]

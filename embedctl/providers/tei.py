"""Text Embeddings Inference, /embed: the endpoint that can refuse to truncate.

What one request may hold is the server's own setting: `probe` asks /info, `limits` and `max_tokens` read it.
Option of the place: `prompt_name`.

Source: text-embeddings-inference 1.9.3 @0d124dc (facts/providers.md 10; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=32, tokens=16_384, bytes=2_000_000)
KEY_VARIABLES: tuple[str, ...] = ()
BASE_URL = "http://127.0.0.1:8080"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = True

_MOST_ITEMS = 1_000_000
_ROWS = msgspec.json.Decoder(tuple[msgspec.Raw, ...])


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embed; the server holds one model, so that none is named. `truncate: false`: it cuts by default."""
    body: dict[str, Any] = {"inputs": texts, "normalize": True, "truncate": False}
    if options.dimensions is not None:
        body["dimensions"] = options.dimensions
    if place.options.get("prompt_name"):
        body["prompt_name"] = str(place.options["prompt_name"])
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(place, BASE_URL)}/embed", body, secret)


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read a bare `[[float, …], …]`; tokens stand in the header `x-compute-tokens`."""
    if status != 200:
        raise _errors.refusal("tei", status, headers, body, request)
    tokens = _foreign.counted(headers.get("x-compute-tokens"))
    with _vectors.billed(tokens):
        each = _foreign.decoded(_ROWS, body)
        vectors = _vectors.rows(each, "[{}]")
    return WireAnswer(vectors=vectors, tokens=tokens, embedding_id=_http.request_id(headers))


def probe(place: Provider) -> HttpRequest:
    """GET {base}/info."""
    return _http.get(place, f"{_http.base(place, BASE_URL)}/info", _http.key(place, KEY_VARIABLES, BASE_URL))


def limits(body: bytes) -> Limits:
    """What one request may hold, from the body of /info; the bytes are the server's default."""
    said = _said(body)
    return Limits(
        items=_foreign.whole(said.get("max_client_batch_size"), most=_MOST_ITEMS) or LIMITS.items,
        tokens=_foreign.whole(said.get("max_batch_tokens")) or LIMITS.tokens,
        bytes=LIMITS.bytes,
    )


def max_tokens(body: bytes) -> int | None:
    """Tokens per text, from the body of /info; None where it does not say."""
    return _foreign.whole(_said(body).get("max_input_length"))


def served_model(body: bytes, request: HttpRequest) -> str | None:
    """The model that the server holds, from the body of /info; `request` asked for it."""
    return _foreign.label(_vectors.text(_said(body).get("model_id")), request)


def _said(body: bytes) -> dict[str, Any]:
    said = _foreign.anything(body)
    return said if isinstance(said, dict) else {}

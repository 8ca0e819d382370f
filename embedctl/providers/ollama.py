"""Ollama's own /api/embed: the endpoint that can refuse to truncate.

Options of the place: `keep_alive`, and `options` (num_ctx, num_batch, num_gpu, …), sent as they are.

Source: ollama @fb30760 (facts/providers.md 11; 2026-11-21). There is no limit on items: 256 keeps answers small,
since all texts of a request succeed or fail together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=256)
KEY_VARIABLES = ("OLLAMA_API_KEY",)
BASE_URL = "http://127.0.0.1:11434"
BASE_URL_VARIABLES = ("OLLAMA_HOST",)
TAKES_TOKENS = False


class _OllamaBody(msgspec.Struct, gc=False):
    embeddings: tuple[msgspec.Raw, ...] = ()
    model: Any = None
    prompt_eval_count: Any = None


_BODY = msgspec.json.Decoder(_OllamaBody)


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/api/embed; `truncate: false`, because the default cuts silently."""
    body: dict[str, Any] = {"model": model, "input": texts, "truncate": False}
    if options.dimensions is not None:
        body["dimensions"] = options.dimensions
    for name in ("options", "keep_alive"):
        if place.options.get(name) is not None:
            body[name] = place.options[name]
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(_with_scheme(place), BASE_URL)}/api/embed", body, secret)


def _with_scheme(place: Provider) -> Provider:
    """OLLAMA_HOST says where to listen ("0.0.0.0", "host:11434"); this is how to reach that."""
    host = place.base_url
    if not host or "://" in host:
        return place
    host = host.replace("0.0.0.0", "127.0.0.1")  # noqa: S104  # an address to read, none to bind
    url = f"http://{host}" + ("" if ":" in host else ":11434")
    return Provider(
        name=place.name,
        protocol=place.protocol,
        base_url=url,
        api_key=place.api_key,
        headers=place.headers,
        options=place.options,
    )


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read `embeddings`, in the request's order; an empty text gets none, which the count shows."""
    if status != 200:
        raise _errors.refusal("ollama", status, headers, body, request)
    found = _foreign.decoded(_BODY, body)
    tokens = _foreign.whole(found.prompt_eval_count)
    with _vectors.billed(tokens):
        vectors = _vectors.rows(found.embeddings, "embeddings[{}]")
    return WireAnswer(
        vectors=vectors,
        tokens=tokens,
        embedding_id=_http.request_id(headers),
        response_model=_vectors.text(found.model),
    )

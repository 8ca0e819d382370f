"""OpenAI's /embeddings, and every server that speaks it: vLLM, llama.cpp, LM Studio, Together, Fireworks, …

Options of the place: `encoding_format = false` and `normalize = true` for servers whose schema asks for it,
`organization`, `project`; `input_type_field`, where a gateway takes the input type of the model behind it.

Source: openai-openapi @f85dbe2 and openai-python 3.54.0 (facts/providers.md 1, 2, 12, 14; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedctl.providers import _http, _listed
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=2048, tokens=300_000)
KEY_VARIABLES = ("OPENAI_API_KEY",)
BASE_URL = "https://api.openai.com/v1"
BASE_URL_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
TAKES_TOKENS = True


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings. The server never truncates; one that does has no switch for it."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    account = {
        header: str(place.options[name])
        for name, header in (("organization", "openai-organization"), ("project", "openai-project"))
        if place.options.get(name)
    }
    url = f"{_http.base(place, BASE_URL)}/embeddings"
    return _http.post(place, url, body(place, model, texts, options), secret, headers=account)


def body(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> dict[str, Any]:
    """The dialect's body; nothing is sent that was not asked for, since strict servers refuse it."""
    found: dict[str, Any] = {"model": model, "input": texts}
    if place.options.get("encoding_format", True) is not False:
        found["encoding_format"] = "base64" if options.base64 else "float"
    if options.dimensions is not None:
        found["dimensions"] = options.dimensions
    if options.user is not None:
        found["user"] = options.user
    if place.options.get("normalize"):
        found["normalize"] = True
    return {**options.fields, **found}


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the dialect's answer; floats and base64 whatever was asked."""
    return _listed.answer("openai", status, headers, body, request)

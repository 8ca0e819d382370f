"""AWS Bedrock InvokeModel with a Bedrock API key (bearer): Titan and Cohere embeddings.

The base URL holds REGION until the place's option `region` (or a base_url of one's own) says which.

Source: AWS user guide, litellm 1.109.1 (facts/providers.md 14.5; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from embedctl.errors import ConfigurationInvalid, RequestTooLarge
from embedctl.providers import _errors, _foreign, _http, _vectors, cohere
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=1)
KEY_VARIABLES = ("AWS_BEARER_TOKEN_BEDROCK",)
BASE_URL = "https://bedrock-runtime.REGION.amazonaws.com"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False

_TOKENS_HEADER = "x-amzn-bedrock-input-token-count"


class _Titan(msgspec.Struct, rename="camel", gc=False):
    embedding: msgspec.Raw = msgspec.Raw()
    input_text_token_count: Any = None


_TITAN = msgspec.json.Decoder(_Titan)


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/model/{id}/invoke; Titan takes one text a request, Cohere up to 96, never cut."""
    base = _http.base(place, BASE_URL)
    if "REGION" in base:
        region = str(place.options.get("region") or "")
        if not region.replace("-", "").isalnum():
            raise ConfigurationInvalid(
                f"provider {place.name!r} has no region", hint='set the provider\'s option region = "us-east-1"'
            )
        base = base.replace("REGION", region)
    titan = "titan" in model
    body = _titan(place, model, texts, options) if titan else cohere.fields(texts, options)
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    url = f"{base}/model/{_http.segment(model)}/invoke"
    return _http.post(place, url, body, secret, reading={"titan": titan})


def _titan(place: Provider, model: str, texts: Sequence[Any], options: RequestOptions) -> dict[str, Any]:
    if len(texts) != 1:
        raise RequestTooLarge("Titan takes one text a request", provider=place.name)
    body: dict[str, Any] = {"inputText": texts[0]}
    if "v1" not in model:
        body["normalize"] = True
        if options.dimensions is not None:
            body["dimensions"] = options.dimensions
    return body


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """Cohere's models take Cohere's field."""
    return cohere.INPUT_TYPES[input_type] if "cohere." in model else ""


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read Titan's one vector, or Cohere's many; tokens stand in the body or in a header."""
    if status != 200:
        raise _errors.refusal("bedrock", status, headers, body, request)
    counted = _foreign.counted(headers.get(_TOKENS_HEADER))
    with _vectors.billed(counted):
        if not request.reading.get("titan"):
            found = cohere.read(headers, body)
            return WireAnswer(
                vectors=found.vectors,
                tokens=found.tokens if found.tokens is not None else counted,
                embedding_id=_http.request_id(headers) or found.embedding_id,
            )
    one = _foreign.decoded(_TITAN, body)
    tokens = _foreign.whole(one.input_text_token_count)
    tokens = tokens if tokens is not None else counted
    with _vectors.billed(tokens):
        vectors = _vectors.rows([one.embedding], "embedding")
    return WireAnswer(vectors=vectors, tokens=tokens, embedding_id=_http.request_id(headers))

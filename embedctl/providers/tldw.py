"""tldw_server /embeddings: the OpenAI dialect behind a gateway that may answer from another provider.

The key goes as X-API-KEY (single user); one that is a JSON Web Token goes as bearer (multi user). Options of the
place: `bearer` (a token beside the key, e.g. from `minted`), `provider` (pinned as x-provider; a provider: prefix
of the model does the same).

Source: tldw_server embeddings_v5 @01ee19d, API guide (facts/providers.md 13; 2026-11-21).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
from collections.abc import Mapping, Sequence

import orjson

from embedctl.providers import _http, _listed, openai
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, Secret, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=2048)
KEY_VARIABLES = ("SINGLE_USER_API_KEY",)
BASE_URL = "http://127.0.0.1:8000/api/v1"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = True

PROVIDERS = ("openai", "huggingface", "onnx", "local_api", "cohere", "voyage", "google", "mistral", "mlx")
TOKEN_LIFE_S = 24 * 3600


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings, pinned to one provider where it is known which."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    extra: dict[str, str] = {}
    prefix, colon, rest = model.partition(":")
    if colon and prefix in PROVIDERS:
        model, extra["x-provider"] = rest, prefix
    elif place.options.get("provider"):
        extra["x-provider"] = str(place.options["provider"])
    bearer = place.options.get("bearer")
    if bearer:
        extra.update(_http.authorization(bearer if isinstance(bearer, Secret) else Secret(str(bearer))))
    auth: _http.Auth = "bearer" if _http.is_jwt(secret) else "x-api-key"
    url = f"{_http.base(place, BASE_URL)}/embeddings"
    body = openai.body(place, model, texts, options)
    return _http.post(place, url, body, secret, auth=auth, headers=extra)


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer, and from the headers who really gave it."""
    found = _listed.answer("tldw", status, headers, body, request)
    served = headers.get("x-embeddings-provider") or None
    model = found.response_model
    if model is not None:
        prefix, colon, rest = model.partition(":")
        if colon and prefix in PROVIDERS:
            served, model = served or prefix, rest
    return dataclasses.replace(
        found,
        response_model=model,
        provider=served,
        fallback_from=headers.get("x-embeddings-fallback-from") or None,
        dimension_policy=headers.get("x-embeddings-dimensions-policy") or None,
    )


def minted(secret: Secret, subject: str, now_s: float) -> Secret:
    """A JSON Web Token for one run: HS256, valid for 24 hours.

    Args:
        secret: What the server signs with, from the environment variable `jwt_secret_env` names.
        subject: The user, `jwt_subject`.
        now_s: Unix time.
    """

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    issued = int(now_s)
    claims = {"sub": subject, "iat": issued, "exp": issued + TOKEN_LIFE_S}
    signed = f"{part(orjson.dumps({'alg': 'HS256', 'typ': 'JWT'}))}.{part(orjson.dumps(claims))}"
    signature = hmac.digest(secret.reveal().encode(), signed.encode(), hashlib.sha256)
    return Secret(f"{signed}.{part(signature)}")

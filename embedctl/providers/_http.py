"""A protocol's request: URL, headers, JSON body. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import orjson

from embedctl.errors import ConfigurationInvalid, TextRefused
from embedctl.providers._contract import HttpRequest, Provider, Secret

Auth = Literal["bearer", "api-key", "x-api-key", "x-goog-api-key"]
_KEYS_IN_QUERIES = ("key=", "api_key=", "apikey=", "api-key=", "token=", "access_token=")
_REQUEST_IDS = (
    "x-request-id",
    "apim-request-id",
    "x-amzn-requestid",
    "request-id",
    "x-trace-id",
    "x-litellm-call-id",
)
_NO_READING: Mapping[str, Any] = {}
_BOUNDARY = "embedctl-part"


def base(place: Provider, default: str | None) -> str:
    """The place's base URL without a trailing slash, or the protocol's own.

    Raises:
        ConfigurationInvalid: There is none, it is no http URL, or it holds a key.
    """
    return _base(place.name, (place.base_url or default or "").strip().rstrip("/"))


@lru_cache(maxsize=256)
def _base(name: str, url: str) -> str:
    if not url:
        raise ConfigurationInvalid(
            f"provider {name!r} has no base_url",
            hint=f"set `base_url` under [providers.{name}] in the user's config",
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable:
        raise ConfigurationInvalid(
            f"base_url of provider {name!r} is no http or https URL",
            hint="write it as https://HOST/PATH",
        )
    if parts.username or parts.password or any(name in parts.query.lower() for name in _KEYS_IN_QUERIES):
        raise ConfigurationInvalid(
            f"base_url of provider {name!r} holds a key",
            hint="keys come from an environment variable, named by `api_key_env`",
        )
    return url


def key(place: Provider, variables: Sequence[str], default: str | None) -> Secret | None:
    """The place's key; None only where the server is not the vendor's own.

    Raises:
        ConfigurationInvalid: The vendor's own address without a key, or a key that no header can hold.
    """
    if place.api_key is None or not place.api_key.reveal().strip():
        own = default is not None and place.base_url.rstrip("/") in ("", default)
        if own and variables and default and default.startswith("https://"):
            raise ConfigurationInvalid(
                f"provider {place.name!r} has no key", hint=f"set {' or '.join(variables)} in the environment"
            )
        return None
    value = place.api_key.reveal().strip()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigurationInvalid(
            f"the key of provider {place.name!r} holds a character that no HTTP header can",
            hint="look for line breaks, blanks or quotes in the environment variable",
        )
    return Secret(value)


def post(
    place: Provider,
    url: str,
    body: Mapping[str, Any],
    secret: Secret | None,
    *,
    auth: Auth = "bearer",
    headers: Mapping[str, str] = _NO_READING,
    reading: Mapping[str, Any] = _NO_READING,
) -> HttpRequest:
    """A POST of JSON with the key the protocol's way; the place's own headers come last and win.

    Raises:
        TextRefused: A text is not Unicode (a lone surrogate).
    """
    try:
        packed = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        if "surrogates" not in str(error):
            raise
        raise TextRefused("a text holds a lone surrogate: it is no Unicode", provider=place.name) from error
    return HttpRequest(url=url, body=packed, headers=_headers(place, secret, auth, headers), reading=reading)


def get(
    place: Provider,
    url: str,
    secret: Secret | None,
    *,
    auth: Auth = "bearer",
    headers: Mapping[str, str] = _NO_READING,
    reading: Mapping[str, Any] = _NO_READING,
    method: Literal["GET", "DELETE"] = "GET",
) -> HttpRequest:
    """A request without a body, with the key the protocol's way."""
    found = _headers(place, secret, auth, headers)
    sent = {name: value for name, value in found.items() if name != "content-type"}
    return HttpRequest(url=url, method=method, headers=sent, reading=reading)


def multipart(
    place: Provider,
    url: str,
    parts: Sequence[tuple[str, bytes]],
    kind: str,
    secret: Secret | None,
    *,
    auth: Auth = "bearer",
    headers: Mapping[str, str] = _NO_READING,
) -> HttpRequest:
    """A POST of several parts, each with its own header lines.

    The boundary cannot occur in them: what is sent this way has no carriage return, and its lines begin otherwise.

    Args:
        parts: Header lines without their end, and content.
        kind: "form-data" or "related".
    """
    pieces: list[bytes] = []
    for lines, content in parts:
        pieces += [f"--{_BOUNDARY}\r\n{lines}\r\n\r\n".encode(), content, b"\r\n"]
    pieces.append(f"--{_BOUNDARY}--\r\n".encode())
    found = _headers(place, secret, auth, headers)
    found["content-type"] = f"multipart/{kind}; boundary={_BOUNDARY}"
    return HttpRequest(url=url, body=b"".join(pieces), headers=found)


def _headers(place: Provider, secret: Secret | None, auth: Auth, extra: Mapping[str, str]) -> dict[str, str]:
    found = {"content-type": "application/json", "accept": "application/json"}
    if secret is not None:
        found.update(authorization(secret) if auth == "bearer" else {auth: secret.reveal()})
    for source in (extra, place.headers):
        found.update({name.lower(): value for name, value in source.items()})
    return found


def authorization(secret: Secret) -> dict[str, str]:
    """The key as a bearer token."""
    return {"authorization": f"Bearer {secret.reveal()}"}


def is_jwt(secret: Secret | None) -> bool:
    """Whether the key is a JSON Web Token rather than an API key."""
    return secret is not None and secret.reveal().startswith("eyJ") and secret.reveal().count(".") == 2


def segment(name: str) -> str:
    """A model's name as one segment of a path."""
    return quote(name, safe="")


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's own id of the request, None where it gives none."""
    for name in _REQUEST_IDS:
        if headers.get(name):
            return headers[name]
    return None

"""Azure OpenAI: the OpenAI dialect behind a resource's own address, key header and deployments.

`model` is the deployment's name. Options of the place: `api_version` ("2024-10-21"; "v1" and "preview" mean the
v1 URL), `encoding_format` as in openai. A key that is a JSON Web Token (Entra) goes as a bearer token.

Source: openai-python `lib/azure.py`, Foundry v1 reference (facts/providers.md 3; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from embedctl.errors import ConfigurationInvalid
from embedctl.providers import _http, _listed, openai
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=2048, tokens=300_000)
KEY_VARIABLES = ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AZURE_AD_TOKEN")
BASE_URL = None
BASE_URL_VARIABLES = ("AZURE_OPENAI_ENDPOINT", "AZURE_API_BASE")
TAKES_TOKENS = True
BATCH_REFUSED = "Azure OpenAI runs no embedding model in its Batch API"
"""Source: MicrosoftDocs/azure-ai-docs, batch FAQ of 2026-03-19 (facts/batch_apis.md 3)."""

API_VERSION = "2024-10-21"
"""The last dated version that is generally available."""


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST to the deployment (classic), or to /openai/v1 where the version or the base URL says so."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    base = _http.base(place, BASE_URL)
    if "RESOURCE" in base:
        raise ConfigurationInvalid(
            f"base_url of provider {place.name!r} names no resource: {base}",
            hint='set AZURE_OPENAI_ENDPOINT, or base_url = "https://YOUR-RESOURCE.openai.azure.com"',
        )
    version = str(place.options.get("api_version") or API_VERSION)
    if base.endswith("/openai/v1"):
        url = f"{base}/embeddings"
    elif version in ("v1", "preview"):
        url = f"{base}/openai/v1/embeddings" + ("?api-version=preview" if version == "preview" else "")
    else:
        url = f"{base}/openai/deployments/{_http.segment(model)}/embeddings?api-version={quote(version)}"
    auth: _http.Auth = "bearer" if _http.is_jwt(secret) else "api-key"
    return _http.post(place, url, openai.body(place, model, texts, options), secret, auth=auth)


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer."""
    return _listed.answer("azure", status, headers, body, request)

"""The OpenAI dialect's answer, for all who speak it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from embedctl.providers import _errors, _http, _vectors
from embedctl.providers._contract import HttpRequest, WireAnswer


def answer(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read `{"data": [{"index", "embedding"}], "model", "usage"}`; floats and base64 whatever was asked.

    Raises:
        ProviderError: Refused, or a 200 that cannot be used.
    """
    if status != 200:
        raise _errors.refusal(protocol, status, headers, body, request)
    found = _vectors.listed(body)
    return WireAnswer(
        vectors=found.vectors,
        index=found.places,
        tokens=found.counts.total,
        tokens_cached=found.counts.cached,
        cost=found.counts.cost,
        odd_cost=found.counts.odd_cost,
        embedding_id=found.id or _http.request_id(headers),
        response_model=found.model,
        base64=found.base64,
    )

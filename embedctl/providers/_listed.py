"""The OpenAI dialect's answer, for all who speak it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, WireAnswer


def answer(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read `{"data": [{"index", "embedding"}], "model", "usage"}`; floats and base64 whatever was asked.

    Raises:
        ProviderError: Refused, or a 200 that cannot be used.
    """
    if status != 200:
        raise _errors.refusal(protocol, status, headers, body, request)
    found = _vectors.listed(body)
    cost, odd_cost = found.counts.cost, found.counts.odd_cost
    if cost is None and odd_cost is None:
        cost, odd_cost = _stated_cost(headers)
    return WireAnswer(
        vectors=found.vectors,
        index=found.places,
        tokens=found.counts.total,
        tokens_cached=found.counts.cached,
        cost=cost,
        odd_cost=odd_cost,
        embedding_id=found.id or _http.request_id(headers),
        response_model=found.model,
        base64=found.base64,
    )


def _stated_cost(headers: Mapping[str, str]) -> tuple[Decimal | None, str | None]:
    """(cost, what it says instead) of LiteLLM's header; its "0.0" and "None" mean that it knows no price.

    Source: https://docs.litellm.ai/docs/proxy/response_headers; BerriAI/litellm#37425 (2026-11-25)
    """
    said = headers.get("x-litellm-response-cost", "").strip()
    if not said or said == "None":
        return None, None
    found = _foreign.amount(said)
    return (found or None, None) if found is not None else (None, said)

"""What OpenTelemetry calls an embeddings operation. Pure: names and values, nothing of the SDK.

Source: open-telemetry/semantic-conventions-genai, docs/gen-ai/client-embeddings.md at 88eccb1 (Development), read
2026-11-26: span `gen_ai.client.embeddings` and the two metrics below. What it has no word for stands under `embedctl.`.
The conventions' `gen_ai.client.token.usage` and `gen_ai.client.operation.duration` are no longer for embeddings.

Never said: texts, keys, tags, messages of errors (a provider may repeat a text in one), names that a server made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from embedctl.ledger.prices.price import cost
from embedctl.records import AttemptEnded, UsageEvent
from embedctl.telemetry.operations import OperationSpan

Value = str | bool | int | float | tuple[str, ...]
Attributes = dict[str, Value]

PriceOf = Callable[[UsageEvent], Decimal | None]
"""USD per million tokens of an attempt; None when nobody knows."""

OPERATION = "embeddings"
ATTEMPT_SPAN = "embeddings attempt"
"""Children have no `gen_ai` attributes: who adds up tokens over spans would count them twice."""

DURATION = "gen_ai.client.embeddings.duration"
DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
INPUT_TOKENS = "gen_ai.client.embeddings.operation.input_tokens"
INPUT_TOKENS_BUCKETS = tuple(4**power for power in range(14))

_PROVIDERS = {
    "openai": "openai",
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "cohere": "cohere",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
}
"""The catalog's names and the registry's; others have none there, and keep their own."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}\Z")


def span_name(operation: OperationSpan) -> str:
    """`{gen_ai.operation.name} {gen_ai.request.model}`."""
    return f"{OPERATION} {operation.last.event.model}"


def span_attributes(operation: OperationSpan, price_of: PriceOf) -> Attributes:
    """Of an operation's span.

    `gen_ai.usage.input_tokens` is what the provider reported, and of two numbers the billed one; a count made here has
    another name.
    """
    event, found = operation.last.event, common(operation.last)
    answered = [one.event.input_count for one in operation.attempts if one.event.status == "ok"]
    billed = [one.event for one in operation.attempts if one.event.billable == "yes"]
    found |= _present(
        {
            "error.type": operation.error,
            "gen_ai.response.model": model_name(event.response_model),
            "gen_ai.embeddings.dimension.count": operation.last.dimensions,
            "gen_ai.request.encoding_formats": (operation.last.encoding,) if operation.last.encoding else None,
            "embedctl.operation.id": event.operation_id,
            "embedctl.run.id": str(event.run_id) if event.run_id else None,
            "embedctl.job.id": event.job_id,
            "embedctl.workspace.id": event.workspace_id,
            "embedctl.purpose": event.purpose,
            "embedctl.provider": event.provider,
            "embedctl.fallback_from": event.fallback_from,
            "embedctl.attempts": operation.attempts_made,
            "embedctl.inputs": sum(answered) if answered else event.input_count,
        }
    )
    if operation.tokens:
        found["embedctl.usage.source"] = operation.source
        native = operation.source == "native"
        found["gen_ai.usage.input_tokens" if native else "embedctl.usage.estimated_input_tokens"] = operation.tokens
    return found | _cost(billed, price_of)


def attempt_attributes(attempt: AttemptEnded) -> Attributes:
    """Of an attempt's span."""
    event = attempt.event
    return _present(
        {
            "error.type": _error(event),
            "server.address": attempt.server[0] if attempt.server else None,
            "server.port": attempt.server[1] if attempt.server else None,
            "embedctl.attempt.id": str(event.event_id),
            "embedctl.attempt.number": event.attempt,
            "embedctl.provider": event.provider,
            "embedctl.model": event.model,
            "embedctl.status": event.status,
            "embedctl.billable": event.billable,
            "embedctl.inputs": event.input_count,
        }
    )


def metric_attributes(attempt: AttemptEnded) -> Attributes:
    """Of both metrics: closed sets only, so never dimensions, workspaces or ids; error.type is the duration's alone."""
    return common(attempt)


def common(attempt: AttemptEnded) -> Attributes:
    """What span and metrics share."""
    event = attempt.event
    found: Attributes = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": provider_name(event.provider, event.price_as),
        "gen_ai.request.model": event.model,
    }
    if attempt.server:
        found["server.address"], found["server.port"] = attempt.server
    return found


def provider_name(provider: str, price_as: str | None) -> str:
    """The registry's name of a provider, or of the one whose prices apply to a place of one's own; else its own."""
    return _PROVIDERS.get(provider) or _PROVIDERS.get(price_as or "") or provider


def model_name(said: str | None) -> str | None:
    """What a server calls its model, when that can be a name: it could repeat a text."""
    return said if said and _MODEL_NAME.match(said) else None


def _error(event: UsageEvent) -> str | None:
    return None if event.status == "ok" else event.error_class or event.status


def _cost(billed: list[UsageEvent], price_of: PriceOf) -> Attributes:
    """USD of all billed attempts, as text with all its digits; nothing when the price of one is not known."""
    total, sources = Decimal(0), set()
    for event in billed:
        if event.cost_provider is not None:
            total, source = total + event.cost_provider, "provider"
        elif event.meter == "input_token" and (price := price_of(event)) is not None:
            total, source = total + cost(event.tokens_total, price), "local"
        else:
            return {}
        sources.add(source)
    if not sources:
        return {}
    source = sources.pop() if len(sources) == 1 else "mixed"
    return {"embedctl.cost.amount": f"{total:f}", "embedctl.cost.currency": "USD", "embedctl.cost.source": source}


def _present(values: dict[str, Value | None]) -> Attributes:
    return {name: value for name, value in values.items() if value is not None}

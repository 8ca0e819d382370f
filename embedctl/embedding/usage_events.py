"""The usage event of an attempt: before it is sent, when it fails, when it is answered. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.embedding import usage
from embedctl.errors import AnswerLost, EmbedctlError, ProviderError
from embedctl.ledger.prices.price import cost, most_believed
from embedctl.providers._contract import WireAnswer
from embedctl.providers._foreign import CHARACTERS, line
from embedctl.records import IDLE_METER, NO_USAGE, Request, Usage, UsageEvent, new_operation_id, utc_now, uuid7
from embedctl.routing.endpoint import Endpoint

MOST_TAGS = 20
"""On an event, with at most as many characters each in name and value as a foreign string."""

PER_HOUR = "USD an hour"
"""How `reason` ends where a machine's time is what was paid."""

_MOST_INTEGER = 2**31 - 1  # of the ledger's column
_MOST_SMALLINT = 2**15 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """On whose behalf calls are made; on every event.

    Attributes:
        workspace_id: Who pays for probes; a request says itself who pays for it.
        tags: As many and as long as an event takes: what is beyond is cut here, whoever let it pass.
    """

    run_id: UUID
    workspace_id: str = "default"
    job_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cut = {str(name)[:CHARACTERS]: str(value)[:CHARACTERS] for name, value in [*self.tags.items()][:MOST_TAGS]}
        object.__setattr__(self, "tags", cut)


def from_cache(
    caller: Caller, endpoint: Endpoint, request: Request, provider: str, model: str, tokens: int | None
) -> UsageEvent:
    """What was not bought: nothing was sent and nothing is billed.

    Args:
        provider, model: Who made the vectors.
        tokens: What was saved, where known.
    """
    return UsageEvent(
        event_id=uuid7(),
        entry_kind="cache_hit",
        workspace_id=request.workspace_id,
        operation_id=request.operation_id,
        provider=provider,
        model=model,
        occurred_at=utc_now(),
        status="ok",
        billable="no",
        tokens_total=0,
        usage_mode=endpoint.usage_mode,
        usage_source="fallback",
        job_id=caller.job_id,
        run_id=caller.run_id,
        purpose=request.purpose,
        price_as=endpoint.price_as,
        tokens_estimated=tokens,
        input_count=len(request),
        content_bytes=request.content_bytes,
        tags=dict(caller.tags),
        tool_version=__version__,
    )


def intended(
    caller: Caller, endpoint: Endpoint, request: Request, attempt: int, fallback_from: str | None
) -> UsageEvent:
    """What is known before an attempt: enough to account for it if nothing more is ever known.

    Its estimate is an upper bound (a token is at least one byte): the texts are gone when it is needed.
    """
    return UsageEvent(
        event_id=uuid7(),
        workspace_id=request.workspace_id,
        operation_id=request.operation_id,
        provider=endpoint.provider,
        model=endpoint.model,
        occurred_at=utc_now(),
        status="interrupted",
        billable="unknown",
        tokens_total=0,
        usage_mode=endpoint.usage_mode,
        usage_source="fallback",
        job_id=caller.job_id,
        run_id=caller.run_id,
        purpose=request.purpose,
        attempt=min(attempt, _MOST_SMALLINT),
        fallback_from=fallback_from,
        region=str(endpoint.place.options.get("region", "*")),
        provider_account=endpoint.account or None,
        price_as=endpoint.price_as,
        tokens_estimated=usage.upper_bound(request),
        tokenizer_id="bytes",
        input_count=len(request),
        content_bytes=request.content_bytes,
        tags=dict(caller.tags),
        tool_version=__version__,
    )


def failed(event: UsageEvent, endpoint: Endpoint, request: Request, error: ProviderError, seconds: float) -> UsageEvent:
    """An attempt that brought no vectors: not billed, perhaps billed, or billed for nothing."""
    ended = replace(
        event,
        occurred_at=utc_now(),
        duration_ms=_milliseconds(seconds),
        status="timeout" if isinstance(error, AnswerLost) else "error",
        error_class=error.word,
        billable=error.billable,
        reason=line(error.message),
        tokens_estimated=None,
        tokenizer_id=None,
        quantity=0,
    )
    if error.billable == "unknown":
        tokens, tokenizer_id = usage.exact(endpoint, request)
        return replace(ended, tokens_estimated=tokens, tokenizer_id=tokenizer_id)
    if error.billable == "yes":
        return counted(ended, usage.unusable(endpoint, request, error.tokens_native))
    return ended


def unsent(event: UsageEvent, reason: EmbedctlError | None = None) -> UsageEvent:
    """An attempt that was written down, and then not made."""
    return replace(
        event,
        occurred_at=utc_now(),
        status="error" if reason else "cancelled",
        error_class=reason.word if reason else "not_sent",
        billable="no",
        reason=line(reason.message) if reason else None,
        tokens_estimated=None,
        tokenizer_id=None,
        quantity=0,
    )


def answered(
    event: UsageEvent, wire: WireAnswer, used: Usage, seconds: float, usd_per_million: Decimal | None
) -> UsageEvent:
    """An attempt that brought vectors.

    What the answer says it costs is believed from 0 up to ten times the price of its tokens and 1 USD more
    (`most_believed`); anything else stands in `reason`, cut, and the tokens are priced.

    Args:
        usd_per_million: The price of its tokens; None when nobody knows.
    """
    odd_cost = wire.odd_cost
    if wire.cost is not None and wire.cost > most_believed(cost(used.tokens_total, usd_per_million or Decimal(0))):
        odd_cost = str(wire.cost)
    reasons = [NO_USAGE] if used.mode == "native" and used.tokens_native is None else []
    reasons += [f"not believed: a cost of {odd_cost}"] if odd_cost is not None else []
    return counted(
        event,
        used,
        occurred_at=utc_now(),
        duration_ms=_milliseconds(seconds),
        status="ok",
        billable="yes",
        response_model=wire.response_model,
        provider_request_id=wire.embedding_id,
        cost_provider=wire.cost if odd_cost is None else None,
        fallback_from=wire.fallback_from or event.fallback_from,
        reason=line("; ".join(reasons)) or None,
    )


def by_the_hour(event: UsageEvent, microhours: int, per_hour: Decimal) -> UsageEvent:
    """What an attempt comes to at a machine that costs by the hour: its share of the time, whatever its tokens."""
    words = f"{microhours:,} microhours at {per_hour:f} {PER_HOUR}"
    return replace(
        event, cost_provider=cost(microhours, per_hour), reason=line("; ".join(filter(None, (event.reason, words))))
    )


def idle(caller: Caller, endpoint: Endpoint, microhours: int) -> UsageEvent:
    """The time of a machine that costs by the hour which no answered call was charged, as a line of its own."""
    event = UsageEvent(
        event_id=uuid7(),
        workspace_id=caller.workspace_id,
        operation_id=new_operation_id(),
        operation_kind="job",
        provider=endpoint.provider,
        model=endpoint.model,
        occurred_at=utc_now(),
        status="ok",
        billable="yes",
        tokens_total=0,
        usage_mode="native",
        usage_source="native",
        job_id=caller.job_id,
        run_id=caller.run_id,
        price_as=endpoint.price_as,
        meter=IDLE_METER,
        quantity=microhours,
        input_count=0,
        tags=dict(caller.tags),
        reason="between the first and the last call, not charged to any",
        tool_version=__version__,
    )
    return by_the_hour(event, microhours, endpoint.per_hour or Decimal(0))


def _milliseconds(seconds: float) -> int:
    return min(max(round(seconds * 1000), 0), _MOST_INTEGER)


def counted(event: UsageEvent, used: Usage, **more: Any) -> UsageEvent:
    """An attempt that is billed for this usage."""
    return replace(
        event,
        tokens_total=used.tokens_total,
        quantity=used.tokens_total,
        usage_mode=used.mode,
        usage_source=used.source,
        tokens_native=used.tokens_native,
        tokens_estimated=used.tokens_estimated,
        tokens_cached=used.tokens_cached,
        tokenizer_id=used.tokenizer_id,
        **more,
    )

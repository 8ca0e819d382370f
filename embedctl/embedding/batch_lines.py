"""What a line of a batch came to: its event and its usage, when its texts are long gone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID

from embedctl import __version__
from embedctl.embedding import usage_events
from embedctl.embedding.usage_events import Caller
from embedctl.errors import ProviderError
from embedctl.journal.batches import MARK_PREFIX, Batch, Line
from embedctl.providers._contract import WireAnswer
from embedctl.providers._foreign import line as one_line
from embedctl.records import Request, Usage, UsageEvent, utc_now
from embedctl.routing.endpoint import Endpoint

TIER = "batch"
"""The price tier of all that is bought so."""


def begun(caller: Caller, endpoint: Endpoint, batch: Batch, number: int, ended_at: float | None = None) -> UsageEvent:
    """What is known of a line before its result: the most that it can have cost.

    Args:
        ended_at: When its batch ended, in Unix seconds, as its provider says: the day that it bills.
    """
    now = utc_now()
    said = ended_at is not None and batch.planned_at <= ended_at <= now.timestamp()
    line = batch.lines[number]
    return UsageEvent(
        event_id=batch.event_id(number),
        workspace_id=batch.workspaces[line.workspace],
        operation_id=batch.operation_id(number),
        provider=endpoint.provider,
        model=endpoint.model,
        occurred_at=datetime.fromtimestamp(ended_at, UTC) if said and ended_at is not None else now,
        status="interrupted",
        billable="unknown",
        tokens_total=0,
        usage_mode=endpoint.usage_mode,
        usage_source="fallback",
        job_id=caller.job_id,
        run_id=caller.run_id,
        purpose=batch.purpose,  # type: ignore[arg-type]
        region=str(endpoint.place.options.get("region", "*")),
        provider_account=batch.account or None,
        batch_id=batch.batch_id,
        price_tier=TIER,
        price_as=endpoint.price_as,
        tokens_estimated=line.tokens,
        tokenizer_id=batch.tokenizer_id,
        input_count=line.texts,
        content_bytes=line.content_bytes,
        tags=_tags(caller.tags),
        tool_version=__version__,
    )


def _tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in tags.items()}


def usage(endpoint: Endpoint, batch: Batch, number: int, native: int | None, cached: int | None = None) -> Usage:
    """The usage of an answered line: the provider's count, unless it can be none of tokens, or ours from before."""
    mode, line = endpoint.usage_mode, batch.lines[number]
    if mode == "native":
        return Usage(tokens_total=native or 0, source="native", mode=mode, tokens_native=native, tokens_cached=cached)
    believed = mode == "auto" and native is not None and plausible(line, native)
    return Usage(
        tokens_total=native if believed and native is not None else line.tokens,
        source="native" if believed else "fallback",
        mode=mode,
        tokens_native=native,
        tokens_estimated=line.tokens,
        tokens_cached=cached if believed else None,
        tokenizer_id=batch.tokenizer_id,
    )


def plausible(line: Line, native: int) -> bool:
    """Whether a provider's count can be one of tokens; the bounds are those of `usage.plausible`."""
    if native <= 0 or native > line.content_bytes + 16 * line.texts:
        return False
    if native == line.characters and native > line.tokens * 2:
        return False
    return line.tokens / 3 - line.texts <= native <= line.tokens * 3 + 8 * line.texts


def answered(event: UsageEvent, wire: WireAnswer, used: Usage, usd_per_million: Decimal | None) -> UsageEvent:
    """A line that brought vectors. How long it took says nothing: a batch takes hours."""
    ended = usage_events.answered(event, wire, used, 0.0, usd_per_million)
    return replace(ended, duration_ms=None, occurred_at=event.occurred_at)


def failed(event: UsageEvent, error: ProviderError, used: Usage | None) -> UsageEvent:
    """A line that brought none.

    Args:
        used: What it used all the same; None: it was not bought.
    """
    ended = replace(
        event,
        status="error",
        error_class=error.word,
        billable="no" if used is None else "yes",
        reason=one_line(error.message),
        tokens_estimated=None,
        tokenizer_id=None,
        quantity=0,
    )
    return ended if used is None else usage_events.counted(ended, used)


def lost(event: UsageEvent, why: str) -> UsageEvent:
    """A line that its provider may have answered, and of which nothing can be read."""
    return replace(event, status="error", error_class="answer_lost", billable="unknown", reason=one_line(why))


def stand_in(batch: Batch, number: int) -> Request:
    """A request that costs what a line does; its texts are gone."""
    line = batch.lines[number]
    return Request(
        operation_id=batch.operation_id(number),
        texts=[""] * line.texts,
        hashes=batch.hashes_of(number),
        workspace_id=batch.workspaces[line.workspace],
        content_bytes=line.content_bytes,
        tokens=line.tokens,
    )


def given_up(batch: Batch) -> list[UsageEvent]:
    """A batch whose results nobody will read any more: perhaps billed, one event for each workspace that pays."""
    found = []
    for name, tokens in batch.risk.items():
        digest = blake2b(f"{batch.key}/{name}".encode(), digest_size=10).hexdigest()
        stamp = batch.mark.removeprefix(MARK_PREFIX)[:12]
        found.append(
            UsageEvent(
                event_id=UUID(f"{stamp}7{digest[:3]}8{digest[3:18]}"),
                workspace_id=name,
                operation_id=digest,
                provider=batch.provider,
                model=batch.model,
                occurred_at=datetime.fromtimestamp(batch.created_at or batch.planned_at, UTC),
                status="interrupted",
                billable="unknown",
                tokens_total=0,
                usage_mode="auto",
                usage_source="fallback",
                error_class="batch_given_up",
                job_id=batch.job_id,
                run_id=batch.run_id,
                operation_kind="batch",
                purpose=batch.purpose,  # type: ignore[arg-type]
                provider_account=batch.account or None,
                batch_id=batch.batch_id,
                price_tier=TIER,
                price_as=batch.price_as,
                tokens_estimated=tokens,
                tokenizer_id=batch.tokenizer_id,
                input_count=batch.texts,
                content_bytes=batch.content_bytes,
                reason="its results were not read before the provider removed them",
                tool_version=__version__,
            )
        )
    return found

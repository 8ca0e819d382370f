"""Step 4. THE call point: request → answer. Nothing else reaches a provider.

    Fallback( Retry( Breaker( attempt ) ) )

An attempt reserves its money, waits for its turn, is written down, sent, checked, written down again, settled.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedctl import answers, counting, events, local
from embedctl.errors import (
    AnswerUnusable,
    CircuitOpen,
    EmbedctlError,
    ProviderError,
    Remedy,
    RequestRefused,
    ServerFailed,
    TextRefused,
)
from embedctl.events import Caller
from embedctl.lanes import Lanes, Line
from embedctl.plan import estimated_tokens, part_of
from embedctl.providers._contract import WireAnswer
from embedctl.records import Answer, Request, Space, UsageEvent, text_hash, uuid7
from embedctl.resilience.lane import Slot as Turn
from embedctl.resilience.rates import rates
from embedctl.resilience.retry import Attempts, Policy, Step
from embedctl.serving import Offer
from embedctl.slots import Refusal


class Record(Protocol):
    """Where attempts are written down (journal.py)."""

    async def intend(self, event: UsageEvent) -> None:
        """Before an attempt is sent."""

    async def settle(self, event: UsageEvent) -> None:
        """When it brought no vectors."""

    async def answer(
        self, event: UsageEvent, hashes: bytes, vectors: NDArray[np.float32], tokens_each: Any = None, extra: Any = None
    ) -> Any:
        """When it did; the place where they are."""


class Purse(Protocol):
    """What may be spent (money.py): reserve before sending, settle after."""

    def reserve(self, offer: Offer, request: Request) -> object:
        """Set the price of an attempt aside; BudgetReached when it is not there."""

    def settle(self, reservation: object, event: UsageEvent) -> None:
        """What it came to."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What became of texts[start:stop] of a request: vectors in the record, or the reason why there are none."""

    start: int
    stop: int
    answer: Answer | None = None
    place: Any = None
    refusal: Refusal | None = None


@dataclass(slots=True)
class _Operation:
    """A request seen across its attempts and fallbacks."""

    attempts: int = 0


class _LeftError(Exception):
    """A line is of no use for this request; internal to this file."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.error.message)
        self.step = step


class CallPoint:
    """Embeds requests through the lines of a chain, until each text has a vector or a reason.

    Args:
        lanes: The chain, its breakers, limiters, and what is remembered of its servers.
        policy: How often and how long one request is tried.
        space: The space that the output already holds; None while it holds none.
        watch: Told of every attempt that ended.
        proceed: Called before each attempt; raises when nothing more may be sent.
        told: Told in words why it waits.
    """

    def __init__(
        self,
        lanes: Lanes,
        record: Record,
        purse: Purse,
        caller: Caller,
        *,
        policy: Policy,
        space: Space | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        watch: Callable[[UsageEvent], None] = lambda event: None,
        told: Callable[[str], None] = lambda line: None,
        proceed: Callable[[], None] = lambda: None,
    ) -> None:
        self._proceed = proceed
        self._lanes = lanes
        self._record = record
        self._purse = purse
        self._caller = caller
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._watch = watch
        self._told = told
        self.space = space

    async def embed(self, request: Request) -> list[Piece]:
        """Every text of the request, as pieces in order.

        Raises:
            ProviderError: No provider of the chain can serve now; no text is to blame.
            NoProviderNow: The same, and when one is back.
            DeadlinePassed: The next attempt would come too late.
            BudgetReached: Sending it could cost more than is allowed.
        """
        operation = _Operation()
        while True:
            line = await self._lanes.next(self.space, self._probe)
            try:
                return await self._with_retry(line, operation, request, 0)
            except _LeftError as left:
                error = left.step.error
                if not isinstance(error, ProviderError):
                    raise error from None
                self._lanes.leave(line, left.step)
                self._told(f"{line.offer.id}: {error.message}")

    async def _with_retry(self, line: Line, operation: _Operation, request: Request, start: int) -> list[Piece]:
        """One line's attempts at a request; smaller ones where its size or one text is to blame."""
        attempts = Attempts(self._policy, jitter=self._jitter)
        before = line.successes
        while True:
            try:
                answer, place = await self._attempt(line, operation, request)
            except ProviderError as error:
                if self._floats_instead(line, error):
                    continue
                others = line.successes - before
                step = attempts.after(error, now=self._clock(), budget=line.budget, others_succeeded=others)
            else:
                attempts.succeeded(line.budget)
                return [Piece(start, start + len(request), answer, place)]
            if step.remedy in (Remedy.HALVE, Remedy.ISOLATE) and isinstance(step.error, ProviderError):
                return await self._smaller(line, operation, request, start, step.error)
            if step.remedy is Remedy.LEAVE:
                if _blames_its_texts(step.error) and line.successes > before:
                    return await self._smaller(line, operation, request, start, step.error)  # type: ignore[arg-type]
                raise _LeftError(step)
            self._told(f"{line.offer.id}: {step.error.message}; again in {step.wait_s:.1f} s")
            await self._sleep(step.wait_s)

    async def _smaller(
        self, line: Line, operation: _Operation, request: Request, start: int, error: ProviderError
    ) -> list[Piece]:
        """Both halves of a refused request; the text that stands alone in the end is the one to blame."""
        if len(request) == 1:
            return [Piece(start, start + 1, refusal=refusal(error, line.offer, operation.attempts))]
        self._lanes.too_large(line, len(request), request.content_bytes, error)
        middle = len(request) // 2
        first = await self._with_retry(line, operation, part_of(request, 0, middle), start)
        return first + await self._with_retry(line, operation, part_of(request, middle, len(request)), start + middle)

    def _floats_instead(self, line: Line, error: ProviderError) -> bool:
        """Whether to ask again for floats: a server's first refusal may be of base64, not of the texts."""
        doubtful = isinstance(error, RequestRefused | TextRefused | ServerFailed) and error.status in (
            400,
            422,
            500,
            501,
        )
        if not doubtful or not line.asks_base64 or line.successes:
            return False
        line.asks_base64 = False
        return True

    async def _attempt(self, line: Line, operation: _Operation, request: Request) -> tuple[Answer, Any]:
        """One attempt: its turn, its pass, its money, and the sending itself."""
        tokens = request.tokens if request.tokens is not None else estimated_tokens(request.content_bytes)
        async with line.lane.slot(tokens, len(request)) as turn:
            self._proceed()
            ticket = line.breaker.admit(self._clock())
            if ticket is None:
                raise line.breaker.refusal(self._clock())
            try:
                reservation = self._purse.reserve(line.offer, request)
                operation.attempts += 1
                origin = self._lanes.fallback_from(line)
                event = events.intended(self._caller, line.offer, request, operation.attempts, origin)
                return await self._sent(line, request, event, turn, reservation)
            except ProviderError as error:
                line.breaker.settle(ticket, error, self._clock())
                ticket = None
                raise
            except BaseException:
                line.breaker.abandon(ticket)
                ticket = None
                raise
            finally:
                if ticket is not None:
                    line.breaker.settle(ticket, None, self._clock())

    async def _sent(
        self, line: Line, request: Request, event: UsageEvent, turn: Turn, reservation: object
    ) -> tuple[Answer, Any]:
        """Written down, sent, checked, written down again, settled."""
        ended = event
        try:
            await self._record.intend(event)
            started = self._clock()
            try:
                wire, headers, body = await self._exchange(line, request)
                vectors = answers.checked(wire, line.offer, len(request), self.space.dimensions if self.space else None)
            except ProviderError as error:
                error.provider = error.provider or line.offer.provider
                ended = events.failed(event, line.offer, request, error, self._clock() - started)
                await self._record.settle(ended)
                turn.failed(error)
                self._lanes.failed(line, error)
                raise
            used = counting.usage(line.offer, request, wire.tokens, wire.tokens_cached, event.event_id, line.successes)
            ended = events.answered(event, wire, used, self._clock() - started)
            each = wire.tokens_each if wire.tokens_each is not None else request.tokens_each
            if self.space is None and request.purpose != "test":
                self.space = line.offer.space(int(vectors.shape[1]))
            kept = {"space_id": self.space.space_id} if self.space and request.purpose != "test" else None
            place = await self._record.answer(ended, request.hashes, vectors, each, kept)
            turn.succeeded(used.tokens_total, rates(headers))
            self._lanes.answered(line, request.texts, vectors)
        finally:
            self._purse.settle(reservation, ended)
            self._watch(ended)
        answer = Answer(
            vectors=vectors,
            usage=used,
            request=request,
            provider=wire.provider or line.offer.provider,
            model=line.offer.model,
            event_id=event.event_id,
            embedding_id=wire.embedding_id,
            response_model=wire.response_model,
            raw_response=body,
            tokens_each=each,
            fallback_from=ended.fallback_from,
        )
        return answer, place

    async def _exchange(self, line: Line, request: Request) -> tuple[WireAnswer, Mapping[str, str], bytes]:
        """Send, and read the answer: over the wire, or in a thread of this process."""
        offer = line.offer
        if offer.local:
            model = await asyncio.to_thread(local.load, line.folder, offer.max_tokens or 512)
            vectors, each = await asyncio.to_thread(model.embed, [str(text) for text in request.texts])
            return WireAnswer(vectors=vectors, tokens=sum(each), tokens_each=each), {}, b""
        wire_options = replace(offer.wire, base64=line.asks_base64)
        message = offer.protocol.request(offer.place, offer.wire_model, request.texts, wire_options)
        response = await line.transport.send(message, timeout_s=offer.timeout_s)
        wire = offer.protocol.answer(response.status, response.headers, response.body, message)
        return wire, response.headers, response.body

    async def _probe(self, line: Line, texts: list[str]) -> NDArray[np.float32]:
        """Vectors of probe texts, accounted like any other call, with purpose `test`."""
        request = Request(
            operation_id=str(uuid7()),
            texts=texts,
            hashes=b"".join(text_hash(f"\0probe {uuid7()}") for _ in texts),  # never taken for a row's vector
            purpose="test",
            content_bytes=sum(len(text.encode()) for text in texts),
        )
        answer, _ = await self._attempt(line, _Operation(), request)
        return answer.vectors


def _blames_its_texts(error: EmbedctlError) -> bool:
    """Whether a failure that stays, while other requests succeed, may be the fault of one text."""
    return isinstance(error, AnswerUnusable | ServerFailed) and not isinstance(error, CircuitOpen)


def refusal(error: ProviderError, offer: Offer, attempts: int) -> Refusal:
    """Why a text that stood alone was not embedded, in the failures file's words."""
    reason = "text_refused"
    if error.word in ("input_too_long", "request_too_large"):
        reason = "too_long"
    elif isinstance(error, AnswerUnusable):
        reason = "unusable_vector"
    elif isinstance(error, ServerFailed):
        reason = "provider_failed"
    told: Mapping[str, Any] = next((detail for detail in error.details if "tokens" in detail), {})
    return Refusal(
        reason=reason,
        message=error.message,
        provider=offer.provider,
        attempts=attempts,
        tokens=told.get("tokens"),
        max_tokens=told.get("max_tokens", offer.max_tokens if reason == "too_long" else None),
    )

"""One attempt: its turn, its pass, its money; written down, sent, checked, written down again, settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedctl.backends.onnx import local_model
from embedctl.embedding import checks, usage, usage_events
from embedctl.embedding.endpoint_state import EndpointState
from embedctl.embedding.router import Router, WaitBudget
from embedctl.embedding.usage_events import Caller
from embedctl.errors import AnswerUnusable, EmbedctlError, ProviderError, SpaceMismatch
from embedctl.planning.packer import estimated_tokens
from embedctl.providers._contract import HttpRequest, WireAnswer
from embedctl.providers._errors import clean
from embedctl.providers._rate_headers import rates
from embedctl.records import Answer, Request, Space, Usage, UsageEvent
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import Permit as Turn


class Record(Protocol):
    """Where attempts are written down (journal/)."""

    async def intend(self, event: UsageEvent) -> None:
        """Before an attempt is sent."""

    async def settle(self, event: UsageEvent) -> None:
        """When it brought no vectors."""

    async def answer(
        self, event: UsageEvent, hashes: bytes, vectors: NDArray[np.float32], tokens_each: Any = None, extra: Any = None
    ) -> Any:
        """When it did; the place where they are."""

    def release(self, segment_id: str, vectors: int | None = None) -> None:
        """So many vectors of a segment are of no use any more."""


class SpendGuard(Protocol):
    """What may be spent (money/): wait for room, reserve before sending, settle after."""

    async def room(self, offer: Endpoint, request: Request) -> None:
        """Wait while money is short, but some of it is set aside for what is in flight and may come back."""

    def reserve(self, offer: Endpoint, request: Request) -> object:
        """Set the price of an attempt aside; BudgetReached when it is not there."""

    def settle(self, reservation: object, event: UsageEvent) -> None:
        """What it came to."""


@dataclass(slots=True)
class Operation:
    """A request seen across its attempts and fallbacks.

    Attributes:
        aside: Its vectors go into no output: a probe.
        floats: Vectors are asked for as floats, whatever the line does.
        asked_base64: The last attempt asked for base64.
        blamed: It was found out that one of its texts is bad.
    """

    patience: WaitBudget
    attempts: int = 0
    aside: bool = False
    floats: bool = False
    asked_base64: bool = False
    blamed: bool = False


class Attempt:
    """Makes attempts.

    Attributes:
        space: Of the output's vectors; None until the first ones are there.
    """

    def __init__(
        self,
        lanes: Router,
        record: Record,
        purse: SpendGuard,
        caller: Caller,
        *,
        space: Space | None,
        clock: Callable[[], float],
        watch: Callable[[UsageEvent], None],
        proceed: Callable[[], None],
    ) -> None:
        self._lanes = lanes
        self._record = record
        self._purse = purse
        self.caller = caller
        self._clock = clock
        self._watch = watch
        self._proceed = proceed
        self.space = space
        self._spaces: dict[int, tuple[Endpoint, int, Space | None]] = {}

    async def once(self, line: EndpointState, operation: Operation, request: Request) -> tuple[Answer, Any]:
        """One attempt at a request through one line; the answer, and where it is written down.

        Raises:
            NotAdmittedError: The line takes none now.
            ProviderError: It failed, and how that is to be taken.
        """
        tokens = request.tokens if request.tokens is not None else estimated_tokens(request.content_bytes)
        async with line.lane.slot(tokens, len(request)) as turn:
            await self._purse.room(line.offer, request)
            self._proceed()
            with line.admitted(self._clock, blamed=operation.blamed):
                operation.asked_base64 = line.asks_base64 and not operation.floats
                message = None if line.offer.local else _message(line.offer, request, base64=operation.asked_base64)
                reservation = self._purse.reserve(line.offer, request)
                operation.attempts += 1
                origin = self._lanes.fallback_from(line)
                event = usage_events.intended(self.caller, line.offer, request, operation.attempts, origin)
                return await self._written_down(line, operation, request, message, event, turn, reservation)

    async def _written_down(
        self,
        line: EndpointState,
        operation: Operation,
        request: Request,
        message: HttpRequest | None,
        event: UsageEvent,
        turn: Turn,
        reservation: object,
    ) -> tuple[Answer, Any]:
        """The intent before, the outcome or the answer after; then the money is settled."""
        ended = usage_events.unsent(event)
        started = self._clock()
        try:
            await self._record.intend(event)
            ended = event
            try:
                wire, headers, body = await self._send(line, request, message)
                vectors = self._checked(line, operation, request, wire)
            except EmbedctlError as error:
                ended = self._failed(line, request, event, error, self._clock() - started)
                await self._record.settle(ended)
                if isinstance(error, ProviderError):
                    turn.failed(error)
                raise
            used = usage.usage(line.offer, request, wire.tokens, wire.tokens_cached, event.event_id, line.scale)
            ended = usage_events.answered(event, wire, used, self._clock() - started)
            place = await self._keep(operation, request, wire, ended, vectors)
            turn.succeeded(used.tokens_total, rates(headers))
            self._learn(line, operation, request, wire, vectors)
        finally:
            self._purse.settle(reservation, ended)
            self._watch(ended)
        return _answer(line.offer, request, wire, used, ended, vectors, body), place

    async def _send(
        self, line: EndpointState, request: Request, message: HttpRequest | None
    ) -> tuple[WireAnswer, Mapping[str, str], bytes]:
        """Send, and read the answer: over the wire, or in a thread of this process."""
        offer = line.offer
        if message is None or line.transport is None:
            model = await asyncio.to_thread(local_model.load, offer.folder, offer.max_tokens or 512)
            vectors, each = await asyncio.to_thread(model.embed, [str(text) for text in request.texts])
            return WireAnswer(vectors=vectors, tokens=sum(each), tokens_each=each), {}, b""
        response = await line.transport.send(message, timeout_s=offer.timeout_s)
        try:
            wire = offer.protocol.answer(response.status, response.headers, response.body, message)
        except AnswerUnusable as error:  # says how the body begins, and that may be anything
            error.message = clean(error.message, message)
            raise
        return wire, response.headers, response.body

    def _checked(
        self, line: EndpointState, operation: Operation, request: Request, wire: WireAnswer
    ) -> NDArray[np.float32]:
        """The vectors, when they may be kept; what comes first decides which space the output has."""
        width = self.space.dimensions if self.space else None
        vectors = checks.checked(wire, line.offer, len(request), width, line.voice)
        line.voice = line.voice or checks.voice(wire)
        if operation.aside:
            return vectors
        space = self._space_of(line.offer, int(vectors.shape[1]))
        if self.space is not None and (space is None or space.space_id != self.space.space_id):
            raise SpaceMismatch(
                f"{line.offer.id} answers in another space than the output has: "
                + "; ".join(self.space.differences(space) if space else ()),
                hint="vectors of two spaces are never mixed",
                tokens_native=wire.tokens,
            )
        self.space = self.space or space
        return vectors

    def _space_of(self, offer: Endpoint, width: int) -> Space | None:
        """Where an offer's vectors of this width belong; worked out once, because an id is a hash of all fields."""
        known = self._spaces.get(id(offer))
        if known is None or known[0] is not offer or known[1] != width:
            known = self._spaces[id(offer)] = (offer, width, offer.space(width))
        return known[2]

    def _failed(
        self, line: EndpointState, request: Request, event: UsageEvent, error: EmbedctlError, seconds: float
    ) -> UsageEvent:
        if not isinstance(error, ProviderError):
            return usage_events.unsent(event, error)
        error.provider = error.provider or line.offer.provider
        self._lanes.failed(line, error)
        return usage_events.failed(event, line.offer, request, error, seconds)

    async def _keep(
        self, operation: Operation, request: Request, wire: WireAnswer, ended: UsageEvent, vectors: NDArray[np.float32]
    ) -> Any:
        """Write vectors and usage down; a probe's vectors are of no use to anybody later."""
        each = wire.tokens_each if wire.tokens_each is not None else request.tokens_each
        kept = {"space_id": self.space.space_id} if self.space and not operation.aside else None
        place = await self._record.answer(ended, request.hashes, vectors, each, kept)
        if operation.aside:
            self._record.release(place.segment, len(request))
        return place

    def _learn(
        self,
        line: EndpointState,
        operation: Operation,
        request: Request,
        wire: WireAnswer,
        vectors: NDArray[np.float32],
    ) -> None:
        if operation.asked_base64:
            line.base64_works = True
        if line.asks_base64 and (wire.base64 is False if operation.asked_base64 else operation.floats):
            self._lanes.only_floats(line)  # it does not care, or took the same request when floats were asked for
        self._lanes.answered(line, request.texts, vectors, aside=operation.aside)


def _message(offer: Endpoint, request: Request, *, base64: bool) -> HttpRequest:
    wire = offer.wire if offer.wire.base64 == base64 else replace(offer.wire, base64=base64)
    return offer.protocol.request(offer.place, offer.wire_model, request.texts, wire)


def _answer(
    offer: Endpoint,
    request: Request,
    wire: WireAnswer,
    used: Usage,
    event: UsageEvent,
    vectors: NDArray[np.float32],
    body: bytes,
) -> Answer:
    return Answer(
        vectors=vectors,
        usage=used,
        request=request,
        provider=wire.provider or offer.provider,
        model=offer.model,
        event_id=event.event_id,
        embedding_id=wire.embedding_id,
        response_model=wire.response_model,
        raw_response=body,
        tokens_each=wire.tokens_each if wire.tokens_each is not None else request.tokens_each,
        fallback_from=event.fallback_from,
    )

"""One attempt: its turn, its pass, its money; written down, sent, checked, written down again, settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from embedctl.backends import local
from embedctl.dataclass import dataclass
from embedctl.embedding import checks, usage, usage_events
from embedctl.embedding.endpoint_state import EndpointState
from embedctl.embedding.leg import Leg
from embedctl.embedding.route import Route
from embedctl.embedding.router import Router, WaitBudget
from embedctl.embedding.usage_events import Caller
from embedctl.errors import EmbedctlError, KeyRejected, ProviderError, SpaceMismatch
from embedctl.planning.packer import estimated_tokens
from embedctl.providers._contract import HttpRequest, WireAnswer
from embedctl.providers._entry import read
from embedctl.providers._rate_headers import rates
from embedctl.records import Answer, AttemptEnded, Inferred, Observer, Request, Usage, UsageEvent, Warned
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import Permit as Turn
from embedctl.routing.retry import RetryBudget

INFERRED_EVERY_S = 0.25
"""How often a local model says how far it is."""


class AttemptRecord(Protocol):
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

    def price(self, endpoint: Endpoint) -> Decimal | None:
        """USD per million tokens now; 0 when it is free, None when nobody knows."""

    async def reserve(self, endpoint: Endpoint, request: Request) -> object:
        """Set the price of an attempt aside; waits while it may come back, else BudgetReached."""

    async def release(self, reservation: object) -> None:
        """The attempt was never made. Done also when the caller is cancelled meanwhile, like `settle`."""

    async def settle(self, reservation: object, event: UsageEvent) -> None:
        """What it came to."""


@dataclass(slots=True)
class Doubts:
    """Failures of an operation at an endpoint that may be its texts' fault.

    Attributes:
        acquitted: Of `EndpointState`, before the first of them.
    """

    state: EndpointState
    acquitted: int
    failures: int = 0


@dataclass(slots=True)
class Operation:
    """A request seen across its attempts and fallbacks.

    Attributes:
        probe: Its vectors go into no output.
        patient: A probe that is tried as often as a row's request is.
        known_good: Of a probe: its text has no fault.
        floats: Vectors are asked for as floats, whatever the line does.
        asked_base64: The last attempt asked for base64.
        isolating: It was found out that one of its texts is bad.
        doubts: How often it failed where its texts may be to blame, at one endpoint, however often it came back to it.
        budget: What its retries may cost from then on: they say nothing about the provider.
    """

    wait_budget: WaitBudget
    attempts: int = 0
    probe: bool = False
    patient: bool = False
    floats: bool = False
    asked_base64: bool = False
    isolating: bool = False
    known_good: bool = False
    doubts: Doubts | None = None
    budget: RetryBudget = field(default_factory=RetryBudget)


class Attempt:
    """Makes attempts for one call."""

    def __init__(
        self,
        router: Router,
        route: Route,
        caller: Caller,
        record: AttemptRecord,
        guard: SpendGuard,
        *,
        clock: Callable[[], float],
        observer: Observer,
        proceed: Callable[[], None],
        keep_bodies: bool,
    ) -> None:
        self._router = router
        self._route = route
        self.caller = caller
        self._record = record
        self._guard = guard
        self._clock = clock
        self._observer = observer
        self._proceed = proceed
        self._keep_bodies = keep_bodies

    async def once(self, leg: Leg, operation: Operation, request: Request) -> tuple[Answer, Any]:
        """One attempt at a request through one line; the answer, and where it is written down.

        Raises:
            NotAdmittedError: The line takes none now.
            ProviderError: It failed, and how that is to be taken.
        """
        tokens = request.tokens if request.tokens is not None else estimated_tokens(request.content_bytes)
        async with leg.state.limiter.acquire(tokens, len(request)) as permit:
            reservation = await self._guard.reserve(leg.endpoint, request)
            event = None
            try:
                self._proceed()
                good = operation.known_good
                with leg.admitted(self._clock, isolating=operation.isolating, subject=request.subject, known_good=good):
                    operation.asked_base64 = leg.state.asks_base64 and not operation.floats
                    message = _message(leg.endpoint, request, base64=operation.asked_base64)
                    operation.attempts += 1
                    origin = self._route.fallback_from(leg)
                    event = usage_events.intended(self.caller, leg.endpoint, request, operation.attempts, origin)
                    return await self._written_down(leg, operation, request, message, event, permit, reservation)
            finally:
                if event is None:
                    await self._guard.release(reservation)

    async def _written_down(
        self,
        leg: Leg,
        operation: Operation,
        request: Request,
        message: HttpRequest | None,
        event: UsageEvent,
        permit: Turn,
        reservation: object,
    ) -> tuple[Answer, Any]:
        """The intent before, the outcome or the answer after; then the money is settled."""
        ended: UsageEvent | None = None
        width, encoding = leg.endpoint.dimensions, None
        started = self._clock()
        share = _MachineShare(leg, self._clock)
        try:
            await self._record.intend(event)
            ended = event
            try:
                with share:
                    wire, headers, body = await self._send(leg, request, message)
                if not self._keep_bodies:
                    body = b""  # as large as its vectors, and these still have to get to the disk
                vectors = self._checked(leg, operation, request, wire)
            except EmbedctlError as error:
                ended = share.charged(await self._failed(leg, request, event, error, self._clock() - started))
                await self._record.settle(ended)
                if isinstance(error, ProviderError):
                    permit.failed(error)
                    self._router.paced(leg)
                raise
            width, encoding = int(vectors.shape[1]), "base64" if wire.base64 and operation.asked_base64 else None
            used = await self._used(leg, request, wire, event)
            price = self._guard.price(leg.endpoint)
            ended = share.charged(usage_events.answered(event, wire, used, self._clock() - started, price))
            each = usage.tokens_each(request, used, wire.tokens_each)
            place = await self._keep(operation, request, each, ended, vectors)
            permit.succeeded(used.tokens_total, rates(headers))
            self._router.paced(leg)
            self._learn(leg, operation, request, wire, vectors)
        finally:
            if share.is_left:  # cancelled: nobody was charged its time
                share.charged(usage_events.unsent(event))
            if ended is None:
                ended = usage_events.unsent(event)
            self._observer.notify(AttemptEnded(ended, _server(message), width, encoding))
            await self._guard.settle(reservation, ended)
        return _answer(leg.endpoint, request, wire, used, each, ended, vectors, body), place

    async def _send(
        self, leg: Leg, request: Request, message: HttpRequest | None
    ) -> tuple[WireAnswer, Mapping[str, str], bytes]:
        """Send, and read the answer: over the wire, or in a thread of this process."""
        endpoint = leg.endpoint
        if message is None or leg.state.transport is None:
            model = await asyncio.to_thread(local.load, endpoint.place.protocol, endpoint.folder, endpoint.max_tokens)
            texts = [str(text) for text in request.texts]
            vectors, each = await asyncio.to_thread(model.embed, texts, self._inferred(asyncio.get_running_loop()))
            return WireAnswer(vectors=vectors, tokens=sum(each), tokens_each=each), {}, b""
        response = await leg.state.transport.send(message, timeout_s=endpoint.timeout_s, proceed=self._proceed)
        wire = read(endpoint.protocol, response.status, response.headers, response.body, message)
        return wire, response.headers, response.body

    def _inferred(self, loop: asyncio.AbstractEventLoop) -> Callable[[int, int], None]:
        """Told by a local model, in its thread, of texts it is done with: says so now and then, or ends the work."""
        held, held_tokens, said = 0, 0, self._clock()

        def done(texts: int, tokens: int) -> None:
            nonlocal held, held_tokens, said
            self._proceed()
            held, held_tokens = held + texts, held_tokens + tokens
            if (now := self._clock()) - said >= INFERRED_EVERY_S:
                loop.call_soon_threadsafe(self._observer.notify, Inferred(held, held_tokens))
                held, held_tokens, said = 0, 0, now

        return done

    async def _used(self, leg: Leg, request: Request, wire: WireAnswer, event: UsageEvent) -> Usage:
        """What the answer used; counted in a thread where the provider's own count is not enough."""

        def work_out() -> Usage:
            return usage.usage(leg.endpoint, request, wire.tokens, wire.tokens_cached, event.event_id, leg.state.trust)

        if usage.must_count(leg.endpoint, request, wire.tokens, event.event_id, leg.state.trust):
            return await self._router.counted(work_out)
        return work_out()

    def _checked(self, leg: Leg, operation: Operation, request: Request, wire: WireAnswer) -> NDArray[np.float32]:
        """The vectors, when they may be kept; what comes first decides which space the output has."""
        width = self._route.space.dimensions if self._route.space else None
        vectors = checks.checked(wire, leg.endpoint, len(request), width, leg.state.identity)
        if leg.state.identity is None:
            leg.state.identity = checks.identity(wire)
            if (said := checks.another_model(wire, leg.endpoint)) is not None:
                self._observer.notify(Warned("other_model", leg.endpoint.id, said))
        if operation.probe:
            return vectors
        space = self._route.space_of(leg.endpoint, int(vectors.shape[1]))
        if self._route.space is not None and (space is None or space.space_id != self._route.space.space_id):
            raise SpaceMismatch(
                f"{leg.endpoint.id} answers in another space than the output has: "
                + "; ".join(self._route.space.differences(space) if space else ()),
                hint="vectors of two spaces are never mixed",
                tokens_native=wire.tokens,
            )
        if self._route.space is None and space is not None:
            self._route.space = space
            self._route.space_probe.begins(leg)  # at once: others may fall back to it while this is written down
        return vectors

    async def _failed(
        self, leg: Leg, request: Request, event: UsageEvent, error: EmbedctlError, seconds: float
    ) -> UsageEvent:
        if not isinstance(error, ProviderError):
            return usage_events.unsent(event, error)
        error.provider = error.provider or leg.endpoint.provider
        if isinstance(error, KeyRejected):
            error.hint = _key_hint(leg.endpoint)
        self._router.failed(leg, error)
        return await self._router.counted(lambda: usage_events.failed(event, leg.endpoint, request, error, seconds))

    async def _keep(
        self,
        operation: Operation,
        request: Request,
        each: Sequence[int] | None,
        ended: UsageEvent,
        vectors: NDArray[np.float32],
    ) -> Any:
        """Write vectors and usage down; a probe's vectors are of no use to anybody later."""
        kept = {"space_id": self._route.space.space_id} if self._route.space and not operation.probe else None
        place = await self._record.answer(ended, request.hashes, vectors, each, kept)
        if operation.probe:
            self._record.release(place.segment, len(request))
        return place

    def _learn(
        self,
        leg: Leg,
        operation: Operation,
        request: Request,
        wire: WireAnswer,
        vectors: NDArray[np.float32],
    ) -> None:
        if operation.asked_base64:
            leg.state.base64_works = True
        if leg.state.asks_base64 and (wire.base64 is False if operation.asked_base64 else operation.floats):
            self._router.only_floats(leg)  # it does not care, or took the same request when floats were asked for
        self._router.answered(self._route, leg, request.texts, vectors, probe=operation.probe)


class _MachineShare:
    """The share of an attempt in the time of a machine that costs by the hour; elsewhere nothing."""

    def __init__(self, leg: Leg, clock: Callable[[], float]) -> None:
        self._machine, self._per_hour = leg.state.machine, leg.endpoint.per_hour
        self._clock = clock
        self._began = 0.0
        self._share: float | None = None

    def __enter__(self) -> None:
        if self._machine is not None:
            self._began = self._machine.begin(self._clock())

    def __exit__(self, *_: object) -> None:
        if self._machine is not None:
            self._share = self._machine.end(self._began, self._clock())

    @property
    def is_left(self) -> bool:
        """There is one, and no event has it."""
        return self._share is not None

    def charged(self, event: UsageEvent) -> UsageEvent:
        """The event with what the attempt comes to; what is not billed leaves its time to the rest."""
        if self._machine is None or self._share is None or self._per_hour is None:
            return event
        microhours = self._machine.charge(self._share, answered=event.billable == "yes")
        self._share = None
        return usage_events.by_the_hour(event, microhours, self._per_hour) if event.billable == "yes" else event


def _message(endpoint: Endpoint, request: Request, *, base64: bool) -> HttpRequest | None:
    """What is sent; None to a local model."""
    if endpoint.local:
        return None
    wire = endpoint.wire if endpoint.wire.base64 == base64 else replace(endpoint.wire, base64=base64)
    return endpoint.protocol.request(endpoint.place, endpoint.wire_model, request.texts, wire)


def _server(message: HttpRequest | None) -> tuple[str, int] | None:
    """Host and port that a message goes to."""
    return None if message is None else _host_and_port(message.url)


@lru_cache(maxsize=64)
def _host_and_port(address: str) -> tuple[str, int]:
    url = urlsplit(address)
    return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)


def _answer(
    endpoint: Endpoint,
    request: Request,
    wire: WireAnswer,
    used: Usage,
    each: Sequence[int] | None,
    event: UsageEvent,
    vectors: NDArray[np.float32],
    body: bytes,
) -> Answer:
    return Answer(
        vectors=vectors,
        usage=used,
        request=request,
        provider=wire.provider or endpoint.provider,
        model=endpoint.model,
        event_id=event.event_id,
        embedding_id=wire.embedding_id,
        response_model=wire.response_model,
        raw_response=body,
        tokens_each=None if each is None else tuple(each),
        fallback_from=event.fallback_from,
    )


def _key_hint(endpoint: Endpoint) -> str:
    """Where the key that was sent comes from."""
    trial = f"`embedctl providers test {endpoint.provider}` tries another"
    if endpoint.key_source is None:
        return f"no key was sent: set api_key_env under [providers.{endpoint.provider}], or its variable; {trial}"
    return f"the key came from {endpoint.key_source}; {trial}"

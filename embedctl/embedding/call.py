"""Step 4. THE call point: request → answer. Nothing else reaches a provider.

    Fallback( Retry( Breaker( attempt ) ) )

Which line is asked is decided in `lanes`, what one attempt is stands in `exchange`; here is what follows from it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.embedding.attempt import Attempt, Operation, Record, SpendGuard
from embedctl.embedding.endpoint_state import EndpointState, NotAdmittedError
from embedctl.embedding.router import Router, WaitBudget
from embedctl.embedding.usage_events import Caller
from embedctl.errors import (
    AnswerUnusable,
    ProviderError,
    Remedy,
    RequestRefused,
    ServerFailed,
    TextRefused,
)
from embedctl.planning.packer import part_of
from embedctl.records import Answer, Refusal, Request, Space, UsageEvent, new_operation_id, text_hash, uuid7
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.retry import Attempts, Policy, Step, may_be_the_texts_fault

_KNOWN_GOOD = "The harbour office opens at seven."
_PROBE_RETRIES = 2
_BASE64_REFUSED = (400, 422, 500, 501)


@dataclass(frozen=True, slots=True)
class Piece:
    """What became of texts[start:stop] of a request: vectors in the record, or the reason why there are none."""

    start: int
    stop: int
    answer: Answer | None = None
    place: Any = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """What became of a request so far, from its first text on: what is answered is not asked of the next line."""

    pieces: list[Piece]

    def add(
        self, texts: int, *, answer: Answer | None = None, place: Any = None, refusal: Refusal | None = None
    ) -> None:
        """The next so many texts."""
        self.pieces.append(Piece(self._stop, self._stop + texts, answer, place, refusal))

    def rest_of(self, request: Request) -> Request:
        """What is left of it."""
        return part_of(request, self._stop, len(request)) if self._stop else request

    @property
    def _stop(self) -> int:
        return self.pieces[-1].stop if self.pieces else 0


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
        told: Told in words what happens.
    """

    def __init__(
        self,
        router: Router,
        record: Record,
        guard: SpendGuard,
        caller: Caller,
        *,
        policy: Policy,
        space: Space | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        watch: Callable[[UsageEvent], None] = lambda event: None,
        told: Callable[[str], None] = lambda state: None,
        proceed: Callable[[], None] = lambda: None,
    ) -> None:
        self._router = router
        self._attempt = Attempt(router, record, guard, caller, space=space, clock=clock, watch=watch, proceed=proceed)
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._told = told

    @property
    def space(self) -> Space | None:
        """Of the output's vectors; None until the first ones are there."""
        return self._attempt.space

    @space.setter
    def space(self, space: Space) -> None:
        self._attempt.space = space

    async def embed(self, request: Request) -> list[Piece]:
        """Every text of the request, as pieces in order.

        Raises:
            ProviderError: No provider of the chain can serve now; no text is to blame.
            NoProviderNow: The same, and when one is back.
            DeadlinePassed: The next attempt would come too late.
            BudgetReached: Sending it could cost more than is allowed.
        """
        operation, done = Operation(WaitBudget()), _Outcomes([])
        while True:
            state = await self._router.next(self.space, self._probe, operation.wait_budget)
            try:
                await self._with_retry(state, operation, done.rest_of(request), done)
            except _LeftError as left:
                error = left.step.error
                if not isinstance(error, ProviderError):
                    raise error from None
                operation.isolating = operation.floats = False  # that was between this request and this line
                if self._router.leave(state, left.step):
                    self._told(f"{state.endpoint.id} is not asked any more: {error.message}")
            else:
                return done.pieces

    async def _with_retry(self, state: EndpointState, operation: Operation, request: Request, done: _Outcomes) -> None:
        """One line's attempts at a request; smaller ones where its size or one text is to blame."""
        attempts = Attempts(self._policy_for(request, operation), jitter=self._jitter)
        before = state.successes
        while True:
            try:
                answer, place = await self._attempt.once(state, operation, request)
            except NotAdmittedError as refused:
                raise _LeftError(Step(remedy=Remedy.GIVE_UP, error=refused.error)) from None
            except ProviderError as error:
                failure = error
                failure.provider = failure.provider or state.endpoint.provider
            else:
                attempts.succeeded(state.budget)
                done.add(len(request), answer=answer, place=place)
                return None
            if _base64_in_doubt(state, operation, failure):
                continue
            others = state.successes - before
            step = attempts.after(failure, now=self._clock(), budget=state.budget, others_succeeded=others)
            if step.remedy in (Remedy.HALVE, Remedy.ISOLATE) or (
                self._looks_closer(request, step, attempts)
                and step.error is failure
                and await self._a_text_is_to_blame(state, operation, request, failure, before)
            ):
                return await self._smaller(state, operation, request, failure, done)
            if step.remedy is Remedy.GIVE_UP:
                raise _LeftError(step)
            self._router.waits.say(state.endpoint.id, failure.message, step.wait_s)
            await self._sleep(step.wait_s)

    def _policy_for(self, request: Request, operation: Operation) -> Policy:
        """A text that stands alone is given all its retries: there is nothing to halve, and the server may be ill."""
        if operation.probe:
            return replace(self._policy, retries=min(self._policy.retries, _PROBE_RETRIES))
        if len(request) == 1:
            return replace(self._policy, isolate_after=self._policy.retries + 1)
        return replace(self._policy, others=0) if operation.isolating else self._policy

    def _looks_closer(self, request: Request, step: Step, attempts: Attempts) -> bool:
        """Whether it is time to find out who is to blame: at the end, and of several texts after a few failures."""
        return step.remedy is Remedy.GIVE_UP or (len(request) > 1 and attempts.repeated == self._policy.isolate_after)

    async def _smaller(
        self, state: EndpointState, operation: Operation, request: Request, error: ProviderError, done: _Outcomes
    ) -> None:
        """Both halves of a refused request; the text that stands alone in the end is the one to blame."""
        if len(request) == 1:
            done.add(1, refusal=refusal(error, state.endpoint, operation.attempts))
            return
        self._router.too_large(state, len(request), request.content_bytes, error)  # learns nothing from a bad text
        middle = len(request) // 2
        for half in (part_of(request, 0, middle), part_of(request, middle, len(request))):
            await self._with_retry(state, operation, half, done)

    async def _a_text_is_to_blame(
        self, state: EndpointState, operation: Operation, request: Request, error: ProviderError, before: int
    ) -> bool:
        """Whether a failure that stays is the fault of one text: others succeed, or a text known to be good does.

        A sick provider, or a parameter that it refuses, is no reason for a row to fail.
        """
        if operation.probe or not (isinstance(error, RequestRefused) or may_be_the_texts_fault(error)):
            return False
        if not (operation.isolating and len(request) > 1):
            async with state.asking:
                if state.successes == before:
                    try:
                        await self._probe(state, [_KNOWN_GOOD])
                    except ProviderError:
                        return False
        operation.isolating = True
        return True

    async def _probe(self, state: EndpointState, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors that go into no output, accounted like all others, with purpose `test`.

        Raises:
            ProviderError: The line does not give them.
        """
        request = Request(
            operation_id=new_operation_id(),
            texts=list(texts),
            hashes=b"".join(text_hash(f"\0probe {uuid7()}") for _ in texts),  # never taken for a row's vector
            workspace_id=self._attempt.caller.workspace_id,
            purpose="test",
            content_bytes=sum(len(text.encode()) for text in texts),
        )
        done = _Outcomes([])
        try:
            await self._with_retry(state, Operation(WaitBudget(), probe=True), request, done)
        except _LeftError as left:
            raise left.step.error from None
        found = []
        for piece in done.pieces:
            if piece.answer is None:
                why = piece.refusal.message if piece.refusal else "no vector"
                raise TextRefused(f"{state.endpoint.id} refuses a probe: {why}", provider=state.endpoint.provider)
            found.append(piece.answer.vectors)
        return np.concatenate(found)


def _base64_in_doubt(state: EndpointState, operation: Operation, error: ProviderError) -> bool:
    """Whether to ask again for floats: a server's first refusal may be of base64, not of the texts."""
    refused = isinstance(error, RequestRefused | ServerFailed) and error.status in _BASE64_REFUSED
    if not refused or state.base64_works:
        return False
    if operation.floats:  # refused all the same: base64 was not to blame
        operation.floats, state.base64_works = False, True
        return False
    operation.floats = operation.asked_base64
    return operation.floats


def refusal(error: ProviderError, endpoint: Endpoint, attempts: int) -> Refusal:
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
        provider=endpoint.provider,
        attempts=attempts,
        tokens=told.get("tokens"),
        max_tokens=told.get("max_tokens", endpoint.max_tokens if reason == "too_long" else None),
    )

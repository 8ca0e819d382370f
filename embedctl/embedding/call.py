"""Step 4. THE call point: request → answer. Nothing else reaches a provider.

    Fallback( Retry( Breaker( attempt ) ) )

Which endpoint is asked is decided in `router`, what one attempt is stands in `attempt`; here is what follows from it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.embedding.attempt import Attempt, AttemptRecord, Doubts, Operation, SpendGuard
from embedctl.embedding.endpoint_state import NotAdmittedError
from embedctl.embedding.leg import Leg
from embedctl.embedding.route import Route
from embedctl.embedding.router import Router, WaitBudget
from embedctl.embedding.usage_events import Caller
from embedctl.errors import (
    AnswerLost,
    AnswerUnusable,
    BudgetReached,
    EmbedctlError,
    ProviderError,
    Remedy,
    RequestRefused,
    ServerFailed,
    TextRefused,
)
from embedctl.planning.packer import part_of
from embedctl.records import (
    UNOBSERVED,
    Answer,
    GaveUp,
    Observer,
    OperationBegan,
    OperationEnded,
    Outcome,
    Refusal,
    Request,
    VectorRef,
    new_operation_id,
    text_hash,
    uuid7,
)
from embedctl.routing.canaries import host_of
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.retry import Attempts, Policy, RetryBudget, Step, may_be_the_texts_fault

_KNOWN_GOOD = "The harbour office opens at seven."
_PROBE_RETRIES = 2
_LOOK_S = 0.05
_BASE64_REFUSED = (400, 422, 500, 501)


@dataclass(frozen=True, slots=True)
class _Answered:
    """What became of a request so far, from its first text on: what is answered is not asked of the next endpoint."""

    outcomes: list[Outcome]

    def add(
        self, texts: int, *, answer: Answer | None = None, ref: VectorRef | None = None, refusal: Refusal | None = None
    ) -> None:
        """The next so many texts."""
        start = self._stop
        self.outcomes.append(Outcome(targets=range(start, start + texts), ref=ref, answer=answer, refusal=refusal))

    def rest_of(self, request: Request) -> Request:
        """What is left of it."""
        return part_of(request, self._stop, len(request)) if self._stop else request

    @property
    def _stop(self) -> int:
        return self.outcomes[-1].targets[-1] + 1 if self.outcomes else 0


class _LeftError(Exception):
    """A line is of no use for this request; internal to this file."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.error.message)
        self.step = step


class Embedder:
    """THE call point: embeds requests through the endpoints of a route, until each text has a vector or a reason.

    One a process. What belongs to an output or a client is its `Route`; what belongs to a call is an argument.

    Args:
        router: All endpoints, their breakers, limiters, and what is remembered of their servers.
        observer: Told of every attempt that ended, and of endpoints that are given up.
        proceed: Called before each attempt; raises when nothing more may be sent.
        keep_bodies: Whether answers carry the bodies that they were read from.
    """

    def __init__(
        self,
        router: Router,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        observer: Observer = UNOBSERVED,
        proceed: Callable[[], None] = lambda: None,
        keep_bodies: bool = True,
    ) -> None:
        self.router = router
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._observer = observer
        self._proceed = proceed
        self._keep_bodies = keep_bodies

    async def embed(
        self,
        request: Request,
        *,
        route: Route,
        caller: Caller,
        journal: AttemptRecord,
        budget: SpendGuard,
        policy: Policy | None = None,
    ) -> list[Outcome]:
        """What became of every text of the request, in order; `targets` are positions in it.

        Args:
            route: Who may answer; takes its space from the first vectors.
            caller: Who pays, and why.
            journal: Where attempts are written down before and after.
            budget: What may be spent.
            policy: How often and how long it is tried; None: as the route says.

        Raises:
            ProviderError: No provider of the chain can serve now; no text is to blame.
            NoProviderNow: The same, and when one is back.
            DeadlinePassed: The next attempt would come too late.
            BudgetReached: Sending it could cost more than is allowed. When only the workspace that pays for it may not,
                and others go on, its texts have that for a reason instead.
        """
        attempt = self._attempt(route, caller, journal, budget)
        with _operation(self._observer, request.operation_id):
            return await _Call(self, attempt, route, policy or route.policy).embed(request)

    def _attempt(self, route: Route, caller: Caller, journal: AttemptRecord, budget: SpendGuard) -> Attempt:
        return Attempt(
            self.router,
            route,
            caller,
            journal,
            budget,
            clock=self._clock,
            observer=self._observer,
            proceed=self._proceed,
            keep_bodies=self._keep_bodies,
        )

    async def look(self, *, route: Route, caller: Caller, journal: AttemptRecord, budget: SpendGuard) -> None:
        """See to it that what was asked for is still the model that it was, before anything is bought elsewhere.

        Raises:
            ModelChanged: It is not.
            EmbedctlError: It cannot be asked.
        """
        attempt = self._attempt(route, caller, journal, budget)
        try:
            await _Call(self, attempt, route, route.policy).look(route.first)
        except _LeftError as left:
            raise left.step.error from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self.router.aclose()


class _Call:
    """One request on its way through a route."""

    def __init__(self, embedder: Embedder, attempt: Attempt, route: Route, policy: Policy) -> None:
        self._router = embedder.router
        self._attempt = attempt
        self._route = route
        self._policy = policy
        self._failed = 0
        self._clock, self._sleep, self._jitter = embedder._clock, embedder._sleep, embedder._jitter
        self._observer = embedder._observer

    async def embed(self, request: Request) -> list[Outcome]:
        """What became of every text, in order."""
        operation, done = Operation(WaitBudget()), _Answered([])
        asked: Leg | None = None
        while True:
            subject = done.rest_of(request).subject
            leg = await self._router.next(self._route, self._probe, operation.wait_budget, subject)
            if leg is not asked:
                operation.isolating = operation.floats = False  # that was between this request and that endpoint
            asked = leg
            try:
                await self.look(leg)
                if self._route.canary is not None and request.purpose != "test":
                    self._route.canary.holds = True
                await self._with_retry(leg, operation, done.rest_of(request), done)
            except _LeftError as left:
                error = left.step.error
                if not isinstance(error, ProviderError):
                    raise error from None
                if left.step.remedy is not Remedy.WAIT or leg.state.breaker.was_open:
                    asked = None  # what failed while it was ill may be innocent
                if self._router.leave(leg, left.step, done.rest_of(request).subject):
                    self._observer.notify(GaveUp(leg.endpoint.id, error.message))
                if self._is_spent:
                    raise error from None
            except BudgetReached as reached:
                if reached.workspace_id != request.workspace_id:  # or it is None: the run's own limit
                    raise
                why = Refusal(reason="budget", message=reached.message, attempts=operation.attempts)
                done.add(len(done.rest_of(request)), refusal=why)
                return done.outcomes
            else:
                return done.outcomes

    async def look(self, leg: Leg) -> None:
        """See to it that a line is still the model that it was, where somebody watches.

        Raises:
            ModelChanged: It is not.
            _LeftError: It cannot be asked, or makes other vectors than the output's own line.
        """
        watch = self._route.canary
        if watch is None or not watch.is_due(leg.endpoint):
            return
        endpoint = watch.asked_as.get(host_of(leg.endpoint), leg.endpoint)
        line = leg if endpoint is leg.endpoint else Leg(endpoint, leg.state, proven=True)
        left: _LeftError | None = None

        async def ask(texts: Sequence[str]) -> tuple[NDArray[np.float32], str | None]:
            nonlocal left
            try:
                answers = await self._aside(line, texts, patient=True)
            except _LeftError as gone:
                left = gone
                raise gone.step.error from None
            return np.concatenate([one.vectors for one in answers]), answers[0].response_model

        try:
            await watch.check(endpoint, ask)
        except ProviderError as error:
            raise left or _LeftError(Step(remedy=Remedy.GIVE_UP, error=error)) from None

    async def _with_retry(
        self, leg: Leg, operation: Operation, request: Request, done: _Answered, earlier: Attempts | None = None
    ) -> None:
        """One line's attempts at a request; smaller ones where its size or one text is to blame.

        Args:
            earlier: Those that it had before it was suspected.
        """
        attempts = Attempts(self._policy_for(request, operation), jitter=self._jitter, earlier=earlier)
        before, acquitted = leg.state.successes, leg.state.acquitted
        while True:
            at_last = leg.state.successes
            try:
                answer, ref = await self._attempt.once(leg, operation, request)
            except NotAdmittedError as refused:
                if await self._asked(leg, operation):
                    continue
                raise _LeftError(Step(remedy=Remedy.WAIT, error=refused.error)) from None
            except ProviderError as error:
                failure = error
                failure.provider = failure.provider or leg.endpoint.provider
            else:
                attempts.succeeded(_budget(leg, operation))
                done.add(len(request), answer=answer, ref=ref)
                return None
            self._failed += isinstance(failure, AnswerLost) or not (
                operation.isolating or failure.remedy in (Remedy.HALVE, Remedy.ISOLATE)
            )
            await self._asked(leg, operation)
            if self._is_spent:
                raise _LeftError(Step(remedy=Remedy.GIVE_UP, error=failure))
            if _base64_in_doubt(leg, operation, failure):
                continue
            if self._is_accused(leg, operation, failure, acquitted):
                _accuse(operation, attempts, leg.state.budget)
                if len(request) > 1:
                    return await self._smaller(leg, operation, request, failure, done)
            others, budget = leg.state.successes - before, _budget(leg, operation)
            step = attempts.after(
                failure,
                now=self._clock(),
                budget=budget,
                others_succeeded=others,
                held_back=leg.state.limiter.per_second is not None,
                unshaped=leg.state.unshaped,
            )
            if step.error.word == "circuit_open" and await self._fills_up(leg, operation, failure):
                _accuse(operation, attempts, budget)
                if len(request) > 1:
                    return await self._smaller(leg, operation, request, failure, done)
                await self._sleep(failure.retry_after_s or 0)
                return await self._with_retry(leg, operation, request, done, attempts)
            if step.remedy in (Remedy.HALVE, Remedy.ISOLATE) or (
                self._looks_closer(request, step, attempts)
                and step.error is failure
                and await self._a_text_is_to_blame(
                    leg, operation, request, failure, attempts, before if len(request) > 1 else at_last
                )
            ):
                if may_be_the_texts_fault(failure):
                    _accuse(operation, attempts, budget)
                if len(request) == 1 and isinstance(failure, AnswerLost) and attempts.failures <= self._policy.retries:
                    return await self._with_retry(leg, operation, request, done, attempts)
                return await self._smaller(leg, operation, request, failure, done)
            if step.remedy is Remedy.GIVE_UP:
                raise _LeftError(step)
            self._router.waits.say(leg.endpoint.id, failure.message, step.wait_s)
            await self._sleep(step.wait_s)

    @property
    def _is_spent(self) -> bool:
        return self._policy.most_failed is not None and self._failed >= self._policy.most_failed

    def _policy_for(self, request: Request, operation: Operation) -> Policy:
        if operation.probe and not operation.patient:
            return replace(self._policy, retries=min(self._policy.retries, _PROBE_RETRIES))
        return self._policy.for_part(len(request), suspected=operation.isolating)

    def _is_accused(self, leg: Leg, operation: Operation, error: ProviderError, acquitted: int) -> bool:
        """Whether the texts are to blame because their provider was found to be well since they failed first.

        One or two lost answers are still the network's affair.

        Args:
            acquitted: Of the endpoint, before what failed was sent first.
        """
        if operation.probe or operation.isolating or not may_be_the_texts_fault(error):
            return False
        if operation.doubts is None or operation.doubts.state is not leg.state:
            operation.doubts = Doubts(leg.state, acquitted)
        operation.doubts.failures += 1
        enough = self._policy.isolate_after if isinstance(error, AnswerLost) else 1
        return leg.state.acquitted > operation.doubts.acquitted and operation.doubts.failures >= enough

    def _looks_closer(self, request: Request, step: Step, attempts: Attempts) -> bool:
        """Whether it is time to find out who is to blame: at the end, and of several texts after a few failures."""
        return step.remedy is Remedy.GIVE_UP or (len(request) > 1 and attempts.repeated == self._policy.isolate_after)

    async def _smaller(
        self, leg: Leg, operation: Operation, request: Request, error: ProviderError, done: _Answered
    ) -> None:
        """Both halves of a refused request; the text that stands alone in the end is the one to blame."""
        if len(request) == 1:
            done.add(1, refusal=refusal(error, leg.endpoint, operation.attempts))
            return
        self._router.too_large(
            self._route, leg, len(request), request.content_bytes, error
        )  # learns nothing from a bad text
        middle = len(request) // 2
        for half in (part_of(request, 0, middle), part_of(request, middle, len(request))):
            await self._with_retry(leg, operation, half, done)

    async def _a_text_is_to_blame(
        self,
        leg: Leg,
        operation: Operation,
        request: Request,
        error: ProviderError,
        attempts: Attempts,
        before: int,
    ) -> bool:
        """Whether a failure that stays is the fault of one text: others succeed, or a text known to be good does.

        A sick provider, a parameter that it refuses, or one or two lost answers are no reason for a row to fail.

        Args:
            before: Successes of the endpoint at the time from which on others have to succeed.
        """
        if operation.probe or not (isinstance(error, RequestRefused) or may_be_the_texts_fault(error)):
            return False
        if not (operation.isolating and len(request) > 1):
            if isinstance(error, AnswerLost) and attempts.repeated < self._policy.isolate_after:
                return False
            async with leg.state.asking:
                if leg.state.successes == before and not await self._is_well(leg):
                    return False
        operation.isolating = True
        return True

    async def _asked(self, leg: Leg, operation: Operation) -> bool:
        """Find out whether the provider is ill or texts are to blame, where its breaker waits for that; whether it did.

        Who comes while somebody asks waits for the answer, as long as its deadline allows.
        """
        breaker, deadline = leg.state.breaker, self._policy.deadline
        if operation.probe or not (leg.state.asking.locked() or breaker.is_asking(self._clock())):
            return False
        while leg.state.asking.locked():
            if deadline is not None and self._clock() >= deadline:
                return False
            await asyncio.sleep(_LOOK_S)
        try:
            async with leg.state.asking:
                if breaker.is_asking(self._clock()) and await self._is_well(leg):
                    leg.state.acquitted += 1
        finally:
            breaker.ask_nobody(self._clock())
        return True

    async def _fills_up(self, leg: Leg, operation: Operation, failure: ProviderError) -> bool:
        """Whether the budget of retries is full again: it was used up over texts, and the provider is well."""
        if operation.probe or operation.isolating or not may_be_the_texts_fault(failure):
            return False
        budget = leg.state.budget
        async with leg.state.asking:
            if 2 * budget.level < budget.capacity and await self._is_well(leg):
                budget.add(budget.capacity)
        return 2 * budget.level >= budget.capacity

    async def _is_well(self, leg: Leg) -> bool:
        """Whether a line answers a text that is known to be good.

        Others wait for that, and have all the turns: so it is a task of its own, which has none to give away.
        """
        try:
            await asyncio.create_task(self._aside(leg, [_KNOWN_GOOD], known_good=True))
        except (_LeftError, ProviderError):
            return False
        return True

    async def _probe(self, leg: Leg, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors that go into no output, accounted like all others, with purpose `test`.

        Raises:
            ProviderError: The line does not give them.
        """
        try:
            answers = await self._aside(leg, texts)
        except _LeftError as left:
            raise left.step.error from None
        return np.concatenate([one.vectors for one in answers])

    async def _aside(
        self, leg: Leg, texts: Sequence[str], *, patient: bool = False, known_good: bool = False
    ) -> list[Answer]:
        """Answers to texts that go into no output.

        Args:
            patient: It is tried as often as a row's request is.
            known_good: None of them can be at fault.

        Raises:
            _LeftError: The line does not answer.
            TextRefused: It refuses one of them.
        """
        request = Request(
            operation_id=new_operation_id(),
            texts=list(texts),
            hashes=b"".join(text_hash(f"\0probe {uuid7()}") for _ in texts),  # never taken for a row's vector
            workspace_id=self._attempt.caller.workspace_id,
            purpose="test",
            content_bytes=sum(len(text.encode()) for text in texts),
        )
        done = _Answered([])
        with _operation(self._observer, request.operation_id):
            operation = Operation(WaitBudget(), probe=True, patient=patient, known_good=known_good)
            await self._with_retry(leg, operation, request, done)
        found = []
        for outcome in done.outcomes:
            if outcome.answer is None:
                why = outcome.refusal.message if outcome.refusal else "no vector"
                raise TextRefused(f"{leg.endpoint.id} refuses a probe: {why}", provider=leg.endpoint.provider)
            found.append(outcome.answer)
        return found


@contextmanager
def _operation(observer: Observer, operation_id: str) -> Iterator[None]:
    """Tell of an operation's begin and of its end, however it ends."""
    observer.notify(OperationBegan(operation_id))
    error: str | None = "cancelled"
    try:
        yield
        error = None
    except EmbedctlError as problem:
        error = problem.word
        raise
    finally:
        observer.notify(OperationEnded(operation_id, error))


def _budget(leg: Leg, operation: Operation) -> RetryBudget:
    """What pays for retries: the provider's, unless it was found out that a text is to blame."""
    return operation.budget if operation.isolating else leg.state.budget


def _accuse(operation: Operation, attempts: Attempts, budget: RetryBudget) -> None:
    """From now on a text is to blame: what its retries have cost, and what they will, is not the provider's."""
    operation.isolating = True
    attempts.excused(budget)


def _base64_in_doubt(leg: Leg, operation: Operation, error: ProviderError) -> bool:
    """Whether to ask again for floats: a server's first refusal may be of base64, not of the texts."""
    refused = isinstance(error, RequestRefused | ServerFailed) and error.status in _BASE64_REFUSED
    if not refused or leg.state.base64_works:
        return False
    if operation.floats:  # refused all the same: base64 was not to blame
        operation.floats, leg.state.base64_works = False, True
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
    elif isinstance(error, ServerFailed | AnswerLost):
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

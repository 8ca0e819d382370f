"""One limiter for each endpoint, and one budget, for all workers of a job. Pure: no transport, no I/O of its own.

    worker ── acquire ─▶ AdaptiveLimiter of the endpoint         ended ─▶ what the answer taught, for all
           ── reserve ─▶ Reservations of the job                 settle ─▶ what it came to
    a worker that died: its permits are free again, what it had reserved counts as spent (it may have been billed)

It lives in the process that started the workers, or in an actor. Workers' questions and its answers are plain values,
which survive JSON. Who asks gives each question a ticket, a number of its own, and names it when it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import field, replace
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from embedctl.budgets.reservations import Reservation, Reservations
from embedctl.dataclass import dataclass
from embedctl.errors import AnswerLost, BudgetReached, NotSent, Throttled
from embedctl.providers._rate_headers import Rates
from embedctl.records import Observer
from embedctl.routing.limiter import AdaptiveLimiter, Permit
from embedctl.routing.rate_limit import RateLimits
from embedctl.routing.waits import Waits

MakeLimiter = Callable[[str, RateLimits], AdaptiveLimiter]
"""(provider and model, limits) → the limiter of all requests to an endpoint."""

Answer = dict[str, Any]
_T = TypeVar("_T")


def limiters(observer: Observer, longest_gate_s: float, clock: Callable[[], float]) -> MakeLimiter:
    """Makes limiters that tell an observer when requests wait for long, once per wait.

    Args:
        longest_gate_s: `--max-wait`.
        clock: Monotonic seconds.
    """
    waits = Waits(observer, clock)

    def made(name: str, limits: RateLimits) -> AdaptiveLimiter:
        waiting = partial(waits.say, name, "held back by its rate limit")
        return AdaptiveLimiter(limits, longest_gate_s=longest_gate_s, waiting=waiting)

    return made


@dataclass(frozen=True, slots=True)
class SharedEndpoint:
    """What a limiter is for, as workers name it.

    Attributes:
        name: Provider and model, as people know them.
        account: A fingerprint of the key.
        limits: Fields of one worker's `RateLimits`.
    """

    name: str
    wire_model: str
    base_url: str
    account: str
    limits: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, plain: Sequence[Any]) -> SharedEndpoint:
        """What `as_plain` has given."""
        name, wire_model, base_url, account, limits = plain
        return cls(name, wire_model, base_url, account, tuple((key, value) for key, value in limits))

    def as_plain(self) -> list[Any]:
        """As a list."""
        return [self.name, self.wire_model, self.base_url, self.account, [list(one) for one in self.limits]]


@dataclass(slots=True)
class _Held:
    """A request that may be in flight."""

    turn: AbstractAsyncContextManager[Permit]
    permit: Permit


@dataclass(slots=True)
class _Lent:
    """What one worker has, by ticket."""

    held: dict[int, _Held] = field(default_factory=dict)
    reserved: dict[int, Reservation] = field(default_factory=dict)
    waiting: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    withdrawn: set[int] = field(default_factory=set)


class SharedLimits:
    """Keeps them.

    Args:
        money: Of the whole job.
        limiter: Makes the limiter of an endpoint.
        workers: How many share it: `--concurrency` is of each.
        counted: Segments of shards' journals whose events `money` has counted already.
    """

    def __init__(
        self, money: Reservations, limiter: MakeLimiter, *, workers: int, counted: Collection[str] = ()
    ) -> None:
        self._money = money
        self._make = limiter
        self._count = workers
        self._limiters: dict[SharedEndpoint, AdaptiveLimiter] = {}
        self._workers: dict[str, _Lent] = {}
        self._runs: set[str] = set()
        self._segments = set(counted)

    def join(self, worker: str) -> Answer:
        """A worker begins; whose rows fail when a budget is used up, while others go on.

        Args:
            worker: Its run's id: events of this run are counted as they happen.
        """
        self._workers[worker] = _Lent()
        self._runs.add(worker)
        return {"tenants": sorted(self._money.tenants), "is_limited": self._money.is_limited}

    async def gone(self, worker: str) -> None:
        """A worker has ended, in order or not: what it held is free, what it had set aside counts as spent."""
        left = self._workers.pop(worker, None)
        if left is None:
            return
        for waiting in left.waiting.values():
            waiting.cancel()
        for held in left.held.values():
            await held.turn.__aexit__(None, None, None)
        for reservation in left.reserved.values():
            await self._money.settle_at(reservation, reservation.amount)

    # requests

    async def acquire(self, worker: str, ticket: int, endpoint: Sequence[Any], tokens: float, items: int) -> Answer:
        """Wait for a turn; the request is in flight until it is said to be over.

        Returns:
            `per_second`: what goes because the provider refuses more. Or `throttled`, and nothing may go; or
            `withdrawn`, where the worker does not wait any more.
        """
        limiter = self._limiter(SharedEndpoint.of(endpoint))
        turn = limiter.acquire(tokens, items)
        try:
            is_ours, permit = await self._unless_withdrawn(worker, ticket, turn.__aenter__())
        except Throttled as error:
            return {"throttled": error.message, "retry_after_s": error.retry_after_s}
        if permit is None or not is_ours:
            if permit is not None:
                await turn.__aexit__(None, None, None)
            return {"withdrawn": True}
        self._workers[worker].held[ticket] = _Held(turn, permit)
        return {"per_second": limiter.per_second}

    async def ended(
        self,
        worker: str,
        ticket: int,
        outcome: str | None = None,
        tokens: int | None = None,
        wait_s: float | None = None,
        rates: Mapping[str, float | None] | None = None,
    ) -> None:
        """A request is over.

        Args:
            outcome: "answered", "throttled", "strained", "not_sent"; None: it teaches nothing.
            tokens: As the provider counted them.
            wait_s: For how long it asks to be left alone.
            rates: What it said of its limits.
        """
        mine = self._workers.get(worker)
        held = mine.held.pop(ticket, None) if mine is not None else None
        if held is None:
            return
        said = Rates(**rates) if rates else None
        if outcome == "answered":
            held.permit.succeeded(tokens, said)
        elif outcome is not None:
            kinds: dict[str, Callable[[], Any]] = {
                "throttled": lambda: Throttled("refused", retry_after_s=wait_s),
                "strained": lambda: AnswerLost("lost"),
                "not_sent": lambda: NotSent("not sent"),
            }
            held.permit.failed(kinds[outcome](), wait_s, said)
        await held.turn.__aexit__(None, None, None)

    async def withdraw(self, worker: str, ticket: int) -> None:
        """The worker does not wait for this answer any more; what it was given is given back."""
        mine = self._workers.get(worker)
        if mine is None:
            return
        if ticket in mine.held:
            await self.ended(worker, ticket)
        elif ticket in mine.reserved:
            await self._money.settle_at(mine.reserved.pop(ticket), Decimal(0))
        elif ticket in mine.waiting:
            mine.waiting[ticket].cancel()
            mine.withdrawn.add(ticket)
        else:
            mine.withdrawn.add(ticket)  # it was faster than its question

    async def restart(self, worker: str, endpoint: Sequence[Any]) -> None:
        """A breaker has just closed: one request at a time, then carefully more."""
        self._limiter(SharedEndpoint.of(endpoint)).restart()

    def _limiter(self, endpoint: SharedEndpoint) -> AdaptiveLimiter:
        if endpoint not in self._limiters:
            one = RateLimits(**dict(endpoint.limits))  # type: ignore[arg-type]
            limits = replace(one, concurrency=one.concurrency * self._count)
            self._limiters[endpoint] = self._make(endpoint.name, limits)
        return self._limiters[endpoint]

    # money

    async def reserve(self, worker: str, ticket: int, accounts: Sequence[str], amount: str, at_once: bool) -> Answer:
        """Set the most that an attempt can cost aside.

        Args:
            amount: USD.
            at_once: Do not wait for what is set aside to come back.

        Returns:
            Nothing: it is set aside. `short`: it does not fit `at_once`. `reached`, and what a person is told:
            nothing that comes back makes it fit. `withdrawn`, where the worker does not wait any more.
        """
        asked = self._money.set_aside(Decimal(amount), accounts, at_once=at_once)
        try:
            is_ours, reservation = await self._unless_withdrawn(worker, ticket, asked)
        except BudgetReached as error:
            return {"reached": error.message, "hint": error.hint, "workspace": error.workspace_id}
        if not is_ours:
            if reservation is not None:
                await self._money.settle_at(reservation, Decimal(0))
            return {"withdrawn": True}
        if reservation is None:
            return {"short": True}
        self._workers[worker].reserved[ticket] = reservation
        return {}

    async def settle(self, worker: str, ticket: int, amount: str) -> None:
        """What an attempt came to, or may have, in USD."""
        mine = self._workers.get(worker)
        reservation = mine.reserved.pop(ticket, None) if mine is not None else None
        if reservation is not None:
            await self._money.settle_at(reservation, Decimal(amount))

    async def spent_before(self, worker: str, segment: str, run: str, by_workspace: Mapping[str, str]) -> None:
        """What an earlier holder of a shard had spent; what a worker of this job spent is counted already.

        Args:
            segment: Of the shard's journal: its events are counted once.
            by_workspace: USD.
        """
        if run in self._runs or segment in self._segments:
            return
        self._segments.add(segment)
        for workspace, amount in by_workspace.items():
            self._money.spent_before(Decimal(amount), workspace)

    async def _unless_withdrawn(
        self, worker: str, ticket: int, asked: Coroutine[Any, Any, _T]
    ) -> tuple[bool, _T | None]:
        """Whether the worker still waits, and what `asked` gave; None where it was ended before that."""
        mine = self._workers.get(worker)
        if mine is None or ticket in mine.withdrawn:
            if mine is not None:
                mine.withdrawn.discard(ticket)
            asked.close()
            return False, None
        task = mine.waiting[ticket] = asyncio.ensure_future(asked)
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()  # of no effect where it is done
            del mine.waiting[ticket]
        is_ours = ticket not in mine.withdrawn and self._workers.get(worker) is mine and not task.cancelled()
        mine.withdrawn.discard(ticket)
        return is_ours, None if task.cancelled() else task.result()

"""The limiter with a clock: requests wait for their turn, first come, first served."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol

from embedctl.errors import AnswerLost, NotSent, ProviderError, ServerFailed, Throttled
from embedctl.providers._rate_headers import Rates
from embedctl.routing.rate_limit import Admission, RateLimit, RateLimits
from embedctl.routing.retry import hinted_s

LONG_S = 5.0


class Permit:
    """Permission for one request; say how it went before the place is given up.

    Saying nothing (cancelled) teaches nothing, and keeps the tokens taken: they may have been used.
    """

    __slots__ = ("_clock", "_rate_limit", "_reservation")

    def __init__(self, rate_limit: RateLimit, reservation: Admission, clock: Callable[[], float]) -> None:
        self._rate_limit = rate_limit
        self._reservation = reservation
        self._clock = clock

    def succeeded(self, tokens: int | None = None, rates: Rates | None = None) -> None:
        """An answer; `tokens` as the provider counted them, None where it does not say."""
        now = self._clock()
        if tokens is not None:
            self._rate_limit.settle(self._reservation, now, tokens)
        self._rate_limit.succeeded(self._reservation, now)
        if rates is not None:
            self._rate_limit.learn(rates, now)

    def failed(self, error: ProviderError, wait_s: float | None = None, rates: Rates | None = None) -> None:
        """A failure; its class decides what the limiter learns.

        Args:
            wait_s: How long all wait after a `Throttled`; None: as long as it asks for itself.
        """
        now = self._clock()
        if isinstance(error, Throttled):
            self._rate_limit.throttled(self._reservation, now, wait_s if wait_s is not None else hinted_s(error))
        elif isinstance(error, AnswerLost) or (isinstance(error, ServerFailed) and error.status in (None, 503, 529)):
            self._rate_limit.strained(self._reservation, now)
        elif isinstance(error, NotSent):
            self._rate_limit.settle(self._reservation, now, 0)
        if rates is not None:
            self._rate_limit.learn(rates, now)


class Limiter(Protocol):
    """When a request to an endpoint may go. Local: adaptive; elsewhere: leased from one budget of many machines."""

    def acquire(self, tokens: float, items: int = 1) -> AbstractAsyncContextManager[Permit]:
        """Wait for a turn, and be in flight until the block ends, however it ends.

        Args:
            tokens: Estimated tokens of the request.
            items: Texts in it.

        Raises:
            Throttled: The provider asked for a longer wait than is allowed.
        """

    def restart(self) -> None:
        """One request at a time, then carefully more: the breaker has just closed."""

    @property
    def per_second(self) -> float | None:
        """What goes per second because the provider refuses more, as it counts them; None while it does not."""


class FairTurn:
    """A lock whose waiters get it in turns: one queue a key, so that no key's many stand before another's one.

    Args:
        key: Of the task that asks.
    """

    def __init__(self, key: Callable[[], str]) -> None:
        self._key = key
        self._held = False
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def __aenter__(self) -> None:
        """Wait for it."""
        if not self._held:
            self._held = True
            return
        key = self._key()
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # it was given just now
            else:
                with suppress(KeyError, ValueError):
                    self._queues[key].remove(mine)
            raise

    async def __aexit__(self, *exception: object) -> None:
        """The next key's first waiter gets it."""
        self._pass_on()

    def _pass_on(self) -> None:
        while self._queues:
            key, queue = self._queues.popitem(last=False)
            first = queue.popleft() if queue else None
            if queue:
                self._queues[key] = queue
            if first is not None and not first.done():
                first.set_result(None)
                return
        self._held = False


class AdaptiveLimiter:
    """One provider, model and key, shared by everything in flight."""

    def __init__(
        self,
        rate_limits: RateLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        longest_gate_s: float = 600.0,
        waiting: Callable[[float], None] = lambda seconds: None,
        turn: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        """Start with nothing in flight.

        Args:
            clock: Monotonic seconds; `sleep` sleeps by the same clock.
            longest_gate_s: `--max-wait`: a gate further away than this is an error, not a wait.
            waiting: Told how long a request waits for its turn, when that is `LONG_S` or more.
            turn: Held by the one request that waits for its time to come; None: first come, first served.
        """
        self.rate_limit = RateLimit(rate_limits, clock())
        self._clock = clock
        self._sleep = sleep
        self._longest_gate_s = longest_gate_s
        self._waiting = waiting
        self._turn: AbstractAsyncContextManager[None] = turn or asyncio.Lock()  # which is fair: in the order they came
        self._freed = asyncio.Event()

    def restart(self) -> None:
        """One request at a time, then carefully more."""
        self.rate_limit.restart()

    @property
    def per_second(self) -> float | None:
        """What goes per second because the provider refuses more, as it counts them; None while it does not."""
        return self.rate_limit.pace.per_second

    @asynccontextmanager
    async def acquire(self, tokens: float, items: int = 1) -> AsyncIterator[Permit]:
        """Wait for a turn, and be in flight until the block ends, however it ends.

        Args:
            tokens: Estimated tokens of the request.
            items: Texts in it.

        Raises:
            Throttled: The provider asked the limiter to wait for longer than `longest_gate_s`, or refused everything
                for so long.
        """
        async with self._turn:
            await self._wait(tokens, items)
            reservation = self.rate_limit.reserve(self._clock(), tokens, items)
        try:
            yield Permit(self.rate_limit, reservation, self._clock)
        finally:
            self.rate_limit.release()
            self._freed.set()

    async def _wait(self, tokens: float, items: int) -> None:
        while delay_s := self.rate_limit.ready_in(now := self._clock(), tokens, items):
            gate_s, refused_s = self.rate_limit.not_before - now, self.rate_limit.refused_for(now)
            if gate_s > self._longest_gate_s:
                raise Throttled(f"the provider asks to wait for {gate_s:.0f} s", retry_after_s=gate_s)
            if refused_s > self._longest_gate_s:
                raise Throttled(f"the provider has refused everything for {refused_s:.0f} s", retry_after_s=refused_s)
            if delay_s == float("inf"):
                self._freed.clear()
                await self._freed.wait()
                continue
            if delay_s >= LONG_S:
                self._waiting(delay_s)
            if gate_s > 0 and self.rate_limit.in_flight:
                await self._sleep_or_answer(delay_s)
            else:
                await self._sleep(delay_s)

    async def _sleep_or_answer(self, seconds: float) -> None:
        """Sleep, or until a request in flight ends: its answer may show that nobody need wait."""
        self._freed.clear()
        slept = asyncio.ensure_future(self._sleep(seconds))
        freed = asyncio.ensure_future(self._freed.wait())
        try:
            await asyncio.wait((slept, freed), return_when=asyncio.FIRST_COMPLETED)
            if slept.done():
                slept.result()  # the run may have been told to stop
        finally:
            for waiting in (slept, freed):
                waiting.cancel()
            await asyncio.gather(slept, freed, return_exceptions=True)

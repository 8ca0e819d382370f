"""Many processes against one provider, in virtual time: what the policies do together. Seeded, no real waiting."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from embedctl.errors import ProviderError, Remedy, ServerFailed, Throttled
from embedctl.routing.breaker import Breaker, Pass
from embedctl.routing.rate_limit import Admission, RateLimit, RateLimits
from embedctl.routing.retry import Attempts, Policy, RetryBudget

TEN_MINUTES = 600.0
LATENCY_S = 0.3


@dataclass
class Provider:
    """Lets `per_minute` requests through, and none between `down` and `up`."""

    per_minute: float
    burst: float
    retry_after_s: float | None
    down: float = math.inf
    up: float = math.inf
    level: float = field(init=False)
    at: float = 0.0
    served: int = 0
    throttled: int = 0
    into_outage: int = 0

    def __post_init__(self) -> None:
        self.level = self.burst

    def judge(self, now: float) -> ProviderError | None:
        if self.down <= now < self.up:
            self.into_outage += 1
            return ServerFailed("down", status=503)
        self.level = min(self.burst, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        if self.level < 1:
            self.throttled += 1
            return Throttled("slow down", retry_after_s=self.retry_after_s)
        self.level -= 1
        self.served += 1
        return None


class Process:
    """One embedctl with work without end: the call point's loop, without the network."""

    def __init__(self, provider: Provider, chance: random.Random, at: Callable[..., None]) -> None:
        self.provider = provider
        self.chance = chance
        self.at = at
        self.rate_limit = RateLimit(RateLimits(concurrency=16), 0.0)
        self.breaker = Breaker("p", "m", jitter=chance.random)
        self.budget = RetryBudget()
        self.served = 0
        self.left = 0
        self.again: list[tuple[float, int, Attempts]] = []
        self.numbers = itertools.count()
        self.wakes = math.inf

    def wake(self, now: float) -> None:
        if now == self.wakes:  # and not an alarm that was overtaken
            self.wakes = math.inf
            self.work(now)

    def work(self, now: float) -> None:
        while True:
            allowed = self.breaker.ready_in(now)
            assert allowed is not None
            wait = max(allowed, self.rate_limit.ready_in(now, 0))
            if wait > 1e-9:
                break
            ticket = self.breaker.admit(now)
            assert ticket is not None
            attempts = Attempts(Policy(), jitter=self.chance.random)
            if self.again and self.again[0][0] <= now:
                attempts = heapq.heappop(self.again)[2]
            reservation = self.rate_limit.reserve(now, 0)
            error = self.provider.judge(now)
            pause = LATENCY_S * (0.5 + self.chance.random()) if error is None else 0.05
            self.at(now + pause, self.finish, ticket, reservation, attempts, error)
        alarm = now + wait + 1e-6
        if alarm < self.wakes:
            self.wakes = alarm
            self.at(alarm, self.wake)

    def finish(
        self, now: float, ticket: Pass, reservation: Admission, attempts: Attempts, error: ProviderError | None
    ) -> None:
        self.breaker.settle(ticket, error, now)
        if error is None:
            self.served += 1
            self.rate_limit.succeeded(reservation, now)
            attempts.succeeded(self.budget)
        else:
            step = attempts.after(error, now=now, budget=self.budget)
            if isinstance(error, Throttled):
                self.rate_limit.throttled(reservation, now, step.wait_s)
            else:
                self.rate_limit.strained(reservation, now)
            if step.remedy is Remedy.GIVE_UP:
                self.left += 1
            else:
                heapq.heappush(self.again, (now + step.wait_s, next(self.numbers), attempts))
        self.rate_limit.release()
        self.work(now)


def simulate(provider: Provider, processes: int, seed: int, seconds: float = TEN_MINUTES) -> list[Process]:
    events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
    numbers = itertools.count()

    def at(when: float, what: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(events, (when, next(numbers), what, arguments))

    everybody = [Process(provider, random.Random(seed * 1000 + index), at) for index in range(processes)]
    for process in everybody:
        at(process.chance.random(), process.work)
    while events and events[0][0] < seconds:
        when, _, what, arguments = heapq.heappop(events)
        what(when, *arguments)
    return everybody


@pytest.mark.parametrize(
    ("processes", "per_minute", "retry_after_s", "waste", "use"),
    [
        pytest.param(1, 1500, 1.0, 0.01, 0.80, id="alone"),
        pytest.param(5, 1500, 1.0, 0.02, 0.90, id="5 processes"),
        pytest.param(20, 500, 1.0, 0.10, 0.95, id="20 processes"),
        pytest.param(20, 500, None, 0.10, 0.95, id="20 processes, no Retry-After"),
    ],
)
def test_processes_that_share_a_limit_waste_little_of_it(
    processes: int, per_minute: float, retry_after_s: float | None, waste: float, use: float
) -> None:
    """Processes that share a limit and know nothing of each other use most of it, share it, and are seldom refused."""
    provider = Provider(per_minute, burst=per_minute / 60, retry_after_s=retry_after_s)
    everybody = simulate(provider, processes, seed=1)
    refused = provider.throttled / (provider.throttled + provider.served)
    used = provider.served / (per_minute / 60 * TEN_MINUTES)
    shares = [process.served for process in everybody]
    fairness = sum(shares) ** 2 / len(shares) / sum(share**2 for share in shares)  # Jain's index, 1 = equal

    assert refused <= waste
    assert used >= use
    assert fairness >= 0.8
    assert sum(process.left for process in everybody) == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_an_outage_is_not_stormed_and_ends(seed: int) -> None:
    """Five processes send few requests into an outage of five minutes, and all are back five minutes after it."""
    provider = Provider(1200, burst=20, retry_after_s=1.0, down=100.0, up=400.0)
    everybody = simulate(provider, 5, seed, seconds=400.0)
    at_the_end = [process.served for process in everybody]
    provider = Provider(1200, burst=20, retry_after_s=1.0, down=100.0, up=400.0)
    everybody = simulate(provider, 5, seed, seconds=700.0)

    assert provider.into_outage <= 200
    assert all(process.served > served for process, served in zip(everybody, at_the_end, strict=True))


def test_a_provider_that_is_down_gets_few_requests() -> None:
    """One process that starts into an outage sends no more than twenty requests in ten minutes."""
    provider = Provider(60_000, burst=1000, retry_after_s=1.0, down=0.0)
    simulate(provider, 1, seed=1)

    assert 5 <= provider.into_outage <= 20

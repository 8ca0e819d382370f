"""Providers and processes in virtual time: the policies are the real ones, time is a number. Seeded, no real waiting.

A provider judges requests by limits of its own; a process sends through a real `RateLimit`, `Breaker`, `Attempts` and
`RetryBudget`, as the call point does, with work without end.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from embedctl.errors import AnswerLost, ProviderError, Remedy, ServerFailed, Throttled
from embedctl.providers._rate_headers import Rates
from embedctl.routing.breaker import Breaker, Pass
from embedctl.routing.rate_limit import Admission, RateLimit, RateLimits
from embedctl.routing.retry import Attempts, Policy, RetryBudget, hinted_s

ON_THE_WAY_S = 0.03
"""A request takes up to so long to the provider: without it, processes that send evenly would keep hitting the same
moments of each other (phase effects, Floyd and Jacobson 1992)."""


@dataclass(frozen=True)
class Work:
    """One request: how much it is, and how many others its process had got through before it."""

    tokens: int
    items: int
    attempts: Attempts
    before: int


class Limit(Protocol):
    """What a provider allows."""

    def refuses(self, now: float, work: Work) -> float | None:
        """None when it lets a request through, else seconds after which it would."""

    def left(self, now: float) -> Rates | None:
        """What its headers say after an answer."""


Amount = Callable[[Work], float]


def requests(work: Work) -> float:
    return 1.0


def tokens(work: Work) -> float:
    return float(work.tokens)


def items(work: Work) -> float:
    return float(work.items)


@dataclass
class TokenBucket:
    """So much a second, `burst` at once; `changes` are (time, per second). `headers`: it says what is left."""

    per_second: float
    burst: float
    amount: Amount = requests
    changes: list[tuple[float, float]] = field(default_factory=list)
    headers: bool = False
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def _fill(self, now: float) -> None:
        while self.changes and self.changes[0][0] <= now:
            _, self.per_second = self.changes.pop(0)
        self.level = min(self.burst, self.level + (now - self.at) * self.per_second)
        self.at = now

    def refuses(self, now: float, work: Work) -> float | None:
        self._fill(now)
        amount = min(self.amount(work), self.burst)
        if self.level < amount - 1e-9:
            return (amount - self.level) / self.per_second
        self.level -= self.amount(work)
        return None

    def left(self, now: float) -> Rates | None:
        if not self.headers:
            return None
        full_s = (self.burst - self.level) / self.per_second
        if self.amount is tokens:
            return Rates(
                tokens_per_minute=self.per_second * 60, tokens_left=max(0.0, self.level), tokens_reset_s=full_s
            )
        return Rates(
            requests_per_minute=self.per_second * 60, requests_left=max(0.0, self.level), requests_reset_s=full_s
        )


@dataclass
class SlidingWindow:
    """At most so much in any `seconds`."""

    most: float
    seconds: float = 60.0
    amount: Amount = requests
    taken: deque[tuple[float, float]] = field(default_factory=deque)
    used: float = 0.0

    def refuses(self, now: float, work: Work) -> float | None:
        while self.taken and self.taken[0][0] <= now - self.seconds:
            self.used -= self.taken.popleft()[1]
        amount = self.amount(work)
        if self.used + amount > self.most:
            return self.taken[0][0] + self.seconds - now + 1e-6
        self.taken.append((now, amount))
        self.used += amount
        return None

    def left(self, now: float) -> Rates | None:
        return None


@dataclass
class FixedWindow:
    """At most so much in every calendar minute."""

    most: float
    seconds: float = 60.0
    amount: Amount = requests
    number: int = -1
    used: float = 0.0

    def refuses(self, now: float, work: Work) -> float | None:
        if (number := int(now // self.seconds)) != self.number:
            self.number, self.used = number, 0.0
        if self.used + self.amount(work) > self.most:
            return (number + 1) * self.seconds - now
        self.used += self.amount(work)
        return None

    def left(self, now: float) -> Rates | None:
        return None


@dataclass
class Provider:
    """Answers as its limits, chance and outages let it.

    Attributes:
        hint: "none", "exact" (retry-after-ms), or "seconds" (Retry-After, rounded up).
        refuses: Share of requests that are refused whatever the rate is, and what they are told to wait.
        fails: Share that fails with `status`; None: the answer is lost after `timeout_s`.
        outages: (from, to) → the status that all requests get.
        at_once: Most requests in flight.
    """

    limits: list[Limit] = field(default_factory=list)
    latency_s: float = 0.3
    hint: str = "none"
    refuses: float = 0.0
    refusal_hint_s: float | None = None
    fails: float = 0.0
    status: int | None = 500
    timeout_s: float = 30.0
    outages: dict[tuple[float, float], int] = field(default_factory=dict)
    at_once: int | None = None
    in_flight: int = 0
    served: float = 0.0
    answers: int = 0
    throttled: int = 0
    failed: int = 0
    amount: Amount = requests

    def judge(self, now: float, work: Work, chance: random.Random) -> tuple[float, ProviderError | None]:
        """(seconds until it answers, what is wrong)."""
        latency = self.latency_s * (0.7 + 0.6 * chance.random())
        for (start, stop), status in self.outages.items():
            if start <= now < stop:
                self.failed += 1
                if status == 429:
                    self.throttled += 1
                    return min(latency, 0.05), Throttled("slow down")
                return min(latency, 0.05), ServerFailed("down", status=status)
        if chance.random() < self.refuses:
            self.throttled += 1
            return latency, Throttled("busy", retry_after_s=self.refusal_hint_s)
        if self.at_once is not None and self.in_flight >= self.at_once:
            self.throttled += 1
            return min(latency, 0.05), Throttled("too many at once")
        waits = [wait for limit in self.limits if (wait := limit.refuses(now, work)) is not None]
        if waits:
            self.throttled += 1
            wait = max(waits)
            hints = {"none": None, "exact": wait, "seconds": float(math.ceil(wait))}
            return min(latency, 0.05), Throttled("slow down", retry_after_s=hints[self.hint])
        if chance.random() < self.fails:
            self.failed += 1
            if self.status is None:
                return self.timeout_s, AnswerLost("no word")
            return latency, ServerFailed("failed", status=self.status)
        self.answers += 1
        self.served += self.amount(work)
        return latency, None

    def rates(self, now: float) -> Rates | None:
        said = [rates for limit in self.limits if (rates := limit.left(now)) is not None]
        return said[0] if said else None


class Process:
    """One embedctl: the call point's loop, without the network.

    Attributes:
        served: Amount that was answered; `served_at` keeps it by second.
    """

    def __init__(
        self,
        provider: Provider,
        chance: random.Random,
        at: Callable[..., None],
        rate_limits: RateLimits,
        sizes: Callable[[random.Random], tuple[int, int]],
        late_s: float = ON_THE_WAY_S,
    ) -> None:
        self.provider = provider
        self.late_s = late_s
        self.chance = chance
        self.at = at
        self.sizes = sizes
        self.rate_limit = RateLimit(rate_limits, 0.0)
        self.breaker = Breaker("p", "m", jitter=chance.random)
        self.budget = RetryBudget()
        self.served = 0.0
        self.served_at: dict[int, float] = {}
        self.refused_at: dict[int, int] = {}
        self.sent_at: dict[int, int] = {}
        self.left = 0
        self.answers = 0
        self.again: list[tuple[float, int, Work]] = []
        self.numbers = itertools.count()
        self.wakes = math.inf

    def wake(self, now: float) -> None:
        if now == self.wakes:  # and not an alarm that was overtaken
            self.wakes = math.inf
            self.work(now)

    def work(self, now: float) -> None:
        while True:
            again = self.again[0][2] if self.again and self.again[0][0] <= now else None
            work = again or getattr(self, "next", None)
            if work is None:
                size = self.sizes(self.chance)
                work = self.next = Work(*size, Attempts(Policy(), jitter=self.chance.random), self.answers)
            allowed = self.breaker.ready_in(now)
            assert allowed is not None
            wait = max(allowed, self.rate_limit.ready_in(now, work.tokens, work.items))
            if wait > 1e-9:
                break
            ticket = self.breaker.admit(now)
            assert ticket is not None
            if again is not None:
                heapq.heappop(self.again)
            else:
                self.next = None
            reservation = self.rate_limit.reserve(now, work.tokens, work.items)
            self.sent_at[int(now)] = self.sent_at.get(int(now), 0) + 1
            self.at(now + self.chance.random() * self.late_s, self.arrive, ticket, reservation, work)
        alarm = now + wait + 1e-6
        if self.again:
            alarm = min(alarm, max(now + 1e-6, self.again[0][0])) if wait < math.inf and not again else alarm
        if alarm < self.wakes:
            self.wakes = alarm
            self.at(alarm, self.wake)

    def arrive(self, now: float, ticket: Pass, reservation: Admission, work: Work) -> None:
        pause, error = self.provider.judge(now, work, self.chance)
        self.provider.in_flight += 1
        self.at(now + pause, self.finish, ticket, reservation, work, error)

    def finish(self, now: float, ticket: Pass, reservation: Admission, work: Work, error: ProviderError | None) -> None:
        self.provider.in_flight -= 1
        was = self.breaker.state(now)
        self.breaker.settle(ticket, error, now)
        if was is not self.breaker.state(now) and self.breaker.state(now).value == "closed":
            self.rate_limit.restart()
        if error is None:
            amount = self.provider.amount(work)
            self.served += amount
            self.answers += 1
            self.served_at[int(now)] = self.served_at.get(int(now), 0.0) + amount
            self.rate_limit.settle(reservation, now, work.tokens)
            self.rate_limit.succeeded(reservation, now)
            if (rates := self.provider.rates(now)) is not None:
                self.rate_limit.learn(rates, now)
            work.attempts.succeeded(self.budget)
        else:
            if isinstance(error, Throttled):
                self.refused_at[int(now)] = self.refused_at.get(int(now), 0) + 1
                self.rate_limit.throttled(reservation, now, hinted_s(error))
            elif isinstance(error, AnswerLost) or (
                isinstance(error, ServerFailed) and error.status in (None, 503, 529)
            ):
                self.rate_limit.strained(reservation, now)
            others = self.answers - work.before
            held_back = self.rate_limit.pace.per_second is not None
            step = work.attempts.after(error, now=now, budget=self.budget, others_succeeded=others, held_back=held_back)
            if step.remedy is Remedy.GIVE_UP:
                self.left += 1
            else:
                heapq.heappush(self.again, (now + step.wait_s, next(self.numbers), work))
        self.rate_limit.release()
        self.work(now)

    def share(self, start: float, stop: float) -> float:
        """Of all it sent in this time, what was refused."""
        sent = sum(count for second, count in self.sent_at.items() if start <= second < stop)
        refused = sum(count for second, count in self.refused_at.items() if start <= second < stop)
        return refused / max(1, sent)

    def got(self, start: float, stop: float) -> float:
        """What was answered per second in this time."""
        return sum(amount for second, amount in self.served_at.items() if start <= second < stop) / (stop - start)


def one_text(chance: random.Random) -> tuple[int, int]:
    return 100, 1


def simulate(
    provider: Provider,
    processes: int = 1,
    *,
    seed: int = 1,
    seconds: float = 600.0,
    rate_limits: RateLimits | None = None,
    sizes: Callable[[random.Random], tuple[int, int]] = one_text,
    starts: Iterable[float] | None = None,
    late_s: float = ON_THE_WAY_S,
    one_limiter: bool = False,
) -> list[Process]:
    """So many processes at one provider, for so many virtual seconds.

    Args:
        late_s: A request reaches the provider up to so long after it was permitted.
        one_limiter: The processes are workers that share their first one's limiter.
    """
    events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
    numbers = itertools.count()

    def at(when: float, what: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(events, (when, next(numbers), what, arguments))

    rate_limits = rate_limits or RateLimits(concurrency=16)
    chances = [random.Random(seed * 1000 + index) for index in range(processes)]
    everybody = [Process(provider, chance, at, rate_limits, sizes, late_s) for chance in chances]
    if one_limiter:
        for process in everybody:
            process.rate_limit = everybody[0].rate_limit
    for process, start in itertools.zip_longest(everybody, starts or ()):
        at(process.chance.random() if start is None else start, process.work)
    while events and events[0][0] < seconds:
        when, _, what, arguments = heapq.heappop(events)
        what(when, *arguments)
    return everybody

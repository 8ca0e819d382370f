"""When the next request to an endpoint may go: rates, tokens, concurrency, and what the provider asked for. Pure.

`RateLimit` is told the time; `limiter.AdaptiveLimiter` makes requests wait for it.
"""

from __future__ import annotations

import math

from embedctl.dataclass import dataclass
from embedctl.providers._rate_headers import Rates
from embedctl.routing.pace import Pace
from embedctl.routing.quota import Quota
from embedctl.routing.window import Window

TOKEN_BURST_S = 10.0  # seconds' worth of tokens that may go at once
LONGEST_GATE_S = 60.0  # a reset in a header says when all is there again; waiting for all of it is too long


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What an endpoint may be asked at most; 0 = no limit.

    Attributes:
        concurrency: Requests in flight.
        requests_per_minute: `--rpm`. Counts texts where `counts_items`.
        tokens_per_minute: `--tpm`.
        burst: Requests that may go at once.
        counts_items: The provider counts each text of a request (Gemini, Cohere; facts/providers.md 6, 2026-11-21).
    """

    concurrency: int = 16
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    burst: float = 10.0
    counts_items: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """What one request in flight has taken: `cost` in requests (or texts), `tokens` as estimated.

    Attributes:
        number: Requests of an endpoint are numbered in the order they are sent.
    """

    cost: float
    tokens: float
    sent_at: float
    number: int


class RateLimit:
    """Shared by everything in flight to one provider, model and key."""

    def __init__(self, rate_limits: RateLimits, now: float) -> None:
        self._rate_limits = rate_limits
        self.window = Window(rate_limits.concurrency)
        self.pace = Pace(now)
        self.in_flight = 0
        self._held_until = -math.inf
        self._asked_until = -math.inf  # by a refusal; the last one was number …
        self._asked_by = -1
        rpm, tpm = rate_limits.requests_per_minute, rate_limits.tokens_per_minute
        self._requests = Quota(rpm, max(1.0, rate_limits.burst), now) if rpm else None
        self._tokens = Quota(tpm, tpm / 60 * TOKEN_BURST_S, now) if tpm else None

    def ready_in(self, now: float, tokens: float, items: int = 1) -> float:
        """Seconds until a request may go; inf while the window is full: then a settled request comes first."""
        if self.in_flight >= self.window.size:
            return math.inf
        cost = self._cost(items)
        return max(
            0.0,
            self.not_before - now,
            self._requests.ready_in(now, cost) if self._requests else 0.0,
            self._tokens.ready_in(now, tokens) if self._tokens else 0.0,
            self.pace.ready_in(now, cost),
        )

    def reserve(self, now: float, tokens: float, items: int = 1) -> Admission:
        """The request goes now; `release` must follow, whatever happens to it."""
        cost = self._cost(items)
        self.in_flight += 1
        if self._requests:
            self._requests.take(now, cost)
        if self._tokens:
            self._tokens.take(now, tokens)
        return Admission(cost, tokens, now, self.pace.take(now, cost))

    def release(self) -> None:
        """The request is no longer in flight."""
        self.in_flight -= 1

    def settle(self, reservation: Admission, now: float, actual_tokens: float) -> None:
        """Correct the estimate by what the provider counted; 0 where nothing was sent."""
        if self._tokens:
            self._tokens.correct(now, reservation.sent_at, actual_tokens - reservation.tokens)

    def succeeded(self, reservation: Admission, now: float) -> None:
        """An answer: a little more from now on."""
        if reservation.number > self._asked_by:  # what was asked for by an earlier refusal was meant for it alone
            self._asked_until = -math.inf
        if self.in_flight + 1 >= self.window.size:  # an unused window proves nothing
            self.window.grew()
        self.window.served()
        self.pace.succeeded(now, reservation.cost, reservation.number)

    def throttled(self, reservation: Admission, now: float, wait_s: float | None) -> None:
        """A 429: it may be one of a few, or a limit.

        Args:
            wait_s: What the provider asked for: nothing goes before so many seconds have passed, unless a request
                that was sent after this one is answered.
        """
        if wait_s is not None:
            self._asked_until = max(self._asked_until, now + wait_s)
            self._asked_by = max(self._asked_by, reservation.number)
        self.pace.throttled(now, reservation.number)

    def strained(self, reservation: Admission, now: float) -> None:
        """A 503 or a timeout: fewer at a time, when they are many."""
        self.window.strained(now, reservation.sent_at)

    def hold(self, not_before: float) -> None:
        """Nothing before this monotonic time: a remembered hint."""
        self._held_until = max(self._held_until, not_before)

    @property
    def not_before(self) -> float:
        """The monotonic time before which the provider asked for nothing to be sent."""
        return max(self._held_until, self._asked_until)

    def refused_for(self, now: float) -> float:
        """Seconds for which nothing at all has got through."""
        since = self.pace.blocked_since
        return 0.0 if since is None else now - since

    def learn(self, rates: Rates, now: float) -> None:
        """Take what the headers say: limits where none was configured, and never more than what is left."""
        rate_limits = self._rate_limits
        if self._requests is None and not rate_limits.counts_items and rates.requests_per_minute:
            burst = max(1.0, rate_limits.burst, rates.requests_per_minute / 60)
            self._requests = Quota(rates.requests_per_minute, burst, now)
        if self._tokens is None and rates.tokens_per_minute:
            per_minute = rates.tokens_per_minute
            self._tokens = Quota(per_minute, per_minute / 60 * TOKEN_BURST_S, now)
        self._heed(self._requests, rates.requests_left, rates.requests_reset_s, now)
        self._heed(self._tokens, rates.tokens_left, rates.tokens_reset_s, now)

    def restart(self) -> None:
        """One at a time, then carefully more: the breaker has just closed."""
        self.window.restart()

    def _heed(self, quota: Quota | None, left: float | None, reset_s: float | None, now: float) -> None:
        if left is None:
            return
        if quota:
            quota.cap(now, left)
        elif left == 0 and reset_s:
            self.hold(now + min(reset_s, LONGEST_GATE_S))

    def _cost(self, items: int) -> float:
        return float(items) if self._rate_limits.counts_items else 1.0

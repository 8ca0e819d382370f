"""What a limiter learns from its successes and failures: how many at a time, and how often. Pure."""

from __future__ import annotations

import math

from embedctl.routing.bucket import Bucket

CUT = 0.7
CUT_EVERY_S = 1.0
START = 4


class Window:
    """How many requests may be in flight: 1 ≤ size ≤ most.

    Doubles with every window of successes until the first trouble (at 200 ms latency a careful start would cost a
    short run a third of its speed), then grows by 1 with every window; × 0.7 on trouble, at most once a second.
    """

    __slots__ = ("_cut_at", "_most", "_size", "_steep")

    def __init__(self, most: int, start: int = START) -> None:
        self._most = max(1, most)
        self._size = float(min(start, self._most))
        self._steep = True
        self._cut_at = -math.inf

    @property
    def size(self) -> int:
        """Whole requests."""
        return int(self._size)

    def grew(self) -> None:
        """One success."""
        self._size = min(float(self._most), self._size + (1.0 if self._steep else 1.0 / self._size))

    def cut(self, now: float, sent_at: float) -> None:
        """Trouble. What was sent before the last cut is the same trouble."""
        self._steep = False
        if now - self._cut_at >= CUT_EVERY_S and sent_at >= self._cut_at:
            self._size = max(1.0, self._size * CUT)
            self._cut_at = now

    def restart(self) -> None:
        """From 1, carefully: the breaker has just closed."""
        self._size = 1.0
        self._steep = False


class AdaptiveRate:
    """A rate found by trying, on from the first throttling until five minutes without one.

    Cut to 0.7 · min(rate, what got through lately), + 0.02 a second with every success: the same growth in time for
    fast and slow servers, so that twenty processes that share a key get like shares and are seldom refused. A first
    rate that had to be guessed grows by 2 % with every success until it is cut.
    """

    FOUND_AGAIN_AFTER_S = 300.0
    RISE = 0.02
    LOOK_BACK_S = 20.0
    UNKNOWN = 0.5  # a second, when the first request of a run is throttled: nothing got through that could be measured
    SLOWEST = 1 / 60

    __slots__ = ("_bucket", "_cut_at", "_guessed", "_seen", "_seen_at", "_since", "_throttled_at")

    def __init__(self, now: float) -> None:
        self._bucket: Bucket | None = None
        self._guessed = False
        self._since = now
        self._seen = 0.0  # successes, each forgotten with e-folding time LOOK_BACK_S
        self._seen_at = now
        self._throttled_at = -math.inf
        self._cut_at = -math.inf

    @property
    def per_second(self) -> float | None:
        """Requests per second, None while nothing is known."""
        return self._bucket.per_second if self._bucket else None

    def measured(self, now: float) -> float:
        """Successes per second over the last twenty seconds or so."""
        self._forget(now)
        looked_back_s = self.LOOK_BACK_S * -math.expm1(-max(1.0, now - self._since) / self.LOOK_BACK_S)
        return self._seen / looked_back_s

    def ready_in(self, now: float, cost: float) -> float:
        """Seconds until a request of this cost may go."""
        if self._bucket and now - self._throttled_at >= self.FOUND_AGAIN_AFTER_S:
            self._bucket = None
        return self._bucket.ready_in(now, cost) if self._bucket else 0.0

    def take(self, now: float, cost: float) -> None:
        """A request goes."""
        if self._bucket:
            self._bucket.take(now, cost)

    def succeeded(self, now: float, cost: float) -> None:
        """A request got through."""
        self._forget(now)
        self._seen += cost
        if self._bucket:
            rate = self._bucket.per_second
            self._set(now, rate + self.RISE * (max(1.0, rate) if self._guessed else 1.0))

    def throttled(self, now: float, sent_at: float) -> None:
        """A request did not; those sent before the last cut tell nothing new."""
        self._throttled_at = now
        if sent_at < self._cut_at:
            return
        self._cut_at = now
        got_through = self.measured(now)
        self._guessed = self._bucket is None and not got_through
        if self._bucket is None:
            self._set(now, CUT * (got_through or self.UNKNOWN))
        else:
            self._set(now, CUT * min(self._bucket.per_second, got_through or self._bucket.per_second))

    def _set(self, now: float, per_second: float) -> None:
        per_second = max(self.SLOWEST, per_second)
        if self._bucket is None:
            self._bucket = Bucket(per_second, 1.0, now)
            self._bucket.cap(now, 0.0)
        else:
            self._bucket.change(now, per_second=per_second, capacity=1.0)

    def _forget(self, now: float) -> None:
        if now > self._seen_at:
            self._seen *= math.exp((self._seen_at - now) / self.LOOK_BACK_S)
            self._seen_at = now

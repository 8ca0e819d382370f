"""How many requests may be in flight, learned from trouble that load causes: 503, timeouts. Pure."""

from __future__ import annotations

import math

CUT = 0.7
START = 16
OVERLOADED = 0.25  # share of failures that more than single ones of them means
OUTCOMES = 20.0  # that are looked back on
FEWEST = 1.5  # failures among them, each weighing less with what follows it


class Window:
    """How many requests may be in flight: 1 ≤ size ≤ most.

    Opens at once: what a user asks for with `--concurrency` is what other clients send from the first moment, and at
    200 ms of latency a careful start costs a short run a third of its speed. × 0.7 on trouble, once for all requests
    that were sent before; only where failures are many: single ones say nothing about load. After that it doubles with
    every window of successes until it is where it was cut (slow start up to ssthresh, RFC 5681 3.1), then grows by 1.
    """

    __slots__ = ("_cut_at", "_failures", "_most", "_outcomes", "_size", "_steep_to")

    def __init__(self, most: int, start: int = START) -> None:
        self._most = max(1, most)
        self._size = float(min(start, self._most))
        self._steep_to = float(self._most)
        self._cut_at = -math.inf
        self._failures = self._outcomes = 0.0

    @property
    def size(self) -> int:
        """Whole requests."""
        return int(self._size)

    def served(self) -> None:
        """One success, whether or not the window was full."""
        self._look_back()

    def grew(self) -> None:
        """One success in a full window."""
        if self._overloaded():
            return
        step = 1.0 if self._size < self._steep_to else 1.0 / self._size
        self._size = min(float(self._most), self._size + step)

    def strained(self, now: float, sent_at: float) -> None:
        """One failure that load may have caused."""
        self._look_back()
        self._failures += 1
        if self._overloaded():
            self.cut(now, sent_at)

    def cut(self, now: float, sent_at: float) -> None:
        """Trouble. What was sent before the last cut is the same trouble."""
        if sent_at >= self._cut_at:
            self._steep_to = self._size
            self._size = max(1.0, self._size * CUT)
            self._cut_at = now

    def restart(self) -> None:
        """From 1: the breaker has just closed."""
        self._steep_to = max(self._steep_to, self._size)
        self._size = 1.0
        self._failures = self._outcomes = 0.0

    def _look_back(self) -> None:
        kept = 1 - 1 / OUTCOMES
        self._failures *= kept
        self._outcomes = self._outcomes * kept + 1

    def _overloaded(self) -> bool:
        return self._failures >= FEWEST and self._failures > OVERLOADED * self._outcomes

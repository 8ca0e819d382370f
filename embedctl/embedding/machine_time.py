"""What a machine that costs by the hour was paid for: each call its share of the time it was busy. Pure.

Time is counted in microhours (3.6 ms): an amount is microhours x rate / 1,000,000, exact like that of tokens.
"""

from __future__ import annotations

MICROHOURS_PER_SECOND = 1e6 / 3600


class MachineTime:
    """The time between a machine's first and last call.

    While n calls are under way, each has 1/n of the time: together they have all the time in which there was any. What
    no answered call is charged (idle time, calls that failed) is left over: charges and rest make up the whole, to the
    microhour. Times are of a monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._now = self._last_end = 0.0
        self._calls = 0
        self._each = 0.0  # seconds that a call would have which had been under way all the time
        self._begun = 0.0  # `_each` at the beginning of each that is under way, summed up
        self._undecided = 0.0  # seconds of calls that have ended, and are not charged yet
        self._earned = 0.0  # seconds of those that are
        self._charged = self._rested = 0

    def begin(self, now: float) -> float:
        """A call begins; what `end` wants to know of it."""
        if self._first is None:
            self._first = self._now = self._last_end = now
        self._pass(now)
        self._calls += 1
        self._begun += self._each
        return self._each

    def end(self, began: float, now: float) -> float:
        """It ends; its share in seconds, of which `charge` must be told."""
        self._pass(now)
        self._last_end = now
        self._calls -= 1
        self._begun -= began
        self._undecided += self._each - began
        return self._each - began

    def charge(self, share: float, *, answered: bool) -> int:
        """Microhours that a call is charged for its share: none if it was not answered, and the rest has them."""
        self._undecided -= share
        if not answered:
            return 0
        self._earned += share
        microhours = int(self._earned * MICROHOURS_PER_SECOND) - self._charged
        self._charged += microhours
        return microhours

    def rest(self) -> int:
        """Microhours up to the last call's end that no call was charged, each told once; what is open is left out."""
        if self._first is None:
            return 0
        is_open = self._calls * self._each - self._begun + self._undecided
        whole = round((self._last_end - self._first - is_open) * MICROHOURS_PER_SECOND)
        left = max(0, whole - self._charged - self._rested)
        self._rested += left
        return left

    def _pass(self, now: float) -> None:
        if self._calls:
            self._each += (now - self._now) / self._calls
        self._now = now

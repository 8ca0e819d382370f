"""Token buckets: how much per second, and how much at once. Pure."""

from __future__ import annotations


class Bucket:
    """Fills at `per_second` up to `capacity`; what is taken may exceed it, and is then paid off first.

    The level stays in [-largest amount taken, capacity], so in any t seconds at most
    capacity + per_second · t is taken, plus once what exceeds the bucket.
    """

    __slots__ = ("_at", "_level", "capacity", "per_second")

    def __init__(self, per_second: float, capacity: float, now: float) -> None:
        self.per_second = per_second
        self.capacity = capacity
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """What may be taken at once; negative while something larger than the bucket is paid off."""
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.per_second)
            self._at = now
        return self._level

    def ready_in(self, now: float, amount: float) -> float:
        """Seconds until `amount` may be taken; something larger than the bucket waits for a full one."""
        missing = min(amount, self.capacity) - self.level(now)
        # A millionth is rounding, not debt: a wait of 1e-17 s would never end.
        return missing / self.per_second if missing > 1e-6 * self.capacity else 0.0

    def take(self, now: float, amount: float) -> None:
        """Take it, whether or not it was ready; a negative amount gives back."""
        self._level = min(self.capacity, self.level(now) - amount)

    def cap(self, now: float, level: float) -> None:
        """Believe a server that says less is left; never one that says more."""
        self._level = min(self.level(now), level)

    def change(self, now: float, *, per_second: float, capacity: float) -> None:
        """Another speed and size from now on; the level is kept, cut to the new size."""
        self._level = min(capacity, self.level(now))
        self.per_second = per_second
        self.capacity = capacity

"""What may be asked in a minute where somebody has named it: a user, the catalog, a provider's header. Pure."""

from __future__ import annotations

from embedctl.routing.bucket import Bucket

SPEED = 0.98  # of what was named
LATE_S = 0.5  # a request may reach the provider so much later than it was permitted
SLOT_S = 0.5  # permits are remembered by the half second: 122 numbers, however many they are


class Quota:
    """So much a minute, and so much at once; in no 60 s more than was named.

    A bucket alone keeps no such promise: it lets `burst` through beyond what it fills by, and providers count as
    different things as buckets, calendar minutes and the last 60 s. So two rules hold at once:

    - A bucket of `burst` fills at 0.98 of the speed. The 2 % are what a strict bucket of the same burst at the provider
      gains on it: 48 requests a minute at 2400, so that requests that overtake each other on their way find room there.
      It begins half full: the half that is missing is room there from the first moment, and for a run just before.
    - What was permitted in the last 60 s and a half is counted, and no more than was named is. The half second is for
      what a request needs to the provider: two that were 60 s apart may arrive closer together.

    A saturated quota so gives 0.98 of what was named. Less where what is asked for at once is a large part of it: of
    5,000 tokens a minute two requests of 3,000 don't fit. Something larger than all of it goes alone and is paid off.
    """

    __slots__ = ("_bucket", "_permitted", "_sum", "per_minute")

    def __init__(self, per_minute: float, burst: float, now: float) -> None:
        self.per_minute = per_minute
        self._bucket = Bucket(SPEED * per_minute / 60, burst, now)
        self._bucket.cap(now, max(1.0, burst / 2))
        self._permitted: dict[int, float] = {}  # by slot, the oldest first
        self._sum = 0.0

    def ready_in(self, now: float, amount: float) -> float:
        """Seconds until so much may be asked."""
        return max(self._bucket.ready_in(now, amount), self._fits_in(now, amount))

    def take(self, now: float, amount: float) -> None:
        """It is asked now."""
        self._forget(now)
        self._bucket.take(now, amount)
        slot = int(now // SLOT_S)
        self._permitted[slot] = self._permitted.get(slot, 0.0) + amount
        self._sum += amount

    def correct(self, now: float, taken_at: float, more: float) -> None:
        """What was taken then was so much more, or less where negative."""
        self._forget(now)
        self._bucket.take(now, more)
        slot = int(taken_at // SLOT_S)
        if slot in self._permitted:
            self._permitted[slot] += more
            self._sum += more

    def cap(self, now: float, level: float) -> None:
        """Believe a server that says less is left; never one that says more."""
        self._bucket.cap(now, level)

    def _fits_in(self, now: float, amount: float) -> float:
        self._forget(now)
        missing = self._sum + min(amount, self.per_minute) - self.per_minute
        if missing <= 1e-6 * self.per_minute:  # rounding
            return 0.0
        for slot, permitted in self._permitted.items():
            missing -= permitted
            if missing <= 1e-6 * self.per_minute:
                return self._gone_at(slot) - now
        return 0.0

    def _forget(self, now: float) -> None:
        while self._permitted and self._gone_at(slot := next(iter(self._permitted))) <= now + 1e-6:
            self._sum -= self._permitted.pop(slot)
        if not self._permitted:
            self._sum = 0.0

    @staticmethod
    def _gone_at(slot: int) -> float:
        return (slot + 1) * SLOT_S + 60 + LATE_S

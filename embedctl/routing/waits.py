"""Saying why nothing happens, once per wait, however many requests wait for the same thing."""

from __future__ import annotations

from collections.abc import Callable

LONG_S = 5.0
"""A wait that somebody who looks at the screen wonders about."""


class Waits:
    """Tells people why a run waits.

    Args:
        told: Every wait, for -v.
        long: Those of `LONG_S` and more; they go here instead.
        clock: Monotonic seconds.
    """

    def __init__(self, told: Callable[[str], None], long: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._told = told
        self._long = long
        self._clock = clock
        self._until: dict[str, float] = {}

    def say(self, who: str, why: str, seconds: float) -> None:
        """`who` waits for so long because of `why`; silent while an earlier wait of theirs is not over."""
        now = self._clock()
        waiting = self._until.get(who, now) > now
        self._until[who] = max(self._until.get(who, now), now + seconds)
        if not waiting:
            (self._long if seconds >= LONG_S else self._told)(
                f"{who}: {why.rstrip('.')}; going on in {spoken(seconds)}"
            )


def spoken(seconds: float) -> str:
    """A duration as people say it: "7 s", "12 min", "24 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"

"""Saying why nothing happens, once per wait, however many requests wait for the same thing."""

from __future__ import annotations

from collections.abc import Callable

from embedctl.records import Observer, Paced, Waiting

NEWS = 1.5
"""Times another pace than the last one told."""

NEWS_AFTER_S = 2.0
"""The first figures are guesses: whoever watches sees what becomes of them."""

OVER_AFTER_S = 10.0
"""So that it is not over, and begins, again and again."""


class Waits:
    """Tells an observer why requests wait.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._clock = clock
        self._until: dict[str, float] = {}
        self._paces: dict[str, tuple[float, float]] = {}  # the last one told, and when

    def say(self, endpoint: str, reason: str, seconds: float) -> None:
        """Requests to an endpoint wait for so long; silent while an earlier wait of it is not over."""
        now = self._clock()
        waiting = self._until.get(endpoint, now) > now
        self._until[endpoint] = max(self._until.get(endpoint, now), now + seconds)
        if not waiting:
            self._observer.notify(Waiting(endpoint, reason, seconds))

    def pace(self, endpoint: str, per_second: float | None, unit: str) -> None:
        """So much goes per second because the endpoint refuses more; told when that begins, ends or changes."""
        told, at = self._paces.get(endpoint, (None, 0.0))
        now = self._clock()
        if told is None:
            if per_second is None:
                return
        elif per_second is None:
            if now - at < OVER_AFTER_S:
                return
        elif now - at < NEWS_AFTER_S or 1 / NEWS < per_second / told < NEWS:
            return
        if per_second is None:
            del self._paces[endpoint]
        else:
            self._paces[endpoint] = (per_second, now)
        self._observer.notify(Paced(endpoint, per_second, unit, first=told is None))

"""Saying why nothing happens, once per wait, however many requests wait for the same thing."""

from __future__ import annotations

from collections.abc import Callable

from embedctl.records import Observer, Waiting


class Waits:
    """Tells an observer why requests wait.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._clock = clock
        self._until: dict[str, float] = {}

    def say(self, endpoint: str, reason: str, seconds: float) -> None:
        """Requests to an endpoint wait for so long; silent while an earlier wait of it is not over."""
        now = self._clock()
        waiting = self._until.get(endpoint, now) > now
        self._until[endpoint] = max(self._until.get(endpoint, now), now + seconds)
        if not waiting:
            self._observer.notify(Waiting(endpoint, reason, seconds))

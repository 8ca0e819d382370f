"""Small writes that nobody waits for, in order, by one thread: an event loop goes on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from embedctl.errors import EmbedctlError


class Background:
    """Does one piece of work after the other; the thread begins with the first one.

    What the disk refuses is no failure: this is for what costs little when it is lost.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def __call__(self, work: Callable[[], object]) -> None:
        """Do it later; returns at once."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._thread.submit(_quietly, work)

    def close(self) -> None:
        """Wait until all of it is done."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


def at_once(work: Callable[[], object]) -> None:
    """The same without a thread: for a command that does nothing else."""
    _quietly(work)


def _quietly(work: Callable[[], object]) -> None:
    with suppress(EmbedctlError, OSError):
        work()

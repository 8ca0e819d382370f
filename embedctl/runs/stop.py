"""Why and when a run stops sending: a signal, the deadline, or an error that ends it. What is in flight is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import DeadlinePassed, EmbedctlError


@dataclass(slots=True)
class StopSignal:
    """Why no more requests are sent; None while they are."""

    reasons: list[EmbedctlError] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _over: bool = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """While requests are sent by the running loop; afterwards nothing can be stopped any more. May be nested."""
        if self._loop is not None:
            yield
            return
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            self.too_late()

    def too_late(self) -> None:
        """From now on the end is written down, and nobody stops that."""
        self._loop, self._over = None, True

    def ask(self, reason: EmbedctlError) -> None:
        """Stop sending, from a signal handler; before anything is sent, raise the reason."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.because, reason)
        elif not self._over:
            raise reason

    def because(self, reason: EmbedctlError) -> None:
        """Stop sending; the first reason counts."""
        self.reasons.append(reason)
        self.asked.set()

    def go_on(self) -> None:
        """The first reason is dealt with: sending begins anew, unless there are others."""
        del self.reasons[:1]
        if not self.reasons:
            self.asked.clear()

    @property
    def reason(self) -> EmbedctlError | None:
        """Why; None while requests are sent."""
        return self.reasons[0] if self.reasons else None

    async def heed(self, step: Coroutine[Any, Any, None]) -> None:
        """Do a step of the run; an error of ours that ends it stops the others too."""
        try:
            await step
        except EmbedctlError as error:
            self.because(error)

    def proceed(self) -> None:
        """Raise the reason once there is one: nothing more may be sent."""
        if self.reason is not None:
            raise self.reason

    async def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the run is told to stop; then raise why."""
        try:
            async with asyncio.timeout(seconds):
                await self.asked.wait()
        except TimeoutError:
            return
        self.proceed()

    async def at(self, deadline: float | None) -> None:
        """Stop at this moment of the monotonic clock; None: never."""
        if deadline is not None:
            await asyncio.sleep(max(0.0, deadline - time.monotonic()))
            self.because(DeadlinePassed("the --deadline has come", hint="run the same command again to go on"))

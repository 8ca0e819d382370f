"""How a run gets its answers. One way: at once, by workers over the call point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from embedctl.embedding.cached import CachedEmbedder
from embedctl.errors import EmbedctlError
from embedctl.planning.packer import PackedRequest
from embedctl.records import Outcome

_NO_VECTORS = np.empty((0, 0), np.float32)


class Answers(Protocol):
    """A way to get answers. What it tells is in the journal already."""

    async def submit(self, request: PackedRequest) -> None:
        """Take a request; waits while as many are under way as memory allows."""

    async def close(self) -> None:
        """No more requests come: `outcomes` ends when all that were taken have one."""

    def outcomes(self) -> AsyncIterator[Outcome]:
        """What became of the texts, in any order; `targets` are ordinals of the run, vectors stand in the journal."""

    async def drain(self, seconds: float) -> None:
        """Send nothing new; wait for what was sent, but no longer than so."""

    async def aclose(self) -> None:
        """End at once; what is under way is given up."""

    @property
    def in_flight(self) -> int:
        """Requests under way."""


class OnlineAnswers:
    """Asks for each request at once: `concurrency` workers over the call point.

    Args:
        failed: Told why a request could not be asked for; its worker has ended, the others go on until `drain`.
    """

    def __init__(self, embedder: CachedEmbedder, concurrency: int, failed: Callable[[EmbedctlError], None]) -> None:
        self._embedder = embedder
        self._failed = failed
        self._requests: asyncio.Queue[PackedRequest | None] = asyncio.Queue(concurrency)
        self._outcomes: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        self._busy: set[asyncio.Task[None] | None] = set()
        self._draining = False
        self._workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]
        self._working = len(self._workers)

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._busy)

    async def submit(self, request: PackedRequest) -> None:
        """Take a request; waits while every worker has one and as many again are waiting."""
        await self._requests.put(request)

    async def close(self) -> None:
        """No more requests come."""
        for _ in self._workers:
            await self._requests.put(None)

    async def outcomes(self) -> AsyncIterator[Outcome]:
        """What became of the texts, until all workers have ended."""
        while (outcome := await self._outcomes.get()) is not None:
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    async def drain(self, seconds: float) -> None:
        """Send nothing new; wait for what was sent, but no longer than so."""
        self._draining = True
        for worker in self._workers:
            if worker not in self._busy:
                worker.cancel()
        await asyncio.wait(self._workers, timeout=seconds)

    async def aclose(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        try:
            await self._ask_one_after_the_other()
        except EmbedctlError as error:
            self._failed(error)
        except asyncio.CancelledError:
            raise
        except BaseException as bug:  # none of ours: whoever takes the outcomes must not wait for more
            self._outcomes.put_nowait(bug)
        finally:
            self._working -= 1
            if not self._working:
                self._outcomes.put_nowait(None)

    async def _ask_one_after_the_other(self) -> None:
        this = asyncio.current_task()
        while not self._draining and (request := await self._requests.get()) is not None:
            self._busy.add(this)
            try:
                await self._ask(request)
            finally:
                self._busy.discard(this)
            del request  # a worker that waits for the next one keeps no published slice in memory

    async def _ask(self, request: PackedRequest) -> None:
        """One request: its answers, some megabytes each, end with this call, not when the next ones came."""
        for outcome in await self._embedder.embed(request):
            self._outcomes.put_nowait(_without_vectors(outcome))


def _without_vectors(outcome: Outcome) -> Outcome:
    """The vectors are in the journal: the answer's memory is not needed until the outcome is taken."""
    if outcome.answer is None:
        return outcome
    return replace(outcome, answer=replace(outcome.answer, vectors=_NO_VECTORS, raw_response=b""))

"""How a run gets its answers. One way: at once, by workers over the call point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from embedctl.embedding.cached import CachedEmbedder
from embedctl.errors import EmbedctlError
from embedctl.planning.packer import PackedRequest
from embedctl.records import Outcome

SPARE = 3
"""So many more workers for each that waits before it may ask again."""

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


class Turns:
    """How many requests are worked on at once; who waits before a request may be sent again gives its turn away.

    Args:
        at_once: What memory allows: each may hold an answer.
    """

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._taken: set[asyncio.Task[Any] | None] = set()
        self.resting: Callable[[], object] = lambda: None  # called when a turn is given away

    @property
    def taken(self) -> int:
        """Requests that are worked on."""
        return len(self._taken)

    def has(self, worker: asyncio.Task[None]) -> bool:
        """Whether a worker has a turn."""
        return worker in self._taken

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends."""
        this = asyncio.current_task()
        await self._take(this)
        try:
            yield
        finally:
            self._give(this)

    def giving(self, sleep: Callable[[float], Awaitable[None]]) -> Callable[[float], Awaitable[None]]:
        """The same sleep, which gives the sleeper's turn away meanwhile."""

        async def rest(seconds: float) -> None:
            this = asyncio.current_task()
            if this not in self._taken:
                return await sleep(seconds)
            self._give(this)
            self.resting()
            await sleep(seconds)
            await self._take(this)
            return None

        return rest

    async def _take(self, worker: asyncio.Task[Any] | None) -> None:
        await self._free.acquire()
        self._taken.add(worker)

    def _give(self, worker: asyncio.Task[Any] | None) -> None:
        if worker in self._taken:  # else it ended while it rested
            self._taken.discard(worker)
            self._free.release()


class OnlineAnswers:
    """Asks for each request at once: `concurrency` workers over the call point, and some for those that rest.

    Args:
        failed: Told why a request could not be asked for; its worker has ended, the others go on until `drain`.
        turns: Of those who work; the call point gives them away while it waits. None: nobody does.
    """

    def __init__(
        self,
        embedder: CachedEmbedder,
        concurrency: int,
        failed: Callable[[EmbedctlError], None],
        turns: Turns | None = None,
    ) -> None:
        self._embedder = embedder
        self._failed = failed
        self._requests: asyncio.Queue[PackedRequest | None] = asyncio.Queue(concurrency)
        self._outcomes: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        self._turns = turns or Turns(concurrency)
        self._turns.resting = self._one_more
        self._draining = False
        self._most = concurrency * (1 + SPARE)
        self._workers: list[asyncio.Task[None]] = []
        self._working = 0
        for _ in range(concurrency):
            self._one_more()

    def _one_more(self) -> None:
        if len(self._workers) < self._most and not self._draining:
            self._working += 1
            self._workers.append(asyncio.create_task(self._work()))

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._turns.taken

    async def submit(self, request: PackedRequest) -> None:
        """Take a request; waits while every worker has one and as many again are waiting."""
        await self._requests.put(request)

    async def close(self) -> None:
        """No more requests come."""
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
            if not self._turns.has(worker):
                worker.cancel()
        await asyncio.wait(self._workers, timeout=seconds)

    async def aclose(self) -> None:
        """End all workers."""
        self._draining = True
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
        while not self._draining:
            request = await self._requests.get()
            if request is None:
                self._requests.put_nowait(None)  # for the next worker
                return
            async with self._turns.turn():
                await self._ask(request)
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

"""What calls bring goes into the vector cache: that of a moment together, in one thread, behind the answers' backs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedctl.embedding.attempt import AttemptRecord
from embedctl.records import TEXT_HASH_BYTES, UsageEvent, minted_at
from embedctl.storage.vector_cache import CachedVector, VectorCache

TOGETHER_S = 0.02
"""What comes meanwhile is written at once: each thread that is woken up costs more than what it writes."""

MOST_BYTES = 4 << 20
"""Of vectors that wait: with more, nothing is waited for."""

_Some = tuple[str, Sequence[bytes], Sequence[CachedVector]]


class _Given(NamedTuple):
    """As the journal took it, and where it put it."""

    place: Any
    event: UsageEvent
    hashes: bytes
    vectors: NDArray[np.float32]
    tokens_each: Sequence[int] | None
    space_id: str


class KeepingJournal:
    """A journal that remembers which vectors it was given, so that they are not lost when the call fails later."""

    def __init__(self, journal: AttemptRecord) -> None:
        self._journal = journal
        self._answers: list[_Given] = []
        self.intend = journal.intend
        self.settle = journal.settle
        self.release = journal.release

    async def answer(
        self, event: UsageEvent, hashes: bytes, vectors: NDArray[np.float32], tokens_each: Any = None, extra: Any = None
    ) -> Any:
        """See Journal."""
        place = await self._journal.answer(event, hashes, vectors, tokens_each, extra)
        if extra is not None:  # not a probe's
            self._answers.append(_Given(place, event, hashes, vectors, tokens_each, extra["space_id"]))
        return place

    def keep(self, keeping: Keeping, scope: Callable[[str], str], then: Callable[[], None]) -> None:
        """Put them into the cache, and let go of them in the journal.

        Args:
            scope: Space id → under what they are kept.
            then: Called when that is done, or there was nothing to do.
        """
        answers, self._answers = self._answers, []
        some: list[_Some] = []
        for one in answers:
            count = len(one.vectors)
            each = one.tokens_each or ((one.event.tokens_total,) if count == 1 else (None,) * count)
            maker, asked_at = (one.event.provider, one.event.model), minted_at(one.event.event_id)
            hits = [CachedVector(*maker, each[i], row, asked_at) for i, row in enumerate(one.vectors)]
            hashes = [one.hashes[at : at + TEXT_HASH_BYTES] for at in range(0, len(one.hashes), TEXT_HASH_BYTES)]
            some.append((scope(one.space_id), hashes, hits))
        let_go = [(self._journal, one.place.segment, len(one.vectors)) for one in answers]
        keeping.put(some, let_go, then)


class Keeping:
    """Writes to the cache.

    Args:
        cache: None: nothing is kept.
    """

    def __init__(self, cache: VectorCache | None) -> None:
        self._cache = cache
        self._waiting: list[_Some] = []
        self._let_go: Counter[tuple[AttemptRecord, str]] = Counter()
        self._then: list[Callable[[], None]] = []
        self._bytes = 0
        self._now = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    def put(
        self, some: Sequence[_Some], let_go: Sequence[tuple[AttemptRecord, str, int]], then: Callable[[], None]
    ) -> None:
        """Keep these soon.

        Args:
            some: As `VectorCache.put_all` takes them.
            let_go: Journal, segment and number of vectors that it need not hold any longer when they are in the cache.
            then: Called when they are, as far as it takes them.
        """
        if not some:
            then()
            return
        self._waiting += some
        for journal, segment, count in let_go:
            self._let_go[journal, segment] += count
        self._then.append(then)
        self._bytes += sum(hit.vector.nbytes for _, _, hits in some for hit in hits)
        if self._bytes >= MOST_BYTES:
            self._now.set()
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def flush(self) -> None:
        """All that was put is in the cache when this returns."""
        while self._writer is not None:
            self._now.set()
            await asyncio.wait((self._writer,))

    async def _write(self) -> None:
        try:
            while self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(TOGETHER_S):
                        await self._now.wait()
                self._now.clear()
                await self._write_all()
        finally:
            self._writer = None

    async def _write_all(self) -> None:
        some, let_go, then = self._waiting, self._let_go, self._then
        self._waiting, self._let_go, self._then, self._bytes = [], Counter(), [], 0
        try:
            if self._cache is not None:
                with suppress(Exception):  # what is not kept is bought again
                    await asyncio.to_thread(self._cache.put_all, some)
        finally:
            for (journal, segment), count in let_go.items():
                journal.release(segment, count)
            for done in then:
                done()

"""The slices that are read into or wait for vectors: at most two at once, so that memory follows no input."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import InputChanged, InvariantBroken
from embedctl.planning.packer import PackedRequest
from embedctl.planning.planner import Planner
from embedctl.planning.slice import Slice
from embedctl.records import Outcome, RowCounts

OPEN_SLICES = 2

PLANNED_S = 0.1
"""What a block's rows have become is handed on after this time, while more of them are planned."""


class RowsDiffer(InputChanged):
    """The input holds other rows than the ones that an interrupted run has published."""


@dataclass(frozen=True, slots=True)
class PublishedSlice:
    """A slice that an interrupted run has published.

    Attributes:
        rows_hash: See `Slice.rows_hash`; None where an older version did not keep it.
    """

    counts: RowCounts
    rows_hash: str | None


class OpenSlices:
    """Reads and plans slice by slice, gives each outcome to its slice, and hands on slices that are complete, in order.

    Args:
        planned_width: Dimensions of the vectors as they are known before anything is asked; None: nobody knows.
        closes_on_failures: See `Slice.full`.
        published: Slice number → what an earlier, interrupted run published; it is passed over when it is read.
        see: Told every block of the input, in order, also those of slices that are published.
        rows: Counts what became of the rows of slices that were published before.

    Attributes:
        rows_planned: Rows read.
        texts_settled: Texts that have their outcome.
        texts_refused: That will have no vector.
        texts_published: Of slices that were published before.
        ended: The input is read to its end.
    """

    def __init__(
        self,
        planner: Planner,
        planned_width: int | None,
        closes_on_failures: Callable[[], bool],
        published: Callable[[int], PublishedSlice | None],
        see: Callable[[Any], None],
        rows: RowCounts,
    ) -> None:
        self._planner = planner
        self._planned_width = planned_width
        self._closes_on_failures = closes_on_failures
        self._published = published
        self._see = see
        self._open: deque[Slice] = deque()
        self._full = 0
        self._gate = asyncio.Semaphore(OPEN_SLICES)
        self._changed = asyncio.Event()
        self._handed_on: Slice | None = None
        self.ended = self._stopping = False
        self._rows = rows
        self.rows_planned = self._rows_published = 0
        self.texts_settled = self.texts_refused = self.texts_published = 0

    async def requests(self, blocks: Iterator[Any]) -> AsyncIterator[PackedRequest]:
        """Rows → chunks → requests; reading and planning go on in a thread, a block at a time."""
        number = await asyncio.to_thread(self._pass_published, blocks)
        slice_: Slice | None = None
        while (block := await asyncio.to_thread(self._next, blocks)) is not None:
            if slice_ is None:
                await self._gate.acquire()
                slice_ = self._planner.open_slice(number, block.first_row)
                self._open.append(slice_)
            planned, is_over = self._planner.take(block, slice_), False
            while not is_over:
                requests, is_over = await asyncio.to_thread(_some, planned)
                for request in self._asked_for(slice_, requests):
                    yield request
            if slice_.full(self._planned_width, closes_on_failures=self._closes_on_failures()):
                for request in self._close(slice_):
                    yield request
                slice_, number = None, number + 1
        if slice_ is not None:
            for request in self._close(slice_):
                yield request
        self.ended = True
        self._changed.set()

    def _pass_published(self, blocks: Iterator[Any]) -> int:
        """Read the rows of slices that are published; how many those are.

        Raises:
            RowsDiffer: They are not the rows that were published.
        """
        number = 0
        while (published := self._published(number)) is not None:
            passed = self._planner.open_slice(number, self.rows_planned)
            while passed.rows_read < published.counts.read and (block := self._next(blocks)) is not None:
                if published.rows_hash is None:
                    passed.rows_read += len(block)
                else:
                    self._planner.see(block, passed)
            same = published.rows_hash in (None, passed.rows_hash)
            if passed.rows_read != published.counts.read or not same:
                raise RowsDiffer(
                    f"the rows of part {number} are not those that were read for it",
                    hint="the input changed since the run was interrupted: run the same command again",
                )
            self._rows.add(published.counts)
            self.texts_published += published.counts.vectors
            self._rows_published = self.rows_planned
            number += 1
        return number

    def _next(self, blocks: Iterator[Any]) -> Any:
        """The next block; None at the end."""
        block = next(blocks, None)
        if block is not None:
            self.rows_planned += len(block)
            self._see(block)
        return block

    def _close(self, slice_: Slice) -> list[PackedRequest]:
        """The requests that were not full; the slice takes no more rows."""
        rest = self._asked_for(slice_, list(self._planner.close(slice_)))
        self._full += 1
        self._changed.set()
        return rest

    def _asked_for(self, slice_: Slice, requests: list[PackedRequest]) -> list[PackedRequest]:
        """Count the texts before they are asked for: a slice is complete when all of them have an outcome."""
        texts = sum(len(request.ordinals) for request in requests)
        slice_.pending += texts
        return requests

    def settle(self, outcome: Outcome) -> None:
        """Give an outcome to the slice that asked; a request holds the texts of one slice only."""
        first = outcome.targets[0]
        slice_ = next((one for one in reversed(self._open) if one.first_target <= first), None)
        if slice_ is None:
            raise InvariantBroken(f"no open slice has asked for text {first}")
        slice_.outcomes.append(replace(outcome, answer=None))  # its request holds the texts
        slice_.pending -= len(outcome.targets)
        self.texts_settled += len(outcome.targets)
        self.texts_refused += len(outcome.targets) if outcome.refusal is not None else 0
        if not slice_.pending:
            self._changed.set()

    async def complete(self) -> AsyncIterator[Slice]:
        """Complete slices, in order: all of the input's, or, told to stop, those that are complete by then."""
        while True:
            while self._full and not self._open[0].pending:
                self._full -= 1
                self._handed_on = self._open.popleft()
                yield self._handed_on
                self._handed_on = None
                self._gate.release()
            if (self.ended and not self._open) or self._stopping:
                return
            self._changed.clear()
            await self._changed.wait()

    @property
    def kept(self) -> int:
        """Vectors that the next run need not ask for, those of duplicates of open slices not counted."""
        handed_on = [self._handed_on] if self._handed_on is not None else []
        return self._rows.vectors + sum(slice_.kept for slice_ in [*handed_on, *self._open])

    @property
    def planned(self) -> tuple[int, int]:
        """Rows, and the texts that they have become."""
        rows, texts = self._planner.planned
        return self._rows_published + rows, self.texts_published + texts

    def stop(self) -> None:
        """Nothing more is read: `complete` ends with the slices that are complete by now."""
        self._stopping = True
        self._changed.set()


def _some(planned: Iterator[PackedRequest]) -> tuple[list[PackedRequest], bool]:
    """The requests of the next PLANNED_S seconds, and whether these were the last ones."""
    until, some = time.monotonic() + PLANNED_S, []
    for request in planned:
        some.append(request)
        if time.monotonic() >= until:
            return some, False
    return some, True

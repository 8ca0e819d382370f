"""The steps in order: start reading here.

    read ─▶ chunk ─▶ plan ─▶ call ─▶ journal ─▶ write
    blocks  chunks   requests answers  vectors   parts

Rows are read and planned in a thread, a block at a time; requests wait in a short queue; answers go to the journal; a
slot whose requests are all done is assembled and handed to the output in another thread. Nothing grows with the
input.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from embedctl.embedding.cached import CachedEmbedder
from embedctl.embedding.call import CallPoint, Piece
from embedctl.errors import EmbedctlError, InvariantBroken
from embedctl.journal import Journal, VectorRef
from embedctl.outputs import Finished, Output, assemble, parquet
from embedctl.outputs.assemble import Purchase, Purchases, Sources, tokens_array
from embedctl.outputs.parquet import Layout, Part
from embedctl.planning.packer import PackedRequest
from embedctl.planning.planner import Planner
from embedctl.planning.slice import Arrival, Slice, SliceIndex, resolve_duplicates
from embedctl.records import RowCounts
from embedctl.runs.receipt import Progress
from embedctl.runs.stop import StopSignal

OPEN_SLICES = 2
"""Slots that may be read into or waiting for vectors at once."""

DRAIN_S = 15.0
"""How long answers in flight are waited for when a run is told to stop; then complete slots, for PUBLISH_S."""

PUBLISH_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What the pipeline is made of.

    Attributes:
        blocks: Step 1; read in a thread.
        intake: Steps 2 and 3.
        call, recall: Step 4, and what saves some of it.
        journal: Step 5.
        output: Step 6.
        done: Slot number → rows and counts of a part that an earlier, interrupted run published.
        layout: Width → how the output looks.
        facts: Rows written and rows read → metadata of a part or file.
        dimensions: Width of the vectors where it is known before the first answer.
        parts: Parts whose vectors may be reused: older ones, then those of this run.
        segments: Numbers of the journal's segments, those of an interrupted run first.
        see: Told every block of the input, in order, also those of slots that are done.
        watch: Told how far the run is, after each request.
    """

    blocks: Iterator[Any]
    intake: Planner
    call: CallPoint
    recall: CachedEmbedder
    journal: Journal
    output: Output
    purchases: Purchases
    parts: list[Part]
    segments: Segments
    done: Callable[[int], RowCounts | None]
    layout: Callable[[int], Layout]
    facts: Callable[[int, RowCounts], bytes]
    dimensions: int | None
    concurrency: int
    see: Callable[[Any], None] = lambda block: None
    watch: Callable[[Progress], None] = lambda headway: None


class Segments:
    """Numbers for the journal's segment ids, as slots keep them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.ids: list[str] = []

    def number(self, segment_id: str) -> int:
        """The number of a segment; a new one when it was not seen before."""
        if segment_id not in self._numbers:
            self._numbers[segment_id] = len(self.ids)
            self.ids.append(segment_id)
        return self._numbers[segment_id]


class Pipeline:
    """One run's flow, from blocks to the finished output."""

    def __init__(self, steps: Steps, stop: StopSignal) -> None:
        self._is = steps
        self._stop = stop
        self._queue: asyncio.Queue[tuple[PackedRequest, Slice] | None] = asyncio.Queue(steps.concurrency)
        self._open: deque[Slice] = deque()
        self._gate = asyncio.Semaphore(OPEN_SLICES)
        self._complete = asyncio.Event()
        self._finished: set[int] = set()
        self._next_request = 0
        self._busy: set[asyncio.Task[None] | None] = set()
        self._read_all = False
        self._history = SliceIndex()
        self._rows_planned = 0
        self._texts_open = 0
        self.rows = RowCounts()

    async def run(self) -> RowCounts:
        """Everything, until the input is done or the run is told to stop.

        Raises:
            EmbedctlError: Why it stopped; complete slots have been handed over, everything paid for is in the journal.
        """
        workers = [asyncio.create_task(self._work()) for _ in range(self._is.concurrency)]
        publisher = asyncio.create_task(self._publish())
        planner = asyncio.create_task(self._plan())
        tasks = (planner, *workers, publisher)
        everything = asyncio.gather(*tasks)
        stopping = asyncio.create_task(self._stop.asked.wait())
        try:
            await asyncio.wait((everything, stopping), return_when=asyncio.FIRST_COMPLETED)
            if self._stop.asked.is_set():
                await self._drain(planner, workers, publisher)
            else:
                everything.result()
        finally:
            stopping.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(stopping, everything, *tasks, return_exceptions=True)
        if self._stop.reason is not None:
            raise self._stop.reason
        self.rows.check()
        return self.rows

    async def _drain(
        self, planner: asyncio.Task[None], workers: list[asyncio.Task[None]], publisher: asyncio.Task[None]
    ) -> None:
        """Send nothing new; wait for what was sent, and hand over the slots that are complete."""
        planner.cancel()
        for worker in workers:
            if worker not in self._busy:
                worker.cancel()
        await asyncio.wait(workers, timeout=DRAIN_S)
        self._read_all = True
        self._complete.set()
        await asyncio.wait((publisher,), timeout=PUBLISH_S)

    async def _plan(self) -> None:
        """Steps 1 to 3: blocks become slots and requests."""
        try:
            await self._plan_slices()
        except EmbedctlError as error:
            self._stop.because(error)
            return
        self._read_all = True
        self._complete.set()
        for _ in range(self._is.concurrency):
            await self._queue.put(None)

    async def _plan_slices(self) -> None:
        slice_: Slice | None = None
        number, skip = 0, 0
        while (block := await asyncio.to_thread(self._next_block)) is not None:
            self._rows_planned += len(block)
            if skip:
                skip -= len(block)
                continue
            if slice_ is None:
                if done := self._is.done(number):  # published before the run was interrupted
                    self.rows.add(done)
                    number, skip = number + 1, done.read - len(block)
                    continue
                await self._gate.acquire()
                slice_ = self._is.intake.open_slice(number, block.first_row)
            await self._send(await asyncio.to_thread(self._taken, block, slice_), slice_)
            if slice_.full(self.width):
                await self._close(slice_)
                slice_, number = None, number + 1
        if slice_ is not None:
            await self._close(slice_)

    def _next_block(self) -> Any:
        """The next block; None at the end."""
        block = next(self._is.blocks, None)
        if block is not None:
            self._is.see(block)
        return block

    def _taken(self, block: Any, slice_: Slice) -> list[PackedRequest]:
        return list(self._is.intake.take(block, slice_))

    async def _send(self, requests: list[PackedRequest], slice_: Slice) -> None:
        self._texts_open += sum(len(packed.ordinals) for packed in requests)
        for packed in requests:
            await self._queue.put((packed, slice_))

    async def _close(self, slice_: Slice) -> None:
        rest = list(self._is.intake.close(slice_))
        self._open.append(slice_)
        await self._send(rest, slice_)
        self._complete.set()

    async def _work(self) -> None:
        """Step 4: one request after the other."""
        this = asyncio.current_task()
        while not self._stop.asked.is_set() and (taken := await self._queue.get()) is not None:
            packed, slice_ = taken
            self._busy.add(this)
            try:
                await self._fulfil(packed, slice_)
            except EmbedctlError as error:
                self._stop.because(error)
                return
            finally:
                self._busy.discard(this)
            self._texts_open -= len(packed.ordinals)
            self._is.watch(self.headway)
            self._finished.add(packed.number)
            while self._next_request in self._finished:
                self._finished.remove(self._next_request)
                self._next_request += 1
            self._complete.set()
            del taken, packed, slice_  # who waits for the next request keeps no published slot in memory

    async def _fulfil(self, packed: PackedRequest, slice_: Slice) -> None:
        """One request; its answer is let go of here, not kept until the next one has come."""
        for ordinals, piece in await self._is.recall.embed(packed):
            self._arrive(ordinals, piece, slice_)

    def _arrive(self, ordinals: Sequence[int], piece: Piece, slice_: Slice) -> None:
        if piece.answer is None:
            slice_.arrivals.append(Arrival(ordinals=ordinals, refusal=piece.refusal))
            return
        place: VectorRef = piece.place
        file = self._is.segments.number(place.segment)
        answer = piece.answer
        self._is.purchases.add(
            file,
            Purchase(
                place.offset,
                place.count,
                answer.model,
                answer.provider,
                answer.request.operation_id,
                tokens_array(answer.tokens_each),
            ),
        )
        slice_.arrivals.append(
            Arrival(ordinals=ordinals, file=file, offset=place.offset, width_bytes=place.dimensions * 4)
        )

    async def _publish(self) -> None:
        """Step 6: complete slots, in order."""
        while True:
            await self._complete.wait()
            self._complete.clear()
            while self._open and self._next_request > self._open[0].last_request:
                try:
                    await self._hand_over(self._open.popleft())
                except EmbedctlError as error:
                    self._stop.because(error)
                    return
                self._gate.release()
            if self._read_all and (not self._open or self._stop.asked.is_set()):
                return

    async def _hand_over(self, slice_: Slice) -> None:
        await self._is.journal.sync()
        self.rows.add(await asyncio.to_thread(self._assemble, slice_, self.width))
        self.rows.reused = self._is.intake.reused + self._is.recall.hits
        self.rows.duplicates = self._is.intake.duplicates
        if not self._is.output.keeps_journal:
            self._release(slice_)
        self._is.watch(self.headway)

    def _assemble(self, slice_: Slice, width: int | None) -> RowCounts:
        """A complete slot → the output; what became of its rows."""
        slice_.settle()
        resolve_duplicates(slice_, self._history)
        rows = parquet.joined(slice_.batches)
        ids = rows.column("id").to_pylist() if rows is not None else []
        indexes = rows.column("chunk_index").to_pylist() if rows is not None else []
        failed, kept = assemble.failures(slice_, ids, indexes)
        counts = assemble.counts(slice_, failed, kept)
        layout = self.layout(width) if width is not None else None
        if layout is None and slice_.targets:
            raise InvariantBroken(f"slot {slice_.number} is complete, but no vector says how wide it is")
        tables, same = iter(()), None
        if layout is not None and rows is not None:
            sources = Sources(self._read_journal, self._is.purchases, self._is.parts, self._is.journal.release_pages)
            tables = assemble.tables(slice_, rows, kept, layout, sources)
            same = assemble.same_part(slice_, rows, kept, counts, layout, self._is.parts)
        finished = Finished(
            number=slice_.number,
            tables=tables,
            layout=layout,
            facts=lambda count: self._is.facts(count, counts),
            failed=failed,
            same_as=same,
        )
        path = self._is.output.put(finished)
        if path is not None and width is not None:
            self._is.parts.append(Part(path, width))
        self._history.add(slice_, None if path is None else len(self._is.parts) - 1)
        return counts

    def _read_journal(self, file: int, offset: int, count: int, dimensions: int) -> Any:
        return self._is.journal.read(VectorRef(self._is.segments.ids[file], offset, count, dimensions))

    def _release(self, slice_: Slice) -> None:
        """The slot's vectors stand in a part: the journal may let go of them."""
        for arrival in slice_.arrivals:
            if arrival.refusal is None:
                needed = slice_.only_averaged(arrival.ordinals)
                self._is.journal.release(self._is.segments.ids[arrival.file], len(arrival.ordinals) - needed)
                if not needed:
                    self._is.purchases.drop(arrival.file, arrival.offset)

    def layout(self, width: int) -> Layout:
        """How the output looks with vectors of this width."""
        return self._is.layout(width)

    @property
    def headway(self) -> Progress:
        """How far it is by now."""
        return Progress(rows=max(0, self._rows_planned - self._texts_open), in_flight=len(self._busy))

    @property
    def width(self) -> int | None:
        """Of the vectors; None while nobody knows."""
        return self._is.call.space.dimensions if self._is.call.space else self._is.dimensions

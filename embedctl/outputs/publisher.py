"""Step 6. Complete slices → the output: a part each in a folder, rows of one file, or lines of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedctl.errors import InvariantBroken
from embedctl.journal import Journal
from embedctl.outputs import assemble, parquet
from embedctl.outputs.assemble import Purchase, Purchases, SegmentNumbers, Sources, tokens_array
from embedctl.outputs.output import Finished, Output
from embedctl.outputs.parquet import Layout, Part
from embedctl.planning.slice import Slice, SliceIndex, resolve_duplicates
from embedctl.records import Outcome, RowCounts, VectorRef

Facts = Callable[[int, RowCounts, str | None], bytes]
"""Rows written, what became of the rows read for them, and the hash of those → metadata of a part or file."""


class Publisher:
    """Publishes one slice after the other, and lets go of what the journal need not keep for it.

    Args:
        parts: Parts whose vectors may be taken: older ones; those of this run are added.
        width: Dimensions of the vectors; None while nobody knows.
        layout: Dimensions → how the output looks.
    """

    def __init__(
        self,
        journal: Journal,
        output: Output,
        *,
        purchases: Purchases,
        segments: SegmentNumbers,
        parts: list[Part],
        width: Callable[[], int | None],
        layout: Callable[[int], Layout],
        facts: Facts,
    ) -> None:
        self._journal = journal
        self._output = output
        self._purchases = purchases
        self._segments = segments
        self._parts = parts
        self._width = width
        self._layout = layout
        self._facts = facts
        self._index = SliceIndex()

    def bought(self, outcome: Outcome) -> None:
        """Remember who made the vectors of an outcome."""
        answer, ref = outcome.answer, outcome.ref
        if answer is not None and ref is not None:
            tokens = tokens_array(answer.tokens_each)
            operation = answer.request.operation_id
            purchase = Purchase(ref.offset, ref.count, answer.model, answer.provider, operation, tokens)
            self._purchases.add(self._segments.number(ref.segment), purchase)

    async def publish(self, slice_: Slice) -> RowCounts:
        """Put a complete slice into the output; what became of its rows. In a thread.

        Raises:
            OutputRefused, StorageFailed: It could not be put; its vectors stay in the journal.
        """
        await self._journal.sync()
        counts = await asyncio.to_thread(self._put, slice_)
        if not self._output.keeps_journal:
            self._release(slice_)
        return counts

    def _put(self, slice_: Slice) -> RowCounts:
        slice_.settle(self._segments.number)
        resolve_duplicates(slice_, self._index)
        rows = parquet.joined(slice_.batches)
        failed, kept = assemble.failures(slice_, rows)
        counts = assemble.counts(slice_, failed, kept)
        width = self._width()
        if width is None and slice_.targets:
            raise InvariantBroken(f"slice {slice_.number} is complete, but no vector says how wide it is")
        layout, tables, same = None, iter(()), None
        if width is not None:
            layout = self._layout(width)
        if layout is not None and rows is not None:
            sources = Sources(self._read_journal, self._purchases, self._parts, self._journal.release_pages)
            tables = assemble.tables(slice_, rows, kept, layout, sources)
            same = assemble.same_part(slice_, rows, kept, counts, layout, self._parts)
        path = self._output.put(
            Finished(
                number=slice_.number,
                tables=tables,
                layout=layout,
                facts=lambda written: self._facts(written, counts, slice_.rows_hash),
                failed=failed,
                same_as=same,
            )
        )
        self._index.add(slice_, self._part(path, width))
        return counts

    def _part(self, path: Path | None, width: int | None) -> int | None:
        """The number of the part that a slice became, where it became one."""
        if path is None:
            return None
        if width is not None:
            self._parts.append(Part(path, width))
        return len(self._parts) - 1

    def _read_journal(self, file: int, offset: int, count: int, dimensions: int) -> Any:
        return self._journal.read(VectorRef(self._segments.ids[file], offset, count, dimensions))

    def _release(self, slice_: Slice) -> None:
        """The slice's vectors stand in a part: the journal may let go of them."""
        for outcome in slice_.outcomes:
            if (ref := outcome.ref) is not None:
                needed = slice_.only_averaged(outcome.targets)
                self._journal.release(ref.segment, len(outcome.targets) - needed)
                if not needed:
                    self._purchases.drop(self._segments.number(ref.segment), ref.offset)

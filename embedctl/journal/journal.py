"""Step 5. What is known, durably, before anything else happens: one run's write-ahead record.

    intent ─▶ send ─▶ outcome or answer ─▶ spool file, part ─▶ segment removed

An intent is on the disk before its request is sent. An answer's vectors and its usage stand in one frame, so that
neither is there without the other. A segment goes only when its events are in the spool and its vectors in parts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from embedctl.errors import InvariantBroken
from embedctl.journal import frames
from embedctl.journal.commands import Append, Close, Release, Seal, Spool, Sync
from embedctl.journal.recovery import Recovered, RecoveredSegment
from embedctl.journal.segments import Segment, Views
from embedctl.journal.writer import Writer
from embedctl.records import TEXT_HASH_BYTES, UsageEvent, VectorRef
from embedctl.storage import DISK, Disk, check_own_folder, remove_leftovers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FRAME_BYTES = 4096
"""Room kept for what an answer's frame holds beside vectors and hashes."""


class Turnstile(Protocol):
    """Between an intent that lasts and its request: while many intents are on their way, few requests are.

    Attributes:
        stock: Intents that are written and not sent: while there are so many, others wait to be written together.
        gather_s: How long they wait at most: who may be sent at once, when many answers come at once, must be written.
    """

    stock: int
    gather_s: float

    async def enter(self) -> None:
        """Returns when the request may be sent.

        Raises:
            EmbedctlError: It may not be.
        """

    def leave(self, ref: VectorRef | None = None) -> None:
        """A request is over; where its answer is, if it brought one."""


class Journal:
    """One run's record in one folder, under the lock of the run's output. For one event loop."""

    def __init__(self, writer: Writer, views: Views, dimensions: int, turnstile: Turnstile | None = None) -> None:
        self._writer = writer
        self._views = views
        self._dimensions = dimensions
        self._turnstile = turnstile
        self._entered: set[UUID] = set()
        self._gathered: dict[UUID, Append] = {}
        self._ready = 0
        self._closing: asyncio.Future[VectorRef | None] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        secret: bytes,
        spool: Spool,
        recovered: Recovered | None = None,
        disk: Disk = DISK,
        sync_intents: bool = True,
        segment_bytes: int = 64 << 20,
        segment_s: float = 30.0,
        dimensions: int = 0,
        clock: Callable[[], float] = time.monotonic,
        copies: Path | None = None,
        at_once_bytes: int = 0,
        turnstile: Turnstile | None = None,
    ) -> Journal:
        """Begin a new record, and take over what `recover` found in the folder.

        Taken-over segments are spooled at once, `read` and `release` work for them, and nothing is ever added to
        them. Without `recovered` they are left alone.

        Args:
            secret: Makes frames evidence; see `trust.home_secret`.
            spool: Called in a thread of the journal, once per segment.
            sync_intents: Off when loss of power need not be thought of; what costs nothing is not waited for anyhow.
            dimensions: Width of the vectors where known, to keep room on the disk for the first answers.
            copies: A folder of the home in which intents and usage events stand, too, until they are in the spool;
                None where the journal is in the home itself.
            at_once_bytes: Groups of frames up to this size are written in the loop's own thread while the disk is
                quick and nothing is to be synced; 0: all are written in a thread of the journal.
            turnstile: Of a `disk` that is far away, where to sync takes long: intents are synced side by side with what
                is written, and their requests enter one by one.

        Raises:
            OutputRefused: A folder cannot be made.
            StorageFailed: The disk refused.
        """
        disk.make_folder(folder)
        remove_leftovers(disk, folder)
        if copies is not None:
            check_own_folder(copies)
            disk.make_folder(copies)
        views = Views(folder)
        for answer in () if recovered is None else recovered.answers:
            place = answer.place
            size = place.count * place.dimensions * 4
            views.expect(place.segment, answer.file, place.offset, size, answer.checksum)
        taken = () if recovered is None else recovered.segments
        for path in () if recovered is None else recovered.remains:
            disk.unlink(path)
        writer = Writer(
            folder,
            disk=disk,
            secret=secret,
            spool=spool,
            sync_intents=sync_intents,
            segment_bytes=segment_bytes,
            segment_s=segment_s,
            clock=clock,
            views=views,
            segments=[_taken_over(folder, segment) for segment in taken],
            copies=copies,
            at_once_bytes=at_once_bytes,
            far=turnstile is not None,
        )
        return cls(writer, views, dimensions, turnstile)

    @property
    def failed(self) -> bool:
        """Whether something could not be written: nothing more may be sent."""
        return self._writer.failure is not None

    @property
    def open_intents(self) -> int:
        """Attempts that have begun, as far as they are written down, and have not ended."""
        return self._writer.open_intents

    async def intend(self, event: UsageEvent) -> None:
        """An attempt is about to be sent; it may be once this has returned, and not before.

        When this is cancelled, the attempt counts as never sent.

        Raises:
            StorageFailed: It could not be written, or something earlier could not: nothing more may be sent.
        """
        vector_bytes = TEXT_HASH_BYTES + self._dimensions * 4
        room = event.input_count * vector_bytes + _FRAME_BYTES
        entry = Append(frames.draft("intent", event), _waiter(), room)
        if self._turnstile is not None:
            await self._sent_in_turn(self._turnstile, entry, event)
            return
        try:
            await self._written(entry)
        except asyncio.CancelledError:
            self._never_sent(event)
            raise

    async def _sent_in_turn(self, turnstile: Turnstile, entry: Append, event: UsageEvent) -> None:
        """Write it together with others as long as enough are ready to be sent, and wait for its turn."""
        if not self._gathered:
            asyncio.get_running_loop().call_later(turnstile.gather_s, self._put_gathered, None)
        self._gathered[event.event_id] = entry
        self._put_gathered(turnstile.stock)
        is_written = False
        try:
            await entry.waiter
            is_written = True
            await turnstile.enter()
            self._entered.add(event.event_id)
        except BaseException as error:
            if is_written or (isinstance(error, asyncio.CancelledError) and event.event_id not in self._gathered):
                self._never_sent(event)
            raise
        finally:
            if self._gathered.pop(event.event_id, None) is None:
                self._ready -= 1
                self._put_gathered(turnstile.stock)

    def _put_gathered(self, stock: int | None) -> None:
        """Hand the gathered ones over when fewer than `stock` are ready, or at once."""
        if self._gathered and (stock is None or self._ready < stock):
            entries = list(self._gathered.values())
            self._gathered.clear()
            self._ready += len(entries)
            self._put(*entries)

    def _never_sent(self, event: UsageEvent) -> None:
        never = replace(event, status="cancelled", billable="no", error_class="not_sent", tokens_total=0)
        self._put(Append(frames.draft("outcome", never), _waiter()))

    def _leave(self, event: UsageEvent, ref: VectorRef | None = None) -> None:
        if self._turnstile is not None and event.event_id in self._entered:
            self._entered.discard(event.event_id)
            self._turnstile.leave(ref)

    async def note(self, event: UsageEvent) -> None:
        """Something that is over already and was never sent: begun and ended in one write.

        Raises:
            StorageFailed: It could not be written.
        """
        begun, ended = (Append(frames.draft(kind, event), _waiter()) for kind in ("intent", "outcome"))
        if not self._writer.write_now(begun, ended):
            self._put(begun, ended)
        try:
            await begun.waiter
        finally:
            if ended.waiter.done():
                _heard(ended.waiter)
        await ended.waiter

    async def settle(self, event: UsageEvent) -> None:
        """An attempt has ended without vectors; `event` has the intent's id.

        Raises:
            StorageFailed: It could not be written; after recovery the attempt counts as interrupted.
            InvariantBroken: There is no such intent, or it has ended already.
        """
        try:
            await self._written(Append(frames.draft("outcome", event), _waiter()))
        finally:
            self._leave(event)

    async def answer(
        self,
        event: UsageEvent,
        hashes: bytes,
        vectors: NDArray[np.float32],
        tokens_each: Sequence[int] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> VectorRef:
        """An attempt has brought vectors; they are safe from the death of this process once this has returned.

        From loss of power they are safe a second later, or after `sync`.

        Args:
            hashes: One 16-byte text hash per vector.
            vectors: float32, shape (n, D), C order; not to be changed until this has returned. Written as they lie.

        Raises:
            StorageFailed: They could not be written; after recovery the attempt counts as interrupted.
            InvariantBroken: There is no such intent, it has ended already, or the arguments do not belong together.
        """
        draft = frames.draft_answer(event, hashes, vectors, tokens_each, extra)
        self._dimensions = max(self._dimensions, vectors.shape[1])
        place = None
        try:
            place = await self._written(Append(draft, _waiter()))
        finally:
            self._leave(event, place)
        if place is None:
            raise InvariantBroken("an answer was written nowhere")
        return place

    async def collect(
        self,
        event: UsageEvent,
        hashes: bytes = b"",
        vectors: NDArray[np.float32] | None = None,
        tokens_each: Sequence[int] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> VectorRef | None:
        """A line of a batch has ended, with vectors or (None) without; its batch was its intent.

        Arguments as of `answer`. Whoever collects a batch twice gives a line the same event id.

        Raises:
            StorageFailed: It could not be written: the batch is not collected.
        """
        draft = frames.draft_collected(event, hashes, vectors, tokens_each, extra)
        return await self._written(Append(draft, _waiter(), 0 if vectors is None else draft.most_bytes))

    def read(self, place: VectorRef) -> NDArray[np.float32]:
        """Vectors of this run or a taken-over one: float32, shape (n, D), read-only, mapped from the file.

        From any thread. An answer's checksum is verified when something of it is first read.

        Raises:
            StorageFailed: The segment is gone, or is not what was written.
        """
        return self._views.read(place)

    def release_pages(self) -> None:
        """What was read so far is not read again soon: memory it took may be given back; arrays stay valid."""
        self._views.release_pages()

    def release(self, segment_id: str, vectors: int | None = None) -> None:
        """So many vectors of a segment stand in published parts, or nobody needs them.

        The segment is removed when all of them do and its events are in the spool.

        Args:
            vectors: How many more than said before; None for all that the segment has by now.
        """
        self._writer.put(Release(segment_id, vectors))

    async def sync(self) -> None:
        """Everything written so far is on the disk when this returns: to be called before a part is published.

        Raises:
            StorageFailed: It may not be.
        """
        waiter = _waiter()
        waiter.add_done_callback(_heard)
        self._writer.put(Sync(waiter))
        await waiter

    async def seal(self) -> float | None:
        """What has ended by now is in the spool when this returns, but for what shares a segment with what has not.

        Returns:
            When the oldest segment began that is held up so, by the journal's clock; None: there is none.

        Raises:
            EmbedctlError: The journal has failed, or is closed.
        """
        command = Seal(_waiter())
        self._writer.put(command)
        await command.waiter
        return command.held_since

    async def close(self, *, published: bool = False) -> None:
        """Hand everything to the spool and end. Attempts nobody ended count as interrupted. May be called twice.

        Args:
            published: No vector is needed any more: nothing is left in the folder.

        Raises:
            StorageFailed: Something could not be synced, spooled or removed; recovery will do it.
        """
        if self._closing is None:
            self._closing = _waiter()
            self._closing.add_done_callback(_heard)
            self._writer.put(Close(self._closing, published))
        await asyncio.shield(self._closing)

    async def _written(self, entry: Append) -> VectorRef | None:
        if not self._writer.write_now(entry):
            self._put(entry)
        return await entry.waiter

    def _put(self, *entries: Append) -> None:
        """Hand over. Errors nobody hears any more (the caller was cancelled) are not reported twice."""
        for entry in entries:
            entry.waiter.add_done_callback(_heard)
        self._writer.put(*entries)


def _taken_over(folder: Path, found: RecoveredSegment) -> Segment:
    return Segment(
        segment_id=found.segment_id,
        folder=folder,
        names=found.names,
        sealed=True,
        events=list(found.events),
        vectors=found.vectors,
    )


def _waiter() -> asyncio.Future[VectorRef | None]:
    """What the writer answers."""
    return asyncio.get_running_loop().create_future()


def _heard(waiter: asyncio.Future[VectorRef | None]) -> None:
    if not waiter.cancelled():
        waiter.exception()

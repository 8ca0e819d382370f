"""The thread that writes a journal, and the one that syncs, spools and removes behind it.

Only the writer thread touches segments; the keeper does what takes long and reports back through the same queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from uuid import UUID

from embedctl.errors import EmbedctlError, InvariantBroken, StorageFailed
from embedctl.journal import frames
from embedctl.journal.commands import (
    Append,
    Close,
    Command,
    Done,
    Release,
    Result,
    Seal,
    Spool,
    Sync,
    answer,
    resolve,
    waiter_of,
)
from embedctl.journal.recovery import interrupted
from embedctl.journal.segments import Log, Segment, Views
from embedctl.records import VectorRef
from embedctl.storage import Disk

_Begun = tuple[Segment, list[Append]]

_SLOW_S = 0.02
"""A disk that took longer for a small frame is left to the writer's thread for `_LEFT_S`."""

_LEFT_S = 1.0

SYNC_AFTER_S = 1.0
"""How long an answer may be only in the system's memory."""


class Writer:
    """Writes what it is given in groups: one write and at most one sync for all that came meanwhile."""

    def __init__(
        self,
        folder: Path,
        *,
        disk: Disk,
        secret: bytes,
        spool: Spool,
        sync_intents: bool,
        segment_bytes: int,
        segment_s: float,
        clock: Callable[[], float],
        views: Views,
        segments: Iterable[Segment] = (),
        copies: Path | None = None,
        at_once_bytes: int = 0,
        far: bool = False,
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._secret = secret
        self._spool = spool
        self._sync_intents = sync_intents
        self._segment_bytes = segment_bytes
        self._segment_s = segment_s
        self._clock = clock
        self._views = views
        self._copies = copies
        self._at_once_bytes = at_once_bytes
        self._left_until = 0.0
        self._house = threading.Lock()  # held by whoever touches segments
        self._segments = {segment.segment_id: segment for segment in segments}
        self._current: Segment | None = None
        self._where: dict[UUID, Segment] = {}
        self._queue: SimpleQueue[tuple[Command, ...]] = SimpleQueue()
        self._group: list[Command] = []
        self._dirty_since: float | None = None
        self._jobs = 0
        self._stop: Close | None = None
        self._unheard: EmbedctlError | None = None
        self.failure: BaseException | None = None
        self.ended = False
        self._keeper = ThreadPoolExecutor(1, "journal-keeper")
        self._lane = ThreadPoolExecutor(1, "journal-lane") if far else None
        self._unsynced: list[_Begun] = []
        threading.Thread(target=self._run, name="journal-writer", daemon=True).start()

    def put(self, *commands: Command) -> None:
        """Hand over, to be written in one group; what comes after the end is refused."""
        self._queue.put(commands)
        if self.ended:
            self._refuse_rest()

    def write_now(self, *entries: Append) -> bool:
        """Write small frames in the caller's thread, which is the loop's: to wake another one takes ten times as long.

        False where they must be handed over: they are to be synced or are large, the disk is slow, or the writer is
        at work and others wait for it.
        """
        if not self._at_once_bytes or not self._queue.empty() or not self._house.acquire(blocking=False):
            return False
        try:
            began = self._clock()
            if not self._is_small(entries, began):
                return False
            clean = self._dirty_since is None
            results, _ = self._commit(list(entries))
            if self._clock() - began > _SLOW_S:
                self._left_until = self._clock() + _LEFT_S
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._house.release()
        resolve(results)
        if clean:
            self.put()  # it plans when to sync
        return True

    def _is_small(self, entries: Sequence[Append], now: float) -> bool:
        if now < self._left_until or self.ended or self._stop or self.failure:
            return False
        current = self._current
        for entry in entries:
            begins = entry.draft.kind == "intent"
            if begins and (current is None or self._is_full(current, entry.answer_bytes) or self._must_sync(entry)):
                return False
        return sum(entry.draft.most_bytes for entry in entries) <= self._at_once_bytes

    # the writer thread

    def _run(self) -> None:
        try:
            with self._house:
                self._keep_house()
            while not self._done():
                self._group = self._taken()
                with self._house:
                    results, begun = self._commit([command for command in self._group if isinstance(command, Append)])
                answer(results)
                if self._lane is None:
                    self._sync_begun(begun)
                elif begun:
                    self._sync_in_lane(self._lane, begun)
                with self._house:
                    for command in self._group:
                        self._obey(command)
                    self._group = []
                    self._keep_house()
        except BaseException as error:  # whoever waits must learn of it, whatever it is
            self.failure = error
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self.ended = True
        if error is not None:
            answer([(waiter, None, error) for command in self._group if (waiter := waiter_of(command))])
        self._refuse_rest()
        for segment in self._segments.values():
            segment.unmark()
        if self._stop is not None:
            answer([(self._stop.waiter, None, error or self._unheard)])
        with suppress(RuntimeError):  # last: no thread may be to be had for it, and nobody may wait for ever
            for segment in list(self._segments.values()):
                self._keeper.submit(segment.close)  # not here: it may be syncing one of them
        self._keeper.shutdown(wait=False)
        if self._lane is not None:
            self._lane.shutdown(wait=False)

    def _refuse_rest(self) -> None:
        error = self.failure or InvariantBroken("the journal is closed")
        while True:
            try:
                refused = self._queue.get_nowait()
            except Empty:
                return
            answer([(waiter, None, error) for command in refused if (waiter := waiter_of(command))])

    def _done(self) -> bool:
        return self._stop is not None and self._jobs == 0 and self._queue.empty()

    def _taken(self) -> list[Command]:
        """Everything that waits now; nothing when it is time to keep house."""
        group: list[Command] = []
        try:
            group += self._queue.get(timeout=self._patience_s())
            while True:
                group += self._queue.get_nowait()
        except Empty:
            return group

    def _patience_s(self) -> float | None:
        now, dues = self._clock(), []
        if self._dirty_since is not None:
            dues.append(self._dirty_since + SYNC_AFTER_S)
        if self._current is not None and self._current.events:
            dues.append(self._current.opened_at + self._segment_s)
        return max(0.01, min(dues) - now) if dues else None

    def _obey(self, command: Command) -> None:
        match command:
            case Release(segment_id, vectors):
                segment = self._segments.get(segment_id)
                if segment is not None:
                    segment.released = segment.vectors if vectors is None else segment.released + vectors
            case Sync(waiter):
                self._sync_behind(waiter)
            case Seal(waiter):
                if self._current is not None and self._current.events:
                    self._current.sealed, self._current = True, None
                held = [one.opened_at for one in self._segments.values() if one.events and not one.idle]
                command.held_since = min(held, default=None)
                self._keep_house()
                self._behind(partial(answer, [(waiter, None, None)]), _nothing)
            case Close():
                self._stop = command
                self._finish(published=command.published)
            case Done(then, error):
                self._jobs -= 1
                if error is None:
                    then()
                elif isinstance(error, EmbedctlError):
                    self.failure = self._unheard = error
                else:
                    raise error

    # frames

    def _commit(self, entries: list[Append]) -> tuple[list[Result], list[_Begun]]:
        """Write a group. What has ended comes first: it needs the space more than what has not begun.

        Returns:
            What became of it, but for intents that still have to be synced: those.
        """
        results: list[Result] = []
        unsynced: list[_Begun] = []
        if not entries:
            return results, unsynced
        intents = [entry for entry in entries if entry.draft.kind == "intent"]
        begun = {entry.event_id for entry in intents}
        ends = [entry for entry in entries if entry.draft.kind != "intent" and not entry.draft.alone]
        self._commit_collected([entry for entry in entries if entry.draft.alone], results)
        self._commit_ends([entry for entry in ends if entry.event_id not in begun], results)
        self._commit_intents(intents, results, unsynced)
        self._commit_ends([entry for entry in ends if entry.event_id in begun], results)  # cancelled at once
        if self._dirty_since is None:
            self._dirty_since = self._clock()
        return results, unsynced

    def _commit_ends(self, entries: list[Append], results: list[Result]) -> None:
        logs: dict[Path, tuple[Segment, Log, list[Append]]] = {}
        for entry in entries:
            segment = self._where.pop(entry.event_id, None)
            log = None
            if segment is not None:
                log = segment.intents if entry.draft.vectors is None else segment.answers
            if segment is None or log is None:
                error = InvariantBroken(f"attempt {entry.event_id} ends without an intent, or twice")
                results.append((entry.waiter, None, error))
            else:
                logs.setdefault(log.path, (segment, log, []))[2].append(entry)
        for segment, log, ended in logs.values():
            try:
                self._append_ends(segment, log, ended, results)
            except StorageFailed as error:
                self.failure = error
                for entry in ended:  # one by one: room was kept for some of them at least
                    try:
                        self._append_ends(segment, log, [entry], results)
                    except StorageFailed as again:
                        self._where[entry.event_id] = segment
                        results.append((entry.waiter, None, again))

    def _commit_collected(self, entries: list[Append], results: list[Result]) -> None:
        """Ends that no intent announced."""
        for entry in entries:
            try:
                if self._stop is not None:
                    raise InvariantBroken("the journal is closed")
                if self.failure is not None:
                    raise _refusal(self.failure)
                segment = self._segment_for(entry.answer_bytes)
                log = segment.intents if entry.draft.vectors is None else segment.answers
                if log is None:
                    raise InvariantBroken("a line was collected into a segment of a dead process")
                segment.expect(entry.draft.event, 0)
                try:
                    self._append_ends(segment, log, [entry], results)
                except StorageFailed:
                    segment.forget(entry.event_id)
                    raise
            except EmbedctlError as error:
                self.failure = self.failure or error
                results.append((entry.waiter, None, error))

    def _append_ends(self, segment: Segment, log: Log, entries: list[Append], results: list[Result]) -> None:
        drafts = [entry.draft for entry in entries]
        placed = log.append(drafts)
        try:
            segment.copy_ends(drafts)
        except StorageFailed as error:  # what was answered is safe all the same; nothing more is sent
            self.failure = error
        for entry, frame in zip(entries, placed, strict=True):
            segment.arrived(entry.draft.event)
            place, vectors = None, entry.draft.vectors
            if vectors is not None:
                place = VectorRef(segment.segment_id, frame.vectors_at, *vectors.shape)
                self._views.expect(place.segment, log.path.name, place.offset, vectors.nbytes, frame.checksum)
                segment.vectors += place.count
            results.append((entry.waiter, place, None))

    def _commit_intents(self, entries: list[Append], results: list[Result], unsynced: list[_Begun]) -> None:
        while entries:
            try:
                if self._stop is not None:
                    raise InvariantBroken("the journal is closed")
                if self.failure is not None:
                    raise _refusal(self.failure)
                segment = self._segment_for(entries[0].answer_bytes)
                begun = [entries[0]]
                for entry in entries[1:]:
                    more = sum(other.answer_bytes for other in begun) + entry.answer_bytes
                    if segment.written_bytes + more > self._segment_bytes:
                        break
                    begun.append(entry)
                self._append_intents(segment, begun)
            except EmbedctlError as error:
                self.failure = self.failure or error
                results += [(entry.waiter, None, error) for entry in entries]
                return
            if any(map(self._must_sync, begun)):
                unsynced.append((segment, begun))
            else:
                results += [(entry.waiter, None, None) for entry in begun]
            entries = entries[len(begun) :]

    def _sync_begun(self, unsynced: list[_Begun]) -> None:
        """Intents are on the disk before their requests go out; what ends meanwhile is not held up."""
        for segment, begun in unsynced:
            try:
                segment.sync_intents()
            except EmbedctlError as error:
                self.failure = self.failure or error
                with self._house:
                    for entry in begun:
                        if self._where.pop(entry.event_id, None) is not None:
                            segment.forget(entry.event_id)
                answer([(entry.waiter, None, error) for entry in begun])
            else:
                answer([(entry.waiter, None, None) for entry in begun])

    def _sync_in_lane(self, lane: ThreadPoolExecutor, begun: list[_Begun]) -> None:
        """The same where it takes long: answers are written meanwhile, and intents that come go with the next sync."""
        self._jobs += 1
        for segment, _ in begun:
            segment.syncing += 1
        self._unsynced += begun
        lane.submit(self._kept, self._sync_unsynced, partial(self._synced, [segment for segment, _ in begun]))

    def _sync_unsynced(self) -> None:
        begun: list[_Begun] = []
        while self._unsynced:  # only ever appended to by the writer
            begun.append(self._unsynced.pop(0))
        try:
            self._sync_begun(begun)
        except BaseException as error:  # they are in no group of the writer any more
            answer([(entry.waiter, None, error) for _, entries in begun for entry in entries])
            raise

    def _synced(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            segment.syncing -= 1

    def _append_intents(self, segment: Segment, entries: list[Append]) -> None:
        if segment.intents is None or any(entry.event_id in self._where for entry in entries):
            raise InvariantBroken("an attempt began twice, or in a segment of a dead process")
        for entry in entries:
            segment.expect(entry.draft.event, entry.answer_bytes)
        try:
            segment.reserve()
            segment.begin([entry.draft for entry in entries])
        except EmbedctlError:
            for entry in entries:
                segment.forget(entry.event_id)
            raise
        self._where.update((entry.event_id, segment) for entry in entries)

    def _segment_for(self, answer_bytes: int) -> Segment:
        """The open segment, or a new one when that is full or old."""
        current = self._current
        if current is not None and self._is_full(current, answer_bytes):
            current.sealed, self._current, current = True, None, None
        if current is None:
            current = Segment.create(self._disk, self._folder, self._secret, self._clock(), self._copies)
            self._current = self._segments[current.segment_id] = current
        return current

    def _is_full(self, current: Segment, answer_bytes: int) -> bool:
        size = current.written_bytes
        is_old = self._clock() - current.opened_at >= self._segment_s
        return is_old or (size > 0 and size + answer_bytes > self._segment_bytes)

    def _must_sync(self, entry: Append) -> bool:
        event = entry.draft.event
        may_cost = event.entry_kind == "usage" and event.price_as != "free"
        return self._sync_intents and may_cost and entry.draft.kind == "intent"

    # housekeeping

    def _keep_house(self) -> None:
        now, current = self._clock(), self._current
        if current is not None and current.events and now - current.opened_at >= self._segment_s:
            current.sealed, self._current = True, None
        if self._dirty_since is not None and now - self._dirty_since >= SYNC_AFTER_S:
            self._sync_behind()
        for segment in list(self._segments.values()):
            if segment.idle and not segment.spooling:
                segment.spooling = True
                self._behind(partial(self._spool_segment, segment), partial(setattr, segment, "spooled", True))
            if segment.spooled and segment.released >= segment.vectors and not segment.removing:
                segment.removing = True
                self._views.forget(segment.segment_id)
                self._behind(partial(segment.remove, self._disk), partial(self._segments.pop, segment.segment_id))

    def _sync_behind(self, waiter: asyncio.Future[VectorRef | None] | None = None) -> None:
        self._dirty_since = None
        dirty = [segment for segment in self._segments.values() if segment.dirty]
        self._behind(partial(_sync, dirty, waiter), _nothing)

    def _spool_segment(self, segment: Segment) -> None:
        """In the keeper: its answers first, so that what the ledger calls answered is there after power is lost."""
        segment.sync()
        for log in segment.logs:
            log.trim()
        if segment.events:
            self._spool(segment.segment_id, segment.events)
        segment.drop_copy(self._disk)
        segment.close()

    def _behind(self, job: Callable[[], None], then: Callable[[], object]) -> None:
        self._jobs += 1
        self._keeper.submit(self._kept, job, then)

    def _kept(self, job: Callable[[], None], then: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # the writer decides
            self._queue.put((Done(then, error),))
        else:
            self._queue.put((Done(then),))

    def _finish(self, *, published: bool) -> None:
        """Seal everything; attempts that nobody ended are perhaps billed, and said to be."""
        self._where.clear()
        for segment in self._segments.values():
            segment.sealed = True
            if published:
                segment.released = segment.vectors
            left = [interrupted(event) for event, _ in segment.in_flight.values()]
            if left and segment.intents is not None:
                try:
                    segment.intents.append([frames.draft("outcome", event) for event in left])
                except StorageFailed as error:
                    self.failure = self._unheard = error  # recovery will say the same of them
                    continue
                for event in left:
                    segment.arrived(event)
        self._current = None


def _sync(segments: Sequence[Segment], waiter: asyncio.Future[VectorRef | None] | None) -> None:
    """In the keeper. Who waits is told from here: the writer may be dead by then."""
    error: BaseException | None = None
    try:
        for segment in segments:
            segment.sync()
    except BaseException as failure:
        error = failure
        raise
    finally:
        if waiter is not None:
            answer([(waiter, None, error)])


def _refusal(failure: BaseException) -> EmbedctlError:
    """A new error for who comes after the one that failed."""
    if isinstance(failure, EmbedctlError):
        return type(failure)(failure.message, hint=failure.hint)
    return InvariantBroken(f"the journal stopped: {failure!r}")


def _nothing() -> None:
    """For a sync nobody waits for."""

"""The results of a batch → the journal: each line once, in whatever order, form and number they come.

Files are streamed to the disk and read line by line: memory holds a line. A line belongs to its texts by its id alone.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from embedctl.dataclass import dataclass
from embedctl.embedding import batch_lines, checks
from embedctl.embedding.attempt import SpendGuard
from embedctl.embedding.batch_calls import BatchCalls, NoFileYetError
from embedctl.embedding.leg import Leg
from embedctl.embedding.route import Route
from embedctl.embedding.usage_events import Caller
from embedctl.errors import AnswerUnshaped, AnswerUnusable, ProviderError, SpaceMismatch, TextRefused
from embedctl.journal import Journal
from embedctl.journal.batches import Batch
from embedctl.providers import _batch_entry
from embedctl.providers._batch import MOST_LINE_BYTES, BatchState, LineResult, ResultFile
from embedctl.records import AttemptEnded, Observer, Request, UsageEvent, Warned
from embedctl.routing.endpoint import Endpoint

READ_AT = "read_at"
"""When a line was read, in Unix seconds, beside its vectors: its model was looked at then, not when it was answered."""

_MISMATCH_HINT = "nothing of it was written; what is left is asked for online by the next run: is it still the model?"


class BatchSpendGuard(SpendGuard, Protocol):
    """What may be spent, of batches."""

    async def reserve(
        self, endpoint: Endpoint, request: Request, *, patient: bool = True, anyway: bool = False
    ) -> object:
        """Set the price of a line aside.

        Args:
            patient: Wait while money may come back; else BudgetReached.
            anyway: It is spent already, whatever the limit is.
        """


@dataclass(slots=True, eq=False)
class OpenBatch:
    """A batch under way.

    Attributes:
        reservations: Of its lines; gone with those that are settled.
        polled_at: Of the clock; likewise `next_poll`.
    """

    batch: Batch
    reservations: dict[int, object] = field(default_factory=dict)
    state: BatchState | None = None
    next_poll: float = 0.0
    interval: float = 0.0


@dataclass(slots=True)
class Collected:
    """What became of the lines of one batch.

    Attributes:
        seen: Lines with a result.
        unreadable: Lines of which something came that cannot be read; `strays` of which not even the id can.
    """

    seen: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)
    strays: int = 0
    answered: int = 0
    bought: int = 0
    cut_off: int = 0
    declined: ProviderError | None = None
    mismatch: SpaceMismatch | None = None


class BatchCollector:
    """Reads what batches have brought.

    Args:
        folder: Where results lie while they are read.
        known: Ids of events that the journal has already, because a dead run has collected these lines, and whether it
            has their vectors.
        had: Told the text hashes of answered lines.
        sleep: Waits; raises when the run is told to stop.
    """

    def __init__(
        self,
        calls: BatchCalls,
        *,
        route: Route,
        leg: Leg,
        journal: Journal,
        budget: BatchSpendGuard,
        caller: Caller,
        observer: Observer,
        folder: Path,
        known: Mapping[UUID, bool],
        had: Callable[[bytes], object],
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._calls = calls
        self._route = route
        self._leg = leg
        self._endpoint = leg.endpoint
        self._journal = journal
        self._budget = budget
        self._caller = caller
        self._observer = observer
        self._folder = folder
        self._known = known
        self._had = had
        self._sleep = sleep
        self._clock = clock

    async def collect(self, one: OpenBatch) -> Collected:
        """Everything that a batch which is over has brought; on the disk when this returns.

        Raises:
            ProviderError: Its results cannot be had now.
            StorageFailed: They cannot be kept.
        """
        batch, found = one.batch, Collected()
        looked_at: float | None = None
        while True:
            state = one.state
            assert state is not None  # noqa: S101 - it has ended
            whole = True
            for file in self._calls.results(state):
                whole &= await self._read(one, file, found)
            promised = (state.lines_done or 0) + (state.lines_failed or 0)
            if whole and len(found.seen) + len(found.unreadable) + found.strays >= min(promised, len(batch.lines)):
                break
            looked_at = self._clock() if looked_at is None else looked_at
            if self._clock() >= looked_at + self._endpoint.batch.grace_s:
                break
            await self._sleep(min(self._endpoint.batch.poll_s, self._endpoint.batch.grace_s))
            assert batch.batch_id is not None  # noqa: S101
            one.state = await self._calls.state(batch.batch_id)
            found.strays = 0
            found.unreadable.clear()
        await self._book_unread(one, found)
        await self._journal.sync()
        return found

    async def give_up(self, one: OpenBatch) -> None:
        """Nobody will read it: all of it is perhaps billed."""
        await self._book_unread(one, Collected(unreadable=set(range(len(one.batch.lines)))))
        await self._journal.sync()

    async def _read(self, one: OpenBatch, file: ResultFile, found: Collected) -> bool:
        """One file of results; whether it was there."""
        path = self._folder / f".tmp-{one.batch.mark}-{file.kind}"
        try:
            await self._calls.download(file, path)
            with path.open("rb") as lines:
                while content := await asyncio.to_thread(lines.readline, MOST_LINE_BYTES + 1):
                    if content.strip():
                        await self._take(one, file, content, found)
        except NoFileYetError:
            return False
        finally:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - what is read is in the journal
        return True

    async def _take(self, one: OpenBatch, file: ResultFile, content: bytes, found: Collected) -> None:
        batch = one.batch
        result = await asyncio.to_thread(_batch_entry.line, self._endpoint.place.protocol, content, file.request)
        number = None if result.line_id is None else batch.line_number(result.line_id)
        if number is None:
            why = result.error.message if result.error else f"no line is called {result.line_id}"
            self._observer.notify(Warned("batch_line", batch.batch_id or "", why))
            found.strays += result.kind == "unreadable"
            return
        if number in found.seen:
            return  # told twice, or read again
        if result.kind == "unreadable":
            found.unreadable.add(number)
            return
        found.seen.add(number)
        found.unreadable.discard(number)
        if result.kind == "cut_off":
            found.cut_off += 1
            return
        await self._settle(one, number, result, found)

    async def _settle(self, one: OpenBatch, number: int, result: LineResult, found: Collected) -> None:
        """A line that was answered or declined: into the journal, and its money out of what is set aside."""
        batch, endpoint = one.batch, self._endpoint
        event = batch_lines.begun(self._caller, endpoint, batch, number, one.state.ended_at if one.state else None)
        is_news = event.event_id not in self._known
        has_vectors = self._known.get(event.event_id, False)
        vectors, error = None, result.error
        wire = result.answer
        if result.kind == "answered" and wire is not None:
            try:
                vectors = self._checked(batch, number, wire)
            except (AnswerUnusable, SpaceMismatch) as unusable:
                error = unusable
                found.mismatch = unusable if isinstance(unusable, SpaceMismatch) else found.mismatch
        if vectors is not None and wire is not None:
            used = batch_lines.usage(endpoint, batch, number, wire.tokens, wire.tokens_cached)
            ended = batch_lines.answered(event, wire, used, self._budget.price(endpoint))
            found.answered += 1
            found.bought += 1
            if not has_vectors:
                each = wire.tokens_each or ((used.tokens_total,) if batch.lines[number].texts == 1 else None)
                space = self._route.space
                extra = {"space_id": space.space_id, READ_AT: self._clock()} if space else None
                await self._journal.collect(ended, batch.hashes_of(number), vectors, each, extra)
            self._had(batch.hashes_of(number))
        else:
            bought = result.kind != "refused"
            spent = batch_lines.usage(endpoint, batch, number, result.tokens) if bought else None
            ended = batch_lines.failed(event, error or AnswerUnusable("no vectors"), spent)
            found.refused.add(number)
            found.bought += bought
            if result.kind == "refused" and not isinstance(error, TextRefused):
                found.declined = error
            if is_news:
                await self._journal.collect(ended)
        await self._booked(one, number, ended, is_news=is_news)

    def _checked(self, batch: Batch, number: int, wire: Any) -> Any:
        width = self._route.space.dimensions if self._route.space else None
        state, endpoint = self._leg.state, self._endpoint
        try:
            vectors = checks.checked(wire, endpoint, batch.lines[number].texts, width, state.identity)
        except (
            AnswerUnshaped
        ) as other:  # online it is asked again, in case it was a slip; here that is a second purchase
            raise SpaceMismatch(other.message, provider=endpoint.provider, hint=_MISMATCH_HINT) from None
        if state.identity is None:
            state.identity = checks.identity(wire)
        space = self._route.space_of(endpoint, int(vectors.shape[1]))
        if self._route.space is not None and (space is None or space.space_id != self._route.space.space_id):
            raise SpaceMismatch(f"{endpoint.id} answers in another space than the output has")
        self._route.space = self._route.space or space
        return vectors

    async def _booked(self, one: OpenBatch, number: int, event: UsageEvent, *, is_news: bool) -> None:
        if is_news:
            self._observer.notify(AttemptEnded(event))
        reservation = one.reservations.pop(number, None)
        if reservation is not None:
            await self._budget.settle(reservation, event)

    async def _book_unread(self, one: OpenBatch, found: Collected) -> None:
        """Lines that may have been answered and of which nothing can be read count as perhaps billed."""
        batch, state = one.batch, one.state
        missing = [number for number in range(len(batch.lines)) if number not in found.seen]
        perhaps = set(found.unreadable)
        others = [number for number in missing if number not in perhaps]
        unseen = max(found.strays, (state.lines_done or 0) - found.bought - len(perhaps)) if state else found.strays
        cut = state is not None and state.state in ("ended_expired", "ended_cancelled")
        if cut and not self._calls.capabilities.partial_results:
            unseen = len(others)
        others.sort(key=lambda number: -batch.lines[number].tokens)
        perhaps.update(others[: max(0, unseen)])
        for number in sorted(perhaps):
            begun = batch_lines.begun(self._caller, self._endpoint, batch, number, state.ended_at if state else None)
            event = batch_lines.lost(begun, f"no readable result in batch {batch.batch_id}")
            is_news = event.event_id not in self._known
            if is_news:
                await self._journal.collect(event)
            await self._booked(one, number, event, is_news=is_news)
        found.cut_off += len(missing)

"""What the writer of a journal is told, and how it answers those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import UUID

from embedctl.dataclass import dataclass
from embedctl.journal.frames import Draft
from embedctl.records import UsageEvent, VectorRef

Spool = Callable[[str, Sequence[UsageEvent]], bool]
"""Puts the events of one segment where the ledger finds them, durably, under the segment's id; False when that id
is there already."""


@dataclass(slots=True)
class Append:
    """A frame on its way, and who waits for it."""

    draft: Draft
    waiter: asyncio.Future[VectorRef | None]
    answer_bytes: int = 0

    @property
    def event_id(self) -> UUID:
        """Of the attempt."""
        return self.draft.event.event_id


@dataclass(frozen=True, slots=True)
class Release:
    """So many vectors of a segment are no longer needed; None means all it has."""

    segment_id: str
    vectors: int | None


@dataclass(frozen=True, slots=True)
class Sync:
    """Put on the disk what was written so far."""

    waiter: asyncio.Future[VectorRef | None]


@dataclass(slots=True)
class Seal:
    """Hand what has ended to the spool, without waiting until the segment is full or old.

    Attributes:
        held_since: Set by the writer: when the oldest segment began that cannot go yet; None: all went.
    """

    waiter: asyncio.Future[VectorRef | None]
    held_since: float | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """End; with `published`, no vector is needed any more."""

    waiter: asyncio.Future[VectorRef | None]
    published: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The keeper has done something, or failed."""

    then: Callable[[], object]
    error: BaseException | None = None


Command = Append | Release | Sync | Seal | Close | Done
Result = tuple["asyncio.Future[VectorRef | None]", VectorRef | None, BaseException | None]


def answer(results: Sequence[Result]) -> None:
    """Wake who waits, all in one call into their loop."""
    if results:
        loop = results[0][0].get_loop()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(resolve, list(results))


def resolve(results: Sequence[Result]) -> None:
    """Wake who waits, in their loop's thread."""
    for waiter, place, error in results:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(place)
        else:
            waiter.set_exception(error)


def waiter_of(command: Command) -> asyncio.Future[VectorRef | None] | None:
    """Who waits for it, if anybody does."""
    return getattr(command, "waiter", None)

"""A slice: a contiguous range of input rows that is published as one part, and where each of its vectors is.

The unit that another machine can take later: it holds no global state.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import field
from enum import IntEnum
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.records import Failure, Outcome, Refusal, RowId

SLICE_ROWS = 1 << 17
"""Rows, or failures, close it too, however narrow the vectors."""

USUAL_DIMENSIONS = 1536
"""Of vectors whose width nobody knows yet: slices are cut as if they were so wide."""

SLICE_BYTES = 128 * 1024 * 1024
"""About so many bytes of vectors, or of text as it is sent, close a slice."""

COLUMN_BYTES = SLICE_BYTES // 2
"""And so many of ids, texts and kept columns: they are in memory, a few times over while the part is written."""


MOST_REFUSALS = 1 << 16
"""Different refusals of texts that are told apart when a later row holds the same text."""


class VectorSource(IntEnum):
    """Where a target is."""

    PENDING = 0  # asked for, or about to be
    JOURNAL = 1  # file = the journal's number of the segment, offset = byte of the vector in it
    PART = 2  # file = number of an older part, offset = row in it
    DUPLICATE = 3  # offset = ordinal of the target with the same text
    FAILED = 4  # failed or skipped: there will be none


@dataclass(frozen=True, slots=True)
class Mean:
    """A vector made of others: wanted[start:stop], weighted by their tokens, then unit length."""

    start: int
    stop: int
    weights: tuple[int, ...]


@dataclass(slots=True)
class Slice:
    """One slice while its vectors are coming in.

    Attributes:
        first_target: Ordinal, in this run, of this slice's first target.
        batches: Columns of the rows to be written, without the embedding ones (Arrow record batches).
        rows: For each row to be written, which of the targets it gets; -1: the mean of several, see `means`.
        row_hashes: For each row to be written, the hash of its text; likewise `row_of`, its ordinal in the input.
        means: Row → the vectors that its own is the mean of.
        refusals: Wanted vector that will not come → why.
        where, file, offset: one entry per target, see VectorSource.
        content_bytes: Of the texts as they are sent.
        column_bytes: Of `batches`.
        failed_bytes: Of the ids of `failures`.
        known: Targets that were there when they were wanted.
        pending: Targets that were asked for and whose outcome has not come.
    """

    number: int
    first_row: int
    first_target: int
    rows_read: int = 0
    content_bytes: int = 0
    column_bytes: int = 0
    failed_bytes: int = 0
    batches: list[Any] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    row_hashes: list[bytes] = field(default_factory=list)
    row_of: list[int] = field(default_factory=list)
    means: dict[int, Mean] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    targets: int = 0
    known: int = 0
    where: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(1024, np.uint8))
    file: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(1024, np.uint32))
    offset: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1024, np.uint64))
    pending: int = 0
    _hasher: Any = field(default_factory=lambda: blake2b(digest_size=16))

    def read(self, ids: Sequence[RowId], hashes: Sequence[bytes]) -> None:
        """Rows were read for it.

        Args:
            hashes: Of the texts that came of them.
        """
        self.rows_read += len(ids)
        told = "\0".join(map(str, ids)).encode("utf-8", "surrogatepass")
        self._hasher.update(b"%d %d %d " % (len(ids), len(told), len(hashes)))
        self._hasher.update(told)
        self._hasher.update(b"".join(hashes))

    @property
    def rows_hash(self) -> str:
        """Equal for slices of the same rows, read in the same blocks."""
        return str(self._hasher.hexdigest())

    def add_target(self, where: VectorSource = VectorSource.PENDING, file: int = 0, offset: int = 0) -> int:
        """Add a target; its place in this slice."""
        place = self.targets
        if place == len(self.where):
            self._make_room(1)
        if where is not VectorSource.PENDING:  # as new entries are
            self.where[place], self.file[place], self.offset[place] = where, file, offset
        self.targets = place + 1
        return place

    def add_targets(self, count: int) -> None:
        """Add so many targets that are about to be asked for."""
        self._make_room(count)
        self.targets += count

    def add_known(self, where: NDArray[np.uint8], file: NDArray[np.uint32], offset: NDArray[np.uint64]) -> None:
        """Add targets that are there, one entry of each array for each."""
        first, end = self.targets, self.targets + len(where)
        self._make_room(len(where))
        self.where[first:end], self.file[first:end], self.offset[first:end] = where, file, offset
        self.targets = end
        self.known += len(where)

    def _make_room(self, count: int) -> None:
        if self.targets + count > len(self.where):
            size = max(2 * len(self.where), self.targets + count)
            self.where, self.file, self.offset = (_grown(each, size) for each in (self.where, self.file, self.offset))

    @property
    def kept(self) -> int:
        """Targets whose vector is there, those of duplicates not counted."""
        return self.known + sum(len(outcome.targets) for outcome in self.outcomes if outcome.ref is not None)

    def settle(self, file_number: Callable[[str], int]) -> None:
        """Take in all outcomes: only now, because rows may be added in one thread while outcomes come in another.

        Args:
            file_number: Segment of the journal → its number in `file`.
        """
        for outcome in self.outcomes:
            places = np.asarray(outcome.targets, np.int64) - self.first_target
            if outcome.refusal is not None:
                for place in places:
                    self.refused(int(place), outcome.refusal)
            elif (ref := outcome.ref) is not None:
                width = ref.dimensions * 4
                end = ref.offset + len(places) * width
                self.where[places] = VectorSource.JOURNAL
                self.file[places] = file_number(ref.segment)
                self.offset[places] = np.arange(ref.offset, end, width, dtype=np.uint64)

    def only_averaged(self, ordinals: Sequence[int]) -> int:
        """How many of these targets (ordinals of the run) went into a mean: no part will hold them."""
        if not self.means:
            return 0
        places = {ordinal - self.first_target for ordinal in ordinals}
        return sum(place in places for mean in self.means.values() for place in range(mean.start, mean.stop))

    def refused(self, place: int, why: Refusal) -> None:
        """This vector will not come."""
        self.where[place] = VectorSource.FAILED
        self.refusals[place] = why

    def full(self, dimensions: int | None, *, closes_on_failures: bool = True) -> bool:
        """Whether the slice holds enough to be a part of its own.

        Args:
            dimensions: Planned before anything is asked; None: nobody knows, and USUAL_DIMENSIONS count. A border must
                not depend on when the first answer comes.
            closes_on_failures: Whether many failures close it, too: a folder's part needs a width, though it be empty.
        """
        vectors = self.targets * (dimensions or USUAL_DIMENSIONS) * 4
        if max(vectors, self.content_bytes) >= SLICE_BYTES or self.column_bytes >= COLUMN_BYTES:
            return True
        if len(self.rows) >= SLICE_ROWS:
            return True
        many_failed = len(self.failures) >= SLICE_ROWS or self.failed_bytes >= SLICE_BYTES
        return many_failed and closes_on_failures


def _grown(entries: NDArray[Any], size: int) -> NDArray[Any]:
    """More room behind the entries, all zeros."""
    grown = np.zeros(size, entries.dtype)
    grown[: len(entries)] = entries
    return grown


class SliceIndex:
    """Where the vectors of slices that were handed on are: what a later row with the same text needs.

    In a folder they are in the slice's part, as a rule in the order they were wanted in; in a single file they stay in
    the journal until the end. Kept are the stretches in which they stand one after the other, so that memory follows
    the exceptions (refused texts, duplicates) and not the rows.
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._slices: list[_Stretches] = []
        self._refusals: dict[Refusal, int] = {}
        self._reasons: list[Refusal] = []

    def add(self, slice_: Slice, part: int | None) -> None:
        """Remember a slice that was written as part number `part`, or (None) whose journal stays."""
        self._firsts.append(slice_.first_target)
        count = slice_.targets
        where, file, offset = slice_.where[:count].copy(), slice_.file[:count].copy(), slice_.offset[:count].copy()
        if part is not None:
            targets = np.asarray(slice_.rows, np.int64)
            written = targets[targets >= 0]
            written = written[slice_.where[written] != VectorSource.FAILED]
            where[written], file[written] = VectorSource.PART, part
            offset[written] = _rows_written(slice_)
        failed = where == VectorSource.FAILED
        file[failed], offset[failed] = 0, 0
        for place, refusal in slice_.refusals.items():
            file[place] = self._number(refusal)
        self._slices.append(_Stretches.of(where, file, offset))

    def place(self, ordinal: int) -> tuple[int, int, int, Refusal | None]:
        """(where, file, offset, refusal) of an earlier target."""
        number = bisect_right(self._firsts, ordinal) - 1
        where, file, offset = self._slices[number].place(ordinal - self._firsts[number])
        if where == VectorSource.FAILED:
            return where, 0, 0, self._reasons[file]
        return where, file, offset, None

    def _number(self, refusal: Refusal) -> int:
        """Refusals are few kinds of many: each is kept once; of too many different ones only what they are."""
        if refusal not in self._refusals and len(self._reasons) >= MOST_REFUSALS:
            refusal = Refusal(reason=refusal.reason, message="an equal text was refused", provider=refusal.provider)
        if refusal not in self._refusals:
            self._refusals[refusal] = len(self._reasons)
            self._reasons.append(refusal)
        return self._refusals[refusal]


@dataclass(frozen=True, slots=True)
class _Stretches:
    """Places of a slice's targets, as stretches of one file in equal steps.

    Attributes:
        starts: First target of each.
    """

    starts: NDArray[np.uint32]
    where: NDArray[np.uint8]
    file: NDArray[np.uint32]
    offset: NDArray[np.uint64]
    step: int

    @classmethod
    def of(cls, where: NDArray[np.uint8], file: NDArray[np.uint32], offset: NDArray[np.uint64]) -> _Stretches:
        """Of one entry per target; the commonest distance of neighbours in a journal is its step, in a part it is 1."""
        steps = np.diff(offset.astype(np.int64))
        in_journal = (where[1:] == VectorSource.JOURNAL) & (where[:-1] == VectorSource.JOURNAL) & (steps > 0)
        distances, counts = np.unique(steps[in_journal], return_counts=True)
        step = int(distances[counts.argmax()]) if len(distances) else 0
        expected = _steps(where, step)[1:]
        breaks = (np.diff(where) != 0) | (np.diff(file.astype(np.int64)) != 0) | (steps != expected)
        starts = np.concatenate([np.zeros(min(len(where), 1), np.int64), np.flatnonzero(breaks) + 1])
        return cls(starts.astype(np.uint32), where[starts], file[starts], offset[starts], step)

    def place(self, local: int) -> tuple[int, int, int]:
        """(where, file, offset) of a target."""
        at = int(np.searchsorted(self.starts, local, side="right")) - 1
        step = int(_steps(self.where[at : at + 1], self.step)[0])
        return int(self.where[at]), int(self.file[at]), int(self.offset[at]) + (local - int(self.starts[at])) * step


def _steps(where: NDArray[np.uint8], in_journal: int) -> NDArray[np.int64]:
    """How far apart neighbours are expected to be."""
    steps = np.zeros(len(where), np.int64)
    steps[where == VectorSource.PART] = 1
    steps[where == VectorSource.JOURNAL] = in_journal
    return steps


def _rows_written(slice_: Slice) -> NDArray[np.uint64]:
    """Row numbers in the part, of rows that take a target of their own, in order."""
    targets = np.asarray(slice_.rows, np.int64)
    gone = np.zeros(len(targets), bool)
    own = targets >= 0
    gone[own] = slice_.where[targets[own]] == VectorSource.FAILED
    for row, mean in slice_.means.items():
        gone[row] = bool((slice_.where[mean.start : mean.stop] == VectorSource.FAILED).any())
    numbers = np.cumsum(~gone) - 1
    return numbers[own & ~gone].astype(np.uint64)


def resolve_duplicates(slice_: Slice, history: SliceIndex) -> None:
    """Give every duplicate the place, or the refusal, of the vector with the same text."""
    for place in np.flatnonzero(slice_.where[: slice_.targets] == VectorSource.DUPLICATE):
        ordinal = int(slice_.offset[place])
        local = ordinal - slice_.first_target
        if local >= 0:
            found = (
                int(slice_.where[local]),
                int(slice_.file[local]),
                int(slice_.offset[local]),
                slice_.refusals.get(local),
            )
        else:
            found = history.place(ordinal)
        slice_.where[place], slice_.file[place], slice_.offset[place] = found[:3]
        if found[3] is not None:
            slice_.refusals[int(place)] = found[3]

"""Step 5½. A complete slice → its rows with their vectors, and the failures of those that have none.

Vectors are read back from the journal (memory-mapped) or from older parts; nothing is kept in memory per row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken
from embedctl.inputs.row_ids import printed
from embedctl.outputs import parquet
from embedctl.outputs.parquet import Embeddings, Layout, Part
from embedctl.planning.slice import Slice, VectorSource
from embedctl.records import Failure, RowCounts

ReadJournal = Callable[[int, int, int, int], NDArray[np.float32]]
"""(file number, offset in bytes, count, D) → float32 (count, D)."""


VIEWED_ROWS = 64
"""Vectors that stand together in the journal, so many or more, are written from where they are; fewer are gathered."""

_JOURNAL, _PART = (
    int(VectorSource.JOURNAL),
    int(VectorSource.PART),
)  # plain numbers: comparing arrays with an enum is slow


@dataclass(frozen=True, slots=True)
class Purchase:
    """Vectors that stand together in the journal, and who made them."""

    offset: int
    count: int
    model: str
    provider: str
    operation_id: str
    tokens_each: NDArray[np.int32] | None


def tokens_array(tokens_each: Sequence[int] | None) -> NDArray[np.int32] | None:
    """Tokens per text, in a tenth of the memory."""
    return None if tokens_each is None else np.asarray(tokens_each, np.int32)


@dataclass(slots=True)
class Purchases:
    """All answers in the journal files that are still needed, by file number."""

    _starts: dict[int, list[int]] = field(default_factory=dict)
    _by_file: dict[int, list[Purchase]] = field(default_factory=dict)

    def add(self, file: int, purchase: Purchase) -> None:
        """Remember an answer."""
        starts = self._starts.setdefault(file, [])
        at = bisect_right(starts, purchase.offset)
        starts.insert(at, purchase.offset)
        self._by_file.setdefault(file, []).insert(at, purchase)

    def drop(self, file: int, offset: int) -> None:
        """Forget an answer whose vectors stand in a part."""
        starts = self._starts[file]
        at = bisect_right(starts, offset) - 1
        del starts[at], self._by_file[file][at]

    def at(self, file: int, offset: int) -> Purchase:
        """The answer that holds the byte `offset` of a file."""
        number = bisect_right(self._starts.get(file, []), offset) - 1
        if number < 0:
            raise InvariantBroken(f"no answer in journal file {file} holds byte {offset}")
        return self._by_file[file][number]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where vectors are read from.

    Attributes:
        release_pages: Called when a row group is written: what was read for it is not read again soon.
    """

    read_journal: ReadJournal
    purchases: Purchases
    parts: Sequence[Part]
    release_pages: Callable[[], None] = lambda: None


def failures(slice_: Slice, rows: Any) -> tuple[list[Failure], NDArray[Any]]:
    """Failures of all rows of a slice whose duplicates are resolved, and the mask of the rows that have a vector.

    Args:
        rows: Arrow table of all rows of the slice, as many as `slice.rows`; None when there are none.
    """
    targets = np.asarray(slice_.rows, np.int64)
    where = slice_.where[targets]  # a mean's -1 is looked at below
    has = (where == _JOURNAL) | (where == _PART)
    for row, mean in slice_.means.items():
        places = slice_.where[mean.start : mean.stop]
        has[row] = bool(((places == _JOURNAL) | (places == _PART)).all())
    found = list(slice_.failures)
    for row in np.flatnonzero(~has).tolist():
        place = _gone(slice_, row)
        row_id = printed(rows.column("id").slice(row, 1))[0]  # few: not a list of all
        index = rows.column("chunk_index")[row].as_py()
        if place is None:
            raise InvariantBroken(f"row {row_id!r} of slot {slice_.number} has neither vector nor failure")
        refusal = slice_.refusals[place]
        found.append(refusal.of(slice_.row_of[row], row_id, index, slice_.row_hashes[row]))
    return found, has


def _gone(slice_: Slice, row: int) -> int | None:
    """The target that a row lacks, when it is known that it will not come."""
    mean, targets = slice_.means.get(row), slice_.rows[row]
    places = range(mean.start, mean.stop) if mean else range(targets, targets + 1)
    return next((place for place in places if slice_.where[place] == VectorSource.FAILED), None)


def counts(slice_: Slice, failed: Sequence[Failure], kept: NDArray[np.bool_]) -> RowCounts:
    """Where the slice's rows went; a row one of whose chunks failed has failed."""
    lost = {failure.row for failure in failed if not failure.skipped}
    skipped = {failure.row for failure in failed if failure.skipped} - lost
    embedded = {row for row, has in zip(slice_.row_of, kept, strict=True) if has} - lost - skipped
    found = RowCounts(
        read=slice_.rows_read,
        embedded=len(embedded),
        failed=len(lost),
        skipped=len(skipped),
        vectors=int(kept.sum()),
    )
    found.check()
    return found


def same_part(
    slice_: Slice, rows: Any, kept: NDArray[np.bool_], counted: RowCounts, layout: Layout, parts: Sequence[Part]
) -> Part | None:
    """The older part that holds exactly these rows, where there is one: it need not be written again."""
    targets = np.asarray(slice_.rows, np.int64)
    if not len(targets) or not kept.all() or (targets < 0).any():
        return None
    files = set(slice_.file[targets].tolist())
    in_order = np.array_equal(slice_.offset[targets], np.arange(len(targets), dtype=np.uint64))
    if len(files) != 1 or not in_order or not (slice_.where[targets] == VectorSource.PART).all():
        return None
    part = parts[files.pop()]
    found = parquet.read_metadata(part.path) or {}
    if found.get("rows") != len(targets) or found.get("counts") != asdict(counted):
        return None
    return part if part.holds(rows, layout) else None


def tables(slice_: Slice, rows: Any, kept: NDArray[np.bool_], layout: Layout, sources: Sources) -> Iterator[Any]:
    """The slice's rows with their embedding columns, one table per row group.

    Args:
        rows: Arrow table of all rows of the slice, as many as `slice.rows`.
        kept: Which of them have a vector.
    """
    numbers = np.flatnonzero(kept)
    most = parquet.row_group_rows(rows)
    for start in range(0, len(numbers), most):
        group = numbers[start : start + most]
        embeddings = _embeddings(slice_, group, layout.dimensions, sources)
        whole = len(group) == group[-1] - group[0] + 1
        chosen = rows.slice(group[0], len(group)) if whole else rows.take(group)
        yield parquet.table(chosen.combine_chunks(), embeddings, layout)
        sources.release_pages()


def _embeddings(slice_: Slice, rows: NDArray[np.int64], dimensions: int, sources: Sources) -> Embeddings:
    targets = np.asarray(slice_.rows, np.int64)[rows]
    out = _EmbeddingColumns(len(rows), dimensions, views={})
    own = np.flatnonzero(targets >= 0)
    _fill(out, own, slice_, targets[own], sources)
    for row in np.flatnonzero(targets < 0):
        mean = slice_.means[int(rows[row])]
        pieces = _EmbeddingColumns(mean.stop - mean.start, dimensions, views=None)
        _fill(pieces, np.arange(mean.stop - mean.start), slice_, np.arange(mean.start, mean.stop), sources)
        weights = np.asarray(mean.weights, np.float32)[:, None]
        vector = (pieces.vectors * weights).sum(axis=0)
        out.vectors[row] = vector / np.linalg.norm(vector)
        out.tokens[row] = pieces.tokens.sum() if (pieces.tokens >= 0).all() else -1
        out.bought[row] = out.number(pieces.purchases[int(pieces.bought[0])])
    hashes = b"".join(slice_.row_hashes[int(row)] for row in rows)
    return Embeddings(
        vectors=out.pieces(), bought=out.bought, purchases=list(out.purchases), tokens=out.tokens, hashes=hashes
    )


class _EmbeddingColumns:
    """Embedding columns while they are filled.

    Attributes:
        vectors: Where vectors are gathered; memory is taken only for rows that are.
        views: First row → vectors that stay where they are; None: none do.
    """

    def __init__(self, rows: int, dimensions: int, *, views: dict[int, NDArray[np.float32]] | None) -> None:
        self.vectors = np.empty((rows, dimensions), np.float32)
        self.views = views
        self.tokens = np.full(rows, -1, np.int32)
        self.bought = np.zeros(rows, np.int32)
        self.purchases: list[tuple[str, str, str]] = []
        self._numbers: dict[tuple[str, str, str], int] = {}

    def put(self, row: int, vectors: NDArray[np.float32]) -> None:
        """Vectors for this row and those after it."""
        if self.views is not None and len(vectors) >= VIEWED_ROWS:
            self.views[row] = vectors
        else:
            self.vectors[row : row + len(vectors)] = vectors

    def pieces(self) -> list[NDArray[np.float32]]:
        """All vectors in order, gathered ones and those that stay where they are."""
        found, row = [], 0
        for first, vectors in sorted((self.views or {}).items(), key=lambda item: item[0]):
            found += [self.vectors[row:first], vectors]
            row = first + len(vectors)
        return [piece for piece in (*found, self.vectors[row:]) if len(piece)]

    def number(self, purchase: tuple[str, str, str]) -> int:
        if purchase not in self._numbers:
            self._numbers[purchase] = len(self.purchases)
            self.purchases.append(purchase)
        return self._numbers[purchase]


def _fill(
    out: _EmbeddingColumns, filled: NDArray[np.int64], slice_: Slice, targets: NDArray[Any], sources: Sources
) -> None:
    """Fill rows `filled` of `out` with the vectors of `targets`."""
    where, file, offset = slice_.where[targets], slice_.file[targets], slice_.offset[targets].astype(np.int64)
    in_journal = np.flatnonzero(where == VectorSource.JOURNAL)
    _from_journal(out, filled[in_journal], file[in_journal], offset[in_journal], sources)
    in_parts = np.flatnonzero(where == VectorSource.PART)
    for number in sorted(set(file[in_parts].tolist())):
        mine = in_parts[file[in_parts] == number]
        vectors, purchases, tokens = sources.parts[number].take(offset[mine])
        out.vectors[filled[mine]] = vectors
        out.tokens[filled[mine]] = tokens
        out.bought[filled[mine]] = [out.number(purchase) for purchase in purchases]


def _from_journal(
    out: _EmbeddingColumns, filled: NDArray[np.int64], file: NDArray[Any], offset: NDArray[np.int64], sources: Sources
) -> None:
    """Take runs of vectors that stand one after the other, both in the journal and in the output."""
    width = out.vectors.shape[1] * 4
    if not len(filled):
        return
    breaks = np.flatnonzero((np.diff(file) != 0) | (np.diff(offset) != width) | (np.diff(filled) != 1)) + 1
    for run in np.split(np.arange(len(filled)), breaks):
        at, done = int(offset[run[0]]), 0
        while done < len(run):  # a run may go over the border of two answers only if they stand together
            purchase = sources.purchases.at(int(file[run[0]]), at)
            first = (at - purchase.offset) // width
            count = min(len(run) - done, purchase.count - first)
            rows = filled[run[done : done + count]]
            span = slice(int(rows[0]), int(rows[0]) + count)
            out.put(span.start, sources.read_journal(int(file[run[0]]), at, count, width // 4))
            out.bought[span] = out.number((purchase.model, purchase.provider, purchase.operation_id))
            if purchase.tokens_each is not None:
                out.tokens[span] = purchase.tokens_each[first : first + count]
            done += count
            at += count * width


class SegmentNumbers:
    """Numbers for the journal's segment ids, as slices keep them; those of an interrupted run come first."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.ids: list[str] = []

    def number(self, segment_id: str) -> int:
        """The number of a segment; a new one when it was not seen before."""
        if segment_id not in self._numbers:
            self._numbers[segment_id] = len(self.ids)
            self.ids.append(segment_id)
        return self._numbers[segment_id]

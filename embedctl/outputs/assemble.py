"""Step 5½. A complete slot → its rows with their vectors, and the failures of those that have none.

Vectors are read back from the journal (memory-mapped) or from older parts; nothing is kept in memory per row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.errors import InvariantBroken
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
        relax: Called when a row group is written: what was read for it is not read again soon.
    """

    read_journal: ReadJournal
    purchases: Purchases
    parts: Sequence[Part]
    release_pages: Callable[[], None] = lambda: None


def failures(slot: Slice, ids: Sequence[str | int], chunk_indexes: Sequence[int]) -> tuple[list[Failure], NDArray[Any]]:
    """Failures of all rows of a slot whose twins are resolved, and the mask of the rows that have a vector.

    Args:
        ids: Of each row in `slot.rows`; likewise `chunk_indexes`.
    """
    wanted = np.asarray(slot.rows, np.int64)
    where = slot.where[wanted]  # a mean's -1 is looked at below
    has = (where == _JOURNAL) | (where == _PART)
    for row, mean in slot.means.items():
        places = slot.where[mean.start : mean.stop]
        has[row] = bool(((places == _JOURNAL) | (places == _PART)).all())
    found = list(slot.failures)
    for row in np.flatnonzero(~has).tolist():
        place = _gone(slot, row)
        if place is None:
            raise InvariantBroken(f"row {ids[row]!r} of slot {slot.number} has neither vector nor failure")
        refusal = slot.refusals[place]
        found.append(refusal.of(slot.row_of[row], ids[row], chunk_indexes[row], slot.row_hashes[row]))
    return found, has


def _gone(slot: Slice, row: int) -> int | None:
    """The wanted vector that a row lacks, when it is known that it will not come."""
    mean, wanted = slot.means.get(row), slot.rows[row]
    places = range(mean.start, mean.stop) if mean else range(wanted, wanted + 1)
    return next((place for place in places if slot.where[place] == VectorSource.FAILED), None)


def counts(slot: Slice, failed: Sequence[Failure], kept: NDArray[np.bool_]) -> RowCounts:
    """Where the slot's rows went; a row one of whose chunks failed has failed."""
    lost = {failure.row for failure in failed if not failure.skipped}
    skipped = {failure.row for failure in failed if failure.skipped} - lost
    embedded = {row for row, has in zip(slot.row_of, kept, strict=True) if has} - lost - skipped
    found = RowCounts(
        read=slot.rows_read,
        embedded=len(embedded),
        failed=len(lost),
        skipped=len(skipped),
        vectors=int(kept.sum()),
    )
    found.check()
    return found


def same_part(
    slot: Slice, rows: Any, kept: NDArray[np.bool_], counted: RowCounts, layout: Layout, parts: Sequence[Part]
) -> Part | None:
    """The older part that holds exactly these rows, where there is one: it need not be written again."""
    wanted = np.asarray(slot.rows, np.int64)
    if not len(wanted) or not kept.all() or (wanted < 0).any():
        return None
    files = np.unique(slot.file[wanted])
    in_order = np.array_equal(slot.offset[wanted], np.arange(len(wanted), dtype=np.uint64))
    if len(files) != 1 or not in_order or not (slot.where[wanted] == VectorSource.PART).all():
        return None
    part = parts[int(files[0])]
    found = parquet.read_metadata(part.path) or {}
    if found.get("rows") != len(wanted) or found.get("counts") != asdict(counted):
        return None
    return part if part.holds(rows, layout) else None


def tables(slot: Slice, rows: Any, kept: NDArray[np.bool_], layout: Layout, sources: Sources) -> Iterator[Any]:
    """The slot's rows with their embedding columns, one table per row group.

    Args:
        rows: Arrow table of all rows of the slot, as many as `slot.rows`.
        kept: Which of them have a vector.
    """
    numbers = np.flatnonzero(kept)
    for start in range(0, len(numbers), parquet.ROW_GROUP_ROWS):
        group = numbers[start : start + parquet.ROW_GROUP_ROWS]
        embeddings = _embeddings(slot, group, layout.dimensions, sources)
        whole = len(group) == group[-1] - group[0] + 1
        chosen = rows.slice(group[0], len(group)) if whole else rows.take(group)
        yield parquet.table(chosen.combine_chunks(), embeddings, layout)
        sources.release_pages()


def _embeddings(slot: Slice, rows: NDArray[np.int64], dimensions: int, sources: Sources) -> Embeddings:
    wanted = np.asarray(slot.rows, np.int64)[rows]
    out = _EmbeddingColumns(len(rows), dimensions, views={})
    own = np.flatnonzero(wanted >= 0)
    _fill(out, own, slot, wanted[own], sources)
    for target in np.flatnonzero(wanted < 0):
        mean = slot.means[int(rows[target])]
        pieces = _EmbeddingColumns(mean.stop - mean.start, dimensions, views=None)
        _fill(pieces, np.arange(mean.stop - mean.start), slot, np.arange(mean.start, mean.stop), sources)
        weights = np.asarray(mean.weights, np.float32)[:, None]
        vector = (pieces.vectors * weights).sum(axis=0)
        out.vectors[target] = vector / np.linalg.norm(vector)
        out.tokens[target] = pieces.tokens.sum() if (pieces.tokens >= 0).all() else -1
        out.bought[target] = out.number(pieces.purchases[int(pieces.bought[0])])
    hashes = b"".join(slot.row_hashes[int(row)] for row in rows)
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
    out: _EmbeddingColumns, targets: NDArray[np.int64], slot: Slice, wanted: NDArray[Any], sources: Sources
) -> None:
    """Fill rows `targets` of `out` with the vectors of `wanted`."""
    where, file, offset = slot.where[wanted], slot.file[wanted], slot.offset[wanted].astype(np.int64)
    in_journal = np.flatnonzero(where == VectorSource.JOURNAL)
    _from_journal(out, targets[in_journal], file[in_journal], offset[in_journal], sources)
    in_parts = np.flatnonzero(where == VectorSource.PART)
    for number in np.unique(file[in_parts]):
        mine = in_parts[file[in_parts] == number]
        vectors, purchases, tokens = sources.parts[int(number)].take(offset[mine])
        out.vectors[targets[mine]] = vectors
        out.tokens[targets[mine]] = tokens
        out.bought[targets[mine]] = [out.number(purchase) for purchase in purchases]


def _from_journal(
    out: _EmbeddingColumns, targets: NDArray[np.int64], file: NDArray[Any], offset: NDArray[np.int64], sources: Sources
) -> None:
    """Take runs of vectors that stand one after the other, both in the journal and in the output."""
    width = out.vectors.shape[1] * 4
    if not len(targets):
        return
    breaks = np.flatnonzero((np.diff(file) != 0) | (np.diff(offset) != width) | (np.diff(targets) != 1)) + 1
    for run in np.split(np.arange(len(targets)), breaks):
        at, done = int(offset[run[0]]), 0
        while done < len(run):  # a run may go over the border of two answers only if they stand together
            purchase = sources.purchases.at(int(file[run[0]]), at)
            first = (at - purchase.offset) // width
            count = min(len(run) - done, purchase.count - first)
            rows = targets[run[done : done + count]]
            span = slice(int(rows[0]), int(rows[0]) + count)
            out.put(span.start, sources.read_journal(int(file[run[0]]), at, count, width // 4))
            out.bought[span] = out.number((purchase.model, purchase.provider, purchase.operation_id))
            if purchase.tokens_each is not None:
                out.tokens[span] = purchase.tokens_each[first : first + count]
            done += count
            at += count * width

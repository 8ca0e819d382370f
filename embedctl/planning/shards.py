"""Shards: what one worker takes of an input. Values, planned before anything is sent, by input and plan alone. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from embedctl.dataclass import dataclass

SHARD_ROWS = 1_000_000
"""Rows of a shard where no option says so."""

SHARDS_EACH = 8
"""Shards of each of several workers, about: at the end none waits long for the others."""

PARTS_EACH = 3
"""Parts of one file for each of several workers at most: each part reads all that comes before it, too."""

LEAST_ROWS = 1_000
"""Of such a shard: each costs some files, and a moment without requests in flight."""

USUAL_ROW_BYTES = 256
"""Of a file whose rows nobody has counted: how many it has decides only which files go together."""

Piece = tuple[int, tuple[int, int] | None]
"""Number of an input file, and which of its row groups (from, to): None is the whole file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A run of slices that one worker embeds, whatever other workers do.

    Attributes:
        ordinal: Its number in the plan, from 0; in the order of the input.
        first_row: Ordinal, in the whole input, of its first row.
        key: Equal only if the rows are, and all that shapes their vectors: what was answered for it may be used again.
        pieces: The files, or row groups, that it is; none: all of the input.
        rows: How many, as far as that is known before they are read.
        within: From and to which row of its pieces it goes, where it is a part of a file; None: all of them.
    """

    ordinal: int
    key: str
    first_row: int = 0
    pieces: tuple[Piece, ...] = ()
    rows: int | None = None
    within: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """What is never cut: a file, or a row group of one.

    Attributes:
        group: None: the whole file.
        rows: None: nobody has counted them.
    """

    file: int
    group: int | None
    rows: int | None
    size_bytes: int

    @property
    def weight(self) -> int:
        """Its rows, or about so many."""
        return self.rows if self.rows is not None else max(1, self.size_bytes // USUAL_ROW_BYTES)


def plan(binding: str) -> Sequence[Shard]:
    """The shards of an input for one process, which takes all of it: a single one.

    Args:
        binding: Of the input and all options that shape the output (`resume.binding`).
    """
    return (Shard(ordinal=0, key=binding),)


def rows_for(units: Sequence[Unit], workers: int) -> int:
    """Rows of a shard where no option says so: as many as usual, but some shards for each of several workers."""
    if workers == 1:
        return SHARD_ROWS
    rows = sum(unit.weight for unit in units)
    return min(SHARD_ROWS, max(LEAST_ROWS, -(-rows // (workers * SHARDS_EACH))))


def cut(units: Sequence[Unit], binding: str, shard_rows: int = SHARD_ROWS) -> tuple[Shard, ...]:
    """The shards of an input: of about `shard_rows` rows each, whole units, at least one shard.

    `first_row` is right where the rows of all units before are known.
    """
    shards: list[Shard] = []
    first_row = 0
    for taken in _runs(units, shard_rows):
        counted = [unit.rows for unit in taken]
        rows = None if None in counted else sum(filter(None, counted))
        ordinal = len(shards)
        key = blake2b(f"{binding} {ordinal} {shard_rows}".encode(), digest_size=16).hexdigest()
        shards.append(Shard(ordinal=ordinal, key=key, first_row=first_row, pieces=tuple(_pieces(taken)), rows=rows))
        first_row += sum(unit.weight for unit in taken)
    return tuple(shards) or (Shard(ordinal=0, key=binding),)


def divided(shard: Shard, rows: int, shard_rows: int) -> tuple[Shard, ...]:
    """A shard of one large file, in equal parts of about `shard_rows` rows; each reads the file up to its end.

    Args:
        rows: That it has.
    """
    parts = max(1, min(-(-rows // shard_rows), rows))
    borders = [rows * number // parts for number in range(parts + 1)]
    return tuple(
        replace(shard, first_row=shard.first_row + start, rows=end - start, within=(start, end))
        for start, end in itertools.pairwise(borders)
    )


def numbered(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """The same in their order."""
    return tuple(replace(shard, ordinal=number) for number, shard in enumerate(shards))


def _runs(units: Sequence[Unit], shard_rows: int) -> Iterator[list[Unit]]:
    taken: list[Unit] = []
    weight = 0
    for unit in units:
        if taken and weight + unit.weight > shard_rows:
            yield taken
            taken, weight = [], 0
        taken.append(unit)
        weight += unit.weight
    if taken:
        yield taken


def _pieces(units: Sequence[Unit]) -> Iterator[Piece]:
    """Units, those of one file together."""
    start = 0
    for at in range(1, len(units) + 1):
        if at < len(units) and units[at].file == units[start].file:
            continue
        first, last = units[start].group, units[at - 1].group
        yield units[start].file, None if first is None or last is None else (first, last + 1)
        start = at

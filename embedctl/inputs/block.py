"""Step 1, the words of reading: what is asked (ReadOptions) and what comes out (Block). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

import pyarrow as pa

from embedctl.dataclass import dataclass
from embedctl.records import RowId
from embedctl.storage.store import Store
from embedctl.storage.stores import Stores

Split = Literal["document", "lines", "paragraphs"]
Reason = Literal[
    "null", "invalid_utf8", "invalid_unicode", "too_large", "invalid_tokens", "bad_row", "bad_value", "no_id"
]

REASONS: tuple[Reason, ...] = (
    "null", "invalid_utf8", "invalid_unicode", "too_large", "invalid_tokens", "bad_row", "bad_value", "no_id"
)  # fmt: skip
"""Every reason for which a row that is there cannot be read."""

ALIKE = (
    "text_column", "template", "id_column", "split", "encoding", "format", "delimiter", "header", "max_row_bytes",
)  # fmt: skip
"""Options of a run that decide how its input is read, beside the columns that travel along."""

ROWS_PER_BLOCK = 4096
BYTES_PER_BLOCK = 4 << 20
MAX_ROW_BYTES = 100 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How inputs are read.

    Attributes:
        text_column: Tables: the column to embed, or several with commas; None finds it when that is unambiguous.
        template: Tables: a text made of several columns, instead of `text_column`.
        id_column: Tables: the column that names rows; None finds it, else rows are numbered from 0.
        keep: Other columns that travel along: "all", "none" or their names.
        split: Text files: what one row is.
        encoding: Of text files, JSON Lines and CSV; a Python codec name.
        format: Of every input, by name; None: what its name says, else its content.
        delimiter: Of CSV; None: as its first rows look.
        header: Whether the first row of CSV names the columns; None: as its first rows look.
        on_bad_file: A file that cannot be read ends the run ("fail"), or is left out.
        max_row_bytes: A row whose text (in UTF-8), id and kept columns are larger together has the reason "too_large".
        spool: Folder that keeps what comes from stdin or a pipe, so that a resume can read it again;
            None keeps it in an unnamed temporary file.
        leave_out: Files that are no input though an argument means them: the output of an earlier run.
        stores: How object stores are reached.
    """

    text_column: str | None = None
    template: str | None = None
    id_column: str | None = None
    keep: Literal["all", "none"] | tuple[str, ...] = "all"
    split: Split = "document"
    encoding: str = "utf-8"
    format: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    on_bad_file: Literal["fail", "skip"] = "fail"
    max_row_bytes: int = MAX_ROW_BYTES
    spool: Path | None = None
    leave_out: tuple[Path, ...] = ()
    stores: Stores = field(default_factory=Stores, repr=False)


@dataclass(slots=True)
class Position:
    """How far a file is read, in bytes as they lie on disk."""

    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInput:
    """An object of a store, as it was listed: another one under its name is not read."""

    store: Store = field(compare=False, repr=False)
    name: str
    size: int
    etag: str | None
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file to read.

    Attributes:
        path: Where its bytes are; for a pipe, its spooled copy; of an object, its name.
        label: Path relative to the input root, UTF-8 whatever the file system holds; the id of its text.
        kind: The name of its format.
        compression: How it is decompressed while it is read; None: it is not compressed.
        size_bytes: At the start; what is appended later is not read.
        partitions: Columns that the names of its folders give (`lang=de`); a value may be null.
        is_named: Its name is the user's own word; else a folder or a glob has it.
        digest: blake2b-128 of the content where it came through a pipe, else None.
        spooled: Unnamed copy of a pipe that is gone when this object is.
        stored: The object that it is, where it is in a store.
        position: How far it is read, where it is text.
        groups: First row group that is read of it, and the first that is not; None: all of it.
    """

    path: Path
    label: str
    kind: str
    compression: str | None
    size_bytes: int
    mtime_ns: int
    partitions: tuple[tuple[str, str | None], ...] = ()
    is_named: bool = True
    digest: str | None = None
    spooled: object | None = None
    stored: StoredInput | None = None
    position: Position = field(default_factory=Position, compare=False, repr=False)
    groups: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A contiguous run of rows, at most 4096 and about 4 MiB of text (a longer single row stands alone).

    Attributes:
        first_row: Ordinal of the first row over all inputs, from 0.
        ids: As in the input. Text files: the path relative to the input root, with `#line` (from 1) for lines
            and paragraphs. A JSON line that was too long to be parsed has the id `FILE#line` too.
        texts: None where `reasons` says why; empty when the input is token arrays.
        tokens: Token arrays, None for text inputs.
        kept: Other columns in input order, as many rows as `ids`; None when there are none.
        reasons: Position in the block → why that row has no text.
        id_column: The ids with their own type, where that is neither text nor an integer: `ids` are printed then.
        messages: Position in the block → what a person should know of that reason: file, line and what is wrong.
    """

    first_row: int
    ids: Sequence[RowId]
    texts: list[str | None]
    tokens: list[list[int] | None] | None = None
    kept: pa.RecordBatch | None = None
    reasons: dict[int, Reason] = field(default_factory=dict)
    id_column: pa.Array | None = None
    messages: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def pieces(block: Block, max_rows: int = ROWS_PER_BLOCK) -> Iterator[Block]:
    """The same rows in blocks of at most `max_rows`."""
    if len(block) <= max_rows:
        yield block
        return
    for start in range(0, len(block), max_rows):
        yield some(block, start, min(start + max_rows, len(block)))


def some(block: Block, start: int, end: int) -> Block:
    """Rows `start` to `end` (exclusive) of a block."""
    return Block(
        block.first_row + start,
        block.ids[start:end],
        block.texts[start:end],
        None if block.tokens is None else block.tokens[start:end],
        None if block.kept is None else block.kept.slice(start, end - start),
        {at - start: why for at, why in block.reasons.items() if start <= at < end},
        None if block.id_column is None else block.id_column.slice(start, end - start),
        {at - start: what for at, what in block.messages.items() if start <= at < end},
    )

"""Step 1, CSV: every value is text; quotes, and newlines within them, as RFC 4180 has them.

Arrow parses the values, whole records at a time; where records begin and end is `csv_structure`'s. Before anything is
sent, that has gone through the whole file once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import csv

from embedctl.dataclass import dataclass
from embedctl.errors import InputChanged, InputInvalid
from embedctl.inputs import csv_dialect, csv_structure, text
from embedctl.inputs.block import Block, InputFile, ReadOptions, Reason, pieces
from embedctl.inputs.columns import Columns
from embedctl.inputs.csv_dialect import Dialect
from embedctl.inputs.csv_structure import Piece, Pieces, Record
from embedctl.inputs.decoding import Utf8Stream
from embedctl.inputs.objects import not_text
from embedctl.inputs.table import UNREADABLE, Bad, InputTable

NAME = "csv"
SUFFIXES = (".csv",)
IS_TABLE = True
IS_TEXT = True

HEAD_BYTES = csv_dialect.MOST_HEADER_BYTES


def looks_like(head: bytes) -> bool:
    """Never: any text may be CSV."""
    return False


@dataclass(frozen=True, slots=True)
class CsvLook:
    """What the look into a file found."""

    dialect: Dialect
    pieces: Pieces


def schemas(
    files: Sequence[InputFile], options: ReadOptions, bad: Bad, usual: bytes | None = None
) -> Iterator[InputTable]:
    """The columns of each file, with the types that the first values look like (null where they are empty).

    A quote that is never closed, or a first row that never ends, is a broken structure; the line is named.

    Args:
        usual: The delimiter that the format's name says.
    """
    for file in files:
        try:
            yield _table(file, options, usual)
        except UNREADABLE as error:
            bad(file, error)


def _table(file: InputFile, options: ReadOptions, usual: bytes | None) -> InputTable:
    with text.opened(file, options, by_row=True) as stream:
        head = stream.take(HEAD_BYTES)
        dialect = csv_dialect.sniffed(head, len(head) < HEAD_BYTES, options, file.label, usual)
        if dialect is None:
            return InputTable(files=(file,), schema=pa.schema([]), rows=0, is_typeless=True)
        found = _structure(file, dialect, head, stream, options)
    types = zip(dialect.names, dialect.types, strict=True)
    return InputTable(files=(file,), schema=pa.schema(types), rows=None, is_typeless=True, seen=CsvLook(dialect, found))


def _structure(file: InputFile, dialect: Dialect, head: bytes, stream: Utf8Stream, options: ReadOptions) -> Pieces:
    def chunks() -> Iterable[bytes]:
        if begin := head[dialect.begin :]:
            yield begin
        yield from stream.chunks()

    try:
        return csv_structure.pieces(
            chunks(),
            dialect.delimiter,
            dialect.line_end,
            first_line=dialect.line,
            max_record_bytes=options.max_row_bytes,
        )
    except csv_structure.BrokenQuoteError as broken:
        what = "is never closed"
        if broken.closed is not None:
            what = f"is closed in line {broken.closed}, in the middle of a value"
        raise InputInvalid(
            f"{file.label}: line {broken.line}: the quote that begins a value there {what}",
            hint="close it; a quote within a quoted value is written twice",
        ) from broken


def rows(
    file: InputFile, columns: Columns, options: ReadOptions, seen: CsvLook | None, first_row: int
) -> Iterator[Block]:
    """Rows of one file, in order; one with more or fewer values than the first row cannot be read."""
    if seen is None:
        return
    with text.opened(file, options, by_row=True) as stream:
        stream.take(seen.dialect.begin)
        for piece in seen.pieces:
            if piece.is_too_large:
                _skip(stream, piece.size_bytes)
                block = _too_large(file, columns, piece, first_row)
            else:
                content = stream.take(piece.size_bytes)
                if len(content) != piece.size_bytes:
                    raise InputChanged(f"{file.label} is shorter than it was", hint="run the same command again")
                block = _Piece(file, columns, options, seen.dialect, piece).block(content, first_row)
            if len(block):
                yield from pieces(block)
            first_row += len(block)


def _skip(stream: Utf8Stream, size_bytes: int) -> None:
    while size_bytes and (chunk := stream.read(min(size_bytes, csv_structure.PIECE_BYTES))):
        size_bytes -= len(chunk)


def _too_large(file: InputFile, columns: Columns, piece: Piece, first_row: int) -> Block:
    kept = pa.RecordBatch.from_arrays([pa.nulls(1, one.type) for one in columns.kept], schema=columns.kept)
    return Block(
        first_row,
        [first_row] if columns.id is None else [f"{file.label}#{piece.line}"],
        [None],
        None,
        kept if columns.kept.names else None,
        {0: "too_large"},
        messages={0: f"{file.label}: line {piece.line}: the row is larger than --max-row-bytes"},
    )


@dataclass(slots=True)
class _Piece:
    """Records that are parsed together, and what is wrong with some of them."""

    file: InputFile
    columns: Columns
    options: ReadOptions
    dialect: Dialect
    piece: Piece

    def block(self, content: bytes, first_row: int) -> Block:
        """Their rows."""
        reasons: dict[int, Reason] = {}
        messages: dict[int, str] = {}
        bad: list[Record] = []
        is_utf8 = _is_utf8(content)
        valid = content if is_utf8 else content.decode(errors="replace").encode()
        batch, ragged = self._parsed(valid)
        if ragged or self.piece.is_dirty or not is_utf8:
            bad = self._records(content)
            self._blame(content, bad, ragged, reasons, messages)
            if ragged:
                batch = _with_gaps(batch, set(ragged), len(bad))
        return self._read(batch, first_row, bad, reasons, messages)

    def _parsed(self, content: bytes) -> tuple[pa.RecordBatch, dict[int, int]]:
        """The columns that are asked for, of rows that have all of them; and position → values of the others."""
        names = [str(at) for at in range(len(self.dialect.names))]
        wanted = [str(self.dialect.names.index(name)) for name in self.columns.names]
        ragged: dict[int, int] = {}

        def refuse(row: csv.InvalidRow) -> str:
            ragged[row.number - 1] = row.actual_columns
            return "skip"

        table = csv.read_csv(
            pa.BufferReader(content),
            read_options=csv.ReadOptions(use_threads=False, block_size=len(content) + 1, column_names=names),
            parse_options=csv.ParseOptions(
                delimiter=self.dialect.delimiter.decode(), newlines_in_values=True, invalid_row_handler=refuse
            ),
            convert_options=csv.ConvertOptions(
                check_utf8=False,
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=False,
            ),
        )
        arrays = [_whole(column) for column in table.columns]
        return pa.RecordBatch.from_arrays(arrays, names=self.columns.names), ragged

    def _records(self, content: bytes) -> list[Record]:
        dialect = self.dialect
        return csv_structure.records(content, dialect.delimiter, dialect.line_end, self.piece.line)

    def _blame(
        self,
        content: bytes,
        records: list[Record],
        ragged: dict[int, int],
        reasons: dict[int, Reason],
        messages: dict[int, str],
    ) -> None:
        width, label = len(self.dialect.names), self.file.label
        for at, record in enumerate(records):
            values = content[record.start : record.end]
            if (why := self._not_text(values, record)) is not None:
                reasons[at], messages[at] = "invalid_utf8", why
            elif at in ragged:
                reasons[at] = "bad_row"
                messages[at] = f"{label}: line {record.line}: {ragged[at]} values where {width} belong"
            elif record.is_dirty:
                reasons[at] = "bad_row"
                messages[at] = f"{label}: line {record.line}: a value goes on after its closing quote"

    def _not_text(self, values: bytes, record: Record) -> str | None:
        """What is wrong with a record that is no UTF-8, and in which line; None where nothing is."""
        if _is_utf8(values):
            return None
        for number, line in enumerate(values.split(self.dialect.line_end), record.line):
            if why := not_text(line, self.options.encoding):
                return f"{self.file.label}: line {number}: {why}"
        return None

    def _read(
        self,
        batch: pa.RecordBatch,
        first_row: int,
        records: list[Record],
        reasons: dict[int, Reason],
        messages: dict[int, str],
    ) -> Block:
        columns = self.columns
        column = batch.column(columns.text)
        import pyarrow.compute as pc  # a tenth of the start of a run that reads no table

        sizes = pc.binary_length(column).to_numpy(zero_copy_only=False)
        texts: list[str | None] = column.to_numpy(zero_copy_only=False).tolist()
        for large in np.flatnonzero(sizes > self.options.max_row_bytes).tolist():
            reasons.setdefault(large, "too_large")
        ids: list[str] | list[int] = list(range(first_row, first_row + batch.num_rows))
        if columns.id is not None:
            ids = batch.column(columns.id).to_numpy(zero_copy_only=False).tolist()
        for at in reasons:
            texts[at] = None
            if records and columns.id is not None and (ids[at] is None or "\ufffd" in str(ids[at])):
                ids[at] = f"{self.file.label}#{records[at].line}"  # type: ignore[call-overload]
        kept = None
        if columns.kept.names:
            kept = pa.RecordBatch.from_arrays([batch.column(name) for name in columns.kept.names], schema=columns.kept)
        return Block(first_row, ids, texts, None, kept, reasons, messages=messages)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.chunked_array(column.chunks, pa.string()).combine_chunks()


def _with_gaps(batch: pa.RecordBatch, gaps: set[int], count: int) -> pa.RecordBatch:
    """The rows with an empty one at each position of `gaps`."""
    there = np.ones(count, bool)
    there[list(gaps)] = False
    order = np.cumsum(there) - 1
    return batch.take(pa.array(order, mask=~there))

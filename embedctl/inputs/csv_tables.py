"""Step 1, CSV and TSV: every value is text; quotes, and newlines within them, as RFC 4180 has them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from embedctl.errors import InputInvalid
from embedctl.inputs import text
from embedctl.inputs.block import Block, ReadOptions, Reason, pieces
from embedctl.inputs.columns import Columns
from embedctl.inputs.decoding import Utf8Stream
from embedctl.inputs.files import InputFile

SNIFF_BYTES = 1 << 20
ROW_BYTES = 16 << 20  # no row is longer; arrow holds a few such blocks
STOP_S = 0.5
"""So long an error waits at most for arrow's thread to ask again, and hear that there is nothing more."""
_DELIMITERS = ",;\t|"


def schema(file: InputFile, options: ReadOptions) -> pa.Schema:
    """The header, with the types that the first values look like (null where they are empty).

    An empty file has no columns.

    Raises:
        InputInvalid: A row with more or fewer values than the header.
    """
    try:
        with _reader(file, options, None, SNIFF_BYTES) as reader:
            return pa.schema([]) if reader is None else reader.schema
    except _RowTooLong:
        with _reader(file, options, None, ROW_BYTES) as reader:
            return pa.schema([]) if reader is None else reader.schema


def blocks(file: InputFile, columns: Columns, options: ReadOptions, first_row: int) -> Iterator[Block]:
    """Rows of one file, in order.

    Raises:
        InputInvalid: A row with more or fewer values than the header (it is named), or of more than 16 MiB.
    """
    with _reader(file, options, columns.names, ROW_BYTES) as reader:
        for batch in reader or ():
            yield from pieces(_block(batch, first_row, columns, options))
            first_row += batch.num_rows


def _block(batch: pa.RecordBatch, first_row: int, columns: Columns, options: ReadOptions) -> Block:
    reasons: dict[int, Reason] = {}
    column = batch.column(columns.text)
    sizes = pc.binary_length(column).to_numpy(zero_copy_only=False)
    texts: list[str | None] = column.to_numpy(zero_copy_only=False).tolist()
    for at in np.flatnonzero(sizes > options.max_row_bytes):
        reasons[int(at)] = "too_large"
        texts[at] = None
    ids: list[str] | list[int] = list(range(first_row, first_row + batch.num_rows))
    if columns.id is not None:
        ids = batch.column(columns.id).to_numpy(zero_copy_only=False).tolist()
    kept = None
    if columns.kept.names:
        kept = pa.RecordBatch.from_arrays([batch.column(name) for name in columns.kept.names], schema=columns.kept)
    return Block(first_row, ids, texts, None, kept, reasons)


class _ReadAhead:
    """A stream that a thread of arrow reads ahead from, and that can be taken away from it.

    After an error that thread goes on reading; if the interpreter ends meanwhile, it ends with signal 6.
    """

    closed = False

    def __init__(self, stream: Utf8Stream) -> None:
        self._stream = stream
        self._reading = threading.Lock()
        self._is_over = False
        self._thread_knows = threading.Event()

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._reading:  # a read under way comes to its end
            self._is_over = True
        if isinstance(error, pa.ArrowInvalid):
            self._thread_knows.wait(STOP_S)

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The stream's bytes; none once it is over."""
        with self._reading:
            found = b"" if self._is_over else self._stream.read(size)
        if not found:
            self._thread_knows.set()
        return found

    def close(self) -> None:
        """Nothing: who opened the stream closes it."""


class _RowTooLong(InputInvalid):
    """A row does not fit into a block."""


@contextmanager
def _reader(
    file: InputFile, options: ReadOptions, names: list[str] | None, block_bytes: int
) -> Iterator[csv.CSVStreamingReader | None]:
    """Open a streaming reader; None for an empty file. Without names, types are guessed."""
    ragged: list[csv.InvalidRow] = []

    def refuse(row: csv.InvalidRow) -> str:
        ragged.append(row)
        return "error"

    convert = csv.ConvertOptions(check_utf8=False)  # the stream has checked it
    if names is not None:
        convert = csv.ConvertOptions(
            check_utf8=False,
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=False,
        )
    try:
        with text.opened(file, options) as stream, _ReadAhead(stream) as ahead:
            if not (delimiter := _delimiter(file, options)):
                yield None
                return
            with csv.open_csv(
                pa.PythonFile(ahead, "r"),
                read_options=csv.ReadOptions(use_threads=False, block_size=block_bytes),
                parse_options=csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse
                ),
                convert_options=convert,
            ) as reader:
                yield reader
    except pa.ArrowInvalid as problem:
        raise _translated(file, problem, ragged, block_bytes) from problem


def _translated(
    file: InputFile, problem: pa.ArrowInvalid, ragged: list[csv.InvalidRow], block_bytes: int
) -> InputInvalid:
    if ragged:
        row = ragged[0]
        return InputInvalid(
            f"{file.label}: row {row.number} has {row.actual_columns} values, the header has {row.expected_columns}",
            hint="a value that holds the delimiter or a newline must be in double quotes",
        )
    if "straddling" in str(problem):
        return _RowTooLong(
            f"{file.label}: a row is longer than {block_bytes >> 20} MiB, or a quote is never closed",
            hint="JSON Lines and Parquet take longer rows",
        )
    if "Empty CSV" in str(problem):
        return InputInvalid(f"{file.label}: the header never ends", hint="is one of its quotes left open?")
    return InputInvalid(f"{file.label} is no CSV: {problem}")


def _delimiter(file: InputFile, options: ReadOptions) -> str:
    """By the extension, else the one that the header holds most; empty when there is no header."""
    with text.opened(file, options) as stream:
        header = ""
        while not header.strip() and (chunk := stream.read(SNIFF_BYTES)):
            header = chunk.decode(errors="replace").lstrip().split("\n", 1)[0]
    if not header.strip():
        return ""
    if file.label.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
        return "\t"
    return "," if "," in header else max(_DELIMITERS, key=header.count)

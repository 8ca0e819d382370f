"""Step 1, Arrow: IPC files, as Feather is, and IPC streams; a batch at a time, checked before a value is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from embedctl.errors import InputInvalid
from embedctl.inputs import arrow_rows, raw
from embedctl.inputs.arrow_rows import checked, read_names
from embedctl.inputs.block import Block, InputFile, ReadOptions
from embedctl.inputs.columns import Columns
from embedctl.inputs.table import UNREADABLE, Bad, InputTable

NAME = "arrow"
SUFFIXES = (".arrow", ".arrows", ".feather", ".ipc")
IS_TABLE = True
IS_TEXT = False

_FILE_MAGIC = b"ARROW1\0\0"
_STREAM_MARK = b"\xff\xff\xff\xff"
_OLD_FEATHER = b"FEA1"


def looks_like(head: bytes) -> bool:
    """Whether it begins as a file or a stream does."""
    return head.startswith(_FILE_MAGIC) or (head.startswith(_STREAM_MARK) and head[7:8] == b"\0")


def schemas(files: Sequence[InputFile], options: ReadOptions, bad: Bad) -> Iterator[InputTable]:
    """A look at each file's schema."""
    for file in files:
        try:
            with _opened(file, None) as reader, checked(file.label, "its schema is damaged"):
                schema = reader.schema
                read_names(schema)
        except UNREADABLE as error:
            bad(file, error)
        else:
            yield InputTable(files=(file,), schema=schema, rows=None)


def rows(file: InputFile, columns: Columns, options: ReadOptions, seen: None, first_row: int) -> Iterator[Block]:
    """Rows of one file, in order.

    Raises:
        InputInvalid: A batch is damaged (it is named).
    """
    number = 0
    with _opened(file, columns.names) as reader:
        while True:
            with checked(file.label, f"batch {number} is damaged"):
                batch = _next(reader, number)
                if batch is None:
                    return
                _check(batch)
            yield from arrow_rows.blocks(batch, first_row, columns, options, file.label)
            first_row += batch.num_rows
            number += 1


def _next(reader: pa.RecordBatchReader | pa.RecordBatchFileReader, number: int) -> pa.RecordBatch | None:
    if isinstance(reader, pa.RecordBatchFileReader):
        return reader.get_batch(number) if number < reader.num_record_batches else None
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None


def _check(batch: pa.RecordBatch) -> None:
    """Refuse offsets that lead out of their buffers, which arrow follows; text that is no UTF-8 is its row's matter."""
    for column in batch.columns:
        if pa.types.is_string(column.type):
            column.view(pa.binary()).validate(full=True)
        elif pa.types.is_large_string(column.type):
            column.view(pa.large_binary()).validate(full=True)
        else:
            column.validate(full=True)


@contextmanager
def _opened(file: InputFile, names: Sequence[str] | None) -> Iterator[pa.RecordBatchReader | pa.RecordBatchFileReader]:
    """A reader of the columns of these names; of all of them, without names."""
    with checked(file.label, "not an Arrow file, or a damaged one"):
        source = raw.arrow_file(file)
    with source:
        head = source.read(len(_FILE_MAGIC))
        source.seek(0)
        if head.startswith(_OLD_FEATHER):
            raise InputInvalid(f"{file.label} is Feather of the first version", hint="write it as Arrow or Parquet")
        open_it = pa.ipc.open_file if head == _FILE_MAGIC else pa.ipc.open_stream
        with checked(file.label, "not an Arrow file, or a damaged one"):
            reader = open_it(source)
            if names is not None:
                chosen = [reader.schema.get_field_index(name) for name in names]
                source.seek(0)
                reader = open_it(
                    source, options=pa.ipc.IpcReadOptions(included_fields=sorted(chosen), use_threads=False)
                )
        yield reader

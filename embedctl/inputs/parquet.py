"""Step 1, Parquet: streamed, only the columns that are asked for, nothing expanded before it is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedctl.errors import InputInvalid, InputMissing
from embedctl.inputs import columns as read_columns
from embedctl.inputs.block import BYTES_PER_BLOCK, ROWS_PER_BLOCK, Block, ReadOptions, Reason
from embedctl.inputs.columns import Columns
from embedctl.inputs.files import InputFile

BUFFER_BYTES = 1 << 20  # read a column chunk piece by piece, however large the row group
BATCH_BYTES = 32 << 20
BATCH_ROWS_DICTIONARY = 65_536  # each batch costs a look at its whole dictionary
BATCH_ROWS_DELTA = 256  # a repeated prefix takes no room in the file, and no footer tells
TOKEN_BYTES = 8
NOT_PARQUET = "not a Parquet file, or a damaged one"


def schema(file: InputFile) -> tuple[pa.Schema, int]:
    """The file's columns and its number of rows, by its footer.

    Raises:
        InputInvalid: It is no Parquet file, or a damaged one.
    """
    with _checked(file, NOT_PARQUET), _opened(file, []) as table:
        return table.schema_arrow, table.metadata.num_rows


def blocks(file: InputFile, columns: Columns, options: ReadOptions, first_row: int) -> Iterator[Block]:
    """Rows of one file, in order.

    Raises:
        InputInvalid: A row group is damaged (it is named), or a kept value or an id is not valid UTF-8.
    """
    with _checked(file, NOT_PARQUET):
        table = _opened(file, [])
    with table:
        for group in range(table.num_row_groups):
            seen = 0
            for batch in _batches(file, table, group, columns):
                with _checked(file, f"row group {group} is damaged"):
                    cuts = _cuts(batch)
                for start, end in cuts:
                    yield _block(batch.slice(start, end - start), first_row, columns, options, file)
                    first_row += end - start
                seen += batch.num_rows
            promised = table.metadata.row_group(group).num_rows
            if seen != promised:
                raise InputInvalid(f"{file.label}: row group {group} holds {seen} rows, its footer says {promised}")


@contextmanager
def _checked(file: InputFile, what: str) -> Iterator[None]:
    """Arrow's errors as ours."""
    try:
        yield
    except FileNotFoundError as gone:
        raise InputMissing(f"no such file: {file.label}") from gone
    except PermissionError as refused:
        raise InputMissing(f"no permission to read {file.label}") from refused
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as damaged:
        first_line = str(damaged).split("\n", 1)[0]
        raise InputInvalid(f"{file.label}: {what}: {first_line}") from damaged


def _opened(file: InputFile, as_dictionary: Sequence[str]) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.OSFile(os.fsencode(file.path)),  # text might be taken for a URI, and must be UTF-8
        read_dictionary=list(as_dictionary),
        buffer_size=BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def _is_bytes(column: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(column) for is_kind in kinds)


def _batches(file: InputFile, table: pq.ParquetFile, group: int, columns: Columns) -> Iterator[pa.RecordBatch]:
    what = f"row group {group} is damaged"
    with _checked(file, what):
        rows = _batch_rows(file, table, group, columns)
        batches = table.iter_batches(
            batch_size=rows,
            row_groups=[group],
            columns=columns.names,
            use_threads=False,
        )
    while True:
        with _checked(file, what):
            batch = next(batches, None)
            if batch is None:
                return
        yield batch


def _batch_rows(file: InputFile, table: pq.ParquetFile, group: int, columns: Columns) -> int:
    """Rows that surely decode to some 32 MiB at most, whatever the footer says.

    A file of some hundred bytes can hold gigabytes of one repeated value (facts/faults.md I16), so the longest
    value of each dictionary is looked up. Reading text as dictionary all the way would do too, but gathers every
    distinct value of a row group in memory.
    """
    described = table.metadata.row_group(group)
    wanted = {field.name: field.type for field in table.schema_arrow if field.name in columns.names}
    rows = BATCH_ROWS_DICTIONARY if any(map(pa.types.is_dictionary, wanted.values())) else ROWS_PER_BLOCK
    repeating: list[str] = []
    size_bytes = 0
    for index in range(described.num_columns):
        column = described.column(index)
        name = column.path_in_schema
        if name not in wanted and name.split(".", 1)[0] not in wanted:
            continue
        size_bytes += max(column.total_uncompressed_size, 4 * column.num_values)
        if name in wanted and column.physical_type == "BYTE_ARRAY":
            if any("DICTIONARY" in encoding for encoding in column.encodings):
                repeating.append(name)
            if "DELTA_BYTE_ARRAY" in column.encodings:
                rows = min(rows, BATCH_ROWS_DELTA)
    longest_bytes = max(size_bytes // max(described.num_rows, 1), *_longest(file, group, repeating), 1)
    return int(min(rows, max(BATCH_BYTES // longest_bytes, 1)))


def _longest(file: InputFile, group: int, names: list[str]) -> tuple[int, ...]:
    """Bytes of the longest value in each column's dictionary page; reads that page and the first of data."""
    if not names:
        return (0,)
    with _opened(file, names) as table:
        first = next(table.iter_batches(batch_size=1, row_groups=[group], columns=names, use_threads=False), None)
    if first is None:
        return (0,)
    sizes = (_lengths(column.dictionary) for column in first.columns if pa.types.is_dictionary(column.type))
    return (0, *(int(each.max()) for each in sizes if each is not None and len(each)))


def _lengths(column: pa.Array) -> NDArray[np.int64] | None:
    """Bytes per row of a column whose values vary in length, None for others; nothing is decoded."""
    if pa.types.is_dictionary(column.type):
        sizes = _lengths(column.dictionary)
        indices = column.indices.fill_null(-1) if column.null_count else column.indices
        indices = indices.to_numpy(zero_copy_only=False)
        return None if sizes is None else np.append(sizes, 0)[indices]
    if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
        column = column.cast(pa.large_binary())  # arrow measures no views yet
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not (is_list or _is_bytes(column.type)):
        return None
    if not column.null_count and not is_list:
        return _between_offsets(column)
    import pyarrow.compute as pc  # 40 ms, not for every table

    return TOKEN_BYTES * _int64(pc.list_value_length(column)) if is_list else _int64(pc.binary_length(column))


def _between_offsets(column: pa.Array) -> NDArray[np.int64]:
    """Bytes per row of strings or bytes without nulls, from what arrow keeps beside them."""
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    ends = np.frombuffer(column.buffers()[1] or b"", np.int64 if large else np.int32)
    return np.diff(ends[column.offset : column.offset + len(column) + 1]).astype(np.int64, copy=False)


def _int64(column: pa.Array) -> NDArray[np.int64]:
    return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _cuts(batch: pa.RecordBatch) -> list[tuple[int, int]]:
    """Where to cut a batch so that no piece decodes to much more than a block's bytes."""
    total = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes = _lengths(column)
        if sizes is not None:
            total += sizes
    ends = np.cumsum(total)
    cuts: list[tuple[int, int]] = []
    start = 0
    while start < batch.num_rows:
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + BYTES_PER_BLOCK, side="right"))
        end = min(max(end, start + 1), start + ROWS_PER_BLOCK, batch.num_rows)
        cuts.append((start, end))
        start = end
    return cuts


def _block(batch: pa.RecordBatch, first_row: int, columns: Columns, options: ReadOptions, file: InputFile) -> Block:
    with _checked(file, f"rows from {first_row} cannot be read"):
        reasons: dict[int, Reason] = {}
        column = batch.column(columns.text)
        texts: list[str | None] = []
        tokens: list[list[int] | None] | None = None
        if columns.is_tokens:
            tokens = _tokens(column, reasons)
        else:
            texts = _texts(column, reasons, options.max_row_bytes)
        return Block(
            first_row,
            _ids(batch, first_row, columns, file),
            texts,
            tokens,
            _kept(batch, first_row, columns, file),
            reasons,
        )


def _texts(column: pa.Array, reasons: dict[int, Reason], max_row_bytes: int) -> list[str | None]:
    sizes = _lengths(column)
    if sizes is not None and len(sizes) and int(sizes.max()) > max_row_bytes:
        too_large = sizes > max_row_bytes
        reasons.update((int(at), "too_large") for at in np.flatnonzero(too_large).tolist())
        import pyarrow.compute as pc

        column = pc.if_else(pa.array(too_large), pa.scalar(None, column.type), column)
    column = _decoded(column)
    if column.null_count:
        for at in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
            reasons.setdefault(at, "null")
    if _is_valid(column):
        return column.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]  # pyarrow is untyped
    texts: list[str | None] = []
    for at, value in enumerate(column.cast(pa.binary()).to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            reasons[at] = "invalid_utf8"
    return texts


def _decoded(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    plain = read_columns.plain(column.type)
    return column if plain == column.type else column.cast(plain)


def _is_valid(column: pa.Array) -> bool:
    """Whether every string is valid UTF-8; pyarrow neither checks it on reading nor in `validate()`."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _tokens(column: pa.Array, reasons: dict[int, Reason]) -> list[list[int] | None]:
    arrays: list[Any] = column.to_pylist()
    for at, array in enumerate(arrays):
        if array is None:
            reasons[at] = "null"
        elif not all(token is not None and token >= 0 for token in array):
            reasons[at] = "invalid_tokens"
            arrays[at] = None
    return arrays


def _ids(batch: pa.RecordBatch, first_row: int, columns: Columns, file: InputFile) -> list[str] | list[int]:
    if columns.id is None:
        return list(range(first_row, first_row + batch.num_rows))
    ids = _decoded(batch.column(columns.id))
    if ids.null_count:
        at = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputInvalid(
            f"{file.label}: row {first_row + at} has no {columns.id!r}", hint="choose another column with --id-column"
        )
    if not _is_valid(ids):
        raise InputInvalid(
            f"{file.label}: column {columns.id!r} is not valid UTF-8 in rows from {first_row}",
            hint="choose another column with --id-column",
        )
    return ids.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]  # pyarrow is untyped


def _kept(batch: pa.RecordBatch, first_row: int, columns: Columns, file: InputFile) -> pa.RecordBatch | None:
    if not columns.kept.names:
        return None
    arrays = []
    for field in columns.kept:
        array = _decoded(batch.column(field.name))
        if not _is_valid(array):
            raise InputInvalid(
                f"{file.label}: column {field.name!r} is not valid UTF-8 in rows from {first_row}",
                hint="leave it out with --keep",
            )
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=columns.kept)

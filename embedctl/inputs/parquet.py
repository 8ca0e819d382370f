"""Step 1, Parquet: streamed, only the columns that are asked for, nothing expanded before it is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedctl.errors import InputInvalid
from embedctl.inputs import arrow_rows, raw, row_bytes
from embedctl.inputs.arrow_rows import checked, read_names
from embedctl.inputs.block import ROWS_PER_BLOCK, Block, InputFile, ReadOptions
from embedctl.inputs.columns import Columns
from embedctl.inputs.table import UNREADABLE, Bad, InputTable
from embedctl.storage.store_file import READ_AHEAD

BUFFER_BYTES = 1 << 20  # read a column chunk piece by piece, however large the row group
WHOLE_GROUP_BYTES = 64 << 20  # a row group in a store that is not larger is read at once, others piece by piece
BATCH_BYTES = 32 << 20
MOST_BATCH_BYTES = 128 << 20  # above, the columns' longest values together count: a resume counts by older blocks
BATCH_ROWS_DICTIONARY = 65_536  # each batch costs a look at its whole dictionary
BATCH_ROWS_DELTA = 256  # a repeated prefix takes no room in the file, and no footer tells
NAME = "parquet"
SUFFIXES = (".parquet", ".pq", ".parq")
IS_TABLE = True
IS_TEXT = False
NOT_PARQUET = "not a Parquet file, or a damaged one"


def looks_like(head: bytes) -> bool:
    """Whether it begins as every Parquet file does."""
    return head.startswith(b"PAR1")


def schemas(files: Sequence[InputFile], options: ReadOptions, bad: Bad) -> Iterator[InputTable]:
    """A look at each file's footer."""
    for file in files:
        try:
            found, count = schema(file)
        except UNREADABLE as error:
            bad(file, error)
        else:
            yield InputTable(files=(file,), schema=found, rows=count)


def rows(file: InputFile, columns: Columns, options: ReadOptions, seen: None, first_row: int) -> Iterator[Block]:
    """See `blocks`."""
    return blocks(file, columns, options, first_row)


def schema(file: InputFile) -> tuple[pa.Schema, int]:
    """The file's columns and its number of rows, by its footer.

    Raises:
        InputInvalid: It is no Parquet file, or a damaged one.
    """
    with checked(file.label, NOT_PARQUET), _opened(file, []) as table:
        read_names(table.schema_arrow)
        return table.schema_arrow, table.metadata.num_rows


def group_rows(file: InputFile) -> list[int]:
    """Rows of each row group, by its footer.

    Raises:
        InputInvalid: It is no Parquet file, or a damaged one.
    """
    with checked(file.label, NOT_PARQUET), _opened(file, []) as table:
        return [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]


def blocks(file: InputFile, columns: Columns, options: ReadOptions, first_row: int) -> Iterator[Block]:
    """Rows of one file, in order.

    Raises:
        InputInvalid: A row group is damaged (it is named).
    """
    with checked(file.label, NOT_PARQUET):
        table = _opened(file, [], columns=columns)
    with table:
        for group in range(*(file.groups or (0, table.num_row_groups))):
            seen = 0
            for batch in _batches(file, table, group, columns):
                for block in arrow_rows.blocks(batch, first_row, columns, options, file.label):
                    yield block
                    first_row += len(block)
                seen += batch.num_rows
            promised = table.metadata.row_group(group).num_rows
            if seen != promised:
                raise InputInvalid(f"{file.label}: row group {group} holds {seen} rows, its footer says {promised}")


def _opened(
    file: InputFile,
    as_dictionary: Sequence[str],
    int96: str | None = None,
    *,
    metadata: pq.FileMetaData | None = None,
    columns: Columns | None = None,
) -> pq.ParquetFile:
    """A reader.

    Args:
        metadata: The footer, where it was read before.
        columns: What will be read to the end.
    """
    buffer_bytes, is_whole = BUFFER_BYTES, False
    if int96 is None:
        with _opened(file, [], "ns") as fine:
            _refuse_encrypted(file, fine.metadata)
            metadata, int96 = fine.metadata, _int96_unit(file, fine)
            if file.stored is not None and columns is not None:
                is_whole = _most_bytes(file, fine, columns) <= WHOLE_GROUP_BYTES
                buffer_bytes = max(BUFFER_BYTES, min(READ_AHEAD, WHOLE_GROUP_BYTES // max(1, len(columns.names))))
    return pq.ParquetFile(
        raw.arrow_file(file, ahead=0),
        metadata=metadata,
        read_dictionary=list(as_dictionary),
        buffer_size=buffer_bytes,
        pre_buffer=is_whole,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit=int96,
    )


def _refuse_encrypted(file: InputFile, metadata: pq.FileMetaData) -> None:
    """Refuse a file with encrypted columns whose footer can be read: pyarrow ends the process that looks at them.

    Such a footer is followed by its signature, a nonce and a tag. Source: apache/parquet-format, Encryption.md 5.5.

    Raises:
        InputInvalid: It is one.
    """
    with raw.arrow_file(file, ahead=0) as content:
        footer_bytes = int.from_bytes(content.read_at(_FOOTER_BYTES, content.size() - _TAIL_BYTES), "little")
    if footer_bytes == metadata.serialized_size + _SIGNATURE_BYTES:
        raise InputInvalid(f"{file.label}: encrypted Parquet", hint="decrypt it first: no keys of files are known")


_TAIL_BYTES = 8
_FOOTER_BYTES = 4
"""Of those; what follows is the magic."""
_SIGNATURE_BYTES = 12 + 16


def _root(path: str) -> str:
    return path.split(".", 1)[0]


def _chunks(file: InputFile, table: pq.ParquetFile, group: int) -> list[tuple[str, Any]]:
    """The column chunks of a row group, as its footer describes them, by the schema's paths.

    pyarrow ends the process that looks at a chunk whose description contradicts itself; a reader that is asked for no
    row looks at all of them too, reads nothing unless it reads whole groups ahead, and raises.

    Raises:
        ArrowException, OSError: The footer is damaged.
    """
    described = table.metadata.row_group(group)
    places = list(range(described.num_columns))
    with _opened(file, [], "ns", metadata=table.metadata) as plain:
        for _ in plain.reader.iter_batches(0, row_groups=[group], column_indices=places, use_threads=False):
            pass
    return [(table.schema.column(at).path, described.column(at)) for at in places]


def _most_bytes(file: InputFile, table: pq.ParquetFile, columns: Columns) -> int:
    """What is read of the largest row group."""
    names = set(columns.names)
    groups = (_chunks(file, table, group) for group in range(table.num_row_groups))
    sizes = (sum(chunk.total_compressed_size for path, chunk in each if _root(path) in names) for each in groups)
    return max(sizes, default=0)


def _int96_unit(file: InputFile, fine: pq.ParquetFile) -> str:
    """The unit in which a file's old timestamps (INT96, of Impala, Hive and old Spark) are what was written.

    Arrow reads them as nanoseconds of 64 bits, in which 9999-12-31 silently becomes a day of the 1800s; in microseconds
    they would lose three digits as silently. So all of them are read once, both ways.

    Args:
        fine: The file, opened in nanoseconds.
    """
    described = fine.schema
    names = [described.column(at).path for at in range(len(described)) if _is_int96(described.column(at))]
    if not names:
        return "ns"
    with _opened(file, [], "us", metadata=fine.metadata) as coarse:
        pairs = zip(*(each.iter_batches(columns=names, use_threads=False) for each in (fine, coarse)), strict=True)
        flat = ((_numbers(one), _numbers(other)) for one, other in pairs)
        is_far = has_digits = False
        for numbers, microseconds in flat:
            is_far = is_far or bool((numbers // 1000 != microseconds).any())
            has_digits = has_digits or bool((numbers % 1000)[numbers // 1000 == microseconds].any())
    if is_far and has_digits:
        raise InputInvalid(
            f"{file.label}: times in {', '.join(names)} reach beyond the year 2262 and have nanoseconds, "
            "which no type holds",
            hint="leave them out with --keep, or write them as microseconds",
        )
    return "us" if is_far else "ns"


def _is_int96(column: Any) -> bool:
    return bool(column.physical_type == "INT96")


def _numbers(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """All times of a batch as numbers, however deep they are; null is 0."""
    found, waiting = [np.zeros(0, np.int64)], list(batch.columns)
    while waiting:
        column = waiting.pop()
        if pa.types.is_timestamp(column.type):
            found.append(column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))
        elif pa.types.is_struct(column.type):
            waiting += [column.field(at) for at in range(column.type.num_fields)]
        elif pa.types.is_nested(column.type):
            waiting.append(column.values)
    return np.concatenate(found)


def _batches(file: InputFile, table: pq.ParquetFile, group: int, columns: Columns) -> Iterator[pa.RecordBatch]:
    what = f"row group {group} is damaged"
    with checked(file.label, what):
        rows = _batch_rows(file, table, group, columns)
        batches = table.iter_batches(
            batch_size=rows,
            row_groups=[group],
            columns=columns.names,
            use_threads=False,
        )
    while True:
        with checked(file.label, what):
            batch = next(batches, None)
            if batch is None:
                return
        yield batch


def _batch_rows(file: InputFile, table: pq.ParquetFile, group: int, columns: Columns) -> int:
    """Rows that decode to some 32 MiB, and surely to 128 MiB at most, whatever the footer says.

    A file of some hundred bytes can hold gigabytes of one repeated value (facts/faults.md I16), so the longest
    value of each dictionary is looked up, also of those within structs, lists and maps. Reading text as dictionary
    all the way would do too, but gathers every distinct value of a row group in memory.
    """
    schema = table.schema_arrow
    wanted = dict(zip(schema.names, schema.types, strict=True))
    wanted = {name: wanted[name] for name in columns.names if name in wanted}
    rows = BATCH_ROWS_DICTIONARY if any(map(pa.types.is_dictionary, wanted.values())) else ROWS_PER_BLOCK
    repeating: dict[str, float] = {}
    row_count = max(table.metadata.row_group(group).num_rows, 1)
    size_bytes = 0
    for path, column in _chunks(file, table, group):
        if path not in wanted and _root(path) not in wanted:
            continue
        size_bytes += max(column.total_uncompressed_size, 4 * column.num_values)
        if column.physical_type == "BYTE_ARRAY":
            if any("DICTIONARY" in encoding for encoding in column.encodings):
                repeating[path] = 1 if path in wanted else column.num_values / row_count
            if "DELTA_BYTE_ARRAY" in column.encodings:
                rows = min(rows, BATCH_ROWS_DELTA)
    longest = _longest(file, table, group, repeating)
    flat_bytes = max((size for path, size in longest.items() if path in wanted), default=0)
    rows = min(rows, max(BATCH_BYTES // max(size_bytes // row_count, flat_bytes, 1), 1))
    row_bytes_most = sum(size * repeating[path] for path, size in longest.items())
    if rows * row_bytes_most > MOST_BATCH_BYTES:
        rows = min(rows, max(int(BATCH_BYTES / row_bytes_most), 1))
    return int(rows)


def _longest(file: InputFile, whole: pq.ParquetFile, group: int, repeating: Collection[str]) -> dict[str, int]:
    """Bytes of the longest value in each column's dictionary page; reads that page and the first of data."""
    if not repeating:
        return {}
    longest: dict[str, int] = {}
    with _opened(file, list(repeating), "ns", metadata=whole.metadata) as table:
        flat = {name for name in table.schema_arrow.names if name in repeating}
        for paths in (sorted(flat), *([path] for path in repeating if path not in flat)):
            batches = table.iter_batches(batch_size=1, row_groups=[group], columns=paths, use_threads=False)
            for name, column in _columns(next(batches, None) if paths else None):
                sizes = [int(np.max(row_bytes.of(one))) for one in _dictionaries(column) if len(one)]
                longest[name if name in flat else paths[0]] = max(sizes, default=0)
    return longest


def _columns(batch: pa.RecordBatch | None) -> Iterator[tuple[str, pa.Array]]:
    return iter(()) if batch is None else zip(batch.schema.names, batch.columns, strict=True)


def _dictionaries(column: pa.Array) -> Iterator[pa.Array]:
    """The dictionaries within a column, however deep."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        yield column.dictionary
    elif pa.types.is_struct(kind):
        for at in range(kind.num_fields):
            yield from _dictionaries(column.field(at))
    elif isinstance(column, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, pa.MapArray)):
        yield from _dictionaries(column.values)

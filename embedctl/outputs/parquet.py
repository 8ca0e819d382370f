"""Step 6. Vectors and rows → Parquet, whole or not at all. Door to pyarrow (output)."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, OutputRefused, StorageFailed
from embedctl.inputs.row_ids import iso, printed
from embedctl.outputs import vector_column
from embedctl.outputs.vector_column import ColumnChunk
from embedctl.records import TEXT_HASH_BYTES, Space

ROW_GROUP_ROWS = 16_384
ROW_GROUP_BYTES = 64 << 20  # of ids, texts and kept columns: the writer holds a row group a few times over
METADATA_KEY = b"embedctl"
_CHUNK_ROWS = 1024
OWN_COLUMNS = (
    "id",
    "chunk_index",
    "text",
    "embedding",
    "embedding_model",
    "embedding_provider",
    "embedding_tokens",
    "embedding_operation_id",
    "embedding_text_hash",
)

Dtype = Literal["float32", "float16", "int8"]
VectorType = Literal["fixed", "list"]

_ELEMENTS = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
_WORDS = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an output looks.

    Attributes:
        columns: Fields of the rows themselves: id, chunk_index, kept columns, text.
        dimensions: Width D of each vector.
    """

    columns: pa.Schema
    dimensions: int
    dtype: Dtype = "float32"
    vector_type: VectorType = "fixed"

    @property
    def schema(self) -> pa.Schema:
        """All columns of design.md 5, in its order."""
        element = pa.field("element", _ELEMENTS[self.dtype], nullable=False)
        width = self.dimensions if self.vector_type == "fixed" else -1
        fields = [
            *self.columns,
            pa.field("embedding", pa.list_(element, width), nullable=False),
            pa.field("embedding_model", _WORDS),
            pa.field("embedding_provider", _WORDS),
            pa.field("embedding_tokens", pa.int32()),
            pa.field("embedding_operation_id", _WORDS),
            pa.field("embedding_text_hash", pa.binary(TEXT_HASH_BYTES), nullable=False),
        ]
        return pa.schema(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The embedding columns of some rows.

    Attributes:
        vectors: float32 arrays of shape (n_i, D), one after the other n rows; wherever they are, also in mapped files.
        bought: For each row, which of `purchases` its vector comes from.
        purchases: (model, provider, operation_id) of each.
        tokens: Per row, -1 where nobody counted.
        hashes: n x 16 bytes.
    """

    vectors: Sequence[NDArray[np.float32]]
    bought: NDArray[np.int32]
    purchases: Sequence[tuple[str, str, str]]
    tokens: NDArray[np.int32]
    hashes: bytes


def quantised(vectors: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    """Vectors as the output keeps them.

    int8 scales each vector so that its largest component is ±127: directions, and so cosines, are kept; lengths are
    not. Doing it twice changes nothing.
    """
    if dtype == "float32":
        return vectors
    if dtype == "float16":
        return vectors.astype(np.float16)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled: NDArray[Any] = np.rint(vectors * (127.0 / largest)).astype(np.int8)
    return scaled


def table(rows: pa.RecordBatch | pa.Table, embeddings: Embeddings, layout: Layout) -> pa.Table:
    """Rows and their embedding columns as one table of `layout.schema`."""
    schema = layout.schema
    kind = schema.field("embedding").type
    # the writer makes 4 bytes of nesting levels per number, for a whole chunk at a time
    chunks = [
        _lists(quantised(piece[start : start + _CHUNK_ROWS], layout.dtype), kind)
        for piece in embeddings.vectors
        for start in range(0, len(piece), _CHUNK_ROWS)
    ]
    columns = [
        *rows.columns,
        pa.chunked_array(chunks, type=kind),
        *(_words([purchase[part] for purchase in embeddings.purchases], embeddings.bought) for part in (0, 1)),
        _flat(embeddings.tokens, pa.int32(), embeddings.tokens >= 0),
        _words([purchase[2] for purchase in embeddings.purchases], embeddings.bought),
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(TEXT_HASH_BYTES), len(embeddings.tokens), [None, pa.py_buffer(embeddings.hashes)]
        ),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _lists(numbers: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Vectors as a column, without a copy where they stand one after the other."""
    flat = _flat(numbers, kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    ends = np.arange(0, len(flat) + 1, numbers.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(_flat(ends, pa.int32()), flat, type=kind)


_NUMPY = {pa.int8(): np.int8, pa.int32(): np.int32, pa.float16(): np.float16, pa.float32(): np.float32}
"""Of the types of our columns; older versions of pyarrow ask pandas."""


def _flat(numbers: NDArray[Any], kind: pa.DataType, known: NDArray[np.bool_] | None = None) -> pa.Array:
    """Numbers as they are in memory; `pa.array` would load numpy's masked arrays to see that they are none.

    Args:
        known: Which of them are numbers at all; the others are null.
    """
    values = pa.py_buffer(np.ascontiguousarray(numbers, dtype=_NUMPY[kind]))
    valid = None if known is None or known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(kind, numbers.size, [valid, values])


def joined(batches: Sequence[pa.RecordBatch]) -> pa.Table | None:
    """Batches of one slice as a table; None when no row had text."""
    return pa.Table.from_batches(batches) if batches else None


def row_group_rows(rows: pa.Table) -> int:
    """Rows of one row group: fewer where they are large."""
    return max(1, min(ROW_GROUP_ROWS, int(ROW_GROUP_BYTES * len(rows) // max(rows.nbytes, 1))))


def row_columns(id_type: pa.DataType, kept: pa.Schema, *, text: bool) -> pa.Schema:
    """The fields of rows before they have vectors: id, chunk_index, kept columns, text.

    Raises:
        InputInvalid: Parquet has no type for a kept column: said before anything is paid.
    """
    for field in kept:
        if not _can_be_written(field):
            raise InputInvalid(
                f"column {field.name!r} is {field.type}, which Parquet does not hold",
                hint="leave it out with --keep, or make another type of it",
            )
    fields = [pa.field("id", id_type), pa.field("chunk_index", pa.int32()), *kept]
    return pa.schema([*fields, pa.field("text", pa.string())] if text else fields)


def _can_be_written(field: pa.Field) -> bool:
    if pa.types.is_string(field.type) or pa.types.is_integer(field.type):
        return True
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([field])).close()
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


def row_batch(
    block: Any, positions: Sequence[int], chunk_indexes: Sequence[int], texts: Sequence[str] | None, columns: pa.Schema
) -> pa.RecordBatch:
    """Some rows of a block in the fields of `columns`; a row stands in it once per chunk."""
    every = list(positions) == list(range(len(block.ids)))
    ids = block.ids if every else [block.ids[position] for position in positions]
    names = columns.names[2:-1] if columns.names[-1] == "text" else columns.names[2:]
    kept = []
    if names:
        source = block.kept if every else block.kept.take(pa.array(positions, pa.int64()))
        kept = [_as(source.column(name), columns.field(name).type) for name in names]
    if block.id_column is None:
        id_column = pa.array(ids, columns.field("id").type)
    else:
        id_column = block.id_column if every else block.id_column.take(pa.array(positions, pa.int64()))
    arrays = [id_column, pa.array(chunk_indexes, pa.int32()), *kept]
    if "text" in columns.names:
        arrays.append(pa.array(texts, pa.string()))
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return column if column.type == kind else column.cast(kind)


def _words(values: Sequence[str], which: NDArray[np.int32]) -> pa.DictionaryArray:
    """A dictionary column; equal words stand in it once."""
    distinct = list(dict.fromkeys(values))
    number = {word: i for i, word in enumerate(distinct)}
    renumbered = np.fromiter((number[word] for word in values), np.int32, len(values))
    indices = renumbered[which] if len(values) else which
    return pa.DictionaryArray.from_arrays(_flat(indices, pa.int32()), pa.array(distinct, pa.string()))


def metadata(
    space: Space, *, run_id: str, source: Mapping[str, Any], rows: int, extra: Mapping[str, Any] = {}
) -> bytes:
    """The JSON of the Parquet key `embedctl`."""
    return orjson.dumps(
        {
            "version": __version__,
            "run_id": run_id,
            "space": space.as_dict(),
            "space_id": space.space_id,
            "input": dict(source),
            "rows": rows,
            **extra,
        }
    )


def listing(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """A small table as a Parquet file, the same bytes for the same values."""
    sink = io.BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), sink, compression="zstd")
    return sink.getvalue()


def read_listing(content: bytes) -> dict[str, list[Any]]:
    """The columns of a small table.

    Raises:
        OutputRefused: It is none.
    """
    try:
        return dict(pq.read_table(io.BytesIO(content)).to_pydict())
    except (pa.ArrowException, OSError) as damage:
        raise OutputRefused(f"a list of inputs cannot be read: {str(damage).splitlines()[0]}") from damage


def writer(sink: BinaryIO, layout: Layout) -> pq.ParquetWriter | PlainVectorsWriter:
    """A Parquet writer for `layout`: vectors plain and uncompressed (int8: dictionary, zstd), page checksums on."""
    if layout.dtype == "float32":
        return PlainVectorsWriter(sink, layout.schema)
    return _arrow_writer(sink, layout.schema, small=layout.dtype == "int8")


def _arrow_writer(sink: Any, schema: pa.Schema, *, small: bool = False) -> pq.ParquetWriter:
    vectors = ".".join(vector_column.PATH)
    words = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)]
    words = [name for name in words if name not in ("id", "text")]
    codecs = {_leaf(field): "zstd" for field in schema if field.name != "embedding"}
    return pq.ParquetWriter(
        sink,
        schema,
        compression={**codecs, vectors: "zstd" if small else "none"},
        use_dictionary=[*words, vectors] if small else words,
        write_statistics=[field.name for field in schema if field.name in ("id", "chunk_index")],
        write_page_checksum=True,
        store_schema=True,
    )


class PlainVectorsWriter:
    """As Arrow's writer, which writes all columns but the vectors: they are put into the file beside it."""

    def __init__(self, sink: BinaryIO, schema: pa.Schema) -> None:
        self._schema = schema
        self._at = schema.get_field_index("embedding")
        self._sink = _Divided(sink)
        self._file = pa.PythonFile(self._sink, mode="w")  # what it writes for us counts where Arrow's offsets begin
        self._others = _arrow_writer(self._file, schema.remove(self._at))
        self._chunks: list[ColumnChunk] = []

    def write_table(self, table: pa.Table, row_group_size: int = ROW_GROUP_ROWS) -> None:
        """Write the rows, as row groups of so many."""
        for start in range(0, len(table), row_group_size):
            group = table.slice(start, row_group_size)
            self._others.write_table(group.remove_column(self._at), row_group_size=row_group_size)
            begin = self._file.tell()
            vectors = [_numbers(chunk).reshape(len(chunk), -1) for chunk in group.column(self._at).chunks if len(chunk)]
            for page in vector_column.pages(vectors):
                for buffer in page:
                    self._file.write(buffer)
            values = sum(piece.size for piece in vectors)
            self._chunks.append(ColumnChunk(begin, self._file.tell() - begin, values))

    def add_key_value_metadata(self, pairs: dict[str, str]) -> None:
        """Say more in the footer."""
        self._others.add_key_value_metadata(pairs)

    def close(self) -> None:
        """Write the footer."""
        empty = io.BytesIO()
        _arrow_writer(empty, self._schema).close()
        written = pq.read_metadata(empty).schema
        leaf = [written.column(at).path for at in range(len(written))].index(".".join(vector_column.PATH))
        self._sink.footer = bytearray()
        self._others.close()
        footer = vector_column.with_column(
            _footer(bytes(self._sink.footer)), _footer(empty.getvalue()), leaf, self._chunks
        )
        self._sink.file.write(footer + len(footer).to_bytes(4, "little") + _MAGIC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *said: object) -> None:
        if kind is None:
            self.close()


_MAGIC = b"PAR1"


def _footer(file: bytes) -> bytes:
    """The footer of a file that ends with it."""
    size = int.from_bytes(file[-8:-4], "little")
    return file[-8 - size : -8]


class _Divided:
    """What Arrow writes to: the file, and at last a footer that is not yet the file's."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.footer: bytearray | None = None

    closed = False

    def write(self, content: Any) -> int:
        if self.footer is None:
            return self.file.write(content)
        self.footer += content
        return len(content)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        """Whoever opened the file flushes it."""


def _numbers(lists: pa.Array) -> NDArray[Any]:
    """A column of vectors as it is in memory, one after the other; `flatten` loads all of Arrow's compute functions."""
    if lists.null_count:
        return np.asarray(lists.flatten())
    if pa.types.is_fixed_size_list(lists.type):
        width = lists.type.list_size
        return np.asarray(lists.values.slice(lists.offset * width, len(lists) * width))
    first, last = lists.offsets[0].as_py(), lists.offsets[-1].as_py()
    return np.asarray(lists.values.slice(first, last - first))


def _leaf(field: pa.Field) -> str:
    """The Parquet path of a column as compression options name it."""
    return str(field.name)


def _opened(path: Path) -> pa.OSFile:
    """A file by its bytes: a path as text might be taken for a URI, and must be UTF-8."""
    return pa.OSFile(os.fsencode(path))


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What embedctl wrote about a Parquet file; None when it is no Parquet, not ours, or broken.

    Raises:
        OutputRefused: A version of embedctl wrote it that knows more of a space than this one.
    """
    try:
        with _opened(path) as file:
            found = orjson.loads((pq.read_metadata(file).metadata or {})[METADATA_KEY])
        unknown = found["space"].keys() - {one.name for one in fields(Space)}
        if not unknown:
            return dict(found) if Space(**found["space"]).space_id == found["space_id"] else None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    raise OutputRefused(
        f"{path} was written by embedctl {found.get('version')}: its space says {', '.join(sorted(unknown))}",
        hint="use that version, or choose another -o",
    )


def is_precise(path: Path, dtype: Dtype) -> bool:
    """Whether the vectors of a file of ours may stand in an output of `dtype`: int8 and float16 never become more."""
    with _opened(path) as file:
        element = pq.read_schema(file).field("embedding").type.value_type
    return bool(element in (pa.float32(), _ELEMENTS[dtype]))


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Some rows of a file.

    Attributes:
        hashes: Of the texts as they were sent, 16 bytes each.
        vectors: float32, shape (n, D).
    """

    texts: list[str]
    hashes: bytes
    vectors: NDArray[np.float32]


_SAMPLED_FROM = 256
"""Rows that are read for it: all of a row group would be some 100 MB."""


class Part:
    """A file of ours, opened only while something is read from it: its hashes, and its vectors by row."""

    def __init__(self, path: Path, dimensions: int, opener: Callable[[], BinaryIO] | None = None) -> None:
        """A part.

        Args:
            path: Where it is, or what messages call it.
            opener: Opens it where it is no file of this machine.
        """
        self.path = path
        self._opener = opener
        self._dimensions = dimensions
        self._cached: tuple[int, pa.Table] | None = None

    @contextmanager
    def _file(self) -> Iterator[pq.ParquetFile]:
        try:
            opened = _opened(self.path) if self._opener is None else pa.PythonFile(self._opener(), mode="r")
            with opened as whole, pq.ParquetFile(whole, page_checksum_verification=True) as file:
                yield file
        except (pa.ArrowException, OSError) as damage:
            raise StorageFailed(
                f"{self.path} cannot be read: {str(damage).splitlines()[0]}",
                hint="see `embedctl vectors verify`; without that file the same command embeds its rows anew",
            ) from damage

    def hashes(self) -> Iterator[bytes]:
        """The text hashes of all rows, n x 16 bytes at a time, in order.

        Raises:
            StorageFailed: The file is damaged; so do all that read it.
        """
        with self._file() as file:
            for batch in file.iter_batches(1 << 18, columns=["embedding_text_hash"]):
                column = batch.column(0)
                start = column.offset * TEXT_HASH_BYTES
                yield column.buffers()[1].to_pybytes()[start : start + len(column) * TEXT_HASH_BYTES]

    def sample(self, most: int, most_characters: int) -> SampledRows:
        """Different texts near the file's begin, with the vectors it holds of them; none where it keeps no texts."""
        columns = ["text", "embedding_text_hash", "embedding"]
        with self._file() as file:
            if not set(columns) <= set(file.schema_arrow.names):
                return SampledRows([], b"", np.empty((0, self._dimensions), np.float32))
            for batch in file.iter_batches(_SAMPLED_FROM, columns=columns):
                texts = batch.column("text").to_pylist()
                first: dict[str, int] = {}
                for at, text in enumerate(texts):
                    if text and len(text) <= most_characters:
                        first.setdefault(text, at)
                chosen = sorted(first.values())
                chosen = chosen[:: max(1, len(chosen) // most)][:most]
                rows = batch.take(pa.array(chosen, pa.int64()))
                hashes = b"".join(rows.column("embedding_text_hash").to_pylist())
                return SampledRows(
                    [texts[at] for at in chosen], hashes, matrix(rows.column("embedding"), self._dimensions)
                )
        return SampledRows([], b"", np.empty((0, self._dimensions), np.float32))

    def rows_of(self, row_id: str) -> list[dict[str, Any]]:
        """What the file says of the row with this id, one mapping per chunk, without vector and text."""
        columns = ["chunk_index", "embedding_model", "embedding_provider", "embedding_operation_id"]
        with self._file() as file:
            found = []
            for group in range(file.num_row_groups):
                ids = printed(file.read_row_group(group, columns=["id"]).column(0))
                at = [place for place, one in enumerate(ids) if str(one) == row_id]
                if at:
                    rows = file.read_row_group(group, columns=columns).take(at)
                    found += [{"id": ids[place], **row} for place, row in zip(at, rows.to_pylist(), strict=True)]
            return found

    def holds(self, rows: pa.Table, layout: Layout) -> bool:
        """Whether its columns beside the embedding ones are exactly these rows, and its vectors are as in `layout`."""
        with self._file() as file:
            schema = file.schema_arrow
            own = schema.names[: schema.names.index("embedding")]
            if own != rows.column_names or schema.field("embedding").type != layout.schema.field("embedding").type:
                return False
            return bool(file.read(columns=own).equals(rows))

    def take(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], list[tuple[str, str, str]], NDArray[np.int32]]:
        """Vectors (float32, (n, D)), purchases and tokens of `rows`; nearby rows are read together."""
        vectors = np.empty((len(rows), self._dimensions), np.float32)
        tokens = np.full(len(rows), -1, np.int32)
        purchases: list[tuple[str, str, str]] = [("", "", "")] * len(rows)
        with self._file() as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(counts)])
            groups = np.searchsorted(starts, rows, side="right") - 1
            for group in np.unique(groups):
                mine = np.flatnonzero(groups == group)
                found = self._group(file, int(group)).take(pa.array(rows[mine] - starts[group]))
                vectors[mine] = matrix(found.column("embedding"), self._dimensions)
                tokens[mine] = found.column("embedding_tokens").fill_null(-1).to_numpy()
                lists = [found.column(name).to_pylist() for name in _PURCHASE_COLUMNS]
                for place, bought in zip(mine, zip(*lists, strict=True), strict=True):
                    purchases[place] = bought
        return vectors, purchases, tokens

    def _group(self, file: pq.ParquetFile, group: int) -> pa.Table:
        if self._cached is None or self._cached[0] != group:
            columns = ["embedding", "embedding_tokens", *_PURCHASE_COLUMNS]
            self._cached = (group, file.read_row_group(group, columns=columns))
        return self._cached[1]


def plain(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """A column's values for JSON, in Python's types; what these or JSON do not know (nanoseconds, NaN) as text."""
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in plain(chunk)]
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType) and pa.types.is_nested(kind.storage_type):
        return plain(column.storage)
    if pa.types.is_struct(kind):
        fields = [(kind.field(at).name, plain(column.field(at))) for at in range(kind.num_fields)]
        there = column.is_valid().to_pylist()
        return [{name: each[at] for name, each in fields} if one else None for at, one in enumerate(there)]
    if pa.types.is_map(kind):
        pairs = (None if one.values is None else plain(one.values) for one in column)
        return [one and [list(pair.values()) for pair in one] for one in pairs]
    if pa.types.is_nested(kind) and not pa.types.is_union(kind):
        return [None if one.values is None else plain(one.values) for one in column]
    try:
        values = list(_in_microseconds(column).to_pylist())
    except (ValueError, OverflowError):  # nanoseconds (pa.ArrowInvalid is a ValueError), years beyond Python's
        return [value if value is None else iso(value) for value in column.cast(pa.string()).to_pylist()]
    if pa.types.is_floating(kind):
        return [value if value is None or math.isfinite(value) else _NO_NUMBERS[str(float(value))] for value in values]
    return values


def _in_microseconds(column: pa.Array) -> pa.Array:
    """Times of nanoseconds as Python knows them: pyarrow gives pandas' types for those, where it is installed.

    Raises:
        pa.ArrowInvalid: One has nanoseconds.
    """
    kind = column.type
    if getattr(kind, "unit", None) != "ns":
        return column
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz))
    return column.cast(pa.time64("us") if pa.types.is_time(kind) else pa.duration("us"))


_NO_NUMBERS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


_PURCHASE_COLUMNS = ("embedding_model", "embedding_provider", "embedding_operation_id")


def matrix(column: pa.ChunkedArray | pa.Array, dimensions: int) -> NDArray[np.float32]:
    """A column of vectors as float32, shape (n, D), without a list of Python floats."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_numbers(chunk).astype(np.float32, copy=False).reshape(-1, dimensions) for chunk in chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.empty((0, dimensions), np.float32)


_FOR_MACHINES = ("embedding", "embedding_text_hash", "embedding_operation_id")


def embedded_rows(path: Path, rows: int = 512) -> Iterator[tuple[dict[str, list[Any]], NDArray[np.float32]]]:
    """The rows of a file of ours in order, some at a time: columns as JSON knows them, and vectors, float32, (n, D).

    Raises:
        StorageFailed: The file is damaged.
    """
    try:
        with _opened(path) as whole, pq.ParquetFile(whole, page_checksum_verification=True) as file:
            names = [name for name in file.schema_arrow.names if name not in _FOR_MACHINES]
            for batch in file.iter_batches(rows, columns=[*names, "embedding"]):
                column = batch.column("embedding")
                width = len(column[0]) if len(column) else 0
                yield {name: plain(batch.column(name)) for name in names}, matrix(column, width)
    except (pa.ArrowException, OSError) as damage:
        raise StorageFailed(f"{path} cannot be read: {str(damage).splitlines()[0]}") from damage


def concatenate(parts: Sequence[Path], sink: BinaryIO) -> None:
    """The rows of all parts of an output as one file; a row group is in memory at a time.

    Raises:
        StorageFailed: A part is damaged.
    """
    written: pq.ParquetWriter | None = None
    of_all: dict[bytes, bytes] = {}
    try:
        total = sum(pq.read_metadata(os.fsencode(part).decode(errors="surrogateescape")).num_rows for part in parts)
        for part in parts:
            with _opened(part) as whole, pq.ParquetFile(whole, page_checksum_verification=True) as file:
                if written is None:
                    schema = file.schema_arrow
                    said = orjson.loads((schema.metadata or {})[METADATA_KEY])
                    of_all = {**(schema.metadata or {}), METADATA_KEY: orjson.dumps({**said, "rows": total})}
                    words = [one.name for one in schema if pa.types.is_dictionary(one.type)]
                    codecs = {_leaf(one): "zstd" for one in schema if one.name != "embedding"}
                    written = pq.ParquetWriter(
                        sink,
                        schema.with_metadata(of_all),
                        compression={**codecs, "embedding.list.element": "none"},
                        use_dictionary=words,
                        write_page_checksum=True,
                        store_schema=True,
                    )
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    written.write_table(table.replace_schema_metadata(of_all), row_group_size=ROW_GROUP_ROWS)
    except (pa.ArrowException, OSError, KeyError, ValueError) as damage:
        raise StorageFailed(f"an output cannot be read: {str(damage).splitlines()[0]}") from damage
    finally:
        if written is not None:
            written.close()

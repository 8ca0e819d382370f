"""An output as it lies on the disk, or in a store: its parts, what was written about them, their rows a few at a time.

The one door to pyarrow of this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, InputMissing
from embedctl.inputs.arrow_rows import read_names
from embedctl.inputs.row_ids import printed
from embedctl.outputs import FAILURES, RECORD, STATE_FOLDER, parts_of
from embedctl.outputs.output import is_count
from embedctl.outputs.parquet import METADATA_KEY
from embedctl.records import TEXT_HASH_BYTES, Space
from embedctl.routing.canaries import MOST_DIMENSIONS
from embedctl.storage.store import Store, StoredObject
from embedctl.storage.store_file import READ_AHEAD, ViewedFile

_BATCH_BYTES = 8 << 20
_MOST_ROWS = 8192
_READ_BYTES = 1 << 20

Broken = Callable[[str, str], None]
"""Told (where, what) of something that cannot be read; it is passed over then."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Some rows that stand together.

    Attributes:
        first_row: Ordinal of the first one in the whole output.
        columns: Arrow arrays by name.
    """

    first_row: int
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def values(self, name: str) -> list[Any]:
        """A column as Python values; ids as they read."""
        return _values(name, self.columns[name])

    def some(self, name: str, places: NDArray[np.int64]) -> list[Any]:
        """A column's values at some places of this batch."""
        return _values(name, self.columns[name].take(pa.array(places, pa.int64())))

    def words(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """A dictionary column: for each row the place of its word, -1 for none; and the words."""
        column = self.columns[name]
        return column.indices.fill_null(-1).to_numpy(zero_copy_only=False), column.dictionary.to_pylist()

    def hashes(self) -> bytes:
        """The text hashes, 16 bytes each, one after the other."""
        column = self.columns["embedding_text_hash"]
        start = column.offset * TEXT_HASH_BYTES
        return bytes(column.buffers()[1][start : start + len(column) * TEXT_HASH_BYTES])

    def vectors(self, dimensions: int) -> NDArray[Any] | None:
        """The vectors in their own number type, shape (n, dimensions); None when one is missing or not so wide."""
        column = self.columns["embedding"]
        if pa.types.is_fixed_size_list(column.type):
            if column.null_count or column.type.list_size != dimensions:
                return None
            return np.asarray(column.flatten()).reshape(-1, dimensions)
        if column.null_count or not (np.diff(np.asarray(column.offsets)) == dimensions).all():
            return None
        return np.asarray(column.flatten()).reshape(-1, dimensions)


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """Where an object is, as `Path` is for a file."""

    url: str
    store: Store = field(repr=False, compare=False)
    found: StoredObject

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Behind the last slash."""
        return self.url.rpartition("/")[2]


Place = Path | ObjectPath


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """One Parquet file of an output.

    Attributes:
        first_row: Ordinal of its first row in the whole output.
        facts: What embedctl wrote about it; None when it did not.
        problem: Why it cannot be read; None when its footer can.
    """

    path: Place
    size_bytes: int
    first_row: int = 0
    rows: int = 0
    facts: Mapping[str, Any] | None = None
    schema: pa.Schema | None = None
    problem: str | None = None

    @property
    def space(self) -> Space | None:
        """As its metadata says it."""
        return None if self.facts is None else _space(self.facts.get("space"))


class Beside(Protocol):
    """What stands beside the parts of an output."""

    @property
    def failures_name(self) -> str:
        """What the list of failures is called, whether it is there or not."""

    def failure_lines(self) -> Iterator[bytes]:
        """Its lines; none where there is no list."""

    def record(self) -> Mapping[str, Any] | None:
        """What the last run bound and counted; None where nothing can be read."""


@dataclass(frozen=True, slots=True)
class BesideFiles:
    """On a disk: a run's record in its folder, failures in a file."""

    path: Path
    is_folder: bool

    @property
    def _failures(self) -> Path:
        return self.path / FAILURES if self.is_folder else self.path.with_name(f"{self.path.name}.{FAILURES}")

    @property
    def failures_name(self) -> str:
        """Of the file."""
        return self._failures.name

    def failure_lines(self) -> Iterator[bytes]:
        """Of the file."""
        if self._failures.is_file():
            with self._failures.open("rb") as file:
                yield from file

    def record(self) -> Mapping[str, Any] | None:
        """Of folders."""
        try:
            found = orjson.loads((self.path / STATE_FOLDER / RECORD).read_bytes()) if self.is_folder else None
        except (OSError, orjson.JSONDecodeError):
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Stored:
    """An output: one file, or a folder of parts."""

    path: Path | str
    parts: tuple[PartFile, ...]
    is_folder: bool
    beside: Beside
    _groups: dict[tuple[int, int, tuple[str, ...]], pa.Table] = field(default_factory=dict, repr=False)

    @cached_property
    def readable(self) -> tuple[PartFile, ...]:
        """Parts that can be read and are ours, with a space; never empty."""
        return tuple(part for part in self.parts if part.problem is None and part.space is not None)

    @property
    def space(self) -> Space:
        """The first part's."""
        space = self.readable[0].space
        assert space is not None  # noqa: S101 - readable() says so
        return space

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was written about the first part."""
        return self.readable[0].facts or {}

    @property
    def schema(self) -> pa.Schema:
        """The first part's."""
        return self.readable[0].schema

    @property
    def rows(self) -> int:
        """Of all parts that can be read."""
        return sum(part.rows for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def dtype(self) -> str:
        """Number type of the vectors, as the flag --dtype names it."""
        names = {"float": "float32", "halffloat": "float16"}
        kind = str(self.schema.field("embedding").type.value_type)
        return names.get(kind, kind)

    @property
    def has_text(self) -> bool:
        """Whether the texts stand beside the vectors."""
        return "text" in self.schema.names

    @cached_property
    def record(self) -> Mapping[str, Any] | None:
        """What the last run bound and counted (folders); None where nothing can be read."""
        return self.beside.record()

    @property
    def options(self) -> Mapping[str, Any] | None:
        """What shaped it, as the options of its run; None where that is not said."""
        found = (self.record or {}).get("options") or self.facts.get("options")
        return found if isinstance(found, dict) else None

    def batches(
        self, columns: Sequence[str], *, rows: int | None = None, broken: Broken | None = None
    ) -> Iterator[RowBatch]:
        """All rows in order, a few MB at a time, with page checksums verified.

        Args:
            rows: Most rows at a time; as many vectors as fit into some MB by default.
            broken: Told of row groups and columns that cannot be read, and passed over; without it they are an
                error. Parts with a `problem` are passed over in silence then.

        Raises:
            InputInvalid: Something cannot be read.
        """
        most = rows or max(64, min(_MOST_ROWS, _BATCH_BYTES // (self.space.dimensions * 4)))
        for part in self.parts:
            if part.problem is not None:
                if broken is None:
                    _tell(None, str(part.path), f"cannot be read: {part.problem}")
            elif missing := [name for name in columns if name not in part.schema.names]:  # type: ignore[union-attr]
                _tell(broken, str(part.path), f"has no column {', '.join(missing)}")
            else:
                yield from _rows(part, columns, most, broken)

    def take(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one row, as Python values, by its ordinal in the whole output.

        Raises:
            InputInvalid: It cannot be read.
        """
        number, part = next(
            (at, one) for at, one in enumerate(self.parts) if one.first_row <= row < one.first_row + one.rows
        )
        place = row - part.first_row
        try:
            with _opened(part.path) as file:
                group = 0
                while place >= file.metadata.row_group(group).num_rows:
                    place -= file.metadata.row_group(group).num_rows
                    group += 1
                key = (number, group, tuple(columns))
                if key not in self._groups:
                    self._groups.clear()
                    self._groups[key] = file.read_row_group(group, columns=list(columns))
        except (pa.ArrowException, OSError) as problem:
            raise InputInvalid(f"{part.path} cannot be read: {_first_line(problem)}") from None
        found = self._groups[key].slice(place, 1)
        if missing := [name for name in columns if name not in found.column_names]:
            _tell(None, str(part.path), f"has no column {', '.join(missing)}")
        return {name: _values(name, found.column(name))[0] for name in columns}

    def place(self, row: int) -> str:
        """A row as people find it: its part, and its number in that."""
        part = next(one for one in self.parts if one.first_row <= row < one.first_row + one.rows)
        return f"{part.path.name} row {row - part.first_row}"


def open_stored(path: Path) -> Stored:
    """The output at `path`.

    Raises:
        InputMissing: There is nothing.
        InputInvalid: It is not embedctl's, or no part of it can be read.
    """
    if not path.exists():
        raise InputMissing(f"no such file or folder: {path}", hint="the output of `embed -o` or `batch run -o`")
    is_folder = path.is_dir()
    paths = parts_of(path) if is_folder else [path]
    if not paths:
        ours = (path / STATE_FOLDER).is_dir()
        raise InputInvalid(
            f"{path} holds no part yet" if ours else f"{path} is no output of embedctl: it holds no part-….parquet",
            hint="run the batch to its end first" if ours else "name a folder that `batch run -o` wrote, or a file",
        )
    return assembled(path, map(look, paths), BesideFiles(path, is_folder), is_folder=is_folder)


def assembled(path: Path | str, looked: Iterable[PartFile], beside: Beside, *, is_folder: bool) -> Stored:
    """An output of these parts, in order.

    Raises:
        InputInvalid: None of them can be read, or none is ours.
    """
    parts: list[PartFile] = []
    first_row = 0
    for one in looked:
        parts.append(replace(one, first_row=first_row))
        first_row += one.rows
    found = Stored(path, tuple(parts), is_folder, beside)
    if not found.readable:
        bad = parts[0]
        why = f"cannot be read: {bad.problem}" if bad.problem else "is Parquet, but not written by embedctl"
        raise InputInvalid(f"{bad.path} {why}", hint="name an output of `embed` or `batch run`")
    return found


def look(path: Place) -> PartFile:
    """A look into a part's footer."""
    try:
        size = path.stat().st_size if isinstance(path, Path) else path.found.size
        with _opened(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            read_names(schema)
            paths = [file.schema.column(at).path for at in range(len(file.schema))]
            text = (file.metadata.metadata or {}).get(METADATA_KEY)
            in_groups = sum(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        if rows != in_groups:
            raise pa.ArrowInvalid(f"its footer says {rows} rows, its row groups {in_groups}")
        if text is not None:
            _check_columns(schema, paths)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        return PartFile(
            path=path,
            size_bytes=_size(path),
            problem=_first_line(problem),
        )
    try:
        facts = dict(orjson.loads(text)) if text else None
    except (orjson.JSONDecodeError, TypeError, ValueError):
        facts = None
    if "embedding" not in schema.names:
        facts = None
    return PartFile(path=path, size_bytes=size, rows=rows, facts=facts, schema=schema)


def _check_columns(schema: pa.Schema, paths: Sequence[str]) -> None:
    """Whether columns can be read as what they are called.

    Args:
        paths: Of the leaves of Parquet's own schema, which Arrow's goes with.

    Raises:
        ArrowInvalid: They cannot.
    """
    split = [path.split(".") for path in paths]
    known = {".".join(words[:end]) for words in split for end in range(1, len(words) + 1)}
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name not in known:
            raise pa.ArrowInvalid(f"Parquet knows no column {name}")
        if name in _KINDS and not _KINDS[name](kind):
            raise pa.ArrowInvalid(f"its column {name} is {kind}")


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_word(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and pa.types.is_signed_integer(kind.index_type) and _is_text(kind.value_type)


_KINDS: Mapping[str, Callable[[pa.DataType], bool]] = {
    "chunk_index": pa.types.is_integer,
    "text": _is_text,
    "embedding": _is_vector,
    "embedding_model": _is_word,
    "embedding_provider": _is_word,
    "embedding_operation_id": _is_word,
    "embedding_tokens": pa.types.is_integer,
    "embedding_text_hash": lambda kind: pa.types.is_fixed_size_binary(kind) and kind.byte_width == TEXT_HASH_BYTES,
}
"""What columns of an output are, whichever version wrote it."""


def _space(found: object) -> Space | None:
    """A space that a file tells; None where it is none, or one of which this version does not know all."""
    if not isinstance(found, dict) or not found.keys() <= {one.name for one in fields(Space)}:
        return None
    width, unit = found.get("dimensions"), found.get("normalized")
    if not is_count(width) or not 0 < width <= MOST_DIMENSIONS:
        return None
    if not isinstance(unit, bool | None) or "model" not in found:
        return None
    may_be_none = {"revision", "input_type"}
    words = [(name, value) for name, value in found.items() if name not in ("dimensions", "normalized")]
    if not all(isinstance(value, str) or (value is None and name in may_be_none) for name, value in words):
        return None
    return Space(**found)


def counts_in(told: Mapping[str, Any]) -> dict[str, int]:
    """How many rows went where, as a record tells it; empty where it tells nothing of that, or no numbers."""
    found = told.get("counts")
    if not isinstance(found, dict) or not found.keys() >= _COUNTS or not all(map(is_count, found.values())):
        return {}
    return found


_COUNTS = {"read", "embedded", "failed", "skipped", "vectors"}


def _size(path: Place) -> int:
    if isinstance(path, ObjectPath):
        return path.found.size
    return path.stat().st_size if path.is_file() else 0


def _opened(path: Place) -> pq.ParquetFile:
    if isinstance(path, ObjectPath):
        one = path.found
        content = ViewedFile(path.store, one.name, one.size, one.etag, url=path.url, ahead=0)
        whole, buffer_bytes = pa.PythonFile(content, "r"), READ_AHEAD
    else:
        # A path as text might be taken for a URI, and must be UTF-8.
        whole, buffer_bytes = pa.OSFile(os.fsencode(path)), _READ_BYTES
    return pq.ParquetFile(whole, page_checksum_verification=True, pre_buffer=False, buffer_size=buffer_bytes)


def _rows(part: PartFile, columns: Sequence[str], most: int, broken: Broken | None) -> Iterator[RowBatch]:
    """One part's rows; a row group that cannot be read is passed over."""
    with _opened(part.path) as file:
        first_row = part.first_row
        for group in range(file.num_row_groups):
            at = first_row
            try:
                for batch in file.iter_batches(most, row_groups=[group], columns=list(columns)):
                    yield RowBatch(at, {name: batch.column(name) for name in columns})
                    at += len(batch)
            except (pa.ArrowException, OSError) as problem:
                last = first_row + file.metadata.row_group(group).num_rows - 1 - part.first_row
                where = f"{part.path.name} rows {at - part.first_row} to {last}"
                _tell(broken, where, f"cannot be read: {_first_line(problem)}")
            first_row += file.metadata.row_group(group).num_rows


def _values(name: str, column: Any) -> list[Any]:
    return list(printed(column)) if name == "id" and not column.null_count else list(column.to_pylist())


def _tell(broken: Broken | None, where: str, what: str) -> None:
    if broken is None:
        raise InputInvalid(f"{where} {what}", hint="`embedctl vectors verify` names everything that is wrong")
    broken(where, what)


def _first_line(problem: Exception) -> str:
    return str(problem).partition("\n")[0].strip() or type(problem).__name__

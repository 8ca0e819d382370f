"""Step 1, JSON: objects, one a line, or the elements of one array where the file is small."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import field
from itertools import chain
from math import isfinite
from typing import Any

import orjson
import pyarrow as pa

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid
from embedctl.inputs import row_ids
from embedctl.inputs.block import Block, InputFile, ReadOptions, Reason, pieces
from embedctl.inputs.columns import Columns
from embedctl.inputs.json_numbers import Number, dumps
from embedctl.inputs.objects import ObjectRun, called, is_one_value, last_objects, runs
from embedctl.inputs.table import UNREADABLE, Bad, InputTable
from embedctl.records import RowId

NAME = "jsonl"
SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json")
IS_TABLE = True
IS_TEXT = True

SCAN_BYTES = 64 << 20
"""Looked through before any work, over all files."""

SCAN_BYTES_PER_FILE = 1 << 20
TAIL_BYTES = 4 << 20
"""Of a file that is larger, its end is looked at too, where a field that came in with time stands. A row between with
a field that neither has fails: to read all of a file of any size twice would cost hours, to leave it out would lose it.
"""

_WHOLE_FLOAT = 1 << 53
"""A float holds every whole number up to here."""
_NUMBERS = (int, float, Number)
_TEXT_OR_NULL = {str, type(None)}
_UNFIT = (pa.ArrowException, OverflowError, TypeError, ValueError)


def looks_like(head: bytes) -> bool:
    """Whether the first line is an object, or an array of objects begins."""
    line = head.split(b"\n", 1)[0]
    if line.startswith(b"{"):
        with suppress(ValueError):
            return isinstance(orjson.loads(line), dict)
    return bool(_ARRAY.match(head))


_ARRAY = re.compile(rb'\s*\[\s*\{\s*"')


@dataclass(frozen=True, slots=True)
class Seen:
    """The fields that objects have; of all of them where the files were looked through to the end."""

    fields: frozenset[str]
    is_all: bool


@dataclass(slots=True)
class _Field:
    """What values of a field were seen."""

    types: set[type] = field(default_factory=set)
    least: int = 0
    most: int = 0
    tokens: bool = True
    is_exact: bool = True

    def see(self, values: Sequence[Any]) -> None:
        """Widen by more values."""
        types = set(map(type, values))
        if Number in types:
            numbers = [value for value in values if type(value) is Number]
            self.is_exact = self.is_exact and all(number.is_float for number in numbers)
            types = types - {Number} | {float}
        self.types |= types
        if int in types:
            whole = values if types == {int} else [value for value in values if type(value) is int]
            self.least, self.most = min(self.least, *whole), max(self.most, *whole)
        if list in types:
            lists = (value for value in values if type(value) is list)
            self.tokens = self.tokens and all(set(map(type, each)) <= {int} for each in lists)

    def type(self) -> pa.DataType:
        """The narrowest type for all values; string when text is among them, struct where no column type fits."""
        seen = self.types - {type(None)}
        if not seen or str in seen or not self.is_exact:
            return pa.string()
        if seen == {bool}:
            return pa.bool_()
        if seen == {int} and self.most < 1 << 63:
            return pa.int64()
        if seen == {int}:
            return pa.uint64() if self.least == 0 else pa.string()
        if seen <= {int, float}:
            is_float = self.least >= -_WHOLE_FLOAT and self.most <= _WHOLE_FLOAT
            return pa.float64() if is_float else pa.string()
        return pa.list_(pa.int64()) if seen == {list} and self.tokens else pa.struct([])


def schemas(files: Sequence[InputFile], options: ReadOptions, bad: Bad) -> Iterator[InputTable]:
    """One table of all files, with the fields of all objects.

    An array that is no JSON, and a file in which no line is an object, are broken.
    """
    looks = _Looks(options, max(SCAN_BYTES_PER_FILE, SCAN_BYTES // max(len(files), 1)))
    able: list[InputFile] = []
    for file in files:
        try:
            looks.at(file)
            able.append(file)
        except UNREADABLE as error:
            bad(file, error)
    if not looks.is_all and isinstance(options.keep, tuple):
        for name in options.keep:
            looks.fields.setdefault(name, _Field())  # it may come: text, as of all whose values nobody has seen
    schema = pa.schema([(name, seen.type()) for name, seen in looks.fields.items()])
    seen = Seen(frozenset(looks.fields), looks.is_all)
    rows = looks.count if looks.is_all else None
    yield InputTable(files=tuple(able), schema=schema, rows=rows, nested_as_text=True, seen=seen)


@dataclass(slots=True)
class _Looks:
    """What the fields of several files look like."""

    options: ReadOptions
    budget_bytes: int
    fields: dict[str, _Field] = field(default_factory=dict)
    count: int = 0
    is_all: bool = True

    def at(self, file: InputFile) -> None:
        """Look at the beginning of one more, or at all of it.

        Raises:
            InputInvalid: No line is an object.
        """
        read, has_rows, first_bad = 0, False, ""
        for run, run_bytes in runs(file, self.options):
            if not read and is_one_value(run):
                raise InputInvalid(
                    f"{file.label} is one JSON object over several lines, not rows",
                    hint="--format text embeds it as a document; rows are one object a line, or an array of objects",
                )
            if not has_rows:
                has_rows = len(run.objects) > len(run.bad)
                first_bad = first_bad or next((f"{run.where(file, at)}: {why}" for at, (_, why) in run.bad.items()), "")
            _see(self.fields, run)
            self.count += len(run.objects)
            read += run_bytes
            if read > self.budget_bytes:
                self.is_all = False
                if (last := last_objects(file, self.options, TAIL_BYTES)) is not None:
                    _see(self.fields, last)
                break
        if first_bad and not has_rows:
            raise InputInvalid(first_bad, hint="JSON Lines has one object a line; a JSON array is one of objects")


def _see(fields: dict[str, _Field], run: ObjectRun) -> None:
    """Take the fields of some objects in; mostly all of them have the same ones, in the same order."""
    shapes = set(map(tuple, run.objects))
    if len(shapes) == 1:
        [shape] = shapes
        for name, values in zip(shape, zip(*map(dict.values, run.objects), strict=True), strict=True):
            fields.setdefault(name, _Field()).see(run.exact(name, list(values)))
        return
    for name in dict.fromkeys(chain.from_iterable(run.objects)):
        fields.setdefault(name, _Field()).see(run.values(name))


def rows(file: InputFile, columns: Columns, options: ReadOptions, seen: Seen, first_row: int) -> Iterator[Block]:
    """Rows of one file, in order; a line that is no object, or a value that does not fit its column, fails its row.

    Args:
        columns: Kept fields are text where a value may be an object or a list.
        seen: A field that is not among these would be lost: its row fails.
    """
    for run, _ in runs(file, options):
        yield from pieces(_Rows(run, file, columns, options).block(seen, first_row))
        first_row += len(run.objects)


class _Rows:
    """The rows of a run of objects, and what is wrong with some of them."""

    def __init__(self, run: ObjectRun, file: InputFile, columns: Columns, options: ReadOptions) -> None:
        self._run, self._file, self._columns, self._options = run, file, columns, options
        self._reasons: dict[int, Reason] = {}
        self._messages: dict[int, str] = {}

    def block(self, seen: Seen, first_row: int) -> Block:
        """All of them."""
        run, columns = self._run, self._columns
        for at in run.too_large:
            self._fail(at, "too_large", "the line is larger than --max-row-bytes")
        for at, (reason, why) in run.bad.items():
            self._fail(at, reason, why)
        for at, names in run.not_unicode.items():
            used = [name for name in names if name in columns.names]
            if used:
                self._fail(at, "invalid_unicode", f"{used[0]!r} holds half of a surrogate pair")
        if self._options.keep == "all" and not seen.is_all:
            self._fail_new_fields(seen.fields)
        ids, id_column = self._ids(first_row)
        values = run.values(columns.text)
        texts: list[str | None] = [] if columns.is_tokens else [None] * len(values)
        if columns.template is None and not columns.is_tokens:
            texts = self._texts(values)
        tokens = self._tokens(values) if columns.is_tokens else None
        kept = self._kept() if columns.kept.names else None
        for at in self._reasons:
            values[at] = None
        return Block(first_row, ids, texts, tokens, kept, self._reasons, id_column, self._messages)

    def _fail(self, at: int, reason: Reason, why: str) -> None:
        if at not in self._reasons:
            self._reasons[at] = reason
            self._messages[at] = f"{self._run.where(self._file, at)}: {why}"

    def _fail_new_fields(self, known: frozenset[str]) -> None:
        if known.issuperset(chain.from_iterable(self._run.objects)):
            return
        for at, each in enumerate(self._run.objects):
            if not known.issuperset(each):
                new = next(name for name in each if name not in known)
                why = f"the field {new!r} is not at the file's beginning or end: name fields with --keep"
                self._fail(at, "bad_value", why)

    def _texts(self, values: list[Any]) -> list[str | None]:
        name, most = self._columns.text, self._options.max_row_bytes
        if set(map(type, values)) != {str}:
            for at, value in enumerate(values):
                if value is None:
                    self._reasons.setdefault(at, "null")
                elif type(value) is not str:
                    self._fail(at, "bad_value", f"{name!r} is {called(value)}, not text")
                    values[at] = None
        if sum(map(len, filter(None, values))) * 4 > most:
            for at, value in enumerate(values):
                if value is not None and len(value.encode()) > most:
                    self._reasons.setdefault(at, "too_large")
        return values

    def _tokens(self, values: list[Any]) -> list[list[int] | None]:
        for at, value in enumerate(values):
            if value is None:
                self._reasons.setdefault(at, "null")
            elif type(value) is not list:
                self._fail(at, "bad_value", f"{self._columns.text!r} is {called(value)}, not a list of tokens")
            elif not all(type(token) is int and token >= 0 for token in value):
                self._reasons.setdefault(at, "invalid_tokens")
        return values

    def _ids(self, first_row: int) -> tuple[list[RowId], pa.Array | None]:
        run, columns = self._run, self._columns
        if columns.id is None:
            return list(range(first_row, first_row + len(run.objects))), None
        ids = run.values(columns.id)
        kind = columns.id_type
        wanted = str if pa.types.is_string(kind) else int if pa.types.is_integer(kind) else float
        unnamed: set[int] = set()
        if set(map(type, ids)) != {wanted}:
            for at, value in enumerate(ids):
                if value is None:
                    self._fail(at, "no_id", f"no {columns.id!r}; --id-column chooses another field")
                elif wanted is str and type(value) in _NUMBERS:
                    ids[at] = dumps(value)
                elif wanted is float and type(value) is int:
                    ids[at] = float(value)
                elif wanted is float and isinstance(value, Number) and value.is_float:
                    ids[at] = float(value.text)
                elif type(value) is not wanted:
                    self._fail(at, "bad_value", f"{columns.id!r} is {called(value)}; other rows have {kind}")
                    ids[at] = None
                if ids[at] is None:
                    unnamed.add(at)
        id_column = None
        if not row_ids.stands_for_itself(kind):
            id_column = pa.array(ids, kind)
            ids = [one if one is None or isfinite(one) else str(one) for one in ids]
        for at in unnamed:
            ids[at] = f"{self._file.label}#{run.numbers[at]}"
        return ids, id_column

    def _kept(self) -> pa.RecordBatch:
        kept, arrays = self._columns.kept, []
        for column in kept:
            values = self._run.values(column.name)
            if pa.types.is_string(column.type):
                if not set(map(type, values)) <= _TEXT_OR_NULL:
                    values = [value if value is None or type(value) is str else dumps(value) for value in values]
            elif pa.types.is_floating(column.type):
                values = [float(value.text) if type(value) is Number and value.is_float else value for value in values]
            try:
                arrays.append(_column(values, column.type))
            except _UNFIT:
                for at, value in enumerate(values):
                    if not _fits(value, column.type):
                        self._fail(
                            at, "bad_value", f"{column.name!r} is {called(value)}; other rows have {column.type}"
                        )
                        values[at] = None
                arrays.append(_column(values, column.type))
        return pa.RecordBatch.from_arrays(arrays, schema=kept)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind) and bool in set(map(type, values)):
        raise TypeError  # arrow would make 1 of true
    return pa.array(values, kind)


def _fits(value: object, column: pa.DataType) -> bool:
    try:
        _column([value], column)
    except _UNFIT:
        return False
    return True

"""Step 1, rows of JSON Lines, and of a JSON array of objects where the file is small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import pyarrow as pa

from embedctl.inputs import row_ids
from embedctl.inputs.block import Block, ReadOptions, Reason, pieces
from embedctl.inputs.columns import Columns
from embedctl.inputs.files import InputFile
from embedctl.inputs.json_numbers import Number, dumps
from embedctl.inputs.objects import ObjectRun, bad, called, runs
from embedctl.records import RowId

SCAN_BYTES = 64 << 20  # looked at before any work, over all files; a field that first comes later is an error
SCAN_BYTES_PER_FILE = 1 << 20
_WHOLE_FLOAT = 1 << 53
"""A float holds every whole number up to here."""
_NUMBERS = (int, float, Number)


@dataclass(slots=True)
class _Field:
    """What values of a field were seen."""

    types: set[type] = field(default_factory=set)
    least: int = 0
    most: int = 0
    tokens: bool = True
    is_exact: bool = True

    def see(self, values: list[Any]) -> None:
        """Widen by more values."""
        types = set(map(type, values))
        if Number in types:
            numbers = [value for value in values if type(value) is Number]
            self.is_exact = self.is_exact and all(number.is_float for number in numbers)
            types = types - {Number} | {float}
        self.types |= types
        if int in types:
            whole = [value for value in values if type(value) is int]
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


def schema(files: Sequence[InputFile], options: ReadOptions) -> tuple[pa.Schema, int | None]:
    """The fields of all files, and the number of rows if that is known.

    Small files are looked through to the end, so that a bad line is found before any work is done.

    Raises:
        InputInvalid: A line that is no JSON object.
    """
    fields: dict[str, _Field] = {}
    count: int | None = 0
    budget_bytes = max(SCAN_BYTES_PER_FILE, SCAN_BYTES // max(len(files), 1))
    for file in files:
        read = 0
        for run, run_bytes in runs(file, options):
            for name in dict.fromkeys(key for each in run.objects for key in each):
                fields.setdefault(name, _Field()).see(run.values(name))
            count = None if count is None else count + len(run.objects)
            read += run_bytes
            if read > budget_bytes:
                count = None
                break
    return pa.schema([(name, seen.type()) for name, seen in fields.items()]), count


def blocks(
    file: InputFile, columns: Columns, options: ReadOptions, known: frozenset[str], first_row: int
) -> Iterator[Block]:
    """Rows of one file, in order.

    Args:
        file: JSON Lines or an array.
        columns: What is read; kept fields are text where a value may be an object or a list.
        options: How.
        known: All fields that `schema` saw; another one would be lost without a word.
        first_row: Ordinal of the file's first row.

    Raises:
        InputInvalid: A line that is no JSON object, or a value of another type than the column's.
    """
    for run, _ in runs(file, options):
        if options.keep == "all":
            _refuse_new_fields(file, run, known)
        yield from pieces(_block(run, file, columns, options, first_row))
        first_row += len(run.objects)


def _refuse_new_fields(file: InputFile, run: ObjectRun, known: frozenset[str]) -> None:
    for number, each in zip(run.numbers, run.objects, strict=True):
        if not known.issuperset(each):
            new = next(iter(each.keys() - known))
            raise bad(file, number, f"the field {new!r} was not in the file's beginning", "name fields with --keep")


def _block(run: ObjectRun, file: InputFile, columns: Columns, options: ReadOptions, first_row: int) -> Block:
    kept = columns.kept
    reasons: dict[int, Reason] = dict.fromkeys(run.too_large, "too_large")
    for at, names in run.not_unicode.items():
        for name in names:
            if name == columns.text or name in columns.parts.names:
                reasons[at] = "invalid_unicode"
            elif name == columns.id or name in kept.names:
                raise bad(file, run.numbers[at], f"{name!r} holds half of a surrogate pair")
    values = [each.get(columns.text) for each in run.objects]
    ids = _ids(run, file, columns, first_row)
    record = _kept(run, file, kept) if kept.names else None
    id_column = None
    if columns.id is not None and not row_ids.stands_for_itself(columns.id_type):
        id_column = pa.array([None if type(one) is str else one for one in ids], columns.id_type)
        ids = [one if type(one) is str or isfinite(one) else str(one) for one in ids]  # type: ignore[arg-type]
    if columns.is_tokens:
        return Block(first_row, ids, [], _tokens(run, values, file, columns, reasons), record, reasons, id_column)
    texts: list[str | None] = [None] * len(ids)
    if columns.template is None:
        texts = _texts(run, values, file, columns, reasons, options)
    return Block(first_row, ids, texts, None, record, reasons, id_column)


def _texts(
    run: ObjectRun,
    values: list[Any],
    file: InputFile,
    columns: Columns,
    reasons: dict[int, Reason],
    options: ReadOptions,
) -> list[str | None]:
    if set(map(type, values)) != {str}:
        for at, value in enumerate(values):
            if value is None:
                reasons.setdefault(at, "null")
            elif type(value) is not str:
                raise bad(file, run.numbers[at], f"{columns.text!r} is {called(value)}, not text")
    if sum(map(len, filter(None, values))) * 4 > options.max_row_bytes:
        for at, value in enumerate(values):
            if value is not None and len(value.encode()) > options.max_row_bytes:
                values[at], reasons[at] = None, "too_large"
    return values


def _tokens(
    run: ObjectRun, values: list[Any], file: InputFile, columns: Columns, reasons: dict[int, Reason]
) -> list[list[int] | None]:
    for at, value in enumerate(values):
        if value is None:
            reasons.setdefault(at, "null")
        elif type(value) is not list:
            raise bad(file, run.numbers[at], f"{columns.text!r} is {called(value)}, not a list of tokens")
        elif not all(type(token) is int and token >= 0 for token in value):
            values[at], reasons[at] = None, "invalid_tokens"
    return values


def _ids(run: ObjectRun, file: InputFile, columns: Columns, first_row: int) -> list[RowId]:
    if columns.id is None:
        return list(range(first_row, first_row + len(run.objects)))
    ids: list[Any] = run.values(columns.id)
    kind = columns.id_type
    wanted = str if pa.types.is_string(kind) else int if pa.types.is_integer(kind) else float
    if set(map(type, ids)) == {wanted}:
        return ids
    for at, value in enumerate(ids):
        if at in run.too_large:
            ids[at] = f"{file.label}#{run.numbers[at]}"
        elif value is None:
            raise bad(file, run.numbers[at], f"no {columns.id!r}", "choose another field with --id-column")
        elif wanted is str and type(value) in _NUMBERS:
            ids[at] = dumps(value)
        elif wanted is float and type(value) is int:
            ids[at] = float(value)
        elif wanted is float and isinstance(value, Number) and value.is_float:
            ids[at] = float(value.text)
        elif type(value) is not wanted:
            raise bad(file, run.numbers[at], f"{columns.id!r} is {called(value)}; other rows have {columns.id_type}")
    return ids


def _kept(run: ObjectRun, file: InputFile, kept: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for column in kept:
        values = run.values(column.name)
        if pa.types.is_string(column.type):
            values = [value if value is None or type(value) is str else dumps(value) for value in values]
        elif pa.types.is_floating(column.type):
            values = [float(value.text) if type(value) is Number and value.is_float else value for value in values]
        try:
            arrays.append(_column(values, column.type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as other:
            at = next(at for at, value in enumerate(values) if not _fits(value, column.type))
            raise bad(
                file,
                run.numbers[at],
                f"{column.name!r} is {called(values[at])}; rows before have {column.type}",
                "leave it out with --keep",
            ) from other
    return pa.RecordBatch.from_arrays(arrays, schema=kept)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind) and bool in set(map(type, values)):
        raise TypeError  # arrow would make 1 of true
    return pa.array(values, kind)


def _fits(value: object, column: pa.DataType) -> bool:
    try:
        _column([value], column)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False
    return True

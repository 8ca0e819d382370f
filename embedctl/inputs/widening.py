"""Step 1, tables of several files that are one: a type for each column that holds what all of them hold. Pure.

A value that the wider type does not hold exactly fails its row; a column that a file lacks is null there. Arrow's own
promotion is for types that differ in their parts (structs); of numbers it makes floats that are not what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from embedctl.inputs import row_ids
from embedctl.inputs.block import Block
from embedctl.inputs.columns import Columns

_DECIMAL128, _DECIMAL256 = 38, 76
_TIME_UNITS = ("s", "ms", "us", "ns")
_INTEGER_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}


def wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds the values of two, dictionaries resolved; None where there is none."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_nested(one) or pa.types.is_nested(other):
        return _promoted(one, other)
    if isinstance(one, pa.BaseExtensionType) or isinstance(other, pa.BaseExtensionType):
        return None
    if _is_number(one) and _is_number(other):
        return _number(one, other)
    if pa.types.is_date(one) and pa.types.is_date(other):
        return pa.date64()
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other):
        zones = {one.tz, other.tz}
        if None in zones and len(zones) > 1:
            return None  # a time of day somewhere is no moment
        return pa.timestamp(_finer(one.unit, other.unit), one.tz if len(zones) == 1 else "UTC")
    if pa.types.is_date(one) and pa.types.is_timestamp(other) and other.tz is None:
        return other
    if pa.types.is_date(other) and pa.types.is_timestamp(one) and one.tz is None:
        return one
    if pa.types.is_time(one) and pa.types.is_time(other):
        unit = _finer(one.unit, other.unit)
        return pa.time64(unit) if unit in ("us", "ns") else pa.time32(unit)
    if _is_bytes(one) and _is_bytes(other):
        return pa.large_binary() if pa.types.is_large_binary(one) or pa.types.is_large_binary(other) else pa.binary()
    return pa.string()


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _number(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Floats hold integers up to 2^53: a larger one among floats fails its row. Decimals and floats meet as text."""
    if pa.types.is_decimal(one) or pa.types.is_decimal(other):
        if pa.types.is_floating(one) or pa.types.is_floating(other):
            return pa.string()
        scale = max(_scale(one), _scale(other))
        digits = scale + max(_digits(one) - _scale(one), _digits(other) - _scale(other))
        if digits > _DECIMAL256:
            return pa.string()
        return pa.decimal128(digits, scale) if digits <= _DECIMAL128 else pa.decimal256(digits, scale)
    if pa.types.is_floating(one) and pa.types.is_floating(other):
        return max(one, other, key=lambda kind: int(kind.bit_width))
    if pa.types.is_floating(one) or pa.types.is_floating(other):
        return pa.float64()
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return max(one, other, key=lambda kind: int(kind.bit_width))
    signed, unsigned = (one, other) if pa.types.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits, pa.decimal128(20, 0))


def _scale(kind: pa.DataType) -> int:
    return int(kind.scale) if pa.types.is_decimal(kind) else 0


def _digits(kind: pa.DataType) -> int:
    return int(kind.precision) if pa.types.is_decimal(kind) else _INTEGER_DIGITS[kind.bit_width]


def _finer(one: str, other: str) -> str:
    return max(one, other, key=_TIME_UNITS.index)


def _promoted(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_nested(one) and pa.types.is_nested(other)):
        return None
    schemas = [pa.schema([("value", kind)]) for kind in (one, other)]
    try:
        promoted = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    return promoted if not _has_floats_of_integers(one, other, promoted) else None


def _has_floats_of_integers(one: pa.DataType, other: pa.DataType, promoted: pa.DataType) -> bool:
    """Whether arrow would make floats of integers somewhere within, which it does whether they hold them or not."""
    leaves = [_leaves(kind) for kind in (one, other, promoted)]
    wide = {name for name, kind in leaves[2].items() if pa.types.is_floating(kind)}
    return any(pa.types.is_integer(kind) for side in leaves[:2] for name, kind in side.items() if name in wide)


def _leaves(kind: pa.DataType, path: str = "") -> dict[str, pa.DataType]:
    if not pa.types.is_nested(kind):
        return {path: kind}
    found: dict[str, pa.DataType] = {}
    for at in range(kind.num_fields):
        field = kind.field(at)
        found |= _leaves(field.type, f"{path}/{field.name if pa.types.is_struct(kind) else at}")
    return found


def adapted(block: Block, own: Columns, columns: Columns, partitions: dict[str, str | None], label: str) -> Block:
    """Rows of one file as rows of all files.

    Args:
        own: The columns as the file has them.
        columns: As all files together have them.
        partitions: What the file's folders say.
        label: The file's name in messages.
    """
    reasons, messages = dict(block.reasons), dict(block.messages)

    def fail(at: int, name: str, kind: pa.DataType) -> None:
        if at not in reasons:
            reasons[at] = "bad_value"
            where = f"{label}: row {block.first_row + at}"
            messages[at] = f"{where}: {name!r} does not fit {kind}, which it has with the other files"

    arrays = []
    for field in columns.kept:
        if own.kept.get_field_index(field.name) >= 0 and block.kept is not None:
            array, unfit = _cast(block.kept.column(field.name), field.type)
            for at in unfit:
                fail(at, field.name, field.type)
        elif field.name in partitions:
            array = pa.array([partitions[field.name]] * len(block), field.type)
        else:
            array = pa.nulls(len(block), field.type)
        arrays.append(array)
    kept = pa.RecordBatch.from_arrays(arrays, schema=columns.kept) if arrays else None
    ids, id_column = list(block.ids), block.id_column
    if columns.id is not None and own.id_type != columns.id_type:
        own_type = own.id_type
        values = id_column
        if values is None:
            wanted = str if pa.types.is_string(own_type) else int
            values = pa.array(
                [one if type(one) is wanted and at not in reasons else None for at, one in enumerate(ids)], own_type
            )
        values, unfit = _cast(values, columns.id_type)
        for at in unfit:
            fail(at, columns.id, columns.id_type)
        there = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False)).tolist()
        for at, printed in zip(there, row_ids.printed(values.drop_null()), strict=True):
            ids[at] = printed
        id_column = None if row_ids.stands_for_itself(columns.id_type) else values
    texts, tokens = block.texts, block.tokens
    if len(reasons) > len(block.reasons):
        values_of: list[Any] = list(texts if tokens is None else tokens)
        for at in reasons:
            values_of[at] = None
        texts, tokens = (values_of, None) if tokens is None else (texts, values_of)
    return replace(
        block,
        ids=ids,
        id_column=id_column,
        texts=texts,
        tokens=tokens,
        kept=kept,
        reasons=reasons,
        messages=messages,
    )


def _cast(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Sequence[int]]:
    """The column in a wider type, and the positions of values that this does not hold; they are null."""
    if column.type == kind:
        return column, ()
    try:
        return column.cast(kind), ()
    except (pa.ArrowException, UnicodeDecodeError):
        unfit = [at for at in range(len(column)) if not _holds(column.slice(at, 1), kind)]
        bad = set(unfit)
        fitting = [None if at in bad else at for at in range(len(column))]
        return column.take(pa.array(fitting, pa.int64())).cast(kind), unfit


def _holds(value: pa.Array, kind: pa.DataType) -> bool:
    try:
        value.cast(kind)
    except (pa.ArrowException, UnicodeDecodeError):
        return False
    return True

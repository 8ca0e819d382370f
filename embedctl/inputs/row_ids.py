"""The ids of rows: which types can be one, and how each reads where it is no column (failures, JSON, messages).

One function prints an id, whether it comes from an input or back from an output, so that both can be compared.
"""

from __future__ import annotations

import math

import pyarrow as pa

from embedctl.records import RowId

WORDS = "text, a number, a date or time, a UUID or bytes"
"""What an id may be."""


def can_be_id(kind: pa.DataType) -> bool:
    """Whether every value of a type prints exactly, and so stands for a row; true and false do not."""
    if isinstance(kind, pa.BaseExtensionType):
        return can_be_id(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return can_be_id(kind.value_type)
    is_time = pa.types.is_temporal(kind) and not pa.types.is_duration(kind) and not pa.types.is_interval(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(is_number or is_time or is_text(kind) or _is_bytes(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether it is one of the types of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def stands_for_itself(kind: pa.DataType) -> bool:
    """Whether a printed id is its value, as text and integers are; of other types the column must be kept beside."""
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind))


def printed(column: pa.Array | pa.ChunkedArray) -> list[RowId]:
    """Each id as it reads: text and integers as they are, bytes as hex, times in ISO 8601 and UTC.

    Raises:
        pa.ArrowException, UnicodeDecodeError: Text is not valid UTF-8.
    """
    if isinstance(column, pa.ChunkedArray):
        return [row_id for chunk in column.chunks for row_id in printed(chunk)]
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return [str(value) for value in column.to_pylist()]
    if isinstance(kind, pa.BaseExtensionType):
        return printed(column.storage)
    if pa.types.is_dictionary(kind):
        return printed(column.dictionary_decode())
    if pa.types.is_string(kind) or pa.types.is_integer(kind):
        return column.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]  # pyarrow is untyped
    if pa.types.is_floating(kind):
        numbers = map(float, column.to_pylist())
        return [number if math.isfinite(number) else str(number) for number in numbers]  # JSON knows no NaN
    if pa.types.is_decimal(kind):
        return [format(number, "f") for number in column.to_pylist()]
    if _is_bytes(kind):
        return [value.hex() for value in column.to_pylist()]
    if pa.types.is_timestamp(kind):
        marks = column.cast(pa.timestamp(kind.unit)).cast(pa.string()).to_pylist()
        return [f"{iso(mark)}{'Z' if kind.tz else ''}" for mark in marks]
    return list(column.cast(pa.string()).to_pylist())


def iso(mark: str) -> str:
    """A time that arrow printed, in ISO 8601; beyond its calendar it prints the number in words."""
    return mark if mark.startswith("<") else mark.replace(" ", "T", 1)


def _is_bytes(kind: pa.DataType) -> bool:
    sized = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(sized or pa.types.is_fixed_size_binary(kind))

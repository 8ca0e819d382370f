"""Step 1: how many bytes each row of an Arrow column takes once it is decoded, without decoding it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedctl.inputs.block import Block

ID_SHOWN = 200
"""Characters that are left of an id which alone exceeds the limit."""

_UTF8_MOST = 4


def of(column: pa.Array) -> NDArray[np.int64] | int:
    """Bytes of each row, or one number where every row takes the same.

    A dictionary's row counts as the value it stands for, a list's as all its elements.

    Raises:
        ArrowIndexError: A dictionary lacks a value.
    """
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return of(column.storage)
    if pa.types.is_dictionary(kind):
        indices = column.indices.cast(pa.int64()).fill_null(-1) if column.null_count else column.indices
        places = indices.to_numpy(zero_copy_only=False)
        lowest = -1 if column.null_count else 0
        if len(places) and not lowest <= places.min() <= places.max() < len(column.dictionary):
            raise pa.ArrowIndexError("a value that stands in no dictionary")  # Parquet's are not checked by arrow
        sizes = of(column.dictionary)
        if isinstance(sizes, int):
            return sizes
        each: NDArray[np.int64] = np.append(sizes, 0)[places]
        return each
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        column = column.cast(pa.large_binary())  # arrow measures no views yet
        kind = column.type
    if any(is_kind(kind) for is_kind in _BYTES):
        large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
        if not len(column):  # it may have no offsets
            return np.zeros(0, np.int64)
        count = column.offset + len(column) + 1  # the buffer's own length is what a file says, and no multiple then
        ends = np.frombuffer(column.buffers()[1], np.int64 if large else np.int32, count)
        return np.diff(ends[column.offset :]).astype(np.int64, copy=False)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = np.asarray(column.offsets).astype(np.int64, copy=False)
        return _sums(of(column.values.slice(int(ends[0]), int(ends[-1] - ends[0]))), ends - ends[0])
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
        values = column.values.slice(column.offset * width, len(column) * width)
        sizes = of(values)
        return (
            width * sizes
            if isinstance(sizes, int)
            else _sums(sizes, np.arange(len(column) + 1, dtype=np.int64) * width)
        )
    if pa.types.is_struct(kind):
        row: NDArray[np.int64] | int = 0
        for at in range(kind.num_fields):
            row = row + of(column.field(at))
        return row
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # a type without a width: unions, runs, list views
        return int(column.nbytes // max(len(column), 1))


_BYTES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def _sums(sizes: NDArray[np.int64] | int, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each list, the sizes of its elements together."""
    if isinstance(sizes, int):
        return np.diff(ends) * sizes
    return np.diff(np.concatenate(([0], np.cumsum(sizes)))[ends])


def total(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Bytes of each row over all columns."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += of(column)
    return sizes


def within(block: Block, max_row_bytes: int) -> Block:
    """The block with the reason "too_large" for each row whose text, id and kept columns together exceed the limit."""
    most = 0 if block.kept is None else block.kept.nbytes
    most += _UTF8_MOST * sum(map(len, filter(None, block.texts)))
    kinds = set(map(type, block.ids))
    words: Iterable[str] = block.ids if kinds == {str} else (one for one in block.ids if isinstance(one, str))  # type: ignore[assignment]
    most += _UTF8_MOST * sum(map(len, words)) if str in kinds else 0
    most += _TOKEN_BYTES * sum(len(array) for array in block.tokens or () if array is not None)
    if most <= max_row_bytes:  # nearly always: no single row can be larger than all of them
        return block
    sizes = np.zeros(len(block), np.int64) if block.kept is None else total(block.kept)
    for at, text in enumerate(block.texts):
        sizes[at] += _utf8(text)
    for at, array in enumerate(block.tokens or ()):
        sizes[at] += _TOKEN_BYTES * len(array or ())
    sizes += np.fromiter((_utf8(one) if isinstance(one, str) else 0 for one in block.ids), np.int64, len(block))
    too_large = np.flatnonzero(sizes > max_row_bytes).tolist()
    if not too_large:
        return block
    ids, texts, reasons = list(block.ids), list(block.texts), dict(block.reasons)
    tokens = None if block.tokens is None else list(block.tokens)
    for at in too_large:
        reasons[at] = "too_large"
        if tokens is None:
            texts[at] = None
        else:
            tokens[at] = None
        if isinstance(name := ids[at], str) and len(name) > ID_SHOWN and _utf8(name) > max_row_bytes:
            ids[at] = f"{name[:ID_SHOWN]}…"
    return replace(block, ids=ids, texts=texts, tokens=tokens, reasons=reasons)


_TOKEN_BYTES = 4


def _utf8(text: str | None) -> int:
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

"""Step 1, rows of Arrow batches, whatever they come from: text, ids and kept columns, in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedctl.errors import InputInvalid, InputMissing
from embedctl.inputs import columns as read_columns
from embedctl.inputs import row_bytes, row_ids
from embedctl.inputs.block import BYTES_PER_BLOCK, ROWS_PER_BLOCK, Block, ReadOptions, Reason
from embedctl.inputs.columns import Columns
from embedctl.records import RowId

TOKEN_BYTES = 8


def blocks(
    batch: pa.RecordBatch, first_row: int, columns: Columns, options: ReadOptions, label: str
) -> Iterator[Block]:
    """The rows of a batch that holds the columns' names, in order.

    Args:
        label: Of the table, for messages.

    Raises:
        InputInvalid: The batch is damaged.
    """
    with checked(label, f"rows from {first_row} are damaged"):
        batch = _with_types(batch, columns)
        cuts = _cuts(batch)
    for start, end in cuts:
        yield _block(batch.slice(start, end - start), first_row, columns, options, label)
        first_row += end - start


def _with_types(batch: pa.RecordBatch, columns: Columns) -> pa.RecordBatch:
    """The batch with a type for each column that has none, as there is no value in it: what it has in other files."""
    kinds = {**{one.name: one.type for one in columns.kept}, columns.text: pa.string()}
    if columns.id is not None:
        kinds[columns.id] = columns.id_type
    for at, field in enumerate(batch.schema):
        if pa.types.is_null(field.type):
            empty = pa.nulls(batch.num_rows, kinds.get(field.name, field.type))
            batch = batch.set_column(at, field.with_type(empty.type), empty)
    return batch


@contextmanager
def checked(label: str, what: str) -> Iterator[None]:
    """Arrow's errors as ours.

    Raises:
        InputMissing, InputInvalid: The file is gone; or `what`, and why.
    """
    try:
        yield
    except FileNotFoundError as gone:
        raise InputMissing(f"no such file: {label}") from gone
    except PermissionError as refused:
        raise InputMissing(f"no permission to read {label}") from refused
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as damaged:
        first_line = str(damaged).split("\n", 1)[0]
        raise InputInvalid(f"{label}: {what}: {first_line}") from damaged


def read_names(fields: Iterable[pa.Field]) -> None:
    """Look at the names of columns and of all that is within them, which Arrow hands on whatever bytes they are.

    Raises:
        UnicodeDecodeError: One is no UTF-8.
    """
    for field in fields:
        _ = field.name
        kind = field.type
        while isinstance(kind, pa.DictionaryType | pa.BaseExtensionType):
            kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind.storage_type
        read_names(kind.field(at) for at in range(kind.num_fields))


def _cuts(batch: pa.RecordBatch) -> list[tuple[int, int]]:
    """Where to cut a batch so that no piece decodes to much more than a block's bytes."""
    total = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes = row_bytes.of(column)
        if not isinstance(sizes, int):  # others are bounded by the batch
            total += _as_python(column, sizes)
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


def _as_python(column: pa.Array, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes of lists of numbers as if each number took 8 bytes: token arrays become lists of Python."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return sizes
    number = row_bytes.of(column.values.slice(0, 0))
    return sizes // number * TOKEN_BYTES if isinstance(number, int) else sizes


def _block(batch: pa.RecordBatch, first_row: int, columns: Columns, options: ReadOptions, label: str) -> Block:
    with checked(label, f"rows from {first_row} cannot be read"):
        reasons: dict[int, Reason] = {}
        column = batch.column(columns.text)
        texts: list[str | None] = []
        tokens: list[list[int] | None] | None = None
        if columns.template is not None:
            texts = [None] * len(batch)
        elif columns.is_tokens:
            tokens = _tokens(column, reasons)
        else:
            texts = _texts(column, reasons, options.max_row_bytes)
        unfit: set[int] = set()
        nameless: set[int] = set()
        ids, id_column = _ids(batch, first_row, columns, label, unfit, nameless)
        kept = _kept(batch, columns, unfit)
        messages: dict[int, str] = {}
        for at in unfit | nameless:
            reasons[at] = "invalid_utf8" if at in unfit else "no_id"
            what = "a value of it is not valid UTF-8" if at in unfit else f"it has no {columns.id!r}"
            messages[at] = f"{label}: row {first_row + at}: {what}"
            (texts if tokens is None else tokens)[at] = None
        return Block(first_row, ids, texts, tokens, kept, reasons, id_column, messages)


def _texts(column: pa.Array, reasons: dict[int, Reason], max_row_bytes: int) -> list[str | None]:
    sizes = row_bytes.of(column)
    if len(column) and np.max(sizes) > max_row_bytes:
        too_large = sizes > max_row_bytes
        reasons.update((int(at), "too_large") for at in np.flatnonzero(too_large).tolist())
        import pyarrow.compute as pc

        column = pc.if_else(pa.array(too_large), pa.scalar(None, column.type), column)
    column = _as_text(_decoded(column))
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


def _as_text(column: pa.Array) -> pa.Array:
    """Bytes as text that is not checked yet."""
    if pa.types.is_large_binary(column.type):
        return column.cast(pa.binary()).view(pa.string())
    return column.view(pa.string()) if pa.types.is_binary(column.type) else column


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


def _ids(
    batch: pa.RecordBatch, first_row: int, columns: Columns, label: str, unfit: set[int], nameless: set[int]
) -> tuple[Sequence[RowId], pa.Array | None]:
    """The ids as they read, and as they are where that is not the same.

    Args:
        unfit: Gets the positions of those that are no UTF-8; they read with a backslash.
        nameless: Gets the positions of rows without one; they are called by the table and the row.
    """
    if columns.id is None:
        return list(range(first_row, first_row + batch.num_rows)), None
    ids = _decoded(batch.column(columns.id))
    there: Sequence[int] = range(len(ids))
    if ids.null_count:
        there = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False)).tolist()
        nameless.update(set(range(len(ids))) - set(there))
    own = None if row_ids.stands_for_itself(ids.type) else ids
    named = ids.drop_null() if nameless else ids
    if not _is_valid(ids):
        unfit.update(_invalid(ids))
        printed: list[RowId] = [
            value.decode("utf-8", "backslashreplace") for value in named.cast(pa.binary()).to_pylist()
        ]
    else:
        printed = row_ids.printed(named)
    if not nameless:
        return printed, own
    names: list[RowId] = [f"{label}#{first_row + at}" for at in range(len(ids))]
    for at, name in zip(there, printed, strict=True):
        names[at] = name
    return names, own


def _kept(batch: pa.RecordBatch, columns: Columns, unfit: set[int]) -> pa.RecordBatch | None:
    """The other columns.

    Args:
        unfit: Gets the positions of rows that hold text which is no UTF-8; null stands in its place.
    """
    if not columns.kept.names:
        return None
    arrays = []
    for field in columns.kept:
        array = _decoded(batch.column(field.name))
        if not _is_valid(array):
            bad = _invalid(array)
            unfit |= bad
            array = array.take(pa.array([None if at in bad else at for at in range(len(array))], pa.int64()))
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=columns.kept)


def _invalid(column: pa.Array) -> set[int]:
    """Rows that hold text which is no UTF-8, however deep."""
    return {at for at in range(len(column)) if not _is_valid(column.take(pa.array([at])))}

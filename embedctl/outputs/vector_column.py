"""A column of vectors in Parquet's own bytes: its pages, and its place in the footer of the file it is put into. Pure.

Arrow works four bytes of nesting levels out for each number of a list, and copies the numbers three times. Where all
lists are of one width their levels are a few bytes a row, the same in each, and the numbers can be written from where
they are: a third of the CPU.

Source: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, README.md ("Nested
Encoding", "Data Pages") and Encodings.md ("RLE") beside it, 2.11 (2026-11)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.outputs import thrift
from embedctl.outputs.thrift import Field

PATH = ("embedding", "list", "element")
"""Of the column, as `parquet-format` names what is in a list."""

PAGE_BYTES = 1 << 20
"""Of numbers in a page, as Arrow's; a vector that is larger is a page of its own."""

_FLOAT = 4  # enum Type
_UNCOMPRESSED = 0  # enum CompressionCodec
_PLAIN, _RLE = 0, 3  # enum Encoding
_DATA_PAGE = 0  # enum PageType


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """The vectors of one row group.

    Attributes:
        offset: Of the first page's first byte in the file.
        size: Of all pages, heads included, in bytes.
    """

    offset: int
    size: int
    values: int


def pages(vectors: Sequence[NDArray[np.float32]]) -> Iterator[list[bytes | memoryview]]:
    """The pages of some vectors, each as buffers to be written one after the other.

    Args:
        vectors: float32 arrays of shape (n_i, D), in the order of their rows; they are not copied.
    """
    page: list[memoryview] = []
    rows = dimensions = 0
    for piece in vectors:
        at, dimensions = 0, piece.shape[1]
        numbers = np.ascontiguousarray(piece, "<f4").data.cast("B")
        most, width = max(1, PAGE_BYTES // (dimensions * 4)), dimensions * 4
        while at < len(piece):
            count = min(most - rows, len(piece) - at)
            page.append(numbers[at * width : (at + count) * width])
            at, rows = at + count, rows + count
            if rows == most:
                yield _page(page, rows, dimensions)
                page, rows = [], 0
    if rows:
        yield _page(page, rows, dimensions)


def _page(numbers: list[memoryview], rows: int, dimensions: int) -> list[bytes | memoryview]:
    levels = _levels(rows, dimensions)
    size, checksum = len(levels) + sum(map(len, numbers)), zlib.crc32(levels)
    for piece in numbers:
        checksum = zlib.crc32(piece, checksum)
    of_data = [(1, rows * dimensions), (2, _PLAIN), (3, _RLE), (4, _RLE)]  # values, and how they and levels are encoded
    head = [
        *_numbers([(1, _DATA_PAGE), (2, size), (3, size), (4, checksum - (checksum >> 31 << 32))]),
        Field(5, thrift.STRUCT, thrift.struct(_numbers(of_data))),
    ]
    return [thrift.struct(head) + levels, *numbers]


@lru_cache(8)
def _levels(rows: int, dimensions: int) -> bytes:
    """Repetition levels (0 where a row begins) and definition levels (1: it is there), as runs of equal ones."""
    begins = thrift.unsigned(1 << 1) + b"\0"
    goes_on = thrift.unsigned(dimensions - 1 << 1) + b"\1" if dimensions > 1 else b""
    repetition = (begins + goes_on) * rows
    definition = thrift.unsigned(rows * dimensions << 1) + b"\1"
    return b"".join(len(levels).to_bytes(4, "little") + levels for levels in (repetition, definition))


def with_column(footer: bytes, whole: bytes, leaf: int, chunks: Sequence[ColumnChunk]) -> bytes:
    """The footer of a file into which the column was put.

    Args:
        footer: Of the file as it is without the column.
        whole: Of a file that has the column and no row: what it says of columns is taken.
        leaf: Of how many columns, as Parquet counts them, this one comes after.
        chunks: One for each row group, in order.
    """
    without = {field.number: field for field in thrift.fields_of(footer)}
    found = {field.number: field for field in thrift.fields_of(whole)}
    groups = thrift.elements_of(without[4].content)
    spliced = [_row_group(group, leaf, chunk) for group, chunk in zip(groups, chunks, strict=True)]
    found[3] = without[3]  # num_rows
    found[4] = Field(4, thrift.LIST, thrift.listed(thrift.STRUCT, spliced))
    schema = {key: pair for key, pair in _pairs(found[5]) if key == _ARROW_SCHEMA}
    pairs = [schema.get(key, pair) for key, pair in _pairs(without[5])]
    found[5] = Field(5, thrift.LIST, thrift.listed(thrift.STRUCT, pairs))
    return thrift.struct(found[number] for number in sorted(found))


_ARROW_SCHEMA = b"ARROW:schema"


def _pairs(field: Field) -> list[tuple[bytes, bytes]]:
    """Key → the encoded pair, in order."""
    pairs = thrift.elements_of(field.content)
    return [(thrift.binary_of(thrift.fields_of(pair)[0].content), pair) for pair in pairs]


def _row_group(group: bytes, leaf: int, chunk: ColumnChunk) -> bytes:
    fields = []
    for field in thrift.fields_of(group):
        content = field.content
        if field.number == 1:  # columns
            columns = thrift.elements_of(content)
            content = thrift.listed(thrift.STRUCT, [*columns[:leaf], _column(chunk), *columns[leaf:]])
        elif field.number in (2, 6):  # total_byte_size, total_compressed_size
            content = thrift.signed(thrift.number_of(content) + chunk.size)
        fields.append(Field(field.number, field.kind, content))
    return thrift.struct(fields)


def _column(chunk: ColumnChunk) -> bytes:
    encodings = thrift.listed(thrift.I32, [thrift.signed(_PLAIN), thrift.signed(_RLE)])
    path = thrift.listed(thrift.BINARY, [thrift.binary(name.encode()) for name in PATH])
    said = [
        *_numbers([(1, _FLOAT)]),
        Field(2, thrift.LIST, encodings),
        Field(3, thrift.LIST, path),
        *_numbers([(4, _UNCOMPRESSED)]),
        *_numbers([(5, chunk.values), (6, chunk.size), (7, chunk.size), (9, chunk.offset)], thrift.I64),
    ]
    head = _numbers([(2, 0)], thrift.I64)  # file_offset, which nobody uses: 0 since 2.11
    return thrift.struct([*head, Field(3, thrift.STRUCT, thrift.struct(said))])


def _numbers(fields: Sequence[tuple[int, Any]], kind: int = thrift.I32) -> list[Field]:
    return [Field(number, kind, thrift.signed(value)) for number, value in fields]

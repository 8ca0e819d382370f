"""Thrift's compact protocol, as far as the footer and the page headers of Parquet use it. Pure.

What is read stays in its bytes: a footer is taken apart and put together again without being understood.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md (2026-11)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from embedctl.dataclass import dataclass

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12

_TRUE, _FALSE, _BYTE, _I16, _DOUBLE, _SET, _MAP = 1, 2, 3, 4, 7, 10, 11
_MANY = 15  # a list with so many elements or more says how many in a number of its own


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a struct.

    Attributes:
        content: As it is encoded, without the field's head.
    """

    number: int
    kind: int
    content: bytes


def unsigned(number: int) -> bytes:
    """A number that is not negative, seven bits a byte."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def signed(number: int) -> bytes:
    """A number as a field of kind I32 or I64 holds it."""
    return unsigned(number << 1 if number >= 0 else (-number << 1) - 1)


def binary(content: bytes) -> bytes:
    """Bytes or text."""
    return unsigned(len(content)) + content


def listed(kind: int, elements: Sequence[bytes]) -> bytes:
    """A list of encoded elements of one kind."""
    count = len(elements)
    head = bytes([count << 4 | kind]) if count < _MANY else bytes([_MANY << 4 | kind]) + unsigned(count)
    return head + b"".join(elements)


def struct(fields: Iterable[Field]) -> bytes:
    """A struct; its fields in the order of their numbers."""
    out, before = [], 0
    for field in fields:
        step = field.number - before
        out.append(bytes([step << 4 | field.kind]) if 0 < step < 16 else bytes([field.kind]) + signed(field.number))
        out.append(field.content)
        before = field.number
    return b"".join([*out, b"\0"])


def number_of(content: bytes) -> int:
    """The number that a field of kind I32 or I64 holds."""
    value, _ = _unsigned_at(content, 0)
    return value >> 1 ^ -(value & 1)


def binary_of(content: bytes) -> bytes:
    """The bytes that a field of kind BINARY holds."""
    size, at = _unsigned_at(content, 0)
    return content[at : at + size]


def fields_of(content: bytes) -> list[Field]:
    """The fields of an encoded struct, in order.

    Raises:
        IndexError, ValueError: It is none.
    """
    return _fields_at(content, 0)[0]


def elements_of(content: bytes) -> list[bytes]:
    """The elements of an encoded list, as they are encoded.

    Raises:
        IndexError, ValueError: It is none.
    """
    kind, count, at = _list_head(content, 0)
    found = []
    for _ in range(count):
        end = _end(content, at, kind, in_list=True)
        found.append(content[at:end])
        at = end
    return found


def _fields_at(content: bytes, at: int) -> tuple[list[Field], int]:
    found, number = [], 0
    while head := content[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            value, at = _unsigned_at(content, at)
            number = value >> 1 ^ -(value & 1)
        end = _end(content, at, head & 15)
        found.append(Field(number, head & 15, content[at:end]))
        at = end
    return found, at + 1


def _unsigned_at(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := content[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


def _list_head(content: bytes, at: int) -> tuple[int, int, int]:
    """Kind of the elements, how many there are, and where the first is."""
    head, count = content[at], content[at] >> 4
    at += 1
    if count == _MANY:
        count, at = _unsigned_at(content, at)
    return head & 15, count, at


def _end(content: bytes, at: int, kind: int, *, in_list: bool = False) -> int:
    """Where the value that begins at `at` ends."""
    if kind in (_TRUE, _FALSE):
        return at + in_list
    if kind == _BYTE:
        return at + 1
    if kind in (_I16, I32, I64):
        return _unsigned_at(content, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == BINARY:
        size, at = _unsigned_at(content, at)
        return at + size
    if kind in (LIST, _SET):
        element, count, at = _list_head(content, at)
        for _ in range(count):
            at = _end(content, at, element, in_list=True)
        return at
    if kind == STRUCT:
        return _fields_at(content, at)[1]
    raise ValueError(f"Parquet has no field of kind {kind}")

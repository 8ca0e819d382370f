"""JSON numbers that no 64-bit integer or float holds as they were written: kept as their digits. Pure.

orjson makes floats of integers beyond 64 bits and of decimals of any length, and refuses NaN and Infinity, which
Python's own json writes. It is asked first all the same; only lines whose floats do not read as they were written are
looked at again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from operator import contains
from typing import Any

import orjson

_LONG = 17
"""Digits and point of the shortest number that a float may not hold: 15 digits are always safe."""

_NEEDLE = b"0" * _LONG
_DIGITS = bytes(0x30 if byte in b"0123456789." else 0x20 for byte in range(256))
_NUMBER = re.compile(rb"-?[0-9][0-9.]{%d,}(?:[eE][-+]?[0-9]+)?" % (_LONG - 1))
_ENDS = frozenset((b",", b"}", b" ", b"\t"))
_CONSTANTS = ("NaN", "Infinity", "-Infinity")


class Number:
    """A number as it was written. No dataclass: orjson would write its fields."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    @property
    def is_float(self) -> bool:
        """Whether a float is what was written: NaN or an infinity."""
        return self.text in _CONSTANTS


def as_written(values: list[Any], lines: Sequence[bytes | None], name: str) -> list[Any]:
    """A field's values with a Number for each float that is not what was written, also within objects and lists.

    Args:
        lines: Of each; None where it was too long to be parsed.
        name: Of the field.
    """
    kinds = set(map(type, values))
    doubtful: list[int] = []
    if float in kinds:
        doubtful += _unlike(values, lines)
    if dict in kinds or list in kinds:
        nested = [at for at, value in enumerate(values) if type(value) in (dict, list)]
        doubtful += [at for at in nested if _has_long(lines[at])]
    exact = values
    for at in doubtful:
        line = lines[at]
        if line is not None and not is_exact(line):
            with suppress(ValueError, RecursionError):  # orjson took it: it is JSON
                exact = list(values) if exact is values else exact
                exact[at] = loads(line)[0].get(name)
    return exact


def _has_long(line: bytes | None) -> bool:
    """Whether a line may hold a number of many digits."""
    return line is not None and _NEEDLE in line.translate(_DIGITS)


def _unlike(values: list[Any], lines: Sequence[bytes | None]) -> list[int]:
    """Places of floats that do not stand in their line as orjson would write them; most do."""
    at = [place for place, value in enumerate(values) if type(value) is float]
    floats = [values[place] for place in at]
    written = orjson.dumps(floats)[1:-1].split(b",")
    lengths = list(map(len, written))
    if max(lengths) < _LONG:  # what was written is the same, or has many more digits
        return [place for place in at if _has_long(lines[place])]
    first, text = lines[at[0]] or b"", written[0]
    ending = first[(end := first.find(text) + len(text)) : end + 1]
    if ending not in _ENDS:
        return at
    stands = map(contains, (lines[place] or b"" for place in at), (text + ending for text in written))
    return [place for place, is_there in zip(at, stands, strict=True) if not is_there]


def is_exact(line: bytes) -> bool:
    """Whether orjson gives every number of a line as it was written; digits within text count too."""
    return not any(isinstance(_read(found[0].decode()), Number) for found in _NUMBER.finditer(line))


def loads(text: bytes) -> tuple[Any, bool]:
    """The value, with a Number wherever no integer or float is what was written; whether NaN or an infinity was.

    Raises:
        ValueError, RecursionError: It is no JSON.
    """
    constants: list[str] = []

    def constant(word: str) -> Number:
        constants.append(word)
        return Number(word)

    value = json.loads(text, parse_float=_read, parse_int=_read, parse_constant=constant)
    return value, bool(constants)


def dumps(value: Any) -> str:
    """JSON text, with the digits of each Number.

    Raises:
        TypeError: It holds text that no encoding can carry.
    """
    return orjson.dumps(value, default=_digits).decode()


def _digits(value: object) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    raise TypeError


def _read(text: str) -> int | float | Number:
    if not any(mark in text for mark in ".eE"):
        whole = int(text) if len(text) <= 20 else 1 << 64
        return whole if -(1 << 63) <= whole < 1 << 64 else Number(text)
    try:
        number = float(text)
        same = repr(number) == text or Decimal(text) in (Decimal(repr(number)), Decimal(number))
    except (ValueError, ArithmeticError):  # no number, within text; or an exponent beyond all bounds
        return Number(text)
    return number if same else Number(text)

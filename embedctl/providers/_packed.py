"""Answers that are base64 but for a few hundred bytes: the strings are cut out before the JSON is read. Pure.

A JSON parser looks at every byte of a string for its end; memchr looks at 32 at once. Of 2.4 MB, reading and decoding
take 0.75 ms so and 1.5 ms with the strings left in (2026-11-21).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pybase64

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEY = b'"embedding":'
_KEY_BYTES = len(_KEY)
_QUOTE = 0x22
_BLANKS = b" \t\r\n"
_MOST_BLANKS = 100  # of a colon's distance to its string: with more it is in doubt


def cut(body: bytes) -> tuple[bytes, list[memoryview]] | None:
    """`body` with the string after each `"embedding":` emptied, and those strings; None when it is in doubt.

    A string that holds neither quotation mark nor backslash is replaced by an empty one: what is left is JSON of the
    same shape exactly when the whole is. That it holds none of them, and is a value at all, is for the caller to see:
    both are no base64.
    """
    found, size = body.find(_KEY), 0
    if found < 0:
        return None
    view, left, strings, done = memoryview(body), [], [], 0
    while found >= 0:
        start = found + _KEY_BYTES
        if body[start : start + 1] != b'"':
            while body[start : start + 1] in _BLANKS and start - found < _MOST_BLANKS:
                start += 1
        start += 1
        end = start + size  # mostly it is as long as the one before; were there a mark inside, it were no base64
        if body[end : end + 1] != b'"':
            end = body.find(b'"', start)
        if end < 0 or body[start - 1] != _QUOTE:
            return None
        size = end - start
        strings.append(view[start:end])
        left.append(body[done:start])
        done = end
        found = body.find(_KEY, end)
    left.append(body[done:])
    return b"".join(left), strings


def matrix(strings: list[memoryview]) -> NDArray[np.float32] | None:
    """base64 of little-endian float32, one string per vector, as (n, D); None unless all are alike."""
    try:
        width = len(_decode(strings[0], None, True)) if strings else 0
        if not width or width % 4:
            return None
        numbers = np.empty((len(strings), width // 4), "<f4")
        room = numbers.data.cast("B")
        for at, string in enumerate(strings):
            room[at * width : (at + 1) * width] = _decode(string, None, True)
    except ValueError:  # no base64, or of another width
        return None
    return numbers


_decode = pybase64.b64decode  # called by place: to name `validate` takes half as long as to decode a vector

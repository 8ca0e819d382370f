"""Vectors as the JSON of an answer: as base64 or as decimals the same float32, bit by bit.

Decimals are the shortest that read back to the same float32. Encoding keeps the interpreter: it goes in slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

SLICE_NUMBERS = 1 << 17
"""Numbers that are written at once: some 5 ms as decimals."""

_BYTES_A_DECIMAL = 13
_BYTES_AN_OBJECT = 64


def size(count: int, dimensions: int, *, base64: bool) -> int:
    """Bytes of the answer, about; and of the vectors that it is made of."""
    numbers = count * dimensions
    return count * _BYTES_AN_OBJECT + (numbers * 16 // 3 if base64 else numbers * _BYTES_A_DECIMAL) + numbers * 4


def data(vectors: Sequence[NDArray[np.float32]], *, base64: bool) -> Iterator[bytes]:
    """The list `data` of OpenAI's answer, in pieces.

    Args:
        vectors: float32, shape (D,), one per input.
    """
    last = len(vectors) - 1
    piece = bytearray(b"[")
    numbers = 0
    for place, vector in enumerate(vectors):
        piece += b'{"object":"embedding","index":%d,"embedding":' % place
        if base64:
            piece += b'"'
            piece += pybase64.b64encode(_contiguous(vector).tobytes())
            piece += b'"}'
        else:
            piece += _decimals(vector)
            piece += b"}"
        piece += b"]" if place == last else b","
        numbers += len(vector)
        if numbers >= SLICE_NUMBERS or place == last:
            yield bytes(piece)
            piece, numbers = bytearray(), 0


def lists(vectors: Sequence[NDArray[np.float32]]) -> Iterator[bytes]:
    """The list `embeddings` of the batch endpoint, in pieces."""
    last = len(vectors) - 1
    piece = bytearray(b"[")
    numbers = 0
    for place, vector in enumerate(vectors):
        piece += _decimals(vector)
        piece += b"]" if place == last else b","
        numbers += len(vector)
        if numbers >= SLICE_NUMBERS or place == last:
            yield bytes(piece)
            piece, numbers = bytearray(), 0


def _decimals(vector: NDArray[np.float32]) -> bytes:
    return orjson.dumps(_contiguous(vector), option=orjson.OPT_SERIALIZE_NUMPY)


def _contiguous(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(vector, dtype="<f4")

"""Vectors in an answer read back to the same bits, however many there are and however they are written."""

from __future__ import annotations

import base64
import json

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedctl.server import encoding

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=80, deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=FLOATS))
def test_decimals_and_base64_read_back(vectors: np.ndarray) -> None:
    """Every float32, subnormal, negative zero or huge, reads back to its own bits from both forms."""
    rows = list(vectors)
    decimals = json.loads(b"".join(encoding.data(rows, base64=False)))
    packed = orjson.loads(b"".join(encoding.data(rows, base64=True)))
    plain = json.loads(b"".join(encoding.lists(rows)))

    assert [one["index"] for one in decimals] == list(range(len(rows)))
    read = np.array([one["embedding"] for one in decimals], np.float64).astype(np.float32)
    assert read.tobytes() == vectors.tobytes()
    assert b"".join(base64.b64decode(one["embedding"]) for one in packed) == vectors.tobytes()
    assert np.array(plain, np.float64).astype(np.float32).tobytes() == vectors.tobytes()


def test_long_answers_come_in_slices() -> None:
    """No piece holds more numbers than are written at once, and together they are whole."""
    rows = list(np.ones((300, 1536), np.float32))
    pieces = list(encoding.data(rows, base64=True))

    assert len(pieces) == -(-300 * 1536 // (-(-encoding.SLICE_NUMBERS // 1536) * 1536))
    assert len(orjson.loads(b"".join(pieces))) == 300
    assert encoding.size(300, 1536, base64=True) > sum(map(len, pieces))


def test_rows_of_a_wider_array_are_written_as_they_lie() -> None:
    """A row that is a view, not contiguous or not little-endian, gives its numbers."""
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = orjson.loads(b"".join(encoding.data([wide[:, 1], wide[1].astype(">f4")], base64=True)))

    assert np.frombuffer(base64.b64decode(found[0]["embedding"]), "<f4").tolist() == [1, 5, 9]
    assert np.frombuffer(base64.b64decode(found[1]["embedding"]), "<f4").tolist() == [4, 5, 6, 7]

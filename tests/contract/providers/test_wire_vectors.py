"""Answers to arrays: what is sent is what stands in the array, whichever way it was written."""

from __future__ import annotations

import base64
import json
import sys
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedctl.errors import AnswerUnusable
from embedctl.providers import _packed, _vectors

FLOATS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


@pytest.fixture(params=["simdjson", "msgspec"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Numbers are read with simdjson where it is there, and without it where it is not."""
    if request.param == "msgspec":
        monkeypatch.setitem(sys.modules, "simdjson", None)
    else:
        pytest.importorskip("simdjson")
    return str(request.param)


def body(*embeddings: Any, **more: Any) -> bytes:
    data = [{"index": number, "embedding": one} for number, one in enumerate(embeddings)]
    return orjson.dumps({"data": data, **more})


@given(FLOATS)
def test_base64_round_trip(wanted: np.ndarray) -> None:
    """base64 of little-endian float32 comes back bit for bit."""
    found = _vectors.listed(body(*[base64.b64encode(row.astype("<f4").tobytes()).decode() for row in wanted]))

    assert found.vectors.tobytes() == wanted.tobytes()
    assert found.places == tuple(range(len(wanted)))


@given(FLOATS)
def test_float_round_trip(wanted: np.ndarray) -> None:
    """Floats written with all their digits come back bit for bit."""
    found = _vectors.listed(body(*wanted.astype(float).tolist()))

    np.testing.assert_array_equal(found.vectors, wanted)


_STRINGS = st.sampled_from([base64.b64encode(np.arange(n, n + 3, dtype="<f4").tobytes()).decode() for n in range(4)])
_TRICKS = st.sampled_from(
    ["", "A", "AAAA", '"', "\\", '"embedding":"AAAA"', '\\"embedding":"', "a/b\\/c", "x\n", [1.0, 2.0, 3.0], None, {}]
)
_ITEMS = st.one_of(
    st.builds(lambda one: {"embedding": one, "index": 0}, _STRINGS),
    st.builds(lambda one, more: {"text": more, "embedding": one}, _STRINGS, _TRICKS),
    st.builds(lambda one, more: {"embedding": one, "meta": {"embedding": more}}, _STRINGS, _STRINGS | _TRICKS),
    st.builds(lambda more: {"embedding": more}, _TRICKS),
    st.builds(lambda more: {'x"embedding': more}, _STRINGS),
)


@settings(max_examples=300, deadline=None)
@given(
    items=st.lists(_ITEMS, min_size=1, max_size=3),
    model=_STRINGS | st.just('"embedding":"AAAA"'),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,", ":\n\t ")]),
    cut=st.none() | st.integers(0, 200),
    flip=st.none() | st.tuples(st.integers(0, 400), st.sampled_from(b'"\\:,{}[]A')),
)
def test_strings_that_are_cut_out_read_as_they_would_inside(
    items: list[dict[str, Any]], model: str, separators: tuple[str, str], cut: int | None, flip: tuple[int, int] | None
) -> None:
    """Whatever an answer holds, it reads the same whether its strings are cut out first or the JSON is read whole."""
    whole = bytearray(json.dumps({"data": items, "model": model}, separators=separators).encode())
    if flip:
        whole[flip[0] % len(whole)] = flip[1]
    sent = bytes(whole[: len(whole) - cut] if cut else whole)

    def read() -> object:
        try:
            found = _vectors.listed(sent)
        except AnswerUnusable as error:
            return error.message
        return found._replace(vectors=(found.vectors.shape, found.vectors.tobytes()))

    quick = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_packed, "cut", lambda body: None)
        slow = read()

    assert quick == slow


def test_an_ordinary_answer_is_read_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary base64 answer needs no second reading."""
    packed = base64.b64encode(np.array([1, 2], dtype="<f4").tobytes()).decode()
    monkeypatch.setattr(_vectors, "rows", None)

    found = _vectors.listed(body(packed, packed, usage={"total_tokens": 4}, model="m"))

    assert (found.vectors.tolist(), found.places, found.base64) == ([[1, 2], [1, 2]], (0, 1), True)
    assert (found.counts.total, found.model) == (4, "m")


def test_both_in_one_answer(parser: str) -> None:
    """An answer that mixes both forms is read."""
    packed = base64.b64encode(np.array([1, 2], dtype="<f4").tobytes()).decode()

    found = _vectors.listed(body([3, 4.5], packed))

    np.testing.assert_array_equal(found.vectors, np.array([[3, 4.5], [1, 2]], dtype=np.float32))


def test_escaped_base64() -> None:
    """base64 whose slashes a JSON writer escaped is read."""
    wanted = np.frombuffer(b"\xff\xff\xff\x3f" * 3, dtype="<f4")
    packed = base64.b64encode(wanted.tobytes()).decode()
    escaped = body(packed).replace(b"/", b"\\/")

    found = _vectors.listed(escaped)

    assert escaped.count(b"\\/") > 3
    np.testing.assert_array_equal(found.vectors[0], wanted)


@pytest.mark.parametrize(
    ("embedding", "says"),
    [
        (b"[1, null]", "not an array of numbers"),
        (b'["1", "2"]', "not an array of numbers"),
        (b"[true, false]", "not an array of numbers"),
        (b"[[1, 2], [3, 4]]", "nested"),
        (b"[1, [2]]", "nested"),
        (b"[]", "is empty"),
        (b'""', "is empty"),
        (b"null", "is null, not a vector"),
        (b"3", "is 3, not a vector"),
        (b'{"a": 1}', "not a vector"),
        (b'"AAAAAAA="', "no float32"),
        (b'"not base64!"', "not base64"),
        (b'"AAA"', "not base64"),
        (b'"AAA!AAA=="', "not base64"),
        (b"[1, NaN]", "not whole JSON"),
        (b"[1, Infinity]", "not whole JSON"),
        (b"[1, 2", "not whole JSON"),
    ],
)
def test_what_is_no_vector(parser: str, embedding: bytes, says: str) -> None:
    """Everything that is no array of numbers is unusable, and the message says which and what."""
    whole = b'{"data":[{"index":0,"embedding":' + embedding + b"}]}"

    with pytest.raises(AnswerUnusable, match=says) as caught:
        _vectors.listed(whole)

    assert says == "not whole JSON" or "data[0].embedding" in caught.value.message


def test_numbers_beyond_float64(parser: str) -> None:
    """A number too large for float64 is refused, one too large for an integer is not."""
    with pytest.raises(AnswerUnusable):
        _vectors.listed(b'{"data":[{"embedding":[1e999]}]}')

    found = _vectors.listed(b'{"data":[{"embedding":[123456789012345678901234567890, 1]}]}')

    assert found.vectors[0, 0] == pytest.approx(1.2345679e29)


@pytest.mark.parametrize("index", [[0, None], ["0", "1"], [0.0, 1.0], [True, False]])
def test_places_that_are_none(index: list[Any]) -> None:
    """Places that are missing for some, or no whole numbers, are unusable."""
    data = [{"embedding": [1.0]} | ({} if place is None else {"index": place}) for place in index]

    with pytest.raises(AnswerUnusable, match="index"):
        _vectors.listed(orjson.dumps({"data": data}))


def test_no_places() -> None:
    """Where no vector has a place, the order is the request's."""
    found = _vectors.listed(b'{"data":[{"embedding":[1]},{"embedding":[2]}]}')

    assert found.places is None


@pytest.mark.parametrize("whole", [b"", b"[]", b'"x"', b'{"data":{}}', b'{"data":[1]}', b"<html>", b"\xff\xfe", b"nul"])
def test_what_is_no_answer(whole: bytes) -> None:
    """A body of another shape is unusable, whatever it is."""
    with pytest.raises(AnswerUnusable):
        _vectors.listed(whole)


@pytest.mark.parametrize(
    ("usage", "wanted"),
    [
        ({"prompt_tokens": 7, "total_tokens": 8}, (8, None, None)),
        ({"prompt_tokens": 7}, (7, None, None)),
        ({"total_tokens": "8", "prompt_tokens": 7}, (7, None, None)),
        ({"total_tokens": 8.0}, (8, None, None)),
        ({"total_tokens": 8.5}, (None, None, None)),
        ({"total_tokens": -1}, (None, None, None)),
        ({"total_tokens": True}, (None, None, None)),
        ({"total_tokens": None}, (None, None, None)),
        ({"total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 3}}, (8, 3, None)),
        ({"total_tokens": 8, "cost": 1.6e-07}, (8, None, Decimal("1.6E-7"))),
        ({"total_tokens": 10**23, "prompt_tokens": 10**9 + 1}, (None, None, None)),
        ({"total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 1e300}}, (8, None, None)),
        ([], (None, None, None)),
        ("8", (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_usage(usage: Any, wanted: tuple[Any, Any, Any]) -> None:
    """Tokens are whole numbers or nothing; cached tokens and the provider's own cost are read where they stand."""
    counts = _vectors.counts(msgspec.Raw(msgspec.json.encode(usage)))

    assert (counts.total, counts.cached, counts.cost) == wanted


def test_usage_absent() -> None:
    """No usage is nothing, never 0."""
    assert _vectors.listed(b'{"data":[{"embedding":[1]}]}').counts == (None, None, None, None)


@given(FLOATS)
def test_unit(vectors: np.ndarray) -> None:
    """Rows come out with length 1, rows of zeros as they were."""
    scaled = vectors / np.float32(max(1.0, float(np.abs(vectors).max())))

    found = _vectors.unit(scaled)

    for before, after in zip(scaled, found, strict=True):
        length = np.linalg.norm(before)
        assert np.linalg.norm(after) == pytest.approx(1 if length > 1e-18 else np.linalg.norm(after), abs=1e-5)
        assert (after == before).all() or length > 0

"""Answers to float32 arrays: (n, D), no list of Python floats on the way. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pybase64

from embedctl.errors import AnswerUnusable
from embedctl.providers import _foreign, _packed
from embedctl.providers._foreign import decoded, unshaped, unusable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUOTE, _BRACKET = 0x22, 0x5B
_FLOATS = msgspec.json.Decoder(list[float])
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_ABSENT = msgspec.Raw()
_MOST_NUMBERS = 1 << 25  # a number is at least two bytes of JSON, and no answer is larger than 64 MiB
_MOST_PLACE = 1 << 31

Struct = msgspec.Struct
Raw = msgspec.Raw


class _Body(Struct, gc=False):
    model: Any = None
    id: Any = None
    usage: Raw = _ABSENT
    error: Raw = _ABSENT


class _Item(Struct, gc=False):
    embedding: Raw = _ABSENT
    index: Any = None


class _ListedBody(_Body, gc=False):
    data: tuple[_Item, ...] = ()


class _EmptiedItem(Struct, gc=False):
    embedding: Literal[""]
    index: Any = None


class _EmptiedBody(_Body, gc=False):
    """An answer whose strings were cut out: each item has had one."""

    data: tuple[_EmptiedItem, ...] = ()


_BODY = msgspec.json.Decoder(_ListedBody)
_EMPTIED = msgspec.json.Decoder(_EmptiedBody)


class UsageCounts(NamedTuple):
    """What a `usage` object says; None where it says nothing readable.

    Attributes:
        odd_cost: What it says of its cost when that is no amount.
    """

    total: int | None = None
    cached: int | None = None
    cost: Decimal | None = None
    odd_cost: str | None = None


class Listed(NamedTuple):
    """An answer in the OpenAI shape, read."""

    vectors: NDArray[np.float32]
    places: tuple[int, ...] | None
    counts: UsageCounts
    model: str | None
    id: str | None
    base64: bool


def listed(body: bytes) -> Listed:
    """Read `{"data": [{"embedding", "index"}], "usage", "model"}`; floats and base64 alike.

    Raises:
        AnswerUnusable: Cut, not JSON, empty, ragged, or with a value that is no number.
    """
    if (emptied := _without_strings(body)) is not None:
        answer, vectors = emptied
        return _listed(answer, lambda: (vectors, True), body)
    whole = decoded(_BODY, body)
    return _listed(whole, lambda: _rows_of(whole), body)


def _listed(
    answer: _EmptiedBody | _ListedBody, vectors: Callable[[], tuple[NDArray[np.float32], bool]], body: bytes
) -> Listed:
    """What an answer says, and its vectors, of which it is asked whether they were base64."""
    used = counts(answer.usage)
    with billed(used.total):
        if not answer.data:
            raise unusable("the answer holds no vectors", body)
        found, packed = vectors()
        order = places([item.index for item in answer.data])
    return Listed(found, order, used, text(answer.model), text(answer.id), packed)


def _rows_of(answer: _ListedBody) -> tuple[NDArray[np.float32], bool]:
    raws = [item.embedding for item in answer.data]
    return rows(raws, "data[{}].embedding"), memoryview(raws[0])[0] == _QUOTE


def _without_strings(body: bytes) -> tuple[_EmptiedBody, NDArray[np.float32]] | None:
    """The answer and its vectors when every item is one base64 string, and nothing else is; None: read it whole."""
    if (parted := _packed.cut(body)) is None:
        return None
    left, strings = parted
    try:
        answer = decoded(_EMPTIED, left)
    except AnswerUnusable:
        return None
    if len(answer.data) != len(strings):
        return None
    vectors = _packed.matrix(strings)
    return None if vectors is None else (answer, vectors)


@contextmanager
def billed(tokens: int | None) -> Iterator[None]:
    """What cannot be used inside was still counted, and is on the invoice."""
    try:
        yield
    except AnswerUnusable as error:
        error.tokens_native = tokens
        raise


def places(index: list[Any]) -> tuple[int, ...] | None:
    """Each vector's place in the request as the answer says; None where it says none.

    One that is left out is 0 when the others are 1 to n-1: JSON made from protocol buffers leaves out what is 0, and
    Gemini's OpenAI dialect is made so.

    Raises:
        AnswerUnshaped: Some have one and some do not, or one is no number, or none that a request could have.

    Source: https://protobuf.dev/programming-guides/json/ (fields with their default value, 2026-11-25)
    """
    if all(place is None for place in index):
        return None
    if index.count(None) == 1 and set(index) == {None, *range(1, len(index))}:
        return tuple(0 if place is None else place for place in index)
    for position, place in enumerate(index):
        if type(place) is not int or not -_MOST_PLACE < place < _MOST_PLACE:
            raise unshaped(f"data[{position}].index is {_foreign.shown(place)}, not a number of a text")
    return tuple(index)


def matrix(raw: Raw, where: str) -> NDArray[np.float32]:
    """`[[float, …], …]` as float32, shape (n, D).

    Args:
        where: The array's name in messages ("embeddings").
    """
    try:
        each = decoded(_RAWS, raw)
    except AnswerUnusable:
        raise unusable(f"{where} is not an array of vectors", bytes(raw)) from None
    return rows(each, where + "[{}]")


def rows(raws: Sequence[Raw], where: str) -> NDArray[np.float32]:
    """One vector per raw JSON value: an array of numbers, or base64 of little-endian float32.

    Args:
        where: Names one of them in messages, with `{}` for its number ("data[{}].embedding").

    Raises:
        AnswerUnusable: None at all, ragged, or not numbers (null, strings, NaN, nested arrays).
    """
    if not raws:
        raise unusable("the answer holds no vectors")
    parser = _Numbers()
    first = _vector(raws[0], where.format(0), parser)
    if len(raws) * first.size > _MOST_NUMBERS:  # before so much memory is asked for
        raise unusable(f"{len(raws)} vectors as long as {where.format(0)}, {first.size} numbers, are in no answer")
    out = np.empty((len(raws), first.size), dtype=np.float32)
    out[0] = first
    for number in range(1, len(raws)):
        one = _vector(raws[number], where.format(number), parser)
        if one.size != first.size:
            raise unusable(f"{where.format(number)} has {one.size} numbers, {where.format(0)} has {first.size}")
        out[number] = one
    return out


def _vector(raw: Raw, where: str, parser: _Numbers) -> NDArray[Any]:
    view = memoryview(raw)
    kind = view[0] if len(view) else 0
    if kind == _QUOTE:
        one: NDArray[Any] = _from_base64(view, where)
    elif kind == _BRACKET:
        one = parser.read(view, where)
    else:
        said = bytes(view[:20]).decode("utf-8", "replace") or "absent"
        raise unusable(f"{where} is {said}, not a vector")
    if not one.size:
        raise unusable(f"{where} is empty")
    return one


def _from_base64(view: memoryview, where: str) -> NDArray[np.float32]:
    """Little-endian float32.

    Source: openai-python `_parsing/_embeddings.py` (facts/providers.md, 2026-11-21).
    """
    try:
        packed = pybase64.b64decode(view[1:-1], validate=True)
    except ValueError:
        packed = _escaped_base64(view, where)
    if len(packed) % 4:
        raise unusable(f"{where} is base64 of {len(packed)} bytes, which are no float32 values")
    return np.frombuffer(packed, dtype="<f4")


def _escaped_base64(view: memoryview, where: str) -> bytes:
    """base64 whose slashes are escaped, as some JSON writers do."""
    try:
        return pybase64.b64decode(decoded(_STRING, Raw(view)), validate=True)
    except (ValueError, AnswerUnusable):
        said = bytes(view[:20]).decode("utf-8", "replace")
        raise unusable(f"{where} is a string that is not base64: {said}…") from None


class _Numbers:
    """Arrays of JSON numbers: through simdjson where it is installed (2.7 times faster), else msgspec."""

    def __init__(self) -> None:
        self._parser: Any = None
        try:
            import simdjson
        except ImportError:
            return
        self._parser = simdjson.Parser()

    def read(self, view: memoryview, where: str) -> NDArray[np.float64]:
        # simdjson flattens nested arrays, so that a bracket inside must be seen before.
        if bytes(view).find(b"[", 1) >= 0:
            raise unshaped(f"{where} is nested: vectors of tokens, not one vector")
        if self._parser is not None:
            try:
                return np.frombuffer(self._parser.parse(view).as_buffer(of_type="d"), dtype=np.float64)
            except (TypeError, ValueError, RuntimeError, AttributeError):
                pass  # numbers beyond float64 and every mistake: msgspec says which
        try:
            return np.array(_FLOATS.decode(view), dtype=np.float64)
        except msgspec.DecodeError as error:
            raise unusable(f"{where} is not an array of numbers: {error}") from error


def from_python(values: Any, where: str) -> NDArray[np.float32]:
    """Vectors that were found by an expression in parsed JSON: lists of numbers, or base64 strings."""
    if not isinstance(values, list) or not values:
        raise unusable(f"{where} is no list of vectors")
    try:
        raws = [Raw(msgspec.json.encode(value)) for value in values]
    except RecursionError:
        raise unshaped(f"{where} is nested: vectors of tokens, not one vector") from None
    return rows(raws, where + "[{}]")


def counts(raw: Raw) -> UsageCounts:
    """Read a `usage` object in any dialect; what cannot be read is None, never 0."""
    usage = _foreign.anything(raw) if len(memoryview(raw)) else None
    if not isinstance(usage, dict):
        return UsageCounts()
    total, prompt = _foreign.whole(usage.get("total_tokens")), _foreign.whole(usage.get("prompt_tokens"))
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    said = usage.get("cost")
    cost = _foreign.amount(said)
    odd_cost = None if said is None or cost is not None else _foreign.shown(said)
    return UsageCounts(total if total is not None else prompt, _foreign.whole(cached), cost, odd_cost)


def text(value: Any) -> str | None:
    """A non-empty string, None for anything else."""
    return value if isinstance(value, str) and value else None


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`vectors` scaled to length 1, row by row; rows of zeros stay as they are."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(vectors, length, out=vectors.copy(), where=length > 0)
    return scaled

"""What a server says is data: read, bounded, cut and cleaned where it enters. Pure.

Its JSON is read by `decoded` or `loaded`, its numbers by `whole` and `amount`, its strings by `clean` and `label`; a
whole answer passes `read` in `_entry.py`. Nothing else in this folder parses what a server wrote.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import orjson

from embedctl.errors import AnswerUnshaped, AnswerUnusable
from embedctl.providers._contract import HttpRequest

CHARACTERS = 200
"""Of a foreign string that are kept."""

READ_CHARACTERS = 64 * 1024
"""Of a foreign string that are looked at: a key is looked for in all of them."""

EXPRESSION_CHARACTERS = 4 * 1024
"""Of a foreign string that regular expressions run over."""

MOST_TOKENS = 10**9
"""Of one answer: no request holds as much text."""

MOST_USD = Decimal(10) ** 13
DECIMALS = 15
"""What the ledger holds of money, DECIMAL(28,15); what is beyond its last decimal is rounded, as the ledger does."""

STRUCK = "***"

_BEGINNING = 60  # bytes of a body that a message shows
_LAST_DECIMAL = Decimal(1).scaleb(-DECIMALS)
_AMOUNT = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_AMOUNT_CHARACTERS = 60
_ANYTHING = msgspec.json.Decoder()

_SHORTEST_KEY = 4  # in a sentence: servers of one's own are given keys like "none"
_SHORTEST_SURE_KEY = 8
_NO_KEY_HEADERS = frozenset({"content-type", "accept", "accept-encoding", "user-agent", "x-provider", "x-hf-bill-to"})
_KEY_HEADER = re.compile(r"auth|key|token|secret|cookie|pass|sign|cred|session")
_VALUE = r"(?=[A-Za-z0-9_\-*]{0,40}[0-9*]|[A-Za-z]{16})"  # a digit, a star, or more letters than a word has
_OF_BEARER = r"(?!(?:auth|token|header|scheme|credential|format|realm|prefix|required|invalid|missing)[a-z]*\b)"
_LOOKS_LIKE_A_KEY = re.compile(
    rf"(?<![A-Za-z0-9])(?:sk|pk|rk|hf|pa|al|nk|jina|gsk|fw|tgp|bedrock-api-key|xox[bp])[-_]{_VALUE}[A-Za-z0-9*_\-]{{8,}}"
    r"|(?<![A-Za-z0-9])(?:AIza|ABSK)[A-Za-z0-9*_\-]{8,}"
    r"|(?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]+)?"
    rf"|(?i:bearer\s+{_OF_BEARER})\S{{6,}}"
    r"|(?i:api[-_ ]?key|token|secret)\s*=\s*[^\s,;\"']{6,}"
    rf"|(?i:api[-_ ]?key|token|secret)\s*:\s*{_VALUE}[^\s,;\"']{{6,}}"
    r"|\b(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,}\b"
)
_INVISIBLE = re.compile(r"[^!-~]+")
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})")
_UNPACKED = 2  # times: what is packed more often is nobody's habit

T = TypeVar("T")


def unusable(what: str, body: bytes = b"") -> AnswerUnusable:
    """A 200 that cannot be used, with how its body begins when that helps."""
    start = bytes(body[:_BEGINNING]).decode("utf-8", "replace").replace("\n", " ").strip()
    return AnswerUnusable(f"{what}; the body begins with {start!r}" if body else what, status=200)


def unshaped(what: str) -> AnswerUnshaped:
    """A 200 of a shape that its server gives to every answer: the next one would be no better."""
    return AnswerUnshaped(what, status=200)


def decoded(decoder: msgspec.json.Decoder[T], content: bytes | msgspec.Raw) -> T:
    """JSON read by a typed decoder.

    Raises:
        AnswerUnusable: It is cut, not JSON, nested deeper than anything that is meant, or of another shape.
    """
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as error:
        what = f"the answer has another shape than this protocol's: {error}"
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        what = f"the answer is not whole JSON: {error}"
    except RecursionError:
        what = "the answer is nested too deep"
    raise unusable(what, bytes(memoryview(content)[:_BEGINNING]))


def anything(content: bytes | msgspec.Raw) -> Any:
    """JSON of any shape, None where it cannot be read."""
    try:
        return decoded(_ANYTHING, content)
    except AnswerUnusable:
        return None


def loaded(body: bytes) -> Any:
    """JSON of any shape; numbers too large for 64 bits are floats.

    Raises:
        AnswerUnusable: It is cut, not JSON, or nested deeper than 1,024.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise unusable(f"the answer is not whole JSON: {error}", body) from error


def whole(value: Any, *, least: int = 0, most: int = MOST_TOKENS) -> int | None:
    """A whole number within bounds, None for anything else; 12.0 is 12, "12" is nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        return None
    return int(value) if value == int(value) else None


def counted(header: str | None) -> int | None:
    """A whole number of tokens in a header."""
    plain = header is not None and header.isascii() and header.isdecimal() and len(header) <= len(str(MOST_TOKENS))
    return whole(int(header)) if header and plain else None


def amount(value: Any) -> Decimal | None:
    """An amount in USD that the ledger can hold, from a number or a string; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    said = value if isinstance(value, str) else repr(value) if abs(value) < float(MOST_USD) else ""
    if len(said) > _AMOUNT_CHARACTERS or not _AMOUNT.fullmatch(said):
        return None
    found = Decimal(said)
    if found >= MOST_USD:
        return None
    exponent = found.as_tuple().exponent
    return found.quantize(_LAST_DECIMAL) if isinstance(exponent, int) and exponent < -DECIMALS else found


def shown(value: Any) -> str:
    """A value out of JSON in words, for a message: a string as it is, anything else as JSON."""
    if isinstance(value, str):
        return value[:READ_CHARACTERS]
    try:
        return orjson.dumps(value)[:READ_CHARACTERS].decode("utf-8", "replace")
    except TypeError:  # an integer of more than 64 bits, or nested too deep
        return "a number of many digits" if isinstance(value, int) else "something nested too deep"


def clean(said: str, request: HttpRequest) -> str:
    """One line of at most 200 characters without the request's key, or anything that looks like one."""
    return _line(_LOOKS_LIKE_A_KEY.sub(STRUCK, _struck(said, _Keys.of(request).all)[:EXPRESSION_CHARACTERS]))


def label(said: str | None, request: HttpRequest) -> str | None:
    """An id or a name as it is kept: like `clean`, but what merely looks like a key stays. None: there is none."""
    if not said:
        return None
    return _line(_struck(said, _Keys.of(request).sure)[:EXPRESSION_CHARACTERS]) or None


def line(said: str) -> str:
    """One line of at most 200 characters: for what is said where no key was sent."""
    return _line(said[:EXPRESSION_CHARACTERS])


def without_keys(said: str, request: HttpRequest) -> str:
    """All of a text but the request's key: what is cut before it is cleaned could end with half of one."""
    return _struck(said, _Keys.of(request).all)


def _line(said: str) -> str:
    """Without control characters, bidirectional ones, surrogates and whatever else is not seen."""
    if not (said.isascii() and said.isprintable()):
        said = "".join(c if c.isprintable() else " " for c in said)
    said = " ".join(said.split())
    return said if len(said) <= CHARACTERS else said[: CHARACTERS - 1] + "…"


class _Keys(NamedTuple):
    """What must not be repeated of a request.

    Attributes:
        all: In sentences.
        sure: In ids and names, where a header that is no key may be rightly repeated (a model's name).
    """

    all: tuple[str, ...]
    sure: tuple[str, ...]

    @classmethod
    def of(cls, request: HttpRequest) -> _Keys:
        """Of its headers: whole values, and what stands behind a scheme ("Token KEY", Basic)."""
        headers = tuple((name, value) for name, value in request.headers.items() if name not in _NO_KEY_HEADERS)
        in_body = tuple(
            name
            for name, value in headers
            if not _KEY_HEADER.search(name) and value.encode("utf-8", "replace") in request.body
        )
        return _keys(headers, in_body)


@lru_cache(maxsize=64)
def _keys(headers: tuple[tuple[str, str], ...], in_body: tuple[str, ...]) -> _Keys:
    """Of headers that may hold keys; those of `in_body` are no keys, for the body says the same."""
    every, sure = [], []
    for name, value in headers:
        parts = [part for part in _parts(value) if len(part) >= _SHORTEST_KEY]
        every += parts
        if name not in in_body:
            sure += [part for part in parts if len(part) >= _SHORTEST_SURE_KEY]
    return _Keys(tuple(every), tuple(sure))


def _parts(value: str) -> Iterator[str]:
    value = value.strip()
    scheme, _, rest = value.partition(" ")
    rest = rest.strip()
    yield value
    yield rest
    yield from (word for word in re.split(r"[\s,;=\"]+", rest or value) if len(word) >= _SHORTEST_SURE_KEY)
    if scheme.lower() == "basic":
        try:
            user_and_password = base64.b64decode(rest, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return
        yield user_and_password
        yield user_and_password.partition(":")[2]


def _struck(said: str, keys: tuple[str, ...]) -> str:
    """Without the keys; a text that holds one in disguise is struck out whole."""
    said = said[:READ_CHARACTERS]
    for key in keys:
        said = said.replace(key, STRUCK)
    disguises, said_plainly = _disguises(keys), said
    if disguises:
        for _ in range(_UNPACKED if "%" in said else 0):
            said_plainly = _PERCENT.sub(lambda found: chr(int(found[1], 16)), said_plainly)
        seen = _INVISIBLE.sub("", said_plainly).casefold()
        if any(disguise in seen for disguise in disguises):
            return STRUCK
    return said


@lru_cache(maxsize=64)
def _disguises(keys: tuple[str, ...]) -> tuple[str, ...]:
    """How a key looks in other capitals, cut by blanks, reversed, and as base64 of it or of a text that holds it."""
    found: dict[str, None] = {}
    for key in keys:
        plain = _INVISIBLE.sub("", key).casefold()
        if len(plain) < _SHORTEST_SURE_KEY:
            continue
        found |= dict.fromkeys((plain, plain[::-1]))
        for before in range(3):
            packed = base64.b64encode(b"\0" * before + key.encode("utf-8", "replace"))
            core = packed.rstrip(b"=")[(0, 2, 3)[before] : -1].decode()
            urlsafe = core.replace("+", "-").replace("/", "_")
            found |= dict.fromkeys((core.casefold(), urlsafe.casefold()))
    return tuple(found)

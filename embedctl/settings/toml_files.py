"""TOML that a person wrote, or a stranger: read whole, and bounded in size, depth and numbers before anyone uses it."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.errors import ConfigurationInvalid

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
"""Tables in tables: a body template may need a few."""

_MAX_DIGITS = 100
_MAX_EXPONENT = 400
_MAX_DOTS = 500
"""In one line: tomllib takes the square of a dotted key's parts in time."""


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file; numbers with a point as Decimal.

    Raises:
        ConfigurationInvalid: It cannot be read, is no TOML, or holds what no settings need.
    """
    return decoded(content_of(path), str(path))


def content_of(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """A file of settings or prices as bytes.

    Raises:
        ConfigurationInvalid: It cannot be read, or is no file of that size.
    """
    return opened(path, max_bytes=max_bytes).content


def opened(path: Path, *, max_bytes: int = MAX_BYTES) -> storage.SmallFile:
    """As `content_of`, with whose it is.

    Raises:
        ConfigurationInvalid: As there.
    """
    try:
        return storage.open_small(path, max_bytes=max_bytes)
    except OSError as problem:
        hint = f"an ordinary file of at most {max_bytes >> 20} MiB"
        if isinstance(problem, PermissionError):
            hint = "check who owns it and its mode, and HOME and EMBEDCTL_HOME: is it this user's?"
        raise ConfigurationInvalid(f"{path} cannot be read: {problem.strerror}", hint=hint) from None


def decoded(content: bytes, label: str) -> dict[str, Any]:
    """TOML in UTF-8, with or without a byte order mark.

    Raises:
        ConfigurationInvalid: It is none; the message says where, and shows no value.
    """
    try:
        text = content.decode("utf-8-sig")
        if "\\u0000" in text or "\\U00000000" in text:  # TOML knows no other way to write it; no path may hold it
            raise ConfigurationInvalid(f"{label}: a NUL character is in no name, path or key")
        return parsed(text, label)
    except UnicodeDecodeError as error:
        raise ConfigurationInvalid(
            f"{label}: byte {error.start} is not UTF-8", hint="the file must be TOML in UTF-8"
        ) from None


def parsed(text: str, label: str) -> dict[str, Any]:
    """TOML → tables, lists, strings, Decimals, booleans, dates, and integers of 64 bits.

    Raises:
        ConfigurationInvalid: It is no TOML, deeper than MAX_DEPTH, or a number in it is beyond any use.
    """
    if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):
        raise ConfigurationInvalid(f"{label}: a line holds more than {_MAX_DOTS} points")
    try:
        content = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(f"{label}: {error}", hint="the file must be TOML") from None
    except RecursionError:
        raise ConfigurationInvalid(f"{label}: {_TOO_DEEP}") from None
    except ValueError:  # more digits than Python turns into a number
        raise ConfigurationInvalid(f"{label}: a number in it is beyond any use") from None
    _check_bounds(content, label)
    return content


_TOO_DEEP = f"tables and lists stand in each other more than {MAX_DEPTH} deep"


def _check_bounds(content: dict[str, Any], label: str) -> None:
    waiting: list[tuple[Any, str, int]] = [(value, key, 1) for key, value in content.items()]
    while waiting:
        value, key, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise ConfigurationInvalid(f"{label}: {_TOO_DEEP}")
            named = value.items() if isinstance(value, dict) else ((key, one) for one in value)
            waiting += [(one, name, depth + 1) for name, one in named]
        elif isinstance(value, int | Decimal) and not _is_usable(value):
            raise ConfigurationInvalid(f"{label}: {key!r} is a number beyond any use")


def _is_usable(number: int | Decimal) -> bool:
    if isinstance(number, int):
        return -(2**63) <= number < 2**63
    if not number.is_finite():
        return True  # said with the name of what may not be it
    return abs(number.adjusted()) <= _MAX_EXPONENT and len(number.as_tuple().digits) <= _MAX_DIGITS

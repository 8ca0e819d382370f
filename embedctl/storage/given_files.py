"""Files that a person names to be taken in: prices, invoices, exchange rates, estimates. Foreign, so bounded.

They may be pipes (`<(zcat …)`): who names one waits for it.
"""

from __future__ import annotations

import json
import os
import stat
from decimal import Decimal
from pathlib import Path
from typing import Any

from embedctl.errors import InputInvalid, InputMissing

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
MAX_WORD = 200
"""Characters of a name: of a model, an account."""


def read_text(path: Path, *, missing_hint: str | None = None) -> str:
    """A file's text, UTF-8 with or without a byte order mark.

    Raises:
        InputMissing: No such file.
        InputInvalid: A folder or device, too large, no text.
    """
    try:
        with path.open("rb") as file:
            kind = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
                raise InputInvalid(f"{path} is no file")
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputMissing(f"no such file: {path}", hint=missing_hint) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name is none"
        raise InputInvalid(f"{path} cannot be read: {why}") from None
    if len(content) > MAX_BYTES:
        raise InputInvalid(f"{path} is larger than {MAX_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputInvalid(f"{path} cannot be read as text: byte {error.start} is not UTF-8") from None


def parse_json(text: str | bytes, label: str) -> Any:
    """JSON with numbers with a point as Decimal, at most MAX_DEPTH deep.

    Raises:
        InputInvalid: It is none, or deeper.
    """
    try:
        content = json.loads(text, parse_float=Decimal)
    except RecursionError:
        raise InputInvalid(f"{label}: JSON of more than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise InputInvalid(f"{label} is no JSON: {str(error)[:MAX_WORD]}") from None
    waiting = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise InputInvalid(f"{label}: JSON of more than {MAX_DEPTH} levels")
            waiting += [(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value)]
    return content


def is_word(value: object) -> bool:
    """Whether a foreign value can be a name: text that prints, and not too much of it."""
    return isinstance(value, str) and 0 < len(value) <= MAX_WORD and value.isprintable()


def shortened(value: object) -> str:
    """A foreign value for a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"

"""A text as the keyword baseline and the search for duplicates see it. Pure."""

from __future__ import annotations

import re
import unicodedata

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han: scripts without spaces, in which each character is a word here."""

_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


def normalized(text: str) -> str:
    """The text without what makes no difference to a reader: case, width, and how much white space there is."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """Its words, normalized, in order."""
    return _WORD.findall(normalized(text))

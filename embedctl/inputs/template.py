r"""The text of a row made of several columns: `--text-column title,body`, or `--template '{title}\n\n{body}'`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.inputs.block import Block, Reason
from embedctl.inputs.row_ids import can_be_id, printed
from embedctl.records import is_blank

_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
_HINT = r"like '{title}\n\n{body}'; {{ and }} are braces"


@dataclass(frozen=True, slots=True)
class Template:
    """Columns with words around them.

    Attributes:
        columns: In their order; one may stand several times.
        words: Before, between and after them: one more than columns.
        skips_empty: A part that is null or empty goes with the words before it; else null is an empty text.
    """

    columns: tuple[str, ...]
    words: tuple[str, ...]
    skips_empty: bool = False

    def named(self, name_of: Callable[[str], str]) -> Template:
        """The same with each column as the table spells it."""
        return replace(self, columns=tuple(map(name_of, self.columns)))

    def filled(self, block: Block) -> Block:
        """The block with its texts made of its kept columns.

        A row whose parts are all null is null, one whose parts are all blank is blank, whatever the words around them.
        """
        assert block.kept is not None  # noqa: S101 - the columns are read as kept ones
        reasons: dict[int, Reason] = dict(block.reasons)
        parts = [_as_text(block.kept.column(name), reasons) for name in self.columns]
        fill = self._joined if self.skips_empty else self._filled
        texts: list[str | None] = []
        for at, row in enumerate(zip(*parts, strict=True)):
            if at in reasons:
                texts.append(None)
            elif not any(row):
                is_null = all(part is None for part in row)
                texts.append(None if is_null else "")
                if is_null:
                    reasons[at] = "null"
            elif all(part is None or is_blank(part) for part in row):
                texts.append("")
            else:
                texts.append(fill(row))
        return replace(block, texts=texts, tokens=None, reasons=reasons)

    def _joined(self, parts: Sequence[str | None]) -> str:
        return self.words[1].join(part for part in parts if part)

    def _filled(self, parts: Sequence[str | None]) -> str:
        pairs = zip(parts, self.words[1:], strict=True)
        return self.words[0] + "".join(f"{part or ''}{words}" for part, words in pairs)


def can_be_part(kind: pa.DataType) -> bool:
    """Whether a column of a type can stand in a text."""
    return bool(can_be_id(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def joined(names: str) -> Template:
    """Columns that follow each other after a blank line; `names` with commas."""
    columns = tuple(name.strip() for name in names.split(","))
    return Template(columns, ("", *["\n\n"] * (len(columns) - 1), ""), skips_empty=True)


def parsed(text: str) -> Template:
    r"""What `--template` says: `{name}` is a column; `\n`, `\t`, `\\`, `{{` and `}}` are what they are elsewhere.

    Raises:
        WrongUsage: A brace is not closed, or no column is named.
    """
    columns: list[str] = []
    words: list[str] = [""]
    at = 0
    while at < len(text):
        two = text[at : at + 2]
        if two in ("{{", "}}"):
            words[-1] += two[0]
            at += 2
        elif two[0] == "\\" and two[1:] in _ESCAPES:
            words[-1] += _ESCAPES[two[1:]]
            at += 2
        elif two[0] == "{":
            end = text.find("}", at)
            name = text[at + 1 : end].strip()
            if end < 0 or not name or "{" in name:
                raise WrongUsage(f"the template has a brace that names no column: {text[at : at + 40]!r}", hint=_HINT)
            columns.append(name)
            words.append("")
            at = end + 1
        elif two[0] == "}":
            raise WrongUsage(f"the template has a brace too many: {text[at : at + 40]!r}", hint=_HINT)
        else:
            words[-1] += two[0]
            at += 1
    if not columns:
        raise WrongUsage("the template names no column", hint=_HINT)
    return Template(tuple(columns), tuple(words))


def _as_text(column: pa.Array, reasons: dict[int, Reason]) -> list[str | None]:
    """A column's values as they read; null where they are.

    Args:
        reasons: Gets the rows whose value is no text.
    """
    kind = column.type
    if pa.types.is_string(kind):
        return column.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]  # pyarrow is untyped
    there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist()
    texts: list[Any] = [None] * len(column)
    values: list[Any] = column.drop_null().to_pylist() if _reads_itself(kind) else printed(column.drop_null())
    for at, value in zip(there, values, strict=True):
        if isinstance(value, bytes):
            try:
                texts[at] = value.decode()
            except UnicodeDecodeError:
                reasons[at] = "invalid_utf8"
        else:
            texts[at] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


def _reads_itself(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

"""Step 1, the registry of input formats: each is one file of this folder, named here, that keeps the same promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol, cast

from embedctl.errors import WrongUsage, nearest
from embedctl.inputs import arrow, csv_tables, json_lines, parquet, text, tsv
from embedctl.inputs.block import Block, InputFile, ReadOptions
from embedctl.inputs.columns import Columns
from embedctl.inputs.table import Bad, InputTable


class Format(Protocol):
    """What a format's file says and does.

    Attributes:
        NAME: For `--format`, and in messages.
        SUFFIXES: Of file names, in small letters.
        IS_TABLE: Whether its rows have columns.
        IS_TEXT: Whether it is text, in some encoding and perhaps compressed.
    """

    NAME: str
    SUFFIXES: tuple[str, ...]
    IS_TABLE: bool
    IS_TEXT: bool

    def looks_like(self, head: bytes) -> bool:
        """Whether a file that begins so, and whose name says nothing, is one."""

    def schemas(self, files: Sequence[InputFile], options: ReadOptions, bad: Bad) -> Iterator[InputTable]:
        """A look into each file: its columns, and what else is worth knowing before anything is sent.

        Args:
            bad: Is given a file whose structure is broken, as far as can be known without reading its values.
        """

    def rows(
        self, file: InputFile, columns: Columns, options: ReadOptions, seen: Any, first_row: int
    ) -> Iterator[Block]:
        """All rows of a file, in order; one that cannot be read has a reason and a message with its line.

        Args:
            columns: What is read; every name is one of the file's.
            seen: What `schemas` found worth keeping.
            first_row: Ordinal of the file's first row.
        """


FORMATS: Mapping[str, Format] = {
    module.NAME: cast("Format", module) for module in (parquet, arrow, json_lines, csv_tables, tsv, text)
}
"""By name, in the order in which content is asked for them; the last is what everything else is."""

SUFFIXES: Mapping[str, str] = {suffix: name for name, one in FORMATS.items() for suffix in one.SUFFIXES}


def by_suffix(name: str) -> str | None:
    """The format that a file's name says."""
    return SUFFIXES.get(PurePath(name).suffix.lower())


def named(wanted: str) -> Format:
    """The format that `--format` means: its name, or one of its suffixes without the dot.

    Raises:
        WrongUsage: There is none; the nearest is named.
    """
    name = wanted.lower()
    name = name if name in FORMATS else SUFFIXES.get(f".{name}", "")
    if not name:
        near = nearest(wanted, list(FORMATS))
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(FORMATS)}"
        raise WrongUsage(f"unknown format: {wanted!r}", hint=hint)
    return FORMATS[name]


def by_content(head: bytes, options: ReadOptions) -> str:
    """The format that a file begins like; a table when the options ask for columns, which text has not."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    found = next((name for name, one in FORMATS.items() if one.looks_like(head)), None)
    if found is not None:
        return found
    if (options.text_column, options.delimiter, options.header) == (None, None, None):
        return text.NAME
    return json_lines.NAME if head.startswith(b"{") else csv_tables.NAME

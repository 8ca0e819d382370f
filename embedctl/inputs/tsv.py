"""Step 1, TSV: CSV with tabs, unless the user says another delimiter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedctl.inputs import csv_tables
from embedctl.inputs.block import InputFile, ReadOptions
from embedctl.inputs.csv_tables import rows as rows
from embedctl.inputs.table import Bad, InputTable

NAME = "tsv"
SUFFIXES = (".tsv", ".tab")
IS_TABLE = True
IS_TEXT = True


def looks_like(head: bytes) -> bool:
    """Never: any text may be TSV."""
    return False


def schemas(files: Sequence[InputFile], options: ReadOptions, bad: Bad) -> Iterator[InputTable]:
    """As CSV's."""
    return csv_tables.schemas(files, options, bad, b"\t")

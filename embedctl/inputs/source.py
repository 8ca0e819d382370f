"""Step 1. Inputs → rows, streaming. The door to pyarrow for input, with the files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from embedctl.errors import InputInvalid
from embedctl.inputs import columns as read_columns
from embedctl.inputs import files as read_files
from embedctl.inputs import row_bytes, text
from embedctl.inputs.block import REASONS as REASONS
from embedctl.inputs.block import Block as Block
from embedctl.inputs.block import ReadOptions as ReadOptions
from embedctl.inputs.block import Reason as Reason
from embedctl.inputs.columns import Columns, can_be_id
from embedctl.inputs.files import InputFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Inputs that were looked into and can be read; `blocks()` may be called again and starts anew.

    Attributes:
        kind: Text files or tables.
        files: In the order of reading.
        options: As asked for.
        columns: What of a table is read; None for text, and for tables without a column.
        known_fields: Of JSON Lines, all that were seen before the start.
        rows_hint: Number of rows where it is known before reading.
        warnings: What a person should know of what is not read, a sentence each.
    """

    kind: Literal["text", "table"]
    files: tuple[InputFile, ...]
    options: ReadOptions
    columns: Columns | None = None
    known_fields: frozenset[str] = frozenset()
    rows_hint: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def schema_kept(self) -> pa.Schema:
        """Columns that travel along, in input order; no dictionaries, strings as string."""
        return pa.schema([]) if self.columns is None else self.columns.kept

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of the id: string, or the integer type of the input."""
        if self.kind == "text":
            return pa.string()
        return pa.int64() if self.columns is None else self.columns.id_type

    @property
    def is_tokens(self) -> bool:
        """Whether rows are token arrays."""
        return self.columns is not None and self.columns.is_tokens

    @property
    def is_document(self) -> bool:
        """Whether a row is a whole file."""
        return self.kind == "text" and self.options.split == "document"

    @property
    def bytes_total(self) -> int:
        """Size of all files as they lie on disk, in bytes."""
        return sum(file.size_bytes for file in self.files)

    @property
    def share_read(self) -> float | None:
        """How much of it `blocks` has read, 0 to 1, in bytes; None where nobody counts (Parquet, empty files)."""
        if not self.bytes_total or any(file.kind == "parquet" for file in self.files):
            return None
        return min(1.0, sum(file.position.offset for file in self.files) / self.bytes_total)

    def id_candidate(self) -> str | None:
        """A column called `*_id` that may name the rows, when none does: no value of its first rows is there twice."""
        if self.columns is None or self.columns.id is not None:
            return None
        names = [one.name for one in self.columns.kept if one.name.lower().endswith("_id") and can_be_id(one.type)]
        block = next(self.blocks(), None) if names else None
        if block is None or block.kept is None or len(block) < 2:
            return None
        columns = ((name, block.kept.column(name)) for name in names)
        return next((name for name, one in columns if not one.null_count and len(one.unique()) == len(one)), None)

    def fingerprint(self) -> dict[str, Any]:
        """What the files look like at this moment: `{"files": [{name, size, mtime_ns | blake2b}]}`.

        Of what came through a pipe, the content's hash; size -1 where a file is gone.
        """
        return {"files": [_seen_now(file) for file in self.files]}

    def blocks(self) -> Iterator[Block]:
        """All rows, in order.

        Raises:
            InputInvalid: Something cannot be read that stands for more than one row (facts/faults.md 2.2).
            InputMissing: A file vanished.
        """
        for file in self.files:
            file.position.offset = 0
        if self.kind == "text":
            yield from text.blocks(self.files, self.options)
            return
        first_row = 0
        for file in self.files:
            for block in self._table(file, first_row):
                yield row_bytes.within(block, self.options.max_row_bytes)
                first_row = block.first_row + len(block)

    def _table(self, file: InputFile, first_row: int) -> Iterator[Block]:
        if self.columns is None:
            return iter(())
        if file.kind == "parquet":
            from embedctl.inputs import parquet

            return parquet.blocks(file, self.columns, self.options, first_row)
        if file.kind == "csv":
            from embedctl.inputs import csv_tables

            return csv_tables.blocks(file, self.columns, self.options, first_row)
        from embedctl.inputs import json_lines

        return json_lines.blocks(file, self.columns, self.options, self.known_fields, first_row)


def open_input(inputs: Sequence[str], options: ReadOptions, *, stdin: BinaryIO | None = None) -> Source:
    """Find and look into every input before any work is done.

    Args:
        inputs: Files, folders, globs, or "-".
        options: How they are read.
        stdin: What "-" means; without it, what `options.spool` kept of an earlier run.

    Raises:
        InputMissing: No such file, no permission, nothing in a folder or glob.
        InputInvalid: Binary, damaged, of differing kinds or tables, a column that is not there or not text.
        WrongUsage: An unknown encoding; a column that would travel along carries one of our names.
        StorageFailed: What comes through a pipe cannot be kept.
    """
    left_out: list[Path] = []
    files = read_files.found(inputs, options, stdin, left_out)
    warnings = read_files.about_links(left_out)
    texts = [file for file in files if file.kind == "text"]
    if texts and len(texts) < len(files):
        table = next(file for file in files if file.kind != "text")
        raise InputInvalid(
            f"text and tables do not mix: {texts[0].label} is text, {table.label} is {table.kind}",
            hint="one run for each; a glob such as 'folder/**/*.md' chooses",
        )
    if texts:
        rows_hint = len(files) if options.split == "document" else None
        return Source(kind="text", files=tuple(files), options=options, rows_hint=rows_hint, warnings=warnings)
    return replace(_tables(files, options), warnings=warnings)


def _tables(files: list[InputFile], options: ReadOptions) -> Source:
    columns: Columns | None = None
    first_label = ""
    rows: list[int | None] = []
    known: frozenset[str] = frozenset()
    for label, schema, count, is_csv, is_json in _schemas(files, options):
        rows.append(count)
        if not schema.names and count == 0:
            continue  # an empty file
        found = read_columns.chosen(schema, options, label, all_text=is_csv)
        if is_json:
            found, known = read_columns.nested_as_text(found), frozenset(schema.names)
        if columns is None:
            columns, first_label = found, label
        else:
            read_columns.same(columns, first_label, found, label)
    total = None if None in rows else sum(count for count in rows if count is not None)
    return Source(
        kind="table", files=tuple(files), options=options, columns=columns, known_fields=known, rows_hint=total
    )


def _schemas(files: list[InputFile], options: ReadOptions) -> Iterator[tuple[str, pa.Schema, int | None, bool, bool]]:
    """(label, schema, rows, is CSV, is JSON) of each table; all JSON files are one, whose fields are joined."""
    json_files = [file for file in files if file.kind in ("jsonl", "json")]
    if json_files:
        from embedctl.inputs import json_lines

        schema, count = json_lines.schema(json_files, options)
        yield json_files[0].label, schema, count, False, True
    for file in files:
        if file.kind == "parquet":
            from embedctl.inputs import parquet

            schema, count = parquet.schema(file)
            yield file.label, schema, count, False, False
        elif file.kind == "csv":
            from embedctl.inputs import csv_tables

            schema = csv_tables.schema(file, options)
            yield file.label, schema, None if schema.names else 0, True, False


def _seen_now(file: InputFile) -> dict[str, Any]:
    if file.digest is not None:
        return {"name": file.label, "size": file.size_bytes, "blake2b": file.digest}
    try:
        status = file.path.stat()
    except OSError:
        return {"name": file.label, "size": -1, "mtime_ns": 0}
    return {"name": file.label, "size": status.st_size, "mtime_ns": status.st_mtime_ns}

"""Step 1. Inputs → rows, streaming. The door to pyarrow for input, with the files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, InputChanged, InputInvalid, WrongUsage
from embedctl.inputs import columns as read_columns
from embedctl.inputs import csv_dialect, formats, parquet, row_bytes, text, widening
from embedctl.inputs import files as read_files
from embedctl.inputs import query as read_query
from embedctl.inputs.block import REASONS as REASONS
from embedctl.inputs.block import Block as Block
from embedctl.inputs.block import InputFile as InputFile
from embedctl.inputs.block import Position, some
from embedctl.inputs.block import ReadOptions as ReadOptions
from embedctl.inputs.block import Reason as Reason
from embedctl.inputs.columns import Columns
from embedctl.inputs.left_out import LeftOut
from embedctl.inputs.query import LABEL as QUERY
from embedctl.inputs.query import Query
from embedctl.inputs.row_ids import can_be_id
from embedctl.inputs.table import UNREADABLE, InputTable


@dataclass(frozen=True, slots=True)
class TablePart:
    """How a file of a table is read.

    Attributes:
        columns: As the file has them.
        seen: What its format found when it looked.
    """

    columns: Columns
    seen: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSize:
    """How large a file is.

    Attributes:
        rows: None where nobody knows before it is read.
        group_rows: Of each row group; None: it has none.
    """

    size_bytes: int
    rows: int | None = None
    group_rows: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Inputs that were looked into and can be read; `blocks()` may be called again and starts anew.

    Attributes:
        kind: Text files or tables.
        files: In the order of reading.
        options: As asked for.
        columns: What of a table is read; None for text, and for tables without a column.
        parts: Name of a file → how it is read, of tables.
        rows_hint: Number of rows where it is known before reading.
        left_out: Files that are not read.
        warnings: What a person should know of what is not read, a sentence each.
        query: What is asked instead of files.
        first_row: Ordinal of the first row of its files in the input that it is a part of.
        rows: From and to which of its files' rows it goes; None: all of them.
    """

    kind: Literal["text", "table"]
    files: tuple[InputFile, ...]
    options: ReadOptions
    columns: Columns | None = None
    parts: Mapping[str, TablePart] = field(default_factory=dict)
    rows_hint: int | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    warnings: tuple[str, ...] = ()
    query: Query | None = None
    first_row: int = 0
    rows: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """What it is called in messages."""
        if self.query is not None:
            return QUERY
        return ", ".join(file.label for file in self.files[:2]) + (" …" if len(self.files) > 2 else "")

    @property
    def is_known_unread(self) -> bool:
        """Whether its fingerprint says that its rows are the same: a query's answer is known by reading it."""
        return self.query is None

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
        """How much of it `blocks` has read, 0 to 1, in bytes; None where nobody counts (no text, empty, a query)."""
        if not self.bytes_total or not all(formats.FORMATS[file.kind].IS_TEXT for file in self.files):
            return None
        return min(1.0, sum(file.position.offset for file in self.files) / self.bytes_total)

    def id_candidate(self) -> str | None:
        """A column called `*_id` that may name the rows, when none does: no value of its first rows is there twice.

        A query is not asked for it.
        """
        if self.columns is None or self.columns.id is not None or self.query is not None:
            return None
        names = [one.name for one in self.columns.kept if one.name.lower().endswith("_id") and can_be_id(one.type)]
        block = next(self.blocks(), None) if names else None
        if block is None or block.kept is None or len(block) < 2:
            return None
        columns = ((name, block.kept.column(name)) for name in names)
        return next((name for name, one in columns if not one.null_count and len(one.unique()) == len(one)), None)

    def fingerprint(self) -> dict[str, Any]:
        """What files look like at this moment: `{"files": [{name, size, mtime_ns | blake2b | etag}]}`; a query's words.

        Of what came through a pipe, the content's hash; size -1 where a file is gone. Of an object, what it was when it
        was listed: nothing else is read.
        """
        if self.query is not None:
            return {"files": [], "query": self.query.fingerprint()}
        return {"files": [_seen_now(file) for file in self.files]}

    def sizes(self) -> list[FileSize]:
        """How large each file is, in rows where its footer says."""
        return [
            FileSize(
                size_bytes=file.size_bytes,
                group_rows=tuple(parquet.group_rows(file)) if file.kind == parquet.NAME else None,
                rows=1 if self.is_document else None,
            )
            for file in self.files
        ]

    @property
    def numbers_rows(self) -> bool:
        """Whether a row's id is its place in the whole input."""
        return self.kind == "table" and (self.columns is None or self.columns.id is None)

    def part(
        self,
        pieces: Sequence[tuple[int, tuple[int, int] | None]],
        first_row: int,
        within: tuple[int, int] | None = None,
    ) -> Source:
        """Some of its files, or of their row groups.

        Args:
            pieces: Number of a file, and which of its row groups (None: all).
            first_row: Of the part, in the whole.
            within: From and to which row of these pieces; None: all.
        """
        first_row -= within[0] if within is not None else 0
        files = tuple(replace(self.files[number], groups=groups, position=Position()) for number, groups in pieces)
        return replace(self, files=files, first_row=first_row, rows=within, rows_hint=None)

    def blocks(self) -> Iterator[Block]:
        """Its rows, in order; files that turn out to be unreadable are left out, or end it, as `on_bad_file` says.

        Raises:
            InputInvalid: Something cannot be read that stands for more than one row (facts/faults.md 2.2).
            InputMissing: A file vanished.
        """
        if self.rows is None:
            yield from self._blocks()
            return
        (start, end), seen = self.rows, 0
        for block in self._blocks():
            before, seen = seen, seen + len(block)
            if before >= end:
                return
            if seen > start:
                yield some(block, max(0, start - before), min(len(block), end - before))

    def _blocks(self) -> Iterator[Block]:
        """All rows of its files."""
        for file in self.files:
            file.position.offset = 0
        if self.kind == "text":
            yield from text.blocks(self.files, self.options, self._bad)
            return
        if self.columns is None:
            return
        if self.query is not None:
            for block in read_query.blocks(self.query, self.columns.read, self.options):
                yield self._whole(block)
            return
        first_row = self.first_row
        for file in self.files:
            rows_before = first_row
            try:
                for block in self._table(file, self.columns.read, first_row):
                    yield self._whole(block)
                    first_row = block.first_row + len(block)
            except UNREADABLE as error:
                self._bad(file, error, first_row - rows_before)

    def _whole(self, block: Block) -> Block:
        """The block with its texts made, and without what was read for them alone."""
        columns = self.columns
        if columns is not None and columns.template is not None and block.kept is not None:
            block = columns.template.filled(block)
            kept = block.kept.select(columns.kept.names) if columns.kept.names else None  # type: ignore[union-attr]
            block = replace(block, kept=kept)
        return row_bytes.within(block, self.options.max_row_bytes)

    def _bad(self, file: InputFile, error: EmbedctlError, rows_read: int = 0) -> None:
        """A file that cannot be read, or not to its end.

        Raises:
            EmbedctlError: It, unless such files are left out.
        """
        if self.options.on_bad_file == "fail" or isinstance(error, InputChanged):
            raise error
        stands = f"; its first {rows_read:,} rows stand" if rows_read else ""
        name = file.label if file.digest else read_files.place(file)
        self.left_out.add(name, "unreadable", error.message + stands)

    def _table(self, file: InputFile, columns: Columns, first_row: int) -> Iterator[Block]:
        if file.label not in self.parts:
            return
        part = self.parts[file.label]
        own, partitions = part.columns.read, dict(file.partitions)
        is_plain = own == columns
        for block in formats.FORMATS[file.kind].rows(file, own, self.options, part.seen, first_row):
            yield block if is_plain else widening.adapted(block, own, columns, partitions, file.label)


def _without_columns(options: ReadOptions) -> tuple[str, ...]:
    """What to say when the text of a text file was to be made of columns."""
    asked = {"--template": options.template, "--text-column": options.text_column}
    given = [flag for flag, value in asked.items() if value is not None]
    return (f"text files have no columns: {' and '.join(given)} changes nothing",) if given else ()


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
    csv_dialect.delimiter(options)
    left_out = LeftOut()
    files = read_files.found(inputs, options, stdin, left_out)
    warnings = read_files.about_links(left_out) + read_files.about_odd_names(left_out)
    texts = [file for file in files if not formats.FORMATS[file.kind].IS_TABLE]
    if texts and len(texts) < len(files):
        table = next(file for file in files if formats.FORMATS[file.kind].IS_TABLE)
        raise InputInvalid(
            f"text and tables do not mix: {texts[0].label} is text, {table.label} is {table.kind}",
            hint="one run for each; a glob such as 'folder/**/*.md', or --format, chooses",
        )
    if texts:
        warnings += _without_columns(options)
        rows_hint = len(files) if options.split == "document" else None
        return Source(
            kind="text", files=tuple(files), options=options, rows_hint=rows_hint, left_out=left_out, warnings=warnings
        )
    return replace(_tables(files, options, left_out), warnings=warnings)


def open_query(asked: Query, options: ReadOptions) -> Source:
    """Look into a query before any work is done: its columns, not its rows.

    Raises:
        InputInvalid: DuckDB refuses it, or a column is not there or not text.
        WrongUsage: A column that would travel along carries one of our names.
    """
    columns = read_columns.chosen(read_query.schema(asked), options, QUERY)
    return Source(kind="table", files=(), options=options, columns=columns, query=asked)


def _tables(files: Sequence[InputFile], options: ReadOptions, left_out: LeftOut) -> Source:
    source = Source(kind="table", files=(), options=options, left_out=left_out)
    tables = _looked_into(files, options, source)
    read = {file.label for table in tables for file in table.files}
    rows = [table.rows for table in tables]
    total = None if None in rows else sum(count for count in rows if count is not None)
    source = replace(source, files=tuple(file for file in files if file.label in read), rows_hint=total)
    tables = [table for table in tables if table.schema.names or table.rows != 0]  # the others are empty files
    if not tables:
        return source
    columns = _columns(tables, options)
    parts = {file.label: TablePart(_own(table, columns), table.seen) for table in tables for file in table.files}
    return replace(source, columns=columns, parts=parts)


def _looked_into(files: Sequence[InputFile], options: ReadOptions, source: Source) -> list[InputTable]:
    """The tables of all files that can be read, in the order of reading where a table is a file.

    Raises:
        InputInvalid, InputMissing: One cannot be read, or none can.
    """
    refused: list[EmbedctlError] = []

    def bad(file: InputFile, error: EmbedctlError) -> None:
        refused.append(error)
        source._bad(file, error)

    found: list[InputTable] = []
    for name in dict.fromkeys(file.kind for file in files):
        found += formats.FORMATS[name].schemas([file for file in files if file.kind == name], options, bad)
    if refused and not any(table.files for table in found):
        raise refused[0]
    order = {file.label: at for at, file in enumerate(files)}
    found = [table for table in found if table.files]
    return sorted(found, key=lambda table: order[table.files[0].label])


def _columns(tables: Sequence[InputTable], options: ReadOptions) -> Columns:
    """What all tables together are read for."""
    partitions = list(dict.fromkeys(name for table in tables for file in table.files for name, _ in file.partitions))
    own_names = {name for table in tables for name in table.schema.names}
    partitions = [name for name in partitions if name not in own_names]
    keep = options.keep
    if isinstance(keep, tuple):
        partitions, keep = (
            [name for name in partitions if name in keep],
            tuple(one for one in keep if one not in partitions),
        )
    elif keep == "none":
        partitions = []
    first = tables[0]
    schema, differing = (first.schema, {}) if len(tables) == 1 else _joined(tables)
    all_text = all(table.is_typeless for table in tables)
    columns = read_columns.chosen(schema, replace(options, keep=keep), first.files[0].label, all_text=all_text)
    for table in tables:
        for name in filter(None, (columns.text, columns.id, *columns.parts.names)):
            if name not in table.schema.names:
                there = next(one for one in tables if name in one.schema.names)
                raise _differ(f"column {name!r} is in {there.files[0].label}, not in {table.files[0].label}")
    for name in columns.read.names:
        if name in differing:
            raise _differ(differing[name])
    if any(table.nested_as_text for table in tables):
        columns = read_columns.nested_as_text(columns)
    for name in partitions:
        if name in read_columns.OUR_NAMES:
            raise WrongUsage(
                f"{first.files[0].label}: the folder {name}=… carries the name of a column of the output",
                hint="leave it out with --keep",
            )
        columns = replace(columns, kept=columns.kept.append(pa.field(name, pa.string())))
    return columns


def _joined(tables: Sequence[InputTable]) -> tuple[pa.Schema, dict[str, str]]:
    """The columns of all tables, each with a type that holds what all of them hold; and how the others differ."""
    types: dict[str, pa.DataType] = {}
    labels: dict[str, str] = {}
    differing: dict[str, str] = {}
    doubled: list[pa.Field] = []
    is_mixed = len({table.is_typeless for table in tables}) > 1
    for table in tables:
        label = table.files[0].label
        names = table.schema.names
        doubled += [one for at, one in enumerate(table.schema) if one.name in names[:at]]  # for `chosen` to refuse
        for one in table.schema:
            kind = read_columns.plain(one.type)
            if (table.is_typeless and is_mixed) or (table.nested_as_text and pa.types.is_struct(kind)):
                kind = pa.string()
            before = types.setdefault(one.name, kind)
            after = widening.wider(before, kind)
            if after is None:
                how = f"column {one.name!r} is {kind} in {label}, {before} in {labels[one.name]}"
                differing.setdefault(one.name, how)
            types[one.name] = after or before
            labels.setdefault(one.name, label)
    return pa.schema([*types.items(), *((one.name, one.type) for one in doubled)]), differing


def _own(table: InputTable, columns: Columns) -> Columns:
    """The columns as one table has them; those that it lacks are left out, those without any value take their type."""
    types = {one.name: pa.string() if table.is_typeless else read_columns.plain(one.type) for one in table.schema}
    kept, parts = (
        pa.schema(
            [
                (one.name, one.type if pa.types.is_null(types[one.name]) else types[one.name])
                for one in schema
                if one.name in types
            ]
        )
        for schema in (columns.kept, columns.parts)
    )
    id_type = columns.id_type if columns.id is None or pa.types.is_null(types[columns.id]) else types[columns.id]
    is_tokens = columns.template is None and read_columns.is_token_list(types[columns.text])
    own = replace(columns, is_tokens=is_tokens, id_type=id_type, kept=kept, parts=parts)
    return read_columns.nested_as_text(own) if table.nested_as_text else own


def _differ(how: str) -> InputInvalid:
    return InputInvalid(f"the tables differ: {how}", hint="--keep with the columns they share, or one run for each")


def _seen_now(file: InputFile) -> dict[str, Any]:
    if file.digest is not None:
        return {"name": file.label, "size": file.size_bytes, "blake2b": file.digest}
    if file.stored is not None:  # every read of it says what it must be
        return {"name": file.stored.url, "size": file.size_bytes, "etag": file.stored.etag}
    try:
        status = file.path.stat()
    except OSError:
        return {"name": file.label, "size": -1, "mtime_ns": 0}
    return {"name": file.label, "size": status.st_size, "mtime_ns": status.st_mtime_ns}

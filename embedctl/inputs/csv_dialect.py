"""Step 1, CSV: what stands between values, and whether the first row names the columns, as the first rows look.

The rules are DuckDB's (its `sniff_csv` agrees on clean tables, a test says), applied here because it passes over rows
that do not fit, knows neither our encodings nor file names that are no UTF-8, and takes longer to load than most files
to read. What values look like is arrow's word.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter

import pyarrow as pa
from pyarrow import csv as arrow_csv

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, WrongUsage
from embedctl.inputs.block import ReadOptions
from embedctl.inputs.columns import ID_NAMES, TEXT_NAMES

DELIMITERS = ",;\t|"
SAMPLE_ROWS = 200
SAMPLE_BYTES = 1 << 16
TYPED_BYTES = 1 << 18
MOST_HEADER_BYTES = 1 << 20
"""So much of a file is looked at, and no first row is longer."""
_SEP_LINE = re.compile(rb'"?sep=(.)"?\r?(\n|$)', re.IGNORECASE)
_BLANK_LINES = re.compile(rb"[\r\n]*")
_SPELT = {r"\t": "\t", "tab": "\t"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        delimiter: One byte.
        line_end: LF, or CR where there is no LF.
        names: Of all columns; of a file without header column0, column1, ...
        types: What the values look like, null where they are empty.
        begin: Bytes before the first row of values.
        line: Number of the line that the first row of values begins in.
    """

    delimiter: bytes
    line_end: bytes
    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    begin: int
    line: int


def delimiter(options: ReadOptions) -> bytes | None:
    r"""The delimiter that the user names, also as `\t` or `tab`.

    Raises:
        WrongUsage: It is not one ASCII character, or one that CSV has another use for.
    """
    asked = options.delimiter
    if asked is None:
        return None
    asked = _SPELT.get(asked.lower(), asked)
    if len(asked) != 1 or not asked.isascii() or asked in '"\r\n\0':
        raise WrongUsage(
            f"--delimiter {options.delimiter!r} is not one ASCII character", hint="for example ';', '|' or '\\t'"
        )
    return asked.encode()


def sniffed(head: bytes, is_whole: bool, options: ReadOptions, label: str, usual: bytes | None) -> Dialect | None:
    """The dialect of a file; None when it holds nothing but blank lines.

    Args:
        head: Its beginning.
        is_whole: Nothing comes after.
        usual: The delimiter that the format's name says.

    Raises:
        InputInvalid: The first row never ends, or is not valid UTF-8.
    """
    line_end = b"\n" if b"\n" in head or b"\r" not in head else b"\r"
    begin = _blank_until(head, 0)
    sep = _SEP_LINE.match(head, begin)
    if sep and options.delimiter is None:
        begin = _blank_until(head, sep.end())
    if begin == len(head):
        return None
    asked = delimiter(options) or (sep[1] if sep and sep[1].isascii() else None) or usual
    line = 1 + head.count(line_end, 0, begin)
    end = _first_record_end(head, begin, asked or DELIMITERS.encode(), label)
    divider = asked or _likely(head[begin:], head[begin:end], is_whole)
    names = _decoded(head[begin:end], label, line)
    [row] = csv.reader(io.StringIO(names, newline=""), delimiter=divider.decode())
    after = _after(head, end)
    sample = head[after:] if is_whole else head[after : head.rfind(line_end) + 1]
    below = _types(sample, divider, len(row))
    all_rows = _types(head[begin : after + len(sample)], divider, len(row))
    has_header = options.header
    if has_header is None:
        has_header = _is_header(row, below, all_rows, options)
    if not has_header:
        numbered = tuple(f"column{at}" for at in range(len(row)))
        return Dialect(divider, line_end, numbered, all_rows, begin, line)
    return Dialect(
        divider, line_end, _told_apart(row, options), below, after, line + head.count(line_end, begin, after)
    )


def _blank_until(head: bytes, start: int) -> int:
    blank = _BLANK_LINES.match(head, start)
    return blank.end() if blank else start


def _after(head: bytes, at: int) -> int:
    """Behind the line end that stands at `at`."""
    return at + (2 if head.startswith(b"\r\n", at) else 1 if at < len(head) else 0)


def _first_record_end(head: bytes, begin: int, delimiters: bytes, label: str) -> int:
    cells = rb'(?:"(?:[^"]|"")*+"[^%(d)s\r\n]*+|(?!")[^%(d)s\r\n]*+)' % {b"d": re.escape(delimiters)}
    record = re.compile(cells + b"(?:[" + re.escape(delimiters) + b"]" + cells + b")*+").match(head, begin)
    end = record.end() if record else begin
    if end < len(head) and head[end] in b"\r\n":
        return end
    if end < len(head) or len(head) >= MOST_HEADER_BYTES:
        raise InputInvalid(f"{label}: the header never ends", hint="is one of its quotes left open?")
    return end


def _decoded(row: bytes, label: str, line: int) -> str:
    try:
        return row.decode()
    except UnicodeDecodeError as invalid:
        raise InputInvalid(
            f"{label}: line {line}: invalid UTF-8 at byte {invalid.start + 1} (0x{row[invalid.start]:02x})",
            hint="say how it is encoded, for example --encoding cp1252",
        ) from invalid


def _likely(head: bytes, first: bytes, is_whole: bool) -> bytes:
    """The delimiter with which most rows have as many values as the first; the one that makes more of them, if several.

    Between equals a comma comes last: text is full of them.
    """
    outside = re.sub(rb'(?:(?<=^)|(?<=[,;\t|]))"(?:[^"]|"")*+"', b"", first)
    candidates = [one for one in DELIMITERS if one.encode() in outside]
    if len(candidates) < 2:
        return (candidates[0] if candidates else ",").encode()
    sample = head[:SAMPLE_BYTES].decode(errors="replace")
    scores = []
    for one in candidates:
        rows = csv.reader(io.StringIO(sample, newline=""), delimiter=one)
        counts = [len(row) for row, _ in zip(rows, range(SAMPLE_ROWS), strict=False) if row]
        counts = counts if is_whole and len(head) <= SAMPLE_BYTES else counts[:-1] or counts
        fitting = Counter(counts)[counts[0]] / len(counts)
        scores.append((fitting, counts[0], one != ",", one))
    return max(scores)[-1].encode()


def _types(rows: bytes, divider: bytes, width: int) -> tuple[pa.DataType, ...]:
    """What the values of rows look like to arrow; rows of another width say nothing."""
    names = [str(at) for at in range(width)]
    if not rows.strip(b"\r\n"):
        return (pa.null(),) * width
    text = rows[: rows.rfind(b"\n", 0, TYPED_BYTES) + 1] if len(rows) > TYPED_BYTES else rows
    text = text.decode(errors="replace").encode()
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text),
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=names),
            parse_options=arrow_csv.ParseOptions(
                delimiter=divider.decode(), newlines_in_values=True, invalid_row_handler=lambda row: "skip"
            ),
        )
    except pa.ArrowInvalid:  # no row has this width
        return (pa.null(),) * width
    return tuple(table.schema.types)


def _is_header(
    row: list[str], below: tuple[pa.DataType, ...], all_rows: tuple[pa.DataType, ...], options: ReadOptions
) -> bool:
    """Whether a first row names columns: it does unless it looks like the rows below, and these not all like text."""
    asked = {*(options.text_column or "").split(","), options.text_column, options.id_column} - {None, ""}
    cells = {cell.lower() for cell in row}
    if any(str(name).lower() in cells for name in asked):
        return True
    typed = [at for at, kind in enumerate(below) if not (pa.types.is_string(kind) or pa.types.is_null(kind))]
    if not typed:
        return True
    if any(pa.types.is_string(below[at]) and row[at].lower() in (*TEXT_NAMES, *ID_NAMES) for at in range(len(row))):
        return True
    return any(all_rows[at] != below[at] for at in typed)


def _told_apart(row: list[str], options: ReadOptions) -> tuple[str, ...]:
    """Names as they stand; one that is there again gets a number, as in DuckDB, unless it may be the text or the id.

    Which of those is meant nobody knows: that is for the choice of columns to refuse.
    """
    meant = {str(name).lower() for name in (options.text_column, options.id_column, *TEXT_NAMES, *ID_NAMES)}
    taken = {name.lower() for name in row}
    names: list[str] = []
    seen: Counter[str] = Counter()
    for at, name in enumerate(row):
        lower, again = name.lower(), name
        if seen[lower] and lower not in meant:
            count = seen[lower]
            again = f"{name}_{count}" if name else f"column{at}"
            while again.lower() in taken:
                count += 1
                again = f"{name}_{count}" if name else f"column{at}_{count}"
            taken.add(again.lower())
        seen[lower] += 1
        names.append(again)
    return tuple(names)

"""Step 1, CSV: where records begin and end, which lines they stand in, and whether every quote is closed. Pure.

By hand, because neither arrow nor DuckDB tell: arrow knows no lines of cells, takes a quote that is never closed for
one long value, and loses a line feed at the edge of its blocks; DuckDB looks for an open quote in two megabytes only.
A quote opens a cell where a cell begins, as RFC 4180, Python's csv and arrow have it; elsewhere it is a character.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass

PIECE_BYTES = 2 << 20
"""About so many bytes are parsed together."""

MOST_QUOTES = 1 << 20
"""In a row, one after the other, at the edge of what is read."""

_QUOTE, _LF, _CR = b'"\n\r'
_ENDS = re.compile(rb"\r\n|\n|\r")


class BrokenQuoteError(Exception):
    """A quote that swallows rows: it is never closed, or what closes it stands within a value of a later line.

    Attributes:
        line: Where the quoted value begins, from 1.
        closed: The line in which it ends in the middle of a value; None: it never ends.
    """

    def __init__(self, line: int, closed: int | None = None) -> None:
        super().__init__(line, closed)
        self.line, self.closed = line, closed


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole records that follow each other.

    Attributes:
        line: Of the first byte, from 1.
        is_dirty: Some quoted value of it goes on after its closing quote.
        is_too_large: It is one record, of more bytes than a row may have.
    """

    size_bytes: int
    line: int
    is_dirty: bool
    is_too_large: bool


@dataclass(slots=True)
class Pieces:
    """The pieces of a file, in order: 17 bytes for two mebibytes of it."""

    _sizes: array[int] = field(default_factory=lambda: array("Q"))
    _lines: array[int] = field(default_factory=lambda: array("Q"))
    _flags: bytearray = field(default_factory=bytearray)

    def __iter__(self) -> Iterator[Piece]:
        for size_bytes, line, flags in zip(self._sizes, self._lines, self._flags, strict=True):
            yield Piece(size_bytes, line, bool(flags & 1), bool(flags & 2))

    def add(self, piece: Piece) -> None:
        """One more."""
        self._sizes.append(piece.size_bytes)
        self._lines.append(piece.line)
        self._flags.append(piece.is_dirty + 2 * piece.is_too_large)


def pieces(
    chunks: Iterable[bytes], delimiter: bytes, line_end: bytes, *, first_line: int, max_record_bytes: int
) -> Pieces:
    """Look through a file, from the beginning of a record to its end; no byte is kept.

    Args:
        delimiter: One byte.
        line_end: The byte that ends lines: LF, or CR where there is no LF.
        first_line: Number of the first line.
        max_record_bytes: A larger record is a piece of its own.

    Raises:
        BrokenQuoteError: A quote swallows rows.
    """
    found = Pieces()
    scanner = _Scanner(delimiter, line_end, first_line)
    line, next_line, size, tail, dirty = first_line, first_line, 0, 0, False  # of the piece, and after its last record
    for chunk in _uncut(chunks):
        marks = scanner.scan(chunk)
        dirty |= marks.is_dirty
        if not marks.last:
            tail += len(chunk)
            continue
        if tail + marks.first > max_record_bytes:
            if size:
                found.add(Piece(size, line, dirty, False))
            found.add(Piece(tail + marks.first, next_line, False, True))
            line = marks.first_line
            size, tail, dirty = marks.last - marks.first, 0, marks.is_dirty
        else:
            size += tail + marks.last
        next_line, tail = marks.last_line, len(chunk) - marks.last
        if size >= PIECE_BYTES:
            found.add(Piece(size, line, dirty, False))
            line, size, dirty = next_line, 0, marks.is_dirty
    if scanner.in_quotes:
        raise BrokenQuoteError(scanner.opened_line)
    if tail > max_record_bytes:
        if size:
            found.add(Piece(size, line, dirty, False))
        found.add(Piece(tail, next_line, False, True))
    elif size + tail:
        found.add(Piece(size + tail, line, dirty, False))
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a piece that is not blank: its bytes without the line end.

    Attributes:
        is_dirty: A quoted value of it goes on after its closing quote.
    """

    start: int
    end: int
    line: int
    is_dirty: bool


def records(piece: bytes, delimiters: bytes, line_end: bytes, first_line: int) -> list[Record]:
    """All records of a piece, found byte by byte: for what is rarely needed.

    Raises:
        BrokenQuoteError: As `pieces`, but what is open at the end.
    """
    scanner = _Scanner(delimiters, line_end, first_line)
    positions = _quotes(piece)
    structural, dirty_at = scanner.structural(piece, positions)
    ends = [(match.start(), match.end()) for match in _ENDS.finditer(piece)]
    inside = np.searchsorted(structural, np.array([at for at, _ in ends], np.int64)) & 1
    borders = [end for end, is_inside in zip(ends, inside, strict=True) if not is_inside] + [(len(piece), len(piece))]
    found: list[Record] = []
    start, line, dirty = 0, first_line, iter([*dirty_at, len(piece) + 1])
    next_dirty = next(dirty)
    for end, after in borders:
        if end > start:
            is_dirty = next_dirty < end
            found.append(Record(start, end, line, is_dirty))
            while next_dirty < end:
                next_dirty = next(dirty)
        line += piece.count(line_end, start, after)
        start = after
    return found


def _uncut(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes; none but the last chunk ends with a quote or a CR, whose meaning the next byte decides."""
    held = b""
    for chunk in chunks:
        whole = held + chunk if held else chunk
        end = len(whole)
        while end and whole[end - 1] in b'"\r' and len(whole) - end < MOST_QUOTES:
            end -= 1
        held = whole[end:]
        if end:
            yield whole[:end] if held else whole
    if held:
        yield held


@dataclass(frozen=True, slots=True)
class _Marks:
    """What was seen in a chunk: after which bytes a record ends, first and last, and the lines that begin there.

    0 where none ends.
    """

    first: int
    last: int
    is_dirty: bool
    first_line: int
    last_line: int


def _quotes(chunk: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(chunk, np.uint8) == _QUOTE)


class _Scanner:
    """Goes through chunks, one after the other.

    Attributes:
        in_quotes: Whether the last chunk ended within a quoted value, which began in `opened_line`.
    """

    def __init__(self, delimiters: bytes, line_end: bytes, line: int) -> None:
        self._begins = frozenset(delimiters + b"\n\r")
        table = np.zeros(256, bool)
        table[[*self._begins, _QUOTE]] = True
        self._beside = table
        self._line_end = line_end
        self._line = line
        self._before = _LF
        self.in_quotes = False
        self._opened = (line, b"", 0)

    @property
    def opened_line(self) -> int:
        """The line in which the last quoted value began; counted when somebody asks."""
        line, chunk, at = self._opened
        return line + chunk.count(self._line_end, 0, at)

    def scan(self, chunk: bytes) -> _Marks:
        """Look at the next bytes.

        Raises:
            BrokenQuoteError: A quoted value of several lines ends in the middle of a value.
        """
        was_in_quotes, is_dirty, quotes = self.in_quotes, False, None
        if b'"' in chunk:
            quotes = _quotes(chunk)
            if not self._is_regular(chunk, quotes):
                quotes, dirty_at = self.structural(chunk, quotes)
                is_dirty = bool(dirty_at)
        last = _last_end(chunk, self._line_end, quotes, was_in_quotes)
        first = _first_end(chunk, self._line_end, quotes, was_in_quotes) if last else 0
        first_line = self._line + chunk.count(self._line_end, 0, first)
        last_line = first_line + chunk.count(self._line_end, first, last)
        self._line = last_line + chunk.count(self._line_end, last)
        self._before = chunk[-1]
        return _Marks(first, last, is_dirty, first_line, last_line)

    def _is_regular(self, chunk: bytes, quotes: NDArray[np.int64]) -> bool:
        """Whether every second quote opens and the others close, as in nearly all files; then the state goes on."""
        content = np.frombuffer(chunk, np.uint8)
        opening, closing = (quotes[1::2], quotes[0::2]) if self.in_quotes else (quotes[0::2], quotes[1::2])
        before = content[opening - 1]
        if len(opening) and opening[0] == 0:
            before[0] = self._before
        inner = closing[:-1] if len(closing) and closing[-1] == len(chunk) - 1 else closing
        if not (self._beside[before].all() and self._beside[content[inner + 1]].all()):
            return False
        begins = opening[before != _QUOTE]  # the others are the second half of two quotes that stand for one
        if len(begins):
            self._opened = (self._line, chunk, int(begins[-1]))
        self.in_quotes ^= bool(len(quotes) & 1)
        return True

    def structural(self, chunk: bytes, quotes: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int]]:
        """Quotes that open or close a value, and where a value goes on after its quote; one quote after the other."""
        found: list[int] = []
        dirty: list[int] = []
        line, line_from, skip = self._line, 0, -1
        for at in quotes.tolist():
            if at == skip:
                continue
            if not self.in_quotes:
                if (chunk[at - 1] if at else self._before) in self._begins:
                    line, line_from = line + chunk.count(self._line_end, line_from, at), at
                    self.in_quotes, self._opened = True, (line, b"", 0)
                    found.append(at)
                continue
            after = chunk[at + 1] if at + 1 < len(chunk) else _LF
            if after == _QUOTE:
                skip = at + 1
                continue
            self.in_quotes = False
            found.append(at)
            if after not in self._begins:
                line, line_from = line + chunk.count(self._line_end, line_from, at), at
                if line != (began := self.opened_line):
                    raise BrokenQuoteError(began, line)
                dirty.append(at)
        return np.array(found, np.int64), dirty


def _last_end(chunk: bytes, line_end: bytes, quotes: NDArray[np.int64] | None, in_quotes: bool) -> int:
    """Where the last line ends that ends a record, or 0."""
    if quotes is None:
        return 0 if in_quotes else chunk.rfind(line_end) + 1
    end = len(chunk)
    while (at := chunk.rfind(line_end, 0, end)) >= 0:
        before = int(np.searchsorted(quotes, at))
        if not (before & 1) ^ in_quotes:
            return at + 1
        end = int(quotes[before - 1]) if before else 0
    return 0


def _first_end(chunk: bytes, line_end: bytes, quotes: NDArray[np.int64] | None, in_quotes: bool) -> int:
    """Where the first line ends that ends a record, or 0."""
    if quotes is None:
        return 0 if in_quotes else chunk.find(line_end) + 1
    start = 0
    while (at := chunk.find(line_end, start)) >= 0:
        before = int(np.searchsorted(quotes, at))
        if not (before & 1) ^ in_quotes:
            return at + 1
        if before == len(quotes):
            return 0
        start = int(quotes[before])
    return 0

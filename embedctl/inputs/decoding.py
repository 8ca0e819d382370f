"""Step 1, from a file to checked UTF-8: growing files, gzip, byte order marks, encodings, long lines."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embedctl.errors import InputInvalid, InputMissing, WrongUsage

CHUNK_BYTES = 1 << 20
EXPANSION_LIMIT = 100  # times; facts/faults.md I23
EXPANSION_FREE_BYTES = 64 << 20  # a small file that expands well is no bomb


def codec(encoding: str) -> codecs.CodecInfo:
    """Look a text encoding up.

    Raises:
        WrongUsage: Python does not know it, or it is not one of text.
    """
    try:
        found = codecs.lookup(encoding)
        "".encode(encoding)
    except (LookupError, ValueError) as unknown:
        raise WrongUsage(
            f"unknown text encoding {encoding!r}", hint="for example --encoding utf-8, utf-16, cp1252 or shift_jis"
        ) from unknown
    return found


@dataclass(slots=True)
class Position:
    """How far a file is read, in bytes as they lie on disk."""

    offset: int = 0


class _FirstBytes(io.RawIOBase):
    """The first `size_bytes` of a file: what is appended while we read belongs to the next run."""

    def __init__(self, path: Path, size_bytes: int, position: Position) -> None:
        self._file = path.open("rb", buffering=0)
        self._left = size_bytes
        self._position = position
        position.offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader hands a memoryview
        count = self._file.readinto(buffer[: self._left]) or 0
        self._left -= count
        self._position.offset += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class Utf8Stream(io.RawIOBase):
    """A text file as UTF-8 bytes: valid, without a byte order mark, decompressed, bounded by its size at the start.

    Args:
        path: The file.
        label: How messages name it.
        size_bytes: Read no further than this.
        gzipped: Whether to decompress.
        encoding: Of the file's text.
        position: Follows the reading.

    Raises:
        InputInvalid: While reading: bytes that are no text in this encoding (file, line and byte are named),
            a gzip stream that is corrupt or expands more than 100 times.
        InputMissing: It cannot be opened or read.
    """

    def __init__(
        self,
        path: Path,
        label: str,
        size_bytes: int,
        *,
        gzipped: bool,
        encoding: str,
        position: Position | None = None,
    ) -> None:
        self._label = label
        self._encoding = codec(encoding).name
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._is_utf8 = self._encoding == "utf-8"
        self._gzipped = gzipped
        self._size_bytes = size_bytes
        self._out_bytes = 0
        self._lines_before = 0  # complete lines before the chunk at hand
        self._line_bytes = 0  # bytes of the open line before the chunk at hand
        self._carried = b""  # an incomplete character at the end of the last chunk
        self._first = True
        self._done = False
        self._rest = b""
        try:
            self._raw = _FirstBytes(path, size_bytes, position or Position())
        except OSError as refused:
            raise InputMissing(f"cannot read {label}: {refused.strerror}") from refused
        buffered = io.BufferedReader(self._raw, CHUNK_BYTES)
        self._source: io.BufferedIOBase = gzip.GzipFile(fileobj=buffered) if gzipped else buffered

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file below too."""
        self._raw.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all when negative; empty at the end."""
        if size < 0:
            return self._rest + b"".join(self.chunks())
        while not self._rest and not self._done:
            self._rest = self._next()
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def chunks(self) -> Iterator[bytes]:
        """The rest of the file, about a mebibyte at a time."""
        while not self._done:
            chunk = self._next()
            if chunk:
                yield chunk

    def _next(self) -> bytes:
        raw = self._raw_chunk()
        self._done = not raw
        valid = self._carried + raw
        try:
            text = self._decoder.decode(raw, final=self._done)
            recoded = b"" if self._is_utf8 else text.encode()
        except UnicodeDecodeError as invalid:
            raise self._not_text(invalid) from invalid
        except UnicodeError as invalid:
            raise InputInvalid(f"{self._label} is not {self._encoding}: {invalid}") from invalid
        if self._is_utf8:
            unfinished = len(self._decoder.getstate()[0])
            self._carried = valid[len(valid) - unfinished :] if unfinished else b""
            valid = valid[: len(valid) - unfinished] if unfinished else valid
        else:
            valid = recoded
        if self._first and valid:
            self._first = False
            valid = valid.removeprefix(codecs.BOM_UTF8)
        self._count(valid)
        return valid

    def _raw_chunk(self) -> bytes:
        try:
            chunk = self._source.read(CHUNK_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as corrupt:
            raise InputInvalid(f"{self._label} is not a whole gzip file: {corrupt}") from corrupt
        except OSError as refused:
            raise InputMissing(f"cannot read {self._label}: {refused.strerror or refused}") from refused
        self._out_bytes += len(chunk)
        if self._gzipped and self._out_bytes > EXPANSION_FREE_BYTES + EXPANSION_LIMIT * self._size_bytes:
            raise InputInvalid(
                f"{self._label} expands to more than {EXPANSION_LIMIT} times its size",
                hint="decompress it first if that is meant",
            )
        return chunk

    def _count(self, valid: bytes) -> None:
        newlines = valid.count(b"\n")
        self._lines_before += newlines
        self._line_bytes = len(valid) - valid.rindex(b"\n") - 1 if newlines else self._line_bytes + len(valid)

    def _not_text(self, invalid: UnicodeDecodeError) -> InputInvalid:
        if not self._is_utf8:
            at = max(0, self._out_bytes - len(invalid.object) + invalid.start) + 1
            return InputInvalid(
                f"{self._label}: byte {at} is not {self._encoding} ({invalid.reason})", hint="choose another --encoding"
            )
        before = invalid.object[: invalid.start]
        newlines = before.count(b"\n")
        in_line = len(before) - before.rindex(b"\n") - 1 if newlines else self._line_bytes + len(before)
        return InputInvalid(
            f"{self._label}: line {self._lines_before + newlines + 1}: invalid UTF-8 at byte {in_line + 1} "
            f"(0x{invalid.object[invalid.start]:02x})",
            hint="say how it is encoded, for example --encoding cp1252",
        )


def line_runs(stream: Utf8Stream, max_line_bytes: int) -> Iterator[list[bytes | None]]:
    r"""Lines without their end (`\n` or `\r\n`; nothing else ends a line), some hundred at a time.

    None stands for a line of more than `max_line_bytes`; it is never held in memory.
    """
    open_line: list[bytes] = []
    open_bytes = 0
    too_long = False
    for chunk in stream.chunks():
        end = chunk.rfind(b"\n") + 1
        if not end:
            open_bytes += len(chunk)
            open_line.append(chunk)
            if too_long or open_bytes > max_line_bytes + 1:  # the one more may be \r
                too_long, open_line = True, []
            continue
        if too_long:
            start = chunk.index(b"\n") + 1
            yield [None]
            whole = chunk[start:end]
        else:
            whole = b"".join([*open_line, chunk[:end]])
        too_long = False
        open_line = [chunk[end:]] if end < len(chunk) else []
        open_bytes = len(chunk) - end
        if whole:
            yield _lines(whole, max_line_bytes)
    if too_long:
        yield [None]
    elif open_line:
        yield _lines(b"".join(open_line), max_line_bytes)


def _lines(run: bytes, max_line_bytes: int) -> list[bytes | None]:
    if b"\r" in run:
        run = run.replace(b"\r\n", b"\n")
    run = run.removesuffix(b"\n")
    lines: list[bytes | None] = list(run.split(b"\n"))
    if len(run) <= max_line_bytes:
        return lines
    return [line if line is not None and len(line) <= max_line_bytes else None for line in lines]

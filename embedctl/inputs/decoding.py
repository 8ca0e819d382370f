"""Step 1, from a file to UTF-8: growing files, compressions, byte order marks, encodings, long lines."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

from embedctl.errors import InputInvalid, InputMissing, WrongUsage
from embedctl.inputs import compressions
from embedctl.inputs.block import Position

CHUNK_BYTES = 1 << 20
EXPANSION_LIMIT = 100  # times; facts/faults.md I23
EXPANSION_FREE_BYTES = 64 << 20  # a small file that expands well is no bomb
_WIDE = ("utf-16", "utf-32", "utf-7", "utf-8", "utf_16", "utf_32", "utf_7", "utf_8")  # zero bytes may be text
_MARKED = "embedctl-marked"
_MARK = "\udcff"
_MARK_BYTES = _MARK.encode("utf-8", "surrogatepass")


def _marked(invalid: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that are no text: half a surrogate pair, which is no UTF-8 in its turn."""
    if not isinstance(invalid, UnicodeDecodeError):
        raise invalid
    return _MARK, invalid.end


codecs.register_error(_MARKED, _marked)


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


def is_mark(text: bytes, at: int) -> bool:
    """Whether what is no UTF-8 at a position stands for bytes that were no text in another encoding."""
    return text.startswith(_MARK_BYTES, at)


def is_wide(name: str) -> bool:
    """Whether zero bytes are text in an encoding, by its Python name."""
    return name.startswith(_WIDE)


class _FirstBytes(io.RawIOBase):
    """The first `size_bytes` of a file: what is appended while we read belongs to the next run."""

    def __init__(self, file: BinaryIO, size_bytes: int, position: Position) -> None:
        self._file = file
        self._left = size_bytes
        self._position = position
        position.offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader hands a memoryview
        count = self._file.readinto(buffer[: self._left]) or 0  # type: ignore[attr-defined]
        self._left -= count
        self._position.offset += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class Utf8Stream(io.RawIOBase):
    """A text file as UTF-8 bytes: valid, without a byte order mark, decompressed, bounded by its size at the start.

    Args:
        open_raw: Opens the file's bytes, unbuffered.
        label: How messages name it.
        size_bytes: Read no further than this.
        compression: How to decompress; None: it is not compressed.
        encoding: Of the file's text.
        by_row: Bytes that are no text are not refused, for each row is looked at by itself: of UTF-8 they are passed
            on as they are, of other encodings as half a surrogate pair, which is no UTF-8 either.
        position: Follows the reading.

    Raises:
        InputInvalid: While reading: bytes that are no text in this encoding (file, line and byte are named),
            zero bytes where no text has them, a compressed stream that is corrupt or expands more than 100 times.
        InputMissing: It cannot be opened or read.
    """

    def __init__(
        self,
        open_raw: Callable[[], BinaryIO],
        label: str,
        size_bytes: int,
        *,
        encoding: str,
        compression: str | None = None,
        by_row: bool = False,
        position: Position | None = None,
    ) -> None:
        self._label = label
        self._encoding = codec(encoding).name
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARKED if by_row else "strict")
        self._is_utf8 = self._encoding == "utf-8"
        self._by_row = by_row
        self._zero_is_text = is_wide(self._encoding)
        self._compression = compression
        self._size_bytes = size_bytes
        self._out_bytes = 0
        self._lines_before = 0  # complete lines before the chunk at hand
        self._line_bytes = 0  # bytes of the open line before the chunk at hand
        self._carried = b""  # an incomplete character at the end of the last chunk
        self._first = True
        self._done = False
        self._rest = b""
        try:
            self._raw = _FirstBytes(open_raw(), size_bytes, position or Position())
        except OSError as refused:
            raise InputMissing(f"cannot read {label}: {refused.strerror}") from refused
        buffered = io.BufferedReader(self._raw, CHUNK_BYTES)
        self._source: compressions.Reader = compressions.opened(buffered, compression) if compression else buffered

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
            return b"".join(self.chunks())
        while not self._rest and not self._done:
            self._rest = self._next()
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes; fewer only at the end."""
        parts: list[bytes] = []
        while size and (part := self.read(size)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """The rest of the file, about a mebibyte at a time."""
        if self._rest:
            yield self._rest
            self._rest = b""
        while not self._done:
            chunk = self._next()
            if chunk:
                yield chunk

    def _next(self) -> bytes:
        raw = self._raw_chunk()
        self._done = not raw
        if self._is_utf8 and self._by_row:
            return self._without_mark(raw)
        if not self._zero_is_text and b"\0" in raw:
            at = self._out_bytes - len(raw) + raw.index(b"\0")
            raise InputInvalid(f"{self._label} is binary: a zero byte at offset {at}", hint="extract its text first")
        valid = self._carried + raw
        try:
            text = self._decoder.decode(raw, final=self._done)
            recoded = b"" if self._is_utf8 else text.encode("utf-8", "surrogatepass")
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
        valid = self._without_mark(valid)
        self._count(valid)
        return valid

    def _without_mark(self, chunk: bytes) -> bytes:
        if not self._first or not chunk:
            return chunk
        self._first = False
        return chunk.removeprefix(codecs.BOM_UTF8)

    def _raw_chunk(self) -> bytes:
        try:
            chunk = self._source.read(CHUNK_BYTES)
        except compressions.CORRUPT as corrupt:
            raise self._not_whole(corrupt) from corrupt
        except OSError as refused:
            if self._compression and compressions.is_corrupt(refused):
                raise self._not_whole(refused) from refused
            raise InputMissing(f"cannot read {self._label}: {refused.strerror or refused}") from refused
        self._out_bytes += len(chunk)
        if self._compression and self._out_bytes > EXPANSION_FREE_BYTES + EXPANSION_LIMIT * self._size_bytes:
            raise InputInvalid(
                f"{self._label} expands to more than {EXPANSION_LIMIT} times its size",
                hint="decompress it first if that is meant",
            )
        return chunk

    def _not_whole(self, corrupt: Exception) -> InputInvalid:
        return InputInvalid(f"{self._label} is not a whole {self._compression} file: {corrupt}")

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

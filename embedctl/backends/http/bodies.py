"""An answer, as it comes: its head within its limit, its body decoded, within its limits, and held once."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO

from embedctl.errors import AnswerUnusable

MAX_ERROR_BYTES = 1024 * 1024
"""Of an answer that is not a success, more is cut off."""

MAX_HEAD_BYTES = 100 * 1024
_FIRST_BYTES = 1024 * 1024  # room that a promised length gets before anything came
_GROWTH = 8  # times what came is the most that is taken for what is promised


class Incoming:
    """What libcurl hands over. A callback that returns False has heard enough, and the connection is closed.

    Attributes:
        expected: A request has gone out; what comes before is a proxy's.
        headers: Names in lower case; a repeated header's values joined by ", ".
        problem: Why no more is wanted; None when that is as it should be.
        enough: No more is wanted.
    """

    def __init__(self, host: str, max_bytes: int) -> None:
        self.expected = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.problem: Exception | None = None
        self.enough = False
        self._host = host
        self._most = max_bytes
        self._begun = False
        self._head_bytes = 0
        self._body = BytesIO()
        self._size = self._room = 0
        self._length = 0
        self._decode: Callable[[bytes, int], bytes] | None = None

    @property
    def body(self) -> bytes:
        """Decoded; of an answer that is no success at most MAX_ERROR_BYTES."""
        self._body.truncate(self._size)
        return self._body.getvalue()

    @property
    def is_open_ended(self) -> bool:
        """Whether nothing but the end of the connection tells where the body ends; not all say farewell in TLS."""
        return self._begun and not self.headers.keys() & {"content-length", "transfer-encoding", "content-encoding"}

    def clear(self) -> None:
        """What came is not wanted; errors and their tracebacks may be kept for long."""
        self._body = BytesIO()

    def header(self, line: bytes) -> bool:
        """A line of a head: of what is no answer yet (100, 103), of a proxy, of what stands behind a body, too."""
        self._head_bytes += len(line)
        if self._head_bytes > MAX_HEAD_BYTES:
            return False
        if self._begun or not self.expected:
            return True  # behind the body, or a proxy's
        if line.startswith(b"HTTP/"):
            self.status, self.headers = int(line.split(None, 2)[1]), {}
        elif not line.strip():
            return self.status < 200 or self._guarded(self._begin)
        else:
            name, _, value = line.decode("latin-1").partition(":")
            name, value = name.strip().lower(), value.strip()
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        return True

    def piece(self, piece: bytes) -> bool:
        """The next bytes of the body."""
        return self._guarded(partial(self._take, piece))

    def _guarded(self, act: Callable[[], bool]) -> bool:
        """What libcurl calls cannot raise."""
        try:
            wanted = act()
        except Exception as problem:
            self.problem = problem
            wanted = False
        self.enough = not wanted
        return wanted

    def _begin(self) -> bool:
        """The head is whole."""
        self._begun = True
        if 300 <= self.status < 400:
            return False  # nobody reads what it says
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        self._decode = _decoder(encoding, self._host)
        length = self.headers.get("content-length", "")
        if length.isdecimal() and "transfer-encoding" not in self.headers:
            self._length = int(length[:20])  # libcurl takes a number that is too large for no number
        if self.status >= 400:
            self._most = min(self._most, MAX_ERROR_BYTES)
        elif self._length > self._most:
            raise self._too_large()
        return True

    def _take(self, piece: bytes) -> bool:
        room = self._most - self._size
        if self._decode:
            try:
                piece = self._decode(piece, room + 1)
            except zlib.error:
                raise AnswerUnusable(f"{self._host} sent an answer whose encoding is broken") from None
        if len(piece) > room and self.status < 400:
            raise self._too_large()
        self._write(piece[:room])
        return len(piece) <= room

    def _write(self, piece: bytes) -> None:
        """Behind what came. Memory grows with what came, whatever is promised, in few steps: each may copy."""
        size = self._size + len(piece)
        if self._length and size > self._room and not self._decode:
            self._room = max(size, min(self._length, self._most, max(_FIRST_BYTES, self._size * _GROWTH)))
            self._body.seek(self._room - 1)
            self._body.write(b"\0")
            self._body.seek(self._size)
        self._body.write(piece)
        self._size = size

    def _too_large(self) -> AnswerUnusable:
        return AnswerUnusable(f"{self._host} sent an answer larger than {self._most} bytes", status=self.status)


def _decoder(encoding: str, host: str) -> Callable[[bytes, int], bytes] | None:
    """A function that decodes the next chunk into at most so many bytes; None where there is nothing to decode.

    No client limits what a compressed answer grows to: 200 kB of gzip hold 200 MB (facts/faults.md P33, 2026-11-21).
    """
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise AnswerUnusable(f"{host} sent an answer in an encoding that was not asked for ({encoding[:20]})")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its first bytes

    def decode(chunk: bytes, most: int) -> bytes:
        return inflate.decompress(inflate.unconsumed_tail + chunk, most)

    return decode

"""An answer's body: decoded, within its limits, and held once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from io import BytesIO

import httpx

from embedctl.backends.http.curls import Body
from embedctl.errors import AnswerUnusable

MAX_ERROR_BYTES = 1024 * 1024
"""Of an answer that is not a success, more is cut off."""

_FIRST_BYTES = 1024 * 1024  # room that a promised length gets before anything came
_GROWTH = 8  # times what came is the most that is taken for what is promised


async def body_of(response: httpx.Response, headers: Mapping[str, str], max_bytes: int, host: str) -> bytes:
    """The decoded body.

    Args:
        headers: Names in lower case.
        max_bytes: Decoded; of an error's body, what is beyond MAX_ERROR_BYTES is left.

    Raises:
        AnswerUnusable: It is too large, or in an encoding that was not asked for.
        httpx.TransportError: It broke off.
    """
    memory = _GrowingBody(response.status_code, headers, max_bytes, host)
    stream = response.stream
    assert isinstance(stream, Body)  # noqa: S101 - our transport gives no other
    try:
        await stream.into(memory.take)
    except BaseException:
        memory.clear()
        raise
    return memory.body


class _GrowingBody:
    """Memory that grows with what came, whatever is promised, in few steps: each may copy."""

    def __init__(self, status: int, headers: Mapping[str, str], max_bytes: int, host: str) -> None:
        self._status = status
        self._host = host
        self._most = min(max_bytes, MAX_ERROR_BYTES) if status >= 400 else max_bytes
        self._decode = _decoder(headers.get("content-encoding", "identity").strip().lower(), host)
        length = headers.get("content-length", "")
        known = length.isdecimal() and "transfer-encoding" not in headers
        self._length = int(length[:20]) if known else 0  # libcurl takes a number that is too large for no number
        if status < 400 and self._length > self._most:
            raise self._too_large()
        self._bytes = BytesIO()
        self._size = self._room = 0

    @property
    def body(self) -> bytes:
        """All that came; the memory is given away, not copied."""
        self._bytes.truncate(self._size)
        return self._bytes.getvalue()

    def clear(self) -> None:
        """What came is not wanted; errors and their tracebacks may be kept for long."""
        self._bytes = BytesIO()

    def take(self, piece: bytes) -> bool:
        """The next bytes as they came; False when no more are wanted."""
        room = self._most - self._size
        if self._decode:
            try:
                piece = self._decode(piece, room + 1)
            except zlib.error:
                raise AnswerUnusable(f"{self._host} sent an answer whose encoding is broken") from None
        if len(piece) > room and self._status < 400:
            raise self._too_large()
        self._write(piece[:room])
        return len(piece) <= room

    def _write(self, piece: bytes) -> None:
        size = self._size + len(piece)
        if self._length and size > self._room and not self._decode:
            self._room = max(size, min(self._length, self._most, max(_FIRST_BYTES, self._size * _GROWTH)))
            self._bytes.seek(self._room - 1)
            self._bytes.write(b"\0")
            self._bytes.seek(self._size)
        self._bytes.write(piece)
        self._size = size

    def _too_large(self) -> AnswerUnusable:
        return AnswerUnusable(f"{self._host} sent an answer larger than {self._most} bytes", status=self._status)


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

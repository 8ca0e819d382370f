"""An answer's body: decoded, within its limits, and not copied where its length is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from io import BytesIO

import httpx

from embedctl.backends.http.exchanges import Body
from embedctl.errors import AnswerUnusable

MAX_ERROR_BYTES = 1024 * 1024
"""Of an answer that is not a success, more is cut off."""


async def body_of(response: httpx.Response, headers: Mapping[str, str], max_bytes: int, host: str) -> bytes:
    """The decoded body.

    Args:
        headers: Names in lower case.
        max_bytes: Decoded; of an error's body, what is beyond MAX_ERROR_BYTES is left.

    Raises:
        AnswerUnusable: It is too large, or in an encoding that was not asked for.
        httpx.TransportError: It broke off.
    """
    failed = response.status_code >= 400
    most = min(max_bytes, MAX_ERROR_BYTES) if failed else max_bytes
    encoding = headers.get("content-encoding", "identity").strip().lower()
    decode = _decoder(encoding, host)
    stream = response.stream
    assert isinstance(stream, Body)  # noqa: S101 - our transport gives no other
    if decode is None and stream.length is not None and 0 < stream.length <= most:
        return await _whole(stream, stream.length)
    if not failed and stream.length is not None and stream.length > most:
        raise _too_large(host, most, response.status_code)
    body = BytesIO()
    try:
        async for chunk in stream:
            room = most - body.tell()
            piece = decode(chunk, room + 1) if decode else chunk
            if len(piece) <= room:
                body.write(piece)
            elif failed:
                body.write(piece[:room])
                break
            else:
                raise _too_large(host, most, response.status_code)
    except zlib.error:
        raise AnswerUnusable(f"{host} sent an answer whose {encoding} is broken") from None
    return body.getvalue()


async def _whole(stream: Body, length: int) -> bytes:
    """All bytes as they come, in the memory that is handed out: BytesIO gives its buffer away without a copy."""
    body = BytesIO()
    body.seek(length - 1)
    body.write(b"\0")
    with body.getbuffer() as room:
        await stream.into(room)
    return body.getvalue()


def _too_large(host: str, most: int, status: int) -> AnswerUnusable:
    return AnswerUnusable(f"{host} sent an answer larger than {most} bytes", status=status)


def _decoder(encoding: str, host: str) -> Callable[[bytes, int], bytes] | None:
    """A function that decodes the next chunk into at most so many bytes; None where there is nothing to decode.

    No client limits what a compressed answer grows to: 200 kB of gzip hold 200 MB (facts/faults.md P33, 2026-11-21).
    """
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise AnswerUnusable(f"{host} sent an answer in an encoding that was not asked for ({encoding})")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its first bytes

    def decode(chunk: bytes, most: int) -> bytes:
        return inflate.decompress(inflate.unconsumed_tail + chunk, most)

    return decode

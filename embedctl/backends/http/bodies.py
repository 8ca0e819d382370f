"""An answer's body: decoded, within its limits, and held once."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import BinaryIO

import httpx

from embedctl.backends.http.curls import Body
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
    decode = _decoder(headers.get("content-encoding", "identity").strip().lower(), host)
    stream = response.stream
    assert isinstance(stream, Body)  # noqa: S101 - our transport gives no other
    if decode is not None:
        body = await _decoded(stream, decode, most, host)
    elif failed or (stream.length or 0) <= most:
        body = await stream.read(most)
    else:
        body = None
    if body is not None and (failed or len(body) <= most):
        return body[:most]
    raise AnswerUnusable(f"{host} sent an answer larger than {most} bytes", status=response.status_code)


async def pour(response: httpx.Response, headers: Mapping[str, str], into: BinaryIO, max_bytes: int, host: str) -> int:
    """The decoded body into a file, piece by piece; how many bytes. Written in threads.

    Raises:
        AnswerUnusable: It is too large, or in an encoding that was not asked for.
        httpx.TransportError: It broke off.
    """
    decode = _decoder(headers.get("content-encoding", "identity").strip().lower(), host)
    stream = response.stream
    assert isinstance(stream, Body)  # noqa: S101 - our transport gives no other
    size = 0
    async for chunk in stream:
        try:
            piece = chunk if decode is None else decode(chunk, max_bytes + 1 - size)
        except zlib.error:
            raise AnswerUnusable(f"{host} sent an answer whose encoding is broken") from None
        size += len(piece)
        if size > max_bytes:
            raise AnswerUnusable(f"{host} sent an answer larger than {max_bytes} bytes", status=response.status_code)
        await asyncio.to_thread(into.write, piece)
    return size


async def _decoded(stream: Body, decode: Callable[[bytes, int], bytes], most: int, host: str) -> bytes:
    """All of it; of more than `most` bytes, the first `most` + 1."""
    with BytesIO() as body:  # lets go of the bytes, whatever keeps the error and its traceback
        async for chunk in stream:
            try:
                body.write(decode(chunk, most + 1 - body.tell()))
            except zlib.error:
                raise AnswerUnusable(f"{host} sent an answer whose encoding is broken") from None
            if body.tell() > most:
                break
        return body.getvalue()


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

"""Connections with deadlines: half a request keeps no place, a client that reads nothing no answer.

uvicorn has a deadline for idle connections alone (facts/gateway.md 7, 2026-11-25).
"""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import Any, ClassVar, cast

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from embedctl.server import refusals
from embedctl.server.refusals import Refused
from embedctl.settings import ServeSettings

MAX_HEADER_BYTES = 64 << 10
UPLOAD_BYTES = 1 << 20
"""Of an upload that must come within `body_s`."""
_SPARE_FILES = 128  # for journal, caches and providers
_MOST_CONNECTIONS = 10_000
_SMALL_BYTES = 64 << 10
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class _Joined:
    """A transport that sends the small pieces of a moment, a head and its body, as one.

    Args:
        transport: What it writes to, and is in all else.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> None:
        """Send it, at the latest when whoever runs now has nothing more to send."""
        if len(piece) > _SMALL_BYTES:
            self._flush()
            self._transport.write(piece)
        elif piece:
            if not self._pieces:
                self._loop.call_soon(self._flush)
            self._pieces.append(piece)

    def close(self) -> None:
        """Send what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._transport.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(H11Protocol):
    """One connection. Subclassed by `protocol`, which says how long each part may take."""

    header_s: ClassVar[float] = 10.0
    body_s: ClassVar[float] = 30.0
    most: ClassVar[int] = _MOST_CONNECTIONS
    uploads: ClassVar[frozenset[str]] = frozenset()

    _came: int = 0
    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _phase: str | None = None

    def connection_made(self, transport: Any) -> None:
        """A deadline for the first request's headers; too many connections are not taken."""
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Joined(transport, self.loop))
        if len(self.connections) > self.most:
            self._phase = "full"
            transport.abort()
            return
        self._enter("head")

    def data_received(self, data: bytes) -> None:
        """More of a request."""
        super().data_received(data)
        self._look()
        if self._phase == "body" and self.scope["path"] in self.uploads:
            self._came += len(data)
            if self._came >= UPLOAD_BYTES:  # so much more in time, and it may go on
                self._came = 0
                self._phase = None
                self._look()

    def on_response_complete(self) -> None:
        """An answer is out."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._enter(None)
        self._unstick()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read: for so long, and no longer."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.body_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._unstick()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too many headers, is told so in JSON."""
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if hint == 431:
            self._end(Refused("headers_too_large", f"more than {MAX_HEADER_BYTES >> 10} KiB of headers"), 431)
        else:
            self._end(Refused("invalid_json", "this is no HTTP request"), 400)

    def _look(self) -> None:
        """What is waited for now."""
        if self.transport.is_closing():
            self._enter(None)
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._enter("body")
        elif state is h11.IDLE and (self.conn.trailing_data[0] or self._phase == "head"):
            self._enter("head")
        else:
            self._enter(None)

    def _enter(self, phase: str | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if phase is not None:
            self._timer = self.loop.call_later(self.header_s if phase == "head" else self.body_s, self._late)

    def _late(self) -> None:
        if not self.transport.is_closing():
            cycle: Any = self.cycle
            if cycle is not None and cycle.response_started and not cycle.response_complete:
                self.transport.abort()
            else:
                self._end(Refused("request_timeout", "the request did not come in time"), 408)

    def _end(self, refused: Refused, status: int) -> None:
        body = orjson.dumps(refusals.body(refused, openai=False).content)
        head = (
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-content-type-options: nosniff"
            b"\r\nconnection: close\r\n\r\n" % (status, _REASONS[status], len(body))
        )
        self.transport.write(head + body)
        self.transport.close()

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


def protocol(serve: ServeSettings, uploads: frozenset[str] = frozenset()) -> type[Connection]:
    """Connections whose parts may take as long as the settings say.

    Args:
        uploads: Paths whose body may take longer, as long as it comes at `UPLOAD_BYTES` in that time.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, files - _SPARE_FILES)
    return type(
        "TimedConnection",
        (Connection,),
        {"header_s": serve.header_s, "body_s": serve.body_s, "most": most, "uploads": uploads},
    )

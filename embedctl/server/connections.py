"""Connections with deadlines: half a request keeps no place, a client that reads nothing no answer.

uvicorn has a deadline for idle connections alone (facts/gateway.md 7, 2026-11-25), and its parser in C bounds no head,
takes what stands behind a body for headers, and loses the body of a request that offers an upgrade.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embedctl.server import refusals
from embedctl.server.refusals import Refused
from embedctl.settings import ServeSettings

MAX_HEADER_BYTES = 64 << 10
UPLOAD_BYTES = 1 << 20
"""Of an upload that must come within `body_s`."""
_SPARE_FILES = 128  # for journal, caches and providers
_MOST_CONNECTIONS = 10_000
_SMALL_BYTES = 64 << 10
LINGER_S, LINGER_BYTES = 2.0, 32 << 20
"""So much of a body that is refused is thrown away: who is closed at once loses the refusal (RFC 9112 9.6)."""

_MOST_IN_LINE = 32  # requests of one connection that came before those in front of them were answered
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


_CODING = b"transfer-encoding"


class _Joined:
    """A transport that sends the small pieces of a moment, a head and its body, as one.

    Args:
        transport: What it writes to, and is in all else.
        is_sent_more: Whether a request is coming that was not read to its end.

    Attributes:
        lingers: The answer is out and nothing more is; what comes is to be thrown away.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_sent_more: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._is_sent_more = is_sent_more
        self._pieces: list[bytes] = []
        self.lingers = False

    def write(self, piece: bytes) -> None:
        """Send it, at the latest when whoever runs now has nothing more to send."""
        if len(piece) > _SMALL_BYTES:
            self.flush()
            self._transport.write(piece)
        elif piece:
            if not self._pieces:
                self._loop.call_soon(self.flush)
            self._pieces.append(piece)

    def close(self) -> None:
        """Send what waits, and close; a client that is still sending gets to read that first."""
        self.flush()
        if self.lingers or not self._is_sent_more() or not self._transport.can_write_eof():
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_S, self._transport.close)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self.lingers or self._transport.is_closing()

    def flush(self) -> None:
        """Send what waits."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._transport.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _NoRequestError(Exception):
    """Well formed, and not what HTTP allows or what is taken here."""


class Connection(HttpToolsProtocol):
    """One connection. Subclassed by `protocol`, which says how long each part may take."""

    header_s: ClassVar[float] = 10.0
    body_s: ClassVar[float] = 30.0
    most: ClassVar[int] = _MOST_CONNECTIONS
    uploads: ClassVar[frozenset[str]] = frozenset()

    _joined: _Joined
    _came: int = 0
    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _phase: str | None = None
    _part: Literal["head", "body"] | None = None  # of a request that is coming
    _unused = 0  # bytes that came since a head ended, or something of a body was read
    _again = False  # the parser reads a head of ours

    def connection_made(self, transport: Any) -> None:
        """A deadline for the first request's headers; too many connections are not taken."""
        super().connection_made(transport)
        self._joined = _Joined(transport, self.loop, lambda: self._part == "body")
        self.transport = cast("asyncio.Transport", self._joined)
        if len(self.connections) > self.most:
            self._phase = "full"
            transport.abort()
            return
        self._enter("head")

    def data_received(self, data: bytes) -> None:
        """More of a request."""
        if self._joined.lingers:
            self._came += len(data)
            if self._came > LINGER_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._unused += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if self._unused > MAX_HEADER_BYTES:
            self._refuse(431 if self._part == "head" else 400)
            return
        self._look(came=True)
        if self._phase == "body" and self.scope["path"] in self.uploads:
            self._came += len(data)
            if self._came >= UPLOAD_BYTES:  # so much more in time, and it may go on
                self._came = 0
                self._phase = None
                self._look()

    def _parse(self, data: bytes) -> None:
        """Through the parser; an upgrade that is offered is not taken, and what follows is read as if it were not."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            framing = [b"%s: %s\r\n" % one for one in self.headers if one[0] in (b"content-length", _CODING)]
            self.parser = httptools.HttpRequestParser(self)
            self._again = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
            self._parse(data[offer.args[0] :])

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self._again:
            self._part = "head"
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of its address."""
        if not self._again:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers; what stands behind a body is none: it would come too late to be checked."""
        if self._part == "head" and not self._again:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head is whole.

        Raises:
            _NoRequestError: It is not to be understood in one way alone, or too many wait already.
        """
        if self._again:
            self._again = False
        else:
            self._check_head()
            super().on_headers_complete()
        self._part, self._unused = "body", 0

    def _check_head(self) -> None:
        names = [name for name, _ in self.headers]
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or names.count(b"host") > 1 or (version == "1.1" and b"host" not in names):
            raise _NoRequestError
        if any(value.strip().lower() != b"chunked" for name, value in self.headers if name == _CODING):
            raise _NoRequestError
        if names.count(_CODING) > 1 or len(self.pipeline) >= _MOST_IN_LINE:
            raise _NoRequestError

    def on_body(self, body: bytes) -> None:
        """More of its body."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole, unless it offered an upgrade: then its body comes yet."""
        if not self.parser.should_upgrade():
            self._part, self._unused = None, 0
            super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more; what it has sent whole is answered still, and then the connection closed.

        Whether it has closed only its half (RFC 9112 9.6) or is gone cannot be told before something is written. TLS
        has no halves.

        Returns:
            Whether the connection stays open.
        """
        if self._part is not None or not self._is_served or not self.transport.can_write_eof():
            self._joined.flush()  # an answer may be waiting there
            return False
        cycle: Any = self.cycle  # of the last request in line
        cycle.keep_alive = False
        return True

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
        self._refuse(400)

    def _refuse(self, status: Literal[400, 431]) -> None:
        """What it says is no request, and nothing can follow; an answer that is due to an earlier one is not given."""
        cycle: Any = self.cycle
        is_its_own = self._part == "body" and not self.pipeline and not cycle.response_started
        self._part = None
        if self._is_served and not is_its_own:
            self.transport.close()
        elif status == 431:
            self._end(Refused("headers_too_large", f"more than {MAX_HEADER_BYTES >> 10} KiB of headers"), 431)
        else:
            self._end(Refused("invalid_json", "this is no HTTP request"), 400)
        self._enter(None)

    @property
    def _is_served(self) -> bool:
        """Whether a request has no whole answer yet, be it that it has not come whole."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _look(self, *, came: bool = False) -> None:
        """What is waited for now.

        Args:
            came: Something did, perhaps no more than a line break.
        """
        if self.transport.is_closing():
            self._enter(None)
        elif self._part == "body":
            self._enter(None if self.pipeline else "body")  # in its turn
        elif self._is_served:
            self._enter(None)
        elif self._part == "head" or came:
            self._enter("head")
        elif self.cycle is not None:
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
            if self._part == "body" and cycle is not None and cycle.response_started:
                self.transport.abort()
            else:
                self._end(Refused("request_timeout", "the request did not come in time"), 408)

    def _end(self, refused: Refused, status: int) -> None:
        body = orjson.dumps(refusals.body(refused, openai=False).content)
        head = (
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-content-type-options: nosniff"
            b"\r\nconnection: close\r\n\r\n" % (status, _REASONS[status], len(body))
        )
        self._part = None  # whoever does not keep to HTTP is not listened to any more
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

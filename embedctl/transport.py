"""One HTTP exchange, with every foreign error become ours. The only door to httpx.

httpx's own client follows redirects when asked, reads netrc and proxies for loopback, and logs URLs; its transport
does none of that, so that is what is used, with HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore
import httpx

from embedctl import urls
from embedctl.errors import (
    AnswerLost,
    AnswerUnusable,
    ConfigurationInvalid,
    NotSent,
    ProviderError,
    RedirectRefused,
)
from embedctl.providers._contract import HttpRequest

MAX_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 1024 * 1024  # of an answer that is not a success, more is cut off
KEEPALIVE_S = 15.0
CONNECT_S = 10.0

# httpcore asks for 64 KiB where asyncio has 256 at hand: each delivery would be cut up and copied several times.
# Measured on answers of 5 MB: 7 instead of 10 ms of CPU each (aiohttp 4, httpx's own client 12).
httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 1024 * 1024

WORDS: dict[type[Exception], str] = {
    httpx.ConnectError: "cannot connect to {host}",
    httpx.ConnectTimeout: "{host} does not take the connection",
    httpx.PoolTimeout: "no connection to {host} became free",
    httpx.ProxyError: "the proxy refuses to connect to {host}",
    httpx.UnsupportedProtocol: "{host} is asked for in a protocol that is not http",
    httpx.LocalProtocolError: "the request to {host} is not valid HTTP",
    httpx.ReadTimeout: "{host} took the request and fell silent",
    httpx.WriteTimeout: "{host} stopped reading the request",
    httpx.ReadError: "{host} closed the connection before its answer was complete",
    httpx.WriteError: "{host} closed the connection while the request was sent",
    httpx.CloseError: "the connection to {host} could not be closed",
    httpx.RemoteProtocolError: "{host} broke off, or answered something that is not HTTP",
    httpx.DecodingError: "{host} sent an answer whose encoding is broken",
    httpx.TooManyRedirects: "{host} redirects in circles",
    httpx.HTTPStatusError: "{host} answered with an error",
}
"""What each error of httpx means, for people; a test fails when httpx grows one that is not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """One answer, whole.

    Attributes:
        headers: Names in lower case; a repeated header's values joined by ", ".
        body: Decoded. Of an answer that is no success (status ≥ 400) at most the first MiB.
        seconds: From the first byte sent to the last one read.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    seconds: float


class _Pool:
    """One httpx transport and how many exchanges use it. A retired one is closed by the last of them."""

    __slots__ = ("http", "key", "users")

    def __init__(self, key: tuple[str, str | None], http: httpx.AsyncHTTPTransport) -> None:
        self.key = key
        self.http = http
        self.users = 0


class _Progress:
    """Whether any byte of the request has been written: before that, nothing can have been billed."""

    __slots__ = ("written",)

    def __init__(self) -> None:
        self.written = False

    async def trace(self, event: str, details: dict[str, Any]) -> None:
        """Called by httpcore: its trace hook (https://www.encode.io/httpcore/extensions/#trace, 2026-11-21)."""
        if event == "http11.send_request_headers.started" and details["request"].method != b"CONNECT":
            self.written = True


class Transport:
    """Sends requests, at most `connections` at a time. Used in one event loop; closed with `aclose`."""

    def __init__(
        self,
        *,
        connections: int = 64,
        ca_file: Path | None = None,
        insecure: bool = False,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without a connection.

        Args:
            connections: Exchanges in flight at most; our own gate, so that httpx's pool never refuses one.
            ca_file: Certificates (PEM) that are trusted besides the public ones.
            insecure: Allow plain http to other machines.
            environ: Where `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are looked up.
            clock: Monotonic seconds, for `HttpResponse.seconds` only.
        """
        self._connections = connections
        self._ca_file = ca_file
        self._insecure = insecure
        self._environ = environ
        self._clock = clock
        self._gate = asyncio.Semaphore(connections)
        self._pools: dict[tuple[str, str | None], _Pool] = {}
        self._checked: dict[str, SplitResult] = {}
        self._trust: ssl.SSLContext | None = None
        self._closing: set[asyncio.Task[None]] = set()
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)  # at INFO and DEBUG they tell URLs and headers

    async def send(
        self,
        request: HttpRequest,
        *,
        timeout_s: float = 120.0,
        read_timeout_s: float | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> HttpResponse:
        """Send one request and read its answer, whatever its status (but for redirects).

        Args:
            request: GET or POST.
            timeout_s: For the whole exchange; waiting for a free connection is not part of it.
            read_timeout_s: Longest silence; None: `timeout_s` alone counts (and no timer is set for each read).
            max_bytes: Decoded size of an answer.

        Raises:
            NotSent: Nothing of the request was written.
            AnswerLost: It was, and no whole answer came.
            AnswerUnusable: The answer is too large, or in an encoding that was not asked for.
            RedirectRefused: The status is 3xx.
            ConfigurationInvalid: The URL is one that keys are not sent to, or a header cannot be sent.
        """
        parts = self._allowed(request.url)
        host = parts.netloc
        async with self._gate, self._pool(parts) as pool:
            progress = _Progress()
            started = self._clock()
            try:
                async with asyncio.timeout(timeout_s):
                    status, headers, body = await _exchange(
                        pool.http, request, progress, read_timeout_s, max_bytes, host
                    )
            except TimeoutError:
                self._retire(pool)
                raise _lost(progress, f"{host} took more than {timeout_s:g} s") from None
            except asyncio.CancelledError:
                self._retire(pool)
                raise
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as problem:
                raise translated(problem, host, written=progress.written) from None
        if 300 <= status < 400:
            target = _host_of(headers.get("location", "")) or "itself"
            raise RedirectRefused(
                f"{host} redirects to {target}; keys and texts do not follow",
                hint="set the provider's base_url to where it should go",
                status=status,
            )
        return HttpResponse(status=status, headers=headers, body=body, seconds=self._clock() - started)

    async def aclose(self) -> None:
        """Close all connections; exchanges in flight fail."""
        for pool in list(self._pools.values()):
            self._retire(pool)
            if pool.users:
                self._close(pool)
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def proxy(self, url: str) -> str | None:
        """HOST:PORT of the proxy that requests to this URL pass, for `doctor`; None without one."""
        proxy = urls.proxy_for(self._allowed(url), self._environ)
        return urlsplit(proxy).netloc.rpartition("@")[2] if proxy else None

    def _allowed(self, url: str) -> SplitResult:
        if url not in self._checked:
            self._checked[url] = urls.checked(url, insecure=self._insecure)
        return self._checked[url]

    @asynccontextmanager
    async def _pool(self, parts: SplitResult) -> AsyncIterator[_Pool]:
        key = (parts.scheme, urls.proxy_for(parts, self._environ))
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(key, self._http(*key))
        pool.users += 1
        try:
            yield pool
        finally:
            pool.users -= 1
            if not pool.users and self._pools.get(key) is not pool:
                self._close(pool)

    def _retire(self, pool: _Pool) -> None:
        """Give no new exchange to this pool.

        A cancelled exchange can leave its place in httpcore's pool taken for ever: after 600 of them no request goes
        through (facts/faults.md P41, 2026-11-21).
        """
        if self._pools.get(pool.key) is pool:
            del self._pools[pool.key]
            if not pool.users:
                self._close(pool)

    def _close(self, pool: _Pool) -> None:
        task = asyncio.get_running_loop().create_task(pool.http.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _http(self, scheme: str, proxy: str | None) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=KEEPALIVE_S,
        )
        # Reading the certificates takes 20 ms and more: not for plain http, and once for all pools.
        trust = self._certificates() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            return httpx.AsyncHTTPTransport(verify=trust, trust_env=False, limits=limits, proxy=proxy)
        except (ValueError, ImportError, httpx.InvalidURL):
            raise ConfigurationInvalid(
                "the proxy that HTTPS_PROXY or ALL_PROXY names cannot be used", hint="http://HOST:PORT"
            ) from None

    def _certificates(self) -> ssl.SSLContext:
        if self._trust is None:
            self._trust = httpx.create_ssl_context(trust_env=False)
            if self._ca_file is not None:
                try:
                    self._trust.load_verify_locations(cafile=self._ca_file)
                except (OSError, ssl.SSLError) as problem:
                    raise ConfigurationInvalid(
                        f"the certificates in {self._ca_file} cannot be read: {problem}", hint="a PEM file"
                    ) from None
        return self._trust


async def _exchange(
    http: httpx.AsyncHTTPTransport,
    request: HttpRequest,
    progress: _Progress,
    read_s: float | None,
    max_bytes: int,
    host: str,
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and decoded body."""
    for name, value in request.headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ConfigurationInvalid(
                f"the header {name} for {host} holds characters that HTTP does not allow",
                hint="does the key in the environment end with a line break, or hold a quotation mark of print?",
            )
    outgoing = httpx.Request(
        request.method,
        request.url,
        headers={"accept": "*/*", "accept-encoding": "identity", **request.headers},
        content=request.body if request.method != "GET" else None,
        extensions={
            "timeout": {"connect": CONNECT_S, "read": read_s, "write": read_s, "pool": CONNECT_S},
            "trace": progress.trace,
        },
    )
    response = await http.handle_async_request(outgoing)
    try:
        headers = {name.lower(): value for name, value in response.headers.items()}
        if 300 <= response.status_code < 400:
            return response.status_code, headers, b""
        body = await _body(response, headers, max_bytes, host)
    finally:
        await response.aclose()
    return response.status_code, headers, body


async def _body(response: httpx.Response, headers: Mapping[str, str], max_bytes: int, host: str) -> bytes:
    """The decoded body, joined in place.

    BytesIO hands out its buffer without a copy, where joining chunks would hold the body twice.
    """
    failed = response.status_code >= 400
    most = min(max_bytes, MAX_ERROR_BYTES) if failed else max_bytes
    encoding = headers.get("content-encoding", "identity").strip().lower()
    body = BytesIO()
    _make_room(body, headers.get("content-length", ""), most)
    decode = _decoder(encoding, host)
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101  (an async transport gives no other)
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
                raise AnswerUnusable(f"{host} sent an answer larger than {most} bytes", status=response.status_code)
    except zlib.error:
        raise AnswerUnusable(f"{host} sent an answer whose {encoding} is broken") from None
    body.truncate()
    return body.getvalue()


def _make_room(body: BytesIO, content_length: str, most: int) -> None:
    """Take the announced size at once, so that a large body never moves."""
    if content_length.isascii() and content_length.isdigit() and (size := min(int(content_length), most)) > 0:
        body.seek(size - 1)
        body.write(b"\0")
        body.seek(0)


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


def translated(problem: Exception, host: str, *, written: bool) -> ProviderError:
    """Our error for one of httpx's, or of the operating system's. Names the host, never the path, query or headers.

    Args:
        written: Whether anything of the request had been written: `AnswerLost`, else `NotSent`.
    """
    sentence = next((WORDS[kind] for kind in type(problem).__mro__ if kind in WORDS), "{host} cannot be reached")
    message = sentence.format(host=host)
    if written:
        return AnswerLost(message)
    for cause in _causes(problem):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NotSent(
                f"the certificate of {host} is not trusted: {cause.verify_message}",
                hint="ca_file = FILE in the provider's table names certificates to trust besides the public ones",
                provider_code="certificate",
            )
        if isinstance(cause, ssl.SSLError):
            return NotSent(f"no TLS with {host}: {cause.reason or 'handshake failed'}", provider_code="tls")
        if isinstance(cause, socket.gaierror):
            return NotSent(f"cannot resolve {host}", hint="is the network up, the name right?")
        if isinstance(cause, ConnectionRefusedError):
            return NotSent(f"{host} refuses the connection", hint="is a server running there?")
    return NotSent(message)


def _host_of(location: str) -> str:
    """The host that a server's Location names, "" when it names none; its path and query may hold secrets."""
    try:
        return urlsplit(location).netloc.rpartition("@")[2][:100]
    except ValueError:
        return "somewhere that cannot be read"


def _causes(problem: BaseException) -> list[BaseException]:
    """The error and everything that led to it."""
    found: list[BaseException] = []
    queue: list[BaseException | None] = [problem]
    while queue:
        cause = queue.pop()
        if cause is None or cause in found:
            continue
        found.append(cause)
        queue += [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            queue += cause.exceptions
    return found


def _lost(progress: _Progress, message: str) -> ProviderError:
    return AnswerLost(message) if progress.written else NotSent(message)

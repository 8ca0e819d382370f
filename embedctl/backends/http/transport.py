"""One HTTP exchange, with every foreign error become ours; libcurl speaks HTTP. The only door to it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

import certifi
import pycurl

from embedctl.backends.http import urls
from embedctl.backends.http.bodies import MAX_ERROR_BYTES, Incoming
from embedctl.backends.http.curls import CurlError, Curls
from embedctl.backends.http.translation import WORDS, translated
from embedctl.errors import AnswerLost, ConfigurationInvalid, NotSent, ProviderError, RedirectRefused
from embedctl.providers._contract import HttpRequest

__all__ = ["MAX_BYTES", "MAX_ERROR_BYTES", "WORDS", "HttpResponse", "Transport", "translated"]

MAX_BYTES = 64 * 1024 * 1024
CONNECT_S = 10
KEEPALIVE_S = 15
_BUFFER_BYTES = 256 * 1024
_URL_SIGNS = "%/:?#[]@!$&'()*+,;=~"


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
            connections: Exchanges in flight at most.
            ca_file: Certificates (PEM) that are trusted besides the public ones.
            insecure: Allow plain http to other machines.
            environ: Where `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are looked up.
            clock: Monotonic seconds, for `HttpResponse.seconds` only.
        """
        self._ca_file = ca_file
        self._insecure = insecure
        self._environ = environ
        self._clock = clock
        self._connections = connections
        self._gate = asyncio.Semaphore(connections)
        self._ways: dict[str, _Way] = {}
        self._curls: Curls | None = None
        self._trust: bytes | None = None

    async def send(self, request: HttpRequest, *, timeout_s: float = 120.0, max_bytes: int = MAX_BYTES) -> HttpResponse:
        """Send one request and read its answer, whatever its status (but for redirects).

        Args:
            request: GET or POST.
            timeout_s: For the whole exchange; waiting for a turn is not part of it.
            max_bytes: Decoded size of an answer.

        Raises:
            NotSent: Nothing of the request was written.
            AnswerLost: It was, and no whole answer came.
            AnswerUnusable: The answer is too large, or in an encoding that was not asked for.
            RedirectRefused: The status is 3xx.
            ConfigurationInvalid: The URL is one that keys are not sent to, or a header cannot be sent.
        """
        way = self._way(request.url)
        _check_headers(request, way.host)
        exchange = _Exchange(way, request, max_bytes)
        answer = exchange.answer
        async with self._gate:
            self._curls = self._curls or Curls(self._connections)
            started = self._clock()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._curls.perform(exchange.prepare, exchange.begin)
            except TimeoutError:
                answer.clear()
                raise _lost(exchange, f"{way.host} took more than {timeout_s:g} s") from None
            except CurlError as problem:
                cut = answer.is_open_ended and problem.code == pycurl.E_RECV_ERROR and not problem.errno
                if not answer.enough and not cut:
                    answer.clear()
                    raise exchange.translated(problem) from None
                if answer.problem is not None:
                    raise answer.problem from None
            seconds = self._clock() - started
        if 300 <= answer.status < 400:
            target = _host_of(answer.headers.get("location", "")) or "itself"
            raise RedirectRefused(
                f"{way.host} redirects to {target}; keys and texts do not follow",
                hint="set the provider's base_url to where it should go",
                status=answer.status,
            )
        return HttpResponse(status=answer.status, headers=answer.headers, body=answer.body, seconds=seconds)

    async def aclose(self) -> None:
        """Close all connections; those of exchanges in flight when these are over."""
        if self._curls is not None:
            self._curls.close()
            self._curls = None

    def proxy(self, url: str) -> str | None:
        """HOST:PORT of the proxy that requests to this URL pass, for `doctor`; None without one."""
        proxy = urls.proxy_for(urls.checked(url, insecure=self._insecure), self._environ)
        return urlsplit(proxy).netloc.rpartition("@")[2] if proxy else None

    def _way(self, url: str) -> _Way:
        """Checked, and looked up in the environment, once for each URL."""
        way = self._ways.get(url)
        if way is None:
            parts = urls.checked(url, insecure=self._insecure)
            proxy = urls.proxy_for(parts, self._environ)
            if proxy is not None and not _is_proxy(proxy):
                raise ConfigurationInvalid(
                    "the proxy that HTTPS_PROXY or ALL_PROXY names cannot be used", hint="http://HOST:PORT"
                )
            trust = self._certificates() if parts.scheme == "https" else None
            way = self._ways[url] = _Way(_as_sent(parts), parts.netloc, proxy, trust)
        return way

    def _certificates(self) -> bytes | None:
        """The public ones and those of `ca_file`; None for the public ones alone, which libcurl then reads once."""
        if self._ca_file is not None and self._trust is None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=self._ca_file)
                self._trust = Path(certifi.where()).read_bytes() + b"\n" + self._ca_file.read_bytes()
            except (OSError, ssl.SSLError) as problem:
                raise ConfigurationInvalid(
                    f"the certificates in {self._ca_file} cannot be read: {problem}", hint="a PEM file"
                ) from None
        return self._trust


@dataclass(frozen=True, slots=True)
class _Way:
    """A URL that may be asked, and through what.

    Attributes:
        trust: Certificates; None for the public ones.
    """

    url: str
    host: str
    proxy: str | None
    trust: bytes | None


class _Socket(socket.socket):
    """Libcurl takes a copy of its number; nobody else closes this one."""

    def __del__(self) -> None:
        self.close()


class _Exchange:
    """What libcurl is told of a request, and what it says of how far it came.

    Attributes:
        written: The first byte was about to leave: before that, nothing can have been billed.
    """

    def __init__(self, way: _Way, request: HttpRequest, max_bytes: int) -> None:
        self.written = False
        self.answer = Incoming(way.host, max_bytes)
        self._way = way
        self._request = request
        self._link_local = False

    def prepare(self, easy: pycurl.Curl) -> None:
        """For `Curls.perform`. What libcurl would take from the environment or do by itself is turned off."""
        way, request = self._way, self._request
        easy.setopt(pycurl.URL, way.url)
        easy.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        easy.setopt(pycurl.NOSIGNAL, True)
        easy.setopt(pycurl.BUFFERSIZE, _BUFFER_BYTES)
        easy.setopt(pycurl.CONNECTTIMEOUT, CONNECT_S)
        easy.setopt(pycurl.MAXAGE_CONN, KEEPALIVE_S)
        easy.setopt(pycurl.FOLLOWLOCATION, False)
        easy.setopt(pycurl.PROXY, way.proxy or "")
        easy.setopt(pycurl.NOPROXY, "")
        easy.setopt(pycurl.HEADEROPT, pycurl.HEADER_SEPARATE)
        if way.trust is not None:
            easy.setopt(pycurl.CAINFO_BLOB, way.trust)
            easy.setopt(pycurl.PROXY_CAINFO_BLOB, way.trust)
        else:
            easy.setopt(pycurl.CAINFO, certifi.where())
            easy.setopt(pycurl.PROXY_CAINFO, certifi.where())
        headers = {"accept": "*/*", "accept-encoding": "identity", **request.headers}
        easy.setopt(
            pycurl.HTTPHEADER,
            [f"{name}: {value}" if value else f"{name};" for name, value in headers.items()] + ["Expect:"],
        )
        if request.method == "POST":
            easy.setopt(pycurl.POST, True)
            easy.setopt(pycurl.POSTFIELDS, request.body)
        easy.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        easy.setopt(pycurl.HEADERFUNCTION, lambda line: None if self.answer.header(line) else -1)
        easy.setopt(pycurl.WRITEFUNCTION, lambda piece: None if self.answer.piece(piece) else -1)

    def begin(self) -> bool:
        """The request may leave, once: libcurl sends it again when the connection ends before an answer."""
        once = not self.written
        self.written = self.answer.expected = True
        return once

    def translated(self, problem: CurlError) -> ProviderError:
        """Our error for libcurl's."""
        if self._link_local and not self.written:
            return NotSent(
                f"{self._way.host} leads to a link-local address, never a provider", provider_code="link_local"
            )
        return translated(problem, self._way.host, written=self.written, proxied=self._way.proxy is not None)

    def _open(self, _: int, address: tuple[int, int, int, tuple[str | int | bytes, ...]]) -> socket.socket | int:
        """A socket for an address that a name led to; a proxy's may be link-local."""
        family, kind, protocol, where = address
        host = where[0]
        if self._way.proxy is None and urls.is_link_local(host.decode() if isinstance(host, bytes) else str(host)):
            self._link_local = True
            return pycurl.SOCKET_BAD
        return _Socket(family, kind, protocol)


def _check_headers(request: HttpRequest, host: str) -> None:
    for name, value in request.headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ConfigurationInvalid(
                f"the header {name} for {host} holds characters that HTTP does not allow",
                hint="does the key in the environment end with a line break, or hold a quotation mark of print?",
            )


def _as_sent(parts: SplitResult) -> str:
    """The URL in ASCII."""
    try:
        parts = parts._replace(netloc=parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode())
    except UnicodeError:
        raise ConfigurationInvalid(f"a URL of {parts.netloc} cannot be asked: that is no name of a host") from None
    return quote(parts.geturl(), safe=_URL_SIGNS)


def _is_proxy(url: str) -> bool:
    """Whether it is one that libcurl can ask and that we speak to (not SOCKS)."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _host_of(location: str) -> str:
    """The host that a server's Location names, "" when it names none; its path and query may hold secrets."""
    try:
        return urlsplit(location).netloc.rpartition("@")[2][:100]
    except ValueError:
        return "somewhere that cannot be read"


def _lost(exchange: _Exchange, message: str) -> ProviderError:
    return AnswerLost(message) if exchange.written else NotSent(message)

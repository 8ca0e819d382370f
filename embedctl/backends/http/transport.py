"""One HTTP exchange, with every foreign error become ours. The only door to httpx and libcurl.

httpx's client follows redirects when asked, reads netrc and proxies for loopback, and logs URLs; its requests,
responses and errors do none of that, so those are what is used, over libcurl (curls.py).
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from embedctl.dataclass import dataclass

from embedctl.backends.http import alone as alone  # isort: skip  # before httpx

import certifi
import httpx

from embedctl.backends.http import urls
from embedctl.backends.http.bodies import MAX_ERROR_BYTES, body_of, pour
from embedctl.backends.http.curls import Curls
from embedctl.backends.http.translation import WORDS, translated
from embedctl.errors import AnswerLost, AnswerUnusable, ConfigurationInvalid, NotSent, ProviderError, RedirectRefused
from embedctl.providers._contract import HttpRequest
from embedctl.providers._foreign import label

__all__ = ["MAX_BYTES", "MAX_ERROR_BYTES", "WORDS", "HttpResponse", "Transport", "translated"]

MAX_BYTES = 64 * 1024 * 1024
_HOST_CHARACTERS = 100


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


class _Progress:
    """Whether any byte of the request has been written: before that, nothing can have been billed."""

    __slots__ = ("written",)

    def __init__(self) -> None:
        self.written = False

    def begin(self) -> None:
        """The first byte is about to leave."""
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
        self._clients: dict[tuple[str, str | None], Curls] = {}
        self._trust: bytes | None = None

    async def send(
        self,
        request: HttpRequest,
        *,
        timeout_s: float = 120.0,
        max_bytes: int = MAX_BYTES,
        into: BinaryIO | None = None,
        moves: bool = False,
        proceed: Callable[[], None] = lambda: None,
    ) -> HttpResponse:
        """Send one request and read its answer, whatever its status (but for redirects).

        Args:
            request: GET, POST or DELETE.
            timeout_s: For the whole exchange; waiting for a turn is not part of it.
            max_bytes: Decoded size of an answer.
            into: Where the body of a success goes, piece by piece, in place of the answer's `body`.
            moves: A redirect is an answer like others, without a body; it is followed by nobody here.
            proceed: Called when its turn has come; raises where it is not to be sent any more.

        Raises:
            NotSent: Nothing of the request was written.
            AnswerLost: It was, and no whole answer came.
            AnswerUnusable: The answer is too large, or in an encoding that was not asked for.
            RedirectRefused: The status is 3xx.
            ConfigurationInvalid: The URL is one that keys are not sent to, or a header cannot be sent.
        """
        way = self._way(request.url)
        host = way.host
        progress = _Progress()
        async with self._gate:
            proceed()
            started = self._clock()
            try:
                async with asyncio.timeout(timeout_s):
                    status, headers, body = await _exchange(way, request, progress, max_bytes, into)
            except TimeoutError:
                raise _lost(progress, f"{host} took more than {timeout_s:g} s") from None
            except (httpx.HTTPError, httpx.StreamError, OSError) as problem:
                raise translated(problem, host, written=progress.written) from None
            except AnswerUnusable as problem:  # names an encoding that the server made up
                problem.message = label(problem.message, request) or host
                raise
            seconds = self._clock() - started
        if 300 <= status < 400 and not moves:
            target = (label(_host_of(headers.get("location", "")), request) or "itself")[:_HOST_CHARACTERS]
            raise RedirectRefused(
                f"{host} redirects to {target}; keys and texts do not follow",
                hint="set the provider's base_url to where it should go",
                status=status,
            )
        return HttpResponse(status=status, headers=headers, body=body, seconds=seconds)

    async def aclose(self) -> None:
        """Close all connections; those of exchanges in flight when these are over."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()
        self._ways.clear()

    def proxy(self, url: str) -> str | None:
        """HOST:PORT of the proxy that requests to this URL pass, for `doctor`; None without one.

        Raises:
            ConfigurationInvalid: The environment names one that cannot be.
        """
        proxy = urls.proxy_for(urls.checked(url, insecure=self._insecure), self._environ)
        if proxy is None:
            return None
        _check_proxy(proxy)
        return urlsplit(proxy).netloc.rpartition("@")[2]

    def _way(self, url: str) -> _Way:
        """Checked, and looked up in the environment, once for each URL."""
        way = self._ways.get(url)
        if way is None:
            parts = urls.checked(url, insecure=self._insecure)
            key = (parts.scheme, urls.proxy_for(parts, self._environ))
            if key not in self._clients:
                self._clients[key] = self._client(*key)
            try:
                asked = httpx.URL(url)
            except httpx.InvalidURL as problem:
                raise ConfigurationInvalid(f"a URL of {parts.netloc} cannot be asked: {problem}") from None
            way = self._ways[url] = _Way(asked, parts.netloc, self._clients[key])
        return way

    def _client(self, scheme: str, proxy: str | None) -> Curls:
        if proxy is not None:
            _check_proxy(proxy)
        trust = self._certificates() if scheme == "https" else None
        return Curls(self._connections, trust=trust, proxy=proxy)

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


@dataclass(slots=True)
class _Way:
    """A URL that may be asked, and through what."""

    url: httpx.URL
    host: str
    client: Curls
    _said: Mapping[str, str] = field(default_factory=dict, repr=False)
    _headers: httpx.Headers | None = field(default=None, repr=False)

    def headers(self, said: Mapping[str, str]) -> httpx.Headers:
        """A request's headers as they go out; mostly they are those of the one before.

        Raises:
            ConfigurationInvalid: One cannot be sent.
        """
        if self._headers is not None and said == self._said:
            return self._headers
        for name, value in said.items():
            if not (value.isascii() and value.isprintable()):
                raise ConfigurationInvalid(
                    f"the header {name} for {self.host} holds characters that HTTP does not allow",
                    hint="does the key in the environment end with a line break, or hold a quotation mark of print?",
                )
        self._headers = httpx.Headers({"accept": "*/*", "accept-encoding": "identity", **said})
        self._said = dict(said)
        return self._headers


async def _exchange(
    way: _Way, request: HttpRequest, progress: _Progress, max_bytes: int, into: BinaryIO | None
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and decoded body."""
    outgoing = httpx.Request(
        request.method,
        way.url,
        headers=way.headers(request.headers),
        content=request.body if request.method != "GET" else None,
        extensions={"written": progress.begin},
    )
    response = await way.client.handle_async_request(outgoing)
    try:
        headers = {name.lower(): value for name, value in response.headers.items()}
        if 300 <= response.status_code < 400:
            return response.status_code, headers, b""
        if into is not None and response.status_code < 300:
            await pour(response, headers, into, max_bytes, way.host)
            return response.status_code, headers, b""
        return response.status_code, headers, await body_of(response, headers, max_bytes, way.host)
    finally:
        await response.aclose()


def _check_proxy(url: str) -> None:
    """Refuse what libcurl cannot ask, or we do not speak to (SOCKS).

    Raises:
        ConfigurationInvalid: It is no such proxy.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationInvalid(
            "the proxy that HTTPS_PROXY or ALL_PROXY names cannot be used", hint="http://HOST:PORT"
        )


def _host_of(location: str) -> str:
    """The host that a server's Location names, "" when it names none; its path and query may hold secrets."""
    try:
        return urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        return "somewhere that cannot be read"


def _lost(progress: _Progress, message: str) -> ProviderError:
    return AnswerLost(message) if progress.written else NotSent(message)

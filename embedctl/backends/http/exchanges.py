"""HTTP/1.1 over links, as a transport of httpx: h11 says what bytes mean, the body of a known length is not copied.

httpx's own transport costs three times as much for large answers (see links.py), loses a place of its pool with every
600 cancelled requests (facts/faults.md P41, 2026-11-21), and asks every connection for every request.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import deque
from collections.abc import AsyncIterator

import h11
import httpx

from embedctl.backends.http.links import SCRATCH_BYTES, Address, Link, connected

CONNECT_S = 10.0
KEEPALIVE_S = 15.0
MAX_PORT = 65_535
MAX_HEAD_BYTES = 100 * 1024
_STEP_BYTES = 16 * 1024  # of a head, so that its limit is looked at before it is whole
_NO_BODY = (204, 304)


class Exchanges(httpx.AsyncBaseTransport):
    """Sends requests of httpx, each on a connection that nobody else uses meanwhile.

    An exchange that does not end well takes its connection with it, and nothing else. How many are in flight is not
    counted here. A request's extension `written` is called when its first byte is about to leave.

    Args:
        tls: What https trusts; None for plain http.
        proxy: Where https goes through.

    Raises:
        ValueError: The proxy is of a kind that is not spoken here (SOCKS), or nowhere.
    """

    def __init__(self, tls: ssl.SSLContext | None, proxy: httpx.Proxy | None = None) -> None:
        if proxy is not None:
            port = proxy.url.port or 1
            if proxy.url.scheme not in ("http", "https") or not proxy.url.host or port > MAX_PORT:
                raise ValueError(proxy.url.scheme)
        self._tls = tls
        self._proxy = proxy
        self._free: dict[Address, deque[Link]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read the head of its answer; the body comes from the response's stream, a `Body`.

        Raises:
            httpx.TransportError: Whatever went wrong.
        """
        to = _address(request.url, self._tls)
        link = self._again(to) or await self._connect(to)
        wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            try:
                await _send(link, wire, request)
                head = await _head(link, wire)
            except h11.LocalProtocolError as problem:
                raise httpx.LocalProtocolError(str(problem)) from problem
            except h11.RemoteProtocolError as problem:
                raise httpx.RemoteProtocolError(str(problem)) from problem
            except OSError as problem:
                raise httpx.ReadError(str(problem)) from problem
        except BaseException:
            link.drop()
            raise
        body = Body(self, to, link, wire, _length(request, head))
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=body)

    async def aclose(self) -> None:
        """Close the connections that nobody uses; the others are closed when their exchange is over."""
        self._closed = True
        for links in self._free.values():
            for link in links:
                link.drop()
        self._free.clear()
        await asyncio.sleep(0)  # asyncio closes the sockets one turn later

    def give_back(self, to: Address, link: Link) -> None:
        """Another exchange may have this connection."""
        if self._closed:
            link.drop()
            return
        link.free_until = asyncio.get_running_loop().time() + KEEPALIVE_S
        self._free.setdefault(to, deque()).append(link)

    def _again(self, to: Address) -> Link | None:
        """The connection that was used last, if it still stands."""
        links, now = self._free.get(to), asyncio.get_running_loop().time()
        while links:
            link = links.pop()
            if link.usable and now < link.free_until:
                return link
            link.drop()
        return None

    async def _connect(self, to: Address) -> Link:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await (connected(to) if self._proxy is None else self._through(self._proxy, to))
        except TimeoutError as problem:
            raise httpx.ConnectTimeout("no connection") from problem
        except OSError as problem:
            raise httpx.ConnectError(str(problem)) from problem

    async def _through(self, proxy: httpx.Proxy, to: Address) -> Link:
        """A tunnel; the proxy learns the host's name and nothing else."""
        try:
            link = await connected(_address(proxy.url, self._tls), any_address=True)
        except OSError as problem:
            raise httpx.ProxyError(str(problem)) from problem
        try:
            await _tunnel(link, proxy, to)
            await link.secure(to)
        except BaseException as problem:
            link.drop()
            if isinstance(problem, h11.ProtocolError | httpx.RemoteProtocolError):
                raise httpx.ProxyError("no HTTP") from problem
            raise
        return link


class Body(httpx.AsyncByteStream):
    """The rest of an answer, to be read once; closed, it gives the connection back if that may be used again.

    Attributes:
        length: Bytes, when they come as they are; None when only reading tells.
    """

    def __init__(self, owner: Exchanges, to: Address, link: Link, wire: h11.Connection, length: int | None) -> None:
        self.length = length
        self._owner = owner
        self._to = to
        self._link = link
        self._wire = wire
        self._whole = False
        self._closed = False

    async def into(self, target: memoryview) -> None:
        """Read all of it, `length` bytes, into `target`.

        Raises:
            httpx.TransportError: It ended before, or broke off.
        """
        come, _ = self._wire.trailing_data
        size = min(len(come), len(target))
        target[:size] = come[:size]
        try:
            size = await self._link.fill(target, size)
        except OSError as problem:
            raise httpx.ReadError(str(problem)) from problem
        if size < len(target):
            raise httpx.RemoteProtocolError(f"{size} bytes of {len(target)}, then the end")
        self._whole = len(come) <= len(target)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Read it piece by piece.

        Raises:
            httpx.TransportError: It broke off.
        """
        try:
            while True:
                event = self._wire.next_event()
                if event is h11.NEED_DATA:
                    self._wire.receive_data(await self._link.read(SCRATCH_BYTES))
                elif isinstance(event, h11.Data):
                    yield bytes(event.data)
                else:
                    self._whole = not self._wire.trailing_data[0]
                    return
        except h11.RemoteProtocolError as problem:
            raise httpx.RemoteProtocolError(str(problem)) from problem
        except OSError as problem:
            raise httpx.ReadError(str(problem)) from problem

    async def aclose(self) -> None:
        """See httpx."""
        if self._closed:
            return
        self._closed = True
        if self._whole and self._wire.our_state is h11.DONE and self._link.usable:
            self._owner.give_back(self._to, self._link)
        else:
            self._link.drop()


async def _tunnel(link: Link, proxy: httpx.Proxy, to: Address) -> None:
    host = f"[{to.host}]" if ":" in to.host else to.host
    target = f"{host}:{to.port}"
    headers = [("host", target), *proxy.headers.items()]
    if proxy.raw_auth is not None:
        headers.append(("proxy-authorization", f"Basic {base64.b64encode(b':'.join(proxy.raw_auth)).decode()}"))
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    await link.write(wire.send(h11.Request(method="CONNECT", target=target, headers=headers)) or b"")
    wire.send(h11.EndOfMessage())
    head = await _head(link, wire)
    if not 200 <= head.status_code < 300:
        raise httpx.ProxyError(f"{head.status_code}")
    # What comes before TLS would be read as if it had come through it: an answer that the proxy made up.
    if wire.trailing_data[0] or not link.usable:
        raise httpx.ProxyError("more than was asked")


async def _send(link: Link, wire: h11.Connection, request: httpx.Request) -> None:
    head = wire.send(h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw))
    body = wire.send(h11.Data(data=request.content)) if request.content else b""
    end = wire.send(h11.EndOfMessage())
    request.extensions["written"]()
    await link.write(b"".join((head or b"", body or b"", end or b"")))


async def _head(link: Link, wire: h11.Connection) -> h11.Response:
    """The answer's first lines. A server may answer before it has read everything, and hang up."""
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            wire.receive_data(await link.read(_STEP_BYTES))
        elif isinstance(event, h11.Response):
            return event
        elif not isinstance(event, h11.InformationalResponse):
            raise httpx.RemoteProtocolError("the connection ended without an answer")


def _length(request: httpx.Request, head: h11.Response) -> int | None:
    """How many bytes the body has, where they come one after the other; h11 has checked the number."""
    found = dict(head.headers)
    if request.method == "HEAD" or head.status_code in _NO_BODY or b"transfer-encoding" in found:
        return None
    return int(found[b"content-length"]) if b"content-length" in found else None


def _address(url: httpx.URL, tls: ssl.SSLContext | None) -> Address:
    secure = url.scheme == "https"
    return Address(url.raw_host.decode("ascii"), url.port or (443 if secure else 80), tls if secure else None)

"""libcurl as a transport of httpx, in asyncio: it says which sockets it waits for and when it wants to be woken.

httpx's own transport holds large answers in pieces and twice, loses a place of its pool with every 600 cancelled
requests (facts/faults.md P41, 2026-11-21), and asks every connection for every request.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Callable
from io import BytesIO

import certifi
import httpx
import pycurl

from embedctl.backends.http import urls
from embedctl.backends.http.curl_codes import LinkLocalError, httpx_error

CONNECT_S = 10
KEEPALIVE_S = 15
MAX_HEAD_BYTES = 100 * 1024
_BUFFER_BYTES = 64 * 1024  # of each connection
_AHEAD_BYTES = 4 * 1024 * 1024  # of a body that nobody reads yet
_FIRST_BYTES = 1024 * 1024  # room that a promised length gets before anything came
_GROWTH = 8  # times what came is the most that is taken for what is promised
_STOP = -1  # a callback's word that it has heard enough; libcurl closes the connection
_OWN_HEADERS = (b"Accept", b"Content-Type", b"Expect")  # that libcurl would add


class Curls(httpx.AsyncBaseTransport):
    """Sends requests of httpx, any number at a time; their connections are used again. For one event loop.

    An exchange that does not end well takes its connection with it, and nothing else. A request's extension `written`
    is called when its first byte is about to leave. What libcurl would take from the environment, or do by itself, is
    turned off.

    Args:
        connections: That are kept while nobody uses them.
        trust: Certificates (PEM); None for the public ones.
        proxy: The URL of the one on the way to all hosts; "http://…" or "https://…".
    """

    def __init__(self, connections: int, *, trust: bytes | None = None, proxy: str | None = None) -> None:
        self._trust = trust
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._wake_after)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._watched: dict[int, int] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._due: float | None = None  # when libcurl wants to be woken; the alarm may ring before
        self._running: dict[pycurl.Curl, _Exchange] = {}
        self._free: list[pycurl.Curl] = []
        self._idle: dict[tuple[str, int], int] = {}  # our end of a connection, its socket
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a GET, POST or DELETE, and read the head of its answer; its body comes from its stream, a `Body`.

        Raises:
            httpx.TransportError: No head came, or the request cannot be sent.
        """
        if request.method not in ("GET", "POST", "DELETE"):
            raise httpx.LocalProtocolError(f"{request.method} is not spoken here")
        exchange = _Exchange(request, await request.aread(), proxied=self._proxy is not None)
        self._start(exchange)
        try:
            while not (exchange.begun or exchange.over):
                await exchange.news()
            if not exchange.begun:
                exchange.check()
        except BaseException:
            self.release(exchange)
            raise
        return httpx.Response(exchange.status, headers=exchange.headers, stream=Body(self, exchange))

    async def aclose(self) -> None:
        """Close all connections; those of exchanges in flight when these are over."""
        self._closed = True
        self._close_when_over()

    def release(self, exchange: _Exchange) -> None:
        """Nothing more is wanted of an exchange; in its midst that closes its connection."""
        self._free_easy(exchange)
        self._close_when_over()

    def _start(self, exchange: _Exchange) -> None:
        easy = exchange.easy = self._free.pop() if self._free else pycurl.Curl()
        self._running[easy] = exchange
        easy.setopt(pycurl.PROXY, self._proxy or "")
        easy.setopt(pycurl.NOPROXY, "")
        if self._trust is not None:
            easy.setopt(pycurl.CAINFO_BLOB, self._trust)
            easy.setopt(pycurl.PROXY_CAINFO_BLOB, self._trust)
        else:
            easy.setopt(pycurl.CAINFO, certifi.where())
            easy.setopt(pycurl.PROXY_CAINFO, certifi.where())
        exchange.prepare(easy, self._is_quiet)
        self._multi.add_handle(easy)

    def _is_quiet(self, own_host: str, own_port: int) -> bool:
        """Whether nothing has come and nothing has ended since a connection was free, as far as the kernel knows.

        libcurl looks only now and then, and takes what came for the next answer.
        """
        number = self._idle.pop((own_host, own_port), None)
        if number is None:
            return True  # a new one
        kernel = select.poll()
        kernel.register(number, select.POLLIN)
        return not kernel.poll(0)

    def _end(self, easy: pycurl.Curl, failure: tuple[int, str] | None) -> None:
        exchange = self._running[easy]
        if failure is None:
            own_end = easy.getinfo(pycurl.LOCAL_IP), easy.getinfo(pycurl.LOCAL_PORT)
            self._idle[own_end] = easy.getinfo(pycurl.ACTIVESOCKET)
        elif not exchange.stale:
            exchange.fail(*failure, easy)
        self._free_easy(exchange)
        if exchange.stale:
            self._start(exchange)
        else:
            exchange.end()

    def _free_easy(self, exchange: _Exchange) -> None:
        easy = exchange.easy
        if easy is not None:
            exchange.easy = None
            del self._running[easy]
            self._multi.remove_handle(easy)
            easy.reset()  # lets go of the exchange
            self._free.append(easy)

    def _close_when_over(self) -> None:
        if not self._closed or self._running:
            return
        for easy in self._free:
            easy.close()
        self._free.clear()
        self._multi.close()
        for number in list(self._watched):
            self._watch(pycurl.POLL_REMOVE, number, self._multi, None)
        self._wake_after(-1)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    # for libcurl

    def _watch(self, wanted: int, number: int, _: pycurl.CurlMulti, __: object) -> None:
        before = self._watched.pop(number, pycurl.POLL_NONE)
        now = pycurl.POLL_NONE if wanted == pycurl.POLL_REMOVE else wanted
        if now:
            self._watched[number] = now
        if now & pycurl.POLL_IN and not before & pycurl.POLL_IN:
            self._loop.add_reader(number, self._act, number, pycurl.CSELECT_IN)
        elif before & pycurl.POLL_IN and not now & pycurl.POLL_IN:
            self._loop.remove_reader(number)
        if now & pycurl.POLL_OUT and not before & pycurl.POLL_OUT:
            self._loop.add_writer(number, self._act, number, pycurl.CSELECT_OUT)
        elif before & pycurl.POLL_OUT and not now & pycurl.POLL_OUT:
            self._loop.remove_writer(number)

    def _wake_after(self, milliseconds: int) -> None:
        """An alarm that would come sooner stays: most are called off before they ring."""
        self._due = None if milliseconds < 0 else self._loop.time() + milliseconds / 1000
        if self._due is not None and (self._alarm is None or self._due < self._alarm.when()):
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._due is None:
            return
        if self._loop.time() < self._due:
            self._alarm = self._loop.call_at(self._due, self._ring)
        else:
            self._due = None
            self._act(pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, number: int, ready: int) -> None:
        self._multi.socket_action(number, ready)
        left = 1
        while left:
            left, done, failed = self._multi.info_read()
            for easy in done:
                self._end(easy, None)
            for easy, code, text in failed:
                self._end(easy, (code, text))
        self._close_when_over()


class Body(httpx.AsyncByteStream):
    """The rest of an answer, to be read once; closed in its midst, it takes the connection with it."""

    def __init__(self, owner: Curls, exchange: _Exchange) -> None:
        self._owner = owner
        self._exchange = exchange

    @property
    def length(self) -> int | None:
        """Bytes, as promised; None when only reading tells."""
        return self._exchange.length

    async def read(self, most: int) -> bytes:
        """All of it, in the memory that it came into; of more than `most` bytes, the first `most` + 1.

        Raises:
            httpx.TransportError: It broke off.
        """
        exchange = self._exchange
        exchange.stop_behind(most)
        while not (exchange.over or exchange.size > most):
            await exchange.news()
        if exchange.size <= most:
            exchange.check()
        return exchange.take()[: most + 1]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Read it piece by piece.

        Raises:
            httpx.TransportError: It broke off.
        """
        exchange = self._exchange
        while not exchange.over or exchange.size:
            if exchange.size:
                yield exchange.take()
                exchange.go_on()
            else:
                await exchange.news()
        exchange.check()

    async def aclose(self) -> None:
        """See httpx."""
        self._exchange.take()  # errors and their tracebacks may be kept for long
        self._owner.release(self._exchange)


class _Socket(socket.socket):
    """libcurl takes a copy of its number; nobody else closes this one."""

    def __del__(self) -> None:
        self.close()


class _Exchange:
    """What libcurl is told of a request, and what it says of how far it came.

    Attributes:
        easy: While libcurl works at it.
        sent: The first byte was about to leave: before that, nothing can have been billed.
        stale: The connection turned out to be no good before anything was sent; another one is tried.
        begun: The head of the answer is whole.
        over: Nothing more comes.
        length: Of the body, as promised.
        size: Bytes of the body that came and were not taken.
    """

    def __init__(self, request: httpx.Request, content: bytes, *, proxied: bool) -> None:
        self.easy: pycurl.Curl | None = None
        self.sent = self.stale = self.begun = self.over = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.size = 0
        self._request = request
        self._content = content
        self._proxied = proxied
        self._problem: httpx.TransportError | None = None
        self._enough = self._paused = self._link_local = False
        self._in_head = False
        self._head_bytes = 0
        self._memory = BytesIO()
        self._room = 0
        self._missing = 0  # bytes of a promised length
        self._most = _AHEAD_BYTES
        self._pauses = True
        self._news = asyncio.Event()

    # for who waits

    async def news(self) -> None:
        """Wait until something happened: the head, bytes of the body, the end."""
        self._news.clear()
        await self._news.wait()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._problem is not None:
            raise self._problem

    def take(self) -> bytes:
        """The bytes that came, given away with their memory, not copied."""
        self._memory.truncate(self.size)
        taken = self._memory.getvalue()
        self._memory = BytesIO()
        self.size = self._room = 0
        return taken

    def stop_behind(self, most: int) -> None:
        """All may come, but no more than one byte beyond `most`."""
        self._most = most
        self._pauses = False
        self.go_on()

    def go_on(self) -> None:
        """More may come."""
        if self._paused and self.easy is not None:
            self._paused = False
            self.easy.pause(pycurl.PAUSE_CONT)  # may hand over at once

    # for who drives libcurl

    def prepare(self, easy: pycurl.Curl, is_quiet: Callable[[str, int], bool]) -> None:
        """Tell libcurl what is sent, and where what comes is put."""

        def before(_: str, own_host: str, __: int, own_port: int) -> int:
            self.stale = not is_quiet(own_host, own_port)
            return int(pycurl.PREREQFUNC_OK if not self.stale and self.begin() else pycurl.PREREQFUNC_ABORT)

        self.stale = False
        request = self._request
        easy.setopt(pycurl.URL, str(request.url))
        easy.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        easy.setopt(pycurl.NOSIGNAL, True)
        easy.setopt(pycurl.BUFFERSIZE, _BUFFER_BYTES)
        easy.setopt(pycurl.CONNECTTIMEOUT, CONNECT_S)
        easy.setopt(pycurl.MAXAGE_CONN, KEEPALIVE_S)
        easy.setopt(pycurl.FOLLOWLOCATION, False)
        easy.setopt(pycurl.HEADEROPT, pycurl.HEADER_SEPARATE)
        lines = [name + (b": " + value if value else b";") for name, value in request.headers.raw]
        said = {name.lower() for name, _ in request.headers.raw}
        lines += [name + b":" for name in _OWN_HEADERS if name.lower() not in said]
        easy.setopt(pycurl.HTTPHEADER, lines)
        if request.method == "POST":
            easy.setopt(pycurl.POST, True)
            easy.setopt(pycurl.POSTFIELDS, self._content)
        elif request.method == "DELETE":
            easy.setopt(pycurl.CUSTOMREQUEST, "DELETE")
        easy.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        easy.setopt(pycurl.PREREQFUNCTION, before)
        easy.setopt(pycurl.HEADERFUNCTION, self._header)
        easy.setopt(pycurl.WRITEFUNCTION, self._piece)

    def begin(self) -> bool:
        """The request may leave, once: libcurl sends it again when the connection ends before an answer."""
        if self.sent:
            return False
        self.sent = True
        if written := self._request.extensions.get("written"):
            written()
        return True

    def fail(self, code: int, text: str, easy: pycurl.Curl) -> None:
        """It was given up, see `httpx_error`; a callback may have wanted that, and an end without a farewell is one."""
        number = easy.getinfo(pycurl.OS_ERRNO)
        cut = self._is_open_ended() and code == pycurl.E_RECV_ERROR and not number
        if self._enough or cut:
            return
        self._problem = httpx_error(
            code,
            text,
            number,
            sent=self.sent,
            proxied=self._proxied,
            proxy_untrusted=easy.getinfo(pycurl.PROXY_SSL_VERIFYRESULT) != 0,
        )
        if self._link_local and not self.sent:
            self._problem = httpx.ConnectError("a link-local address")
            self._problem.__cause__ = LinkLocalError()

    def end(self) -> None:
        """Nothing more comes. For libcurl a connection that is closed in a head's midst ends well."""
        if not self.begun and self._problem is None:
            self._problem = httpx.RemoteProtocolError("the connection ended within the head of the answer")
        self.over = True
        self._news.set()

    def _is_open_ended(self) -> bool:
        """Whether nothing but the end of the connection tells where the body ends; not all say farewell in TLS."""
        ends = (b"content-length", b"transfer-encoding", b"content-encoding")
        return self.begun and not any(name.lower() in ends for name, _ in self.headers)

    # for libcurl; what it calls cannot raise

    def _open(self, _: int, address: tuple[int, int, int, tuple[str | int | bytes, ...]]) -> socket.socket | int:
        """A socket for an address that a name led to; a proxy's may be link-local."""
        family, kind, protocol, where = address
        host = where[0]
        if not self._proxied and urls.is_link_local(host.decode() if isinstance(host, bytes) else str(host)):
            self._link_local = True
            return pycurl.SOCKET_BAD
        return _Socket(family, kind, protocol)

    def _header(self, line: bytes) -> int | None:
        """A line of a head: of what is no answer yet (100, 103), of a proxy, of what stands behind a body, too."""
        self._head_bytes += len(line)
        if self._head_bytes > MAX_HEAD_BYTES:
            return _STOP
        if self.begun or not self.sent:
            return None  # behind the body, or a proxy's
        if not line.endswith(b"\n"):
            return None  # the connection ended within it: not even an empty line ends a head then
        if not self._in_head:
            self._in_head = True
            self.status, self.headers = int(line.split(None, 2)[1]), []
        elif line.strip():
            name, _, value = line.partition(b":")
            self.headers.append((name.strip(), value.strip()))
        else:
            self._in_head = False
            if self.status >= 200:
                self._begin_body()
        return None

    def _begin_body(self) -> None:
        said = {name.lower(): value for name, value in self.headers}
        length = said.get(b"content-length", b"")
        if length.isdigit() and b"transfer-encoding" not in said:
            self.length = self._missing = int(length[:20])  # what is too large for a number is none for libcurl
        self.begun = True
        self._news.set()

    def _piece(self, piece: bytes) -> int | None:
        """The next bytes of the body. Memory grows with what came, whatever is promised, in few steps: each copies."""
        size = self.size + len(piece)
        if size > self._most:
            if self._pauses and self.size:
                self._paused = True
                return int(pycurl.WRITEFUNC_PAUSE)
            self._enough = not self._pauses
        if size > self._room and self._missing:
            self._room = max(size, min(self._missing, self._most, max(_FIRST_BYTES, self.size * _GROWTH)))
            self._memory.seek(self._room - 1)
            self._memory.write(b"\0")
            self._memory.seek(self.size)
        self._memory.write(piece)
        self.size = size
        self._news.set()
        return _STOP if self._enough else None

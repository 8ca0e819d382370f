"""libcurl in asyncio: which sockets it waits for, when it wants to be woken, and which exchanges are over."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

import pycurl


class CurlError(Exception):
    """An exchange that libcurl gave up.

    Attributes:
        code: One of `pycurl.E_…`.
        text: libcurl's own words; may name the URL.
        errno: What the operating system said, 0 for nothing.
    """

    def __init__(self, code: int, text: str, errno: int = 0) -> None:
        super().__init__(code)
        self.code = code
        self.text = text
        self.errno = errno


class Curls:
    """Performs exchanges of one event loop, any number at a time; their connections are used again.

    Args:
        connections: That are kept while nobody uses them.
    """

    def __init__(self, connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._wake_after)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._watched: dict[int, int] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._running: dict[pycurl.Curl, asyncio.Future[None]] = {}
        self._free: list[pycurl.Curl] = []
        self._idle: dict[tuple[str, int], int] = {}  # our end of a connection, its socket
        self._in_use = 0
        self._closed = False

    async def perform(self, prepare: Callable[[pycurl.Curl], None], begin: Callable[[], bool]) -> None:
        """One exchange; one that does not end well takes its connection with it, and nothing else.

        Args:
            prepare: Says what is sent, and where what comes is put.
            begin: The connection stands, and the request is about to leave: whether it may.

        Raises:
            CurlError: No whole answer came, or a callback stopped it.
        """
        easy = self._free.pop() if self._free else pycurl.Curl()
        self._in_use += 1
        try:
            while not await self._performed(easy, prepare, begin):
                pass
        finally:
            self._in_use -= 1
            easy.reset()  # lets go of what `prepare` gave
            self._free.append(easy)
            if self._closed:
                self.close()

    async def _performed(
        self, easy: pycurl.Curl, prepare: Callable[[pycurl.Curl], None], begin: Callable[[], bool]
    ) -> bool:
        """False when its connection turned out to be no good before anything was sent."""
        stale = False

        def before(_: str, own_host: str, __: int, own_port: int) -> int:
            nonlocal stale
            stale = not self._is_quiet(own_host, own_port)
            return int(pycurl.PREREQFUNC_OK if not stale and begin() else pycurl.PREREQFUNC_ABORT)

        prepare(easy)
        easy.setopt(pycurl.PREREQFUNCTION, before)
        over = self._running[easy] = self._loop.create_future()
        self._multi.add_handle(easy)
        try:
            await over
            self._idle[easy.getinfo(pycurl.LOCAL_IP), easy.getinfo(pycurl.LOCAL_PORT)] = easy.getinfo(
                pycurl.ACTIVESOCKET
            )
        except CurlError:
            if not stale:
                raise
        finally:
            self._multi.remove_handle(easy)  # in the midst of an exchange: closes its connection
            del self._running[easy]
        return not stale

    def _is_quiet(self, own_host: str, own_port: int) -> bool:
        """Whether nothing has come and nothing has ended since a connection was free, as far as the kernel knows.

        libcurl looks only now and then, and takes what came for the next answer.
        """
        socket = self._idle.pop((own_host, own_port), None)
        if socket is None:
            return True  # a new one
        kernel = select.poll()
        kernel.register(socket, select.POLLIN)
        return not kernel.poll(0)

    def close(self) -> None:
        """Close all connections; those of exchanges in flight when these are over."""
        self._closed = True
        if self._in_use:
            return
        for easy in self._free:
            easy.close()
        self._free.clear()
        self._multi.close()
        for socket in list(self._watched):
            self._watch(pycurl.POLL_REMOVE, socket, self._multi, None)
        self._wake_after(-1)

    # for libcurl

    def _watch(self, wanted: int, socket: int, _: pycurl.CurlMulti, __: object) -> None:
        before = self._watched.pop(socket, pycurl.POLL_NONE)
        now = pycurl.POLL_NONE if wanted == pycurl.POLL_REMOVE else wanted
        if now:
            self._watched[socket] = now
        if now & pycurl.POLL_IN and not before & pycurl.POLL_IN:
            self._loop.add_reader(socket, self._act, socket, pycurl.CSELECT_IN)
        elif before & pycurl.POLL_IN and not now & pycurl.POLL_IN:
            self._loop.remove_reader(socket)
        if now & pycurl.POLL_OUT and not before & pycurl.POLL_OUT:
            self._loop.add_writer(socket, self._act, socket, pycurl.CSELECT_OUT)
        elif before & pycurl.POLL_OUT and not now & pycurl.POLL_OUT:
            self._loop.remove_writer(socket)

    def _wake_after(self, milliseconds: int) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if milliseconds >= 0:
            self._alarm = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, socket: int, ready: int) -> None:
        self._multi.socket_action(socket, ready)
        left = 1
        while left:
            left, done, failed = self._multi.info_read()
            for easy in done:
                self._end(easy, None)
            for easy, code, text in failed:
                self._end(easy, CurlError(code, text, easy.getinfo(pycurl.OS_ERRNO)))

    def _end(self, easy: pycurl.Curl, problem: CurlError | None) -> None:
        over = self._running[easy]
        if over.done():
            return  # cancelled in this turn of the loop
        if problem is None:
            over.set_result(None)
        else:
            over.set_exception(problem)

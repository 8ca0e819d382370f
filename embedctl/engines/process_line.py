"""The line between a command and one of its worker processes: a pair of sockets that nobody else can reach.

Either side learns at once that the other one is gone: the line ends. Frames are a length, and a pickled tuple:

    worker ▶ ("ask", number, method, arguments)   ("tell", method, arguments)   ("events", [event, …])   ("ended", …)
    command ▶ ("job", bytes)   ("answer", number, {…})   ("stop", error)   ("dead", [worker, …])

Both ends are processes of one user and one version, of which one has started the other.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from embedctl.errors import EmbedctlError, HostLost

_LENGTH = struct.Struct("!I")
_READ = 1 << 18


def framed(*frame: Any) -> bytes:
    """A frame as bytes."""
    body = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Frames out of bytes as they come."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def of(self, content: bytes) -> Iterator[tuple[Any, ...]]:
        """The frames that are whole now."""
        self._rest += content
        while len(self._rest) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._rest)[0]
            if len(self._rest) < end:
                return
            body = bytes(self._rest[_LENGTH.size : end])
            del self._rest[:end]
            yield pickle.loads(body)  # noqa: S301 - of the process at the other end, which is ours


def portable(error: EmbedctlError | None) -> EmbedctlError | None:
    """The error as it can be sent: one whose class cannot be made anew is a plain one with the same words and code."""
    if error is None:
        return None
    try:
        return pickle.loads(pickle.dumps(error))  # type: ignore[no-any-return]  # noqa: S301 - what was just made
    except (TypeError, AttributeError, pickle.PickleError):
        plain = EmbedctlError(error.message, hint=error.hint)
        plain.__dict__["exit_code"] = error.exit_code
        return plain


def lost() -> HostLost:
    """The command is gone."""
    return HostLost(
        "the command that started this worker is gone: nothing more is sent",
        hint="run the same command again: what was answered is kept",
    )


class WorkerEnd:
    """The worker's end: a `LimitsLine`. Frames are sent from any thread, and read by the loop of `listening`.

    Args:
        heard: Told of frames that are no answers.
        gone: Called once when the command is gone.
    """

    def __init__(self, end: socket.socket, heard: Callable[[tuple[Any, ...]], None], gone: Callable[[], None]) -> None:
        self._socket = end
        self._heard = heard
        self._gone = gone
        self._frames = Frames()
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._sending = threading.Lock()
        self._is_lost = False

    def first(self) -> tuple[Any, ...]:
        """The first frame; waits for it.

        Raises:
            HostLost: The command has ended.
        """
        while content := self._received(0):
            for frame in self._frames.of(content):
                return frame
        raise lost()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the running loop reads what comes."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket.fileno(), self._read)
        self._take(b"")  # what has come with the first frame
        try:
            yield
        finally:
            loop.remove_reader(self._socket.fileno())

    async def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            HostLost: The command has ended.
        """
        if self._is_lost:
            raise lost()
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]]
        self._asked[number] = answer = loop.create_future()
        try:
            self.say("ask", number, method, arguments)
            return await answer
        finally:
            self._asked.pop(number, None)

    def tell(self, method: str, *arguments: Any) -> None:
        """Say something that needs no answer."""
        self.say("tell", method, arguments)

    def say(self, *frame: Any) -> None:
        """Send a frame; when the command is gone, nobody hears it."""
        if not self._is_lost:
            with self._sending, suppress(OSError):
                self._socket.sendall(framed(*frame))

    def _read(self) -> None:
        content = self._received(socket.MSG_DONTWAIT)
        if content is None:
            return
        if not content:
            self._lose()
            return
        self._take(content)

    def _take(self, content: bytes) -> None:
        for frame in self._frames.of(content):
            if frame[0] != "answer":
                self._heard(frame)
            elif (waiting := self._asked.get(frame[1])) is not None and not waiting.done():
                waiting.set_result(frame[2])

    def _received(self, flags: int) -> bytes | None:
        """What has come; empty when the line has ended, None when nothing has come yet."""
        try:
            return self._socket.recv(_READ, flags)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _lose(self) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(lost())
        self._gone()

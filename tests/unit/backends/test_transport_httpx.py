"""libcurl as a transport of httpx, against httpx's own: the same server, the same requests, the same answers or none.

What httpx does otherwise: bytes behind an answer stay in its parser, and are the next request's answer. What libcurl
does otherwise: a length that is said twice stays twice among the headers; a length beyond 64 bits is none, and the body
lasts until the connection ends; of an answer that has no body (204, 304) it does not look at the length.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedctl.backends.http.bodies import body_of
from embedctl.backends.http.curls import Curls
from embedctl.errors import AnswerUnusable
from tests.unit.backends.test_transport import Act, free_port, hang, ok, reset, says
from tests.unit.backends.test_transport import serving as serve

Told = tuple[int, list[tuple[str, str]], bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server writes after a request.

    Attributes:
        pieces: With a pause of a millisecond before each but the first.
        end: "keep", "close" or "reset" the connection.
        behind: Whether there are bytes that belong to no answer.
        loose: Whether httpx may refuse what libcurl understands.

    What was not read yet when a connection is reset is lost, or is not: that is the kernel's, and a matter of moments.
    """

    pieces: tuple[bytes, ...]
    end: str = "keep"
    behind: bool = False
    loose: bool = False

    def __repr__(self) -> str:
        """For a test that fails: what a piece says again and again stands there once, with how often."""
        pieces = (
            re.sub(r"(.{1,2}?)\1{29,}", lambda run: f"{run[1]}…×{len(run[0])}", repr(piece)) for piece in self.pieces
        )
        return f"Answer(({', '.join(pieces)}), {self.end!r}, behind={self.behind}, loose={self.loose})"


LENGTHS = {
    "right": "Content-Length: {0}",
    "twice": "Content-Length: {0}\r\nContent-Length: {0}",
    "listed": "Content-Length: {0}, {0}",
    "long": "Content-Length: {0}0",
    "short": "Content-Length: {1}",
    "other": "Content-Length: {0}\r\nContent-Length: {1}",
    "negative": "Content-Length: -{0}",
    "huge": "Content-Length: 99999999999999999999999",
    "words": "Content-Length: many",
    "empty": "Content-Length:",
    "both": "Content-Length: {1}\r\nTransfer-Encoding: chunked",
    "chunked": "Transfer-Encoding: chunked",
    "unknown coding": "Transfer-Encoding: gzip, chunked",
    "none": "X-None: 1",
}
FINE = ("right", "twice", "listed", "chunked", "none", "both")
STATUSES = ("200 OK", "201", "206 Part", "400 Bad Request", "503 Busy", "204 No Content", "304 Not Modified", "200 ")
FIRST = ("", "", "", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n" * 3)
BEHIND = (b"", b"", b"", b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", b"x" * 400_000)
CHUNK_ENDS = (
    b"0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\nX-Trailer: 1\r\n\r\n",
    b"0;ext=1\r\n\r\n",
    b"",
    b"nonsense\r\n",
    b"-1\r\n",
)


def chunks(body: bytes, size: int, end: bytes) -> bytes:
    """A body in chunks of this size."""
    parts = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


@st.composite
def answers(draw: st.DrawFn, index: int) -> Answer:
    """Anything a server may say; its body is made of the request's own number."""
    framing = draw(st.sampled_from([*LENGTHS, *FINE * 3]))
    version = draw(st.sampled_from(["1.1"] * 5 + ["1.0"]))
    size = draw(st.sampled_from([0, 1, 2, 100, 16_000, 70_000, 600_000]) | st.integers(0, 5000))
    body = str(index).encode() * size
    status = draw(st.sampled_from(STATUSES))
    keep = draw(st.sampled_from(["X-Keep: 1"] * 4 + ["Connection: close", "Connection: keep-alive"]))
    head = f"HTTP/{version} {status}\r\nX-Of: {index}\r\nX-Of: again\r\n{keep}\r\n"
    head = draw(st.sampled_from(FIRST)) + head + LENGTHS[framing].format(size, size // 2) + "\r\n\r\n"
    end = draw(st.sampled_from(["keep", "keep", "close", "reset"]))
    chunk_end = draw(st.sampled_from(CHUNK_ENDS))
    behind = draw(st.sampled_from(BEHIND))
    if "chunked" in LENGTHS[framing]:
        body = chunks(body, draw(st.integers(size // 50 + 1, 100_000)), chunk_end)
    told = head.encode() + body + behind
    cut = draw(st.none() | st.none() | st.integers(0, len(told)))
    if cut is not None:
        told = told[:cut]
    # Who would wait for more is told that nothing comes.
    if end == "keep" and (cut is not None or framing in ("long", "huge", "none") or not chunk_end.startswith(b"0")):
        end = "close"
    places = sorted(draw(st.lists(st.integers(0, min(len(told), 300)) | st.integers(0, len(told)), max_size=5)))
    pieces = tuple(told[a:b] for a, b in zip([0, *places], [*places, len(told)], strict=True))
    bodiless = status.startswith(("204", "304"))
    stray = bool(behind) or bodiless or framing in ("short", "both")
    return Answer(pieces, end, behind=stray, loose=framing == "huge" or (bodiless and framing not in FINE))


class Server:
    """Answers request /N with the Nth answer."""

    def __init__(self, script: list[Answer]) -> None:
        self.script = script
        self.port = 0
        self.said = [asyncio.Event() for _ in script]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = "keep"
        while end == "keep":
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
            except (ConnectionError, asyncio.IncompleteReadError):
                break
            index = int(head.split()[1][1:])
            end = self.script[index].end
            with suppress(ConnectionError):
                await self.say(self.script[index], writer)
            if end == "reset":
                with suppress(OSError):  # the client may have closed it
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            elif end == "close":
                writer.close()
            await asyncio.sleep(0.001)  # until it is closed
            self.said[index].set()
        writer.close()

    async def say(self, answer: Answer, writer: asyncio.StreamWriter) -> None:
        for number, piece in enumerate(answer.pieces):
            if number:
                await asyncio.sleep(0.001)
            writer.write(piece)
            await writer.drain()
        if answer.end != "keep":
            await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(script: list[Answer]) -> AsyncIterator[Server]:
    server = Server(script)
    before = asyncio.all_tasks()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        if left := asyncio.all_tasks() - before:
            await asyncio.wait(left, timeout=5)


async def asked(client: httpx.AsyncBaseTransport, server: Server, index: int, *, as_httpx: bool) -> Told | str:
    """What a client makes of the answer: the same whichever it is, or that it failed."""
    request = httpx.Request(
        "POST",
        f"http://127.0.0.1:{server.port}/{index}",
        content=b"hi",
        extensions={"written": lambda: None, "timeout": dict.fromkeys(("pool", "connect", "read", "write"), 60)},
    )
    try:
        async with asyncio.timeout(60):
            response = await client.handle_async_request(request)
            try:
                if isinstance(client, Curls) and not as_httpx:
                    headers = {name.lower(): value for name, value in response.headers.items()}
                    body = await body_of(response, headers, 10_000_000, "here")
                else:
                    body = await response.aread()
            finally:
                await response.aclose()
    except (httpx.TransportError, AnswerUnusable):
        told: Told | str = "failed"
    except TimeoutError:
        told = "waits for ever"
    else:
        told = response.status_code, response.headers.multi_items(), body
    with suppress(TimeoutError):  # httpx may have failed before it asked
        await asyncio.wait_for(server.said[index].wait(), 0.5)
    return told


async def played(
    made: Callable[[], httpx.AsyncBaseTransport], script: list[Answer], *, as_httpx: bool = True
) -> list[Told | str]:
    async with serving(script) as server:
        client = made()
        try:
            return [await asked(client, server, index, as_httpx=as_httpx) for index in range(len(script))]
        finally:
            await client.aclose()


def whole(index: int) -> Answer:
    return Answer((b"HTTP/1.1 200 OK\r\nX-Of: %d\r\nContent-Length: 2\r\n\r\n%d%d" % (index, index, index),))


def without_length(told: Told | str) -> Told | str:
    """Lengths left out of the headers: libcurl repeats what was said, httpx says it once."""
    if isinstance(told, str):
        return told
    return told[0], [(name, value) for name, value in told[1] if name != "content-length"], told[2]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(script=st.tuples(answers(0), answers(1)), as_httpx=st.booleans())
def test_an_answer_is_what_httpx_makes_of_it(script: tuple[Answer, ...], as_httpx: bool) -> None:
    """Whatever a server says: status, headers and body are those of httpx, or both fail; the next answer is its own."""
    told = [*script, whole(2)]

    ours = asyncio.run(played(lambda: Curls(4), told, as_httpx=as_httpx))
    theirs = asyncio.run(played(lambda: httpx.AsyncHTTPTransport(trust_env=False), told))

    stray = False
    for index, answer in enumerate(told):
        one = ours[index]
        same = without_length(one) == without_length(theirs[index])
        lost = answer.end == "reset" and "failed" in (one, theirs[index])
        assert same or stray or lost or (answer.loose and theirs[index] == "failed"), f"answer {index}"
        assert one != "waits for ever"
        if isinstance(one, tuple):
            assert ("x-of", str(index)) in one[1] or not one[1]
        stray = stray or answer.behind
    assert isinstance(ours[2], tuple)
    assert (ours[2][0], ours[2][2]) == (200, b"22")


HEADS = (
    b"HTTP/1.1 200 OK\r\nX-Of: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\nX-Of: 0\n\n",
)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_ends_anywhere_is_no_answer(head: bytes) -> None:
    """A connection that ends within the head of an answer has given none, whichever byte was the last."""
    script = [Answer((head[:cut],), "close") for cut in range(len(head))]

    assert asyncio.run(played(lambda: Curls(1), script)) == ["failed"] * len(script)


# ── as httpx's own client uses it ────────────────────────────────────────────────────────────────────────────────────


def test_a_client_of_httpx_speaks_through_it() -> None:
    """A client of httpx works over libcurl: what it asks is sent as it says, no header is added, the answer is read."""

    async def main() -> None:
        async with serve(says(ok(b'{"a":1}', "HTTP/odd: 1", "X-Two: a", "x-two: b"))) as server:
            async with httpx.AsyncClient(transport=Curls(1), headers={"User-Agent": "us"}) as client:
                answer = await client.post(server.url("/v1?a=b"), content=b"{}", headers={"X-Empty": ""})

            assert answer.json() == {"a": 1}
            assert answer.headers.get_list("x-two") == ["a", "b"]
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            line, *headers = head.decode().lower().split("\r\n")
            assert (line, body) == ("post /v1?a=b http/1.1", b"{}")
            assert {header.partition(":")[0] for header in headers} == {
                "host", "accept", "accept-encoding", "connection", "user-agent", "x-empty", "content-length",
            }  # fmt: skip

    asyncio.run(main())


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (says(close=True), httpx.RemoteProtocolError),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", close=True), httpx.RemoteProtocolError),
        (says(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000), httpx.RemoteProtocolError),
        (reset, httpx.ReadError),
        (None, httpx.ConnectError),
    ],
)
def test_what_fails_is_an_error_of_httpx(act: Act | None, error: type[Exception]) -> None:
    """Whatever breaks is raised as the class that httpx names it by, and a method that is not spoken is, too."""

    async def main() -> None:
        async with serve(act or hang) as server, httpx.AsyncClient(transport=Curls(1), trust_env=False) as client:
            url = server.url() if act else f"http://127.0.0.1:{free_port()}/"
            with pytest.raises(httpx.TransportError) as caught:
                await client.get(url)
            with pytest.raises(httpx.LocalProtocolError):
                await client.put(url)

        assert type(caught.value) is error

    asyncio.run(main())


def test_a_body_that_nobody_reads_waits_at_the_server() -> None:
    """Of a body that is not read no more than a few MB are taken; read at last, it comes whole; closed, it is left."""
    size = 40_000_000

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 100_000):
            writer.write(b"x" * 100_000)
            await writer.drain()

    async def main() -> None:
        async with serve(act) as server:
            client = Curls(2)
            for reads in (True, False):
                request = httpx.Request("GET", server.url())
                tracemalloc.start()
                try:
                    response = await client.handle_async_request(request)
                    await asyncio.sleep(0.3)
                    peak = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                if reads:
                    pieces = [len(piece) async for piece in response.aiter_raw()]
                    assert sum(pieces) == size
                await response.aclose()

                assert peak < 12_000_000
            await client.aclose()

    asyncio.run(main())

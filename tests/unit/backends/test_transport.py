"""The transport against a real server on loopback that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import errno
import gzip
import logging
import socket
import ssl
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pycurl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.backends.http import curls, urls
from embedctl.backends.http import transport as module
from embedctl.backends.http.curl_codes import httpx_error
from embedctl.backends.http.transport import HttpResponse, Transport, translated
from embedctl.errors import (
    AnswerLost,
    AnswerUnusable,
    ConfigurationInvalid,
    EmbedctlError,
    NotSent,
    ProviderError,
    RedirectRefused,
)
from embedctl.providers._contract import HttpRequest

KEY = "sk-canary-0123456789abcdef"
Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Reads requests off its connections and lets `act` answer each one."""

    def __init__(self, act: Act) -> None:
        self.act = act
        self.port = 0
        self.connections = 0
        self.requests: list[bytes] = []

    def url(self, path: str = "/v1/embeddings") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                await self.act(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(act: Act, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(act)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if "Server.serve" in repr(task.get_coro()):
                task.cancel()
                await asyncio.wait([task])


@asynccontextmanager
async def transport(**options: Any) -> AsyncIterator[Transport]:
    sender = Transport(environ=options.pop("environ", {}), **options)
    try:
        yield sender
    finally:
        await sender.aclose()


def says(*parts: bytes, close: bool = False) -> Act:
    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if close:
            writer.close()

    return act


def ok(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    framed = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def post(url: str, body: bytes = b'{"input":["a"]}') -> HttpRequest:
    return HttpRequest(url=url, body=body, headers={"authorization": f"Bearer {KEY}", "x-api-key": KEY})


def exchange(act: Act, **send: Any) -> tuple[HttpResponse, Server]:
    """One request to a server that acts so."""

    async def main() -> tuple[HttpResponse, Server]:
        async with serving(act) as server, transport() as sender:
            return await sender.send(post(server.url()), **send), server

    return asyncio.run(main())


def failure(act: Act, **send: Any) -> EmbedctlError:
    with pytest.raises(EmbedctlError) as caught:
        exchange(act, **send)
    return caught.value


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(20)


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_comes_whole_with_its_status_and_lower_case_headers() -> None:
    """An answer comes whole, with its status, its headers in lower case and the time it took."""
    answer, server = exchange(says(ok(b'{"a":1}', "X-Request-ID: r1", "X-Twice: a", "X-Twice: b")))

    assert (answer.status, answer.body) == (200, b'{"a":1}')
    assert answer.headers["x-request-id"] == "r1"
    assert answer.headers["x-twice"] == "a, b"
    assert answer.seconds > 0
    assert type(answer.body) is bytes
    assert server.requests[0].endswith(b'{"input":["a"]}')


def test_a_request_says_what_it_was_told_and_asks_for_no_encoding() -> None:
    """A request carries the given headers and asks for an identity encoding."""
    _, server = exchange(says(ok(b"{}")))
    head = server.requests[0].lower()

    assert b"accept-encoding: identity" in head
    assert b"authorization: bearer sk-canary" in head
    assert head.startswith(b"post /v1/embeddings http/1.1\r\nhost: 127.0.0.1:")


def test_a_get_sends_no_body() -> None:
    """A GET (a server's own description) goes without a body and comes back like any answer."""

    async def main() -> None:
        async with serving(says(ok(b'{"max_client_batch_size":32}'))) as server, transport() as sender:
            answer = await sender.send(HttpRequest(url=server.url("/info"), method="GET"))

            assert answer.body == b'{"max_client_batch_size":32}'
            assert server.requests[0].startswith(b"GET /info HTTP/1.1")
            assert b"content-length" not in server.requests[0].lower()

    run(main)


@pytest.mark.parametrize("status", ["400 Bad", "401 No", "429 Slow", "500 Oops", "529 Busy"])
def test_a_status_is_the_protocol_s_to_judge(status: str) -> None:
    """Any status but a redirect is an answer: what it means, the protocol decides."""
    answer, _ = exchange(says(ok(b"why", "Retry-After: 7", status=status)))

    assert answer.status == int(status[:3])
    assert (answer.body, answer.headers["retry-after"]) == (b"why", "7")


@settings(max_examples=12, deadline=None)
@given(body=st.binary(max_size=300_000), size=st.integers(1, 70_000))
def test_a_body_arrives_byte_for_byte(body: bytes, size: int) -> None:
    """A body arrives byte for byte: with a length, in chunks of any size, or until the connection closes."""
    size = max(size, len(body) // 200 + 1)
    plain = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body

    assert exchange(says(ok(body)))[0].body == body
    assert exchange(says(chunked(body, size)))[0].body == body
    assert exchange(says(plain, close=True))[0].body == body


def test_a_connection_is_used_again() -> None:
    """A connection serves one request after another."""

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as server, transport() as sender:
            for _ in range(5):
                await sender.send(post(server.url()))

            assert (len(server.requests), server.connections) == (5, 1)

    run(main)


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    """A connection that the server closed while idle costs nothing: the next request takes a new one."""

    async def main() -> None:
        async with serving(says(ok(b"{}"), close=True)) as server, transport() as sender:
            for _ in range(3):
                await sender.send(post(server.url()))
                await asyncio.sleep(0.02)

            assert server.connections == 3

    run(main)


# ── encodings and sizes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_an_encoding_that_was_not_asked_for_is_decoded(name: str, encode: Callable[[bytes], bytes]) -> None:
    """A server that compresses although identity was asked is understood."""
    body = b'{"embedding":[0.25,0.5]}' * 5000
    answer, _ = exchange(says(ok(encode(body), f"Content-Encoding: {name}")))
    short, _ = exchange(says(ok(encode(b"{}"), f"Content-Encoding: {name}")))

    assert answer.body == body
    assert short.body == b"{}"


def test_an_unknown_encoding_is_an_unusable_answer() -> None:
    """An encoding that we cannot decode makes the answer unusable, and says its name."""
    problem = failure(says(ok(b"\x0b\x02\x80", "Content-Encoding: br")))

    assert isinstance(problem, AnswerUnusable)
    assert "br" in problem.message


def test_a_broken_encoding_is_an_unusable_answer() -> None:
    """A body that is not what its encoding says makes the answer unusable."""
    assert isinstance(failure(says(ok(b"this is no gzip", "Content-Encoding: gzip"))), AnswerUnusable)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ok(b"x" * 100_001), id="announced"),
        pytest.param(chunked(b"x" * 100_001, 5000), id="chunked"),
        pytest.param(ok(gzip.compress(b"x" * 40_000_000), "Content-Encoding: gzip"), id="bomb"),
    ],
)
def test_an_answer_larger_than_the_cap_is_refused(answer: bytes) -> None:
    """An answer that is or decodes to more than `max_bytes` is refused, a bomb before it is unpacked."""
    problem = failure(says(answer), max_bytes=100_000)

    assert isinstance(problem, AnswerUnusable)
    assert "larger than 100000 bytes" in problem.message


def test_a_bomb_is_never_unpacked() -> None:
    """Of 100 MB in 100 kB of gzip, no more is unpacked than the cap allows."""
    bomb = ok(gzip.compress(b"x" * 100_000_000, 1), "Content-Encoding: gzip")
    tracemalloc.start()
    try:
        failure(says(bomb), max_bytes=100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 10_000_000


def test_an_answer_of_exactly_the_cap_is_taken() -> None:
    """An answer of exactly `max_bytes` is taken."""
    assert len(exchange(says(ok(b"x" * 100_000)), max_bytes=100_000)[0].body) == 100_000


def test_endless_chunks_are_cut_off() -> None:
    """A server that never stops sending is stopped at the cap."""

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"y" * 65536 + b"\r\n")
            await writer.drain()

    assert isinstance(failure(endless, max_bytes=1_000_000), AnswerUnusable)


def test_a_long_error_is_cut_not_refused() -> None:
    """An error's text is kept up to one MiB: its status matters, not its length."""
    answer, _ = exchange(says(ok(b"e" * 3_000_000, status="503 Busy")))

    assert answer.status == 503
    assert answer.body == b"e" * module.MAX_ERROR_BYTES


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def leaves(kind: type[Exception]) -> set[type[Exception]]:
    """The errors that an error is the kind of, without those that are kinds themselves."""
    below = kind.__subclasses__()
    return set().union(*map(leaves, below)) if below else {kind}


def test_every_error_of_httpx_has_words() -> None:
    """Every error that httpx can raise is in the table; a new one fails here first."""
    assert leaves(httpx.HTTPError) - set(module.WORDS) == set()


@pytest.mark.parametrize("kind", sorted(module.WORDS, key=lambda kind: kind.__name__))
def test_what_was_written_decides_the_class(kind: type[Exception]) -> None:
    """Before the first byte is written a failure is NotSent, after it AnswerLost; the words name only the host."""
    problem = kind.__new__(kind)
    Exception.__init__(problem, f"secret {KEY} https://h/?key={KEY}")
    unsent, lost = (translated(problem, "api.example", written=written) for written in (False, True))

    assert (type(unsent), type(lost)) == (NotSent, AnswerLost)
    assert (unsent.billable, lost.billable) == ("no", "unknown")
    assert "api.example" in unsent.message
    assert KEY not in unsent.message + lost.message


@pytest.mark.parametrize("number", [0, errno.ECONNREFUSED, errno.ECONNRESET])
@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("code", sorted({code for name, code in vars(pycurl).items() if name.startswith("E_")}))
def test_every_error_of_libcurl_is_one_of_httpx(code: int, proxied: bool, number: int) -> None:
    """Whatever libcurl says becomes an error that httpx raises itself, and one of ours that names only the host."""
    for sent in (False, True):
        problem = httpx_error(code, f"{KEY} https://h/?key={KEY}: why", number, sent=sent, proxied=proxied)
        ours = translated(problem, "api.example", written=sent)

        assert type(problem) in leaves(httpx.TransportError)
        assert type(ours) is (AnswerLost if sent else NotSent)
        assert "api.example" in ours.message
        assert KEY not in ours.message + str(ours.hint)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(reset, id="reset before any byte"),
        pytest.param(says(close=True), id="closed before any byte"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", close=True), id="cut in the body"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", close=True), id="cut chunk"),
        pytest.param(says(b"HTTP/1.1 20", close=True), id="cut in the first line"),
        pytest.param(says(b"HTTP/1.1 400 Bad\r\nX-A: b\r\nContent-Le", close=True), id="cut in the head"),
        pytest.param(says(b"HTTP/1.1 103 Early\r\n\r\n", close=True), id="no answer behind an early one"),
        pytest.param(says(b"SSH-2.0-OpenSSH\r\n\r\n", close=True), id="not HTTP"),
        pytest.param(says(ok(b"{}", "X-Long: " + "a" * 200_000)), id="200 kB header"),
        pytest.param(says(ok(b"{}", *(f"X-{n}: {n}" for n in range(20_000)))), id="20,000 headers"),
    ],
)
def test_an_exchange_that_breaks_off_is_lost(act: Act) -> None:
    """Whatever breaks after the request was written is AnswerLost: perhaps billed, never thought free."""
    problem = failure(act)

    assert type(problem) is AnswerLost
    assert problem.message.startswith("127.0.0.1:")
    assert problem.__cause__ is None
    assert problem.__suppress_context__


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "told",
    [
        OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        OK + b"Content-Length: 2, 2\r\n\r\n{}",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"Content-Length: 2\r\nX-A: b\r\n Content-Encoding: gzip\r\n\r\n{}",
        CHUNKED + b"2;ext=1\r\n{}\r\n0\r\nContent-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_unusual_http_is_understood(told: bytes) -> None:
    """Lengths said twice or beside chunks, folded lines and lines behind the chunks: the body is what HTTP says."""
    assert exchange(says(told), timeout_s=60)[0].body == b"{}"


@pytest.mark.parametrize(
    "told",
    [
        OK + b"Content-Length: 2\r\nContent-Length: 1\r\n\r\n{}",
        OK + b"Content-Length: -2\r\n\r\n{}",
        OK + b"Content-Length: many\r\n\r\n{}",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
        OK + b"Content-Length: 2\r\nX: a\0b\r\n\r\n{}",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nHTTP/1.1 500 x\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9000,
    ],
)
def test_what_is_not_http_is_no_answer(told: bytes) -> None:
    """Lengths that contradict or are none, broken chunks, what never comes to an answer: none of it is believed."""
    assert isinstance(failure(says(told, close=True), timeout_s=60), AnswerLost | AnswerUnusable)


def test_an_open_body_that_is_reset_is_lost() -> None:
    """A body whose end only the connection tells is whole when it ends, not when it is reset."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n[1,")
        await asyncio.sleep(0.05)
        await reset(reader, writer)

    assert type(failure(act, timeout_s=60)) is AnswerLost


def test_a_body_cut_without_a_length_is_passed_on() -> None:
    """A body whose end cannot be known is passed on as it is: reading it decides."""
    answer, _ = exchange(says(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"data":[', close=True))

    assert answer.body == b'{"data":['


def test_a_slow_drip_is_stopped_by_the_total_deadline() -> None:
    """A server that is silent, or sends a byte now and then, is stopped by the deadline of the whole exchange."""

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        for _ in range(200):
            writer.write(b"z")
            await writer.drain()
            await asyncio.sleep(0.05)

    for act in (drip, hang):
        problem = failure(act, timeout_s=2)

        assert type(problem) is AnswerLost
        assert "took more than 2 s" in problem.message


def test_a_request_that_is_not_read_is_lost() -> None:
    """A server that never reads a large request is left after the deadline, and the attempt is AnswerLost."""

    async def main() -> None:
        stop = asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await stop.wait()
            writer.close()

        listener = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1024)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        async with transport() as sender:
            with pytest.raises(AnswerLost):
                await sender.send(post(url, b"x" * 50_000_000), timeout_s=2)
        stop.set()
        listener.close()
        await asyncio.sleep(0.05)

    run(main)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("http://127.0.0.1:{port}/v1", "refuses the connection", id="refused"),
        pytest.param("https://nowhere.invalid/v1", "cannot resolve nowhere.invalid", id="dns"),
        pytest.param("https://127.0.0.1:{port}/v1", "refuses the connection", id="refused before TLS"),
    ],
)
def test_what_never_left_is_not_sent(url: str, words: str) -> None:
    """A host that cannot be resolved or reached is NotSent, free of charge, and said so."""

    async def main() -> None:
        async with transport() as sender:
            with pytest.raises(NotSent) as caught:
                await sender.send(post(url.format(port=free_port())), timeout_s=60)

        assert words in caught.value.message
        assert caught.value.hint

    run(main)


@pytest.mark.parametrize("host", ["bücher.invalid", "bücher.invalid:8443"])
def test_a_name_beyond_ascii_is_asked_for(host: str) -> None:
    """A host's name in any script is resolved; one that is none is a configuration error."""

    async def main() -> None:
        async with transport() as sender:
            with pytest.raises(NotSent, match="cannot resolve"):
                await sender.send(post(f"https://{host}/v1/ü"), timeout_s=60)
            with pytest.raises(ConfigurationInvalid, match="cannot be asked"):
                await sender.send(post(f"https://ü..{host}/v1"), timeout_s=60)

    run(main)


def test_no_tls_on_the_other_side_is_not_sent() -> None:
    """A server that does not speak TLS never saw the request."""

    async def garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 plain http here\r\n\r\n")
        writer.close()

    async def main() -> None:
        listener = await asyncio.start_server(garble, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        async with transport() as sender:
            with pytest.raises(NotSent, match="TLS"):
                await sender.send(post(url), timeout_s=60)
        listener.close()

    run(main)


# ── redirects, certificates, proxies ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_nothing_follows_it(status: int) -> None:
    """A redirect is an error that names the host; neither key nor texts reach it."""

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as elsewhere:
            location = f"Location: http://user:pw@127.0.0.1:{elsewhere.port}/steal?key={KEY}"
            async with serving(says(ok(b"", location, status=f"{status} Moved"))) as server, transport() as sender:
                with pytest.raises(RedirectRefused) as caught:
                    await sender.send(post(server.url()))

            assert f"redirects to 127.0.0.1:{elsewhere.port};" in caught.value.message
            assert caught.value.status == status
            assert KEY not in caught.value.message
            assert elsewhere.requests == []

    run(main)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/v2/embeddings", "to itself"),
        ("http://[::1", "cannot be read"),
        ("https://" + "h" * 5000, "to " + "h" * 100 + ";"),
    ],
)
def test_a_redirect_to_nonsense_is_refused_as_well(location: str, words: str) -> None:
    """A Location that is relative, broken or endless is refused in the same way."""
    problem = failure(says(ok(b"", f"Location: {location}", status="307 Moved")))

    assert isinstance(problem, RedirectRefused)
    assert words in problem.message


@pytest.mark.parametrize("key", [f"{KEY}\n", f"“{KEY}”", f"{KEY}\r\nHost: evil", f"{KEY}\x00"])
def test_a_key_that_cannot_be_a_header_is_a_configuration_error(key: str) -> None:
    """A key with a line break or a character beyond ASCII is said to be so, is not repeated, and nothing is sent."""

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as server, transport() as sender:
            with pytest.raises(ConfigurationInvalid, match="authorization") as caught:
                await sender.send(HttpRequest(url=server.url(), headers={"authorization": f"Bearer {key}"}))

            assert KEY not in repr(caught.value) + str(caught.value.__context__)
            assert server.connections == 0

    run(main)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, made on the spot."""
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here"
    subprocess.run(
        [
            *command.split(),
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:far.example",
            "-keyout",
            file,
            "-out",
            f"{file}.crt",
        ],
        check=True,
        capture_output=True,
    )
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


def tls_server(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_that_nobody_vouches_for_is_named(certificate: Path) -> None:
    """An untrusted certificate is NotSent, says so, and says how to trust it."""

    async def main() -> None:
        async with serving(says(ok(b"{}")), tls_server(certificate)) as server, transport() as sender:
            with pytest.raises(NotSent) as caught:
                await sender.send(post(f"https://127.0.0.1:{server.port}/"))

            assert "certificate of 127.0.0.1" in caught.value.message
            assert "self-signed" in caught.value.message
            assert caught.value.hint is not None
            assert "ca_file" in caught.value.hint
            assert server.requests == []

    run(main)


def test_a_ca_file_is_trusted_beside_the_public_ones(certificate: Path) -> None:
    """A certificate named by `ca_file` is trusted."""

    async def main() -> None:
        async with (
            serving(says(ok(b"{}")), tls_server(certificate)) as server,
            transport(ca_file=Path(f"{certificate}.crt")) as sender,
        ):
            assert (await sender.send(post(f"https://127.0.0.1:{server.port}/"))).status == 200
            trusted = sender._certificates()
            assert trusted is not None
            assert trusted.count(b"BEGIN CERTIFICATE") > 10

    run(main)


def test_a_ca_file_that_is_none_is_a_configuration_error(tmp_path: Path) -> None:
    """A `ca_file` that cannot be read is named."""

    async def main() -> None:
        async with transport(ca_file=tmp_path / "no.pem") as sender:
            with pytest.raises(ConfigurationInvalid, match=r"no\.pem"):
                await sender.send(post("https://127.0.0.1:9/"))

    run(main)


def test_a_proxy_never_sees_loopback() -> None:
    """Requests to this machine go straight there, whatever the environment says about proxies."""

    async def main() -> None:
        async with serving(says(ok(b"proxied"))) as proxy, serving(says(ok(b"direct"))) as server:
            environ = {name: proxy.url("") for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")}
            async with transport(environ=environ) as sender:
                assert (await sender.send(post(server.url()))).body == b"direct"

            assert proxy.requests == []

    run(main)


def test_a_proxy_never_sees_loopback_over_tls(certificate: Path) -> None:
    """Https to this machine goes straight there too."""

    async def main() -> None:
        async with serving(says(ok(b"direct")), tls_server(certificate)) as server, serving(hang) as proxy:
            options = {"environ": {"HTTPS_PROXY": proxy.url("")}, "ca_file": Path(f"{certificate}.crt")}
            async with transport(**options) as sender:
                answer = await sender.send(post(f"https://127.0.0.1:{server.port}/"), timeout_s=60)

            assert (answer.body, proxy.connections) == (b"direct", 0)

    run(main)


def test_a_proxy_is_asked_for_a_tunnel_and_never_told_the_key() -> None:
    """Https goes through the proxy as a tunnel; a proxy that refuses means NotSent, and it has not seen the key."""

    async def main() -> None:
        async with serving(says(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", close=True)) as proxy:
            async with transport(environ={"HTTPS_PROXY": proxy.url("")}) as sender:
                with pytest.raises(NotSent, match="proxy"):
                    await sender.send(post("https://api.example/v1"))

                assert sender.proxy("https://api.example/v1") == f"127.0.0.1:{proxy.port}"
                assert sender.proxy("http://127.0.0.1/v1") is None

            assert proxy.requests[0].startswith(b"CONNECT api.example:443 HTTP/1.1")
            assert KEY.encode() not in b"".join(proxy.requests)

    run(main)


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def tunnel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, told: bytes = ESTABLISHED
) -> None:
    """Take a connection's bytes to a port of this machine and back, whatever host was asked for."""
    writer.write(told)
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await source.read(65536):
            target.write(piece)
            await target.drain()
        target.write_eof()

    try:
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    finally:
        far_writer.close()
        await far_writer.wait_closed()


def test_an_exchange_through_a_proxy_is_one_with_the_server(certificate: Path) -> None:
    """Through a tunnel the server's own certificate counts, large answers come whole, and the tunnel is used again."""
    body = b"v" * 3_000_000

    async def main() -> None:
        async with serving(says(ok(body)), tls_server(certificate)) as server:
            async with serving(lambda reader, writer: tunnel(reader, writer, server.port)) as proxy:
                environ = {"HTTPS_PROXY": f"http://me:p%40%2541@127.0.0.1:{proxy.port}"}
                async with transport(environ=environ) as sender:
                    with pytest.raises(NotSent, match=r"certificate of far\.example"):
                        await sender.send(post("https://far.example:8443/v1"), timeout_s=60)
                async with transport(environ=environ, ca_file=Path(f"{certificate}.crt")) as sender:
                    answers = [await sender.send(post("https://far.example:8443/v1"), timeout_s=60) for _ in range(3)]
                asked = proxy.requests[-1]

            assert [answer.body for answer in answers] == [body] * 3
            assert (len(proxy.requests), len(server.requests)) == (2, 3)
            assert asked.startswith(b"CONNECT far.example:8443 HTTP/1.1\r\n")
            assert b"proxy-authorization: basic bwu6cealnde=" in asked.lower()
            assert KEY.encode() not in asked

    run(main)


def test_a_proxy_that_hangs_means_not_sent() -> None:
    """The tunnel's own handshake is not the request: a proxy that never answers it means NotSent."""

    async def main() -> None:
        async with serving(hang) as proxy, transport(environ={"https_proxy": proxy.url("")}) as sender:
            with pytest.raises(NotSent):
                await sender.send(post("https://api.example/v1"), timeout_s=0.3)

    run(main)


def test_a_proxy_that_is_no_url_is_a_configuration_error() -> None:
    """A proxy that cannot be used is said so, without its password."""

    async def main() -> None:
        async with transport(environ={"ALL_PROXY": f"gopher://me:{KEY}@proxy"}) as sender:
            with pytest.raises(ConfigurationInvalid) as caught:
                await sender.send(post("https://api.example/v1"))

        assert KEY not in str(caught.value)

    run(main)


def test_a_netrc_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No password is taken from a netrc file."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as server, transport() as sender:
            await sender.send(HttpRequest(url=server.url(), body=b"{}"))

            assert b"authorization" not in server.requests[0].lower()

    run(main)


# ── connections ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_answer_is_held_once() -> None:
    """The bytes of a large answer go from the socket to where they stay: at no time are they there twice."""
    size = 24_000_000

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(240):
            writer.write(b"x" * 100_000)
            await writer.drain()

    async def main() -> int:
        async with serving(act) as server, transport() as sender:
            tracemalloc.start()
            try:
                answer = await sender.send(post(server.url()))
                assert len(answer.body) == size
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert asyncio.run(main()) < size * 3 // 2


def test_an_answer_may_come_before_the_request_is_read() -> None:
    """A server that refuses a large request by its first bytes, and hangs up, is heard."""

    async def main() -> None:
        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ok(b"too much", "Connection: close", status="413 Too Large"))
            await writer.drain()
            await heard.wait()
            writer.close()

        heard = asyncio.Event()
        listener = await asyncio.start_server(act, "127.0.0.1", 0, limit=4096)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        async with transport() as sender:
            answer = await sender.send(post(url, b"x" * 30_000_000), timeout_s=60)
        heard.set()
        listener.close()
        await asyncio.sleep(0.05)

        assert (answer.status, answer.body) == (413, b"too much")

    run(main)


def test_a_request_that_was_answered_half_sent_takes_its_connection() -> None:
    """A connection on which a request still waits to be read is not used again, whatever the answer says."""

    async def main() -> None:
        heads = 0

        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal heads
            heads += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ok(b"too much", status="413 Too Large"))
            await writer.drain()
            await heard.wait()
            writer.close()

        heard = asyncio.Event()
        listener = await asyncio.start_server(act, "127.0.0.1", 0, limit=4096)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        async with transport() as sender:
            for _ in range(2):
                assert (await sender.send(post(url, b"x" * 30_000_000), timeout_s=60)).status == 413
        heard.set()
        listener.close()
        await asyncio.sleep(0.05)

        assert heads == 2

    run(main)


def test_what_is_no_answer_yet_is_waited_through() -> None:
    """An informational answer (100, 103) is not the answer."""
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    assert exchange(says(early, ok(b"{}")))[0].body == b"{}"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ok(b"{}", "Connection: close"), id="says so"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", id="old"),
        pytest.param(ok(b"{}") + b"HTTP/1.1 200 OK\r\n", id="says more than was asked"),
        pytest.param(ok(b"", status="500 Oops") + ok(b"{}"), id="answers twice"),
    ],
)
def test_a_connection_that_cannot_be_trusted_is_not_used_again(answer: bytes) -> None:
    """What a server says beyond its answer is never taken for the answer to the next request."""

    async def main() -> None:
        async with serving(says(answer)) as server, transport() as sender:
            first = await sender.send(post(server.url()))
            server.act = says(ok(b"second"))
            second = await sender.send(post(server.url()))

            assert first.body in (b"{}", b"")
            assert (second.body, server.connections) == (b"second", 2)

    run(main)


def test_a_free_connection_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that has been free for long is closed rather than used: the server may just be closing it."""
    monkeypatch.setattr(curls, "KEEPALIVE_S", 1)

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as server, transport() as sender:
            await sender.send(post(server.url()))
            await asyncio.sleep(2.1)  # libcurl counts whole seconds
            await sender.send(post(server.url()))

            assert server.connections == 2

    run(main)


def test_a_name_that_leads_to_a_link_local_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may lead to 169.254.169.254 as well: what was connected to is looked at before a byte is written."""
    assert urls.is_link_local("169.254.169.254")
    assert urls.is_link_local("fe80::1%eth0")
    assert urls.is_link_local("::ffff:169.254.169.254")
    assert not urls.is_link_local("127.0.0.1")
    monkeypatch.setattr(urls, "is_link_local", lambda address: address in ("127.0.0.1", "::1"))

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as server, transport() as sender:
            with pytest.raises(NotSent, match=r"localhost:.* leads to a link-local address"):
                await sender.send(post(f"http://localhost:{server.port}/"))

            assert server.requests == []

    run(main)


def test_no_more_exchanges_than_connections_are_in_flight() -> None:
    """Our own gate keeps the exchanges in flight at the number of connections, and all of them are served."""
    in_flight = most = 0

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.005)
        in_flight -= 1
        writer.write(ok(b"{}"))
        await writer.drain()

    async def main() -> None:
        async with serving(slow) as server, transport(connections=3) as sender:
            answers = await asyncio.gather(*(sender.send(post(server.url())) for _ in range(40)))

            assert [answer.status for answer in answers] == [200] * 40
            assert server.connections <= 3

    run(main)

    assert most == 3


def test_waiting_for_a_connection_does_not_count_as_slowness() -> None:
    """The time in front of our own gate is not the provider's: it does not count against the deadline."""

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1)
        writer.write(ok(b"{}"))

    async def main() -> None:
        async with serving(slow) as server, transport(connections=1) as sender:
            await asyncio.gather(*(sender.send(post(server.url()), timeout_s=3.5) for _ in range(4)))

    run(main)


def test_after_600_cancelled_requests_the_next_ones_work() -> None:
    """Six hundred cancelled exchanges, at every stage, leave a transport that works; httpx's own pool would not."""

    async def main() -> None:
        calm = asyncio.Event()

        async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not calm.is_set():
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
                await writer.drain()
                await calm.wait()
            else:
                writer.write(ok(b"{}"))

        async with serving(act) as server, transport(connections=5) as sender:
            for wave in range(60):
                tasks = [asyncio.create_task(sender.send(post(server.url()))) for _ in range(10)]
                for _ in range(wave % 12):
                    await asyncio.sleep(0)
                if wave % 6 == 5:
                    await asyncio.sleep(0.005)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

                assert all(task.cancelled() for task in tasks)
            calm.set()
            async with asyncio.timeout(5):
                answers = await asyncio.gather(*(sender.send(post(server.url())) for _ in range(10)))

            assert [answer.status for answer in answers] == [200] * 10

    run(main)


def test_a_cancelled_exchange_takes_its_connection_and_spares_its_neighbours() -> None:
    """A cancelled exchange closes its own connection; those in flight finish, and theirs are used again."""

    async def main() -> None:
        release = asyncio.Event()

        async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.write(ok(b"{}"))
            await writer.drain()

        async with serving(act) as server, transport() as sender:
            neighbour = asyncio.create_task(sender.send(post(server.url())))
            victim = asyncio.create_task(sender.send(post(server.url())))
            while len(server.requests) < 2:
                await asyncio.sleep(0.005)
            victim.cancel()
            await asyncio.wait([victim])
            release.set()
            first = await neighbour
            later = [await sender.send(post(server.url())) for _ in range(3)]

            assert [answer.status for answer in (first, *later)] == [200] * 4
            assert server.connections == 2

    run(main)


def test_an_exchange_that_outlives_the_transport_closes_its_own_connection() -> None:
    """`aclose` closes what is free; an exchange in flight finishes, and leaves nothing open."""

    async def main() -> None:
        release = asyncio.Event()

        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.write(ok(b"{}"))
            await writer.drain()
            assert await reader.read() == b""
            ended.set()

        ended = asyncio.Event()
        async with serving(act) as server:
            sender = Transport(environ={})
            task = asyncio.create_task(sender.send(post(server.url())))
            while not server.requests:
                await asyncio.sleep(0.005)
            await sender.aclose()
            release.set()

            assert (await task).status == 200
            async with asyncio.timeout(5):
                await ended.wait()

    run(main)


def test_closing_twice_is_harmless() -> None:
    """`aclose` may be called again, and before anything was sent."""

    async def main() -> None:
        sender = Transport(environ={})
        await sender.aclose()
        async with serving(says(ok(b"{}"))) as server:
            await sender.send(post(server.url()))
            await sender.aclose()
            await sender.aclose()

    run(main)


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_log_tells_url_or_key(caplog: pytest.LogCaptureFixture) -> None:
    """Even with logging at DEBUG neither the URL nor the key is logged."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as server, transport() as sender:
            await sender.send(post(server.url("/v1?api-version=1")))

    run(main)
    told = [record for record in caplog.records if record.name.startswith(("httpx", "httpcore"))]

    assert told == []


def test_an_error_shows_neither_key_nor_path() -> None:
    """An error's text, repr and traceback chain hold neither the key nor the URL's path."""
    with pytest.raises(ProviderError) as caught:
        exchange(reset)
    chain = [caught.value, caught.value.__cause__]

    assert all(KEY not in repr(each) and "/v1/embeddings" not in str(each) for each in chain)
    assert KEY not in repr(post("https://api.example/"))


# ── to the disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("answer", [ok(b"x" * 3_000_000), chunked(b"x" * 3_000_000, 70_000)])
def test_a_body_goes_to_a_file(answer: bytes, tmp_path: Path) -> None:
    """A body that is streamed to a file arrives there byte for byte, and is not held in memory."""
    with (tmp_path / "body").open("wb") as into:
        response, _ = exchange(says(answer), into=into)

    assert response.body == b""
    assert (tmp_path / "body").read_bytes() == b"x" * 3_000_000


def test_a_body_for_a_file_is_capped_and_an_error_s_is_not_written(tmp_path: Path) -> None:
    """More than the cap is refused; what an error says is its body, not the file's."""
    with (tmp_path / "body").open("wb") as into:
        assert isinstance(failure(says(ok(b"x" * 101)), into=into, max_bytes=100), AnswerUnusable)
    with (tmp_path / "other").open("wb") as into:
        response, _ = exchange(says(ok(b"why", status="404 Not Found")), into=into)

    assert (response.status, response.body) == (404, b"why")
    assert (tmp_path / "other").read_bytes() == b""


def test_a_redirect_may_be_an_answer() -> None:
    """Where a redirect is asked for, it is told with its location, and nobody follows it."""
    response, server = exchange(says(ok(b"", "Location: https://example.com/x", status="302 Found")), moves=True)

    assert (response.status, response.headers["location"]) == (302, "https://example.com/x")
    assert server.connections == 1

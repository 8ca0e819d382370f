"""Connections that break: in TLS, in a proxy, by cancellation. Nothing is left open, nothing forged is believed."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from embedctl.backends.http import curls, urls
from embedctl.backends.http.transport import Transport
from embedctl.errors import AnswerLost, ConfigurationInvalid, NotSent
from embedctl.providers._contract import HttpRequest
from tests.unit.backends.test_transport import (
    ESTABLISHED,
    KEY,
    Act,
    free_port,
    hang,
    ok,
    post,
    reset,
    says,
    serving,
    tls_server,
    transport,
    tunnel,
)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, localhost and far.example, its key in front."""
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here -addext "
        f"subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:far.example -keyout {file} -out {file}.crt"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


def trusting(pem: Path, **options: Any) -> Any:
    return transport(ca_file=Path(f"{pem}.crt"), **options)


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("head", [b"Content-Length: 2400000", b"Connection: close"])
@pytest.mark.parametrize("farewell", [True, False])
def test_a_large_body_comes_whole_through_tls(pem: Path, head: bytes, farewell: bool) -> None:
    """A large body in pieces and pauses comes whole through TLS, with its length or until the end, said or not."""
    body = bytes(range(240)) * 10_000

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        for start in range(0, len(body), 299_999):
            writer.write(body[start : start + 299_999])
            while writer.transport.get_write_buffer_size():
                await asyncio.sleep(0.001)
        if farewell:
            writer.close()
        else:
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)

    async def main() -> None:
        async with serving(act, tls_server(pem)) as server, trusting(pem) as sender:
            answer = await sender.send(post(f"https://127.0.0.1:{server.port}/"), timeout_s=60)

        assert answer.body == body

    asyncio.run(main())


def test_a_body_that_tls_breaks_off_is_lost(pem: Path) -> None:
    """A connection that ends within a body of known length, without TLS saying so, means AnswerLost."""

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        await writer.drain()
        writer.get_extra_info("socket").shutdown(socket.SHUT_WR)

    async def main() -> None:
        async with serving(act, tls_server(pem)) as server, trusting(pem) as sender:
            with pytest.raises(AnswerLost, match="before its answer was complete"):
                await sender.send(post(f"https://127.0.0.1:{server.port}/"), timeout_s=60)

    asyncio.run(main())


def test_silence_after_the_handshake_is_lost_and_in_it_not_sent(pem: Path) -> None:
    """A server that falls silent in the handshake has seen nothing; after it, it has the request."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def main() -> None:
        for tls, error, timeout_s in ((None, NotSent, 0.3), (tls_server(pem), AnswerLost, 5)):
            listener = await asyncio.start_server(silent, "127.0.0.1", 0, ssl=tls)
            async with trusting(pem) as sender:
                with pytest.raises(error, match=f"took more than {timeout_s} s"):
                    await sender.send(post(f"https://127.0.0.1:{port_of(listener)}/"), timeout_s=timeout_s)
            listener.close()
            await asyncio.sleep(0.02)

    asyncio.run(main())


def test_a_certificate_of_another_name_is_refused(pem: Path) -> None:
    """A trusted certificate that names another host is refused before a byte of the request."""

    async def ask(port: int) -> None:
        async with (
            serving(lambda reader, writer: tunnel(reader, writer, port)) as proxy,
            trusting(pem, environ={"HTTPS_PROXY": proxy.url("")}) as sender,
        ):
            with pytest.raises(NotSent, match=r"certificate of other\.example.*mismatch"):
                await sender.send(post("https://other.example/v1"), timeout_s=60)

    assert asyncio.run(far(pem, ask)) == []


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["a..example", "a" * 64 + ".example", ".example"])
def test_a_name_that_cannot_be_is_not_resolved(host: str) -> None:
    """A name that no resolver takes is a name that cannot be resolved."""

    async def main() -> None:
        async with transport() as sender:
            with pytest.raises(NotSent, match="cannot resolve"):
                await sender.send(post(f"https://{host}/"))

    asyncio.run(main())


def test_an_address_that_refuses_or_is_link_local_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name's addresses one that refuses costs nothing; a link-local one beside others (mDNS) is left out."""
    asked = []

    def told(address: str) -> bool:
        asked.append(address)
        return link_local and address == "::1"

    async def main() -> None:
        async with serving(says(ok(b"{}"))) as server, transport() as sender:
            assert (await sender.send(post(f"http://localhost:{server.port}/"), timeout_s=60)).body == b"{}"

    monkeypatch.setattr(urls, "is_link_local", told)
    link_local = False
    for link_local in (False, True):  # noqa: B007 - `told` reads it
        asked.clear()
        asyncio.run(main())

        assert "127.0.0.1" in asked


# ── cancellation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def port_of(listener: asyncio.Server) -> int:
    return int(listener.sockets[0].getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("secure", [False, True])
def test_cancellation_leaves_nothing_open(pem: Path, host: str, secure: bool) -> None:
    """Three hundred exchanges cancelled at every stage leave no connection, no task, no warning; the next one works."""

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await asyncio.sleep(0)
        writer.write(b"defghij")

    async def main() -> None:
        tls = tls_server(pem) if secure else None
        trust = Transport(environ={}, ca_file=Path(f"{pem}.crt"))._certificates() if secure else None
        async with serving(act, tls) as server:
            request = HttpRequest(url=f"http{'s' if secure else ''}://{host}:{server.port}/", body=b"{}")
            gc.collect()
            before = len(os.listdir("/proc/self/fd"))
            ended = set()
            for wave in range(300):
                sender = Transport(environ={})
                sender._trust = trust
                task = asyncio.create_task(sender.send(request, timeout_s=60))
                for _ in range(wave % 40):
                    await asyncio.sleep(0.0002 if host == "localhost" and wave % 2 else 0)
                task.cancel()
                await asyncio.wait([task])
                ended.add(task.cancelled())
                await sender.aclose()
            await asyncio.sleep(0.1)
            gc.collect()

            assert True in ended
            assert len(os.listdir("/proc/self/fd")) == before
            async with transport() as after:
                after._trust = trust
                assert (await after.send(request, timeout_s=60)).body == b"abcdefghij"

    asyncio.run(main())


def sockets() -> int:
    """How many this process has open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the folder itself
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return found


def test_cancellation_as_tls_begins_waits_for_nobody(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in the moment the handshake is done, a connection is closed at once, though the server stays silent."""
    done = threading.Event()
    begin = curls._Exchange.begin

    def cancelling(self: curls._Exchange) -> bool:
        task.cancel()
        return begin(self)

    def silent() -> None:
        with listener.accept()[0] as plain, tls_server(pem).wrap_socket(plain, server_side=True):
            done.wait(5)

    async def main() -> None:
        nonlocal task
        thread = asyncio.create_task(asyncio.to_thread(silent))
        before = sockets()
        async with trusting(pem) as sender:
            task = asyncio.create_task(sender.send(post(f"https://127.0.0.1:{listener.getsockname()[1]}/")))
            await asyncio.wait([task])
            await asyncio.sleep(0.02)
            left = sockets()
            done.set()
            await thread

        assert task.cancelled()
        assert left == before + 1  # the server's own end

    task: asyncio.Task[Any]
    monkeypatch.setattr(curls._Exchange, "begin", cancelling)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(main())


@pytest.mark.parametrize("end", ["closes", "resets", "hangs"])
def test_a_body_that_breaks_off_lets_go_of_its_memory(end: str) -> None:
    """Once a body is given up nobody holds its memory: not the transport, not the error."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\nabc")
        await asyncio.sleep(0.02)
        writer.write(b"d" * 4_000_000)
        await writer.drain()
        await asyncio.sleep(0.02)
        if end == "closes":
            writer.close()
        elif end == "resets":
            await reset(reader, writer)

    async def main() -> None:
        async with serving(act) as server, transport() as sender:
            tracemalloc.start()
            try:
                with pytest.raises(AnswerLost) as kept:
                    await sender.send(post(server.url()), timeout_s=5 if end == "hangs" else 60)
                peak = tracemalloc.get_traced_memory()[1]
                gc.collect()
                left = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()

            assert kept.tb is not None
            assert peak > 4_000_000
            assert left < 1_000_000

    asyncio.run(main())


def test_a_request_that_perhaps_left_is_never_sent_again() -> None:
    """A server that hangs up on a request over a connection used before has perhaps billed it: it is asked once."""

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 1:
            writer.write(ok(b"{}"))
        else:
            writer.close()

    async def main() -> None:
        nonlocal server
        async with serving(act) as server, transport() as sender:
            await sender.send(post(server.url()))
            with pytest.raises(AnswerLost, match="broke off"):
                await sender.send(post(server.url()), timeout_s=60)

            assert (len(server.requests), server.connections) == (2, 1)

    server: Any = None
    asyncio.run(main())


def test_a_promised_length_takes_no_memory() -> None:
    """Twenty answers that promise 67 MB each and bring ten bytes take what came, not 1.3 GB."""

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 67000000\r\n\r\n0123456789")

    async def main() -> int:
        async with serving(act) as server, transport() as sender:
            tracemalloc.start()
            try:
                asked = [sender.send(post(server.url()), timeout_s=5) for _ in range(20)]
                ended = await asyncio.gather(*asked, return_exceptions=True)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        assert {type(each) for each in ended} == {AnswerLost}
        assert len(server.requests) == 20
        return peak

    assert asyncio.run(main()) < 40_000_000


def test_what_came_while_the_loop_was_busy_is_no_answer() -> None:
    """Bytes that only the kernel has seen so far, behind an answer, are never taken for the next request's answer."""

    def serve() -> None:
        for late in (ok(b"forged"), b""):
            plain = listener.accept()[0]
            plain.recv(65536)
            plain.sendall(ok(b"own"))
            time.sleep(0.02)
            plain.sendall(late)
            kept.append(plain)
            has_come.set()

    async def main() -> None:
        thread = asyncio.create_task(asyncio.to_thread(serve))
        async with transport() as sender:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            first = await sender.send(post(url), timeout_s=60)
            assert has_come.wait(60)  # as while a large answer is decoded
            second = await sender.send(post(url), timeout_s=60)
            await thread

        assert (first.body, second.body) == (b"own", b"own")

    kept: list[socket.socket] = []
    has_come = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        try:
            asyncio.run(main())
        finally:
            for plain in kept:
                plain.close()


# ── proxies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def through(
    act: Act, pem: Path, *, tls: bool = False, trusted: bool = True, timeout_s: float = 60
) -> tuple[bytes | Exception, list[bytes]]:
    """What comes of a request to far.example through a proxy that acts so, and what the proxy was asked."""

    async def main() -> tuple[bytes | Exception, list[bytes]]:
        async with serving(act, tls_server(pem) if tls else None) as proxy:
            environ = {"HTTPS_PROXY": f"http{'s' if tls else ''}://127.0.0.1:{proxy.port}"}
            async with trusting(pem, environ=environ) if trusted else transport(environ=environ) as sender:
                try:
                    return (await sender.send(post("https://far.example/v1"), timeout_s=timeout_s)).body, proxy.requests
                except NotSent as problem:
                    return problem, proxy.requests

    return asyncio.run(main())


async def far(pem: Path, ask: Callable[[int], Coroutine[Any, Any, None]]) -> list[bytes]:
    """Run `ask` with the port of a TLS server that answers with a large body; what that server was asked."""
    async with serving(says(ok(b"real" * 500_000)), tls_server(pem)) as server:
        await ask(server.port)
        return server.requests


PADDED = b"HTTP/1.1 200 OK\r\nX: " + b"a" * (16 * 1024 - 24) + b"\r\n\r\n"


@pytest.mark.parametrize("told", [ESTABLISHED, PADDED], ids=["short", "as long as one step"])
def test_a_proxy_cannot_put_words_into_the_server_s_mouth(pem: Path, told: bytes) -> None:
    """What a proxy sends before TLS has begun is never taken for the server's answer: it would have no certificate."""

    async def ask(port: int) -> None:
        async with (
            serving(lambda reader, writer: tunnel(reader, writer, port, told + ok(b"forged"))) as proxy,
            trusting(pem, environ={"HTTPS_PROXY": proxy.url("")}) as sender,
        ):
            with pytest.raises(NotSent, match="proxy refuses"):
                await sender.send(post("https://far.example/v1"), timeout_s=60)

    assert asyncio.run(far(pem, ask)) == []


def test_a_tunnel_inside_tls_is_one_too(pem: Path) -> None:
    """A proxy may be asked over TLS: the server's TLS goes inside the proxy's, and large answers come whole."""

    async def ask(port: int) -> None:
        async with serving(lambda reader, writer: tunnel(reader, writer, port), tls_server(pem)) as proxy:
            async with trusting(pem, environ={"HTTPS_PROXY": f"https://127.0.0.1:{proxy.port}"}) as sender:
                for _ in range(2):
                    answer = await sender.send(post("https://far.example/v1"), timeout_s=60)

                    assert answer.body == b"real" * 500_000
            assert len(proxy.requests) == 1
            assert KEY.encode() not in proxy.requests[0]

    assert len(asyncio.run(far(pem, ask))) == 2


def test_a_certificate_of_a_proxy_is_not_taken_for_the_server_s(pem: Path) -> None:
    """A proxy over TLS whose certificate nobody vouches for is named; the server's is not what is wrong."""
    problem, asked = through(hang, pem, tls=True, trusted=False)

    assert isinstance(problem, NotSent)
    assert "the certificate of the proxy on the way to far.example is not trusted" in problem.message
    assert asked == []


@pytest.mark.parametrize(
    ("act", "words"),
    [
        pytest.param(says(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"), "proxy refuses", id="407"),
        pytest.param(says(b"HTTP/1.1 302 No\r\nLocation: http://a/\r\n\r\n"), "proxy refuses", id="redirects"),
        pytest.param(says(ok(b"body")), "(proxy refuses|took more than 8 s)", id="has a body"),
        pytest.param(says(ESTABLISHED, close=True), "(proxy refuses|cannot connect)", id="closes behind its answer"),
        pytest.param(says(b"HTTP/1.1 2", close=True), "proxy refuses", id="closes within its answer"),
        pytest.param(says(b"SSH-2.0\r\n\r\n"), "proxy refuses", id="is none"),
        pytest.param(reset, "cannot connect", id="resets"),
        pytest.param(says(ESTABLISHED), "took more than 8 s", id="leads nowhere"),
        pytest.param(hang, "took more than 8 s", id="hangs"),
    ],
)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_proxy_that_breaks_is_named_and_nothing_is_sent(pem: Path, act: Act, words: str, tls: bool) -> None:
    """However a proxy fails, the request was not sent, the proxy has not seen the key."""
    problem, asked = through(act, pem, tls=tls, timeout_s=8 if "took more than" in words else 60)

    assert isinstance(problem, NotSent)
    assert re.search(words, problem.message)
    assert [line.split(b"\r\n")[0] for line in asked] == [b"CONNECT far.example:443 HTTP/1.1"]
    assert KEY.encode() not in asked[0]


@pytest.mark.parametrize(
    ("proxy", "error", "words"),
    [
        ("http://nowhere.invalid:1", NotSent, "cannot resolve the proxy on the way to far.example"),
        ("http://a..b:1", NotSent, "cannot resolve the proxy on the way to far.example"),
        ("http://127.0.0.1:{free}", NotSent, "the proxy on the way to far.example refuses the connection"),
        ("https://127.0.0.1:{free}", NotSent, "the proxy on the way to far.example refuses the connection"),
        ("http://127.0.0.1:99999", ConfigurationInvalid, "cannot be used"),
        ("http://", ConfigurationInvalid, "cannot be used"),
        ("socks5://127.0.0.1:1", ConfigurationInvalid, "cannot be used"),
    ],
)
def test_a_proxy_that_is_not_there_is_not_taken_for_the_server(proxy: str, error: type[Exception], words: str) -> None:
    """An error on the way to the proxy names the proxy's part, not the provider's."""

    async def main() -> None:
        async with transport(environ={"HTTPS_PROXY": proxy.format(free=free_port())}) as sender:
            with pytest.raises(error, match=words):
                await sender.send(post("https://far.example/v1"), timeout_s=60)

    asyncio.run(main())


def test_a_host_of_no_proxy_is_reached_without_one(pem: Path) -> None:
    """A host that NO_PROXY names is connected to directly; the proxy hears nothing."""

    async def main() -> None:
        async with serving(hang) as proxy:
            environ = {"HTTPS_PROXY": proxy.url(""), "NO_PROXY": "nowhere.invalid"}
            async with trusting(pem, environ=environ) as sender:
                with pytest.raises(NotSent, match=r"cannot resolve nowhere\.invalid"):
                    await sender.send(post("https://nowhere.invalid/v1"), timeout_s=60)

            assert proxy.connections == 0

    asyncio.run(main())

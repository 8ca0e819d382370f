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
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedctl.backends.http import links
from embedctl.backends.http.exchanges import Body, Exchanges
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
            answer = await sender.send(post(f"https://127.0.0.1:{server.port}/"), timeout_s=5)

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
            with pytest.raises(AnswerLost, match="broke off"):
                await sender.send(post(f"https://127.0.0.1:{server.port}/"), timeout_s=5)

    asyncio.run(main())


def test_silence_after_the_handshake_is_lost_and_in_it_not_sent(pem: Path) -> None:
    """A server that falls silent in the handshake has seen nothing; after it, it has the request."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def main() -> None:
        for tls, error in ((None, NotSent), (tls_server(pem), AnswerLost)):
            listener = await asyncio.start_server(silent, "127.0.0.1", 0, ssl=tls)
            async with trusting(pem) as sender:
                with pytest.raises(error, match=r"took more than 0\.3 s"):
                    await sender.send(post(f"https://127.0.0.1:{port_of(listener)}/"), timeout_s=0.3)
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
                await sender.send(post("https://other.example/v1"), timeout_s=5)

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


def test_an_address_that_is_silent_or_refuses_is_passed_by() -> None:
    """Of a name's addresses one that refuses costs nothing, a silent one a quarter of a second, and is left closed."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
            full = [socket.socket() for _ in range(3)]
            for each in full:
                each.setblocking(False)
                each.connect_ex(silent.getsockname())
            async with serving(says(ok(b"{}"))) as server:
                there = ("127.0.0.1", server.port)
                for first, least in ((silent.getsockname(), links.EYEBALLS_S), (("127.0.0.1", free_port()), 0.0)):
                    started = asyncio.get_running_loop().time()
                    found = await links._raced([(socket.AF_INET, first), (socket.AF_INET, there)])
                    took = asyncio.get_running_loop().time() - started

                    assert found.getpeername() == there
                    assert least <= took < least + 0.2
                    found.close()
            for each in full:
                each.close()

    asyncio.run(main())
    gc.collect()


def test_link_local_addresses_of_a_name_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may have link-local addresses beside others (mDNS): these others are used, the two kinds in turns."""
    four, six = [("10.0.0.1", 1), ("10.0.0.2", 1)], [("fe80::1", 1, 0, 2), ("fd00::1", 1, 0, 0), ("fd00::2", 1, 0, 0)]
    found = [(socket.AF_INET6, 1, 6, "", each) for each in six] + [(socket.AF_INET, 1, 6, "", each) for each in four]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    places = asyncio.run(links._places(links.Address("both.local", 1), any_address=False))

    assert [address[0] for _, address in places] == ["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"]


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
            await asyncio.to_thread(int)  # the thread that asks for names, and its pipe
            before = len(os.listdir("/proc/self/fd"))
            ended = set()
            for wave in range(300):
                sender = Transport(environ={})
                sender._trust = trust
                task = asyncio.create_task(sender.send(request, timeout_s=5))
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
                assert (await after.send(request, timeout_s=5)).body == b"abcdefghij"

    asyncio.run(main())


def test_cancellation_as_tls_begins_waits_for_nobody(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in the moment the handshake is done, a connection is closed at once, though the server stays silent."""
    done = threading.Event()
    made = links.Link.connection_made

    def cancelling(self: links.Link, wire: asyncio.BaseTransport) -> None:
        made(self, wire)
        task.cancel()

    def silent() -> None:
        with listener.accept()[0] as plain, tls_server(pem).wrap_socket(plain, server_side=True):
            done.wait(5)

    async def main() -> None:
        nonlocal task
        thread = asyncio.create_task(asyncio.to_thread(silent))
        before = len(os.listdir("/proc/self/fd"))
        async with trusting(pem) as sender:
            task = asyncio.create_task(sender.send(post(f"https://127.0.0.1:{listener.getsockname()[1]}/")))
            await asyncio.wait([task])
            await asyncio.sleep(0.02)
            left = len(os.listdir("/proc/self/fd"))
            done.set()
            await thread

        assert task.cancelled()
        assert left == before + 1  # the server's own end

    task: asyncio.Task[Any]
    monkeypatch.setattr(links.Link, "connection_made", cancelling)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(main())


@pytest.mark.parametrize(
    ("end", "error"),
    [("closes", httpx.RemoteProtocolError), ("resets", httpx.ReadError), ("hangs", TimeoutError)],
)
def test_a_body_that_breaks_off_lets_go_of_its_memory(end: str, error: type[Exception]) -> None:
    """Once a body is given up nobody holds a view of its memory, not even the error: Python 3.13 would complain."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        await asyncio.sleep(0.02)
        writer.write(b"d" * 100)
        await asyncio.sleep(0.02)
        if end == "closes":
            writer.close()
        elif end == "resets":
            await reset(reader, writer)

    async def main() -> None:
        client = Exchanges(None)
        async with serving(act) as server:
            request = httpx.Request("POST", server.url(), content=b"", extensions={"written": lambda: None})
            response = await client.handle_async_request(request)
            assert isinstance(response.stream, Body)
            memory = bytearray(1000)
            with memoryview(memory) as room, pytest.raises(error) as kept:
                async with asyncio.timeout(0.1):
                    await response.stream.into(room)
            await response.aclose()

            memory.append(0)  # a BufferError, were it held
            assert kept.tb is not None
            assert memory[:103] == b"abc" + b"d" * 100
        await client.aclose()

    asyncio.run(main())


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

    async def main() -> None:
        thread = asyncio.create_task(asyncio.to_thread(serve))
        async with transport() as sender:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            first = await sender.send(post(url), timeout_s=5)
            time.sleep(0.1)  # as a large answer that is decoded
            second = await sender.send(post(url), timeout_s=5)
            await thread

        assert (first.body, second.body) == (b"own", b"own")

    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(3)
        try:
            asyncio.run(main())
        finally:
            for plain in kept:
                plain.close()


# ── proxies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def through(act: Act, pem: Path, *, tls: bool = False) -> tuple[bytes | Exception, list[bytes]]:
    """What comes of a request to far.example through a proxy that acts so, and what the proxy was asked."""

    async def main() -> tuple[bytes | Exception, list[bytes]]:
        async with serving(act, tls_server(pem) if tls else None) as proxy:
            environ = {"HTTPS_PROXY": f"http{'s' if tls else ''}://127.0.0.1:{proxy.port}"}
            async with trusting(pem, environ=environ) as sender:
                try:
                    return (await sender.send(post("https://far.example/v1"), timeout_s=1)).body, proxy.requests
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
                await sender.send(post("https://far.example/v1"), timeout_s=3)

    assert asyncio.run(far(pem, ask)) == []


def test_a_tunnel_inside_tls_is_one_too(pem: Path) -> None:
    """A proxy may be asked over TLS: the server's TLS goes inside the proxy's, and large answers come whole."""

    async def ask(port: int) -> None:
        async with serving(lambda reader, writer: tunnel(reader, writer, port), tls_server(pem)) as proxy:
            async with trusting(pem, environ={"HTTPS_PROXY": f"https://127.0.0.1:{proxy.port}"}) as sender:
                for _ in range(2):
                    answer = await sender.send(post("https://far.example/v1"), timeout_s=5)

                    assert answer.body == b"real" * 500_000
            assert len(proxy.requests) == 1
            assert KEY.encode() not in proxy.requests[0]

    assert len(asyncio.run(far(pem, ask))) == 2


@pytest.mark.parametrize(
    ("act", "words"),
    [
        pytest.param(says(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"), "proxy refuses", id="407"),
        pytest.param(says(b"HTTP/1.1 302 No\r\nLocation: http://a/\r\n\r\n"), "proxy refuses", id="redirects"),
        pytest.param(says(ok(b"body")), "proxy refuses", id="has a body"),
        pytest.param(says(ESTABLISHED, close=True), "(proxy refuses|cannot connect)", id="closes behind its answer"),
        pytest.param(says(b"HTTP/1.1 2", close=True), "proxy refuses", id="closes within its answer"),
        pytest.param(says(b"SSH-2.0\r\n\r\n"), "proxy refuses", id="is none"),
        pytest.param(reset, "cannot connect", id="resets"),
        pytest.param(says(ESTABLISHED), "took more than 1 s", id="leads nowhere"),
        pytest.param(hang, "took more than 1 s", id="hangs"),
    ],
)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_proxy_that_breaks_is_named_and_nothing_is_sent(pem: Path, act: Act, words: str, tls: bool) -> None:
    """However a proxy fails, the request was not sent, the proxy has not seen the key."""
    problem, asked = through(act, pem, tls=tls)

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
                await sender.send(post("https://far.example/v1"), timeout_s=5)

    asyncio.run(main())


def test_a_host_of_no_proxy_is_reached_without_one(pem: Path) -> None:
    """A host that NO_PROXY names is connected to directly; the proxy hears nothing."""

    async def main() -> None:
        async with serving(hang) as proxy:
            environ = {"HTTPS_PROXY": proxy.url(""), "NO_PROXY": "nowhere.invalid"}
            async with trusting(pem, environ=environ) as sender:
                with pytest.raises(NotSent, match=r"cannot resolve nowhere\.invalid"):
                    await sender.send(post("https://nowhere.invalid/v1"), timeout_s=5)

            assert proxy.connections == 0

    asyncio.run(main())

"""What is a request, and where it ends: heads, bodies, upgrades, requests in line, on bare connections."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from tests.support.serving import MODEL, Serving, serving
from tests.support.wire.client import Wire

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
PATIENT = {"embedctl.server.connections:LINGER_S": 60.0}
LIVE = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    wire.reset()
    with serving(
        tmp_path_factory.mktemp("connections") / "g", wire, settings="[serve]\nheader_s = 3\n", constants=PATIENT
    ) as found:
        yield found


def body(text: str) -> bytes:
    return json.dumps({"model": MODEL, "input": text}).encode()


def chunked(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n" % (len(content), content)


@contextlib.contextmanager
def connected(server: Serving) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        yield client


def answers(client: socket.socket, number: int) -> list[tuple[int, dict[str, str], bytes]]:
    """So many answers, or fewer when the connection ends before."""
    found = []
    with contextlib.suppress(ConnectionError), client.makefile("rb") as read:
        while len(found) < number and (line := read.readline()):
            headers = {}
            while one := read.readline().strip():
                name, _, value = one.decode().partition(": ")
                headers[name.lower()] = value
            found.append((int(line.split()[1]), headers, read.read(int(headers["content-length"]))))
    return found


def ended(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(1 << 16):
            found += piece
    return found


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "asked for"])
def test_an_upgrade_that_is_offered_is_not_taken(server: Serving, framing: str, waits: bool) -> None:
    """A client that offers HTTP/2 in clear, as Java's does, is served over HTTP/1.1, body and all, and goes on."""
    content = body(f"offered {framing} {waits}")
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
    head = HEAD + offer + (b"Expect: 100-continue\r\n" if waits else b"")
    if framing == "length":
        head += b"Content-Length: %d\r\n\r\n" % len(content)
    else:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        content = chunked(content) + b"\r\n"
    with connected(server) as client:
        client.sendall(head + (b"" if waits else content))
        if waits:
            assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(content)
        (first,) = answers(client, 1)
        client.sendall(LIVE + offer + b"\r\n" + LIVE + b"\r\n")
        rest = answers(client, 2)

    assert first[0] == 200
    assert len(json.loads(first[2])["data"]) == 1
    assert [(status, content) for status, _, content in rest] == [(200, b"ok")] * 2


def test_what_stands_behind_a_body_is_no_header(server: Serving) -> None:
    """Trailers are read over: they come when headers were checked already, and could be what a proxy had taken out."""
    sent = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body("trailed")) + b"X-Request-Id: forged\r\n\r\n"
    with connected(server) as client:
        client.sendall(sent)
        (answer,) = answers(client, 1)

    assert answer[0] == 200
    assert answer[1]["x-request-id"] != "forged"


@pytest.mark.parametrize("in_line", [1, 3])
def test_a_client_may_close_its_half(server: Serving, wire: Wire, in_line: int) -> None:
    """Who sends nothing more after its requests gets their answers, in order, and the connection is closed then."""
    wire.plan(latency_s=0.1)
    contents = [body(f"the last words, {number} of {in_line}") for number in range(in_line)]
    with connected(server) as client:
        client.sendall(b"".join(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(one), one) for one in contents))
        client.shutdown(socket.SHUT_WR)
        found = answers(client, in_line + 1)
    wire.plan()

    assert [status for status, *_ in found] == [200] * in_line
    assert found[-1][1]["connection"] == "close"


def test_an_answer_that_is_there_at_once_is_not_lost(server: Serving) -> None:
    """Also when it is made in the very moment in which the client closes its half."""
    for _ in range(20):
        with connected(server) as client:
            client.sendall(LIVE + b"\r\n")
            client.shutdown(socket.SHUT_WR)

            assert [content for _, _, content in answers(client, 2)] == [b"ok"]


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"Content-Length: 20\r\n\r\n{", LIVE + b"\r\n"])
def test_half_a_request_from_half_a_connection_is_nothing(server: Serving, sent: bytes) -> None:
    """Who closes its half before its request is whole, or after its answer, is not waited for."""
    with connected(server) as client:
        client.sendall(sent)
        if sent.startswith(b"GET"):
            assert answers(client, 1)[0][0] == 200
        client.shutdown(socket.SHUT_WR)

        assert ended(client) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/embeddings HTTP/1.1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: elsewhere\r\n\r\n",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
        HEAD + b"Content-Length: +2\r\n\r\n{}",
        HEAD + b"X-One : two\r\n\r\n",
        HEAD + b"X-One: two\r\n three\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/3.7\r\nHost: 127.0.0.1\r\n\r\n",
        b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(server: Serving, sent: bytes) -> None:
    """Whatever a proxy in front may read otherwise is 400, and nothing more is read of that connection."""
    with connected(server) as client:
        client.sendall(sent)
        said = ended(client)

    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("begins", "goes_on", "status"),
    [
        (LIVE, b"X-One: " + b"x" * 1000, 431),
        (LIVE + b"X-One: ", b"x" * 1000, 431),
        (b"GET /", b"x" * 1000, 431),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x" * 1000, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-One: ", b"x" * 1000, 400),
        (b"", b"\r\n" * 500, 400),
    ],
    ids=["headers", "header", "address", "chunk", "trailer", "nothing"],
)
def test_what_does_not_end_is_bounded(server: Serving, begins: bytes, goes_on: bytes, status: int) -> None:
    """Of a head, of what stands between chunks and of what stands behind them, 64 KiB are read, and no more."""
    with connected(server) as client:
        client.sendall(begins)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 24:
                client.sendall(goes_on * 8)
                sent += len(goes_on) * 8
        said = ended(client)

    assert sent < 1 << 24
    assert not said or said.startswith(b"HTTP/1.1 %d " % status)  # a reset may overtake the answer
    assert server.embed("served all the same").status == 200


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_refusal_reaches_who_is_still_sending(server: Serving, framing: str) -> None:
    """A client that sends all of a body that is too large before it reads gets the whole 413, and not a reset."""
    content = b'{"input":"' + b"x" * (10 << 20) + b'"}'
    framed = b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    if framing == "chunks":
        framed = b"Transfer-Encoding: chunked\r\n\r\n" + chunked(content)
    with connected(server) as client:
        client.sendall(HEAD + framed)
        said = ended(client)

    assert said.startswith(b"HTTP/1.1 413 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"


def test_requests_in_line_are_answered_in_their_order(server: Serving) -> None:
    """Requests that come before the one in front of them is answered wait, and are answered in their order."""
    contents = [body(f"in line {n}") for n in range(3)]
    sent = b"".join(HEAD + b"X-Request-Id: n%d\r\nContent-Length: %d\r\n\r\n%s" % (n, len(one), one)
                    for n, one in enumerate(contents))  # fmt: skip
    with connected(server) as client:
        client.sendall(sent + LIVE + b"\r\n")
        found = answers(client, 4)

    assert [status for status, _, _ in found] == [200] * 4
    assert [headers["x-request-id"] for _, headers, _ in found[:3]] == ["n0", "n1", "n2"]
    assert found[3][2] == b"ok"


@pytest.mark.parametrize("behind", [b"no request\r\n\r\n", (LIVE + b"\r\n") * 200], ids=["none", "too many"])
def test_nobody_gets_the_answer_of_another_request(server: Serving, behind: bytes) -> None:
    """What is no request, or one too many, ends a connection; no answer comes in an earlier one's place."""
    content = body("in front of something odd")
    with connected(server) as client:
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(content), content) + behind)
        said = ended(client)

    assert not said or said.startswith(b"HTTP/1.1 200 ")
    assert server.embed("served all the same").status == 200


def test_a_line_break_keeps_no_connection(server: Serving) -> None:
    """A connection that was answered and then sends a line break, and nothing else, is closed in the head's time."""
    with connected(server) as client:
        client.sendall(LIVE + b"\r\n")
        assert [status for status, _, _ in answers(client, 1)] == [200]
        client.sendall(b"\r\n")
        ended(client)

"""Who stands at the door: https, proxies in front, clients that are slow, read nothing, or send what they may."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import select
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.serving import MODEL, environment, make_key, serving, started, until
from tests.support.wire.client import Wire

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def fresh(wire: Wire) -> None:
    wire.reset()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here -addext"
    command = [*made.split(), "subjectAltName=IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_https(wire: Wire, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """With --cert and --key it speaks https alone, to others too, and warns of nothing."""
    folder = tmp_path / "g"
    folder.mkdir()
    env = environment(folder, wire)
    key = make_key(folder, env)
    flags = ("--host", "0.0.0.0", "--cert", certificate[0], "--key", certificate[1])
    with started(folder, env, *flags) as server:
        assert server.base == f"https://0.0.0.0:{server.port}"
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        client = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=60, context=trust)
        with contextlib.closing(client):
            sent = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            for text in ("over https", "over the same connection"):
                client.request("POST", "/v1/embeddings", json.dumps({"model": MODEL, "input": text}), sent)
                answer = client.getresponse()
                assert answer.status == 200
                assert len(json.loads(answer.read())["data"][0]["embedding"]) == 1536
        with pytest.raises((OSError, http.client.HTTPException)):
            server.ask("GET", "/livez")
        events = {one["event"] for one in server.log()}

    assert "no_tls" not in events


def test_a_proxy_in_front_says_who_asks(wire: Wire, tmp_path: Path) -> None:
    """With --behind-tls the last address of X-Forwarded-For counts, the one that the proxy saw; else nobody's word."""
    wrong = {"Authorization": "Bearer not a key"}
    for flags, others_may in ((("--behind-tls",), True), ((), False)):
        with serving(tmp_path / f"g{others_may}", wire, *flags) as server:
            server.key()
            server.address = "127.0.0.9"
            for n in range(20):
                forged = f"198.51.100.{n}, 203.0.113.7" if others_may else f"198.51.100.{n}"
                assert server.ask("GET", "/v1/models", X_Forwarded_For=forged, **wrong).code == "invalid_key"
            same = server.ask("GET", "/v1/models", X_Forwarded_For="203.0.113.7", **wrong)
            other = server.ask("GET", "/v1/models", X_Forwarded_For="203.0.113.8", **wrong)

            assert same.code == "too_many_failures"
            assert other.code == ("invalid_key" if others_may else "too_many_failures")


def trickled(client: socket.socket, piece: bytes) -> bytes:
    """What a server says to one who goes on to send a byte now and then."""
    for byte in piece * 10_000:
        if select.select([client], [], [], 0.02)[0]:
            break
        try:
            client.sendall(bytes([byte]))
        except ConnectionError:
            break
    with contextlib.suppress(ConnectionError):
        return client.recv(4096)
    return b""


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"", HEAD),
        (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    ],
    ids=["head", "body", "chunked"],
)
def test_a_trickle_is_late_too(wire: Wire, tmp_path: Path, begins: bytes, goes_on: bytes) -> None:
    """Headers and bodies have their seconds in all: bytes that come one by one win no time."""
    with serving(tmp_path / "g", wire, settings="[serve]\nheader_s = 0.5\nbody_s = 0.5\n") as server:
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(begins)
            answer = trickled(client, goes_on)

        assert answer.startswith(b"HTTP/1.1 40")
        assert server.embed("served all the same").status == 200


def test_a_client_that_stops_reading_is_left(wire: Wire, tmp_path: Path) -> None:
    """An answer that nobody reads keeps its place for body_s and no longer; it is booked and cached all the same."""
    texts = [f"never read {n}" for n in range(2048)]
    body = json.dumps({"model": MODEL, "input": texts}).encode()
    with serving(tmp_path / "g", wire, settings="[serve]\nbody_s = 0.5\nin_flight = 1\n") as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", server.port))
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            head = client.recv(1024)
            until(lambda: server.ask("GET", "/api/v1/embeddings/health").json["active_requests"] == 0)
            size = 0
            with contextlib.suppress(ConnectionError):
                while piece := client.recv(1 << 20):
                    size += len(piece)

        assert head.startswith(b"HTTP/1.1 200")
        assert size < 10_000_000  # of some 40 MB
        assert server.embed(texts[:3]).headers["x-embedctl-cache"] == "hit"


def sent(port: int, body: bytes, *, chunked: bool) -> bytes:
    """The status line of an answer to a body."""
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        client.sendall(HEAD + length + b"\r\n\r\n" + whole)
        return client.makefile("rb").readline()


def test_a_body_may_be_as_large_as_the_bound(wire: Wire, tmp_path: Path) -> None:
    """A body of exactly body_bytes is taken, stated or counted; with one byte more it is 413."""
    most = 1 << 20
    body = json.dumps({"model": MODEL, "input": [f"{n} of many small texts" for n in range(100)]}).encode()
    with serving(tmp_path / "g", wire, settings=f"[serve]\nbody_bytes = {most}\n") as server:
        found = {
            (more, chunked): sent(server.port, body + b" " * (most - len(body) + more), chunked=chunked)
            for more in (0, 1)
            for chunked in (False, True)
        }

    assert {key: line.split()[1] for key, line in found.items()} == {
        (0, False): b"200", (0, True): b"200", (1, False): b"413", (1, True): b"413",
    }  # fmt: skip


def test_eight_mebibytes_are_taken(wire: Wire, tmp_path: Path) -> None:
    """A body near the bound that comes by itself: 2048 long texts, answered in order and whole."""
    texts = [f"{n} " + "word " * 700 for n in range(2048)]
    with serving(tmp_path / "g", wire) as server:
        reply = server.embed(texts, encoding_format="base64")

        assert reply.status == 200
        assert [one["index"] for one in reply.json["data"]] == list(range(2048))


def test_nothing_is_sent_that_cannot_be_written_down(wire: Wire, tmp_path: Path) -> None:
    """With a full disk it is 503 `storage_failed` and not ready, and no provider is asked; it lives on."""
    with serving(tmp_path / "g", wire, PYTHONDONTWRITEBYTECODE="1") as server:  # or it would be cut, for all
        assert server.embed("while there was room").status == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1024, 1024))
        replies = [server.embed(f"no room {n}") for n in range(3)]
        requests = len(wire.truth())
        ready, health = server.ask("GET", "/readyz"), server.ask("GET", "/api/v1/embeddings/health")

        assert [(one.status, one.code) for one in replies] == [(503, "storage_failed")] * 3
        assert replies[0].headers["x-should-retry"] == "false"
        assert requests == 1
        assert (ready.status, health.status, health.json["status"]) == (503, 503, "degraded")
        assert server.ask("GET", "/livez").status == 200

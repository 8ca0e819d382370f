"""The process: how it starts, keeps slow clients from its places, takes turns, and ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import places
from tests.support.serving import MODEL, bill, embedctl, environment, make_key, serving, started, until
from tests.support.wire.client import Wire


@pytest.fixture(autouse=True)
def fresh(wire: Wire) -> None:
    wire.reset()


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_serving_loads_neither_arrow_nor_duckdb() -> None:
    """What a service does not need costs it no memory: 40 MB, and half a second of its start."""
    code = "import sys; import embedctl.server.service; print({'pyarrow', 'duckdb', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_half_requests_keep_no_place(wire: Wire, tmp_path: Path) -> None:
    """Two hundred connections with half a head, none at all, or half a body are closed; others are served meanwhile."""
    config = "[serve]\nheader_s = 0.5\nbody_s = 0.5\n"
    with serving(tmp_path / "g", wire, settings=config) as server, contextlib.ExitStack() as stack:
        parts = [b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"]
        clients = []
        for n in range(200):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            client.sendall(parts[n % 3])
            clients.append(client)

        assert server.embed("served meanwhile").status == 200
        for client in clients:
            answer = client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"request_timeout" in answer
            assert client.recv(4096) == b""
        assert server.ask("GET", "/readyz").status == 200


def test_a_late_body_is_told_so(wire: Wire, tmp_path: Path) -> None:
    """On a connection that served before, half a next request is closed as well; a whole one is answered."""
    with serving(tmp_path / "g", wire, settings="[serve]\nheader_s = 0.5\nbody_s = 0.5\n") as server:
        body = b'{"model": "%s", "input": "kept alive"}' % MODEL.encode()
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with socket.create_connection(("127.0.0.1", server.port), 20) as client, client.makefile("rb") as read:
            for _ in range(2):
                client.sendall(whole)
                assert read.readline().startswith(b"HTTP/1.1 200")
                length = next(
                    int(line.split(b":")[1])
                    for line in iter(read.readline, b"\r\n")
                    if line.startswith(b"content-length")
                )
                while read.peek(1)[:1] == b"\r" or read.peek(2)[:2] != b'{"':
                    read.readline()
                assert len(read.read(length)) == length
            client.sendall(HEAD[:40])
            assert read.readline().startswith(b"HTTP/1.1 408")


def test_keys_take_turns(wire: Wire, tmp_path: Path) -> None:
    """One key's hundred calls do not stand before another's one: it is served when few of them are."""
    config = "[providers.openai]\nconcurrency = 1\n[serve]\nkey_in_flight = 200\n"
    with serving(tmp_path / "g", wire, settings=config) as server:
        many, one = server.key(), server.key(workspace="other")
        server.embed("warm", key=many)
        wire.plan(hold_after=0)
        finished: list[str] = []

        def ask(key: str, text: str) -> None:
            assert server.embed(text, key=key).status == 200
            finished.append(key)

        def active() -> int:
            return int(server.ask("GET", "/api/v1/embeddings/health", X_API_KEY=one).json["active_requests"])

        with concurrent.futures.ThreadPoolExecutor(101) as threads:
            crowd = [threads.submit(ask, many, f"of many {n}") for n in range(100)]
            until(lambda: active() == 100)
            alone = threads.submit(ask, one, "alone")
            until(lambda: active() == 101)
            wire.plan(latency_s=0.02)
            alone.result()
            before = finished.index(one)
            for other in crowd:
                other.result()

        assert before < 70


def test_too_many_at_once_are_told_to_come_again(wire: Wire, tmp_path: Path) -> None:
    """Beyond the places and the queue it is 429 `overloaded` with when to come again; nothing is lost of the others."""
    wire.plan(hold_after=0)
    config = "[serve]\nin_flight = 2\nqueue = 2\n"
    with serving(tmp_path / "g", wire, settings=config) as server, concurrent.futures.ThreadPoolExecutor(12) as threads:
        calls = [threads.submit(server.embed, f"crowd {n}") for n in range(12)]
        until(lambda: sum(one.done() for one in calls) == 8)
        wire.plan()
        replies = [one.result() for one in calls]
        codes = [one.code for one in replies if one.status != 200]

        assert sorted(one.status for one in replies) == [200] * 4 + [429] * 8
        assert set(codes) == {"overloaded"}
        assert all(1 <= int(one.headers["retry-after"]) <= 4 for one in replies if one.status == 429)


def test_a_large_answer_holds_nobody_up(wire: Wire, tmp_path: Path) -> None:
    """2048 vectors as decimals are answered whole, with their length stated, and small calls pass between."""
    with serving(tmp_path / "g", wire) as server:
        texts = [f"large {n}" for n in range(2048)]
        reply = server.embed(texts, encoding_format="float")

        assert reply.status == 200
        assert int(reply.headers["content-length"]) == len(reply.body)
        assert len(reply.json["data"]) == 2048


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_drains(wire: Wire, tmp_path: Path, number: int, code: int) -> None:
    """At a signal what is in flight is answered, what comes is not taken, all is booked, nothing is left over."""
    with serving(tmp_path / "g", wire, settings="[serve]\ngrace_s = 8\n") as server:
        server.embed("warm")
        wire.plan(hold_after=0)
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(server.embed, f"in flight {n}") for n in range(3)]
            until(lambda: server.ask("GET", "/api/v1/embeddings/health").json["active_requests"] == 3)
            server.process.send_signal(number)
            until(lambda: server.ask("GET", "/readyz").status == 503)
            late = server.embed("too late")
            wire.plan()
            replies = [one.result() for one in calls]
        ended = server.process.wait(120)

        assert ended == code
        assert [one.status for one in replies] == [200] * 3
        assert (late.status, late.code) == (503, "draining")
        assert {one.headers["connection"] for one in [*replies, late]} == {"close"}
        assert bill(server).attempts == len(wire.truth()) == 4
        assert list((server.home / "journal").iterdir()) == []
        assert list((server.home / "runs").glob("*.json")) == []


def test_a_second_signal_ends_it_at_once(wire: Wire, tmp_path: Path) -> None:
    """Who asks twice is obeyed at once; what was in flight is in the ledger as perhaps billed."""
    with serving(tmp_path / "g", wire) as server, concurrent.futures.ThreadPoolExecutor(1) as threads:
        server.embed("warm")
        wire.plan(hold_after=0)
        call = threads.submit(server.embed, "cut off")
        until(lambda: sum(one.read_bytes().count(b'"kind":"intent"') for one in server.home.rglob("*.intents")) == 2)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask("GET", "/readyz").status == 503)
        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(120) == 143
        assert call.exception() is not None

        wire.plan()
        until(lambda: wire.held() == 0)
        found = bill(server)
        assert found.confirmed <= wire.billed() <= found.confirmed + found.unknown
        assert found.unknown > 0


def test_an_answer_on_record_is_free_after_a_kill(wire: Wire, tmp_path: Path) -> None:
    """Vectors that only the journal held at a SIGKILL cost nothing when asked for again, and are booked once."""
    folder, key = tmp_path / "g", "sk-of-these-servers-alone-k9x2"
    with serving(folder, wire, OPENAI_API_KEY=key) as server:
        for n in range(5):
            assert server.embed(f"before the kill {n}").status == 200
        holder = (server.home / "cache.sqlite").open("rb")
        lock = sqlite3.connect(server.home / "cache.sqlite", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")  # nobody can write to the cache
        bought = server.embed("only in the journal")
        server.process.kill()
        server.process.wait()
        lock.execute("ROLLBACK")
        lock.close()
        holder.close()
        env = server.environment
    with started(folder, env) as again:
        found = again.embed("only in the journal")
        again.stop()

        sent = [one for one in wire.truth() if one["key"] == key[-4:]]
        assert len(sent) == bill(again).attempts == 6
        assert bought.headers["x-embedctl-cache"] == "miss"
        assert found.headers["x-embedctl-cache"] == "hit"
        assert found.headers["x-embedctl-cost-usd"] == "0"
        assert found.json["data"] == bought.json["data"]


def test_free_calls_wait_for_no_disk(tmp_path: Path, wire: Wire) -> None:
    """A local model serves without any provider, key or price; its calls are booked with 0."""
    with serving(tmp_path / "g", None, OPENAI_API_KEY="") as server:
        reply = server.embed("local", model="onnx:all-MiniLM-L6-v2")
        server.stop()

        assert reply.headers["x-embedctl-cost-usd"] == "0"
        assert server.ledger("SELECT provider, cost FROM usage_event") == [("onnx", 0)]


def test_without_its_extra_it_says_what_is_missing(tmp_path: Path) -> None:
    """Without the libraries of the extra: 78, what is missing, and how it is installed."""
    for name in ("starlette", "uvicorn"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError(name=__name__)")
    env = environment(tmp_path, None) | {"PYTHONPATH": f"{tmp_path}:{places.ROOT}"}
    command = [sys.executable, "-c", "from embedctl import cli; cli.app()", "serve"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.returncode == 78
    assert "needs its extra: starlette, uvicorn, PyJWT, python-multipart" in done.stderr
    assert "hint: " in done.stderr


def test_a_port_that_is_taken_and_a_bad_flag(tmp_path: Path) -> None:
    """A taken port is 78, an impossible one 2, half of a certificate 2: each in one line."""
    env = environment(tmp_path, None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = [
            embedctl(tmp_path, env, "serve", "--port", taken.getsockname()[1]),
            embedctl(tmp_path, env, "serve", "--port", 70_000),
            embedctl(tmp_path, env, "serve", "--cert", "x.pem"),
        ]

    assert [one.returncode for one in ended] == [78, 2, 2]
    assert not any("Traceback" in one.stderr for one in ended)


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    """Keys are listed with what they may; wrong flags are named; an unknown id is 66."""
    env = environment(tmp_path, None)
    key = make_key(tmp_path, env, "--rpm", 60, "--budget", "5/day", "--expires", "90d", "--models", "a,b*")
    listed = embedctl(tmp_path, env, "keys")
    wrong = [
        embedctl(tmp_path, env, "keys", "create", "-w", "x", *flags)
        for flags in (["--rpm", "0"], ["--budget", "much"], ["--expires", "soon"], ["--models", "a*b"])
    ]
    wrong.append(embedctl(tmp_path, env, "keys", "create", "-w", "Not A Name"))

    assert key.split("_")[1] in listed.stdout
    assert "5.00/day" in listed.stdout
    assert [one.returncode for one in wrong] == [2] * 5
    assert embedctl(tmp_path, env, "keys", "revoke", "zzzzzzzz").returncode == 66
    assert os.stat(tmp_path / "state" / "keys.toml").st_mode & 0o777 == 0o600

"""The server's money under clients: whatever they do in whatever order, confirmed ≤ invoice ≤ confirmed + unknown."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import hash_of, sentence
from tests.support.serving import MODEL, Serving, bill, environment, make_key, started, write_settings
from tests.support.wire.client import Wire

FAULTS = {
    "status": {"p": 0.04, "status": 503},
    "truncated": 0.06,
    "reset_after": 0.03,
    "reset_before": 0.03,
    "rate": {"p": 0.03, "seconds": 0.05},
    "drip": {"p": 0.05, "seconds": 0.1},
    "hang": {"p": 0.02, "seconds": 0.2},
    "count": 0.02,
    "usage_missing": 0.02,
    "shuffled": 0.1,
}
"""503, half a body, lost before and after the work, 429, slow, wrong."""

WORKSPACES = ("one", "two", "three")
SETTINGS = "[serve]\ngrace_s = 0\ndrain_s = 20\nbody_s = 2\n[serve.jobs]\nagain_s = 0.2\n"
RATED = """
SELECT workspace_id, coalesce(sum(tokens_total) FILTER (billable = 'yes' AND entry_kind = 'usage'), 0),
       coalesce(sum(tokens_estimated) FILTER (billable = 'unknown' AND entry_kind = 'usage'), 0)
FROM usage_event GROUP BY ALL
"""


class Clients:
    """Clients of three workspaces, some of which are ill-behaved.

    Attributes:
        keys: Workspace → a key that lasts.
        asked: Text hash → the workspace whose text it is.
        statuses: How often each was answered.
    """

    def __init__(self, server: Serving, keys: dict[str, str], seed: int, number: int) -> None:
        self.server = server
        self.keys = keys
        self.seed = seed
        self.asked: dict[str, str] = {}
        self.statuses: Counter[int] = Counter()
        self._left = iter(range(number))
        self._lock = threading.Lock()

    def work(self, seed: int) -> None:
        """One operation after the other, as long as there are any."""
        chance = random.Random(seed)
        kinds: list[Callable[[random.Random, str], None]] = [
            *[self.embed] * 6, *[self.gone] * 4, self.as_lists, self.same_at_once, self.half_a_request,
            self.half_closed, self.hurried, self.in_line, self.revoked, self.reloaded,
        ]  # fmt: skip
        while True:
            with self._lock:
                number = next(self._left, None)
            if number is None:
                return
            # few, for each is a process of its own
            kind = self.repeated_job if number % 60 == 59 else chance.choice(kinds)
            with contextlib.suppress(OSError, http.client.HTTPException):
                kind(chance, chance.choice(WORKSPACES))

    def texts(self, chance: random.Random, workspace: str) -> list[str]:
        first = 1000 * WORKSPACES.index(workspace)
        found = [sentence(first + chance.randrange(400)) for _ in range(chance.choice((1, 1, 2, 5)))]
        with self._lock:
            self.asked |= {hash_of(text): workspace for text in found}
        return found

    def told(self, status: int) -> None:
        with self._lock:
            self.statuses[status] += 1

    # well-behaved

    def embed(self, chance: random.Random, workspace: str) -> None:
        self.told(self.server.embed(self.texts(chance, workspace), key=self.keys[workspace]).status)

    def as_lists(self, chance: random.Random, workspace: str) -> None:
        body = {"model": MODEL, "texts": self.texts(chance, workspace)}
        bearer = f"Bearer {self.keys[workspace]}"
        self.told(self.server.ask("POST", "/api/v1/embeddings/batch", body, Authorization=bearer).status)

    def same_at_once(self, chance: random.Random, workspace: str) -> None:
        """Three ask for the same texts; who of them pays is for the server to say."""
        texts = self.texts(chance, workspace)
        threads = [
            threading.Thread(target=lambda: self.told(self.server.embed(texts, key=self.keys[workspace]).status))
            for _ in range(3)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    def repeated_job(self, chance: random.Random, workspace: str) -> None:
        """A job that is sent twice, by its key, and once more with another content."""
        name = f"key-{chance.randrange(10**9)}"
        texts = [{"id": str(at), "text": text} for at, text in enumerate(dict.fromkeys(self.texts(chance, workspace)))]
        for content in (texts, texts, texts[:1]):
            reply = self.server.ask(
                "POST",
                "/api/v1/embeddings/jobs",
                {"model": MODEL, "texts": content},
                Authorization=f"Bearer {self.keys[workspace]}",
                Idempotency_Key=name,
            )
            self.told(reply.status)

    # ill-behaved

    def request(self, chance: random.Random, workspace: str, more: str = "") -> bytes:
        body = json.dumps({"model": MODEL, "input": self.texts(chance, workspace)}).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.keys[workspace]}\r\n"
            f"Content-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), 60)

    def gone(self, chance: random.Random, workspace: str) -> None:
        """The client leaves in the middle, politely or not, or when the answer has begun."""
        with self.connected() as client:
            client.sendall(self.request(chance, workspace))
            time.sleep(chance.choice((0, 0.005, 0.02, 0.05)))  # whenever that is
            if chance.random() < 0.3:
                client.recv(100)
            if chance.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def half_a_request(self, chance: random.Random, workspace: str) -> None:
        with self.connected() as client:
            client.sendall(self.request(chance, workspace)[: -chance.randrange(1, 40)])

    def half_closed(self, chance: random.Random, workspace: str) -> None:
        with self.connected() as client:
            client.sendall(self.request(chance, workspace))
            client.shutdown(socket.SHUT_WR)
            self.told(int(client.makefile("rb").readline().split()[1]))

    def in_line(self, chance: random.Random, workspace: str) -> None:
        """Three requests before the first answer, and nobody waits for the last one."""
        with self.connected() as client:
            client.sendall(b"".join(self.request(chance, workspace) for _ in range(3)))
            client.recv(1000)

    def hurried(self, chance: random.Random, workspace: str) -> None:
        """Its deadline comes before, or with, the answer."""
        seconds = chance.choice(("0.001", "0.01", "0.03"))
        reply = self.server.embed(
            self.texts(chance, workspace), key=self.keys[workspace], headers={"X_Embedctl_Timeout": seconds}
        )
        self.told(reply.status)

    # the operator

    def revoked(self, chance: random.Random, workspace: str) -> None:
        """A key ends while requests with it are under way."""
        server = self.server
        key = make_key(server.folder, server.environment, workspace=workspace)
        texts = [self.texts(chance, workspace) for _ in range(4)]
        threads = [threading.Thread(target=self.with_key, args=(key, one)) for one in texts]
        for one in threads:
            one.start()
        assert server.run("keys", "revoke", key.split("_")[1]).returncode == 0
        for one in threads:
            one.join()

    def with_key(self, key: str, texts: list[str]) -> None:
        end = time.monotonic() + 5
        while (reply := self.server.embed(texts, key=key)).status == 401 and time.monotonic() < end:
            time.sleep(0.05)  # it is known within a second, or revoked already
            if reply.code == "expired_key":
                break
        self.told(reply.status)

    def reloaded(self, chance: random.Random, workspace: str) -> None:
        """SIGHUP with other settings: other prices, limits and accounts from here on."""
        self.server.process.send_signal(signal.SIGHUP)
        self.embed(chance, workspace)


def operations(wire: Wire, folder: Path, number: int, seed: int) -> None:
    """So many random operations of six clients; then the bill, in all and of each workspace."""
    write_settings(folder, SETTINGS)
    env = environment(folder, wire)
    keys = {name: make_key(folder, env, "--in-flight", 64, workspace=name) for name in WORKSPACES}
    wire.plan(faults=FAULTS, seed=seed, latency_s=0.01)
    with started(folder, env) as server:
        clients = Clients(server, keys, seed, number)
        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            assert [*threads.map(clients.work, range(seed * 100, seed * 100 + 6))] == [None] * 6
        wire.plan()
        for workspace in WORKSPACES:  # so that there are jobs to an end
            jobs(server, keys[workspace])
        server.stop()
        log = server.log()
        found, truth = bill(server), wire.truth()
        rows = server.ledger(RATED)
    billed = sum(one["tokens_billed"] for one in truth)

    print(seed, dict(clients.statuses), len(truth), found, billed, sep=" | ")  # `-s` shows it
    assert [one for one in log if one["event"] in ("bug", "library") or one.get("status") == 500] == []
    assert found.confirmed <= billed <= found.confirmed + found.unknown
    assert found.attempts >= len(truth)
    assert {workspace for workspace, *_ in rows} <= set(WORKSPACES)
    invoice: Counter[str] = Counter()
    for one in truth:
        (whose,) = {clients.asked[text_hash] for text_hash in one["text_hashes"]}  # nobody pays for somebody else
        invoice[whose] += one["tokens_billed"]
    for workspace, confirmed, unknown in rows:
        assert confirmed <= invoice[workspace] <= confirmed + unknown, workspace


def jobs(server: Serving, key: str) -> None:
    """Wait until none is under way."""
    end = time.monotonic() + 60
    bearer = {"Authorization": f"Bearer {key}"}
    while any(
        one["status"] in ("queued", "processing")
        for one in server.ask("GET", "/api/v1/embeddings/jobs?limit=200", **bearer).json["data"]
    ):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_invoice_holds_whatever_clients_do(wire: Wire, tmp_path: Path) -> None:
    """Clients leave, hurry, repeat, send halves; keys end, settings change, the provider fails: the books balance."""
    wire.reset()
    operations(wire, tmp_path, 120, seed=3)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_the_invoice_holds_whatever_many_clients_do(wire: Wire, tmp_path: Path, seed: int) -> None:
    """Five hundred operations."""
    wire.reset()
    operations(wire, tmp_path, 500, seed=100 + seed)

"""The server's money under kills: confirmed ≤ the provider's invoice ≤ confirmed + unknown; what is known is free."""

from __future__ import annotations

import http.client
import json
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.processes import sentence
from tests.support.serving import BILL, Bill, Serving, bill, environment, make_key, started, until, write_settings
from tests.support.wire.client import Wire

FAULTS = {
    "status": {"p": 0.05, "status": 503},
    "reset_after": 0.03,
    "reset_before": 0.03,
    "rate": {"p": 0.03, "seconds": 0.05},
    "count": 0.02,
    "usage_missing": 0.02,
}


@dataclass
class Load:
    """Clients that ask until they are stopped.

    Attributes:
        answered: Texts that somebody got a vector for, with the key that asked.
    """

    server: Serving
    keys: list[str]
    texts: list[str]
    answered: list[tuple[str, str]] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def ask(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stopped.is_set():
            key, some = chance.choice(self.keys), chance.sample(self.texts, chance.choice((1, 1, 2, 5)))
            try:
                reply = self.server.embed(some, key=key, encoding_format="base64")
            except (OSError, ValueError, http.client.HTTPException):  # it was killed in the middle
                if self.server.process.poll() is not None:
                    return
                continue
            self.statuses.add(reply.status)
            if reply.status == 200:
                self.answered += [(text, key) for text in some]


def rounds(wire: Wire, folder: Path, number: int, seed: int) -> None:
    """Kill a server under load so many times; look at what is free after each, and at the bill in the end."""
    chance = random.Random(seed)
    write_settings(folder, "[serve]\ngrace_s = 0\ndrain_s = 5\n")
    env = environment(folder, wire)
    keys = [make_key(folder, env, "--in-flight", 64, workspace=name) for name in ("one", "two")]
    wire.plan(faults=FAULTS, seed=seed, latency_s=0.01)
    known: list[tuple[str, str]] = []
    killed = 0
    for count in range(number):
        with started(folder, env) as server:
            for text, key in [*known[:1], *chance.sample(known[1:], min(4, len(known[1:])))]:
                reply = server.embed(text, key=key)
                assert reply.headers.get("x-embedctl-cache") == "hit", (count, text, reply)
            sure = (f"answered before the load of round {count}", keys[count % 2])
            until(lambda sure=sure: server.embed(sure[0], key=sure[1]).status == 200)
            load = Load(server, keys, [sentence(count * 40 % 4000 + n) for n in range(60)])
            clients = [threading.Thread(target=load.ask, args=(seed * 1000 + count * 10 + n,)) for n in range(6)]
            for client in clients:
                client.start()
            time.sleep(chance.uniform(0.1, 1.2))  # when the kill comes is chance, and what holds must not depend on it
            fate = chance.choice((signal.SIGKILL, signal.SIGTERM))
            killed += fate == signal.SIGKILL
            server.process.send_signal(fate)
            server.process.wait(120)
            load.stopped.set()
            for client in clients:
                client.join()
            known = [sure, *load.answered]
            assert load.statuses <= {200, 429, 502, 503, 504}, [one for one in server.log() if one.get("status") == 500]
    wire.plan()
    with started(folder, env) as server:
        assert server.embed("the last one", key=keys[0]).status == 200
        server.stop()
        found, billed = bill(server), wire.billed()
        workspaces = {row[0] for row in server.ledger("SELECT DISTINCT workspace_id FROM usage_event")}

    row = (seed, f"{killed} SIGKILL, {number - killed} SIGTERM", len(wire.truth()), found.attempts, found.hits)
    print(*row, found.confirmed, billed, found.confirmed + found.unknown, sep=" | ")  # `pytest --long -s` shows it
    assert found.confirmed <= billed <= found.confirmed + found.unknown
    assert found.attempts >= len(wire.truth())
    assert found.hits >= number - 1
    assert workspaces == {"one", "two"}


def test_the_invoice_holds_under_kills(wire: Wire, tmp_path: Path) -> None:
    """A handful of random SIGKILL and SIGTERM under load, two keys, a provider that fails: the books still balance."""
    wire.reset()
    rounds(wire, tmp_path, 5, seed=7)


def test_what_a_killed_server_spent_is_in_the_next_report(wire: Wire, tmp_path: Path) -> None:
    """Any report takes in what a killed server spent; the next server knows its vectors, and counts nothing twice."""
    wire.reset()
    env = environment(tmp_path, wire)
    key = make_key(tmp_path, env, workspace="one")
    with started(tmp_path, env) as server:
        assert server.embed("bought before the kill", key=key).status == 200
        server.stop(signal.SIGKILL)
        said = server.run("usage", "sql", BILL, "--format", "csv")
    with started(tmp_path, env) as again:
        assert again.embed("bought before the kill", key=key).headers["x-embedctl-cache"] == "hit"
        again.stop()

    assert said.stdout.splitlines()[1] == f"{wire.billed()},0,1,0", said.stderr
    assert bill(again) == Bill(confirmed=wire.billed(), unknown=0, attempts=1, hits=1)


def test_a_server_that_was_killed_before_it_was_asked_leaves_nothing_to_look_at(tmp_path: Path) -> None:
    """Its folder in the home goes with the next recovery; that is no output which somebody has removed."""
    with started(tmp_path, environment(tmp_path, None)) as server:
        server.stop(signal.SIGKILL)
        server.run("usage", "ingest")
        said = server.run("usage", "doctor", "--json")

    states = {one["check"]: one["state"] for one in json.loads(said.stdout)["findings"]}
    assert states["killed runs"] == "ok"
    assert list((server.home / "journal").iterdir()) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_the_invoice_holds_under_many_kills(wire: Wire, tmp_path: Path, seed: int) -> None:
    """Two hundred of them."""
    wire.reset()
    rounds(wire, tmp_path, 50, seed=100 + seed)

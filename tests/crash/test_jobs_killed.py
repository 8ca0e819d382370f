"""Jobs under kills of the server, of a child, of both: they end, and confirmed ≤ the invoice ≤ confirmed + unknown."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import MODEL, Serving, bill, environment, make_key, started, until, write_settings
from tests.support.wire.client import Wire

JOBS = "/api/v1/embeddings/jobs"
ITEMS, CONCURRENCY = 4, 3
SETTINGS = f"""
[providers.openai]
max_items = {ITEMS}
concurrency = {CONCURRENCY}
[serve]
grace_s = 0
drain_s = 10
[serve.jobs]
again_s = 0.2
"""
FAULTS = {"status": {"p": 0.05, "status": 503}, "reset_after": 0.03, "rate": {"p": 0.03, "seconds": 0.05}}


def posted(server: Serving, key: str, words: list[str]) -> str:
    body = {"model": MODEL, "texts": [{"id": n, "text": word} for n, word in enumerate(words)]}
    made = server.ask("POST", JOBS, body, Authorization=f"Bearer {key}")
    assert made.status == 202, made
    return str(made.json["id"])


def shown(server: Serving, key: str, job: str) -> dict[str, Any]:
    return dict(server.ask("GET", f"{JOBS}/{job}", Authorization=f"Bearer {key}").json)


def completed(server: Serving, key: str, job: str, *, seconds: float = 90) -> dict[str, Any]:
    """The job at its end; one that failed meanwhile is gone on with."""
    end = time.monotonic() + seconds
    while (found := shown(server, key, job))["status"] != "completed":
        assert time.monotonic() < end, (found, server.log()[-8:])
        if found["status"] == "failed":
            server.ask("POST", f"{JOBS}/{job}/retry", Authorization=f"Bearer {key}")
        time.sleep(0.1)
    return found


def child(home: Path, job: str) -> int | None:
    """The process that works on a job, as far as its lock tells."""
    with suppress(OSError, ValueError, KeyError):
        pid = int(json.loads((home / "jobs" / job / "out" / "_embedctl" / "lock").read_bytes())["pid"])
        if b"batch" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def begun(wire: Wire, home: Path, job: str, requests: int = 1) -> int:
    """Wait until a job has asked for something; its process."""
    until(lambda: len(wire.truth()) >= requests and child(home, job) is not None, seconds=60)
    found = child(home, job)
    assert found is not None
    return found


def kill_child(home: Path, job: str) -> bool:
    if (pid := child(home, job)) is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def words(number: int, job: object = "") -> list[str]:
    return [f"text {n} of the job {job}" for n in range(number)]


def test_a_killed_child_is_started_anew(wire: Wire, tmp_path: Path) -> None:
    """The server notices its death; what was answered is not bought again, what was in flight may be."""
    wire.reset()
    wire.plan(hold_after=4)
    write_settings(tmp_path, SETTINGS)
    env = environment(tmp_path, wire)
    key = make_key(tmp_path, env)
    with started(tmp_path, env) as server:
        job = posted(server, key, words(24))
        begun(wire, server.home, job, 4)
        assert kill_child(server.home, job)
        wire.plan()
        found = completed(server, key, job)
        until(lambda: shown(server, key, job)["tokens"] is not None, seconds=60)
        told = shown(server, key, job)
        server.stop()
    said, billed = bill(server), wire.billed()
    bought = [wire.bought(word)["standard"] for word in words(24)]

    assert (found["embedding_count"], found["failed_rows"]) == (24, 0)
    assert said.confirmed <= billed <= said.confirmed + said.unknown
    assert told["tokens"] == said.confirmed
    assert set(bought) <= {1, 2}
    assert sum(bought) - 24 <= ITEMS * CONCURRENCY


@pytest.mark.parametrize("both", [False, True])
def test_a_killed_server_s_job_goes_on(wire: Wire, tmp_path: Path, both: bool) -> None:
    """A child outlives its server, and the next one follows it; where it died too, the next one starts it anew."""
    wire.reset()
    wire.plan(hold_after=1)
    write_settings(tmp_path, SETTINGS)
    env = environment(tmp_path, wire)
    key = make_key(tmp_path, env)
    with started(tmp_path, env) as server:
        job = posted(server, key, words(24))
        begun(wire, server.home, job)
        server.stop(signal.SIGKILL)
        if both:
            kill_child(server.home, job)
    with started(tmp_path, env) as again:
        again.ask("GET", "/v1/models", Authorization=f"Bearer {key}")
        wire.plan()
        found = completed(again, key, job)
        tries = json.loads((again.home / "jobs" / job / "job.json").read_bytes())["tries"]
        again.stop()
    said, billed = bill(again), wire.billed()
    bought = [wire.bought(word)["standard"] for word in words(24)]

    assert found["embedding_count"] == 24
    assert tries == (2 if both else 1)
    assert said.confirmed <= billed <= said.confirmed + said.unknown
    assert both or bought == [1] * 24
    assert sum(bought) - 24 <= ITEMS * CONCURRENCY


def test_a_stopped_server_stops_its_jobs_and_the_next_one_goes_on(wire: Wire, tmp_path: Path) -> None:
    """SIGTERM: what a child has asked for is answered and kept; nothing is bought twice."""
    wire.reset()
    wire.plan(latency_s=0.2)
    write_settings(tmp_path, SETTINGS)
    env = environment(tmp_path, wire)
    key = make_key(tmp_path, env)
    with started(tmp_path, env) as server:
        job = posted(server, key, words(24))
        begun(wire, server.home, job, 3)
        code = server.stop()
        lives = child(server.home, job)
    with started(tmp_path, env) as again:
        wire.plan()
        found = completed(again, key, job)
        again.stop()

    assert (code, lives) == (143, None)
    assert found["embedding_count"] == 24
    assert [wire.bought(word)["standard"] for word in words(24)] == [1] * 24


def test_a_revoked_key_s_job_stops(wire: Wire, tmp_path: Path) -> None:
    """Its child asks for nothing more, and the job says why; another key of its workspace goes on, and buys none again.

    What the child has asked for is kept.
    """
    wire.reset()
    wire.plan(hold_after=1)
    write_settings(tmp_path, SETTINGS)
    env = environment(tmp_path, wire)
    key = make_key(tmp_path, env)
    with started(tmp_path, env) as server:
        gone = server.key()
        job = posted(server, gone, words(24))
        begun(wire, server.home, job)
        server.run("keys", "revoke", gone.split("_")[1])
        until(lambda: server.ask("GET", f"{JOBS}/{job}", Authorization=f"Bearer {gone}").status == 401)
        until(lambda: "stopping" in (server.home / "jobs" / job / "log").read_text())
        wire.plan()
        until(lambda: shown(server, key, job)["status"] in ("failed", "completed"), seconds=60)
        found = shown(server, key, job)
        refused = server.ask("GET", f"{JOBS}/{job}", Authorization=f"Bearer {gone}")
        wire.plan()
        again = completed(server, key, job)
        server.stop()

    assert (found["status"], found["error"]["code"], refused.status) == ("failed", "invalid_key", 401)
    assert again["embedding_count"] == 24
    assert [wire.bought(word)["standard"] for word in words(24)] == [1] * 24


def rounds(wire: Wire, folder: Path, number: int, seed: int, tell: Callable[[object], None]) -> None:
    """So many kills of the server, a child, or both, at random; then all jobs end, and the books are looked at."""
    chance = random.Random(seed)
    write_settings(folder, SETTINGS)
    env = environment(folder, wire)
    key = make_key(folder, env)
    wire.plan(faults=FAULTS, seed=seed, latency_s=0.3)
    jobs: list[str] = []
    fates = {"server": 0, "child": 0, "both": 0}
    children = 0
    while sum(fates.values()) < number:
        with started(folder, env) as server:
            jobs.append(posted(server, key, words(24, f"{seed}-{len(jobs)}")))
            fate = "child"
            while fate == "child" and sum(fates.values()) < number:
                time.sleep(chance.uniform(0.2, 4.0))  # when the kill comes is chance: what holds must not depend on it
                fate = chance.choice(("server", "child", "both"))
                fates[fate] += 1
                if fate != "server":
                    children += sum(kill_child(server.home, job) for job in jobs)
            if fate != "child":
                server.stop(signal.SIGKILL)
    wire.plan()
    with started(folder, env) as server:
        for job in jobs:
            assert completed(server, key, job, seconds=240)["embedding_count"] == 24
        server.stop()
    said, billed = bill(server), wire.billed()
    bought = [wire.bought(word)["standard"] for n in range(len(jobs)) for word in words(24, f"{seed}-{n}")]
    again = sum(bought) - len(bought)
    row = (seed, fates, children, len(jobs), again, said.confirmed, billed, said.confirmed + said.unknown)
    tell("seed {} | {} | {} children killed | {} jobs | {} texts bought again | {} <= {} <= {}".format(*row))

    assert said.confirmed <= billed <= said.confirmed + said.unknown
    assert said.attempts >= len(wire.truth())
    assert min(bought) >= 1
    lost = sum(one["fault"] == "reset_after" for one in wire.truth())
    assert again <= (children * CONCURRENCY + lost) * ITEMS


def test_the_invoice_holds_under_kills(wire: Wire, tmp_path: Path, counted: Callable[[object], None]) -> None:
    """A few of them, with a provider that fails."""
    wire.reset()
    rounds(wire, tmp_path, 3, 30, counted)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(2))
def test_the_invoice_holds_under_many_kills(
    wire: Wire, tmp_path: Path, counted: Callable[[object], None], seed: int
) -> None:
    """Sixty of them."""
    wire.reset()
    rounds(wire, tmp_path, 30, 50 + seed, counted)

"""What a client sees of providers that fail: retried a little, failed over inside the space, never dead for ever."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.serving import MODEL, Serving, bill, serving, until
from tests.support.wire.client import Wire, expected, started


@pytest.fixture(scope="module")
def second() -> Iterator[Wire]:
    """Another place that serves the same models."""
    with started() as server:
        yield server


@pytest.fixture(autouse=True)
def fresh(wire: Wire, second: Wire) -> None:
    wire.reset()
    second.reset()


def two_places(second: Wire) -> str:
    """Settings in which `spare` may take over for openai."""
    return (
        f'[providers.spare]\nprotocol = "openai"\nbase_url = "{second.base_url()}"\nprice_as = "openai"\n'
        f'[fallback]\nopenai = ["spare:{MODEL}"]\n'
    )


FAILING: list[tuple[Any, int, str]] = [
    ({"fault": "status", "status": 405}, 502, "provider_refused"),
    ({"fault": "status", "status": 500}, 503, "provider_unavailable"),
    ({"fault": "status", "status": 503}, 503, "provider_unavailable"),
    ("reset_before", 504, "deadline_exceeded"),
    ("unauthorized", 503, "provider_credentials_rejected"),
    ("forbidden", 503, "provider_credentials_rejected"),
    ("quota", 503, "provider_quota_exhausted"),
    ({"fault": "rate", "seconds": 0.05}, 429, "provider_rate_limited"),
    ("count", 502, "provider_malformed_response"),
    ("nan", 502, "provider_malformed_response"),
    ("html", 502, "provider_malformed_response"),
    ("redirect", 502, "provider_malformed_response"),
    ("other_model", 502, "space_mismatch"),
]


@pytest.mark.parametrize(("fault", "status", "code"), FAILING, ids=[str(one[0]) for one in FAILING])
def test_a_provider_s_failure_has_its_code(wire: Wire, tmp_path: Path, fault: Any, status: int, code: str) -> None:
    """Each failure has its status and code; a provider's 401 is never the client's; at most three requests are made."""
    name, more = (fault, {}) if isinstance(fault, str) else (fault["fault"], fault)
    with serving(tmp_path / "g", wire) as server:
        assert server.embed("one that is answered").status == 200
        wire.plan(faults={name: {"p": 1, **more}})
        reply = server.embed("a text of some length")
        requests = len(wire.truth())
        server.stop()

        assert (reply.status, reply.code) == (status, code)
        assert reply.json["error"]["type"] in ("upstream_error", "rate_limit_error")
        assert requests <= 1 + 3
        hopeless = "provider_credentials_rejected", "provider_quota_exhausted", "space_mismatch", "provider_refused"
        assert (reply.headers.get("x-should-retry") == "false") == (code in hopeless)
        assert bill(server).attempts == requests


def test_a_few_failures_are_no_failure(wire: Wire, tmp_path: Path) -> None:
    """Two failures in a row are repeated here: the client sees vectors."""
    with serving(tmp_path / "g", wire) as server:
        wire.plan(script=[{"fault": "status", "status": 503}, {"fault": "status", "status": 503}])

        assert server.embed("patience").status == 200
        assert len(wire.truth()) == 3


def test_a_refused_text_is_named(wire: Wire, tmp_path: Path) -> None:
    """A text that the provider refuses is 400 `text_refused` with its place; the others are bought and kept."""
    with serving(tmp_path / "g", wire) as server:
        wire.plan(poison=["poison"])
        reply = server.embed(["good one", "poison", "good two"])
        again = server.embed(["good one", "good two"])

        assert (reply.status, reply.code) == (400, "text_refused")
        assert reply.json["error"]["param"] == "input[1]"
        assert again.headers["x-embedctl-cache"] == "hit"


def test_another_place_takes_over_inside_the_space(wire: Wire, second: Wire, tmp_path: Path) -> None:
    """When the first fails, one that is proven to give the same vectors serves, and says for whom; both are booked."""
    with serving(tmp_path / "g", wire, settings=two_places(second)) as server:
        compared = [f"a text to compare with, long enough to be of ordinary length {n}" for n in range(3)]
        first = [server.embed(text) for text in compared][-1]
        wire.plan(faults={"status": {"p": 1, "status": 503}})
        texts = ["taken over by another place"]
        reply = server.embed(texts, encoding_format="float")
        vectors = np.array([one["embedding"] for one in reply.json["data"]]).astype(np.float32)
        server.stop()
        rows = server.ledger("SELECT provider, status, fallback_from FROM usage_event WHERE purpose <> 'test'")

        assert first.headers["x-embeddings-provider"] == "openai"
        assert reply.headers["x-embeddings-provider"] == "spare"
        assert reply.headers["x-embeddings-fallback-from"] == "openai"
        assert reply.json["model"] == f"spare:{MODEL}"
        assert vectors.tobytes() == expected(texts, MODEL).tobytes()
        assert ("spare", "ok", f"openai:{MODEL}") in rows
        assert ("openai", "error", None) in rows


def test_another_space_never_takes_over(wire: Wire, second: Wire, tmp_path: Path) -> None:
    """A place that gives other vectors for the same texts is found out by probes, and serves nobody."""
    with serving(tmp_path / "g", wire, settings=two_places(second)) as server:
        for n in range(3):
            assert server.embed(f"a vector of the space that counts from now on, number {n}").status == 200
        second.plan(spaces={MODEL: "another"})
        wire.plan(script=[{"fault": "status", "status": 503}] * 2)
        reply = server.embed("who takes over")

        assert (reply.status, reply.code) in ((502, "space_mismatch"), (503, "provider_unavailable"))
        assert {one["status"] for one in second.truth()} == {200}


def test_a_pinned_provider_has_no_fallback(wire: Wire, second: Wire, tmp_path: Path) -> None:
    """`x-provider` pins: nobody else is asked."""
    with serving(tmp_path / "g", wire, settings=two_places(second)) as server:
        wire.plan(faults={"status": {"p": 1, "status": 503}})
        reply = server.embed("only there", headers={"X_Provider": "openai"})

        assert reply.status == 503
        assert second.truth() == []


def circuit(server: Serving) -> tuple[str, float]:
    """How openai's stands, and for how long it stays so."""
    found = server.ask("GET", "/api/v1/embeddings/circuit-breakers").json["openai"]
    return found["state"], found["current_recovery_timeout"]


SHORTEST_STAY_S = 5.0
"""Of a text that is put off: half of `Thresholds.open_s`, where chance would have it."""


def test_an_open_circuit_asks_nobody_and_closes_again(wire: Wire, tmp_path: Path) -> None:
    """Clients that repeat against an open circuit cause no request; `providers reset` closes it at once."""
    with serving(tmp_path / "g", wire) as server:
        wire.plan(faults={"status": {"p": 1, "status": 503}})
        for _ in range(10):
            until(lambda: server.embed("ill").code == "circuit_open")
            before, began = len(wire.truth()), circuit(server)
            replies = [server.embed(f"again {n}") for n in range(20)]
            health = server.ask("GET", "/api/v1/embeddings/health").json["circuit_breakers"]["openai"]
            if began == circuit(server):  # else its time was over meanwhile, and it was tried again
                break

        assert {(one.status, one.code) for one in replies} == {(503, "circuit_open")}
        assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in replies)
        assert len(wire.truth()) == before
        assert health["state"] == "open"

        wire.plan()
        assert server.run("providers", "reset", "openai").returncode == 0
        until(lambda: server.embed("well again").status == 200)


@pytest.mark.parametrize("kind", ["reset", "server"])
def test_a_poisonous_text_takes_nobody_s_provider(wire: Wire, tmp_path: Path, kind: str) -> None:
    """A text over which the provider breaks is put off; other clients are served by it, whoever repeats that text."""
    with serving(tmp_path / "g", wire) as server:
        for number in range(10):
            wire.plan(poison=[f"poison {number}"], poison_kind=kind)
            before, began = len(wire.truth()), time.monotonic()
            replies = [server.embed(f"poison {number}") for _ in range(6)]
            others = [server.embed(f"somebody else's text {number}.{n}") for n in range(3)]
            shown = server.ask("GET", "/api/v1/embeddings/circuit-breakers").json["openai"]
            if time.monotonic() - began < SHORTEST_STAY_S:
                break
        server.stop()
        sent = wire.truth()[before:]

        assert {one.status for one in replies} <= {503, 504}
        assert {one.code for one in replies[2:]} == {"circuit_open"}
        assert all(int(one.headers["retry-after"]) >= 1 for one in replies[2:])
        assert [one.status for one in others] == [200] * 3
        assert shown["state"] == "closed"
        assert 1 <= shown["inputs_put_off"] <= 1 + number  # texts of earlier tries may still be
        assert [one["fault"] for one in sent].count("ok") == 3
        assert len(sent) == 5 + 3
        assert bill(server).attempts == len(wire.truth())


def test_rejected_credentials_are_looked_at_again(wire: Wire, tmp_path: Path) -> None:
    """A provider that rejected its key is not asked for every request, and is revived by a reset."""
    with serving(tmp_path / "g", wire) as server:
        wire.plan(keys=["another key"])
        codes = {server.embed(f"key {n}").code for n in range(5)}

        assert codes == {"provider_credentials_rejected"}
        assert len(wire.truth()) == 1

        wire.plan()
        assert server.run("providers", "reset", "openai").returncode == 0
        until(lambda: server.embed("well again").status == 200)


def test_another_model_is_no_end(wire: Wire, tmp_path: Path) -> None:
    """A provider that answered from another model serves again once it answers from the right one."""
    with serving(tmp_path / "g", wire) as server:
        assert server.embed("the right one").status == 200
        wire.plan(script=["other_model"])

        assert server.embed("another one").code == "space_mismatch"
        assert server.run("providers", "reset", "openai").returncode == 0
        until(lambda: server.embed("the right one again").status == 200)


def test_a_missing_key_is_the_operator_s_matter(tmp_path: Path) -> None:
    """A provider without credentials is 503 with a code of its own, and no request."""
    with serving(tmp_path / "g", None, OPENAI_API_KEY="") as server:
        reply = server.embed("a")

        assert (reply.status, reply.code) == (503, "missing_provider_credentials")


def test_equal_texts_in_flight_are_bought_once(wire: Wire, tmp_path: Path) -> None:
    """Many who ask for the same text at once cause one request; all get the vector, and one pays."""
    with serving(tmp_path / "g", wire) as server:
        server.embed("warm")
        wire.reset()
        wire.plan(latency_s=0.5)
        with concurrent.futures.ThreadPoolExecutor(12) as threads:
            replies = list(threads.map(lambda _: server.embed("the same at once"), range(12)))
        server.stop()

        assert len({one.body for one in replies}) == 1
        assert sorted(one.headers["x-embedctl-cache"] for one in replies) == ["hit"] * 11 + ["miss"]
        assert [one["items"] for one in wire.truth()] == [1]
        assert bill(server).hits == 11


def test_a_call_that_was_given_up_is_kept(wire: Wire, tmp_path: Path) -> None:
    """A client's shorter patience ends with 504; the answer is kept when it comes, and the retry is free."""
    with serving(tmp_path / "g", wire) as server:
        server.embed("warm")
        wire.plan(hold_after=0)
        late = server.embed("slow answer", headers={"x_stainless_read_timeout": "2"})
        wire.plan()
        again = server.embed("slow answer")

        assert (late.status, late.code) == (504, "deadline_exceeded")
        assert again.headers["x-embedctl-cache"] == "hit"
        assert again.headers["x-embedctl-cost-usd"] == "0"
        assert len(wire.truth()) == 2


def test_a_client_that_goes_away_loses_nothing(wire: Wire, tmp_path: Path) -> None:
    """A call whose client has gone is finished, booked and cached."""
    with serving(tmp_path / "g", wire) as server:
        server.embed("warm")
        wire.plan(hold_after=0)
        with pytest.raises(TimeoutError):
            server.ask("POST", "/v1/embeddings", {"model": MODEL, "input": "gone"}, timeout_s=2)
        wire.plan()
        again = server.embed("gone")
        server.stop()

        assert again.headers["x-embedctl-cache"] == "hit"
        assert bill(server).attempts == len(wire.truth()) == 2


def test_two_widths_of_a_model_nobody_knows_are_two_spaces(wire: Wire, tmp_path: Path) -> None:
    """A server whose vectors change their width in between is found out: 502, not another width with 200."""
    config = f'[providers.mine]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\nmodel = "own"\nfree = true\n'
    with serving(tmp_path / "g", wire, settings=config) as server:
        wire.plan(dimensions=8)
        first = server.embed("first", model="mine:own", encoding_format="float")
        wire.plan(dimensions=16)
        second_reply = server.embed("second", model="mine:own")

        assert len(first.json["data"][0]["embedding"]) == 8
        assert second_reply.status == 502

"""The wire server keeps its own promises: what it bills, what it forgets, what its plan makes of a seed."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import pytest

from tests.support.wire.client import Wire, expected, hash_of, started
from tests.support.wire.plan import Plan


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.reset()
    return server


def ask(wire: Wire, texts: list[str]) -> tuple[int, bytes]:
    body = orjson.dumps({"model": "text-embedding-3-small", "input": texts})
    request = urllib.request.Request(f"{wire.base_url()}/embeddings", data=body)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


def test_truth(wire: Wire) -> None:
    """Every request is remembered with its texts and what it costs; a refused one costs nothing."""
    wire.plan(script=["ok", "rate"])

    statuses = [ask(wire, ["a b", "c"])[0] for _ in range(2)]

    truth = wire.truth()
    assert statuses == [200, 429]
    assert [one["tokens_billed"] for one in truth] == [5, 0]
    assert truth[0]["text_hashes"] == [hash_of("a b"), hash_of("c")]
    assert wire.billed() == 5


def test_requests_are_held(wire: Wire) -> None:
    """After so many answers nobody gets one, and nothing is billed, until there is another plan."""
    wire.plan(hold_after=1)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, wire, [f"text {number}"]) for number in range(2)]
        while wire.held() < 1 or len(wire.truth()) < 1:
            time.sleep(0.01)
        assert (wire.held(), len(wire.truth())) == (1, 1)
        wire.plan()
        statuses = [one.result(30)[0] for one in asked]

    assert statuses == [200, 200]
    assert (wire.held(), len(wire.truth())) == (0, 2)


@pytest.mark.parametrize(
    ("fault", "billed"), [("reset_before", 0), ("reset_after", 2), ("hang_before", 0), ("hang", 2)]
)
def test_lost_answers(wire: Wire, fault: str, billed: int) -> None:
    """An answer that never arrives is billed exactly when the work was done."""
    wire.plan(script=[{"fault": fault, "seconds": 0.05}])

    with pytest.raises(OSError, match=r"reset|closed"):
        ask(wire, ["a"])

    assert wire.billed() == billed


def test_drip(wire: Wire) -> None:
    """A slow answer takes its time, and is whole."""
    wire.plan(script=[{"fault": "drip", "seconds": 0.3}])
    start = time.monotonic()

    _, body = ask(wire, ["a"])

    assert time.monotonic() - start > 0.25
    row = orjson.loads(body)["data"][0]["embedding"]
    np.testing.assert_array_equal(np.array([row], dtype=np.float32), expected(["a"], "text-embedding-3-small"))


def test_vectors_tell_texts_apart() -> None:
    """Each text has its own vector of length 1, in each space another."""
    vectors = expected(["a", "b"], "m")

    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert abs(vectors[0] @ vectors[1]) < 0.9
    assert not np.array_equal(vectors[0], expected(["a"], "m", space="other")[0])


def test_plan_is_seeded() -> None:
    """The same seed makes the same faults, in about the proportions asked for."""
    first, again, other = (Plan(faults={"rate": 0.2, "status": 0.1}, seed=seed) for seed in (1, 1, 2))

    faults = [[plan.next("openai")["fault"] for _ in range(400)] for plan in (first, again, other)]

    assert faults[0] == faults[1] != faults[2]
    assert 50 < faults[0].count("rate") < 110
    assert 20 < faults[0].count("status") < 60

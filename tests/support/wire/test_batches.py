"""The wire server's Batch APIs keep their own promises: what makes a batch fail, what is billed, what is remembered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.contract.providers.batching import TEXTS, Batches
from tests.support.wire.client import Wire, started
from tests.support.wire.test_server import ask


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture
def batches(server: Wire) -> Batches:
    server.reset()
    return Batches(server, "openai")


def line(**changes: Any) -> bytes:
    body = {"model": "text-embedding-3-small", "input": ["a"]}
    said = {"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": body, **changes}
    return orjson.dumps(said) + b"\n"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"{\n", "invalid_json_line"),
        (line(custom_id=7), "invalid_json_line"),
        (line() * 2, "duplicate_custom_id"),
        (line(url="/v1/chat/completions"), "url_mismatch"),
        (line() + line(custom_id="y", body={"model": "other", "input": ["a"]}), "model_mismatch"),
        (line(body={"model": "m", "input": ["a"], "unknown": 1}), "invalid_request"),
    ],
)
def test_files_that_make_a_batch_fail(batches: Batches, content: bytes, code: str) -> None:
    """As with OpenAI: the file is taken, the batch is made, and fails afterwards; nothing is billed."""
    outcome = batches.create("ec-1", batches.upload("ec-1", content).id)
    assert outcome.batch is not None

    ended = batches.state(outcome.batch.id)

    assert ended.state == "ended_failed"
    assert code in ended.errors[0]
    assert batches.wire.billed() == 0


def test_invoice(batches: Batches) -> None:
    """The invoice counts each text at each tier, and tokens by model."""
    ask(batches.wire, ["alpha", "alpha"])
    batches.ended("ec-1", ["alpha", "beta gamma"])
    batches.ended("ec-2", ["alpha"])

    assert batches.wire.bought("alpha") == {"standard": 2, "batch": 2}
    assert batches.wire.bought("beta gamma") == {"standard": 0, "batch": 1}
    assert batches.wire.bought("nobody asked") == {"standard": 0, "batch": 0}
    assert batches.wire.invoice()["models"] == {"text-embedding-3-small": {"standard": 4, "batch": 7}}


def test_a_batch_goes_on_without_its_client(batches: Batches) -> None:
    """Batches are the server's: whoever comes later with the id or the mark finds them, whatever was planned since."""
    batches.wire.plan(batch={"each": {"polls": 2}})
    made = batches.made()
    batches.wire.plan()

    later = Batches(batches.wire, "openai")

    assert [later.state(made.id).state for _ in range(3)] == ["waiting", "waiting", "ended_done"]
    assert [one["mark"] for one in later.wire.batches()["batches"]] == ["ec-0123"]
    batches.wire.reset()
    assert batches.wire.batches() == {"uploads": [], "batches": []}


def test_creates_are_refused_so_many_times(batches: Batches) -> None:
    """A script is spent call by call; then everything is fine."""
    batches.wire.plan(batch={"create": ["enqueued", {"fault": "enqueued", "status": 429}, "rate"]})
    file = batches.upload("ec-1", batches.lines())

    outcomes = [batches.create("ec-1", file.id) for _ in range(4)]

    assert [one.kind for one in outcomes] == ["rejected"] * 3 + ["accepted"]
    assert [one.enqueued_refused for one in outcomes] == [True, True, False, False]
    assert [one.error.status for one in outcomes if one.error] == [400, 429, 429]


def test_what_is_in_flight_is_freed_by_an_end(batches: Batches) -> None:
    """The limit of what is in flight is of batches that are not over."""
    batches.wire.plan(batch={"enqueued_limit": 30, "enqueued_how": 429, "each": {"polls": 0}})
    first = batches.made("ec-1")
    file = batches.upload("ec-2", batches.lines())

    assert batches.create("ec-2", file.id).enqueued_refused
    batches.state(first.id)
    assert batches.create("ec-2", file.id).kind == "accepted"


def test_a_list_that_lags_by_the_clock(batches: Batches) -> None:
    """A batch is missing from lists for so many seconds after it was made."""
    batches.wire.plan(batch={"batches": [{"lag_s": 3600}, {"lag_s": 0.01}]})
    batches.made("ec-1")
    batches.made("ec-2")

    end = time.monotonic() + 120
    while not (found := batches.page("ec-2").batches) and time.monotonic() < end:
        time.sleep(0.02)

    assert [one.mark for one in found] == ["ec-2"]


def test_late_lines(batches: Batches) -> None:
    """The content may hold half of its lines at first."""
    batches.wire.plan(batch={"each": {"late": 1}})
    ended = batches.ended("ec-1", [*TEXTS, *TEXTS])

    assert [len(batches.results(ended)) for _ in range(2)] == [3, 6]


@pytest.mark.parametrize("bills", [False, True])
def test_an_expired_batch_of_gemini(server: Wire, bills: bool) -> None:
    """Nothing of it is delivered; whether it is billed nobody knows: as planned."""
    server.reset()
    batches = Batches(server, "google")
    server.plan(batch={"each": {"ends": "expired", "bill_lost": bills}})

    assert batches.results(batches.ended()) == []
    assert (server.billed() > 0) == bills


def test_a_second_file_of_one_name_at_gemini(server: Wire) -> None:
    """A file's name is taken until it is deleted."""
    server.reset()
    batches = Batches(server, "google")
    file = batches.upload("ec-1", batches.lines())

    with pytest.raises(Exception, match="already exists"):
        batches.upload("ec-1", batches.lines())

    batches.delete(file.id)
    assert batches.upload("ec-1", batches.lines()).id == file.id

"""The event of an attempt: whatever an answer says, it is short, within the ledger's columns, and goes in."""

from __future__ import annotations

import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedctl import providers
from embedctl.embedding import usage, usage_events
from embedctl.embedding.usage import CountTrust
from embedctl.embedding.usage_events import Caller
from embedctl.errors import AnswerUnusable, ProviderError, RequestRefused
from embedctl.ledger import spool
from embedctl.providers import _entry
from embedctl.providers._contract import WireAnswer
from embedctl.records import Usage, UsageEvent, uuid7
from embedctl.routing import chain
from embedctl.routing.endpoint import Endpoint
from tests.support import calling
from tests.support.ledger_events import place, rows, take

VECTORS = np.ones((2, 3), np.float32)
LONG = "\u202e\x00" + "x" * 100_000


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return chain.chain(calling.load(tmp_path, model="openai:text-embedding-3-small", fallback="off")).first


def intended(endpoint: Endpoint, **caller: Any) -> UsageEvent:
    asked = calling.request(["alpha", "beta"])
    return usage_events.intended(Caller(run_id=uuid7(), **caller), endpoint, asked, 1, None)


def answered(endpoint: Endpoint, price: str | None = "0.02", mode: Any = "auto", **said: Any) -> UsageEvent:
    used = Usage(tokens_total=1_000_000, source="native", mode=mode, tokens_native=None if mode == "native" else 7)
    wire = WireAnswer(vectors=VECTORS, **said)
    usd = None if price is None else Decimal(price)
    return usage_events.answered(intended(endpoint), wire, used, 0.25, usd)


@pytest.mark.parametrize(
    ("price", "said", "believed"),
    [
        ("0.02", "0", True),
        ("0.02", "1.2", True),
        ("0.02", "1.200000000000001", False),
        ("0.13", "2.3", True),
        ("0.13", "2.31", False),
        ("0", "1", True),
        ("0", "1.01", False),
        (None, "1", True),
        (None, "1.01", False),
        ("0.02", "9999999999999", False),
    ],
)
def test_an_amount_is_believed_within_bounds(endpoint: Endpoint, price: str | None, said: str, believed: bool) -> None:
    """Up to ten times the price of the tokens and 1 USD more an answer's own amount counts; else its tokens do."""
    event = answered(endpoint, price, cost=Decimal(said))

    assert event.cost_provider == (Decimal(said) if believed else None)
    assert event.reason == (None if believed else f"not believed: a cost of {said}")
    assert event.tokens_total == 1_000_000


def test_an_amount_that_is_none_stands_in_the_reason(endpoint: Endpoint) -> None:
    """What an answer says of its cost and is no amount is kept, cut, where people find it."""
    assert answered(endpoint, odd_cost="1e99999999").reason == "not believed: a cost of 1e99999999"
    assert len(answered(endpoint, odd_cost="9" * 5000).reason or "") == 200
    both = answered(endpoint, mode="native", odd_cost="free").reason
    assert both == "native usage missing; not believed: a cost of free"


def test_tags_are_bounded(endpoint: Endpoint) -> None:
    """Twenty tags of 200 characters are on an event, whatever settings let pass."""
    value = "v" * 20_000_000
    event = intended(endpoint, tags={f"{number:02d}" + "k" * 500: value for number in range(25)})

    assert len(event.tags) == 20
    assert {len(name) for name in event.tags} == {len(value) for value in event.tags.values()} == {200}
    assert len(spool.line(event)) < 10_000


@pytest.mark.parametrize(("seconds", "wanted"), [(0.25, 250), (-1, 0), (1e12, 2**31 - 1)])
def test_durations_fit_their_column(endpoint: Endpoint, seconds: float, wanted: int) -> None:
    """A duration is in milliseconds from 0 up to what the ledger's column holds."""
    used, asked = Usage(tokens_total=1, source="native"), calling.request(["a"])
    ok = usage_events.answered(intended(endpoint), WireAnswer(vectors=VECTORS), used, seconds, None)
    lost = usage_events.failed(intended(endpoint), endpoint, asked, RequestRefused("no"), seconds)

    assert [ok.duration_ms, lost.duration_ms] == [wanted, wanted]


def test_reasons_are_short(endpoint: Endpoint) -> None:
    """Why an attempt failed, or was not made, stands in one line of 200 characters."""
    error = AnswerUnusable(LONG)
    failed = usage_events.failed(intended(endpoint), endpoint, calling.request(["a"]), error, 0)

    for reason in (failed.reason, usage_events.unsent(intended(endpoint), error).reason):
        assert reason is not None
        assert len(reason) == 200
        assert reason.isprintable()


ODD = (
    st.none()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        [10**23, -1, 1e300, "1e99999999", "1e13", 10**13, LONG, "'; DROP TABLE usage_event; --", "\ud800"]
    )
    | st.text(max_size=30)
    | st.lists(st.integers(), max_size=2)
)
SAID = st.fixed_dictionaries(
    {
        "usage": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("total_tokens", "cost", "prompt_tokens_details"), ODD)
        )
    },
    optional={"id": ODD, "model": ODD, "error": ODD},
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["x-request-id", "x-embeddings-provider", "x-embeddings-fallback-from", "x-embeddings-dimensions-policy",
         "retry-after"]
    ),
    st.text(max_size=30) | st.sampled_from([LONG, "Sun, 06 Nov 999999999 08:49:37 GMT"]),
)  # fmt: skip


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.lists(st.tuples(SAID, HEADERS, st.sampled_from([200, 200, 400, 429, 500])), min_size=30, max_size=30))
def test_whatever_an_answer_says_its_event_is_ingested(answers: list[tuple[Any, dict[str, str], int]]) -> None:
    """Every event that any answer makes is in the ledger, with its tokens, none of it bad, none set aside."""
    protocol = providers.protocol("tldw")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings_ = calling.load(folder, model="openai:text-embedding-3-small", fallback="off")
        endpoint = chain.chain(settings_).first
        asked = calling.request(["alpha", "beta"])
        sent = endpoint.protocol.request(endpoint.place, endpoint.wire_model, asked.texts, endpoint.wire)
        events = []
        for said, headers, status in answers:
            data = [{"index": number, "embedding": [1.0, 2.0]} for number in range(2)]
            body = _json({"data": data} | said)
            event = usage_events.intended(Caller(run_id=uuid7()), endpoint, asked, 1, None)
            try:
                wire = _entry.read(protocol, status, headers, body, sent)
                used = usage.usage(endpoint, asked, wire.tokens, wire.tokens_cached, event.event_id, CountTrust())
                events.append(usage_events.answered(event, wire, used, 0.1, Decimal("0.02")))
            except ProviderError as error:
                events.append(usage_events.failed(event, endpoint, asked, error, 0.1))
        paths = place(folder / "ledger")
        done = take(paths, *events)

        assert (done.events, done.bad_lines, done.notes()) == (len(answers), 0, [])
        assert max(len(spool.line(event)) for event in events) < 4000
        kept = rows(paths, "SELECT sum(tokens_total), max(cost), max(length(reason)) FROM usage_event")
        assert kept[0][0] == sum(event.tokens_total for event in events)
        assert kept[0][1] is None or kept[0][1] <= 1 + Decimal("0.0001")


def _json(value: Any) -> bytes:
    """As a server writes it: with numbers and halves of characters that no careful one would write."""
    return json.dumps(value).encode()


def test_an_answer_that_says_nothing(endpoint: Endpoint) -> None:
    """An answer that says nothing leaves nothing but its tokens on the event."""
    event = answered(endpoint)

    assert (event.cost_provider, event.reason, event.provider_request_id, event.response_model) == (None,) * 4

"""From events to operations: nothing is counted twice or lost, whatever the order in which parts of a request end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.records import AttemptEnded, Event, OperationBegan, OperationEnded
from embedctl.telemetry import conventions
from embedctl.telemetry.collector import Wanted
from embedctl.telemetry.operations import MOST_ATTEMPTS, Operations, OperationSpan
from tests.support.ledger_events import event

SENT = "http://u:CANARY@collector.example:4318/path"


@dataclass
class Heard:
    """Operations that are over."""

    over: list[OperationSpan] = field(default_factory=list)

    def of(self, *events: Event) -> list[OperationSpan]:
        operations = Operations(self.over.append)
        for one in events:
            operations.notify(one)
        assert operations._open == {}
        return self.over


def attempt(operation: str = "one", **about: Any) -> AttemptEnded:
    return AttemptEnded(event(operation_id=operation, **about), ("api.example", 443), 8, "base64")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=20), st.integers(1, 3))
def test_tokens_are_neither_lost_nor_doubled(attempts: list[tuple[str, int]], parts: int) -> None:
    """Parts of an operation that are under way together are one operation, and each billed token is in one of them."""
    begun = [OperationBegan(name) for name in "abc" for _ in range(parts)]
    tried = [attempt(name, tokens_total=tokens) for name, tokens in attempts]
    ended = [OperationEnded(name, None) for name in "abc" for _ in range(parts)]
    half = len(ended) // 2
    over = Heard().of(*begun, *tried, *ended[:half], *ended[half:])

    assert len(over) == len({name for name, _ in attempts})
    assert sum(one.tokens for one in over) == sum(tokens for _, tokens in attempts)
    assert sum(tokens for one in over for _, tokens in one.billed.values()) == sum(tokens for _, tokens in attempts)


def test_a_part_that_ends_first_does_not_end_the_operation() -> None:
    """What comes after one part has ended belongs to the same operation; an error of one part is the operation's."""
    (over,) = Heard().of(
        *(OperationBegan("one"), OperationBegan("one"), attempt(), OperationEnded("one", None)),
        *(attempt(status="error", error_class="throttled", billable="no", tokens_total=0),),
        OperationEnded("one", "throttled"),
    )

    assert (over.attempts_made, over.error) == (2, "throttled")


def test_what_was_never_tried_is_none() -> None:
    """A request that no attempt was made for, or that began before anybody looked, is no operation."""
    assert Heard().of(OperationBegan("one"), OperationEnded("one", "budget_reached")) == []
    assert Heard().of(attempt("earlier"), OperationEnded("earlier", None)) == []


def test_many_refusals_take_no_room() -> None:
    """Of an operation that is refused again and again the last attempts are kept, and all are counted."""
    refused = [attempt(status="error", billable="no", tokens_total=0, attempt=number + 1) for number in range(1000)]
    (over,) = Heard().of(OperationBegan("one"), *refused, attempt(attempt=1001), OperationEnded("one", None))

    assert len(over.attempts) == MOST_ATTEMPTS
    assert (over.attempts_made, over.last.event.attempt, over.error) == (1001, 1001, None)


def test_only_reasons_instead_of_vectors_is_an_error() -> None:
    """An operation that ended well and brought nothing has the word of its last attempt."""
    failed = attempt(status="error", error_class="text_refused", billable="no", tokens_total=0)
    (over,) = Heard().of(OperationBegan("one"), failed, OperationEnded("one", None))

    assert over.error == "text_refused"


def test_a_fallback_is_billed_to_whom_it_was_paid() -> None:
    """Tokens of an answer that could not be used are measured under the provider that billed them."""
    spoilt = attempt(provider="azure", status="error", error_class="answer_unusable", tokens_total=5)
    (over,) = Heard().of(OperationBegan("one"), spoilt, attempt(provider="openai"), OperationEnded("one", None))
    measured = {conventions.metric_attributes(one)["gen_ai.provider.name"]: n for one, n in over.billed.values()}

    assert measured == {"azure.ai.openai": 5, "openai": over.last.event.tokens_total}
    assert over.error is None


@pytest.mark.parametrize(
    ("provider", "price_as", "name"),
    [
        ("openai", "openai", "openai"),
        ("azure", "azure", "azure.ai.openai"),
        ("bedrock", "bedrock", "aws.bedrock"),
        ("google", "google", "gcp.gemini"),
        ("mistral", None, "mistral_ai"),
        ("eu", "azure", "azure.ai.openai"),
        ("voyage", "voyage", "voyage"),
        ("mine", "free", "mine"),
    ],
)
def test_providers_have_the_registrys_names(provider: str, price_as: str | None, name: str) -> None:
    """A provider that the registry knows has its name there, also as a place of one's own; others keep theirs."""
    assert conventions.provider_name(provider, price_as) == name


@pytest.mark.parametrize(
    ("environment", "signals"),
    [
        ({}, (False, False)),
        ({"OTEL_SERVICE_NAME": "x"}, (False, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, (False, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SENT}, (True, True)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": SENT}, (False, True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SENT, "OTEL_TRACES_EXPORTER": "none"}, (False, True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SENT, "OTEL_SDK_DISABLED": "TRUE"}, (False, False)),
    ],
)
def test_what_is_wanted_stands_in_the_environment(environment: dict[str, str], signals: tuple[bool, bool]) -> None:
    """Without an endpoint nothing is wanted; what is said of its address is host and port alone."""
    wanted = Wanted.of(environment)

    assert (wanted.traces, wanted.metrics) == signals
    assert wanted.place == ("collector.example:4318" if any(signals) else "")
    assert wanted.refused is None

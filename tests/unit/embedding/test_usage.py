"""Whose token count is believed: the provider's where it can be one, else ours; and what is said when there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.embedding import usage
from embedctl.embedding.usage import CountTrust
from embedctl.records import Request
from embedctl.routing import chain
from embedctl.routing.endpoint import Endpoint
from tests.support import calling

SELDOM = UUID(int=1)  # not one of the 1 % that are looked at
LOOKED_AT = UUID(int=100)
TEXT = "The ferry leaves the harbour at seven every morning, but for Sundays."


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return chain.chain(calling.load(tmp_path, model="openai:text-embedding-3-small", fallback="off")).first


def used(
    endpoint: Endpoint, native: int | None, scale: CountTrust | None = None, texts: int = 4, event: UUID = SELDOM
) -> Any:
    return usage.usage(endpoint, request(texts), native, None, event, scale or CountTrust())


def request(texts: int = 4) -> Request:
    return calling.request([TEXT] * texts)


def true_count(endpoint: Endpoint, texts: int = 4) -> int:
    return usage.exact(endpoint, request(texts))[0]


def test_a_plausible_count_is_believed(endpoint: Endpoint) -> None:
    """A provider's count near the tokenizer's is the bill; the first ones are counted here too, later ones are not."""
    native = true_count(endpoint) + 3
    scale = CountTrust()
    found = [used(endpoint, native, scale) for _ in range(5)]

    assert {one.tokens_total for one in found} == {native}
    assert {one.source for one in found} == {"native"}
    assert [one.tokens_estimated is not None for one in found] == [True, True, True, False, False]


def test_one_in_a_hundred_is_looked_at(endpoint: Endpoint) -> None:
    """After the first answers, 1 % are counted here, chosen by the event's id."""
    scale = CountTrust(answers=50)

    assert used(endpoint, 60, scale, event=LOOKED_AT).tokens_estimated is not None
    assert used(endpoint, 60, scale, event=SELDOM).tokens_estimated is None


@pytest.mark.parametrize("native", [0, -5, 10**9, 1, 4 * len(TEXT)])
def test_an_implausible_count_is_replaced(endpoint: Endpoint, native: int) -> None:
    """Zero, negative, absurd, far off, or the number of characters: the tokenizer counts, the provider's is kept."""
    found = used(endpoint, native)

    assert (found.source, found.tokens_total) == ("fallback", true_count(endpoint))
    assert (found.tokens_native, found.tokenizer_id) == (native, "tiktoken:cl100k_base")


def test_tokens_of_each_text_where_they_cost_nothing(endpoint: Endpoint) -> None:
    """A text's tokens are the provider's word, what was counted before, a text alone, or a tokenizer that ran anyway.

    Only counts that add up to what is booked are told.
    """
    many, count = request(), true_count(endpoint)
    seldom = CountTrust(answers=50)

    assert usage.tokens_each(many, used(endpoint, count), [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert usage.tokens_each(many, used(endpoint, count), None) == (count // 4,) * 4
    assert usage.tokens_each(many, used(endpoint, None), None) == (count // 4,) * 4
    assert usage.tokens_each(many, used(endpoint, count + 3), None) is None
    assert usage.tokens_each(many, used(endpoint, count, seldom), None) is None
    assert usage.tokens_each(request(1), used(endpoint, 17, seldom, texts=1), None) == (17,)
    assert usage.tokens_each(request(1), used(replace(endpoint, usage_mode="native"), 10**12, texts=1), None) is None


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_characters_of_short_texts(endpoint: Endpoint, at_once: int) -> None:
    """Counts that equal the characters of four short texts or more are none of tokens, however near they are."""
    scale = CountTrust()
    texts = ["ab", "xy", "no", "it", "we", "qz", "vv", "jk"] * 2
    asked = [calling.request(texts[start : start + at_once]) for start in range(0, 16, at_once)]

    found = [usage.usage(endpoint, one, one.content_bytes, None, SELDOM, scale) for one in asked]

    booked = [one for one, sent in zip(found, asked, strict=True) for _ in sent.texts if one.source == "native"]
    assert len(booked) < 4
    assert found[-1].tokens_total == usage.exact(endpoint, asked[-1])[0] != asked[-1].content_bytes


def test_characters_that_are_tokens(endpoint: Endpoint) -> None:
    """Where the tokenizer says the same, a count that equals the characters is believed."""
    one = calling.request(["a", "b", "c", "d", "e", "f"])
    scale = CountTrust()

    assert [usage.usage(endpoint, one, 6, None, SELDOM, scale).source for _ in range(5)] == ["native"] * 5


def test_once_doubted_always_looked_at(endpoint: Endpoint) -> None:
    """A server whose count was none of tokens is not believed later without a look."""
    scale = CountTrust()
    used(endpoint, 1, scale)
    for _ in range(10):
        found = used(endpoint, 1, scale)

    assert found.source == "fallback"
    assert found.tokens_estimated is not None


def test_always_37(endpoint: Endpoint) -> None:
    """A server that says the same number whatever it is sent is not believed, though it may be near by chance."""
    scale = CountTrust()
    counts = [used(endpoint, 37, scale, texts=texts) for texts in (2, 3, 5, 8, 3, 2)]

    assert [one.source for one in counts[3:]] == ["fallback"] * 3


def test_like_requests_may_have_like_counts(endpoint: Endpoint) -> None:
    """The same count for requests of the same size says nothing."""
    scale = CountTrust()
    native = true_count(endpoint)

    assert [used(endpoint, native, scale).source for _ in range(8)] == ["native"] * 8


def test_no_count(endpoint: Endpoint) -> None:
    """Without a count of the provider's, `auto` counts here, and `native` says that nothing is known."""
    assert used(endpoint, None).source == "fallback"
    strict = used(replace(endpoint, usage_mode="native"), None)
    assert (strict.tokens_total, strict.tokens_native, strict.tokens_estimated) == (0, None, None)


def test_native_mode_never_estimates(endpoint: Endpoint) -> None:
    """`native` takes whatever the provider says."""
    found = used(replace(endpoint, usage_mode="native"), 10**9)

    assert (found.tokens_total, found.tokens_estimated, found.source) == (10**9, None, "native")


def test_fallback_mode_always_counts(endpoint: Endpoint) -> None:
    """`fallback` counts here, and keeps the provider's word for comparison."""
    found = used(replace(endpoint, usage_mode="fallback"), 60)

    assert (found.tokens_total, found.tokens_native, found.source) == (true_count(endpoint), 60, "fallback")


def test_an_unusable_answer(endpoint: Endpoint) -> None:
    """Work that cannot be used is billed by the provider's count where that can be one, else by ours."""
    sent, count = request(), true_count(endpoint)

    assert usage.unusable(endpoint, sent, count + 2).tokens_total == count + 2
    assert usage.unusable(endpoint, sent, 0).tokens_total == count
    assert usage.unusable(endpoint, sent, None).source == "fallback"
    assert usage.unusable(replace(endpoint, usage_mode="native"), sent, None).tokens_total == 0


def test_token_arrays(endpoint: Endpoint) -> None:
    """Arrays are counted by their lengths."""
    sent = replace(request(2), texts=[[1, 2, 3], [4]], token_arrays=True)

    assert usage.exact(endpoint, sent) == (4, "token arrays")


@given(st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=8))
def test_the_ceiling_holds(texts: list[str]) -> None:
    """No tokenizer counts more than the ceiling that is set aside before anything is known."""
    sent = calling.request([text.encode("utf-8", "replace").decode() for text in texts])
    counter = usage.tokenizers.counter("tiktoken:cl100k_base")

    assert sum(counter.count([str(text) for text in sent.texts])) <= usage.upper_bound(sent)


def test_a_tokenizer_that_fails_at_a_text_stops_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    """A tokenizer that loads and has no token for a text leaves the count to bytes/4, which says so."""
    from tokenizers import Tokenizer, models

    place = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"only": 0}, unk_token="[UNK]")).save(str(place))
    found = usage.usage(replace(endpoint, tokenizer=f"file:{place}"), request(), None, None, SELDOM, CountTrust())

    assert (found.source, found.tokenizer_id) == ("fallback", "bytes/4")
    assert found.tokens_total == -(-len(TEXT) // 4) * 4


def test_counts_may_be_looked_at_while_another_thread_adds_to_them() -> None:
    """What is kept of the last counts is never changed in place: a run ended where two threads met there."""
    trust = CountTrust()
    trust.took(request(1), 7)
    looking = iter(trust.lately)
    trust.took(request(1), 8)

    assert [count for count, _ in looking] == [7]
    assert [count for count, _ in trust.lately] == [7, 8]

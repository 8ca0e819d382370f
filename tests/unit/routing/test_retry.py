"""What follows a failed attempt: how long to wait, how often to try, what the lane may spend."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl import errors
from embedctl.errors import (
    AnswerLost,
    AnswerUnusable,
    CircuitOpen,
    DeadlinePassed,
    NotSent,
    ProviderError,
    Remedy,
    RequestTooLarge,
    ServerFailed,
    TextRefused,
    TextTooLong,
    Throttled,
)
from embedctl.routing.retry import (
    THROTTLE_BASE_S,
    THROTTLE_COST,
    TRANSIENT_COST,
    Attempts,
    Policy,
    RetryBudget,
    Step,
    hinted_s,
    may_be_the_texts_fault,
    wait_before,
)

jitters = st.floats(0, 1, exclude_max=True)
RETRIED = [NotSent, ServerFailed, AnswerLost, AnswerUnusable]


def full() -> float:
    return 0.999999


def none() -> float:
    return 0.0


def attempts(**policy: object) -> Attempts:
    return Attempts(Policy(**policy), jitter=full)  # type: ignore[arg-type]


def until_left(tries: Attempts, error: ProviderError, budget: RetryBudget) -> list[Step]:
    """Every step until the provider is left, or a text accused, at most a thousand."""
    steps = []
    for _ in range(1000):
        steps.append(tries.after(error, now=0.0, budget=budget))
        if steps[-1].remedy in (Remedy.GIVE_UP, Remedy.ISOLATE):
            break
    return steps


# ── how long ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(attempt=st.integers(1, 5000), u=jitters)
def test_backoff_is_full_jitter_under_a_cap(attempt: int, u: float) -> None:
    """Without a hint the wait is u · min(cap, base · 2^(attempt-1)): 0.5 up to 30 s, throttled 1 up to 60 s."""
    doubled = 2.0 ** min(attempt - 1, 60)

    assert wait_before(attempt, ServerFailed("x"), jitter=lambda: u) == u * min(30.0, 0.5 * doubled)
    assert wait_before(attempt, Throttled("x"), jitter=lambda: u) == u * min(60.0, doubled)
    assert wait_before(attempt, NotSent("x"), jitter=lambda: u, base_s=2, cap_s=5) == u * min(5.0, 2 * doubled)


@given(hint=st.floats(0.001, 1e6), attempt=st.integers(1, 50), u=jitters)
def test_a_hint_is_a_minimum(hint: float, attempt: int, u: float) -> None:
    """A hint wins over the backoff: never less than the provider asked for, at most half more."""
    for kind in (Throttled, ServerFailed):
        wait = wait_before(attempt, kind("x", retry_after_s=hint), jitter=lambda: u)

        assert hint <= wait <= 1.5 * hint


@pytest.mark.parametrize("hint", [None, 0.0, -1.0, -1e9, math.nan, math.inf, -math.inf])
def test_a_hint_without_sense_is_no_hint(hint: float | None) -> None:
    """Zero, negative, NaN and infinite hints are as if the provider had said nothing."""
    error = Throttled("x", retry_after_s=hint)

    assert hinted_s(error) is None
    assert 0 <= wait_before(1, error, jitter=full) <= 1.0


def test_waits_of_many_spread_over_the_whole_range() -> None:
    """A thousand clients that fail at once come back spread evenly over the backoff."""
    chance = random.Random(7)
    waits = [wait_before(5, ServerFailed("x"), jitter=chance.random) for _ in range(1000)]
    per_second = [sum(second <= wait < second + 1 for wait in waits) for second in range(8)]

    assert all(90 <= count <= 165 for count in per_second), per_second


# ── what, by class ───────────────────────────────────────────────────────────────────────────────────────────────────


def every_error() -> list[type[ProviderError]]:
    def below(kind: type[ProviderError]) -> list[type[ProviderError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    return below(ProviderError)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_the_class_alone_decides(kind: type[ProviderError]) -> None:
    """The first failure of a request is followed by its class's own remedy, whatever its status or words are."""
    for status in (None, 200, 401, 429, 500):
        step = attempts().after(kind("429 quota 500", status=status), now=0.0, budget=RetryBudget())

        assert step.remedy is kind.remedy
        assert (step.wait_s > 0) == (kind.remedy in (Remedy.RETRY, Remedy.WAIT))


@pytest.mark.parametrize("kind", [RequestTooLarge, TextRefused, TextTooLong, errors.KeyRejected, errors.QuotaExhausted])
def test_what_is_not_retried_costs_nothing(kind: type[ProviderError]) -> None:
    """Halving, isolating and leaving spend no retry."""
    budget, tries = RetryBudget(), attempts()
    tries.after(kind("x"), now=0.0, budget=budget)

    assert (budget.level, tries.failures) == (500, 0)


# ── how often ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "retries"), [(NotSent, 6), (ServerFailed, 6), (AnswerUnusable, 6), (AnswerLost, 2)])
def test_retries_are_counted(kind: type[ProviderError], retries: int) -> None:
    """Six retries for transient, unusable and unsent, two where each may have been billed; then that error is left."""
    error = kind("x")
    steps = until_left(attempts(), error, RetryBudget())

    assert [step.remedy for step in steps] == [Remedy.RETRY] * retries + [Remedy.GIVE_UP]
    assert steps[-1].error is error


@given(st.lists(st.sampled_from(RETRIED), min_size=7, max_size=30), st.integers(0, 6))
def test_all_kinds_share_one_count(kinds: list[type[ProviderError]], retries: int) -> None:
    """Failures of every kind together are retried at most `--retries` times, lost ones among them at most twice."""
    tries, budget = attempts(retries=retries), RetryBudget(10_000)
    retried = []
    for kind in kinds:
        if tries.after(kind("x"), now=0.0, budget=budget).remedy is not Remedy.RETRY:
            break
        retried.append(kind)

    assert len(retried) <= retries
    assert retried.count(AnswerLost) <= 2


def test_throttling_is_not_counted_but_bounded_by_the_waiting() -> None:
    """A request may be throttled any number of times, until it would have waited for ten minutes."""
    error = Throttled("x")
    steps = until_left(attempts(retries=0), error, RetryBudget())
    waited = sum(step.wait_s for step in steps)

    assert len(steps) > 10
    assert 500 < waited <= 600
    assert (steps[-1].remedy, steps[-1].error) == (Remedy.GIVE_UP, error)


@given(st.lists(st.one_of(st.none(), st.floats(0.1, 700)), max_size=60), st.floats(1, 600), jitters)
def test_the_waiting_is_never_longer_than_allowed(hints: list[float | None], max_wait_s: float, u: float) -> None:
    """Whatever the provider asks for, one request never waits for longer than `--max-wait` in all."""
    tries = Attempts(Policy(max_wait_s=max_wait_s), jitter=lambda: u)
    budget = RetryBudget(10_000)
    waited = 0.0
    for hint in hints:
        step = tries.after(Throttled("x", retry_after_s=hint), now=0.0, budget=budget)
        if step.remedy is Remedy.GIVE_UP:
            break
        waited += step.wait_s

        assert hint is None or step.wait_s >= hint
        assert waited <= max_wait_s + 1e-6


@pytest.mark.parametrize("kind", [Throttled, ServerFailed])
def test_a_hint_beyond_the_wait_leaves_at_once(kind: type[ProviderError]) -> None:
    """A provider that asks for a day is left at once, and what it asked for is told on."""
    step = attempts().after(kind("x", retry_after_s=86_400), now=0.0, budget=RetryBudget())

    assert (step.remedy, step.refused_for_s) == (Remedy.GIVE_UP, 86_400)


def test_a_deadline_is_not_slept_through() -> None:
    """A wait that would end after the deadline ends the run at once, resumable."""
    tries = attempts(deadline=100.0)
    soon = tries.after(ServerFailed("busy"), now=90.0, budget=RetryBudget())
    late = tries.after(ServerFailed("busy", retry_after_s=20), now=90.0, budget=RetryBudget())

    assert soon.remedy is Remedy.RETRY
    assert late.remedy is Remedy.GIVE_UP
    assert isinstance(late.error, DeadlinePassed)
    assert late.error.exit_code == 75
    assert "busy" in late.error.message


def test_one_request_that_keeps_failing_while_others_do_not_is_isolated() -> None:
    """Three failures of one request while five others succeed point at one of its texts."""
    tries, budget = attempts(), RetryBudget()
    steps = [
        tries.after(ServerFailed("NaN"), now=0.0, budget=budget, others_succeeded=others) for others in (0, 5, 4, 5)
    ]

    assert [step.remedy for step in steps] == [Remedy.RETRY, Remedy.RETRY, Remedy.RETRY, Remedy.ISOLATE]


@pytest.mark.parametrize(
    ("others", "doubled"),
    [
        pytest.param((0, 0, 0, 0), (1, 2, 4, 8), id="nothing gets through"),
        pytest.param((3, 9, 14, 20), (1, 1, 1, 1), id="others get through"),
        pytest.param((3, 3, 8, 8), (1, 2, 1, 2), id="now and then"),
    ],
)
def test_one_that_is_refused_while_others_get_through_waits_no_longer_each_time(
    others: tuple[int, ...], doubled: tuple[int, ...]
) -> None:
    """Backoff doubles while nothing gets through; else the limiter says how much may go, and this one was unlucky."""
    tries, budget = Attempts(Policy(), jitter=lambda: 0.5), RetryBudget()
    waits = [
        tries.after(Throttled("slow down"), now=0.0, budget=budget, others_succeeded=succeeded).wait_s
        for succeeded in others
    ]

    assert waits == [0.5 * THROTTLE_BASE_S * times for times in doubled]


@pytest.mark.parametrize("error", [NotSent("x"), ServerFailed("x", status=503)], ids=["unsent", "overloaded"])
def test_an_unsent_request_accuses_no_text(error: ProviderError) -> None:
    """Where nothing was read, or the server says that it is overloaded, no text can be blamed."""
    tries, budget = attempts(), RetryBudget()
    steps = [tries.after(error, now=0.0, budget=budget, others_succeeded=99) for _ in range(8)]

    assert Remedy.ISOLATE not in {step.remedy for step in steps}
    assert not may_be_the_texts_fault(error)


@pytest.mark.parametrize(("others", "last"), [(0, Remedy.GIVE_UP), (4, Remedy.GIVE_UP), (5, Remedy.ISOLATE)])
def test_a_lost_answer_accuses_a_text_while_others_get_through(others: int, last: Remedy) -> None:
    """After three lost answers a text is suspected if five others succeeded meanwhile; else the server is."""
    tries, budget = attempts(), RetryBudget()
    steps = [tries.after(AnswerLost("x"), now=0.0, budget=budget, others_succeeded=others) for _ in range(3)]

    assert [step.remedy for step in steps] == [Remedy.RETRY, Remedy.RETRY, last]
    assert may_be_the_texts_fault(AnswerLost("x"))


@pytest.mark.parametrize(
    ("texts", "suspected", "lost"),
    [
        pytest.param(8, False, 3, id="a request: twice again"),
        pytest.param(4, True, 1, id="half of a suspected one: halved at once"),
        pytest.param(1, False, 3, id="a text alone, until others are known to get through"),
        pytest.param(1, True, 7, id="a text alone: all its retries"),
    ],
)
def test_how_often_an_answer_may_be_lost(texts: int, suspected: bool, lost: int) -> None:
    """Each lost answer may be billed: only a text that is about to fail is sent as often as for other failures."""
    tries = Attempts(Policy().for_part(texts, suspected=suspected), jitter=full)

    assert len(until_left(tries, AnswerLost("x"), RetryBudget())) == lost


@pytest.mark.parametrize("kind", [AnswerLost, AnswerUnusable, ServerFailed])
def test_a_text_alone_is_not_blamed_for_who_got_through_before(kind: type[ProviderError]) -> None:
    """However many others succeeded since its first failure, its retries end, and then the server is looked at."""
    tries, budget = Attempts(Policy().for_part(1, suspected=True), jitter=full), RetryBudget()
    steps = [tries.after(kind("x"), now=0.0, budget=budget, others_succeeded=99).remedy for _ in range(7)]

    assert steps == [Remedy.RETRY] * 6 + [Remedy.GIVE_UP]


def test_failures_of_before_count() -> None:
    """What a text was tried before it was suspected is part of its retries."""
    earlier = Attempts(Policy().for_part(1, suspected=False), jitter=full)
    until_left(earlier, AnswerLost("x"), RetryBudget())
    tries = Attempts(Policy().for_part(1, suspected=True), jitter=full, earlier=earlier)

    assert (tries.failures, tries.repeated) == (3, 3)
    assert len(until_left(tries, AnswerLost("x"), RetryBudget())) == 4


# ── how much ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_retries_have_prices() -> None:
    """A retry costs 14, one after a throttling 5; success gives the last price back, success at once gives 1."""
    budget = RetryBudget()
    tries = attempts()
    tries.after(ServerFailed("x"), now=0.0, budget=budget)

    assert budget.level == 500 - TRANSIENT_COST == 486

    tries.after(Throttled("x"), now=0.0, budget=budget)

    assert budget.level == 486 - THROTTLE_COST == 481

    tries.succeeded(budget)

    assert budget.level == 486

    attempts().succeeded(budget)

    assert budget.level == 487


def test_retries_over_a_bad_text_are_put_back() -> None:
    """Where a text was to blame the provider's budget is what it was."""
    budget, tries = RetryBudget(), attempts()
    for error in (AnswerLost("x"), Throttled("x"), AnswerLost("x")):
        tries.after(error, now=0.0, budget=budget)
    tries.excused(budget)

    assert budget.level == 500

    budget.level = 400
    tries.excused(budget)

    assert budget.level == 400


def test_a_throttled_request_gets_all_its_prices_back() -> None:
    """However often a request was throttled, nothing of the budget is used up once it succeeds."""
    budget = RetryBudget()
    tries = attempts()
    for _ in range(3):
        tries.after(Throttled("x"), now=0.0, budget=budget)

    assert budget.level == 500 - 3 * THROTTLE_COST

    tries.succeeded(budget)

    assert budget.level == 500


def test_an_empty_budget_stops_all_retrying() -> None:
    """When a lane's budget is empty its requests are not sent again: the circuit opens, no row fails."""
    budget = RetryBudget()
    sent_again = 0
    for _ in range(100):
        step = attempts().after(ServerFailed("down", provider="p"), now=0.0, budget=budget)
        sent_again += step.remedy is Remedy.RETRY
    last = step

    assert sent_again == 500 // TRANSIENT_COST
    assert isinstance(last.error, CircuitOpen)
    assert last.error.exit_code == 75
    assert last.error.provider == "p"
    assert "down" in last.error.message


@given(
    st.integers(1, 600),
    st.lists(st.tuples(st.sampled_from([*RETRIED, Throttled, None]), st.integers(0, 5)), max_size=200),
)
def test_the_budget_stays_within_its_bounds(
    capacity: int, events: list[tuple[type[ProviderError] | None, int]]
) -> None:
    """Whatever happens, the budget is never negative and never above its capacity."""
    budget = RetryBudget(capacity)
    requests = [attempts() for _ in range(6)]
    for kind, index in events:
        if kind is None:
            requests[index].succeeded(budget)
            requests[index] = attempts()
        else:
            requests[index].after(kind("x"), now=0.0, budget=budget)

        assert 0 <= budget.level <= capacity

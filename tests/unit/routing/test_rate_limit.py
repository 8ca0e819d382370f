"""When the next request of a lane may go: buckets, window, adaptive rate, headers. Time is a number."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedctl.providers._rate_headers import Rates, duration, rates
from embedctl.routing.bucket import Bucket
from embedctl.routing.pace import BLOCKED_AFTER, Pace
from embedctl.routing.quota import SPEED
from embedctl.routing.rate_limit import Admission, RateLimit, RateLimits
from embedctl.routing.window import Window

# ── buckets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(
    per_second=st.floats(0.01, 1000),
    capacity=st.floats(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 3000)), max_size=60),
)
def test_a_bucket_gives_no_more_than_it_may(
    per_second: float, capacity: float, steps: list[tuple[float, float]]
) -> None:
    """Over any time no more is given than capacity + rate · time, plus what the last, larger one had over."""
    bucket, now, given_out = Bucket(per_second, capacity, 0.0), 0.0, 0.0
    for pause, amount in steps:
        now += pause
        now += bucket.ready_in(now, amount)

        assert bucket.ready_in(now, amount) == 0

        excess = max(0.0, amount - capacity)
        bucket.take(now, amount)
        given_out += amount

        assert -amount - 1e-6 * capacity <= bucket.level(now) <= capacity
        assert given_out <= (capacity + per_second * now + excess) * (1 + 1e-5)


def test_something_larger_than_the_bucket_waits_for_a_full_one_and_goes() -> None:
    """A request larger than the bucket goes when the bucket is full, and the ones after it pay it off."""
    bucket = Bucket(per_second=10, capacity=100, now=0.0)
    bucket.take(0.0, 60)

    assert bucket.ready_in(0.0, 350) == 6.0

    bucket.take(6.0, 350)

    assert bucket.level(6.0) == -250
    assert bucket.ready_in(6.0, 10) == 26.0


def test_what_was_not_used_comes_back_and_no_more_than_fits() -> None:
    """Tokens that were reserved and not used come back; the bucket never overflows."""
    bucket = Bucket(per_second=1, capacity=100, now=0.0)
    bucket.take(0.0, 50)
    bucket.take(0.0, -20)

    assert bucket.level(0.0) == 70

    bucket.take(0.0, -500)

    assert bucket.level(0.0) == 100


def test_a_clock_that_stands_still_fills_nothing() -> None:
    """A bucket asked twice at one time, or at an earlier one, fills once."""
    bucket = Bucket(per_second=1, capacity=10, now=100.0)
    bucket.take(100.0, 10)

    assert [bucket.level(now) for now in (100.0, 50.0, 103.0, 103.0)] == [0, 0, 3, 3]


# ── window and rate ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_window_opens_at_once() -> None:
    """What `--concurrency` asks for is sent from the first moment, up to sixteen at once; more as they succeed."""
    assert [Window(most).size for most in (1, 8, 16, 64)] == [1, 8, 16, 16]


def test_a_window_that_was_cut_is_back_within_one_window_of_successes() -> None:
    """Trouble cuts to 0.7; the window doubles back to where it was cut, then grows by 1 with every window."""
    window = Window(40, start=20)
    window.cut(0.0, sent_at=0.0)

    assert window.size == 14

    for _ in range(6):
        window.grew()

    assert window.size == 20

    for _ in range(20):
        window.grew()

    assert 20 <= window.size <= 21


def test_a_window_is_cut_once_for_requests_sent_together() -> None:
    """Many failures of one moment cut once; failures of what was sent before the cut do not cut again."""
    window = Window(100, start=100)
    for _ in range(50):
        window.strained(10.0, sent_at=9.0)

    assert window.size == 70

    window.strained(15.0, sent_at=9.9)

    assert window.size == 70

    window.strained(15.0, sent_at=11.0)

    assert window.size == 49


def test_single_failures_do_not_cut_a_window() -> None:
    """One failure in ten says nothing about load; one in two does, and nothing grows while they go on."""
    window = Window(16)
    for number in range(300):
        if number % 10 == 0:
            window.strained(number, sent_at=number)
        else:
            window.served()

    assert window.size == 16

    for number in range(300, 330):
        if number % 2 == 0:
            window.strained(number, sent_at=number)
        else:
            window.served()
            window.grew()

    assert window.size < 4


@given(st.integers(-1, 300), st.lists(st.sampled_from("gcr"), max_size=300))
def test_a_window_stays_between_one_and_its_most(most: int, events: list[str]) -> None:
    """Whatever happens, at least one and at most `--concurrency` requests are in flight."""
    window, now = Window(most), 0.0
    for event in events:
        now += 2.0
        if event == "g":
            window.grew()
        elif event == "c":
            window.cut(now, sent_at=now)
        else:
            window.restart()

        assert 1 <= window.size <= max(1, most)


def refused(pace: Pace, now: float, times: int = 1) -> None:
    """So many requests go and are refused at once."""
    for _ in range(times):
        pace.throttled(now, pace.take(now, 1.0))


def served(pace: Pace, start: float, seconds: float, per_second: float) -> float:
    """Requests that go and are answered at this speed; when the last one was."""
    for tick in range(int(seconds * per_second)):
        now = start + tick / per_second
        pace.succeeded(now, 1.0, pace.take(now, 1.0))
    return start + seconds


def test_no_rate_is_made_up() -> None:
    """Where nothing has got through there is nothing to hold a rate to: after a short pause one request looks again."""
    pace = Pace(0.0)
    refused(pace, 0.0, BLOCKED_AFTER)

    assert pace.per_second is None
    assert 0 < pace.ready_in(0.0, 1.0) <= 0.1

    pace.succeeded(1.0, 1.0, pace.take(0.9, 1.0))

    assert pace.per_second is None
    assert pace.ready_in(1.0, 1.0) == 0.0


def test_an_answer_to_what_was_sent_before_ends_no_block() -> None:
    """Refusals come sooner than answers: one that was under way when all was refused tells nothing of what is now."""
    pace = Pace(0.0)
    together = [pace.take(0.0, 1.0) for _ in range(16)]
    for number in together[:BLOCKED_AFTER]:
        pace.throttled(0.05, number)
    pace.succeeded(0.3, 1.0, together[-1])

    assert pace.blocked_since == 0.05

    pace.succeeded(61.0, 1.0, pace.take(60.0, 1.0))

    assert pace.blocked_since is None


@given(st.floats(0.5, 200))
def test_looking_again_takes_half_of_the_time_that_nothing_got_through(seconds: float) -> None:
    """A provider that refuses everything for some seconds is asked again within half of them more, 5 s at most."""
    pace, now = Pace(0.0), 0.0
    refused(pace, 0.0, BLOCKED_AFTER)
    looks = 0
    while now < seconds:
        now += pace.ready_in(now, 1.0) + 1e-9
        refused(pace, now)
        looks += 1

    assert now <= seconds + min(5.0, 0.5 * seconds) + 0.2
    assert looks <= 12 + seconds / 5


def test_isolated_refusals_hold_nothing_back() -> None:
    """One refusal in twenty is no limit: nothing is paced."""
    pace, now = Pace(0.0), 0.0
    for _ in range(200):
        now = served(pace, now, 1.9, 10)
        refused(pace, now)

    assert pace.per_second is None


def test_a_rate_is_learnt_from_what_got_through() -> None:
    """When refusals are many the rate is 0.85 of what got through lately."""
    pace = Pace(0.0)
    now = served(pace, 0.0, 40.0, 10)
    refused(pace, now, 8)

    assert pace.per_second == pytest.approx(8.5, rel=0.1)
    assert 0 < pace.ready_in(now, 1.0) <= 6 / 8


def test_a_rate_is_cut_once_for_requests_sent_together() -> None:
    """Refusals of requests that were sent before the cut tell nothing new."""
    pace = Pace(0.0)
    now = served(pace, 0.0, 40.0, 10)
    together = [pace.take(now, 1.0) for _ in range(30)]
    for number in together[:8]:
        pace.throttled(now, number)
    once = pace.per_second
    for answered, number in zip(together[8:16], together[16:24], strict=True):
        pace.succeeded(now + 0.1, 1.0, answered)
        pace.throttled(now + 0.1, number)

    assert once is not None
    assert pace.per_second == once


def test_refusals_that_do_not_depend_on_the_rate_end_the_pace() -> None:
    """Where one request in five is refused below what got through as well, nothing is held back any more."""
    pace, now, chance = Pace(0.0), 0.0, random.Random(3)
    held = 0
    for _ in range(3000):
        now += max(0.02, pace.ready_in(now, 1.0))
        number = pace.take(now, 1.0)
        held += pace.per_second is not None
        if chance.random() < 0.2:
            pace.throttled(now, number)
        else:
            pace.succeeded(now, 1.0, number)

    assert pace.per_second is None
    assert 0 < held < 600


def test_a_rate_never_stops_a_lane() -> None:
    """However often it is refused, a request every ten minutes may go."""
    pace = Pace(0.0)
    now = served(pace, 0.0, 10.0, 10)
    for _ in range(500):
        now += pace.ready_in(now, 1.0)
        refused(pace, now)

    assert pace.ready_in(now, 1.0) <= 600.0


# ── the limiter ──────────────────────────────────────────────────────────────────────────────────────────────────────


def go(rate_limit: RateLimit, now: float, tokens: float = 0, items: int = 1) -> tuple[float, Admission]:
    """Wait, reserve and finish one request at once; the time it went."""
    now += rate_limit.ready_in(now, tokens, items)
    reservation = rate_limit.reserve(now, tokens, items)
    rate_limit.succeeded(reservation, now)
    rate_limit.release()
    return now, reservation


def test_requests_per_minute_hold_after_the_burst() -> None:
    """Half of the burst goes at once, then one request per 60/rpm seconds and a fiftieth more."""
    rate_limit = RateLimit(RateLimits(requests_per_minute=120, burst=10), 0.0)
    now, times = 0.0, []
    for _ in range(30):
        now, _ = go(rate_limit, now)
        times.append(now)

    assert times[:5] == [0.0] * 5
    assert [round(later - earlier, 6) for earlier, later in pairwise(times[4:])] == [round(0.5 / SPEED, 6)] * 25


def test_texts_are_counted_where_the_provider_counts_texts() -> None:
    """Where each text counts as a request, ten texts cost ten; more than a minute's wait for all of one."""
    rate_limit = RateLimit(RateLimits(requests_per_minute=60, burst=10, counts_items=True), 0.0)
    first, _ = go(rate_limit, 0.0, items=10)
    second, _ = go(rate_limit, first, items=5)
    larger, _ = go(rate_limit, second, items=100)

    assert first == pytest.approx(5 / SPEED)
    assert second == pytest.approx(10 / SPEED)
    assert larger >= second + 60


def test_tokens_per_minute_hold_and_are_corrected_by_the_count() -> None:
    """Tokens are reserved by estimate; what the provider counted settles the difference."""
    rate_limit = RateLimit(RateLimits(tokens_per_minute=6000), 0.0)
    _, reservation = go(rate_limit, 0.0, tokens=500)

    assert rate_limit.ready_in(0.0, 400) == pytest.approx(4.0 / SPEED)

    rate_limit.settle(reservation, 0.0, 100)

    assert rate_limit.ready_in(0.0, 400) == 0.0

    rate_limit.settle(reservation, 0.0, 800)

    assert rate_limit.ready_in(0.0, 400) == pytest.approx(3.0 / SPEED)


def test_without_limits_nothing_is_held_back() -> None:
    """With no limits configured and none learnt only the window holds requests back."""
    rate_limit = RateLimit(RateLimits(concurrency=4), 0.0)

    assert all(go(rate_limit, 0.0, tokens=1e9)[0] == 0 for _ in range(1000))


def test_a_hint_that_others_contradict_is_for_one_request_only() -> None:
    """An answer to a request that was sent after the refused one shows that not the whole lane was meant."""
    rate_limit = RateLimit(RateLimits(), 0.0)
    before, refused_one, after = (rate_limit.reserve(0.0, 0) for _ in range(3))
    rate_limit.throttled(refused_one, 0.0, 30.0)
    rate_limit.succeeded(before, 0.25)
    rate_limit.release()

    assert rate_limit.ready_in(0.25, 0) == 29.75

    rate_limit.succeeded(after, 0.3)
    rate_limit.release()

    assert rate_limit.ready_in(0.3, 0) == 0.0


def test_a_retry_after_holds_the_whole_lane() -> None:
    """A 429 holds every request of the lane until the time it names, never a shorter one that comes later."""
    rate_limit = RateLimit(RateLimits(), 0.0)
    one, two = rate_limit.reserve(0.0, 0), rate_limit.reserve(0.0, 0)
    rate_limit.throttled(one, 1.0, 30.0)
    rate_limit.throttled(two, 2.0, 1.0)
    rate_limit.release()
    rate_limit.release()

    assert rate_limit.ready_in(2.0, 0) == 29.0


def test_a_full_window_waits_for_whoever_finishes() -> None:
    """With the window full there is no time to wait for: a request must come back first."""
    rate_limit = RateLimit(RateLimits(concurrency=2), 0.0)
    rate_limit.reserve(0.0, 0)
    rate_limit.reserve(0.0, 0)

    assert rate_limit.ready_in(0.0, 0) == math.inf

    rate_limit.release()

    assert rate_limit.ready_in(0.0, 0) == 0


def test_an_unused_window_does_not_grow() -> None:
    """Successes one at a time prove nothing about many at a time."""
    rate_limit = RateLimit(RateLimits(concurrency=64), 0.0)
    for _ in range(500):
        go(rate_limit, 0.0)

    assert rate_limit.window.size == 16


def test_a_limit_in_the_headers_is_kept_where_none_was_configured() -> None:
    """Limits that headers name hold from then on; configured ones are not changed by them."""
    said = Rates(requests_per_minute=60, tokens_per_minute=6000, requests_left=2, tokens_left=100)
    learning, told = RateLimit(RateLimits(), 0.0), RateLimit(RateLimits(requests_per_minute=600, burst=2), 0.0)
    learning.learn(said, 0.0)
    told.learn(said, 0.0)

    assert learning.ready_in(0.0, 400) == pytest.approx(3.0 / SPEED)
    assert [round(go(told, 0.0)[0], 6) for _ in range(2)] == [0, round(0.1 / SPEED, 6)]


def test_nothing_left_means_waiting_for_the_reset_but_not_for_long() -> None:
    """Without a limit, nothing left holds the lane until the reset, a minute at most: a reset means all is back."""
    short, long = RateLimit(RateLimits(), 0.0), RateLimit(RateLimits(), 0.0)
    short.learn(Rates(requests_left=0, requests_reset_s=7), 0.0)
    long.learn(Rates(tokens_left=0, tokens_reset_s=3600), 0.0)

    assert (short.ready_in(0.0, 0), long.ready_in(0.0, 0)) == (7.0, 60.0)


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_openai_headers_are_read() -> None:
    """Limits and remainders are numbers, resets are Go durations."""
    headers = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-limit-tokens": "1000000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-reset-tokens": "6m0s",
    }

    assert rates(headers) == Rates(
        requests_per_minute=5000,
        tokens_per_minute=1_000_000,
        requests_left=4999,
        tokens_left=0,
        requests_reset_s=0.012,
        tokens_reset_s=360,
    )


def test_no_headers_say_nothing() -> None:
    """Without rate headers there is nothing to learn, and a bare limit of unknown unit is not believed."""
    assert rates({"content-type": "application/json"}) is None
    assert rates({"x-ratelimit-limit": "100", "x-ratelimit-remaining": "5"}) == Rates()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("120ms", 0.12),
        ("1m30s", 90),
        ("7", 7),
        (" 0.5 ", 0.5),
        ("2d", 172_800),
    ]
    + [(bad, None) for bad in ("", "s", "1x", "-1s", "nan", "inf", "1e9", "٣", "1 s", "soon", "9" * 400)],
)
def test_durations_are_read_strictly(text: str, seconds: float | None) -> None:
    """Go durations and plain seconds are read; anything else, and what only `float` would take, is nothing."""
    assert duration(text) == seconds


@given(
    st.dictionaries(
        st.sampled_from(["x-ratelimit-limit-requests", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"]),
        st.text(max_size=12),
    )
)
def test_hostile_headers_never_break_a_lane(headers: dict[str, str]) -> None:
    """Whatever a server writes there, the lane goes on within a bounded time."""
    rate_limit = RateLimit(RateLimits(), 0.0)
    said = rates(headers)
    if said is not None:
        rate_limit.learn(said, 0.0)
    wait = rate_limit.ready_in(0.0, 100)

    assert 0 <= wait < math.inf


# ── any history ──────────────────────────────────────────────────────────────────────────────────────────────────────


class AnyHistory(RuleBasedStateMachine):
    """Every order of sends, results and waiting, in a lane with all its limits on."""

    @initialize(most=st.integers(1, 20), rpm=st.sampled_from([0, 30, 600]), tpm=st.sampled_from([0, 5000]))
    def start(self, most: int, rpm: float, tpm: float) -> None:
        self.rate_limits = RateLimits(concurrency=most, requests_per_minute=rpm, tokens_per_minute=tpm)
        self.rate_limit = RateLimit(self.rate_limits, 0.0)
        self.now = 0.0
        self.gate, self.refused = -math.inf, -1
        self.flying: list[Admission] = []
        self.sent: list[float] = []

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(tokens=st.integers(0, 3000))
    def send(self, tokens: int) -> None:
        ready_in = self.rate_limit.ready_in(self.now, tokens)
        if ready_in == math.inf:
            assert len(self.flying) >= self.rate_limit.window.size
            return
        self.now += ready_in
        if (
            self.rate_limit.ready_in(self.now, tokens) > 1e-6
        ):  # the rate of five minutes ago has just ended, or rounding
            return
        assert self.now >= self.gate - 1e-6
        assert len(self.flying) < self.rate_limit.window.size
        self.flying.append(self.rate_limit.reserve(self.now, tokens))
        self.sent.append(self.now)

    @precondition(lambda self: self.flying)
    @rule(actual=st.integers(0, 3000))
    def succeed(self, actual: int) -> None:
        reservation = self.flying.pop(0)
        self.rate_limit.settle(reservation, self.now, actual)
        self.rate_limit.succeeded(reservation, self.now)
        self.rate_limit.release()
        if reservation.number > self.refused:
            self.gate = -math.inf

    @precondition(lambda self: self.flying)
    @rule(wait_s=st.floats(0, 120))
    def throttle(self, wait_s: float) -> None:
        reservation = self.flying.pop(0)
        self.rate_limit.throttled(reservation, self.now, wait_s)
        self.rate_limit.release()
        self.gate = max(self.gate, self.now + wait_s)
        self.refused = max(self.refused, reservation.number)

    @precondition(lambda self: self.flying)
    @rule()
    def cancel(self) -> None:
        self.flying.pop()
        self.rate_limit.release()

    @rule(left=st.integers(0, 100), limit=st.integers(1, 1000))
    def hear(self, left: int, limit: int) -> None:
        if self.rate_limits.requests_per_minute:
            self.rate_limit.learn(Rates(requests_per_minute=limit, requests_left=left, requests_reset_s=9), self.now)

    @invariant()
    def within_bounds(self) -> None:
        if not hasattr(self, "rate_limit"):
            return
        assert 1 <= self.rate_limit.window.size <= self.rate_limits.concurrency
        assert self.rate_limit.in_flight == len(self.flying) <= self.rate_limits.concurrency
        if rpm := self.rate_limits.requests_per_minute:
            assert len([at for at in self.sent if at > self.now - 60]) <= rpm


AnyHistory.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


class TestAnyHistory(AnyHistory.TestCase):
    """In any history: window, rates and gate hold."""

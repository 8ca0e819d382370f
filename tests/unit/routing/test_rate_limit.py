"""When the next request of a lane may go: buckets, window, adaptive rate, headers. Time is a number."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedctl.providers._rate_headers import Rates, duration, rates
from embedctl.routing.bucket import Bucket
from embedctl.routing.rate_limit import Admission, RateLimit, RateLimits
from embedctl.routing.window import AdaptiveRate, Window

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


def test_a_window_opens_fast_until_the_first_trouble() -> None:
    """From 4 the window doubles with each window of successes, so that a short run is not held back."""
    window = Window(16)
    sizes = []
    for _ in range(13):
        sizes.append(window.size)
        window.grew()

    assert (sizes[0], sizes[4], sizes[12]) == (4, 8, 16)


def test_after_trouble_a_window_grows_by_one_per_window() -> None:
    """After a cut the window grows by 1 with every window of successes, up to its most."""
    window = Window(10)
    for _ in range(20):
        window.grew()
    window.cut(0.0, sent_at=0.0)

    assert window.size == 7

    for _ in range(8):
        window.grew()

    assert window.size == 8

    for _ in range(100):
        window.grew()

    assert window.size == 10


def test_a_window_is_cut_once_a_second_and_never_for_old_trouble() -> None:
    """Many failures of one moment cut once; failures of what was sent before the cut do not cut again."""
    window = Window(100, start=100)
    for _ in range(50):
        window.cut(10.0, sent_at=9.0)

    assert window.size == 70

    window.cut(15.0, sent_at=9.9)

    assert window.size == 70

    window.cut(15.0, sent_at=11.0)

    assert window.size == 49


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


def test_a_rate_is_learnt_from_what_got_through() -> None:
    """After a throttling the rate is 0.7 of what got through lately, and rises by 0.02 with every success."""
    rate = AdaptiveRate(0.0)
    for tick in range(400):
        rate.succeeded(tick * 0.1, 1.0)

    assert rate.ready_in(40.0, 1.0) == 0
    assert rate.per_second is None

    rate.throttled(40.0, sent_at=39.9)

    assert rate.per_second == pytest.approx(7.0, rel=0.1)
    assert rate.ready_in(40.0, 1.0) == pytest.approx(1 / 7, rel=0.1)

    before = rate.per_second
    rate.succeeded(41.0, 1.0)

    assert rate.per_second == pytest.approx(before + 0.02)


def test_a_guessed_rate_grows_faster() -> None:
    """When the first request of all is throttled the rate is a guess, and grows by 2 % per success until it is cut."""
    rate = AdaptiveRate(0.0)
    rate.throttled(1.0, sent_at=0.9)

    assert rate.per_second == pytest.approx(0.35)

    for tick in range(400):
        rate.succeeded(2.0 + tick * 0.1, 1.0)

    assert rate.per_second > 100

    rate.throttled(50.0, sent_at=49.0)
    before = rate.per_second
    rate.succeeded(50.0, 1.0)

    assert before < 10
    assert rate.per_second == pytest.approx(before + 0.02)


def test_a_rate_is_cut_once_for_requests_sent_together() -> None:
    """Thirty requests that were sent together and all throttled cut the rate once."""
    rate = AdaptiveRate(0.0)
    for tick in range(400):
        rate.succeeded(tick * 0.1, 1.0)
    rate.throttled(40.0, sent_at=39.0)
    once = rate.per_second
    for _ in range(29):
        rate.throttled(40.5, sent_at=39.0)

    assert rate.per_second == once


def test_a_rate_ends_five_minutes_after_the_last_throttling() -> None:
    """Five minutes without a 429 and the rate no longer holds anything back."""
    rate = AdaptiveRate(0.0)
    rate.throttled(10.0, sent_at=9.0)

    assert rate.ready_in(10.0, 1.0) > 0

    rate.ready_in(309.9, 1.0)

    assert rate.per_second is not None

    assert rate.ready_in(310.0, 1.0) == 0
    assert rate.per_second is None


def test_a_rate_never_stops_a_lane() -> None:
    """However often it is cut, a request a minute may go."""
    rate = AdaptiveRate(0.0)
    for minute in range(50):
        rate.throttled(minute * 60.0, sent_at=minute * 60.0)

    assert rate.ready_in(49 * 60.0, 1.0) <= 60.0


# ── the limiter ──────────────────────────────────────────────────────────────────────────────────────────────────────


def go(rate_limit: RateLimit, now: float, tokens: float = 0, items: int = 1) -> tuple[float, Admission]:
    """Wait, reserve and finish one request at once; the time it went."""
    now += rate_limit.ready_in(now, tokens, items)
    reservation = rate_limit.reserve(now, tokens, items)
    rate_limit.succeeded(reservation, now)
    rate_limit.release()
    return now, reservation


def test_requests_per_minute_hold_after_the_burst() -> None:
    """The burst goes at once, then one request per 60/rpm seconds."""
    rate_limit = RateLimit(RateLimits(requests_per_minute=120, burst=10), 0.0)
    now, times = 0.0, []
    for _ in range(30):
        now, _ = go(rate_limit, now)
        times.append(now)

    assert times[:10] == [0.0] * 10
    assert [round(later - earlier, 6) for earlier, later in pairwise(times[9:])] == [0.5] * 20


def test_texts_are_counted_where_the_provider_counts_texts() -> None:
    """Where each text counts as a request, ten texts cost ten."""
    rate_limit = RateLimit(RateLimits(requests_per_minute=60, burst=10, counts_items=True), 0.0)
    first, _ = go(rate_limit, 0.0, items=10)
    second, _ = go(rate_limit, 0.0, items=5)
    larger, _ = go(rate_limit, second, items=100)

    assert (first, second, larger) == (0.0, 5.0, 15.0)


def test_tokens_per_minute_hold_and_are_corrected_by_the_count() -> None:
    """Tokens are reserved by estimate; what the provider counted settles the difference."""
    rate_limit = RateLimit(RateLimits(tokens_per_minute=6000), 0.0)
    _, reservation = go(rate_limit, 0.0, tokens=1000)

    assert rate_limit.ready_in(0.0, 500) == 5.0

    rate_limit.settle(reservation, 0.0, 400)

    assert rate_limit.ready_in(0.0, 500) == 0.0

    rate_limit.settle(reservation, 0.0, 1400)

    assert rate_limit.ready_in(0.0, 500) == pytest.approx(3.0)


def test_without_limits_nothing_is_held_back() -> None:
    """With no limits configured and none learnt only the window holds requests back."""
    rate_limit = RateLimit(RateLimits(concurrency=4), 0.0)

    assert all(go(rate_limit, 0.0, tokens=1e9)[0] == 0 for _ in range(1000))


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

    assert rate_limit.window.size == 4


def test_a_limit_in_the_headers_is_kept_where_none_was_configured() -> None:
    """Limits that headers name hold from then on; configured ones are not changed by them."""
    said = Rates(requests_per_minute=60, tokens_per_minute=6000, requests_left=2, tokens_left=100)
    learning, told = RateLimit(RateLimits(), 0.0), RateLimit(RateLimits(requests_per_minute=600, burst=2), 0.0)
    learning.learn(said, 0.0)
    told.learn(said, 0.0)

    assert learning.ready_in(0.0, 400) == 3.0
    assert [round(go(told, 0.0)[0], 6) for _ in range(3)] == [0, 0, 0.1]


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
        self.gate = -math.inf
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

    @precondition(lambda self: self.flying)
    @rule(wait_s=st.floats(0, 120))
    def throttle(self, wait_s: float) -> None:
        self.rate_limit.throttled(self.flying.pop(0), self.now, wait_s)
        self.rate_limit.release()
        self.gate = max(self.gate, self.now + wait_s)

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
        if not hasattr(self, "limiter"):
            return
        assert 1 <= self.rate_limit.window.size <= self.rate_limits.concurrency
        assert self.rate_limit.in_flight == len(self.flying) <= self.rate_limits.concurrency
        if rpm := self.rate_limits.requests_per_minute:
            last_minute = [at for at in self.sent if at > self.now - 60]
            assert len(last_minute) <= rpm + self.rate_limits.burst + 1


AnyHistory.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


class TestAnyHistory(AnyHistory.TestCase):
    """In any history: window, rates and gate hold."""

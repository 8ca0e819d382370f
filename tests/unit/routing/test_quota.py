"""What may be asked in a minute where somebody has named it. Time is a number."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.routing.quota import Quota
from embedctl.routing.rate_limit import RateLimits
from tests.support.simulating import FixedWindow, Limit, Provider, SlidingWindow, TokenBucket, simulate

PAUSES = st.lists(st.one_of(st.just(0.0), st.floats(0, 2), st.floats(0, 100)), min_size=1, max_size=30)
"""Before each of some askings, again and again: bursts, steady ones, and long silence between them."""


@given(per_minute=st.floats(1, 300), burst=st.floats(1, 500), pauses=PAUSES, start=st.floats(0, 1e6))
def test_no_minute_holds_more_than_was_named(
    per_minute: float, burst: float, pauses: list[float], start: float
) -> None:
    """However requests are asked for, no 60 s hold more of them than the number told, also where each is late."""
    quota, now, went = Quota(per_minute, burst, start), start, list[float]()
    for turn in range(400):
        now += pauses[turn % len(pauses)]
        while wait := quota.ready_in(now, 1.0):
            now += wait
        quota.take(now, 1.0)
        went.append(now)
    most = int(per_minute * (1 + 1e-6))  # rounding
    for first, next_one in zip(went, went[most:], strict=False):
        assert next_one - first >= 60.49


@given(
    per_minute=st.floats(10, 10_000),
    amounts=st.lists(st.tuples(st.floats(0, 1.2), st.floats(0, 1.2), st.floats(0, 20)), min_size=1, max_size=30),
)
def test_no_minute_holds_more_tokens_than_were_named(
    per_minute: float, amounts: list[tuple[float, float, float]]
) -> None:
    """Estimates that are corrected downwards later let no more through in any 60 s; what is larger goes alone."""
    quota, now = Quota(per_minute, per_minute / 6, 0.0), 0.0
    went: list[tuple[float, float]] = []
    for turn in range(60):
        estimated, part, pause = amounts[turn % len(amounts)]
        now += pause
        while wait := quota.ready_in(now, estimated * per_minute):
            now += wait
        quota.take(now, estimated * per_minute)
        actual = estimated * min(1.0, part) * per_minute
        quota.correct(now + 0.3, now, actual - estimated * per_minute)
        went.append((now, actual))
        now += 0.3
    for number, (start, _) in enumerate(went):
        minute = [amount for at, amount in went[number:] if at <= start + 60]

        assert sum(minute) <= max(per_minute, *minute) * (1 + 1e-5)


def test_a_burst_goes_at_once_then_nearly_the_named_speed() -> None:
    """Half of the burst goes at once at the start, all of it after a while; then 0.98 of the speed."""
    quota, now, went = Quota(600, 10, 0.0), 0.0, list[float]()
    for _ in range(20):
        now += quota.ready_in(now, 1.0)
        quota.take(now, 1.0)
        went.append(now)

    assert went[:5] == [0.0] * 5
    assert [round(later - earlier, 6) for earlier, later in pairwise(went[4:])] == [round(0.1 / 0.98, 6)] * 15
    assert quota.ready_in(100.0, 10.0) == 0.0


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600])
def test_a_saturated_quota_gives_what_was_named(per_minute: int) -> None:
    """Whoever always asks gets 0.97 of the number told, also a very small one."""
    quota, now = Quota(per_minute, 10, 0.0), 0.0
    count = 0
    while (now := now + quota.ready_in(now, 1.0)) < 6000:
        quota.take(now, 1.0)
        count += 1

    assert 0.97 * per_minute <= count / 100 <= per_minute * 1.01


PROVIDERS: dict[str, Callable[[float], Limit]] = {
    "a bucket": lambda rpm: TokenBucket(rpm / 60, 10),
    "any minute": lambda rpm: SlidingWindow(rpm),
    "the calendar's minute": lambda rpm: FixedWindow(rpm),
}


@pytest.mark.parametrize("rpm", [20, 2400])
@pytest.mark.parametrize("kind", PROVIDERS)
def test_requests_that_are_late_are_not_refused(kind: str, rpm: int, counted: Callable[[object], None]) -> None:
    """Four workers' requests, up to 200 ms late, at a provider that keeps strictly what was told: none is refused."""
    provider, seconds = Provider([PROVIDERS[kind](rpm)], latency_s=0.1), 400 if rpm < 60 else 90
    everybody = simulate(
        provider,
        4,
        seed=71,
        seconds=seconds,
        rate_limits=RateLimits(concurrency=64, requests_per_minute=rpm),
        late_s=0.2,
        one_limiter=True,
    )
    goodput = sum(process.got(0, seconds) for process in everybody) * 60 / rpm
    refused = provider.throttled / (provider.throttled + provider.answers)
    counted(f"goodput {goodput:.3f}, refused {refused:.2%}")

    assert goodput >= 0.95
    assert refused <= 0.001

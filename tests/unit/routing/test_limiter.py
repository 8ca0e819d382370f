"""The lane: requests wait for their turn by a clock that is a number."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.errors import AnswerLost, KeyRejected, NotSent, ProviderError, ServerFailed, Throttled
from embedctl.providers._rate_headers import Rates
from embedctl.routing.limiter import AdaptiveLimiter
from embedctl.routing.quota import SPEED
from embedctl.routing.rate_limit import RateLimits


class Clock:
    """Virtual time: jumps to the earliest sleeper when everybody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self.now + seconds, len(self.sleepers), future)
        self.sleepers.append(entry)
        try:
            await future
        finally:
            self.sleepers.remove(entry)

    async def drive(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(12):
                await asyncio.sleep(0)
            waiting = [entry for entry in self.sleepers if not entry[2].done()]
            if task.done() or not waiting:
                continue
            at, _, future = min(waiting, key=lambda entry: entry[:2])
            self.now = max(self.now, at)
            future.set_result(None)
        return task.result()


def run(main: Callable[[Clock], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        clock = Clock()
        async with asyncio.timeout(20):
            await clock.drive(main(clock))

    asyncio.run(bounded())


def limiter(clock: Clock, **rate_limits: Any) -> AdaptiveLimiter:
    return AdaptiveLimiter(RateLimits(**rate_limits), clock=clock, sleep=clock.sleep)


async def answered(subject: AdaptiveLimiter, clock: Clock, seconds: float = 1.0, tokens: int = 10) -> float:
    """One request that takes so long; the time it was sent."""
    async with subject.acquire(tokens) as permit:
        sent = clock.now
        await clock.sleep(seconds)
        permit.succeeded(tokens)
    return sent


def test_requests_go_in_the_order_they_came() -> None:
    """First come, first served: a large request is not overtaken for ever by small ones."""
    order = []

    async def main(clock: Clock) -> None:
        subject = limiter(clock, tokens_per_minute=6000)

        async def one(index: int, tokens: int) -> None:
            async with subject.acquire(tokens):
                order.append(index)

        await asyncio.gather(*(one(index, 5000 if index == 3 else 10) for index in range(20)))

    run(main)

    assert order == list(range(20))


def test_the_window_bounds_what_is_in_flight() -> None:
    """Never more requests than the window are in flight."""
    in_flight, seen = 0, []

    async def main(clock: Clock) -> None:
        subject = limiter(clock, concurrency=16)

        async def one() -> None:
            nonlocal in_flight
            async with subject.acquire(1) as permit:
                in_flight += 1
                seen.append(in_flight)

                assert in_flight <= subject.rate_limit.window.size

                await clock.sleep(1.0)
                permit.succeeded()
                in_flight -= 1

        await asyncio.gather(*(one() for _ in range(100)))

        assert subject.rate_limit.in_flight == 0

    run(main)

    assert max(seen) == 16


def test_a_throttled_request_holds_the_others() -> None:
    """After a 429 with Retry-After nothing of the lane is sent before that time."""
    sent = []

    async def main(clock: Clock) -> None:
        subject = limiter(clock, concurrency=4)

        async def one() -> None:
            async with subject.acquire(1) as permit:
                sent.append(clock.now)
                await clock.sleep(0.5)
                if len(sent) <= 4:
                    permit.failed(Throttled("slow down", retry_after_s=7))
                else:
                    permit.succeeded()

        await asyncio.gather(*(one() for _ in range(8)))

    run(main)

    assert sent[:4] == [0.0] * 4
    assert min(sent[4:]) >= 7.5


def test_an_answer_ends_a_wait_that_was_not_meant_for_all() -> None:
    """A hint that an answer in flight contradicts holds nobody any longer."""
    sent = []

    async def main(clock: Clock) -> None:
        subject = limiter(clock, concurrency=4)

        async def one(seconds: float, refused: bool) -> None:
            async with subject.acquire(1) as permit:
                sent.append(clock.now)
                await clock.sleep(seconds)
                if refused:
                    permit.failed(Throttled("busy", retry_after_s=300))
                else:
                    permit.succeeded()

        await asyncio.gather(one(0.1, True), one(1.0, False), one(2.0, False), one(2.0, False), one(0.1, False))

    run(main)

    assert sent == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_provider_that_refuses_everything_is_an_error_in_the_end() -> None:
    """Where nothing got through for longer than `--max-wait`, whoever waits is told so."""

    async def main(clock: Clock) -> None:
        subject = limiter(clock)

        async def again_and_again() -> None:
            while True:
                async with subject.acquire(1) as permit:
                    permit.failed(Throttled("slow down"))

        with pytest.raises(Throttled, match="refused everything") as caught:
            await again_and_again()

        assert 600 <= clock.now <= 610
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 600

    run(main)


def test_a_gate_beyond_the_wait_is_an_error() -> None:
    """A lane that was asked to wait for longer than `--max-wait` refuses at once, with the time."""

    async def main(clock: Clock) -> None:
        subject = limiter(clock)
        subject.rate_limit.hold(clock.now + 5000)
        with pytest.raises(Throttled) as caught:
            async with subject.acquire(1):
                pass

        assert caught.value.retry_after_s == 5000
        assert subject.rate_limit.in_flight == 0

    run(main)


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (Throttled("x"), 16),
        (AnswerLost("x"), 11),
        (ServerFailed("x", status=503), 11),
        (ServerFailed("x", status=500), 16),
        (NotSent("x"), 16),
        (KeyRejected("x"), 16),
    ],
)
def test_only_signs_of_overload_narrow_the_window(error: ProviderError, size: int) -> None:
    """Many 503 and lost answers narrow the window; a 429 is about the rate, other failures say nothing about load."""

    async def main(clock: Clock) -> None:
        subject = limiter(clock)
        async with subject.acquire(1) as first, subject.acquire(1) as second:
            first.failed(error)
            second.failed(error)

        assert subject.rate_limit.window.size == size

    run(main)


def test_tokens_that_never_left_come_back() -> None:
    """A request that was not sent gives its tokens back; a cancelled one may have used them."""

    async def main(clock: Clock) -> None:
        subject = limiter(clock, tokens_per_minute=6000)
        async with subject.acquire(450) as permit:
            permit.failed(NotSent("dns"))

        assert subject.rate_limit.ready_in(0.0, 500) == 0

        async with subject.acquire(450):
            pass

        assert subject.rate_limit.ready_in(0.0, 500) == pytest.approx(4.5 / SPEED)

    run(main)


def test_headers_are_learnt_from_answers_and_failures() -> None:
    """What the headers of any answer say holds for the next request."""

    async def main(clock: Clock) -> None:
        subject = limiter(clock)
        async with subject.acquire(1) as permit:
            permit.succeeded(1, Rates(requests_left=0, requests_reset_s=3))
        async with subject.acquire(1) as permit:
            first = clock.now
            permit.failed(ServerFailed("x", status=500), rates=Rates(requests_left=0, requests_reset_s=4))
        async with subject.acquire(1):
            second = clock.now

        assert (first, second) == (3.0, 7.0)

    run(main)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_cancelling_anybody_anywhere_loses_no_place(seed: int) -> None:
    """Whoever is cancelled, waiting or in flight, the lane goes on with its places whole."""

    async def main(clock: Clock) -> None:
        chance = random.Random(seed)
        subject = limiter(clock, concurrency=3, requests_per_minute=120, burst=2)
        tasks = [asyncio.create_task(answered(subject, clock, chance.random() * 2)) for _ in range(30)]
        for task in chance.sample(tasks, 20):
            await clock.sleep(chance.random() * 0.5)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert {type(result) for result in results} <= {float, asyncio.CancelledError}
        assert subject.rate_limit.in_flight == 0
        assert not subject._turn.locked()

        await answered(subject, clock)

    run(main)


def test_an_error_in_the_block_frees_the_place() -> None:
    """A block that raises gives its place back."""

    async def main(clock: Clock) -> None:
        subject = limiter(clock, concurrency=1)
        for _ in range(3):
            with pytest.raises(ValueError, match="bug"):
                async with subject.acquire(1):
                    raise ValueError("bug")

        assert subject.rate_limit.in_flight == 0

    run(main)

"""The lines of a chain: who is waited for, how long, and what wakes those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from embedctl.embedding.endpoint_state import NotAdmittedError
from embedctl.embedding.leg import Leg
from embedctl.embedding.route import Route
from embedctl.embedding.router import Router, WaitBudget
from embedctl.errors import EmbedctlError, NoProviderNow, QuotaExhausted, RequestTooLarge, ServerFailed, Throttled
from embedctl.records import Limits, format_duration
from embedctl.routing import chain as chains
from embedctl.routing import circuits
from embedctl.routing.breaker import State
from embedctl.routing.limiter import AdaptiveLimiter
from embedctl.routing.retry import Policy, Remedy, Step
from embedctl.storage import locks
from tests.support.calling import SMALL, load
from tests.support.observing import Kept

ILL = ServerFailed("HTTP 503: no", provider="openai", status=503)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@dataclass
class Made:
    """A router and one route of it."""

    router: Router
    route: Route

    @property
    def first(self) -> Leg:
        return self.route.first


def router(folder: Path, time: Time, *, changed: Callable[[Limits], None] = lambda limits: None, **about: Any) -> Made:
    config = '[providers.openai]\nbase_url = "http://127.0.0.1:9/v1"\n'
    chain = chains.chain(load(folder, config, model=f"openai:{SMALL}", fallback="off"))
    made = Router(
        hints_file=folder / "home" / "hints.json",
        limiter=lambda endpoint, waiting: AdaptiveLimiter(endpoint.rate_limits, clock=time, sleep=time.sleep),
        jitter=lambda: 0.5,
        clock=time,
        wall=lambda: 1_800_000_000.0 + time.now,
        sleep=time.sleep,
        **{"max_wait_s": 600.0, **about},
    )
    return Made(made, made.route(chain, mode="off", policy=Policy(), limits_changed=changed))


def attempt(line: Leg, time: Time, error: EmbedctlError | None = None) -> None:
    try:
        with line.admitted(time, isolating=False):
            if error is not None:
                raise error
    except (ServerFailed, NotAdmittedError):
        return


async def no_probe(line: Any, texts: Any) -> Any:
    raise AssertionError("nothing is to be compared")


def next_line(made: Made, wait_budget: WaitBudget | None = None) -> Leg:
    return asyncio.run(made.router.next(made.route, no_probe, wait_budget or WaitBudget()))


def test_an_open_circuit_is_waited_for(tmp_path: Path, time: Time) -> None:
    """An open circuit is waited out, and the wait is told."""
    observer = Kept()
    made = router(tmp_path, time, observer=observer)
    made.first.state.successes = 1
    for _ in range(5):
        attempt(made.first, time, ILL)
    assert made.first.state.breaker.state(time()) is State.OPEN

    line = next_line(made)

    assert line.state.breaker.state(time()) is State.HALF_OPEN
    assert 5 <= time.now - 1000 <= 15
    assert len(observer.warned) == 1
    assert "HTTP 503: no" in observer.warned[0]


def test_patience_ends(tmp_path: Path, time: Time) -> None:
    """All waits of one request together end at --max-wait, with 75 and the time to come back."""
    made = router(tmp_path, time, max_wait_s=60.0)
    wait_budget = WaitBudget()

    def for_ever() -> None:
        while True:
            for _ in range(5):
                attempt(made.first, time, ILL)
            next_line(made, wait_budget)
            attempt(made.first, time, ILL)

    with pytest.raises(NoProviderNow) as caught:
        for_ever()

    assert wait_budget.waited_s <= 60
    assert caught.value.exit_code == 75
    assert "run the same command again in" in (caught.value.hint or "")


def test_the_window_restarts_when_the_circuit_closes(tmp_path: Path, time: Time) -> None:
    """Exactly when a probe closes the circuit, the lane begins with one request at a time; a late answer does not."""
    made = router(tmp_path, time)
    line = made.first
    with line.admitted(time, isolating=False):  # sent before the circuit opens, answered while it is half open
        for _ in range(5):
            attempt(line, time, ILL)
        time.now += 60
        assert line.state.breaker.state(time()) is State.HALF_OPEN
    assert line.state.breaker.state(time()) is State.HALF_OPEN
    assert line.state.limiter.rate_limit.window.size == 16

    attempt(line, time)

    assert line.state.breaker.state(time()) is State.CLOSED
    assert line.state.limiter.rate_limit.window.size == 1


class Stopped(Time):
    """A clock on which no sleep ends."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


def beside_a_probe(made: Made, time: Time) -> Leg:
    """What a request is given that waits while another one probes a half open circuit, which is good."""
    made.first.state.successes = 1
    for _ in range(5):
        attempt(made.first, time, ILL)
    time.now += 60

    async def main() -> Leg:
        with made.first.admitted(time, isolating=False):
            waiting = asyncio.create_task(made.router.next(made.route, no_probe, WaitBudget()))
            await asyncio.sleep(0)
            assert not waiting.done()
        return await asyncio.wait_for(waiting, 30)

    return asyncio.run(main())


def test_a_good_probe_wakes_the_others(tmp_path: Path) -> None:
    """Those who wait while one probe is under way go on as soon as it is good, not when they would look again."""
    time = Stopped()
    made = router(tmp_path, time)

    assert beside_a_probe(made, time) is made.first


def test_a_wait_for_a_probe_is_not_told(tmp_path: Path) -> None:
    """Who waits a moment for another request's answer says nothing of 180 s."""
    time, observer = Stopped(), Kept()
    beside_a_probe(router(tmp_path, time, observer=observer), time)

    assert observer.warned == []


def test_a_reset_wakes_a_running_job(tmp_path: Path, time: Time) -> None:
    """`providers reset` closes the circuit of a job that waits, and lifts what its server asked for."""
    made = router(tmp_path, time)
    line = made.first
    line.state.successes = 1
    for _ in range(40):
        attempt(line, time, ILL)
        time.now += 6
    line.state.breaker._opens_at = time.now + 280  # a long stay
    made.router._background.close()
    assert circuits.running(tmp_path / "home" / "circuits")[0]["state"] == "open"
    circuits.ask_to_close(tmp_path / "home" / "circuits", "openai")
    before = time.now

    assert next_line(made) is line
    assert time.now - before <= 5
    assert line.state.breaker.state(time()) is State.CLOSED
    asyncio.run(made.router.aclose())
    assert circuits.running(tmp_path / "home" / "circuits") == []


def test_a_reset_lifts_what_was_asked_for(tmp_path: Path, time: Time) -> None:
    """`providers reset` forgets that a server asked to be left alone."""
    made = router(tmp_path, time)
    made.router.memory.hold(made.first.endpoint, 3000.0, "HTTP 429: later")
    assert made.router.memory.held(made.first.endpoint)[0] > 0

    made.router.reset("openai")

    assert made.router.memory.held(made.first.endpoint)[0] == 0
    assert next_line(made) is made.first
    assert time.now == 1000


def test_an_empty_account_is_left_for_a_while(tmp_path: Path, time: Time) -> None:
    """A used up quota that names no time is not asked again by the next run for a quarter of an hour."""
    made = router(tmp_path, time)
    error = QuotaExhausted("HTTP 429: insufficient_quota", provider="openai", status=429)

    assert made.router.leave(made.first, Step(remedy=Remedy.GIVE_UP, error=error))

    assert made.router.memory.held(made.first.endpoint) == (900.0, "HTTP 429: insufficient_quota")
    assert "15 min" in (error.hint or "")


def test_circuits_of_killed_runs_are_removed(tmp_path: Path) -> None:
    """What a killed run wrote of its circuits goes; what a living one wrote, and what was asked of all, stays."""
    for name in ("dead", "living"):
        (tmp_path / f"{name}.json").write_text("[]")
    (tmp_path / "dead.lock").touch()
    (tmp_path / "lost.lock").touch()
    (tmp_path / "openai.reset").touch()
    with locks.hold(tmp_path / "living.lock"):
        gone = circuits.sweep(tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir())

    assert gone == 2
    assert left == ["living.json", "living.lock", "openai.reset"]


def test_a_long_wait_is_remembered(tmp_path: Path, time: Time) -> None:
    """A server that asks for more than we wait is left, held for an hour at most, and asked once by the next run."""
    error = Throttled("HTTP 429: later", provider="openai", status=429, retry_after_s=86400)
    made = router(tmp_path, time)
    assert made.router.leave(made.first, Step(remedy=Remedy.GIVE_UP, error=error, refused_for_s=86400))
    assert not made.router.leave(made.first, Step(remedy=Remedy.GIVE_UP, error=error, refused_for_s=86400))
    made.router._background.close()
    later = router(tmp_path, time)

    line = next_line(later)

    assert line.state.asked_although_held
    assert later.router.memory.held(line.endpoint) == (3600.0, "HTTP 429: later")
    with pytest.raises(NoProviderNow):
        next_line(later)


def test_learnt_limits_reach_the_packer(tmp_path: Path, time: Time) -> None:
    """A refusal for size is told to the packer at once, and to the next run."""
    seen: list[Limits] = []
    made = router(tmp_path, time, changed=seen.append)
    made.router.too_large(
        made.route, made.first, 64, 9000, RequestTooLarge("HTTP 400: number of texts must be at most 48 - got 64")
    )
    made.router.too_large(made.route, made.first, 40, 9000, RequestTooLarge("HTTP 413: payload"))

    assert [(one.items, one.bytes) for one in seen] == [(48, None), (48, 4500)]
    made.router._background.close()
    later = router(tmp_path, time)
    again = later.router.limits(later.route)
    assert (again.items, again.bytes) == (48, 4500)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0.4 s"), (75, "75 s"), (600, "10 min"), (7800, "2 h 10 min"), (86400, "24 h")]
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    """Short waits in seconds, long ones in minutes or hours."""
    assert format_duration(seconds) == words

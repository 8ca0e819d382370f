"""Turns, places and rates: nobody starves, nothing leaks, whatever is cancelled when."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.routing.limiter import FairTurn
from embedctl.server.admission import AdmissionQueue, KeyRates
from embedctl.server.authentication import Client
from embedctl.server.refusals import Refused

KEY: ContextVar[str] = ContextVar("key", default="")


def client(name: str, **more: object) -> Client:
    return Client(id=name, workspace="w", **more)  # type: ignore[arg-type]


def test_keys_take_turns_at_a_lock() -> None:
    """Whoever has many waiters gets the lock in turn with whoever has one."""
    order: list[str] = []

    async def one(turn: FairTurn, key: str) -> None:
        KEY.set(key)
        async with turn:
            order.append(key)
            await asyncio.sleep(0)

    async def run() -> None:
        turn = FairTurn(KEY.get)
        await asyncio.gather(*(one(turn, key) for key in ["a"] * 5 + ["b"] * 2 + ["c"]))

    asyncio.run(run())

    assert order == ["a", "a", "b", "c", "a", "b", "a", "a"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 3)), max_size=25))
def test_a_lock_survives_who_gives_up(steps: list[tuple[str, bool, int]]) -> None:
    """However many waiters are cancelled, at most one holds it, and it is free in the end."""
    holding = most = 0

    async def one(turn: FairTurn, key: str) -> None:
        nonlocal holding, most
        KEY.set(key)
        async with turn:
            holding += 1
            most = max(most, holding)
            try:
                await asyncio.sleep(0)
            finally:
                holding -= 1

    async def run() -> None:
        turn = FairTurn(KEY.get)
        tasks = []
        for key, cancelled, after in steps:
            tasks.append(asyncio.create_task(one(turn, key)))
            for _ in range(after):
                await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), turn:
            pass

    asyncio.run(run())

    assert most <= 1
    assert holding == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.booleans()), max_size=30),
)
def test_places_are_bounded_and_come_back(most: int, queue: int, steps: list[tuple[str, int, bool]]) -> None:
    """Never more in flight than allowed, nor more bytes but for one alone; all is free again in the end."""
    seen: list[tuple[int, int]] = []
    codes: set[str] = set()

    async def one(admission: AdmissionQueue, name: str, size: int) -> None:
        try:
            slot = await admission.enter(client(name), size, wait_s=5)
        except Refused as refused:
            codes.add(refused.code)
            return
        seen.append((admission.in_flight, admission.bytes))
        try:
            await asyncio.sleep(0)
        finally:
            slot.release()

    async def run() -> AdmissionQueue:
        admission = AdmissionQueue(most=most, most_bytes=100, queue=queue, jitter=lambda: 0.0)
        tasks = []
        for name, size, cancelled in steps:
            tasks.append(asyncio.create_task(one(admission, name, size)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return admission

    done = asyncio.run(run())

    assert codes <= {"overloaded"}
    assert all(count <= most and (size <= 100 or count == 1) for count, size in seen)
    assert (done.in_flight, done.bytes, done._waiters, done._of_key) == (0, 0, 0, {})


def test_a_place_is_held_by_all_who_hold_it() -> None:
    """A place comes back when the last holder lets go of it; what it grew by comes back with it."""

    async def run() -> None:
        admission = AdmissionQueue(most=1, most_bytes=100, queue=1)
        slot = await admission.enter(client("a"), 10, wait_s=1)
        slot.hold()
        slot.grow(500)
        slot.release()
        assert (admission.in_flight, admission.bytes) == (1, 510)
        slot.release()
        assert (admission.in_flight, admission.bytes) == (0, 0)

    asyncio.run(run())


def test_a_rate_is_a_bucket() -> None:
    """A burst passes, then one a second at 60 a minute; a key whose limits change begins anew."""
    now = 0.0
    rates = KeyRates(lambda: now)
    mine = client("a", rpm=60, burst=2)
    rates.take(mine)
    rates.take(mine)

    with pytest.raises(Refused) as refused:
        rates.take(mine)
    assert refused.value.retry_after_s == pytest.approx(1.0)

    now = 1.0
    rates.take(mine)
    rates.take(client("a", rpm=60, burst=5))
    rates.take(client("b"))

    assert rates.status(client("b")) is None


def test_tokens_are_corrected() -> None:
    """What turned out to be fewer tokens than thought is given back."""
    rates = KeyRates(lambda: 0.0)
    mine = client("a", tpm=100)
    rates.take_tokens(mine, 100)
    with pytest.raises(Refused, match="tokens a minute"):
        rates.take_tokens(mine, 10)
    rates.correct_tokens(mine, -60)
    rates.take_tokens(mine, 50)

"""What all workers of a job share: no number of them, and no death of one, passes a limit or the budget."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.budgets.reservations import Reservations, SpendLimit
from embedctl.engines.leases import LeasedLimiter, LeasedLimits
from embedctl.engines.shared_limits import SharedLimits
from embedctl.errors import BudgetReached, HostLost, Throttled
from embedctl.routing.limiter import AdaptiveLimiter
from embedctl.routing.rate_limit import RateLimits
from tests.unit.budgets.test_reservations import OFFER, PRICE, event, request
from tests.unit.routing.test_limiter import Clock

LIMITS = RateLimits(concurrency=3)


class Line:
    """A worker's line to limits in the same process, on which everything is JSON, as on a wire."""

    def __init__(self, host: SharedLimits, worker: str) -> None:
        self.host, self.worker = host, worker
        self.under_way: list[asyncio.Task[Any]] = []
        self.cut = False

    async def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        if self.cut:
            raise HostLost("nobody is there")
        asked = asyncio.ensure_future(getattr(self.host, method)(self.worker, *orjson.loads(orjson.dumps(arguments))))
        self.under_way.append(asked)
        answer = await asyncio.shield(asked)  # who does not wait any more says so
        return orjson.loads(orjson.dumps(answer))

    def tell(self, method: str, *arguments: Any) -> None:
        if not self.cut:
            said = getattr(self.host, method)(self.worker, *orjson.loads(orjson.dumps(arguments)))
            self.under_way.append(asyncio.ensure_future(said))

    async def quiet(self) -> None:
        await asyncio.gather(*self.under_way)


def host(limit: Decimal | None = None, *, clock: Clock | None = None, workers: int = 4) -> SharedLimits:
    """Limits of a job, by a clock that is a number where one is given."""
    money = Reservations(lambda endpoint: PRICE, [] if limit is None else [SpendLimit("--max-cost", limit)])

    def limiter(name: str, limits: RateLimits) -> AdaptiveLimiter:
        if clock is None:
            return AdaptiveLimiter(limits)
        return AdaptiveLimiter(limits, clock=clock, sleep=clock.sleep)

    return SharedLimits(money, limiter, workers=workers)


def leased(limits: SharedLimits, worker: str) -> tuple[Line, LeasedLimits]:
    """A worker that has joined."""
    line, terms = Line(limits, worker), limits.join(worker)
    return line, LeasedLimits(line, is_limited=terms["is_limited"], tenants=terms["tenants"])


def in_flight(limits: SharedLimits) -> int:
    return sum(one.rate_limit.in_flight for one in limits._limiters.values())


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["send", "answer", "fail", "die", "withdraw"]),
        st.integers(1, 20),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.decimals("0.0000001", "0.00001", places=8))
def test_no_order_of_events_passes_anything(steps: list[tuple[int, str, int]], amount: Decimal) -> None:
    """Workers send, are answered, fail, give up and die in any order: permits stay within the concurrency of all, and
    what is spent and set aside within the limit. When all are gone everything is free, and the dead one's is spent.
    """

    async def play() -> None:
        limits = host(amount, workers=3)
        money = limits._money
        (limit,) = money.concerned()
        reserve = money.set_aside

        async def at_once(amount: Decimal, accounts: Any, *, at_once: bool = False) -> Any:
            found = await reserve(amount, accounts, at_once=True)
            if found is None and not at_once:
                raise BudgetReached("short")  # nobody waits here
            return found

        money.set_aside = at_once  # type: ignore[method-assign]
        lives = {number: (f"worker-{number}", *leased(limits, f"worker-{number}")) for number in range(3)}
        going: dict[int, list[tuple[Any, Any, Any]]] = {number: [] for number in range(3)}
        dead = 0
        for number, what, texts in steps:
            name, line, mine = lives[number]
            guard = mine.reservations(lambda endpoint: PRICE)
            if what == "send" and in_flight(limits) < 9:
                turn = LeasedLimiter(line, OFFER, LIMITS, mine._tickets).acquire(10.0, texts)
                permit = await turn.__aenter__()
                try:
                    reservation = await guard.reserve(OFFER, request([f"text {n}" for n in range(texts)]))
                except BudgetReached:
                    await turn.__aexit__(None, None, None)
                    await line.quiet()
                    continue
                going[number].append((turn, permit, reservation))
            elif what in ("answer", "fail", "withdraw") and going[number]:
                turn, permit, reservation = going[number].pop(0)
                if what == "answer":
                    permit.succeeded(texts)
                    await guard.settle(reservation, event("yes", texts))
                elif what == "fail":
                    permit.failed(Throttled("no", retry_after_s=None))
                    await guard.release(reservation)
                else:
                    line.tell("withdraw", reservation.ticket)
                await turn.__aexit__(None, None, None)
            elif what == "die":
                await line.quiet()
                await limits.gone(name)
                dead += 1
                name = f"worker-{number}-{dead}"
                lives[number], going[number] = (name, *leased(limits, name)), []
            await lives[number][1].quiet()
            assert in_flight(limits) == sum(map(len, going.values())) <= 9
            assert limit.spent + limit.reserved <= amount
            assert limit.reserved == sum((one.amount for each in going.values() for _, _, one in each), Decimal(0))
        before = limit.spent + limit.reserved
        for name, line, _ in lives.values():
            await line.quiet()
            await limits.gone(name)
        assert in_flight(limits) == 0
        assert (limit.reserved, limit.spent) == (0, before)

    asyncio.run(play())


def test_four_workers_use_one_limit() -> None:
    """A provider that takes 60,000 tokens in a minute gets at least 0.85 of that from four workers together, and
    refuses at most 2 % of their requests, though no worker knows what the others send.
    """
    clock, chance = Clock(), random.Random(1)
    sent: deque[tuple[float, float]] = deque()
    counts = {"answered": 0.0, "refused": 0, "requests": 0}
    minutes = 5

    async def work(limits: SharedLimits, name: str) -> None:
        line, mine = leased(limits, name)
        told = RateLimits(concurrency=8, tokens_per_minute=60_000)
        lane = LeasedLimiter(line, OFFER, told, mine._tickets)

        async def lane_of() -> None:
            while clock.now < 60.0 * minutes:
                tokens = chance.uniform(200, 900)
                async with lane.acquire(tokens) as permit:
                    await clock.sleep(chance.uniform(0.05, 0.4))
                    while sent and sent[0][0] <= clock.now - 60:
                        sent.popleft()
                    counts["requests"] += 1
                    if sum(one for _, one in sent) + tokens > 60_000 + 10_000:  # and the burst that it allows
                        counts["refused"] += 1
                        permit.failed(Throttled("slow down", retry_after_s=1.0))
                    else:
                        sent.append((clock.now, tokens))
                        counts["answered"] += tokens
                        permit.succeeded(round(tokens))

        await asyncio.gather(*(lane_of() for _ in range(8)))

    async def all_of_them() -> None:
        limits = host(clock=clock)
        await asyncio.gather(*(work(limits, f"worker-{number}") for number in range(4)))

    asyncio.run(clock.drive(all_of_them()))

    assert counts["answered"] >= 0.85 * 60_000 * minutes, counts
    assert counts["refused"] <= 0.02 * counts["requests"], counts


def test_a_refusal_is_everybodys() -> None:
    """One worker is asked to wait for five seconds: no other sends anything meanwhile."""
    clock = Clock()
    began: list[float] = []

    async def play() -> None:
        limits = host(clock=clock)
        (line, one), (_, other) = leased(limits, "one"), leased(limits, "other")
        async with one.limiter(OFFER, LIMITS, AdaptiveLimiter(LIMITS)).acquire(10) as permit:
            permit.failed(Throttled("wait", retry_after_s=5.0))
        await line.quiet()
        async with other.limiter(OFFER, LIMITS, AdaptiveLimiter(LIMITS)).acquire(10):
            began.append(clock.now)

    asyncio.run(clock.drive(play()))

    assert began[0] >= 5.0


def test_who_gives_up_leaves_nothing_behind() -> None:
    """A worker that is told to stop while it waits for a turn, or for money, holds neither afterwards."""

    async def play() -> None:
        limits = host(Decimal("0.0000005"), workers=1)
        line, mine = leased(limits, "one")
        lane = LeasedLimiter(line, OFFER, replace(LIMITS, concurrency=1), mine._tickets)
        guard = mine.reservations(lambda endpoint: PRICE)
        texts = request(["text"] * 6)
        async with lane.acquire(10):
            held = await guard.reserve(OFFER, texts)
            waiting = [
                asyncio.ensure_future(lane.acquire(10).__aenter__()),
                asyncio.ensure_future(guard.reserve(OFFER, texts)),
            ]
            await asyncio.sleep(0.05)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await line.quiet()
            await guard.release(held)
        await line.quiet()
        (limit,) = limits._money.concerned()
        assert (in_flight(limits), limit.reserved, limit.spent) == (0, 0, 0)
        assert not limits._workers["one"].withdrawn

    asyncio.run(play())


def test_what_a_worker_cannot_have_is_said_as_alone() -> None:
    """Money that is short ends a worker's run with the words that it would end with alone."""

    async def play() -> None:
        limits = host(Decimal("0.0000001"))
        _, mine = leased(limits, "one")
        with pytest.raises(BudgetReached, match=r"^--max-cost is reached: ") as reached:
            await mine.reservations(lambda endpoint: PRICE).reserve(OFFER, request(["a text"] * 50))
        assert reached.value.hint == "raise it and run the same command again: what was embedded is kept"

    asyncio.run(play())


def test_what_dead_workers_of_before_had_spent_counts_once() -> None:
    """Who takes a shard over says what its earlier holder had spent; of this job's own workers that is known."""

    async def play() -> None:
        limits = host(Decimal(1))
        line, mine = leased(limits, "one")
        for segment, run in (("s1", "before"), ("s2", "before"), ("s1", "before"), ("s3", "one")):
            mine.spent_before(segment, run, {"default": Decimal("0.1")})
        await line.quiet()
        assert limits._money.concerned()[0].spent == Decimal("0.2")

    asyncio.run(play())

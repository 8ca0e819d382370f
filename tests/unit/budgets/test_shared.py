"""A budget that several runs spend at the same time: together they stay within it, as one run does."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.budgets import reservations
from embedctl.budgets.shared import SharedBudget
from embedctl.errors import BudgetReached
from embedctl.ledger.budgets import Budget, BudgetStatus, PeriodCost
from embedctl.ledger.periods import Range
from embedctl.storage import locks
from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire
from tests.unit.budgets.test_reservations import OFFER, PRICE, configure, event, request, spent

AMOUNT = Decimal("0.0000120")
BUDGET = f'[workspaces.acme]\nbudget = {{ period = "month", amount = "{AMOUNT}", action = "block" }}\n'
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "3", "-w", "acme")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    configure(found, BUDGET)
    return found


def fill(world: World, runs: int, texts: int) -> None:
    """An input for each run, with texts of its own."""
    for number in range(runs):
        world.tables([sentence(number * texts + i) for i in range(texts)], files=2, name=f"in{number}")


@pytest.mark.parametrize("runs", [2, 5])
def test_runs_at_the_same_time(world: World, runs: int) -> None:
    """Runs that begin together with a budget for less than their work stop before it is passed, and use most of it."""
    fill(world, runs, texts=200)
    world.wire.plan(latency_s=0.03)
    children = [world.start("batch", "run", f"in{n}", "-o", f"out{n}", *OPENAI) for n in range(runs)]
    codes = [child.wait().code for child in children]

    assert set(codes) == {4}
    assert AMOUNT * Decimal("0.8") < spent(world.wire) <= AMOUNT


def test_a_killed_run_is_counted_once(world: World) -> None:
    """What a killed run spent is counted while it is listed, and when its journal has come into the ledger."""
    fill(world, 3, texts=200)
    world.wire.plan(hold_after=6)
    child = world.start("batch", "run", "in0", "-o", "out0", "--concurrency", "2", *OPENAI)
    while not world.wire.held():
        time.sleep(0.02)
    child.kill()
    child.wait()
    world.wire.plan()
    before = spent(world.wire)
    ended = [world.run("batch", "run", f"in{n}", "-o", f"out{n}", *OPENAI) for n in (1, 2)]

    assert [one.code for one in ended] == [4, 4]
    assert before < AMOUNT / 2
    assert AMOUNT * Decimal("0.7") < spent(world.wire) <= AMOUNT
    ledger = world.ledger()
    assert (ledger["confirmed"] + ledger["unknown"]) * PRICE / 1_000_000 <= AMOUNT


def test_a_search_spends_too(world: World) -> None:
    """A search while a run goes on is paid from the same budget."""
    fill(world, 2, texts=200)
    world.wire.plan(latency_s=0.03)
    assert world.run("batch", "run", "in0/000.parquet", "-o", "small", *OPENAI).code == 0
    child = world.start("batch", "run", "in1", "-o", "out1", *OPENAI)
    codes = {world.run("vectors", "search", "small", "red sea", "-w", "acme").code for _ in range(12)}

    assert child.wait().code == 4
    assert codes <= {0, 4}
    assert spent(world.wire) <= AMOUNT


def standing(amount: Decimal, cost: Decimal) -> BudgetStatus:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    known = PeriodCost(within=Range(since=now, until=now), cost=cost, at_risk=Decimal(0), unpriced_calls=0)
    return BudgetStatus(budget=Budget(workspace="default", amount=amount), spent=known)


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(1, 12), st.sampled_from(["yes", "no", "unknown", "die"]), st.integers(0, 5)
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.decimals("0", "0.00001", places=8), st.booleans())
def test_no_order_of_events_passes_the_budget(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, str, int]], limit: Decimal, lost: bool
) -> None:
    """However four runs begin, overlap, end and die, what was or may have been billed stays within the budget."""
    folder = tmp_path_factory.mktemp("shared")
    path = folder / "usage.duckdb.budgets"
    tills: dict[int, reservations.Reservations] = {}
    held: dict[int, locks.Lock] = {}
    names: dict[int, str] = {}
    purses: dict[int, SharedBudget] = {}
    flying: list[tuple[int, object, int]] = []
    unbooked: dict[str, Decimal] = {}

    def settled(state: Path) -> bool:
        return not locks.is_held(state / "lock")

    def standings(without: Collection[str]) -> list[BudgetStatus]:
        """What the ledger says: all that was spent by runs that are not left out."""
        return [standing(limit, sum((v for k, v in unbooked.items() if k not in without), Decimal(0)))]

    def begin(number: int) -> None:
        run_id = os.urandom(8).hex()
        state = folder / run_id
        state.mkdir()
        held[number] = locks.hold(state / "lock")
        purse = SharedBudget(path, run_id, state)
        purse.join(["default"], settled, standings)
        allowance = reservations.SpendLimit("b", limit, workspace_id="default", period="month")
        tills[number], purses[number] = (
            reservations.Reservations(lambda endpoint: PRICE, [allowance], purse=purse),
            purse,
        )
        names[number] = run_id

    for number, count, billable, which in steps:
        if number not in tills:
            begin(number)
        if billable == "die":  # what it had in flight may have been billed: the ledger says so from now on
            mine = [one for one in flying if one[0] == number]
            flying = [one for one in flying if one[0] != number]
            gone = sum((tokens * PRICE / 1_000_000 for _, _, tokens in mine), Decimal(0))
            unbooked[names[number]] = unbooked.get(names[number], Decimal(0)) + gone
            tills.pop(number).close()
            held.pop(number).release()
            if lost and path.exists() and not tills:
                path.write_bytes(b'{"bas')
            continue
        with suppress(BudgetReached):
            texts = [sentence(n) for n in range(count)]
            one = tills[number]._reserve(OFFER, request(texts), *tills[number]._concerned(OFFER, request(texts)))
            flying += [(number, one, 4 * count)] if one is not None else []  # None: it waits for what is in flight
        if flying and which < 4:
            owner, reservation, tokens = flying.pop(which % len(flying))
            asyncio.run(tills[owner].settle(reservation, event(billable, tokens)))
            cost = Decimal(0) if billable == "no" else tokens * PRICE / 1_000_000
            unbooked[names[owner]] = unbooked.get(names[owner], Decimal(0)) + cost

        in_all = sum(unbooked.values(), Decimal(0))
        assert in_all + sum(tokens * PRICE / 1_000_000 for _, _, tokens in flying) <= limit
        with purses[number].open() as sums:
            assert sums.spent("default", "month") <= in_all  # nothing is counted twice
    for till in tills.values():
        till.close()
    for lock in held.values():
        lock.release()


def test_nobody_comes_between(tmp_path: Path) -> None:
    """What is looked at and what is taken is one step: of four that take at once, each cent goes to one."""
    limit, each = Decimal(300), Decimal(1)

    def taken(number: int) -> int:
        purse, count = SharedBudget(tmp_path / "budgets", str(number), tmp_path), 0
        try:
            while True:
                with purse.open() as sums:
                    if sums.spent("acme", "month") + each > limit:
                        return count
                    purse.add("acme", spent=each)
                count += 1
        finally:
            purse.close()

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(taken, range(4)))

    assert sum(counts) == limit
    assert json.loads((tmp_path / "budgets").read_text())["shares"].keys() == {"0", "1", "2", "3"}

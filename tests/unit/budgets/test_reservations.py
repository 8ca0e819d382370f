"""What a run may spend: --max-cost and budgets hold, however many requests are in flight."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl import settings as user_settings
from embedctl.budgets import reservations
from embedctl.errors import BudgetReached
from embedctl.records import Request, UsageEvent, utc_now, uuid7
from embedctl.routing import chain
from embedctl.routing.endpoint import Endpoint
from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(60)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5")
PRICE = Decimal("0.02")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.tables(TEXTS, files=4)
    return found


def spent(wire: Wire) -> Decimal:
    return wire.billed() * PRICE / 1_000_000


def configure(world: World, text: str) -> None:
    world.home.mkdir(exist_ok=True)
    (world.home / "config.toml").write_text(text)


def test_max_cost(world: World) -> None:
    """The run stops before --max-cost is passed, with 16 requests in flight; more money, and it goes on."""
    world.wire.plan(latency_s=0.05)
    limit = Decimal("0.0000030")
    ended = world.run("batch", "run", "in", "-o", "out", "--max-cost", limit, "--json", *OPENAI)

    assert ended.code == 4, ended.err
    assert limit / 2 < spent(world.wire) <= limit
    assert ended.receipt["resume"] is not None
    assert "--max-cost" in ended.err
    assert world.run("batch", "run", "in", "-o", "out", "--max-cost", "1", *OPENAI).code == 0
    assert world.wire.billed() == 4 * len(TEXTS)
    world.check_rows("out", TEXTS, dimensions=8)


def test_lost_answers_count(world: World) -> None:
    """What may have been billed counts as spent: lost answers do not let a run pass its limit."""
    world.wire.plan(faults={"reset_after": 0.3}, seed=3, latency_s=0.02)
    limit = Decimal("0.0000040")
    world.run("batch", "run", "in", "-o", "out", "--max-cost", limit, "--retries", "20", *OPENAI)

    assert spent(world.wire) <= limit


def test_unpriced(world: World) -> None:
    """--max-cost with a model that has no price is a mistake, unless it is allowed."""
    mine = ("-m", "openai:my-own-model", "--batch-size", "5")
    refused = world.run("batch", "run", "in", "-o", "out", "--max-cost", "1", *mine)
    allowed = world.run("batch", "run", "in", "-o", "out", "--max-cost", "1", "--allow-unpriced", "--json", *mine)

    assert (refused.code, world.wire.truth()[:0]) == (2, [])
    assert "has no price" in refused.err
    assert allowed.code == 0, allowed.err
    assert (allowed.receipt["cost"], allowed.receipt["cost_is_lower_bound"]) == (None, True)


def test_budget_blocks(world: World) -> None:
    """A workspace's budget counts what earlier runs spent, warns at 80 %, and stops a run that would pass it."""
    configure(world, '[workspaces.acme]\nbudget = { period = "month", amount = "0.0000060", action = "block" }\n')
    world.tables(TEXTS[:25], files=1, name="some")
    first = world.run("batch", "run", "some", "-o", "one", "-w", "acme", *OPENAI)
    second = world.run("batch", "run", "in", "-o", "two", "-w", "acme", "--json", *OPENAI)
    third = world.run("batch", "run", "in", "-o", "three", "-w", "acme", *OPENAI)
    other = world.run("batch", "run", "some", "-o", "four", "-w", "zeta", *OPENAI)

    assert (first.code, second.code, other.code) == (0, 4, 0), (first.err, second.err)
    assert "nearly used up" in second.err
    assert "budget of workspace acme" in second.err
    assert third.code == 4
    events = spent(world.wire) - Decimal(100) * PRICE / 1_000_000  # without zeta's
    assert events <= Decimal("0.0000060")
    assert world.run("batch", "run", "some", "-o", "one", "-w", "acme", *OPENAI).code == 0  # nothing to pay for


def test_budget_only_warns(world: World) -> None:
    """A budget that only warns stops nothing."""
    configure(world, '[workspaces.acme]\nbudget = { period = "day", amount = "0.0000001", action = "warn" }\n')
    assert world.run("batch", "run", "in", "-o", "one", "-w", "acme", *OPENAI).code == 0
    ended = world.run("batch", "run", "in/000.parquet", "-o", "two", "-w", "acme", *OPENAI)

    assert ended.code == 0
    assert "the day's budget of workspace acme is used up" in ended.err


def test_free_models_need_no_budget(world: World) -> None:
    """The bundled model runs although the budget is used up."""
    configure(world, '[workspaces.acme]\nbudget = { amount = "0", action = "block" }\n')

    assert world.run("batch", "run", "in/000.parquet", "-o", "out", "-w", "acme").code == 0


def endpoint() -> Endpoint:
    environment = {"EMBEDCTL_HOME": "/nowhere", "OPENAI_API_KEY": "sk-test", "HOME": "/nowhere"}
    found = user_settings.load(flags={"model": f"openai:{MODEL}"}, environment=environment, folder=Path("/"))
    return chain.chain(found).first


OFFER = endpoint()


def request(texts: list[str]) -> Request:
    size = sum(len(text.encode()) for text in texts)
    return Request(operation_id="o", texts=texts, hashes=b"0" * 16 * len(texts), content_bytes=size)


def event(billable: str, tokens: int) -> UsageEvent:
    return UsageEvent(
        event_id=uuid7(),
        workspace_id="default",
        operation_id="o",
        provider="openai",
        model=MODEL,
        occurred_at=utc_now(),
        status="ok",
        billable=billable,  # type: ignore[arg-type]
        tokens_total=tokens if billable == "yes" else 0,
        tokens_estimated=tokens,
        usage_mode="auto",
        usage_source="native",
    )


STEPS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from(["yes", "no", "unknown"]), st.integers(0, 5)), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.decimals("0", "0.00001", places=8))
def test_no_order_of_events_passes_the_limit(steps: list[tuple[int, str, int]], limit: Decimal) -> None:
    """However requests overlap and end, what was or may have been billed stays within the allowance."""
    allowance = reservations.SpendLimit("--max-cost", limit)
    till = reservations.Reservations(lambda endpoint: PRICE, [allowance])
    flying: list[tuple[object, int]] = []
    billed = Decimal(0)
    for count, billable, which in steps:
        texts = [sentence(number) for number in range(count)]
        with suppress(BudgetReached):
            one = till._reserve(OFFER, request(texts), *till._concerned(OFFER, request(texts)))
            flying += [(one, 4 * count)] if one is not None else []  # None: it waits for what is in flight
        if flying and which < 4:
            reservation, tokens = flying.pop(which % len(flying))
            asyncio.run(till.settle(reservation, event(billable, tokens)))
            billed += 0 if billable == "no" else tokens * PRICE / 1_000_000

        assert billed + sum(tokens * PRICE / 1_000_000 for _, tokens in flying) <= limit
    for reservation, tokens in flying:
        asyncio.run(till.settle(reservation, event("yes", tokens)))
    assert allowance.reserved == 0
    assert allowance.spent <= limit


HOURLY = '[providers.gpu]\nprotocol = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nper_hour = 36\ntimeout_s = 10\n'


def test_a_machines_idle_time_counts_before_it_is_a_line(tmp_path: Path) -> None:
    """At 0.01 USD a second: 10 s are set aside for an attempt, and the time since the first one counts as spent."""
    config = tmp_path / "config.toml"
    config.write_text(HOURLY)
    place = chain.endpoint(user_settings.load(config=config), "gpu", "any")
    now = [0.0]
    limit = reservations.SpendLimit("--max-cost", Decimal("0.30"))
    money = reservations.Reservations(lambda _: None, [limit], clock=lambda: now[0])
    request = Request(operation_id="o", texts=["a"], hashes=b"\0" * 16, content_bytes=1)

    async def attempt(start: float, charged: str) -> Decimal:
        now[0] = start
        held = await money.reserve(place, request)
        aside = limit.reserved
        await money.settle(held, replace(event("yes", 0), cost_provider=Decimal(charged)))
        return aside

    async def run() -> None:
        assert await attempt(0, "0.02") == Decimal("0.10")
        assert await attempt(15, "0.02") == Decimal("0.10")  # 0.02 charged, 0.13 idle by now
        with pytest.raises(BudgetReached):
            await attempt(21, "0.02")  # 0.21 by now, and 0.10 more would pass it
        assert limit.spent == Decimal("0.04")
        await money.charge(replace(event("yes", 0), cost_provider=Decimal("0.13")))
        assert (limit.spent, limit.reserved) == (Decimal("0.17"), 0)

    asyncio.run(run())

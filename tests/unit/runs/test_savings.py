"""What is known of vectors without a question: `cost_saved`, what they would have cost, and `embedding_tokens`."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

LONG = [" ".join([sentence(number)] * 40) for number in range(30)]
RUN = ("batch", "run", "in.parquet", "-o", "out", "-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "8")
PRICE = Decimal("0.02")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.table(LONG)
    return found


def saved(world: World, *flags: str) -> Decimal | None:
    told = world.run(*RUN, "--json", *flags)
    assert told.code == 0, told.err
    amount = told.receipt["cost_saved"]
    return None if amount is None else Decimal(amount)


def test_what_was_bought_before_is_saved_now(world: World) -> None:
    """One short text is new: what the long ones cost is saved, and nothing of it follows from the short one."""
    assert saved(world) == 0
    cost = world.wire.billed() * PRICE / 1_000_000
    world.table([*LONG, "hi"])

    assert saved(world) == cost


def test_paid_rows_say_their_tokens(world: World) -> None:
    """Where a text is alone in its request its row has its tokens: in all, what was billed."""
    saved(world, "--batch-size", "1")
    tokens = [row["embedding_tokens"] for row in world.rows("out")]

    assert None not in tokens
    assert sum(tokens) == world.wire.billed()


def test_tokens_that_nobody_told_are_unknown(world: World) -> None:
    """A provider counts whole requests: of several texts in one, nobody knows the tokens of each; null, not 0."""
    saved(world)

    assert {row["embedding_tokens"] for row in world.rows("out")} == {None}


def test_nothing_to_do_saves_everything(world: World) -> None:
    """A run that has nothing to do says what it would have cost."""
    saved(world)
    cost = world.wire.billed() * PRICE / 1_000_000

    assert saved(world) == cost


def test_without_its_events_such_texts_say_it(world: World) -> None:
    """With another ledger, this run's own texts say what one costs; when there are none, nobody knows."""
    saved(world)
    world.table([*LONG, " ".join([sentence(0)] * 80)])
    first = saved(world, "--ledger", "other.duckdb")
    again = saved(world, "--ledger", "third.duckdb")

    assert first == 30 * (world.wire.truth()[-1]["tokens_billed"]) * PRICE / 1_000_000
    assert again is None


def test_duplicates_are_saved(world: World) -> None:
    """An equal text in the same run saves what the first of them cost."""
    world.table([LONG[0]] * 5)
    amount = saved(world)

    assert amount == 4 * world.wire.billed() * PRICE / 1_000_000

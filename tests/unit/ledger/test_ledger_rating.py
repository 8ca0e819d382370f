"""What each kind of event costs (the scenario table of the accounting design)."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.ledger import prices, rating
from embedctl.ledger.prices.price import cost, most_believed
from tests.support.ledger_events import NOON, PRICES, event, one, place, rows, take

MONEY = "cost, cost_list, cost_at_risk, cost_status, unit_price"


def rated(tmp_path: Path, **changes: object) -> tuple[object, ...]:
    """(cost, cost_list, cost_at_risk, cost_status, unit_price) of one event."""
    paths = place(tmp_path)
    take(paths, event(**changes))
    (row,) = rows(paths, f"SELECT {MONEY} FROM usage_event")
    return row


def test_a_priced_call_costs_tokens_times_price_exactly(tmp_path: Path) -> None:
    """A confirmed call costs its tokens times the price, to the last digit."""
    row = rated(tmp_path, tokens_total=7, tokens_native=7)

    assert row == (Decimal("0.00000014"), Decimal("0.00000014"), None, "priced", Decimal("0.02"))


def test_a_retried_call_is_three_rows(tmp_path: Path) -> None:
    """A 429, a timeout and an answer are three rows of one operation: free, at risk, priced."""
    paths = place(tmp_path)
    same = {"operation_id": "op"}
    take(
        paths,
        event(**same, attempt=1, status="error", billable="no", tokens_total=0, tokens_native=None),
        event(
            **same,
            attempt=2,
            status="timeout",
            billable="unknown",
            tokens_total=0,
            tokens_native=None,
            tokens_estimated=500,
            usage_source="fallback",
        ),
        event(**same, attempt=3),
    )

    assert rows(paths, f"SELECT operation_id, attempt, {MONEY} FROM usage_event ORDER BY attempt") == [
        ("op", 1, Decimal(0), Decimal(0), None, "not_billable", None),
        ("op", 2, None, None, Decimal("0.00001"), "at_risk", Decimal("0.02")),
        ("op", 3, Decimal("0.00002"), Decimal("0.00002"), None, "priced", Decimal("0.02")),
    ]


def test_a_fallback_is_billed_by_who_answered(tmp_path: Path) -> None:
    """A fallback's row names the provider that answered and the one first asked for, and has the former's price."""
    paths = place(tmp_path)
    take(paths, event(model="agreed", fallback_from="openai:text-embedding-3-small", operation_id="op"))

    assert rows(paths, "SELECT provider, fallback_from, operation_id, cost FROM usage_event") == [
        ("pay", "openai:text-embedding-3-small", "op", Decimal("0.0001"))
    ]


def test_a_cache_hit_costs_nothing(tmp_path: Path) -> None:
    """A hit in the local vector cache is a row of its kind, with cost 0."""
    row = rated(
        tmp_path, entry_kind="cache_hit", billable="no", tokens_total=0, tokens_native=None, tags={"avoided": "900"}
    )

    assert row == (Decimal(0), Decimal(0), None, "not_billable", None)


def test_cached_tokens_cost_less_only_where_a_price_says_so(tmp_path: Path) -> None:
    """The provider-side cached part of a call has its own price where there is one, else the full one."""
    paths = place(tmp_path)
    take(paths, event(model="cached", tokens_cached=400), event(model="m", tokens_cached=400))

    assert rows(paths, "SELECT model, cost FROM usage_event ORDER BY model") == [
        ("cached", Decimal("0.00007")),
        ("m", Decimal("0.00002")),
    ]


def test_the_batch_tier_has_its_own_price(tmp_path: Path) -> None:
    """A batch call is rated by the batch price."""
    assert rated(tmp_path, price_tier="batch")[0] == Decimal("0.00001")


def test_an_unknown_tier_has_no_price(tmp_path: Path) -> None:
    """A tier without a price is unpriced; the standard price is not borrowed."""
    assert rated(tmp_path, price_tier="flex")[:4] == (None, None, None, "unpriced")


def test_an_exact_region_is_stronger(tmp_path: Path) -> None:
    """A price of the event's own region wins over the one for any region; other regions get the latter."""
    paths = place(tmp_path)
    take(paths, event(region="eu"), event(region="us"))

    assert rows(paths, "SELECT region, unit_price FROM usage_event ORDER BY region") == [
        ("eu", Decimal("0.022")),
        ("us", Decimal("0.02")),
    ]


def test_an_estimate_is_priced_and_marked(tmp_path: Path) -> None:
    """Estimated tokens cost what native ones do, and say that they are estimated."""
    paths = place(tmp_path)
    take(paths, event(usage_source="fallback", tokens_native=None, tokenizer_id="bytes/4", tokens_estimated=1000))

    assert rows(paths, "SELECT cost, usage_source, tokenizer_id FROM usage_event") == [
        (Decimal("0.00002"), "fallback", "bytes/4")
    ]


@pytest.mark.parametrize("changes", [{"model": "nobody-knows"}, {"price_as": None}, {"price_as": "elsewhere"}])
def test_no_price_is_null(tmp_path: Path, changes: dict[str, object]) -> None:
    """An unknown model, or a place whose prices nobody told, costs NULL, never 0."""
    assert rated(tmp_path, **changes) == (None, None, None, "unpriced", None)


def test_a_free_place_costs_zero(tmp_path: Path) -> None:
    """A place that is free costs 0, which is not the same as unknown; so does a price of zero."""
    paths = place(tmp_path)
    take(paths, event(price_as="free", model="x"), event(model="gift"), event(price_as="free", billable="unknown"))

    assert rows(paths, "SELECT cost, cost_list, cost_status FROM usage_event") == [(Decimal(0), Decimal(0), "free")] * 3


def test_a_contract_is_stronger_than_the_list(tmp_path: Path) -> None:
    """With a contract price, cost follows it and cost_list keeps the list price."""
    assert rated(tmp_path, model="agreed")[:2] == (Decimal("0.0001"), Decimal("0.00013"))


def test_a_place_can_be_told_its_price(tmp_path: Path) -> None:
    """A contract price in the name of a place of one's own applies, though no catalog price does."""
    assert rated(tmp_path, provider="place", price_as=None, model="told")[:4] == (
        Decimal("0.0005"),
        None,
        None,
        "priced",
    )


def test_the_providers_own_amount_wins(tmp_path: Path) -> None:
    """An amount the provider returned is the cost; the list cost stands beside it."""
    paths = place(tmp_path)
    take(paths, event(cost_provider=Decimal("0.000123456789012")))

    assert rows(paths, "SELECT cost, cost_list, cost_provider, cost_status FROM usage_event") == [
        (Decimal("0.000123456789012"), Decimal("0.00002"), Decimal("0.000123456789012"), "provider_reported")
    ]


MILLION = {"tokens_total": 1_000_000, "tokens_native": 1_000_000}  # 0.02 USD: up to 1.20 is believed


@pytest.mark.parametrize("said", ["0", "0.02", "1.2", "1.199999999999999"])
def test_an_amount_within_bounds_is_believed(tmp_path: Path, said: str) -> None:
    """From 0 up to ten times the price of the tokens and 1 USD more, the provider's amount is the cost."""
    row = rated(tmp_path, **MILLION, cost_provider=Decimal(said))

    assert row[:4] == (Decimal(said), Decimal("0.02"), None, "provider_reported")


@pytest.mark.parametrize(
    "said", ["1.200000000000001", "-1", "1e12", "9999999999999", "1e13", "1e99999999", "1e-99999999", "NaN", "Infinity"]
)
def test_an_amount_beyond_its_bounds_replaces_nothing(tmp_path: Path, said: str) -> None:
    """An amount that cannot be is no cost: the tokens are priced, and what was said stands in the reason."""
    paths = place(tmp_path)
    take(paths, event(**MILLION, cost_provider=Decimal(said)), event())
    (row,) = rows(
        paths, "SELECT cost, cost_provider, cost_status, reason FROM usage_event WHERE tokens_total = 1000000"
    )

    assert row[:3] == (Decimal("0.02"), None, "priced")
    assert row[3].startswith("not believed: a cost of ")
    assert one(paths, "SELECT sum(cost) FROM usage_event") == Decimal("0.02002")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model": "x"}, (None, "unpriced", "not believed: a cost of 2.000000000000000")),
        ({"price_as": "free"}, (0, "free", "not believed: a cost of 2.000000000000000")),
        ({"billable": "no", "tokens_total": 0}, (0, "not_billable", None)),
        ({"reason": "why"}, (Decimal("0.00002"), "priced", "why; not believed: a cost of 2.000000000000000")),
        (
            {"usage_mode": "native", "tokens_native": None, "tokens_total": 0},
            (None, "unpriced", "native usage missing; not believed: a cost of 2.000000000000000"),
        ),
    ],
)
def test_what_an_amount_is_compared_with(
    tmp_path: Path, changes: dict[str, object], wanted: tuple[object, ...]
) -> None:
    """Without a price 1 USD is believed; a call that is not billable costs nothing whatever is said."""
    paths = place(tmp_path)
    take(paths, event(**changes, cost_provider=Decimal(2)))

    assert rows(paths, "SELECT cost, cost_status, reason FROM usage_event") == [wanted]


@pytest.mark.parametrize("kind", ["true_up", "refund", "correction"])
def test_amounts_that_people_enter_have_no_bounds_but_the_columns(tmp_path: Path, kind: str) -> None:
    """What is entered by hand or reconciled may be any amount, also a negative one."""
    row = rated(tmp_path, entry_kind=kind, cost_provider=Decimal("-123456.5"), tokens_total=0, tokens_native=None)

    assert (row[0], row[3]) == (Decimal("-123456.5"), "manual")


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.decimals(0, 1000, places=9)), min_size=30, max_size=30))
def test_both_say_the_same_of_an_amount(pairs: list[tuple[int, Decimal]]) -> None:
    """SQL believes exactly what `most_believed` says, to the last digit."""
    rows_of_b = ", ".join(
        f"({tokens}::BIGINT, {price:f}::DECIMAL(18,9), NULL::DECIMAL(18,9))" for tokens, price in pairs
    )
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT {rating._MOST_BELIEVED} FROM (VALUES {rows_of_b}) v(quantity, list_price, unit_price), "
            "LATERAL (SELECT v.quantity AS quantity) b, "
            "LATERAL (SELECT v.list_price AS list_price, v.unit_price AS unit_price) r"
        ).fetchall()

    assert sorted(row[0] for row in found) == sorted(most_believed(cost(tokens, price)) for tokens, price in pairs)


def test_two_meters_are_two_rows(tmp_path: Path) -> None:
    """A call metered twice is two rows with one request id; a meter without a price is unpriced on its own."""
    paths = place(tmp_path)
    same = {"provider_request_id": "r", "operation_id": "op"}
    take(paths, event(**same), event(**same, meter="pixel", quantity=90_000, tokens_total=0, tokens_native=None))

    assert rows(paths, "SELECT meter, quantity, cost FROM usage_event ORDER BY meter") == [
        ("input_token", 1000, Decimal("0.00002")),
        ("pixel", 90_000, None),
    ]


def test_missing_native_usage_is_unknown(tmp_path: Path) -> None:
    """In native mode an answer without usage costs NULL, and the row says why."""
    paths = place(tmp_path)
    take(paths, event(usage_mode="native", tokens_total=0, tokens_native=None))

    assert rows(paths, "SELECT cost, cost_status, reason FROM usage_event") == [
        (None, "unpriced", "native usage missing")
    ]


def test_an_interrupted_attempt_is_at_risk(tmp_path: Path) -> None:
    """An attempt whose process died is at risk by its estimated tokens; without a price, by an unknown amount."""
    paths = place(tmp_path)
    died = {"status": "interrupted", "billable": "unknown", "tokens_total": 0, "tokens_native": None}
    take(paths, event(**died, tokens_estimated=1000), event(**died, tokens_estimated=1000, model="x"))

    assert rows(paths, "SELECT cost, cost_at_risk, cost_status FROM usage_event ORDER BY cost_at_risk NULLS LAST") == [
        (None, Decimal("0.00002"), "at_risk"),
        (None, None, "at_risk"),
    ]


def test_the_price_of_the_moment_counts(tmp_path: Path) -> None:
    """Over a price change each event has the price of its own moment; before the first price there is none."""
    paths = place(tmp_path)
    days = ("2024-06-01T00:00:00", "2026-11-09T23:59:59.999999", "2026-11-10T00:00:00")
    take(paths, *(event(model="moving", occurred_at=NOON.fromisoformat(f"{day}+00:00")) for day in days))

    assert rows(paths, "SELECT unit_price FROM usage_event ORDER BY occurred_at") == [
        (None,),
        (Decimal("0.10"),),
        (Decimal("0.05"),),
    ]


def test_large_amounts_lose_no_digit(tmp_path: Path) -> None:
    """A price of nine decimals times a billion of tokens is exact: no binary float on the way."""
    paths = place(tmp_path, PRICES.replace('"0.02"', '"0.123456789"'))
    take(paths, event(tokens_total=9_007_199_254_740_993))
    exact = cost(9_007_199_254_740_993, Decimal("0.123456789"))

    assert one(paths, "SELECT cost FROM usage_event") == exact == Decimal("1111999897.873516022451477")


def test_a_thousand_small_calls_sum_exactly(tmp_path: Path) -> None:
    """Cents are not rounded away and nothing is a binary float: 1,000 calls of 7 tokens are 0.00014 USD."""
    paths = place(tmp_path)
    take(paths, *(event(tokens_total=7, tokens_native=7) for _ in range(1000)))

    assert one(paths, "SELECT sum(cost) FROM usage_event") == Decimal("0.00014")


@given(
    tokens=st.integers(0, 10**12),
    price=st.decimals("0.0001", "999.999999999", places=9),
)
def test_cost_is_exact(tokens: int, price: Decimal) -> None:
    """The receipt's arithmetic is integer arithmetic in femto-USD."""
    assert cost(tokens, price) * 10**15 == tokens * int(price * 10**9)


def test_receipt_and_ledger_agree(tmp_path: Path) -> None:
    """What a receipt says with the price book is what the ledger says, for every price there is."""
    paths = place(tmp_path)
    book = prices.load(prices.price_texts(paths.price_file))
    events = [
        event(model=p.model, provider=p.provider, price_as=p.provider, region=p.region, price_tier=p.tier)
        for p in book.prices
        if p.meter == "input_token"
    ]
    take(paths, *events)
    found = rows(paths, "SELECT event_id, cost FROM usage_event")

    by_id = dict(found)
    for each in events:
        price = book.price_at(each.price_as, each.model, at=each.occurred_at, region=each.region, tier=each.price_tier)
        expected = None if price is None else cost(1000, price.usd_per_million)
        assert by_id[each.event_id] == expected, each.model

"""`usage export --format focus` against the rules of the FinOps Open Cost and Usage Specification, 1.4.

Source: FOCUS_Spec, specification/datasets/cost_and_usage/columns (requirements), read 2026-11-21.
"""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import pytest
from ledger_events import NOON, event, place, take
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.ledger import exports
from embedctl.ledger.entries import entry

OCTOBER = NOON.replace(month=10)
MANDATORY = {
    "BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory",
    "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "HostProviderName",
    "InvoiceIssuerName", "ListCost", "ServiceCategory", "ServiceName", "ServiceProviderName",
}  # fmt: skip
NULLABLE = {
    "BillingAccountName", "ChargeClass", "ChargeDescription", "InvoiceDetailId", "PricingQuantity", "PricingUnit",
}  # fmt: skip
VALUES = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "BillingCurrency": {"USD"},
}


@pytest.fixture
def rows(clean_environment: Path, tmp_path: Path) -> list[dict[str, str]]:
    """An export with every kind of row."""
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    paths = place(clean_environment)
    about = {"workspace": "acme", "reason": "why", "at": NOON, "provider": "pay"}
    take(
        paths,
        event(tokens_total=1_500_000),
        event(price_tier="batch", tags={"team": "search"}),
        event(model="cached", tokens_total=2_000_000, tokens_cached=1_000_000),
        event(model="x"),
        event(model="gift"),
        event(model="agreed", tokens_total=3_000_000),
        event(region="eu"),
        event(tokens_estimated=500, **lost),
        event(status="error", billable="no", tokens_total=0, tokens_native=None),
        event(entry_kind="cache_hit", tokens_total=0, tokens_native=None, billable="no"),
        *(entry(kind, Decimal("-0.5"), **about) for kind in ("credit", "refund", "correction")),
        entry("true_up", Decimal("0.25"), **about),
        event(occurred_at=OCTOBER),
        *(entry(kind, Decimal("-0.5"), **about | {"at": OCTOBER}) for kind in ("refund", "correction")),
    )
    out = tmp_path / "focus.csv"
    told = CliRunner().invoke(app, ["usage", "export", "--format", "focus", "-o", str(out)])
    assert told.exit_code == 0, told.output
    return list(csv.DictReader(out.read_text().splitlines()))


def test_required_columns(rows: list[dict[str, str]]) -> None:
    """Every mandatory column is there, filled unless the specification allows null; our own start with x_."""
    columns = rows[0].keys()

    assert columns >= MANDATORY | NULLABLE
    assert [(name, row["SkuId"]) for row in rows for name in MANDATORY if row[name] == ""] == []
    assert {name for name in columns if not name.startswith("x_")} == set(exports.FOCUS_COLUMNS)
    assert {(row["x_FocusVersion"], row["x_MappingVersion"]) for row in rows} == {("1.4", exports.MAPPING_VERSION)}


def test_values_are_the_specifications(rows: list[dict[str, str]]) -> None:
    """Closed lists hold only their own values, and all categories that we have are told apart."""
    for name, allowed in VALUES.items():
        assert {row[name] for row in rows} <= allowed, name
    assert {row["ChargeCategory"] for row in rows} == {"Usage", "Credit", "Adjustment"}


def test_corrections_are_of_closed_months_only(rows: list[dict[str, str]]) -> None:
    """ChargeClass is set where a month that has ended is corrected; in a month that goes on it is an adjustment."""
    found = {
        (row["ChargePeriodStart"][:7], row["ChargeDescription"].split()[-1], row["ChargeCategory"], row["ChargeClass"])
        for row in rows
        if row["ChargeFrequency"] == "One-Time"
    }

    assert found == {
        ("2026-10", "refund", "Usage", "Correction"),
        ("2026-10", "correction", "Usage", "Correction"),
        ("2026-11", "refund", "Adjustment", ""),
        ("2026-11", "correction", "Adjustment", ""),
        ("2026-11", "credit", "Credit", ""),
        ("2026-11", "true_up", "Adjustment", ""),
    }


def test_periods_are_half_open_days_within_their_month(rows: list[dict[str, str]]) -> None:
    """A charge period is a UTC day in its billing period, in the specification's format."""
    months = {"2026-10-01T00:00:00Z": "2026-11-01T00:00:00Z", "2026-11-01T00:00:00Z": "2026-12-01T00:00:00Z"}
    for row in rows:
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        assert months[row["BillingPeriodStart"]] == row["BillingPeriodEnd"]


USAGE_HAS = ("SkuPriceId", "PricingQuantity", "PricingUnit", "PricingCategory", "ConsumedQuantity", "ConsumedUnit")
WITHOUT_SKU_PRICE = (*USAGE_HAS, "SkuPriceDetails", "ListUnitPrice", "ContractedUnitPrice")


def test_usage_has_a_quantity_and_a_sku(rows: list[dict[str, str]]) -> None:
    """Usage names its SKU price, quantity and category, priced or not; what is no usage has none of them."""
    for row in rows:
        if row["ChargeCategory"] == "Usage" and row["ChargeClass"] != "Correction":
            assert [name for name in USAGE_HAS if row[name] == ""] == [], row
        if row["SkuPriceId"] == "":
            assert [name for name in WITHOUT_SKU_PRICE if row[name] != ""] == [], row
        if row["ChargeCategory"] != "Usage":
            assert row["ConsumedQuantity"] == ""
    assert {row["SkuPriceId"] for row in rows} - {""} == {row["SkuId"] for row in rows if row["SkuPriceId"]}


def test_a_sku_price_stays_when_its_price_changes(rows: list[dict[str, str]]) -> None:
    """A SKU price is not the price: neither day, nor amount, nor contract are in its id; x_PriceId has ours."""
    names = {row["SkuPriceId"] for row in rows if "/m/standard" in row["SkuId"] and row["SkuPriceId"]}

    assert names == {"pay/m/standard/input_token"}
    assert len({row["x_PriceId"] for row in rows if row["SkuPriceId"] == "pay/m/standard/input_token"}) >= 2


def test_costs_are_price_times_quantity(rows: list[dict[str, str]]) -> None:
    """Where a unit price stands, its product with the quantity is the cost, to the last digit.

    It stands for all usage but that with two prices in one row: full and cached tokens.
    """
    checked = 0
    for row in rows:
        assert (row["PricingUnit"] == "") == (row["PricingQuantity"] == "")
        for cost, price in (("ContractedCost", "ContractedUnitPrice"), ("ListCost", "ListUnitPrice")):
            if row["PricingQuantity"] and row[price]:
                checked += 1
                assert Decimal(row[price]) * Decimal(row["PricingQuantity"]) == Decimal(row[cost]), row
            elif row["PricingQuantity"]:
                assert "cached" in row["SkuId"]

    assert checked >= 16

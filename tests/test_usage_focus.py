"""`usage export --format focus` against the rules of the FinOps Open Cost and Usage Specification, 1.4.

Source: FOCUS_Spec, specification/datasets/cost_and_usage/columns (content constraints), read 2026-11-21.
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
    assert {row["ChargeClass"] for row in rows} == {"", "Correction"}


def test_periods_are_half_open_days_within_their_month(rows: list[dict[str, str]]) -> None:
    """A charge period is a UTC day in its billing period, in the specification's format."""
    for row in rows:
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")


def test_costs_are_price_times_quantity(rows: list[dict[str, str]]) -> None:
    """Where a unit price and a quantity stand, their product is the cost; without a price there is no quantity."""
    checked = 0
    for row in rows:
        assert (row["PricingQuantity"] == "") >= (row["SkuPriceId"] == "")
        assert (row["PricingUnit"] == "") == (row["PricingQuantity"] == "")
        for cost, price in (("ContractedCost", "ContractedUnitPrice"), ("ListCost", "ListUnitPrice")):
            if row["PricingQuantity"] and row[price] and row["x_CostStatus"] == "priced":
                checked += 1
                assert Decimal(row[price]) * Decimal(row["PricingQuantity"]) == Decimal(row[cost]), row

    assert checked >= 7

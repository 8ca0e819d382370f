"""`usage export --format focus` against the rules of the FinOps Open Cost and Usage Specification, 1.4.

Source: FOCUS_Spec, specification/datasets/cost_and_usage/columns (requirements), read 2026-11-21.
"""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.ledger.adjustments import entry
from embedctl.reports import focus
from embedctl.terminal import FORMULA_STARTS
from tests.support.ledger_events import NOON, event, one, place, take

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


EVENTS = 24


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
        event(model="cached", tokens_total=2_000_000, tokens_cached=700_001),
        event(model="cached", tokens_total=1000, tokens_cached=1000),
        event(model="cached", tokens_total=3000, tokens_cached=0),
        *(event(model=model, cost_provider=Decimal("0.0123"), tokens_cached=300) for model in ("m", "cached", "x")),
        event(model="x", cost_provider=Decimal("0.5"), tokens_total=0, quantity=0),
        event(model="agreed", cost_provider=Decimal("0.7")),
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
    assert {name for name in columns if not name.startswith("x_")} == set(focus.FOCUS_COLUMNS)
    assert {(row["x_FocusVersion"], row["x_MappingVersion"]) for row in rows} == {("1.4", focus.MAPPING_VERSION)}


MANDATORY_IN_1_2 = {
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
    "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity",
    "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
}  # fmt: skip
"""FOCUS_Spec v1.2, specification/columns/*.md, feature level "Mandatory" (2026-11-25)."""

SINCE_1_3 = {"ServiceProviderName", "HostProviderName", "InvoiceDetailId"}


@pytest.mark.parametrize("version", focus.VERSIONS)
def test_versions(rows: list[dict[str, str]], tmp_path: Path, version: str) -> None:
    """Each version has its own column names and the same charges; models are named in SkuPriceDetails of all."""
    out = tmp_path / f"{version}.csv"
    told = CliRunner().invoke(app, ["usage", "export", "--focus-version", version, "-o", str(out)])
    assert told.exit_code == 0, told.output
    found = list(csv.DictReader(out.read_text().splitlines()))

    columns = {name for name in found[0] if not name.startswith("x_")}
    assert columns == set(focus.columns(version))
    assert (columns >= MANDATORY_IN_1_2) == (version == "1.2")
    assert columns.isdisjoint(SINCE_1_3) == (version == "1.2")
    assert {row["x_FocusVersion"] for row in found} == {version}
    assert [row["BilledCost"] for row in found] == [row["BilledCost"] for row in rows]
    for row in found:
        details = json.loads(row["SkuPriceDetails"] or "{}")
        assert (details.get("ModelId") is not None) == bool(row["SkuPriceId"])
        assert ("TokenDirection" in details) == (version == "1.5" and bool(details))
        assert not (version == "1.5" and "x_ModelId" in details)


def test_a_known_model_is_described(clean_environment: Path, tmp_path: Path) -> None:
    """Of a model in the catalog its developer, family and version stand beside its id."""
    take(place(clean_environment), event(provider="openai", model="text-embedding-3-small"))
    out = tmp_path / "focus.csv"
    told = CliRunner().invoke(app, ["usage", "report", "--format", "focus", "--focus-version", "1.2", "-o", str(out)])
    assert told.exit_code == 0, told.output

    (row,) = csv.DictReader(out.read_text().splitlines())
    details = json.loads(row["SkuPriceDetails"])

    assert {name: value for name, value in details.items() if name.startswith("Model")} == {
        "ModelDeveloper": "openai",
        "ModelFamily": "text-embedding",
        "ModelId": "text-embedding-3-small",
        "ModelVersion": "3",
    }
    assert (row["ProviderName"], row["PublisherName"]) == ("openai", "openai")


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
    """All usage has both unit prices, whose product with the quantity is the cost, to the last digit."""
    used = [row for row in rows if row["SkuPriceId"]]
    for row in used:
        for cost, price in (("ContractedCost", "ContractedUnitPrice"), ("ListCost", "ListUnitPrice")):
            assert Decimal(row[price]) * Decimal(row["PricingQuantity"]) == Decimal(row[cost]), row

    assert len(used) >= 16


def test_cached_tokens_are_a_charge_of_their_own(rows: list[dict[str, str]]) -> None:
    """A call with full and cached tokens is two charges at two unit prices, but one request."""
    found = {
        row["SkuMeter"]: tuple(Decimal(row[name]) for name in ("ConsumedQuantity", "ListUnitPrice", "BilledCost"))
        for row in rows
        if row["SkuId"].startswith("pay/cached/") and row["x_CostStatus"] == "priced"
    }
    requests = [row["x_RequestCount"] for row in rows if row["SkuMeter"] == "input_token_cached"]

    assert found == {
        "input_token": (1_302_999, Decimal("0.1"), Decimal("0.1302999")),
        "input_token_cached": (701_001, Decimal("0.025"), Decimal("0.017525025")),
    }
    assert requests == ["1"]
    assert sum(int(row["x_RequestCount"]) for row in rows) == EVENTS


def test_a_reported_amount_is_billed_beside_the_list(rows: list[dict[str, str]]) -> None:
    """An amount that the provider reports is billed; list and contracted cost are the list's, where there is one."""
    found = {
        (row["SkuId"].split("/")[1], row["ConsumedQuantity"]): tuple(
            Decimal(row[name]) for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")
        )
        for row in rows
        if row["x_CostStatus"] == "provider_reported"
    }

    assert found == {
        ("m", "1000"): (Decimal("0.0123"), Decimal("0.0123"), Decimal("0.00002"), Decimal("0.00002")),
        ("cached", "1000"): (Decimal("0.0123"), Decimal("0.0123"), Decimal("0.0000775"), Decimal("0.0000775")),
        ("x", "1000"): (Decimal("0.5123"), Decimal("0.5123"), Decimal("0.5123"), Decimal("0.5123")),
        ("agreed", "1000"): (Decimal("0.7"), Decimal("0.7"), Decimal("0.00013"), Decimal("0.00013")),
    }


def test_what_is_billed_is_the_ledgers_cost(rows: list[dict[str, str]], clean_environment: Path) -> None:
    """However calls are split into charges, they sum to what the ledger says was paid."""
    billed = sum(Decimal(row["BilledCost"]) for row in rows)
    paths = place(clean_environment)

    assert billed == one(paths, "SELECT sum(cost) FROM usage_event")
    assert len(rows) > 10


def test_no_text_is_a_formula(clean_environment: Path, tmp_path: Path) -> None:
    """A text that a spreadsheet would run stands behind an apostrophe; a negative amount stays a number."""
    paths = place(clean_environment)
    names = [f"{start}1+1" for start in FORMULA_STARTS if start != "\0"]  # no text of the spool has a NUL
    about = {"workspace": "acme", "reason": "why", "at": NOON, "provider": "pay"}
    take(paths, *(event(region=name) for name in names), entry("credit", Decimal("-0.5"), **about))
    out = tmp_path / "focus.csv"
    assert CliRunner().invoke(app, ["usage", "export", "-o", str(out)]).exit_code == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert {row["RegionId"] for row in rows} - {""} == {f"'{name}" for name in names}
    assert min(Decimal(row["BilledCost"]) for row in rows) == Decimal("-0.5")

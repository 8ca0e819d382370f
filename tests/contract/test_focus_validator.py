"""The FOCUS export as the FinOps Foundation's validator reads it: in an environment of its own, named by a variable.

The newest on PyPI is 1.0.0, of 2023. It knows the names of a draft of 1.0 (Provider, InvoiceIssuer, ChargeType) and
columns that later versions made conditional; what it says of those is listed here, and anything else is a mistake.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from tests.support.ledger_events import event, place, take

OF_ITS_DRAFT = {
    *(f"{name}_Required" for name in ("Provider", "Publisher", "InvoiceIssuer", "ResourceID", "ResourceName")),
    "ResourceType_Required",
    *(f"CommitmentDiscount{name}_Required" for name in ("Category", "Id", "Name", "Status", "Type")),
    "SkuPriceId_Nullable",  # by its column ChargeType
    "ConsumedQuantity_IsDecimal",  # whole numbers are no decimals to it
    "BillingCurrency_IsCurrencyCode",  # its list of currencies is read wrongly by today's pandera
}


VALIDATOR = os.environ.get("FOCUS_VALIDATOR", "")


@pytest.mark.skipif(not VALIDATOR, reason="FOCUS_VALIDATOR names no focus-validator")
def test_what_the_foundations_validator_says(clean_environment: Path, tmp_path: Path) -> None:
    """Of all its rules only those fail that are of its draft's names."""
    take(place(clean_environment), event(tokens_total=1_500_000), event(model="x"), event(tags={"team": "search"}))
    out = tmp_path / "focus.csv"
    written = CliRunner().invoke(app, ["usage", "export", "--focus-version", "1.2", "-o", str(out)])
    assert written.exit_code == 0, written.output

    command = [VALIDATOR, "--data-file", str(out), "--validate-version", "1.0"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert "Validation failed!" in told.stdout, told.stderr
    failed = set(re.findall(r"^(\w+) failed:$", told.stdout, re.MULTILINE))
    assert failed - OF_ITS_DRAFT == set()
    assert failed

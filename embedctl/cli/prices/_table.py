"""The argument that names a price, and the table that shows prices."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _completion
from embedctl.ledger.prices import price_file
from embedctl.ledger.prices.price import Price

Name = Annotated[
    str, typer.Argument(metavar="PROVIDER:MODEL", help="Which model, where.", autocompletion=_completion.models)
]
_COLUMNS = {"provider": "Provider", "model": "Model", "tier": "Tier", "region": "Region", "kind": "Kind",
            "usd": "USD per million", "valid_from": "From", "valid_to": "To", "confidence": "Confidence",
            "source": "Source"}  # fmt: skip


def print_prices(chosen: Sequence[Price], form: terminal.Format) -> None:
    """Print prices as `list` and `show` do."""
    rows = [price_file.shown(price) for price in chosen]
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, name, "right" if key == "usd" else "left") for key, name in _COLUMNS.items()],
            rows=[row | {"usd": "free" if row["is_free"] else plain_usd(row["usd_per_million"])} for row in rows],
            envelope={"currency": "USD", "prices": rows},
        ),
        form,
    )


def plain_usd(value: Decimal) -> str:
    """An amount without an exponent and without zeros at its end."""
    return format(value.normalize(), "f")

"""`embedctl prices check`: prices that are worth a look."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli._prices import price_book
from embedctl.errors import RowsFailed
from embedctl.ledger.prices import price_file
from embedctl.ledger.prices.price import named

app = typer.Typer()


@app.command(epilog="Example: embedctl prices check")
def check(
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when there is anything to look at.")] = False,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Check all prices: overlaps, gaps, outliers, zeros that are not free. Exit 78 when one cannot be."""
    opened = _ledger.opened(None, config)
    book = price_book(opened.settings)
    remarks = list(price_file.remarks(book, now=opened.now))
    rows = [{"price": named(r.price), "kind": r.kind, "remark": r.sentence} for r in remarks]
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column("price", "Price"),
                terminal.Column("kind", "Kind"),
                terminal.Column("remark", "Remark"),
            ],
            rows=rows,
            envelope={"prices": len(book.prices), "remarks": rows},
            footer=[f"{len(book.prices)} prices, {len(rows)} to look at"],
        ),
        _ledger.chosen_format(form, as_json),
    )
    if rows and strict:
        _ledger.after_result(RowsFailed(f"{len(rows)} prices to look at (--strict)"))

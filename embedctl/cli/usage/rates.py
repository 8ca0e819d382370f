"""`embedctl usage rates`: exchange rates, for reports in other currencies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, LedgerFlag

app = typer.Typer()


@app.command(epilog="Example: embedctl usage rates eurofxref-hist.csv")
def rates(
    file: Annotated[Path, typer.Argument(help="The ECB's history, or a CSV of day, base, quote, rate.")],
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Take in daily exchange rates, for reports with --currency. Nothing that was spent is changed."""
    from embedctl.ledger import database
    from embedctl.reports import exchange_rates

    opened = _ledger.opened(ledger, config)
    read = exchange_rates.read(file)
    with database.writer(opened.paths, wait_s=30, now=opened.now) as connection:
        exchange_rates.put(connection, read, str(file))
    days = sorted({rate.day for rate in read})
    terminal.notice(f"{len(read):,} rates" + (f" of {days[0]} to {days[-1]}" if days else ""))

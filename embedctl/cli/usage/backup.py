"""`embedctl usage backup`: the ledger, copied while others read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, LedgerFlag, OverwriteFlag
from embedctl.cli.usage._wait import Wait

app = typer.Typer()


@app.command(epilog="Example: embedctl usage backup usage-2026-11.duckdb")
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    overwrite: OverwriteFlag = False,
    wait: Wait = 60,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Copy the whole ledger into a new DuckDB file while others read it."""
    from embedctl.ledger.backup import backup as copy_ledger

    opened = _ledger.opened(ledger, config)
    for note in _ledger.take_in(opened):
        terminal.warning(note)
    events = copy_ledger(opened.paths, file, overwrite=overwrite, wait_s=wait, now=opened.now)
    terminal.notice(f"{events:,} events in {file}")

"""`embedctl usage export`: the ledger's events in formats that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, LedgerFlag, OverwriteFlag
from embedctl.cli.usage._period import Last, Month, Since, Until
from embedctl.storage import named

app = typer.Typer()


@app.command(epilog="Example: embedctl usage export --format focus --last month -o focus.csv")
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file.")],
    form: Annotated[
        Literal["focus", "parquet", "cloudevents"],
        typer.Option("--format", help="FOCUS 1.4 (CSV by day), all events as Parquet, or CloudEvents (JSON Lines)."),
    ] = "focus",
    workspace: Annotated[
        list[str] | None, typer.Option("--workspace", "-w", help="Only this workspace (repeatable).")
    ] = None,
    since: Since = None,
    until: Until = None,
    month: Month = None,
    last: Last = None,
    priced_only: Annotated[bool, typer.Option("--priced-only", help="FOCUS without usage that has no price.")] = False,
    overwrite: OverwriteFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Write the ledger's events in a format of others. Days are UTC."""
    from embedctl.ledger import database, periods
    from embedctl.reports import focus
    from embedctl.reports.report import ReportQuery

    named.check_free(output, overwrite=overwrite)
    opened = _ledger.opened(ledger, config)
    for note in _ledger.take_in(opened):
        terminal.warning(note)
    question = ReportQuery(
        within=periods.chosen(since, until, last, periods.zone("UTC"), opened.now, month=month),
        only={"workspace": workspace} if workspace else {},
    )
    with database.reader(opened.paths, now=opened.now) as connection:
        written = focus.export(connection, question, output, form, overwrite=overwrite, priced_only=priced_only)
    terminal.notice(f"{written:,} rows in {output}")

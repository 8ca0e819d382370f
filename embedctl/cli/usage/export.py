"""`embedctl usage export`: the ledger's events in formats that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, LedgerFlag, OverwriteFlag
from embedctl.cli.usage._period import Last, Month, Since, Until
from embedctl.storage import named

app = typer.Typer()


@app.command(epilog="Example: embedctl usage export --format focus --last month -o focus.csv")
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file.")],
    form: Annotated[
        Literal["focus", "parquet", "cloudevents"],
        typer.Option("--format", help="FOCUS (CSV by day), all events as Parquet, or CloudEvents (JSON Lines)."),
    ] = "focus",
    workspace: Annotated[
        list[str] | None,
        typer.Option(
            "--workspace", "-w", autocompletion=_completion.workspaces, help="Only this workspace (repeatable)."
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    month: Month = None,
    last: Last = None,
    focus_version: Annotated[
        Literal["1.2", "1.4", "1.5"], typer.Option("--focus-version", help="Of FOCUS; most readers take 1.2.")
    ] = "1.4",
    priced_only: Annotated[bool, typer.Option("--priced-only", help="FOCUS without usage that has no price.")] = False,
    overwrite: OverwriteFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Write the ledger's events in a format of others. Days are UTC."""
    from embedctl.ledger import database, periods
    from embedctl.reports import focus
    from embedctl.reports.query import ReportQuery, refuse_unknown_names

    named.check_format(output, form)
    named.check_free(output, overwrite=overwrite)
    opened = _ledger.opened(ledger, config)
    for note in _ledger.take_in(opened):
        terminal.warning(note)
    question = ReportQuery(
        within=periods.chosen(since, until, last, periods.zone("UTC"), opened.now, month=month),
        only={"workspace": workspace} if workspace else {},
    )
    with database.reader(opened.paths, now=opened.now) as connection:
        refuse_unknown_names(connection, question)
        written = focus.export(
            connection, question, output, form, overwrite=overwrite, priced_only=priced_only, version=focus_version
        )
    terminal.notice(f"{written:,} rows in {output}")

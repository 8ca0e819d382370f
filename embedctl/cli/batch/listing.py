"""`embedctl batch list`: the runs that are known here."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, one_of
from embedctl.cli.batch._registry import registry

app = typer.Typer()
_STATES = ["accepted", "running", "completed", "partial", "failed", "interrupted", "waiting"]


@app.command("list", epilog="Example: embedctl batch list --status failed --status interrupted")
def list_runs(
    status: Annotated[
        list[str] | None,
        typer.Option("--status", help="Only runs in this state; repeatable.", metavar="|".join(_STATES)),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most runs shown.")] = 20,
    offset: Annotated[int, typer.Option("--offset", min=0, help="So many of the newest are left out.")] = 0,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """List runs, newest first."""
    from embedctl.runs.status import listed, row

    runs = listed(registry(config), [one_of(word, _STATES, "state") for word in status or ()])
    rows = [row(run) for run in runs[offset : offset + limit]]
    envelope = {"total": len(runs), "limit": limit, "offset": offset, "runs": rows}
    columns = [
        terminal.Column("job", "Job"),
        terminal.Column("run_id", "Run"),
        terminal.Column("state", "State"),
        terminal.Column("rows", "Rows", "right"),
        terminal.Column("failed", "Failed", "right"),
        terminal.Column("cost", "Cost USD", "right"),
        terminal.Column("started_at", "Started"),
        terminal.Column("output", "Output"),
    ]
    shown = [{**row, "started_at": row["started_at"].isoformat(" ", "seconds")} for row in rows]
    terminal.table(terminal.Table(columns=columns, rows=shown, envelope=envelope), "json" if as_json else form)

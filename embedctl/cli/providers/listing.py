"""`embedctl providers list`: every provider, without a text sent to any."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli.providers._names import WorkspaceFlag

app = typer.Typer()


@app.command("list", epilog="Example: embedctl providers list --online")
def list_providers(
    online: Annotated[
        bool, typer.Option("--online", help="Ask each for an answer, without a key and without a text.")
    ] = False,
    workspace: WorkspaceFlag = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Show every provider: where it is, whether its key is there, what it said, how running jobs find it."""
    from embedctl.routing.status import reachable, standings

    loaded = settings.load(flags={"workspace": workspace}, config=config)
    statuses = standings(loaded)
    answers = reachable(loaded, statuses) if online else {}
    rows = [
        {
            "provider": status.name,
            "protocol": status.protocol,
            "base_url": status.base_url or None,
            "key": status.key,
            "key_variables": list(status.key_variables),
            "configured": status.configured,
            "allowed": status.allowed,
            "reachable": answers.get(status.name),
            "circuit": status.circuit,
            "held_s": round(status.held_s) if status.held_s else None,
            "reason": status.problem or status.reason,
        }
        for status in statuses
    ]
    envelope = {"schema_version": 1, "data": rows, "warnings": []}
    columns = [
        terminal.Column("provider", "Provider"),
        terminal.Column("protocol", "Protocol"),
        terminal.Column("base_url", "Address"),
        terminal.Column("key", "Key"),
        terminal.Column("allowed", "Allowed"),
        *([terminal.Column("reachable", "Reachable")] if online else []),
        terminal.Column("circuit", "Circuit"),
        terminal.Column("held_s", "Held s", "right"),
        terminal.Column("reason", "Reason"),
    ]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)

"""`embedctl keys list`: every key, without what it is made of."""

from __future__ import annotations

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli.keys._shown import row

app = typer.Typer()


@app.command("list", epilog="Example: embedctl keys list --json")
def list_keys(form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Show every key: who pays, what it may, whether it counts."""
    from embedctl.server import keys

    found = keys.load(settings.load(config=config).paths.keys)
    rows = [row(key_id, key) for key_id, key in found.items()]
    columns = [
        terminal.Column("id", "Id"),
        terminal.Column("workspace", "Workspace"),
        terminal.Column("role", "Role"),
        terminal.Column("name", "Name"),
        terminal.Column("state", "State"),
        terminal.Column("expires", "Expires"),
        terminal.Column("rpm", "Rpm", "right"),
        terminal.Column("tpm", "Tpm", "right"),
        terminal.Column("budget", "Budget", "right"),
    ]
    envelope = {"schema_version": 1, "data": rows, "warnings": []}
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)

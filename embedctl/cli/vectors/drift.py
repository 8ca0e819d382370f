"""`embedctl vectors drift`: whether a model is still the one that it was, as runs have seen it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag

app = typer.Typer()


@app.command(epilog="Example: embedctl vectors drift handbook.parquet")
def drift(
    space: Annotated[
        str, typer.Argument(help="A file or folder that embedctl wrote, or the space_id of one.", metavar="SPACE|FILE")
    ],
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Show how a model's vectors of three fixed texts compared with its first ones, run by run; nothing is asked."""
    from embedctl.vectors import locks
    from embedctl.vectors.on_store import open_here

    is_id = re.fullmatch(r"[0-9a-f]{32}", space) is not None and not Path(space).exists()
    space_id = space if is_id else open_here(Path(space)).space.space_id
    hosts = [locks.as_dict(one) for one in locks.history(space_id, settings.load(config=config).paths.canaries)]
    rows = [{"host": host["host"], **seen} for host in hosts for seen in host["history"]]
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column("at", "At"),
                terminal.Column("host", "Host"),
                terminal.Column("version", "Version"),
                terminal.Column("cosine", "Cosine", "right"),
                terminal.Column("verdict", "Verdict"),
            ],
            rows=rows,
            envelope={"schema_version": 1, "space_id": space_id, "hosts": hosts, "warnings": []},
        ),
        _ledger.chosen_format(form, as_json),
    )

"""`embedctl vectors lock`: what an output's vectors are made with, as a file for the application that asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, JsonFlag
from embedctl.cli.vectors._asking import AskingFlags
from embedctl.cli.vectors._output import OutputPath

app = typer.Typer()


@app.command(epilog="Example: embedctl vectors lock handbook.parquet -o app/space.lock")
def lock(
    file: OutputPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where it goes.", metavar="FILE")] = Path("space.lock"),
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Write down what its vectors are made with; nothing is asked. `--locked` and `serve --lock` go by it."""
    from embedctl.vectors import locks
    from embedctl.vectors.on_store import open_here

    stored = open_here(file)
    found = locks.own_lock(stored)
    if found is None:
        flags = AskingFlags(
            model=None, provider=None, workspace=None, tag=None, config=config, ledger=None, verbose=False
        )
        asking = flags.asking(stored, must=False)
        home = settings.load(config=config).paths.canaries
        found = locks.made_lock(stored, asking.endpoint if asking else None, home)
    locks.write(found, output)
    if as_json:
        terminal.result({"schema_version": 1, "path": str(output), **found.as_dict()})
        return
    known = found.canaries
    said = f"canaries of {known.named}" if known else "without canaries: none were asked for"
    terminal.out(f"{output}: {found.space.model}, {found.space.dimensions} dimensions, {terminal.safe(said)}\n")

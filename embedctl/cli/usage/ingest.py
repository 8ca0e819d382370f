"""`embedctl usage ingest`: waiting usage events into the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage._wait import Wait

app = typer.Typer()


@app.command(epilog="Example: embedctl usage ingest --wait 60   (in a crontab)")
def ingest(
    wait: Wait = 60,
    keep_days: Annotated[
        int, typer.Option(min=0, help="Days to keep spool files that are in the ledger; it is rebuilt from them.")
    ] = 400,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Set the database aside and make it anew from all kept spool files.")
    ] = False,
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Take waiting usage events into the ledger. Can be run at any time, any number of times."""
    from datetime import timedelta

    from embedctl.ledger.ingest import prune
    from embedctl.runs import intake

    opened = _ledger.opened(ledger, config)
    told = terminal.TerminalObserver()
    done = intake.ingest(opened.settings.paths, wait_s=wait, now=opened.now, rebuild=rebuild, observer=told)
    pruned = prune(opened.paths, older_than=timedelta(days=keep_days), now=opened.now)
    for note in done.notes():
        terminal.warning(note)
    summary = {"events": done.events, "repeated": done.repeated, "bad_lines": done.bad_lines, "files": done.files}
    if as_json:
        terminal.result(summary | {"pruned": pruned, "rebuilt_from": done.rebuilt_from, "unreadable": done.unreadable})
    else:
        terminal.notice(f"{done.events:,} new events from {done.files:,} spool files ({done.repeated:,} known already)")

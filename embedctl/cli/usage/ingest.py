"""`embedctl usage ingest`: waiting usage events into the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, JsonFlag, LedgerFlag, StoreOptionFlag, pairs
from embedctl.cli.usage._wait import Wait
from embedctl.errors import WrongUsage

if TYPE_CHECKING:
    from embedctl.runs.store_usage import CopiedUsage

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
    from_url: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="URL", help="Take in what a job on a store, or in a folder of workers, has spent."
        ),
    ] = None,
    seal: Annotated[
        bool,
        typer.Option("--seal", help="With --from: book what dead workers began and did not end as perhaps billed."),
    ] = False,
    lease: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="With --seal: a worker that is silent for so long is dead.")
    ] = 60.0,
    store_option: StoreOptionFlag = None,
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Take waiting usage events into the ledger. Can be run at any time, any number of times."""
    from datetime import timedelta

    from embedctl.ledger.ingest import prune
    from embedctl.runs import intake

    given = {"store_option": pairs(store_option, "store_option")} if store_option else {}
    opened = _ledger.of(settings.load(config=config, ledger=ledger, flags=given))
    told = terminal.TerminalObserver()
    if from_url is None and (seal or given):
        raise WrongUsage("--seal and --store-option belong to --from", hint="name the job: --from s3://BUCKET/PREFIX")
    if from_url is not None:
        copied = _copied(opened, from_url, seal=seal, lease_s=lease)
        if copied.open_shards and not seal:
            terminal.notice(
                f"{copied.open_shards:,} shards are not done: what their workers have begun is booked when they end, "
                "or by --seal"
            )
    done = intake.ingest(opened.settings.paths, wait_s=wait, now=opened.now, rebuild=rebuild, observer=told)
    pruned = prune(opened.paths, older_than=timedelta(days=keep_days), now=opened.now)
    for note in done.notes():
        terminal.warning(note)
    summary = {"events": done.events, "repeated": done.repeated, "bad_lines": done.bad_lines, "files": done.files}
    if as_json:
        terminal.result(summary | {"pruned": pruned, "rebuilt_from": done.rebuilt_from, "unreadable": done.unreadable})
    else:
        terminal.notice(f"{done.events:,} new events from {done.files:,} spool files ({done.repeated:,} known already)")


def _copied(opened: _ledger.Opened, url: str, *, seal: bool, lease_s: float) -> CopiedUsage:
    """What a job on a store has spent, into the spool."""
    from embedctl.runs import store_usage
    from embedctl.runs.target import shared_folder
    from embedctl.storage.store_url import is_store_url, parse

    store = None if is_store_url(url) else shared_folder(Path(url), workers=1)
    store = store or opened.settings.stores.open(parse(url))
    return store_usage.take_in(store, opened.paths.spool, seal=seal, lease_s=lease_s)

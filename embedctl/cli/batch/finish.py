"""`embedctl batch finish`: the manifest of a job on a store whose last worker died before it made it."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag, StoreOptionFlag
from embedctl.cli.batch._registry import on_store
from embedctl.errors import ShardsHeld, WrongUsage

app = typer.Typer()


@app.command(epilog="Example: embedctl batch finish s3://bucket/tickets")
def finish(
    url: Annotated[str, typer.Argument(help="Address of the output, or a folder of several workers.", metavar="URL")],
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print one JSON object on stdout.")] = False,
    store_option: StoreOptionFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Make the manifest of a job on a store whose shards are all done. Can be run any number of times."""
    from embedctl.runs import store_plan

    store = on_store(url, store_option, config)
    if store is None:
        raise WrongUsage(
            f"{url} is no address of a store, nor a folder of several workers", hint="other runs finish themselves"
        )
    plan = store_plan.plan_of(store)
    left = len(plan.shards) - len(store_plan.done_ordinals(store, plan))
    if left:
        raise ShardsHeld(f"{left:,} of {len(plan.shards):,} shards are not done", hint="the job's own command goes on")
    made = store_plan.finish(store, plan)
    found = {"output": store.url, "rows": made.counts.read, "vectors": made.counts.vectors, "parts": len(made.parts)}
    if as_json:
        terminal.result(found)
    else:
        terminal.notice(f"{store.url}: {made.counts.vectors:,} vectors in {len(made.parts):,} parts")

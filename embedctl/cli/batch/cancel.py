"""`embedctl batch cancel`: ends a run's batches at their provider, and books what was done until then."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag
from embedctl.cli.batch._registry import Job, paths, registry

app = typer.Typer()


@app.command(epilog="Example: embedctl batch cancel nightly")
def cancel(
    job: Job,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress on stderr.")] = False,
    config: ConfigFlag = None,
) -> None:
    """Cancel a run's batches at their provider; what was done until then is collected and kept."""
    import asyncio
    from pathlib import Path

    from embedctl import settings
    from embedctl.cli._progress import ProgressDisplay
    from embedctl.records import format_cents
    from embedctl.runs import cancelling

    run = registry(config).find(job)
    loaded = settings.load(
        flags=cancelling.flags(paths(config), run), config=config, ledger=Path(run.ledger) if run.ledger else None
    )
    with ProgressDisplay(shown=not no_progress and not quiet) as display:
        observer = terminal.TerminalObserver(verbose=False, quiet=quiet, progress=display)
        done = cancelling.cancel(loaded, run, asyncio.run, observer=observer)
    if as_json:
        terminal.result(done.as_dict(run))
    elif not quiet:
        cost = done.spending.known_cost
        many = "1 batch" if done.batches == 1 else f"{done.batches} batches"
        paid = "cost unknown" if cost is None else f"{format_cents(cost)} USD"
        terminal.notice(
            f"cancelled {many}: {done.spending.texts_batched:,} of {done.texts:,} texts were done, {paid}; "
            "the run's own command goes on with the rest"
        )

"""`embedctl usage metrics`: counters for Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, LedgerFlag

if TYPE_CHECKING:
    from embedctl.reports.prometheus import Ended
    from embedctl.storage.sqlite_cache import CacheStats

app = typer.Typer()


@app.command(epilog="Example: embedctl usage metrics --textfile /var/lib/prometheus/node-exporter")
def metrics(
    textfile: Annotated[
        Path | None, typer.Option("--textfile", help="node_exporter's textfile folder; without it: stdout.")
    ] = None,
    no_workspaces: Annotated[bool, typer.Option("--no-workspaces", help="Without the workspace label.")] = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Write counters for Prometheus: tokens, cost, calls, failures, fallbacks, circuits, drift, budgets, jobs."""
    from embedctl.ledger import budgets, database
    from embedctl.reports import prometheus
    from embedctl.routing.circuits import running

    opened = _ledger.opened(ledger, config)
    for note in _ledger.take_in(opened):
        terminal.warning(note)
    extra = budgets.configured(opened.settings.workspaces)
    with database.reader(opened.paths, now=opened.now) as connection:
        collected = prometheus.collect(
            connection,
            opened.paths,
            budgets_set=extra,
            jobs=_ended(opened),
            circuits=running(opened.settings.paths.home / "circuits"),
            counts=_counts_looked_up(opened),
            by_workspace=not no_workspaces,
            now=opened.now,
        )
    if textfile is None:
        terminal.out(prometheus.text(collected))
    else:
        prometheus.write(collected, textfile)


def _counts_looked_up(opened: _ledger.Opened) -> list[tuple[str, CacheStats]]:
    """What was looked up from this home in each store of token counts, where one is asked for."""
    from embedctl.storage.token_count_cache import tallies

    usage, cache = opened.settings.token_usage, opened.settings.paths.cache
    if not usage.cache or not cache.exists():
        return []
    return tallies(cache, observer=terminal.TerminalObserver())


def _ended(opened: _ledger.Opened) -> list[Ended]:
    """The last end of every job that pays into this ledger."""
    from embedctl.reports.prometheus import Ended
    from embedctl.runs.registry import RunRegistry

    jobs: dict[str, Ended] = {}
    for run in RunRegistry(opened.settings.paths.runs).all():  # newest first
        if not run.job_id or run.exit_code is None or run.ledger not in ("", str(opened.paths.database.absolute())):
            continue
        last = jobs.setdefault(run.job_id, Ended(run.job_id, None, run.exit_code))
        if run.exit_code == 0 and last.succeeded_at is None:
            jobs[run.job_id] = Ended(run.job_id, run.finished_at, last.exit_code)
    return list(jobs.values())

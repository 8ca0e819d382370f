"""`embedctl usage reprice`: costs whose price came late, or was wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage._period import Since
from embedctl.records import format_money

app = typer.Typer()


@app.command(epilog="Example: embedctl usage reprice --since 2026-11-01 --apply")
def reprice(
    since: Since = None,
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Write it, or only show it.")] = False,
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Fill in costs whose price came late; correct, by rows of their own, those whose price was wrong."""
    from embedctl.ledger import periods
    from embedctl.reports.reprice import reprice as reprice_ledger

    opened = _ledger.opened(ledger, config)
    for note in _ledger.take_in(opened):
        terminal.warning(note)
    start = periods.parse(since, periods.zone("UTC"), "--since") if since else None
    repriced = reprice_ledger(opened.paths, since=start, apply=apply, now=opened.now)
    summary = {
        "applied": apply,
        "filled_events": repriced.filled_events,
        "filled_cost": repriced.filled_cost,
        "filled_at_risk": repriced.filled_at_risk,
        "corrections": [{k: v for k, v in row.items() if k != "occurred_us"} for row in repriced.corrections],
        "correction": repriced.correction,
    }
    headings = {"day": "Day", "workspace_id": "Workspace", "job_id": "Job", "provider": "Provider", "model": "Model",
                "calls": "Calls", "delta": "Delta USD"}  # fmt: skip
    numbers = ("calls", "delta")
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(key, name, "right" if key in numbers else "left") for key, name in headings.items()
            ],
            rows=repriced.corrections,
            envelope=summary,
            title=f"Repricing ({'applied' if apply else 'dry run: --apply writes it'})",
            footer=[
                f"{repriced.filled_events:,} calls without a price get one: {format_money(repriced.filled_cost)} USD",
                f"{len(repriced.corrections):,} corrections: {format_money(repriced.correction)} USD",
            ],
        ),
        "json" if as_json else "table",
    )

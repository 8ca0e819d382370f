"""`embedctl usage explain`: how the cost of an event, or of a run, was computed."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.errors import WrongUsage
from embedctl.records import format_money

app = typer.Typer()


@app.command(epilog="Example: embedctl usage explain 019aa2f1-7c00-7000-8000-000000000001")
def explain(
    event: Annotated[str | None, typer.Argument(help="Event or operation id.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Instead, all of a run.")] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Show how a cost was computed: units x unit price, which price, and every attempt."""
    from embedctl.ledger import database
    from embedctl.reports.explain import event as explain_event
    from embedctl.reports.explain import run as explain_run

    if (event is None) == (run is None):
        raise WrongUsage("name an event, or a run with --run")
    opened = _ledger.opened(ledger, config)
    notes = _ledger.take_in(opened)
    with database.reader(opened.paths, now=opened.now) as connection:
        explanation = explain_event(connection, event) if event else explain_run(connection, str(run))
    keys = ("occurred_at", "attempt", "provider", "model", "status", "sum") if event else (
        "provider", "model", "status", "calls", "sum")  # fmt: skip
    sources = {
        f"price: {p['kind']} {p['unit_price'].normalize():f} USD per million since {p['valid_from'][:10]} "
        f"({p['confidence']}; {p['source']}{': ' + p['source_ref'] if p['source_ref'] else ''})"
        for line in explanation.lines
        if (p := line["price"])
    }
    rows = [line | {"source": (line["price"] or {}).get("source")} for line in explanation.lines]
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, key.replace("_", " ").capitalize()) for key in keys],
            rows=rows,
            envelope={
                "lines": list(explanation.lines),
                "cost": explanation.cost,
                "currency": "USD",
                "warnings": notes,
            },
            footer=[
                f"cost: {'unknown' if explanation.cost is None else format_money(explanation.cost)} USD",
                *sorted(sources),
                *notes,
            ],
        ),
        _ledger.chosen_format(form, as_json),
    )

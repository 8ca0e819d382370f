"""`embedctl usage drift`: the providers' token counts beside the tokenizer's here."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage._period import Last, Since, Until
from embedctl.errors import RowsFailed

app = typer.Typer()


@app.command(epilog="Example: embedctl usage drift --threshold 0.05 --last 7d")
def drift(
    threshold: Annotated[float, typer.Option(min=0, help="Drift of the sums above which it exits 3.")] = 0.05,
    since: Since = None,
    until: Until = None,
    last: Last = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Compare the providers' token counts with the tokenizer's here."""
    from embedctl.ledger import database, periods
    from embedctl.reports.drift import drift as drift_by_model
    from embedctl.reports.report import ReportQuery

    opened = _ledger.opened(ledger, config)
    notes = _ledger.take_in(opened)
    question = ReportQuery(within=periods.chosen(since, until, last, periods.zone("UTC"), opened.now))
    with database.reader(opened.paths, now=opened.now) as connection:
        drifts = drift_by_model(connection, question, threshold)
    over = [each for each in drifts if each.over(threshold)]

    def percent(value: float | None, sign: str = "") -> str | None:
        return None if value is None else f"{value:{sign}.1%}"

    headings = {"pairs": "Pairs", "tokens_native": "Native", "tokens_estimated": "Counted", "weighted": "Drift",
                "p95": "p95", "share_over": "Over", "fallback_share": "Est."}  # fmt: skip
    ratios = ("p95", "share_over", "fallback_share")
    terminal.table(
        terminal.Table(
            columns=[terminal.Column("provider", "Provider"), terminal.Column("model", "Model")]
            + [terminal.Column(key, heading, "right") for key, heading in headings.items()],
            rows=[
                d.as_dict() | {"weighted": percent(d.weighted, "+")} | {key: percent(getattr(d, key)) for key in ratios}
                for d in drifts
            ],
            envelope={
                "threshold": threshold,
                "models": [d.as_dict() | {"over": d in over} for d in drifts],
                "warnings": notes,
            },
            footer=[*(f"! {d.provider}:{d.model} drifts by {percent(d.weighted, '+')}" for d in over), *notes],
        ),
        _ledger.chosen_format(form, as_json),
    )
    if over:
        _ledger.after_result(RowsFailed(f"{len(over)} of {len(drifts)} models drift by more than {threshold:.1%}"))

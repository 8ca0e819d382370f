"""`embedctl usage diff`: an estimate beside what was spent, or two periods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.errors import WrongUsage

app = typer.Typer()


@app.command(epilog="Example: embedctl usage diff --from prev-month --to mtd")
def diff(
    file: Annotated[
        Path | None,
        typer.Argument(help="An estimate that was saved: compare it with what was spent since.", metavar="[EST.json]"),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option("--from", metavar="RANGE", help="A word of --last, 2026-10, or SINCE..UNTIL."),
    ] = None,
    after: Annotated[str | None, typer.Option("--to", metavar="RANGE", help="The same, to compare with it.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", autocompletion=_completion.by, help="Group two periods by these; as for `usage report`."),
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", "-z", help="IANA time zone of days and months.")] = "UTC",
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Compare an estimate with what was spent, or two periods with each other."""
    form = _ledger.chosen_format(form, as_json)
    if file is not None and before is None and after is None:
        _with_estimate(_ledger.opened(ledger, config), file, form)
    elif file is None and before is not None and after is not None:
        keys = [key.strip() for text in by or ["provider,model"] for key in text.split(",") if key.strip()]
        _two_periods(_ledger.opened(ledger, config), (before, after), keys, timezone, form)
    else:
        raise WrongUsage("name either an estimate, or two periods with --from and --to")


def _with_estimate(opened: _ledger.Opened, file: Path, form: terminal.Format) -> None:
    """Print a saved estimate and what was spent since."""
    from embedctl.ledger import database
    from embedctl.reports import estimates
    from embedctl.reports.report import report

    estimate = estimates.read(file)
    notes = _ledger.take_in(opened)
    with database.reader(opened.paths, now=opened.now) as connection:
        actual = report(connection, estimate.question(), now=opened.now, known_names=False)
    notes += actual.warnings
    compared = estimates.compared(estimate, actual.totals)
    since = f"{estimate.made_at:%Y-%m-%d %H:%M} UTC"
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, key.replace("_", " ").capitalize(), "right") for key in compared],
            rows=[compared],
            envelope={"estimate": estimate.as_dict(), "actual": actual.envelope(), **compared, "warnings": notes},
            title=f"{estimate.provider}:{estimate.model}, paid by {estimate.workspace}, since {since}",
            footer=[f"! {line}" for line in notes],
        ),
        form,
    )


def _two_periods(
    opened: _ledger.Opened, ranges: tuple[str, str], keys: list[str], timezone: str, form: terminal.Format
) -> None:
    """Print what changed from one period to another, by `keys`."""
    from embedctl.ledger import database, periods
    from embedctl.reports import compare
    from embedctl.reports.report import ReportQuery, report

    notes = _ledger.take_in(opened)
    where = periods.zone(timezone)
    with database.reader(opened.paths, now=opened.now) as connection:
        old, new = (
            report(
                connection,
                ReportQuery(by=keys, within=periods.named(text, where, opened.now), timezone=timezone),
                now=opened.now,
            )
            for text in ranges
        )
    notes += [*(f"before: {line}" for line in old.warnings), *(f"after: {line}" for line in new.warnings)]
    total = compare.total(old, new).as_dict()
    rows = [change.as_dict() for change in compare.changes(old, new)]
    columns = [terminal.Column(key, key.capitalize()) for key in keys]
    columns += [terminal.Column(key, key.replace("_", " ").capitalize(), "right") for key in total]
    envelope = {"from": old.envelope(), "to": new.envelope(), "changes": rows, "total": total, "warnings": notes}
    terminal.table(
        terminal.Table(columns=columns, rows=rows, envelope=envelope, totals={keys[0]: "Total"} | total, footer=notes),
        form,
    )

"""`embedctl usage estimate|diff`: what it would cost, what it came to, and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, with_options
from embedctl.errors import WrongUsage

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

Text = Optional[str]  # noqa: UP045 - typer reads it


@app.command(epilog="Example: embedctl usage estimate tickets.parquet -m openai:text-embedding-3-small --tier batch")
@with_options
def estimate(
    inputs: Annotated[list[str], typer.Argument(help="Files, globs, folders.", metavar="INPUT...")],
    *,
    tier: Annotated[
        Literal["standard", "batch"], typer.Option("--tier", help="At the price of this tier.")
    ] = "standard",
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--save", help="Keep it in this file, for `usage diff FILE` after the run.", metavar="FILE"),
    ] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
    flags: Mapping[str, Any],
) -> None:
    """Say what embedding an input would take and cost. Nothing is sent; nothing that exists is reused."""
    from embedctl import settings, storage
    from embedctl.records import utc_now
    from embedctl.reports.estimates import UsageEstimate
    from embedctl.runs.job import JobRequest
    from embedctl.runs.run import Run

    found = settings.load(flags=flags, config=config, ledger=ledger)
    told = Run(
        JobRequest(settings=found, inputs=inputs, kind="stream", stream=BytesIO(), command="usage estimate")
    ).forecast()
    provider, _, model = told.model.partition(":")
    cost = told.cost_batch if tier == "batch" else told.cost
    unit = None if cost is None else cost / max(told.tokens, 1)  # exact: the cost is a multiple of the tokens
    made = UsageEstimate(
        made_at=utc_now(),
        workspace=found.options.workspace,
        provider=provider,
        model=model,
        tier=tier,
        rows=told.rows,
        texts=told.texts,
        requests=told.requests,
        tokens=told.tokens,
        tokens_low=told.tokens_low,
        tokens_high=told.tokens_high,
        cost=cost,
        cost_low=None if unit is None else told.tokens_low * unit,
        cost_high=None if unit is None else told.tokens_high * unit,
    )
    if save is not None:
        storage.replace(storage.DISK, save, terminal.document(made.as_dict()))
    warnings = [] if made.cost is not None else [f"{told.model} has no {tier} price: the cost is unknown"]
    keys = ("rows", "texts", "requests", "tokens", "tokens_low", "tokens_high", "cost", "cost_low", "cost_high")
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, key.replace("_", " ").capitalize(), "right") for key in keys],
            rows=[made.as_dict()],
            envelope=made.as_dict() | {"warnings": warnings},
            title=f"Estimate for {told.model} ({tier}), paid by {made.workspace}",
            footer=[f"! {line}" for line in warnings],
        ),
        _ledger.chosen_format(form, as_json),
    )


@app.command(epilog="Example: embedctl usage diff --from prev-month --to mtd")
def diff(
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="An estimate that was saved: compare it with what was spent since.", metavar="[EST.json]"),
    ] = None,
    before: Annotated[Text, typer.Option("--from", metavar="RANGE", help="A word of --last, or SINCE..UNTIL.")] = None,
    after: Annotated[Text, typer.Option("--to", metavar="RANGE", help="The same, to compare with it.")] = None,
    by: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--by", help="Group two periods by these; as for `usage report`."),
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


def _with_estimate(found: _ledger.Opened, file: Path, form: terminal.Format) -> None:
    from embedctl.ledger import database
    from embedctl.reports import estimates, report

    made = estimates.read(file)
    notes = _ledger.take_in(found)
    with database.reader(found.paths, now=found.now) as connection:
        actual = report.report(connection, made.question(), now=found.now, known_names=False)
    notes += actual.warnings
    compared = estimates.compared(made, actual.totals)
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, key.replace("_", " ").capitalize(), "right") for key in compared],
            rows=[compared],
            envelope={"estimate": made.as_dict(), "actual": actual.envelope(), **compared, "warnings": notes},
            title=f"{made.provider}:{made.model}, paid by {made.workspace}, since {made.made_at:%Y-%m-%d %H:%M} UTC",
            footer=[f"! {line}" for line in notes],
        ),
        form,
    )


def _two_periods(
    found: _ledger.Opened, ranges: tuple[str, str], keys: list[str], timezone: str, form: terminal.Format
) -> None:
    from embedctl.ledger import database, periods
    from embedctl.reports import compare, report

    notes = _ledger.take_in(found)
    where = periods.zone(timezone)
    with database.reader(found.paths, now=found.now) as connection:
        old, new = (
            report.report(
                connection,
                report.ReportQuery(by=keys, within=periods.named(text, where, found.now), timezone=timezone),
                now=found.now,
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

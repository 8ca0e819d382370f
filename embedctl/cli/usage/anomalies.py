"""`embedctl usage anomalies`: days far from the pattern, and who made them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage._period import Last
from embedctl.cli.usage._workspace import BareWorkspace, WorkspaceOrEach, split_workspaces
from embedctl.errors import RowsFailed
from embedctl.records import format_cents

if TYPE_CHECKING:
    from embedctl.reports.anomalies import Anomalies

app = typer.Typer()


@app.command(cls=BareWorkspace, epilog="Example: embedctl usage anomalies --by workspace --last yesterday || echo look")
def anomalies(
    workspace: WorkspaceOrEach = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", autocompletion=_completion.by, help="Look at each workspace, provider, model, job, tag:KEY …"
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="Days from this one on.")] = None,
    until: Annotated[str | None, typer.Option(help="Days before this one.")] = None,
    last: Last = None,
    timezone: Annotated[str, typer.Option("--timezone", "-z", help="IANA time zone of days.")] = "UTC",
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Find days far from the pattern of the 8 weeks before (of the last 7 days); exit 3 when there are some."""
    from embedctl.ledger import database, periods
    from embedctl.reports.anomalies import anomalies as ask
    from embedctl.reports.report import ReportQuery

    opened = _ledger.opened(ledger, config)
    names, keys = split_workspaces(workspace, by)
    question = ReportQuery(
        by=keys,
        only={"workspace": names} if names else {},
        within=periods.chosen(since, until, last, periods.zone(timezone), opened.now),
        timezone=timezone,
    )
    notes = _ledger.take_in(opened)
    with database.reader(opened.paths, now=opened.now) as connection:
        found = ask(connection, question, now=opened.now)
    _print(found, _ledger.chosen_format(form, as_json), notes)
    if found.found:
        days = len({each.day for each in found.found})
        _ledger.after_result(RowsFailed(f"{days} day{'s are' if days > 1 else ' is'} far from the pattern"))


def _print(found: Anomalies, form: terminal.Format, notes: list[str]) -> None:

    warnings = list(dict.fromkeys([*found.warnings, *notes]))
    envelope = found.envelope() | {"warnings": warnings}
    rows = [each.as_dict(found.by) for each in found.found]
    names = list(dict.fromkeys(["day", *found.by, "workspace", "job", "provider", "model"]))
    columns = [terminal.Column(key, key.capitalize() if ":" not in key else key) for key in names]
    numbers = ("amount", "expected", "low", "high")
    if form == "csv":
        columns = [terminal.Column(key, key) for key in (*names, "measure", "direction", *numbers)]
        for line in warnings:
            terminal.warning(line)
    else:
        columns += [terminal.Column(key, key.capitalize(), "right") for key in numbers]
        rows = [row | {key: _told(row[key], row["measure"]) for key in numbers} for row in rows]
    looked_at = (
        f"{found.looked_at:,} day{'' if found.looked_at == 1 else 's'} compared, {len(rows)} far from the pattern"
    )
    terminal.table(
        terminal.Table(
            columns=columns,
            rows=[{key: row[key] for key in (*names, "measure", "direction", *numbers)} for row in rows],
            envelope=envelope,
            title=f"Anomalies ({found.whole.question.timezone}): {looked_at}",
            footer=[f"! {line}" for line in warnings],
        ),
        form,
    )


def _told(amount: Any, measure: str) -> str:
    return f"{format_cents(Decimal(amount))} USD" if measure == "cost" else f"{amount:,} tokens"

"""`embedctl usage forecast`: where the month ends, and which budgets will not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage._workspace import BareWorkspace, WorkspaceOrEach, split_workspaces
from embedctl.errors import RowsFailed
from embedctl.records import format_cents

if TYPE_CHECKING:
    from embedctl.reports.forecast import Forecast

app = typer.Typer()


@app.command(cls=BareWorkspace, epilog="Example: embedctl usage forecast --workspace acme || echo look")
def forecast(
    workspace: WorkspaceOrEach = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", autocompletion=_completion.by, help="Group by workspace, provider, model, job, tag:KEY …"),
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", "-z", help="IANA time zone of days and months.")] = "UTC",
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Project this month's end from the last 8 weeks; exit 3 when a budget is or will be passed."""
    from embedctl.ledger import budgets, database
    from embedctl.reports.forecast import forecast as ask
    from embedctl.reports.report import ReportQuery

    opened = _ledger.opened(ledger, config)
    names, keys = split_workspaces(workspace, by)
    question = ReportQuery(by=keys, only={"workspace": names} if names else {}, timezone=timezone)
    notes = _ledger.take_in(opened)
    with database.reader(opened.paths, now=opened.now) as connection:
        extra = budgets.configured(opened.settings.workspaces)
        found = ask(connection, question, budgets_set=extra, now=opened.now)
    _print(found, _ledger.chosen_format(form, as_json), notes)
    failing = [each.standing.budget.workspace for each in found.budgets if each.fails]
    if failing:
        _ledger.after_result(RowsFailed(f"budgets that are or will be passed: {', '.join(dict.fromkeys(failing))}"))


_HEADINGS = {
    "cost": "So far USD", "projected": "Month's end USD", "interval": "90 % interval", "last": "Last month USD",
    "tokens": "Tokens so far", "tokens_projected": "Tokens, month's end",
}  # fmt: skip


def _print(found: Forecast, form: terminal.Format, notes: list[str]) -> None:
    warnings = list(dict.fromkeys([*found.warnings, *notes]))
    by = list(found.month.question.by)
    envelope = found.envelope() | {"warnings": warnings}
    if form == "csv":
        columns = [terminal.Column(key, key) for key in (*by, *_FIELDS)]
        rows = [{key: group[key] for key in (*by, *_FIELDS)} for group in (found.groups if by else [found.totals])]
        for line in warnings:
            terminal.warning(line)
        terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), form)
        return
    totals = _shown(found.totals) | ({by[0]: "Total"} if by else {})
    told = [f"! {line}" for line in warnings]
    told += [each.sentence() for each in found.budgets if each.sentence() not in warnings]
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, key.capitalize() if ":" not in key else key) for key in by]
            + [terminal.Column(key, heading, "right") for key, heading in _HEADINGS.items()],
            rows=[_shown(group) for group in found.groups] if by else [totals],
            envelope=envelope,
            title=f"Forecast of {found.today:%Y-%m}  ({found.month.question.timezone}), on {found.today}",
            totals=totals if by else None,
            footer=told,
        ),
        form,
    )


_FIELDS = (
    "tokens", "tokens_last_month", "tokens_projected", "tokens_low", "tokens_high", "cost", "cost_is_lower_bound",
    "cost_at_risk", "cost_last_month", "cost_projected", "cost_low", "cost_high", "history_days", "too_little_history",
)  # fmt: skip


def _shown(group: Any) -> dict[str, Any]:
    """A group as people read it."""

    def money(key: str, *, at_least: bool = False) -> str:
        if group[key] is None:
            return "unknown"
        return (">= " if at_least else "") + format_cents(group[key])

    known = group["cost_projected"] is not None
    return dict(group) | {
        "cost": money("cost", at_least=group["cost_is_lower_bound"]),
        "projected": money("cost_projected", at_least=known and group["cost_is_lower_bound"]),
        "interval": f"{money('cost_low')} .. {money('cost_high')}" if known else "too little history",
        "last": money("cost_last_month"),
        "tokens": int(group["tokens"]),
        "tokens_projected": "unknown" if group["tokens_projected"] is None else group["tokens_projected"],
    }

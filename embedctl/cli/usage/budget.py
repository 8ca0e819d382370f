"""`embedctl usage budget`: what a workspace may spend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli._groups import Group
from embedctl.cli.usage._workspace import Workspace
from embedctl.errors import BudgetReached, BudgetWarning, WrongUsage, nearest
from embedctl.records import format_money
from embedctl.settings.options import checked_name

if TYPE_CHECKING:
    from embedctl.ledger.budgets import BudgetStatus

app = Group(
    help="Set, list and check what a workspace may spend.",
    epilog="Example: embedctl usage budget set -w acme --amount 50 --period month",
)
OnlyWorkspace = Annotated[
    str | None, typer.Option("--workspace", "-w", autocompletion=_completion.workspaces, help="Only this one's.")
]


@app.command("set", epilog="Example: embedctl usage budget set -w acme --amount 50 --action warn")
def budget_set(
    amount_usd: Annotated[str, typer.Option("--amount", help="USD per period.")],
    workspace: Workspace = "default",
    period: Annotated[Literal["day", "week", "month"], typer.Option(help="Per whole day, week or month.")] = "month",
    action: Annotated[Literal["warn", "block"], typer.Option(help="Whether it stops runs.")] = "block",
    timezone: Annotated[str, typer.Option("--timezone", "-z", help="Whose days.")] = "UTC",
    warn_at: Annotated[float, typer.Option(min=0.001, max=1, help="Share at which `budget check` exits 5.")] = 0.8,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Set the budget of a workspace, in place of the one before."""
    from embedctl.ledger import budget_copy, budgets, database

    new = budgets.Budget(
        workspace=checked_name(workspace, "workspace"),
        amount=_ledger.typed_amount(amount_usd, "--amount"),
        period=period,
        timezone=timezone,
        action=action,
        warn_ratio=round(Decimal(str(warn_at)), 3),
    )
    opened = _ledger.opened(ledger, config)
    with database.writer(opened.paths, wait_s=30, now=opened.now) as connection:
        budgets.put(connection, new)
        budget_copy.keep(connection, opened.paths)
    terminal.notice(f"{workspace} may spend {format_money(new.amount)} USD a {period}")


@app.command("list", epilog="Example: embedctl usage budget list --json")
def budget_list(
    workspace: OnlyWorkspace = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List budgets, the ledger's and the settings', and how they stand."""
    _print_standings(ledger, config, workspace, _ledger.chosen_format(form, as_json))


@app.command("check", epilog="Example: embedctl usage budget check -w acme || echo look")
def budget_check(
    workspace: OnlyWorkspace = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Exit 0 when all is within budget, 5 past a warning line, 4 when a budget is used up."""
    standings = _print_standings(ledger, config, workspace, _ledger.chosen_format(form, as_json))
    names = {state: [s.budget.workspace for s in standings if s.state == state] for state in ("exceeded", "warn")}
    if names["exceeded"]:
        _ledger.after_result(BudgetReached(f"budget used up: {', '.join(names['exceeded'])}"))
    if names["warn"]:
        _ledger.after_result(BudgetWarning(f"budget past its warning line: {', '.join(names['warn'])}"))


def _with_batches(one: BudgetStatus, opened: _ledger.Opened) -> BudgetStatus:
    """What is under way in batches is at risk as well."""
    from embedctl.runs.pending import pending

    waiting = pending(opened.settings.paths, (one.budget.workspace,), ledger=str(opened.paths.database.absolute()))
    if waiting is None or waiting.cost_at_risk is None:
        return one
    return replace(one, spent=replace(one.spent, at_risk=one.spent.at_risk + waiting.cost_at_risk))


def _refuse_unknown(workspace: str, known: Collection[str]) -> None:
    """A workspace that nothing knows of has no budget because its name is misspelt.

    Raises:
        WrongUsage: It stands neither in the ledger nor in the settings; the nearest that does is named.
    """
    checked_name(workspace, "workspace")
    if workspace not in known:
        close = nearest(workspace, known)
        raise WrongUsage(
            f"no workspace {workspace!r} is in the ledger or in the settings",
            hint=f"did you mean {close}?" if close else f"known: {', '.join(sorted(known)[:10])}",
        )


def _print_standings(
    ledger: Path | None, config: Path | None, workspace: str | None, form: terminal.Format
) -> Sequence[BudgetStatus]:
    """How budgets stand, one workspace's or all; printed, and returned for who decides by it."""
    from embedctl.ledger import budgets, database

    opened = _ledger.opened(ledger, config)
    notes = _ledger.take_in(opened)
    extra = budgets.configured(opened.settings.workspaces)
    with database.reader(opened.paths, now=opened.now) as connection:
        standings = budgets.standings(connection, extra, workspace=workspace, now=opened.now)
        if workspace is not None and not standings:
            known = {*opened.settings.workspaces, opened.settings.options.workspace, *budgets.workspaces(connection)}
            _refuse_unknown(workspace, known)
            notes.append(f"{workspace} has no budget: `embedctl usage budget set -w {workspace} --amount USD` sets one")
    standings = [_with_batches(one, opened) for one in standings]
    keys = ("workspace", "period", "amount", "spent", "at_risk", "remaining", "used", "action", "state")
    rows = [each.as_dict() for each in standings]
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(k, k.replace("_", " ").capitalize(), "right" if k in keys[2:7] else "left")
                for k in keys
            ],
            rows=[row | {"used": f"{row['used_ratio']:.1%}"} for row in rows],
            envelope={"budgets": rows, "warnings": notes},
            footer=notes,
        ),
        form,
    )
    return standings

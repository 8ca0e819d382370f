"""`embedctl usage adjust`: a credit or a refund, entered into the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage._workspace import Workspace
from embedctl.errors import WrongUsage
from embedctl.records import format_money
from embedctl.settings.options import checked_name

app = typer.Typer()


@app.command(epilog='Example: embedctl usage adjust --credit 12.50 --provider voyage --reason "free allowance"')
def adjust(
    provider: Annotated[
        str, typer.Option("--provider", autocompletion=_completion.providers, help="Whose bill it is on.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the row.")],
    credit: Annotated[str | None, typer.Option("--credit", help="USD credited: an allowance, a voucher.")] = None,
    refund: Annotated[str | None, typer.Option("--refund", help="USD paid back.")] = None,
    workspace: Workspace = "default",
    model: Annotated[
        str, typer.Option("--model", "-m", autocompletion=_completion.models, help="Of which model.")
    ] = "*",
    on: Annotated[str | None, typer.Option("--on", help="Day or time it counts for (UTC; default: now).")] = None,
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Enter a credit or a refund: a negative row with a reason. Nothing that stands is changed."""
    from embedctl.ledger import adjustments, periods

    if (credit is None) == (refund is None):
        raise WrongUsage("either --credit or --refund")
    opened = _ledger.opened(ledger, config)
    _ledger.refuse_unknown_provider(opened, provider)
    kind: adjustments.Kind = "credit" if credit is not None else "refund"
    value = _ledger.typed_amount(credit or refund or "", f"--{kind}")
    at = periods.parse(on, periods.zone("UTC"), "--on") if on else opened.now
    row = adjustments.entry(
        kind,
        -value,
        workspace=checked_name(workspace, "workspace"),
        reason=reason,
        at=at,
        provider=provider,
        model=model,
    )
    adjustments.publish(opened.paths, [row], f"{kind}-{row.event_id}")
    for note in _ledger.take_in(opened):
        terminal.warning(note)
    if as_json:
        terminal.result({"event_id": row.event_id, "entry_kind": kind, "workspace": workspace, "cost": -value})
    else:
        terminal.notice(f"{kind} of {format_money(value)} USD entered for {workspace} on {provider}")

"""`embedctl usage reconcile`: the ledger beside the provider's own account."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage._period import Last, Since, Until
from embedctl.cli.usage._workspace import Workspace
from embedctl.settings.options import checked_name

app = typer.Typer()


@app.command(epilog="Example: embedctl usage reconcile --provider openai --since 2026-11-01 --file costs.csv")
def reconcile(
    provider: Annotated[
        str, typer.Option("--provider", autocompletion=_completion.providers, help="The provider's name in the ledger.")
    ],
    since: Since = None,
    until: Until = None,
    last: Last = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Its export: CSV or JSON with day, tokens, cost …; else asked for.")
    ] = None,
    write_true_up: Annotated[
        bool, typer.Option("--write-true-up", help="Enter what the money differs by, so that ledger = invoice.")
    ] = False,
    workspace: Workspace = "default",
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Compare the ledger with the provider's own account, by UTC day, model and account.

    Without --file OpenAI itself is asked, with the admin key in OPENAI_ADMIN_KEY; the last 30 days by default.
    """
    from embedctl.ledger import adjustments, database, periods
    from embedctl.reports import provider_export
    from embedctl.reports.reconcile import compare, record, true_ups

    opened = _ledger.opened(ledger, config)
    within = periods.chosen(since, until, last, periods.zone("UTC"), opened.now)
    checked_name(workspace, "workspace")
    if file is None:
        from embedctl.reports import provider_api

        within = provider_export.whole_days(within, opened.now)
        with provider_api.fetching(opened.settings, provider) as fetch:
            billed = provider_export.fetch_openai(fetch, within)
    else:
        billed = provider_export.read_export(file)
        _ledger.refuse_unknown_provider(opened, provider)
    notes = _ledger.take_in(opened)
    with database.writer(opened.paths, wait_s=30, now=opened.now) as connection:
        lines = compare(connection, provider, billed, within)
        record(connection, provider, lines, opened.now)
    entered = true_ups(provider, lines, workspace) if write_true_up else []
    for row in entered:
        adjustments.publish(opened.paths, [row], f"true_up-{row.event_id}")
    notes += _ledger.take_in(opened)
    keys = ("day", "model", "account", "provider_tokens", "confirmed", "unknown", "difference", "explained",
            "provider_cost", "ledger_cost", "cost_difference")  # fmt: skip
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(k, k.replace("_", " ").capitalize(), "left" if k in keys[:3] else "right") for k in keys
            ],
            rows=[line.as_dict() for line in lines],
            envelope={
                "provider": provider,
                "lines": [line.as_dict() for line in lines],
                "true_ups": [{"event_id": row.event_id, "cost": row.cost_provider} for row in entered],
                "warnings": notes,
            },
            footer=[*([f"{len(entered)} true-ups entered"] if write_true_up else []), *notes],
        ),
        _ledger.chosen_format(form, as_json),
    )

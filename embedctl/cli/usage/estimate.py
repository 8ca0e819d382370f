"""`embedctl usage estimate`: what embedding an input would take and cost."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, OverwriteFlag, with_options
from embedctl.cli._help import GroupedFlags

app = typer.Typer()


@app.command(
    cls=GroupedFlags,
    epilog="Example: embedctl usage estimate tickets.parquet -m openai:text-embedding-3-small --tier batch",
)
@with_options
def estimate(
    inputs: Annotated[list[str], typer.Argument(help="Files, globs, folders.", metavar="INPUT...")],
    *,
    tier: Annotated[
        Literal["standard", "batch"], typer.Option("--tier", help="At the price of this tier.")
    ] = "standard",
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Keep it in this file, for `usage diff FILE` after the run.", metavar="FILE"),
    ] = None,
    overwrite: OverwriteFlag = False,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
    flags: Mapping[str, Any],
) -> None:
    """Say what embedding an input would take and cost. Nothing is sent; nothing that exists is reused."""
    from embedctl import settings
    from embedctl.records import utc_now
    from embedctl.reports.estimates import UsageEstimate
    from embedctl.runs.job import JobRequest
    from embedctl.runs.run import Run
    from embedctl.storage import named

    if save is not None:
        named.check_free(save, overwrite=overwrite)

    loaded = settings.load(flags=flags, config=config, ledger=ledger)
    expected = Run(
        JobRequest(settings=loaded, inputs=inputs, kind="stream", stream=BytesIO(), command="usage estimate")
    ).estimate()
    provider, _, model = expected.model.partition(":")
    cost = expected.cost_batch if tier == "batch" else expected.cost
    unit = None if cost is None else cost / max(expected.tokens, 1)  # exact: the cost is a multiple of the tokens
    estimated = UsageEstimate(
        made_at=utc_now(),
        workspace=loaded.options.workspace,
        provider=provider,
        model=model,
        tier=tier,
        rows=expected.rows,
        texts=expected.texts,
        requests=expected.requests,
        tokens=expected.tokens,
        tokens_low=expected.tokens_low,
        tokens_high=expected.tokens_high,
        cost=cost,
        cost_low=None if unit is None else expected.tokens_low * unit,
        cost_high=None if unit is None else expected.tokens_high * unit,
    )
    if save is not None:
        named.write(save, terminal.document(estimated.as_dict()), overwrite=overwrite)
    warnings = []
    if expected.per_hour is not None:
        warnings = [f"{expected.model} costs {expected.per_hour:f} USD for each hour that its machine runs: unknown"]
    elif cost is None:
        warnings = [
            f"{expected.model} has no {tier} price: the cost is unknown until `embedctl prices set` tells one, "
            f"or price_as under [providers.{provider}] whose prices apply"
        ]
    column = loaded.options.workspace_column
    payer = f"by {estimated.workspace}" if column is None else terminal.who_pays(estimated.workspace, column)
    keys = ("rows", "texts", "requests", "tokens", "tokens_low", "tokens_high", "cost", "cost_low", "cost_high")
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, key.replace("_", " ").capitalize(), "right") for key in keys],
            rows=[estimated.as_dict()],
            envelope=estimated.as_dict() | {"warnings": warnings},
            title=f"Estimate for {expected.model} ({tier}), paid {payer}",
            footer=[f"! {line}" for line in warnings],
        ),
        _ledger.chosen_format(form, as_json),
    )

"""`embedctl doctor`: one look at everything that could be wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.errors import Degraded, EmbedctlError

app = typer.Typer()


@app.command(epilog="Example: embedctl doctor --online")
def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Ask providers for an answer, without a key and without a text.")
    ] = False,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Look at everything that could be wrong, and say what to do; exit 69 when something is.

    Version, paths, settings, model, keys (names only), providers, what is remembered of them, cache, spool, ledger,
    jobs, missing extras, proxy. It changes nothing, and costs nothing.
    """
    from embedctl.doctor import checks as look_at_everything
    from embedctl.doctor import unreadable_settings
    from embedctl.records import utc_now

    try:
        loaded = settings.load(config=config, ledger=ledger)
    except EmbedctlError as error:
        checks = unreadable_settings(error)
    else:
        _ledger.refuse_missing(replace(_ledger.of(loaded), by_flag=ledger is not None))
        checks = list(look_at_everything(loaded, online=online, now=utc_now()))
    rows = [check.as_dict() for check in checks]
    bad = [check.name for check in checks if check.state == "bad"]
    hints = [f"{check.name}: {check.hint}" for check in checks if check.hint and check.state != "ok"]
    columns = [
        terminal.Column("state", "State"),
        terminal.Column("check", "Check"),
        terminal.Column("detail", "Detail"),
    ]
    terminal.table(
        terminal.Table(
            columns=columns,
            rows=rows,
            envelope={
                "schema_version": 1,
                "status": "degraded" if bad else "ok",
                "checks": rows,
                "warnings": hints,
            },
            footer=[f"! {line}" for line in hints],
        ),
        _ledger.chosen_format(form, as_json),
    )
    if bad:
        _ledger.after_result(Degraded(f"degraded: {', '.join(bad)}"))

"""`embedctl doctor`: one look at everything that could be wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli._groups import SuggestingGroup
from embedctl.errors import Degraded, EmbedctlError

app = typer.Typer(cls=SuggestingGroup, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="Example: embedctl doctor --online", context_settings={"help_option_names": ["-h", "--help"]})
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
    from embedctl import doctor as examination
    from embedctl.records import utc_now

    try:
        found = settings.load(config=config, ledger=ledger)
    except EmbedctlError as error:
        checks = examination.unreadable_settings(error)
    else:
        checks = list(examination.checks(found, online=online, now=utc_now()))
    bad = [one.name for one in checks if one.state == "bad"]
    hints = [f"{one.name}: {one.hint}" for one in checks if one.hint and one.state != "ok"]
    columns = [
        terminal.Column("state", "State"),
        terminal.Column("check", "Check"),
        terminal.Column("detail", "Detail"),
    ]
    terminal.table(
        terminal.Table(
            columns=columns,
            rows=[one.as_dict() for one in checks],
            envelope={
                "schema_version": 1,
                "status": "degraded" if bad else "ok",
                "checks": [one.as_dict() for one in checks],
                "warnings": hints,
            },
            footer=[f"! {line}" for line in hints],
        ),
        _ledger.chosen_format(form, as_json),
    )
    if bad:
        _ledger.after_result(Degraded(f"degraded: {', '.join(bad)}"))

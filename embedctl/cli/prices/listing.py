"""`embedctl prices list`: the prices that hold now."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli._prices import price_book
from embedctl.cli.prices._table import print_prices
from embedctl.errors import WrongUsage, nearest

app = typer.Typer()


@app.command("list", epilog="Example: embedctl prices list --provider voyage")
def list_prices(
    provider: Annotated[
        str | None, typer.Option("--provider", autocompletion=_completion.providers, help="Only this provider.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also prices that no longer or do not yet hold.")] = False,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """List the prices that hold now."""
    opened = _ledger.opened(None, config)
    book = price_book(opened.settings)
    known = sorted({price.provider for price in book.prices})
    if provider is not None and provider not in known:
        close = nearest(provider, known)
        raise WrongUsage(
            f"no prices of provider {provider!r}",
            hint=f"did you mean {close}?" if close else f"known: {', '.join(known)}",
        )
    chosen = [p for p in book.prices if provider in (None, p.provider) and (all_ or p.holds(opened.now))]
    print_prices(chosen, _ledger.chosen_format(form, as_json))

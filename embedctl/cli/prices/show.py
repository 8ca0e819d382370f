"""`embedctl prices show`: the prices of a model, past and present."""

from __future__ import annotations

import typer

from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli._prices import price_book
from embedctl.cli.prices._table import Name, print_prices
from embedctl.errors import WrongUsage, nearest
from embedctl.ledger.prices import price_file

app = typer.Typer()


@app.command(epilog="Example: embedctl prices show openai:text-embedding-3-small")
def show(name: Name, form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Show all prices of a model, past and present."""
    book = price_book(_ledger.opened(None, config).settings)
    provider, model = price_file.split(name)
    chosen = [price for price in book.prices if (price.provider, price.model) == (provider, model)]
    if not chosen:
        close = nearest(name, sorted({f"{price.provider}:{price.model}" for price in book.prices}))
        raise WrongUsage(
            f"no price of {name} is known",
            hint=f"did you mean {close}?" if close else f"`embedctl prices set {name} USD` tells one",
        )
    print_prices(chosen, _ledger.chosen_format(form, as_json))

"""`embedctl prices set`: a price of one's own."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag
from embedctl.cli.prices._table import Name, plain_usd
from embedctl.errors import nearest
from embedctl.ledger import periods
from embedctl.ledger.prices import price_file
from embedctl.routing.names import known_providers

app = typer.Typer()


@app.command("set", epilog="Example: embedctl prices set eu:text-embedding-3-small 0.018 --from 2026-11-01")
def set_price(
    name: Name,
    usd_per_million: Annotated[str, typer.Argument(metavar="USD", help="Per million units; 0 means free.")],
    start: Annotated[
        str | None, typer.Option("--from", help="Day or time from which it holds (UTC; default: today).")
    ] = None,
    tier: Annotated[str, typer.Option(help="standard, batch …")] = "standard",
    region: Annotated[str, typer.Option(help="'*' is any.")] = "*",
    meter: Annotated[str, typer.Option(help="What is counted.")] = "input_token",
    kind: Annotated[
        Literal["contract", "list"], typer.Option(help="contract: what you pay; list: what everyone is asked for.")
    ] = "contract",
    source: Annotated[str, typer.Option(help="Who says so.")] = "set by hand",
    config: ConfigFlag = None,
) -> None:
    """Tell a price of your own; events of the past get it with `usage reprice`."""
    opened = _ledger.opened(None, config)
    since = periods.parse(start or opened.now.date().isoformat(), periods.zone("UTC"), "--from")
    price = price_file.new_price(
        name, usd_per_million, tier=tier, region=region, meter=meter, kind=kind, source=source, start=since
    )
    price_file.add(opened.paths.price_file, [price])
    known = known_providers(opened.settings)
    if price.provider not in known:
        close = nearest(price.provider, known)
        terminal.warning(
            f"no provider {price.provider!r} is known here"
            + (f" (did you mean {close}?)" if close else "")
            + ": nothing has this price until there is one"
        )
    terminal.notice(
        f"{name} costs {plain_usd(price.usd_per_million)} USD per million from {since:%Y-%m-%d} on; "
        "`embedctl usage reprice --apply` rates what is in the ledger since then"
    )

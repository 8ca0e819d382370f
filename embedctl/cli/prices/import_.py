"""`embedctl prices import`: prices of lists that others keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli._prices import price_book
from embedctl.ledger.prices import price_file
from embedctl.ledger.prices.imported import accepted, judge, read_offers

app = typer.Typer()


@app.command("import", epilog="Example: embedctl prices import model_prices.json --second genai.json")
def import_prices(
    file: Annotated[Path, typer.Argument(help="litellm's or genai-prices' JSON list.")],
    second: Annotated[
        Path | None, typer.Option("--second", help="Another such list; a price both name within 1 % goes in.")
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Take the first list's word for new and differing prices.")
    ] = False,
    provider: Annotated[
        str | None, typer.Option("--provider", autocompletion=_completion.providers, help="Only this provider.")
    ] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Compare another list with ours, and take over what two sources agree on, or what you confirm."""
    opened = _ledger.opened(None, config)
    book = price_book(opened.settings)
    offered = [price for price in read_offers(file, now=opened.now) if provider in (None, price.provider)]
    others = read_offers(second, now=opened.now) if second else []
    offers = judge(offered, book, others, now=opened.now)
    taken = accepted(offers, confirm=confirm)
    if taken:
        price_file.add(opened.paths.price_file, taken)
    rows: list[dict[str, Any]] = [
        price_file.shown(offer.price)
        | {
            "verdict": offer.verdict,
            "ours": None if offer.ours is None else offer.ours.usd_per_million,
            "taken": offer.price in taken,
        }
        for offer in offers
        if offer.verdict != "same"
    ]
    headings = {"provider": "Provider", "model": "Model", "tier": "Tier", "ours": "Ours", "usd_per_million": "Theirs",
                "verdict": "Verdict", "taken": "Taken"}  # fmt: skip
    same = len(offers) - len(rows)
    left = len(rows) - len(taken)
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(key, text, "right" if key in ("ours", "usd_per_million") else "left")
                for key, text in headings.items()
            ],
            rows=rows,
            envelope={"same": same, "taken": len(taken), "offers": rows},
            footer=[
                f"{same} the same, {len(taken)} taken, {left} left"
                + (" (a second source that agrees, or --confirm, takes them)" if left else "")
            ],
        ),
        _ledger.chosen_format(form, as_json),
    )

"""`embedctl prices`: what things cost, since when, and who says so."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli._groups import Group, nearest
from embedctl.errors import RowsFailed, WrongUsage
from embedctl.ledger import periods, prices
from embedctl.ledger.prices import imported, price_file
from embedctl.ledger.prices.price import Price, named
from embedctl.routing.names import known_providers

app = Group(
    help="What embeddings cost, since when, and who says so.",
    epilog="Example: embedctl prices show openai:text-embedding-3-small",
)

Text = Optional[str]  # noqa: UP045 - typer reads it
Name = Annotated[str, typer.Argument(metavar="PROVIDER:MODEL", help="Which model, where.")]
_COLUMNS = {"provider": "Provider", "model": "Model", "tier": "Tier", "region": "Region", "kind": "Kind",
            "usd": "USD per million", "valid_from": "From", "valid_to": "To", "confidence": "Confidence",
            "source": "Source"}  # fmt: skip


def _print(found: list[Price], form: terminal.Format, title: str | None = None) -> None:
    rows = [price_file.shown(price) for price in found]
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, name, "right" if key == "usd" else "left") for key, name in _COLUMNS.items()],
            rows=[row | {"usd": "free" if row["is_free"] else _usd(row["usd_per_million"])} for row in rows],
            envelope={"currency": "USD", "prices": rows},
            title=title,
        ),
        form,
    )


def _usd(value: Decimal) -> str:
    return format(value.normalize(), "f")


@app.command("list", epilog="Example: embedctl prices list --provider voyage")
def list_(
    provider: Annotated[Text, typer.Option("--provider", help="Only this provider.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also prices that no longer or do not yet hold.")] = False,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """List the prices that hold now."""
    found = _ledger.opened(None, config)
    book = prices.load(prices.price_texts(found.paths.price_file))
    known = sorted({price.provider for price in book.prices})
    if provider is not None and provider not in known:
        close = nearest(provider, known)
        raise WrongUsage(
            f"no prices of provider {provider!r}",
            hint=f"did you mean {close}?" if close else f"known: {', '.join(known)}",
        )
    wanted = [p for p in book.prices if provider in (None, p.provider) and (all_ or p.holds(found.now))]
    _print(wanted, _ledger.chosen_format(form, as_json))


@app.command(epilog="Example: embedctl prices show openai:text-embedding-3-small")
def show(name: Name, form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Show all prices of a model, past and present."""
    found = _ledger.opened(None, config)
    book = prices.load(prices.price_texts(found.paths.price_file))
    provider, model = price_file.split(name)
    wanted = [price for price in book.prices if (price.provider, price.model) == (provider, model)]
    if not wanted:
        close = nearest(name, sorted({f"{price.provider}:{price.model}" for price in book.prices}))
        raise WrongUsage(
            f"no price of {name} is known",
            hint=f"did you mean {close}?" if close else f"`embedctl prices set {name} USD` tells one",
        )
    _print(wanted, _ledger.chosen_format(form, as_json))


@app.command("set", epilog="Example: embedctl prices set eu:text-embedding-3-small 0.018 --from 2026-11-01")
def set_(
    name: Name,
    usd_per_million: Annotated[str, typer.Argument(metavar="USD", help="Per million units; 0 means free.")],
    start: Annotated[
        Text, typer.Option("--from", help="Day or time from which it holds (UTC; default: today).")
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
    found = _ledger.opened(None, config)
    since = periods.parse(start or found.now.date().isoformat(), periods.zone("UTC"), "--from")
    new = price_file.new_price(
        name, usd_per_million, tier=tier, region=region, meter=meter, kind=kind, source=source, start=since
    )
    price_file.add(found.paths.price_file, [new])
    if new.provider not in (known := known_providers(found.settings)):
        close = nearest(new.provider, known)
        terminal.warning(
            f"no provider {new.provider!r} is known here"
            + (f" (did you mean {close}?)" if close else "")
            + ": nothing has this price until there is one"
        )
    terminal.notice(
        f"{name} costs {_usd(new.usd_per_million)} USD per million from {since:%Y-%m-%d} on; "
        "`embedctl usage reprice --apply` rates what is in the ledger since then"
    )


@app.command("import", epilog="Example: embedctl prices import model_prices.json --second genai.json")
def import_(
    file: Annotated[Path, typer.Argument(help="litellm's or genai-prices' JSON list.")],
    second: Annotated[
        Optional[Path], typer.Option("--second", help="Another such list; a price both name within 1 % goes in.")  # noqa: UP045
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Take the first list's word for new and differing prices.")
    ] = False,
    provider: Annotated[Text, typer.Option("--provider", help="Only this provider.")] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Compare another list with ours, and take over what two sources agree on, or what you confirm."""
    found = _ledger.opened(None, config)
    book = prices.load(prices.price_texts(found.paths.price_file))
    offered = [p for p in imported.read_offers(file, now=found.now) if provider in (None, p.provider)]
    others = imported.read_offers(second, now=found.now) if second else []
    offers = imported.judge(offered, book, others, now=found.now)
    taken = imported.accepted(offers, confirm=confirm)
    if taken:
        price_file.add(found.paths.price_file, taken)
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


@app.command(epilog="Example: embedctl prices check")
def check(
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when there is anything to look at.")] = False,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Check all prices: overlaps, gaps, outliers, zeros that are not free. Exit 78 when one cannot be."""
    found = _ledger.opened(None, config)
    book = prices.load(prices.price_texts(found.paths.price_file))
    remarks = list(price_file.remarks(book, now=found.now))
    rows = [{"price": named(r.price), "kind": r.kind, "remark": r.sentence} for r in remarks]
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column("price", "Price"),
                terminal.Column("kind", "Kind"),
                terminal.Column("remark", "Remark"),
            ],
            rows=rows,
            envelope={"prices": len(book.prices), "remarks": rows},
            footer=[f"{len(book.prices)} prices, {len(rows)} to look at"],
        ),
        _ledger.chosen_format(form, as_json),
    )
    if rows and strict:
        _ledger.after_result(RowsFailed(f"{len(rows)} prices to look at (--strict)"))

"""`embedctl models choose`: a model for a wish, and what it would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.errors import NotAllowed
from embedctl.records import format_money

if TYPE_CHECKING:
    from embedctl.providers.catalog import ModelEntry
    from embedctl.settings import Settings

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
_HELP = {"help_option_names": ["-h", "--help"]}
_SAMPLE_BYTES = 1_000_000


@app.command(epilog="Example: embedctl models choose tickets.csv --cost low --multilingual", context_settings=_HELP)
def choose(
    inputs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="What would be embedded, to price each candidate.", metavar="[INPUT...]"),
    ] = None,
    cost: Annotated[Optional[Literal["free", "low"]], typer.Option("--cost", help="What it may cost.")] = None,  # noqa: UP045
    quality: Annotated[Optional[Literal["highest"]], typer.Option("--quality", help="The best rated.")] = None,  # noqa: UP045
    speed: Annotated[Optional[Literal["fastest"]], typer.Option("--speed", help="The fastest rated.")] = None,  # noqa: UP045
    multilingual: Annotated[bool, typer.Option("--multilingual", help="Made for many languages.")] = False,
    text_column: Annotated[Optional[str], typer.Option("--text-column", help="Table column to embed.")] = None,  # noqa: UP045
    workspace: Annotated[Optional[str], typer.Option("--workspace", "-w", help="Whose allow-list applies.")] = None,  # noqa: UP045
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Choose a model by cost, quality, speed or languages, in this order, and say why."""
    from embedctl.providers.catalog import choosing
    from embedctl.routing import allow
    from embedctl.routing.fallback import ChainEntry, allowed

    found = settings.load(flags={"workspace": workspace, "text_column": text_column}, config=config)
    lists = allow.lists(found, found.options.workspace)

    def may(one: ModelEntry) -> bool:
        return bool(allowed([ChainEntry(provider=one.provider, model=one.name, canonical=one.canonical)], lists)[0])

    wish = choosing.Wish(cost=cost, quality=quality, speed=speed, multilingual=multilingual)
    choice = choosing.choose(wish, may)
    if not choice.offers:
        raise NotAllowed(
            f"{choice.why}; but no list allows a provider that serves it",
            hint="`embedctl models list` shows what is allowed",
        )
    rows = _rows(found, choice.offers, _size(inputs, found) if inputs else None)
    best = next((row for row in rows if row["key"] != "missing"), rows[0])
    unmet = list(choice.unmet)
    if best["key"] == "missing":
        unmet.append(f"{best['model']} needs a key: set {best['key_variable']}")
    envelope = {
        "schema_version": 1,
        "chosen": best["model"],
        "why": choice.why,
        "candidates": rows,
        "warnings": unmet,
    }
    columns = [
        terminal.Column("model", "ModelEntry"),
        terminal.Column("dimensions", "Dimensions", "right"),
        terminal.Column("quality", "Quality"),
        terminal.Column("speed", "Speed"),
        terminal.Column("usd_per_million", "USD/1M tokens", "right"),
        *(
            [terminal.Column("tokens", "Tokens ~", "right"), terminal.Column("cost", "Cost USD ~", "right")]
            if inputs
            else []
        ),
        terminal.Column("key", "Key"),
    ]
    footer = [f"chosen: {best['model']} ({choice.why})", *(f"! {line}" for line in unmet)]
    content = terminal.Table(columns=columns, rows=rows, envelope=envelope, footer=footer)
    terminal.table(content, "json" if as_json else form)


def _rows(found: Settings, offers: Sequence[ModelEntry], size: tuple[list[str], int] | None) -> list[dict[str, Any]]:
    from embedctl import tokens
    from embedctl.ledger import prices
    from embedctl.ledger.prices.price import cost
    from embedctl.providers import catalog
    from embedctl.records import utc_now
    from embedctl.routing import status

    book = prices.load(prices.price_texts(found.paths.price_file))
    stand: Mapping[str, status.ProviderStatus] = {one.name: one for one in status.standings(found)}
    rows = []
    for one in offers:
        place, known = catalog.providers().get(one.provider), stand.get(one.provider)
        held = None
        if place and place.price_as:
            held = book.price_at(place.price_as, one.name, at=utc_now(), place=one.provider)
        free = bool(place and place.free)
        row: dict[str, Any] = {
            "model": one.id,
            "canonical": one.canonical,
            "dimensions": one.dimensions,
            "quality": one.quality,
            "speed": one.speed,
            "multilingual": one.multilingual,
            "usd_per_million": "0.00" if free else format_money(held.usd_per_million) if held else None,
            "key": known.key if known else None,
            "key_variable": " or ".join(known.key_variables) if known else None,
        }
        if size is not None:
            sample, content_bytes = size
            sampled = sum(len(text.encode("utf-8", "surrogatepass")) for text in sample)
            counted = sum(tokens.counter(one.tokenizer).count(sample))
            row["tokens"] = counted * content_bytes // sampled if sampled else 0
            unit = None if free or held is None else held.usd_per_million
            row["cost"] = "0.00" if free else None if unit is None else format_money(cost(row["tokens"], unit))
        rows.append(row)
    return rows


def _size(inputs: Sequence[str], found: Settings) -> tuple[list[str], int]:
    """A sample of the texts, about a megabyte of them, and how many bytes all of them are."""
    import tempfile
    from pathlib import Path

    from embedctl.inputs import source as sources

    options = found.options
    with tempfile.TemporaryDirectory() as folder:
        asked = sources.ReadOptions(
            text_column=options.text_column,
            id_column=options.id_column,
            keep="none",
            split=options.split,
            encoding=options.encoding,
            max_row_bytes=options.max_row_bytes,
            spool=Path(folder),
        )
        sample: list[str] = []
        sampled = content_bytes = 0
        for block in sources.open_input(inputs, asked, stdin=None).blocks():
            for text in block.texts:
                if text is None or not text.strip():
                    continue
                size = len(text.encode("utf-8", "surrogatepass"))
                content_bytes += size
                if sampled < _SAMPLE_BYTES:
                    sample.append(text)
                    sampled += size
    return sample, content_bytes

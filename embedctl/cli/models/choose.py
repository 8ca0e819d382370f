"""`embedctl models choose`: a model for a wish, and what it would cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedctl import settings, terminal
from embedctl.cli import _completion
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.errors import NotAllowed
from embedctl.records import format_money

if TYPE_CHECKING:
    from embedctl.providers.catalog import ModelEntry
    from embedctl.settings import Settings

app = typer.Typer()
_SAMPLE_BYTES = 1_000_000


@app.command(epilog="Example: embedctl models choose tickets.csv --cost low --multilingual")
def choose(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="What would be embedded, to price each candidate.", metavar="[INPUT...]"),
    ] = None,
    cost: Annotated[Literal["free", "low"] | None, typer.Option("--cost", help="What it may cost.")] = None,
    quality: Annotated[Literal["highest"] | None, typer.Option("--quality", help="The best rated.")] = None,
    speed: Annotated[Literal["fastest"] | None, typer.Option("--speed", help="The fastest rated.")] = None,
    multilingual: Annotated[bool, typer.Option("--multilingual", help="Made for many languages.")] = False,
    text_column: Annotated[str | None, typer.Option("--text-column", help="Table column to embed.")] = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", autocompletion=_completion.workspaces, help="Whose allow-list applies."),
    ] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Choose a model by cost, quality, speed or languages, in this order, and say why."""
    from embedctl.providers.catalog import choosing
    from embedctl.routing import allow
    from embedctl.routing.fallback import ChainEntry, allowed

    loaded = settings.load(flags={"workspace": workspace, "text_column": text_column}, config=config)
    lists = allow.lists(loaded, loaded.options.workspace)

    def is_allowed(model: ModelEntry) -> bool:
        entry = ChainEntry(provider=model.provider, model=model.name, canonical=model.canonical)
        return bool(allowed([entry], lists)[0])

    wish = choosing.Wish(cost=cost, quality=quality, speed=speed, multilingual=multilingual)
    choice = choosing.choose(wish, is_allowed)
    if not choice.offers:
        raise NotAllowed(
            f"{choice.why}; but no list allows a provider that serves it",
            hint="`embedctl models list` shows what is allowed",
        )
    rows = _rows(loaded, choice.offers, _sample(inputs, loaded) if inputs else None)
    best = next((row for row in rows if row["key"] != "missing"), rows[0])
    unmet = list(choice.unmet)
    if best["key"] == "missing":
        unmet.append(f"{best['model']} needs a key: set {best['key_variable']}")
    look = f"embedctl models compare {shlex.join(inputs or ['INPUT'])} --candidates {best['model']},MODEL"
    envelope = {
        "schema_version": 1,
        "chosen": best["model"],
        "why": choice.why,
        "candidates": rows,
        "next": look,
        "warnings": [*unmet, *choice.lost],
    }
    columns = [
        terminal.Column("model", "Model"),
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
    footer = [
        f"chosen: {best['model']} ({choice.why})",
        f"whether it is good enough on your texts: {look}",
        *(f"! {line}" for line in (*unmet, *choice.lost)),
    ]
    content = terminal.Table(columns=columns, rows=rows, envelope=envelope, footer=footer)
    terminal.table(content, "json" if as_json else form)


def _rows(
    settings: Settings, models: Sequence[ModelEntry], sample: tuple[list[str], int] | None
) -> list[dict[str, Any]]:
    """Each candidate, with its price and whether its key is set; with a sample, what the whole input would cost."""
    from embedctl import tokens
    from embedctl.cli._prices import price_book
    from embedctl.ledger.prices.price import cost
    from embedctl.providers import catalog
    from embedctl.records import utc_now
    from embedctl.routing.status import standings

    book = price_book(settings)
    statuses = {status.name: status for status in standings(settings)}
    rows = []
    for model in models:
        provider, status = catalog.providers().get(model.provider), statuses.get(model.provider)
        price = None
        if provider and provider.price_as:
            price = book.price_at(provider.price_as, model.name, at=utc_now(), place=model.provider)
        free = bool(provider and provider.free)
        row: dict[str, Any] = {
            "model": model.id,
            "canonical": model.canonical,
            "dimensions": model.dimensions,
            "quality": model.quality,
            "speed": model.speed,
            "multilingual": model.multilingual,
            "usd_per_million": "0.00" if free else format_money(price.usd_per_million) if price else None,
            "key": status.key if status else None,
            "key_variable": " or ".join(status.key_variables) if status else None,
        }
        if sample is not None:
            texts, input_bytes = sample
            sample_bytes = sum(map(_size, texts))
            sample_tokens = sum(tokens.counter(model.tokenizer).count(texts))
            row["tokens"] = sample_tokens * input_bytes // sample_bytes if sample_bytes else 0
            unit = None if free or price is None else price.usd_per_million
            row["cost"] = "0.00" if free else None if unit is None else format_money(cost(row["tokens"], unit))
        rows.append(row)
    return rows


def _sample(inputs: Sequence[str], settings: Settings) -> tuple[list[str], int]:
    """About a megabyte of the texts, and how many bytes all of them are."""
    import tempfile
    from pathlib import Path

    from embedctl.inputs import ALIKE, ReadOptions, open_input
    from embedctl.records import is_blank

    options = settings.options
    with tempfile.TemporaryDirectory() as folder:
        read = ReadOptions(
            keep="none",
            spool=Path(folder),
            on_bad_file=options.on_bad_file,
            stores=settings.stores,
            **{name: getattr(options, name) for name in ALIKE},
        )
        sample: list[str] = []
        sample_bytes = input_bytes = 0
        for block in open_input(inputs, read, stdin=None).blocks():
            for text in block.texts:
                if text is None or is_blank(text):
                    continue
                size = _size(text)
                input_bytes += size
                if sample_bytes < _SAMPLE_BYTES:
                    sample.append(text)
                    sample_bytes += size
    return sample, input_bytes


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))

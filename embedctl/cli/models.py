"""`embedctl models`: what can be asked for, and what is known of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedctl import settings, terminal
from embedctl.cli import models_choose, models_local, nearest
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli._groups import ListingGroup
from embedctl.errors import WrongUsage
from embedctl.ledger import prices
from embedctl.providers import catalog
from embedctl.providers.catalog import ModelEntry
from embedctl.records import format_money, utc_now
from embedctl.routing import allow, chain
from embedctl.routing.fallback import ChainEntry, allowed
from embedctl.settings import Settings

app = typer.Typer(cls=ListingGroup, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(models_choose.app)
app.add_typer(models_local.app)
_HELP = {"help_option_names": ["-h", "--help"]}


@app.callback(epilog="Example: embedctl models show text-embedding-3-small", context_settings=_HELP)
def _models() -> None:
    """List, show and choose models; pull and warm up local ones."""


@app.command("list", epilog="Example: embedctl models list --provider openai", context_settings=_HELP)
def list_models(
    provider: Annotated[str | None, typer.Option("--provider", help="Only models of this provider.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Retired models too, and those no built-in provider serves.")
    ] = False,
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Whose allow-list applies.")] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Models the catalog knows, with width, limit, price, and whether they may be used."""
    found = settings.load(flags={"workspace": workspace}, config=config)
    if provider is not None and provider not in chain.known_providers(found):
        close = nearest(provider, chain.known_providers(found))
        raise WrongUsage(f"unknown provider: {provider!r}", hint=f"did you mean {close!r}?" if close else None)
    chosen = [
        model
        for model in catalog.models()
        if provider in (None, model.provider) and (everything or (model.served and model.status != "retired"))
    ]
    book = _prices(found)
    rows = [_row(model, found, book) for model in chosen]
    lists = allow.lists(found, found.options.workspace)
    envelope = {
        "schema_version": 1,
        "data": rows,
        "allowed_providers": _named(rule.providers for rule in lists),
        "allowed_models": _named(rule.models for rule in lists),
        "warnings": [],
    }
    columns = [
        terminal.Column("model", "ModelEntry"),
        terminal.Column("provider", "Provider"),
        terminal.Column("dimensions", "Dimensions", "right"),
        terminal.Column("max_tokens", "Max tokens", "right"),
        terminal.Column("usd_per_million", "USD/1M tokens", "right"),
        terminal.Column("status", "Status"),
        terminal.Column("allowed", "Allowed"),
        terminal.Column("default", "Default"),
    ]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)


@app.command(epilog="Example: embedctl models show openai:text-embedding-3-small", context_settings=_HELP)
def show(
    model: Annotated[str, typer.Argument(help="Model, as NAME or PROVIDER:NAME.")],
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Everything known of a model, where it was read, and what nobody has verified."""
    found = settings.load(flags={"model": model}, config=config, ledger=ledger)
    provider, name = chain.asked_for(found)
    entry = catalog.find(provider, name)
    if entry is None:
        raise WrongUsage(
            f"the catalog does not know {provider}:{name}",
            hint="it can be used all the same: its width is learnt from the first answer, its price is unknown",
        )
    facts = {**_row(entry, found, _prices(found)), **_facts(entry)}
    others = [one.id for one in catalog.serving(entry.canonical) if one.id != entry.id]
    facts["also_served_by"] = ", ".join(others) or None
    rows = [
        {"fact": key, "value": _text(value), "sure": "UNVERIFIED" if key in entry.unverified else ""}
        for key, value in facts.items()
    ]
    envelope = {"schema_version": 1, "model": facts, "unverified": list(entry.unverified), "warnings": []}
    columns = [terminal.Column("fact", "Fact"), terminal.Column("value", "Value"), terminal.Column("sure", "How sure")]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)


def _prices(found: Settings) -> prices.PriceBook:
    return prices.load(prices.price_texts(found.paths.price_file))


def _row(model: ModelEntry, found: Settings, book: prices.PriceBook) -> dict[str, Any]:
    entry = ChainEntry(provider=model.provider, model=model.name, canonical=model.canonical)
    lists = allow.lists(found, found.options.workspace)
    place = catalog.providers().get(model.provider)
    price: Any = None
    if place and place.free:
        price = "free"
    elif place and place.price_as:
        held = book.price_at(place.price_as, model.name, at=utc_now())
        price = format_money(held.usd_per_million) if held else None
    default = catalog.default_model(model.provider)
    return {
        "provider": model.provider,
        "model": model.name,
        "canonical": model.canonical,
        "dimensions": model.dimensions,
        "max_tokens": model.max_tokens,
        "usd_per_million": price,
        "status": model.status,
        "allowed": bool(allowed([entry], lists)[0]),
        "default": default is not None and default.id == model.id,
    }


def _facts(model: ModelEntry) -> dict[str, Any]:
    widths = model.dimensions_allowed
    span = f"{widths.start} to {widths.stop - 1}" if isinstance(widths, range) else ", ".join(map(str, widths))
    return {
        "revision": model.revision,
        "dimensions_allowed": span or None,
        "reducible": model.reducible,
        "max_items_per_request": model.limits.items,
        "max_tokens_per_request": model.limits.tokens,
        "max_bytes_per_request": model.limits.bytes,
        "tokenizer": model.tokenizer,
        "usage_mode": model.usage_mode,
        "input_types": ", ".join(model.input_types) or None,
        "prefixes": dict(model.prefixes) or None,
        "normalized": model.normalized,
        "retires": model.retires,
        "quality": model.quality,
        "speed": model.speed,
        "cost_class": model.cost_class,
        "multilingual": model.multilingual,
        "bundled": model.bundled,
        "sources": dict(model.sources) or None,
        "notes": model.notes or None,
    }


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {entry!r}" if "prefix" in key else f"{key}: {entry}" for key, entry in value.items())
    return value


def _named(lists: Any) -> list[str] | None:
    """What all lists allow together; None when none of them limits anything."""
    limits = [names for names in lists if names is not None]
    return sorted(frozenset.intersection(*limits)) if limits else None

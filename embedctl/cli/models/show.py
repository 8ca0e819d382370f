"""`embedctl models show`: everything known of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedctl import settings, terminal
from embedctl.cli import _completion
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.errors import WrongUsage

if TYPE_CHECKING:
    from embedctl.ledger.prices import PriceBook
    from embedctl.providers.catalog import ModelEntry
    from embedctl.settings import Settings

app = typer.Typer()


@app.command(epilog="Example: embedctl models show openai:text-embedding-3-small")
def show(
    model: Annotated[str, typer.Argument(help="Model, as NAME or PROVIDER:NAME.", autocompletion=_completion.models)],
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Everything known of a model, where it was read, and what nobody has verified."""
    from embedctl.cli._prices import price_book
    from embedctl.cli.models._row import row
    from embedctl.providers import catalog
    from embedctl.providers.catalog import choosing
    from embedctl.routing.names import asked_for

    loaded = settings.load(flags={"model": model}, config=config, ledger=ledger)
    provider, name = asked_for(loaded)
    entry = catalog.find(provider, name)
    book = price_book(loaded)
    if entry is not None:
        facts = {**row(entry, loaded, book), **_facts(entry)}
        others = [other.id for other in catalog.serving(entry.canonical) if other.id != entry.id]
        facts["also_served_by"] = ", ".join(others) or None
    else:
        facts = _of_own_place(loaded, book, provider, name)
    unverified = entry.unverified if entry else ()
    rows = [
        {"fact": key, "value": _text(value), "sure": "UNVERIFIED" if key in unverified else ""}
        for key, value in facts.items()
    ]
    lost = [choosing.STATIC] if provider == "static" else []
    envelope = {"schema_version": 1, "model": facts, "unverified": list(unverified), "warnings": lost}
    columns = [terminal.Column("fact", "Fact"), terminal.Column("value", "Value"), terminal.Column("sure", "How sure")]
    content = terminal.Table(columns=columns, rows=rows, envelope=envelope, footer=[f"! {line}" for line in lost])
    terminal.table(content, "json" if as_json else form)


def _of_own_place(settings: Settings, book: PriceBook, provider: str, name: str) -> dict[str, Any]:
    """What is known of a model that the catalog does not know.

    Raises:
        WrongUsage: Nothing.
    """
    from embedctl.cli.models import _own

    for one in _own.rows(settings, book):
        if (one["provider"], one["model"]) == (provider, name):
            return one
    raise WrongUsage(
        f"the catalog does not know {provider}:{name}",
        hint="it can be used all the same: its width is learnt from the first answer, "
        "its price is unknown until `embedctl prices set` tells it",
    )


def _facts(model: ModelEntry) -> dict[str, Any]:
    """What the list does not say."""
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
    """A fact for people; a mapping in one line."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {entry!r}" if "prefix" in key else f"{key}: {entry}" for key, entry in value.items())
    return value

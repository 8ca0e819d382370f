"""`embedctl models list`: the models of the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli import _completion
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.errors import WrongUsage, nearest

app = typer.Typer()


@app.command("list", epilog="Example: embedctl models list --provider openai")
def list_models(
    provider: Annotated[
        str | None,
        typer.Option("--provider", autocompletion=_completion.providers, help="Only models of this provider."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Retired models too, and those no built-in provider serves.")
    ] = False,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", autocompletion=_completion.workspaces, help="Whose allow-list applies."),
    ] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Models of the catalog, of your own places, and pulled ones: width, limit, price, and whether they may be used."""
    from embedctl.cli._prices import price_book
    from embedctl.cli.models import _own
    from embedctl.cli.models._row import row
    from embedctl.providers import catalog
    from embedctl.providers.catalog import choosing
    from embedctl.routing import allow
    from embedctl.routing.names import known_providers

    loaded = settings.load(flags={"workspace": workspace}, config=config)
    providers = known_providers(loaded)
    if provider is not None and provider not in providers:
        close = nearest(provider, providers)
        raise WrongUsage(f"unknown provider: {provider!r}", hint=f"did you mean {close!r}?" if close else None)
    models = [
        model
        for model in catalog.models()
        if provider in (None, model.provider) and (everything or (model.served and model.status != "retired"))
    ]
    book = price_book(loaded)
    own = [one for one in _own.rows(loaded, book) if provider in (None, one["provider"])]
    rows = [*own, *(row(model, loaded, book) for model in models)]
    lists = allow.lists(loaded, loaded.options.workspace)
    lost = [choosing.STATIC] if any(one["provider"] == "static" for one in rows) else []
    envelope = {
        "schema_version": 1,
        "data": rows,
        "allowed_providers": _allowed_by_all(rule.providers for rule in lists),
        "allowed_models": _allowed_by_all(rule.models for rule in lists),
        "warnings": lost,
    }
    columns = [
        terminal.Column("model", "Model"),
        terminal.Column("provider", "Provider"),
        terminal.Column("dimensions", "Dimensions", "right"),
        terminal.Column("max_tokens", "Max tokens", "right"),
        terminal.Column("usd_per_million", "USD/1M tokens", "right"),
        terminal.Column("status", "Status"),
        terminal.Column("allowed", "Allowed"),
        terminal.Column("default", "Default"),
    ]
    content = terminal.Table(columns=columns, rows=rows, envelope=envelope, footer=[f"! {line}" for line in lost])
    terminal.table(content, "json" if as_json else form)


def _allowed_by_all(lists: Iterable[frozenset[str] | None]) -> list[str] | None:
    """What all lists allow together; None when none of them limits anything."""
    limits = [names for names in lists if names is not None]
    return sorted(frozenset.intersection(*limits)) if limits else None

"""`embedctl providers test`: one short text, to see whether a provider answers and what that costs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli import _completion
from embedctl.cli._flags import ConfigFlag, JsonFlag, LedgerFlag, pairs
from embedctl.cli.providers._names import Name, WorkspaceFlag
from embedctl.errors import TextRefused
from embedctl.records import format_money

if TYPE_CHECKING:
    from embedctl.settings import Settings

app = typer.Typer()
_TEXT = "One short text, to see whether it works."


@app.command("test", epilog="Example: embedctl providers test openai -m text-embedding-3-small")
def try_out(
    name: Name,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", autocompletion=_completion.models, help="Model to ask for (default: the provider's own)."
        ),
    ] = None,
    workspace: WorkspaceFlag = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", help="K=V kept with the usage event; repeatable.", metavar="K=V"),
    ] = None,
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Send one short text to a provider, say what came back and what it costs.

    It is in the ledger like every other call, with purpose `test`.
    """
    import asyncio

    from embedctl.cli import _ledger
    from embedctl.routing.chain import chain as chain_of
    from embedctl.routing.names import checked_provider
    from embedctl.runs import adhoc
    from embedctl.telemetry.watching import watched

    flags = {
        "provider": name,
        "model": model,
        "workspace": workspace,
        "tag": pairs(tag) if tag else None,
        "fallback": "off",
        "retries": 0,
        "max_wait": 10,
        "timeout": 30,
    }
    loaded = settings.load(flags=flags, config=config, ledger=ledger)
    checked_provider(loaded, name)
    chain = chain_of(_without_other_model(loaded))
    started = time.monotonic()
    try:
        text = chain.first.prefix + _TEXT
        command = f"providers test {name}"
        with watched(loaded) as told:
            answer = asyncio.run(adhoc.embed(loaded, chain, [text], purpose="test", command=command, observer=told))
    finally:
        _ledger.book(loaded)
    spent, seconds = answer.spending, time.monotonic() - started
    for refused in answer.refusals.values():
        raise TextRefused(f"{name} refuses a plain text: {refused.message}", provider=name)
    cost = spent.cost if spent.priced or not spent.unpriced else None
    vector = answer.vector(0)
    result = {
        "provider": name,
        "model": chain.first.model,
        "answered": True,
        "dimensions": None if vector is None else len(vector),
        "tokens": spent.tokens,
        "cost": cost,
        "currency": "USD",
        "workspace": loaded.options.workspace,
        "seconds": round(seconds, 3),
        "run_id": str(answer.run_id),
    }
    if as_json:
        terminal.result(result)
        return
    price = "an unknown amount: no price" if cost is None else f"{format_money(cost)} USD"
    terminal.notice(
        f"{chain.first.id} answered in {seconds:.2f} s: {result['dimensions']} dimensions, {spent.tokens:,} tokens, "
        f"{price}, paid by {loaded.options.workspace}"
    )


def _without_other_model(loaded: Settings) -> Settings:
    """Settings that ask for the provider's own model, unless a flag names one: other settings may name another's."""
    if loaded.origins.get("model") == "flag":
        return loaded
    return replace(loaded, options=replace(loaded.options, model=None))

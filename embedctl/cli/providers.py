"""`embedctl providers`: who serves models, whether they may be asked, and whether they answer."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Optional

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, tags
from embedctl.cli._groups import Group, ListingGroup
from embedctl.errors import StorageFailed, TextRefused
from embedctl.records import format_money
from embedctl.settings import Settings

app = Group(cls=ListingGroup, help="List, test and reset providers.", epilog="Example: embedctl providers test openai")
_HELP = {"help_option_names": ["-h", "--help"]}
_TEXT = "One short text, to see whether it works."

Words = Optional[str]  # noqa: UP045 - typer reads the annotation of a parameter
WorkspaceFlag = Annotated[Words, typer.Option("--workspace", "-w", help="Who pays, and whose allow-list applies.")]
Name = Annotated[str, typer.Argument(help="A provider's name.", metavar="NAME")]


@app.command("list", epilog="Example: embedctl providers list --online", context_settings=_HELP)
def list_providers(
    online: Annotated[
        bool, typer.Option("--online", help="Ask each for an answer, without a key and without a text.")
    ] = False,
    workspace: WorkspaceFlag = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Show every provider: where it is, whether its key is there, what it said, how running jobs find it."""
    from embedctl.routing import status

    found = settings.load(flags={"workspace": workspace}, config=config)
    known = status.standings(found)
    answers = status.reachable(found, known) if online else {}
    rows = [
        {
            "provider": one.name,
            "protocol": one.protocol,
            "base_url": one.base_url or None,
            "key": one.key,
            "key_variables": list(one.key_variables),
            "configured": one.configured,
            "allowed": one.allowed,
            "reachable": answers.get(one.name),
            "circuit": one.circuit,
            "held_s": round(one.held_s) if one.held_s else None,
            "reason": one.problem or one.reason,
        }
        for one in known
    ]
    envelope = {"schema_version": 1, "data": rows, "warnings": []}
    columns = [
        terminal.Column("provider", "Provider"),
        terminal.Column("protocol", "Protocol"),
        terminal.Column("base_url", "Address"),
        terminal.Column("key", "Key"),
        terminal.Column("allowed", "Allowed"),
        *([terminal.Column("reachable", "Reachable")] if online else []),
        terminal.Column("circuit", "Circuit"),
        terminal.Column("held_s", "Held s", "right"),
        terminal.Column("reason", "Reason"),
    ]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)


@app.command("test", epilog="Example: embedctl providers test openai -m text-embedding-3-small", context_settings=_HELP)
def try_out(
    name: Name,
    model: Annotated[
        Words, typer.Option("--model", "-m", help="Model to ask for (default: the provider's own).")
    ] = None,
    workspace: WorkspaceFlag = None,
    tag: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--tag", help="K=V kept with the usage event; repeatable.", metavar="K=V"),
    ] = None,
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Send one short text to a provider, say what came back and what it costs.

    It is in the ledger like every other call, with purpose `test`.
    """
    from embedctl.cli import _ledger
    from embedctl.routing import chain as chains
    from embedctl.routing import names
    from embedctl.runs import adhoc

    flags = {
        "provider": name,
        "model": model,
        "workspace": workspace,
        "tag": tags(tag) if tag else None,
        "fallback": "off",
        "retries": 0,
        "max_wait": 10,
        "timeout": 30,
    }
    found = settings.load(flags=flags, config=config, ledger=ledger)
    names.checked_provider(found, name)
    chain = chains.chain(_only(found, name))
    started = time.monotonic()
    try:
        text = chain.first.prefix + _TEXT
        command = f"providers test {name}"
        made = asyncio.run(adhoc.embed(found, chain, [text], purpose="test", command=command))
    finally:
        _ledger.book(found)
    spent, seconds = made.spending, time.monotonic() - started
    for refused in made.refusals.values():
        raise TextRefused(f"{name} refuses a plain text: {refused.message}", provider=name)
    cost = spent.cost if spent.priced or not spent.unpriced else None
    vector = made.vector(0)
    result = {
        "provider": name,
        "model": chain.first.model,
        "answered": True,
        "dimensions": None if vector is None else len(vector),
        "tokens": spent.tokens,
        "cost": cost,
        "currency": "USD",
        "workspace": found.options.workspace,
        "seconds": round(seconds, 3),
        "run_id": str(made.run_id),
    }
    if as_json:
        terminal.result(result)
        return
    price = "an unknown amount: no price" if cost is None else f"{format_money(cost)} USD"
    terminal.notice(
        f"{chain.first.id} answered in {seconds:.2f} s: {result['dimensions']} dimensions, {spent.tokens:,} tokens, "
        f"{price}, paid by {found.options.workspace}"
    )


@app.command(epilog="Example: embedctl providers reset openai", context_settings=_HELP)
def reset(name: Name, as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Forget what a provider said of itself (wait, limits, base64), and close its circuits in running jobs."""
    from embedctl.routing import names, status

    found = settings.load(config=config)
    names.checked_provider(found, name)
    try:
        forgotten = status.forget(found, name)
    except OSError as error:
        raise StorageFailed(f"{found.paths.home} cannot be written: {error.strerror}") from error
    if as_json:
        terminal.result({"provider": name, "forgotten": forgotten})
    else:
        terminal.notice(f"{name}: {forgotten or 'nothing'} {'was' if forgotten < 2 else 'were'} forgotten")


def _only(found: Settings, name: str) -> Settings:
    """Settings that ask for this provider, whatever the model is that other settings name."""
    from dataclasses import replace

    if found.origins.get("model") == "flag":
        return found
    return replace(found, options=replace(found.options, model=None))

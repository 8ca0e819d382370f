"""A key as it is shown: everything but its hash."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedctl import terminal
from embedctl.records import format_money, utc_now
from embedctl.server.keys import Key, Minted

KeyId = Annotated[str, typer.Argument(help="A key's id: the eight letters in it.", metavar="ID")]


def row(key_id: str, key: Key) -> dict[str, Any]:
    """Of a table, and of JSON."""
    return {
        "id": key_id,
        "workspace": key.workspace,
        "role": key.role,
        "name": key.name or None,
        "state": key.state(utc_now()),
        "created": key.created.isoformat(),
        "expires": key.expires.isoformat() if key.expires else None,
        "models": list(key.models) if key.models is not None else None,
        "providers": list(key.providers) if key.providers is not None else None,
        "rpm": key.rpm,
        "burst": key.burst,
        "tpm": key.tpm,
        "in_flight": key.in_flight,
        "budget": None if key.budget is None else f"{format_money(key.budget)}/{key.budget_period}",
    }


def minted(made: Minted, *, as_json: bool) -> None:
    """The key itself, this once: on stdout, so that a script can keep it."""
    if as_json:
        terminal.result({"id": made.id, "key": made.secret, **row(made.id, made.key)})
        return
    terminal.out(f"{made.secret}\n")
    terminal.notice(f"key {made.id} of workspace {made.key.workspace}: it is shown this once")

"""`embedctl keys create`: a new key, shown once."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer

from embedctl import settings
from embedctl.cli._flags import ConfigFlag, JsonFlag
from embedctl.cli.keys._shown import minted
from embedctl.errors import WrongUsage
from embedctl.records import utc_now

app = typer.Typer()


@app.command(epilog="Example: embedctl keys create --workspace acme --models 'text-embedding-3-*' --expires 90d")
def create(
    workspace: Annotated[str, typer.Option("--workspace", "-w", help="Workspace that pays for what it asks.")],
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    role: Annotated[
        Literal["tenant", "admin", "metrics"], typer.Option("--role", help="What it may beside asking.")
    ] = "tenant",
    rpm: Annotated[int | None, typer.Option("--rpm", help="Requests per minute (default: no limit).")] = None,
    burst: Annotated[int | None, typer.Option("--burst", help="Requests at once before --rpm applies.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", help="Bought tokens per minute (default: no limit).")] = None,
    in_flight: Annotated[
        int | None, typer.Option("--in-flight", help="Requests in flight (default: the server's).")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="USD it may spend.", metavar="AMOUNT[/day|week|month]")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", help="Models it may ask for; a name may end in *.", metavar="A,B")
    ] = None,
    providers: Annotated[
        str | None, typer.Option("--providers", help="Providers that may serve it.", metavar="A,B")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="When it ends, e.g. 90d or 2027-06-30.", metavar="TIME")
    ] = None,
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Create a key and print it, this once: only its hash is kept."""
    from embedctl.server import keys
    from embedctl.settings.options import checked_name

    checked_name(workspace, "workspace")
    for flag, value in (("--rpm", rpm), ("--burst", burst), ("--tpm", tpm), ("--in-flight", in_flight)):
        if value is not None and not 1 <= value <= 10**9:
            raise WrongUsage(f"{flag} must be at least 1, not {value}")
    if len(name) > 200 or not name.isprintable():
        raise WrongUsage("--name is no name", hint="at most 200 characters, on one line")
    period: keys.Period = "month"
    amount = None
    if budget is not None:
        amount, period = keys.budget(budget)
    loaded = settings.load(config=config)
    make = partial(
        keys.Key,
        workspace=workspace,
        role=role,
        name=name,
        models=keys.listed(models),
        providers=keys.listed(providers),
        rpm=rpm,
        burst=burst,
        tpm=tpm,
        in_flight=in_flight,
        budget=amount,
        budget_period=period,
        expires=keys.expiry(expires, utc_now()) if expires is not None else None,
    )
    made = keys.KeyFile(loaded.paths.keys).create(lambda sha256, now: make(sha256=sha256, created=now))
    minted(made, as_json=as_json)

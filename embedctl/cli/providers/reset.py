"""`embedctl providers reset`: forget what a provider said of itself."""

from __future__ import annotations

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, JsonFlag
from embedctl.cli.providers._names import Name

app = typer.Typer()


@app.command(epilog="Example: embedctl providers reset openai")
def reset(name: Name, as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Forget what a provider said of itself (wait, limits, base64), and close its circuits in running jobs."""
    from embedctl.routing.names import checked_provider
    from embedctl.routing.status import forget

    loaded = settings.load(config=config)
    checked_provider(loaded, name)
    forgotten = forget(loaded, name)
    if as_json:
        terminal.result({"provider": name, "forgotten": forgotten})
    else:
        terminal.notice(f"{name}: {forgotten or 'nothing'} {'was' if forgotten < 2 else 'were'} forgotten")

"""`embedctl models warmup`: how soon a model that runs on this machine answers."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, JsonFlag
from embedctl.errors import WrongUsage

app = typer.Typer()
_TEXT = "The first text after a start."


@app.command(epilog="Example: embedctl models warmup")
def warmup(
    model: Annotated[str | None, typer.Argument(help="A local model (default: the one that would be used).")] = None,
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Load a local model and time its first vector."""
    from embedctl.backends import local
    from embedctl.routing import chain
    from embedctl.routing.names import asked_for

    loaded = settings.load(flags={"model": model}, config=config)
    provider, name = asked_for(loaded)
    endpoint = chain.endpoint(loaded, provider, name)
    if not endpoint.local:
        raise WrongUsage(
            f"{endpoint.id} does not run here", hint=f"`embedctl providers test {endpoint.provider}` asks it"
        )
    started = time.perf_counter()
    running = local.load(endpoint.place.protocol, endpoint.folder, endpoint.max_tokens)
    there = time.perf_counter()
    vectors, _ = running.embed([endpoint.prefix + _TEXT])
    first = time.perf_counter()
    running.embed([endpoint.prefix + _TEXT])
    times = {
        "load_s": round(there - started, 4),
        "first_vector_s": round(first - there, 4),
        "next_vector_s": round(time.perf_counter() - first, 4),
    }
    if as_json:
        terminal.result({"model": endpoint.id, "dimensions": int(vectors.shape[1]), **times})
        return
    terminal.notice(
        f"{endpoint.id}: loaded in {times['load_s']:.2f} s, first vector ({vectors.shape[1]} dimensions) in "
        f"{times['first_vector_s'] * 1000:.0f} ms, the next one in {times['next_vector_s'] * 1000:.0f} ms"
    )

"""`embedctl models pull`: a model of a hub, to run on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, JsonFlag

app = typer.Typer()


@app.command(epilog="Example: embedctl models pull sentence-transformers/all-mpnet-base-v2")
def pull(
    name: Annotated[
        str, typer.Argument(help="A Hugging Face repository with an ONNX or model2vec model.", metavar="OWNER/NAME")
    ],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit (default: main).")] = None,
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Fetch a Hugging Face ONNX or model2vec model, to be used as onnx:OWNER/NAME or static:OWNER/NAME."""
    from embedctl.backends import hub
    from embedctl.storage import hub_access

    loaded = settings.load(config=config)
    pulled = hub.pull(name, loaded.paths.models, revision=revision, endpoint=hub_access.endpoint(loaded.environment))
    size = sum(path.stat().st_size for path in pulled.path.rglob("*") if path.is_file())
    if as_json:
        terminal.result(
            {
                "model": f"{pulled.protocol}:{name}",
                "path": str(pulled.path),
                "bytes": size,
                "dimensions": pulled.dimensions,
                "max_tokens": pulled.max_tokens,
                "pooling": pulled.pooling,
            }
        )
        return
    width = f"{pulled.dimensions} dimensions" if pulled.dimensions else "a width that its first vector will tell"
    longest = f"texts up to {pulled.max_tokens} tokens" if pulled.max_tokens else "texts of any length"
    terminal.notice(f"{pulled.protocol}:{name}: {size / 1e6:,.1f} MB, {width}, {longest}")
    terminal.notice(f"use it: embedctl embed FILE -m {pulled.protocol}:{name}")

"""`embedctl models pull|warmup`: models that run on this machine."""

from __future__ import annotations

import time
from typing import Annotated, Optional

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, JsonFlag
from embedctl.errors import WrongUsage

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
_HELP = {"help_option_names": ["-h", "--help"]}
_TEXT = "The first text after a start."

Words = Optional[str]  # noqa: UP045 - typer reads the annotation of a parameter


@app.command(epilog="Example: embedctl models pull sentence-transformers/all-mpnet-base-v2", context_settings=_HELP)
def pull(
    name: Annotated[str, typer.Argument(help="A Hugging Face repository with an ONNX model.", metavar="OWNER/NAME")],
    revision: Annotated[Words, typer.Option("--revision", help="Branch, tag or commit (default: main).")] = None,
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Fetch a Hugging Face ONNX model, to be used as onnx:OWNER/NAME."""
    from embedctl.backends.onnx import hub

    found = settings.load(config=config)
    pulled = hub.pull(name, found.paths.models, revision=revision, endpoint=found.environment.get("HF_ENDPOINT"))
    size = sum(path.stat().st_size for path in pulled.path.rglob("*") if path.is_file())
    if as_json:
        terminal.result(
            {
                "model": f"onnx:{name}",
                "path": str(pulled.path),
                "bytes": size,
                "dimensions": pulled.dimensions,
                "max_tokens": pulled.max_tokens,
                "pooling": pulled.pooling,
            }
        )
        return
    width = f"{pulled.dimensions} dimensions" if pulled.dimensions else "a width that its first vector will tell"
    terminal.notice(f"onnx:{name}: {size / 1e6:,.1f} MB, {width}, texts up to {pulled.max_tokens} tokens")
    terminal.notice(f"use it: embedctl embed FILE -m onnx:{name}")


@app.command(epilog="Example: embedctl models warmup", context_settings=_HELP)
def warmup(
    model: Annotated[Words, typer.Argument(help="A local model (default: the one that would be used).")] = None,
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Load a local model and time its first vector."""
    from embedctl.backends.onnx import local_model
    from embedctl.routing import chain

    found = settings.load(flags={"model": model}, config=config)
    provider, name = chain.asked_for(found)
    endpoint = chain.endpoint(found, provider, name)
    if not endpoint.local:
        raise WrongUsage(
            f"{endpoint.id} does not run here", hint=f"`embedctl providers test {endpoint.provider}` asks it"
        )
    started = time.perf_counter()
    loaded = local_model.load(endpoint.folder, endpoint.max_tokens or 512)
    there = time.perf_counter()
    vectors, _ = loaded.embed([endpoint.prefix + _TEXT])
    first = time.perf_counter()
    loaded.embed([endpoint.prefix + _TEXT])
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

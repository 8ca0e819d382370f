"""`embedctl serve`: the HTTP service."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from embedctl import settings, terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, LedgerFlag
from embedctl.errors import ExtraMissing, WrongUsage
from embedctl.routing import space_lock
from embedctl.settings import Settings

app = typer.Typer()

_OF_EXTRA = ("starlette", "uvicorn", "h11", "anyio", "jwt", "python_multipart")
_MISSING = "`embedctl serve` needs its extra: starlette, uvicorn, PyJWT, python-multipart"


@app.command(epilog="Example: embedctl serve --port 8000")
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port; 0 takes a free one [default: 8000].")] = None,
    durability: Annotated[
        Literal["sync", "process"] | None,
        typer.Option("--durability", help="What is on the disk before a paid request goes out [default: sync]."),
    ] = None,
    certificate: Annotated[
        str | None, typer.Option("--cert", help="Certificate for https, a file.", metavar="FILE")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Its private key, a file.", metavar="FILE")] = None,
    behind_tls: Annotated[
        bool, typer.Option("--behind-tls", help="TLS ends at a proxy in front, which says who asks.")
    ] = False,
    lock: Annotated[
        list[str] | None,
        typer.Option(
            "--lock", help="A space.lock: vectors of its model must fit that output; repeatable.", metavar="FILE"
        ),
    ] = None,
    metrics_listen: Annotated[
        str | None,
        typer.Option("--metrics-listen", help="Where /metrics alone is told, without a key.", metavar="HOST:PORT"),
    ] = None,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Serve embeddings over HTTP, as OpenAI does: retried, limited, cached, and accounted to the key that asked."""
    if (certificate is None) != (key is None):
        raise WrongUsage("--cert and --key belong together", hint="give both, or neither")
    if port is not None and not 0 <= port <= 65_535:
        raise WrongUsage(f"--port {port} is no port", hint="0 takes a free one")
    metrics = None if metrics_listen is None else _host_and_port(metrics_listen)
    try:
        from embedctl.server.log import AccessLog
        from embedctl.server.service import Listening, Service
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _OF_EXTRA:
            raise
        raise ExtraMissing(_MISSING, extra="serve") from None

    def load() -> Settings:
        loaded = settings.load(config=config, ledger=ledger)
        given: dict[str, Any] = {"host": host, "port": port, "durability": durability}
        given["locks"] = tuple(lock) if lock else None
        return replace(loaded, serve=replace(loaded.serve, **{k: v for k, v in given.items() if v is not None}))

    first = load()
    for name in first.serve.locks:
        space_lock.read(Path(name))
    listening = Listening(
        host=first.serve.host,
        port=first.serve.port,
        certificate=certificate,
        key=key,
        behind_tls=behind_tls,
        metrics=metrics,
    )
    given = {"config": config, "ledger": ledger}
    flags = [f"--{name}={path.absolute()}" for name, path in given.items() if path is not None]
    log = AccessLog()
    try:
        service = Service(
            load,
            listening,
            log=log,
            ready=lambda address: terminal.out(f"listening on {address}\n"),
            flags=flags,
        )
        if not listening.is_loopback and certificate is None and not behind_tls:
            log.say("no_tls", message="keys and texts are sent unencrypted: --cert and --key, or --behind-tls")
        asyncio.run(service.run())
    finally:
        log.close()
    _ledger.book(first)
    raise typer.Exit(service.exit_code)


def _host_and_port(said: str) -> tuple[str, int]:
    host, colon, port = said.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) <= 65_535):
        raise WrongUsage(f"--metrics-listen {said} is not HOST:PORT", hint="for example 127.0.0.1:9464")
    return host.removeprefix("[").removesuffix("]"), int(port)

"""A process that has imported embedctl and forks a child per command: real processes, without the imports.

Reads one JSON object per line: `{"args": […], "cwd": …, "env": {…}, "out": path, "err": path, "constants": {…},
"run": {…}}` starts a command and answers its pid; `{"wait": pid}` answers its exit status, negative for a signal;
`{"poll": pid}` the same, or 2²⁰ while it runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import io
import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    from embedctl import cli
    from embedctl.runs import run

    warm(cli.app)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif "poll" in order:
            ended, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else 1 << 20
        elif (answer := os.fork()) == 0:
            become(order)
            run.Run = functools.partial(run.Run, **order["run"])  # type: ignore[misc,assignment]
            code = 70
            try:
                cli.app(order["args"])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(bool(end.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(answer, flush=True)
    os._exit(0)  # what was frozen cannot be taken apart


LOADED = (
    "anyio._backends._asyncio",
    "embedctl.cli.batch.run",
    "embedctl.cli._run",
    "embedctl.cli.embed",
    "embedctl.cli.keys",
    "embedctl.cli.serve",
    "embedctl.cli.usage.report",
    "embedctl.ledger.ingest",
    "embedctl.backends.onnx.local_model",
    "embedctl.providers.onnx",
    "embedctl.runs.store_run",
    "embedctl.server.service",
    "embedctl.inputs.parquet",
    "embedctl.backends.http.transport",
    "importlib.readers",
    "numpy.ma",
    "onnxruntime",
    "platformdirs",
    "simdjson",
)
"""What commands import on their way."""


def warm(app: Any) -> None:
    """Load what commands load, as far as it survives a fork: no threads, no open files."""
    from embedctl import tokens
    from embedctl.ledger.prices import price_list
    from embedctl.providers import catalog

    for name in LOADED:
        importlib.import_module(name)
    catalog.find("openai", "text-embedding-3-small")
    price_list.load(price_list.price_texts(None))
    tokens.counter(tokens.FALLBACK)
    tokens.counter(tokens.BUNDLED)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        app(["embed", "in", "--batch-size", "none"])  # a mistake: the words are read, nothing is done
    gc.freeze()


def become(order: dict[str, Any]) -> None:
    """The process that the order describes: its folder, environment, streams, and the constants it runs with."""
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
    os.dup2(os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    for name, value in order["constants"].items():
        module, _, path = name.partition(":")
        *owners, last = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        assert hasattr(owner, last), name
        setattr(owner, last, value)
    sys.argv = ["embedctl", *order["args"]]


if __name__ == "__main__":
    main()

"""`embedctl batch failures`: the rows of an output without a vector, and why."""

from __future__ import annotations

from pathlib import Path

import typer

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, StoreOptionFlag
from embedctl.cli.batch._registry import JobOrOutput, on_store, registry
from embedctl.errors import InputInvalid

app = typer.Typer()


@app.command(epilog="Example: embedctl batch failures tickets/ --format csv")
def failures(
    job: JobOrOutput,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    store_option: StoreOptionFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List the rows of an output that have no vector, and why."""
    from embedctl.runs.status import failures as read_failures
    from embedctl.runs.status import failures_file, is_output, run_of

    run, output = None, job
    if (store := on_store(job, store_option, config)) is None:
        found = run_of(registry(config), job)
        run, output = (None, str(found)) if isinstance(found, Path) else (found, found.output)
        store = on_store(output, store_option, config)
    if store is not None:
        from embedctl.runs import store_status

        output, rows = store.url, list(store_status.failures(store))
    else:
        listed = failures_file(Path(output))
        if run is None and not listed.is_file() and not is_output(Path(output)):
            raise InputInvalid(
                f"{output} is no output of embedctl", hint="name what `embed -o` or `batch run -o` wrote"
            )
        rows = list(read_failures([listed]))
    names = ("id", "chunk_index", "reason", "skipped", "provider", "attempts", "tokens", "max_tokens", "message")
    beside = ("max_tokens", "tokens", "attempts", "provider", "skipped")  # a narrow terminal goes without, last first
    columns = [
        terminal.Column(
            name, name.capitalize().replace("_", " "), optional=beside.index(name) + 1 if name in beside else 0
        )
        for name in names
    ]
    envelope = {
        "run_id": str(run.run_id) if run else None,
        "job": (run.job_id or None) if run else None,
        "output": output,
        "failures": rows,
    }
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)

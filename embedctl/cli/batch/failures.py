"""`embedctl batch failures`: the rows of a job's output without a vector, and why."""

from __future__ import annotations

from pathlib import Path

import typer

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli.batch._registry import Job, registry

app = typer.Typer()


@app.command(epilog="Example: embedctl batch failures nightly --format csv")
def failures(job: Job, form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """List the rows of a job's output that have no vector, and why."""
    from embedctl.runs.status import failures as read_failures

    run = registry(config).find(job)
    rows = list(read_failures([Path(run.output) / "failures.jsonl"]))
    names = ("id", "chunk_index", "reason", "skipped", "provider", "attempts", "tokens", "max_tokens", "message")
    columns = [terminal.Column(name, name.capitalize().replace("_", " ")) for name in names]
    envelope = {"run_id": str(run.run_id), "job": run.job_id or None, "output": run.output, "failures": rows}
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)

"""`embedctl batch`: large inputs in resumable, incremental runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from embedctl import terminal
from embedctl.cli import SuggestingGroup, _allocator
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, one_of, with_options
from embedctl.errors import WrongUsage
from embedctl.records import format_money

if TYPE_CHECKING:
    from embedctl.runs.registry import RunRegistry


class _Batch(SuggestingGroup):
    """`embedctl batch INPUT…` means `embedctl batch run INPUT…`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word; `run` when that is an input."""
        if args and args[0] not in self.list_commands(ctx):
            if not any(mark in args[0] for mark in "./*-") and not Path(args[0]).exists():
                return super().resolve_command(ctx, args)
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Batch, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(
    epilog="Example: embedctl batch run tickets.parquet -o tickets/",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def _batch() -> None:
    """Embed large inputs in resumable, incremental runs."""


@app.command(
    epilog="Example: embedctl batch run tickets.parquet -o tickets/ -m openai:text-embedding-3-small -w acme",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@with_options
def run(
    inputs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Files, globs, folders, or -; first of all a JOB.toml.", metavar="[JOB.toml] [INPUT...]"),
    ] = None,
    *,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Folder of Parquet parts.", metavar="DIR"),
    ] = None,
    job: Annotated[Optional[str], typer.Option("--job", help="Name of the job, for `batch list` and reports.")] = None,  # noqa: UP045
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try rows again that failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask no questions (there are none).", hidden=True)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", "-j", help="Print the receipt as one JSON object on stdout.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is waited for and why.")] = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
    flags: Mapping[str, Any],
) -> None:
    """Embed inputs into a folder of Parquet parts; the same command again continues, or embeds what is new."""
    _allocator.keep_memory()
    from embedctl.cli._run import Talk, execute
    from embedctl.settings import read_job
    from embedctl.settings.options import checked_name

    words = list(inputs or ())
    found = read_job(Path(words.pop(0))) if words and words[0].endswith(".toml") else {}
    named = [found["input"]] if isinstance(found.get("input"), str) else found.get("input", [])
    inputs_named = words or [os.path.expanduser(one) for one in named]  # noqa: PTH111 - no shell did it
    folder = output or (Path(found["output"]).expanduser() if found.get("output") else None)
    if not inputs_named:
        raise WrongUsage("nothing to embed", hint="name files or folders: embedctl batch run INPUT... -o DIR")
    if folder is None:
        raise WrongUsage("no output named", hint="name a folder: embedctl batch run INPUT... -o DIR")
    if str(folder) == "-":
        raise WrongUsage("batch run writes a folder", hint="`embedctl embed INPUT... -o -` prints JSON lines")
    name = job or found.get("job")
    execute(
        "batch run",
        inputs=inputs_named,
        kind="folder",
        output=Path(folder),
        flags=flags,
        job_options={key: value for key, value in found.items() if key not in ("input", "output", "job")},
        job=checked_name(name, "job") if name else None,
        config=config,
        ledger=ledger,
        overwrite=overwrite,
        retry_failed=retry_failed,
        dry_run=dry_run,
        talk=Talk(as_json=as_json, quiet=quiet, progress=not no_progress, verbose=verbose),
    )


_STATES = ["accepted", "running", "completed", "partial", "failed", "interrupted"]
Job = Annotated[str, typer.Argument(help="Name of a job, or id of a run.", metavar="JOB|RUN_ID")]


def _runs(config: Path | None) -> RunRegistry:
    from embedctl import settings
    from embedctl.runs.registry import RunRegistry

    return RunRegistry(settings.load(config=config).paths.runs)


@app.command(
    "list",
    epilog="Example: embedctl batch list --status failed --status interrupted",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def list_(
    status: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--status", help="Only runs in this state; repeatable.", metavar="|".join(_STATES)),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most runs shown.")] = 20,
    offset: Annotated[int, typer.Option("--offset", min=0, help="So many of the newest are left out.")] = 0,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """List runs, newest first."""
    from embedctl.runs import status as run_status

    found = run_status.listed(_runs(config), [one_of(word, _STATES, "state") for word in status or ()])
    rows = [run_status.row(run) for run in found[offset : offset + limit]]
    envelope = {"total": len(found), "limit": limit, "offset": offset, "runs": rows}
    columns = [
        terminal.Column("job", "Job"),
        terminal.Column("run_id", "Run"),
        terminal.Column("state", "State"),
        terminal.Column("rows", "Rows", "right"),
        terminal.Column("failed", "Failed", "right"),
        terminal.Column("cost", "Cost USD", "right"),
        terminal.Column("started_at", "Started"),
        terminal.Column("output", "Output"),
    ]
    shown = [{**row, "started_at": row["started_at"].isoformat(" ", "seconds")} for row in rows]
    terminal.table(terminal.Table(columns=columns, rows=shown, envelope=envelope), "json" if as_json else form)


@app.command(
    epilog="Example: embedctl batch status nightly --id 4711", context_settings={"help_option_names": ["-h", "--help"]}
)
def status(
    job: Job,
    row_id: Annotated[Optional[str], typer.Option("--id", help="What became of the row with this id.")] = None,  # noqa: UP045
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Show how a run stands: state, progress, rates, cost so far, last error."""
    from embedctl.records import utc_now
    from embedctl.runs import status as run_status

    run = _runs(config).find(job)
    found = run_status.status(run, utc_now()) if row_id is None else run_status.whereabouts(run, row_id)
    flat = {key: value for key, value in found.items() if not isinstance(value, Mapping | list)}
    flat |= {f"{key}.{name}": part for key in ("counts", "failure") for name, part in found.get(key, {}).items()}
    flat |= {f"chunk {chunk['chunk_index']}": chunk["embedding_operation_id"] for chunk in found.get("chunks", ())}
    said = {key: format_money(value) if isinstance(value, Decimal) else value for key, value in flat.items()}
    rows = [{"key": key, "value": None if value is None else str(value)} for key, value in said.items()]
    columns = [terminal.Column("key", "Key"), terminal.Column("value", "Value")]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=found), "json" if as_json else form)


@app.command(
    epilog="Example: embedctl batch failures nightly --format csv",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def failures(job: Job, form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """List the rows of a job's output that have no vector, and why."""
    from embedctl.runs import status as run_status

    run = _runs(config).find(job)
    rows = list(run_status.failures([Path(run.output) / "failures.jsonl"]))
    names = ("id", "chunk_index", "reason", "skipped", "provider", "attempts", "tokens", "max_tokens", "message")
    columns = [terminal.Column(name, name.capitalize().replace("_", " ")) for name in names]
    envelope = {"run_id": str(run.run_id), "job": run.job_id or None, "output": run.output, "failures": rows}
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), "json" if as_json else form)

"""`embedctl batch run`: inputs into a folder of Parquet parts, in a run that can be continued."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from embedctl.cli import _completion
from embedctl.cli._flags import ConfigFlag, LedgerFlag, with_options
from embedctl.cli._help import GroupedFlags
from embedctl.errors import WrongUsage
from embedctl.runs import memory

app = typer.Typer()


@app.command(
    cls=GroupedFlags,
    epilog="Example: embedctl batch run tickets.parquet -o tickets/ -m openai:text-embedding-3-small -w acme",
)
@partial(with_options, name="batch run")
def run(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Files, globs, folders, or -; first of all a JOB.toml.", metavar="[JOB.toml] [INPUT...]"),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of Parquet parts, or s3://… gs://… az://…. [required, here or in JOB.toml]",
            metavar="DIR",
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", autocompletion=_completion.jobs, help="Name of the job, for `batch list` and reports."),
    ] = None,
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
    key_budget: Annotated[
        str | None,
        typer.Option(
            "--key-budget",
            help="Of the service's key that pays: what may be spent through it, here and elsewhere.",
            metavar="KEY=AMOUNT/PERIOD",
            hidden=True,
        ),
    ] = None,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
    flags: Mapping[str, Any],
) -> None:
    """Embed inputs into a folder of Parquet parts; the same command again continues, or embeds what is new."""
    memory.keep_memory()
    from embedctl.cli._run import Talk, execute
    from embedctl.records import expanded
    from embedctl.settings import read_job
    from embedctl.settings.options import checked_name

    words = list(inputs or ())
    job_file = Path(words.pop(0)) if words and words[0].endswith(".toml") else None
    written = read_job(job_file) if job_file else {}
    if words and flags.get("sql"):
        raise WrongUsage("INPUT and --sql both say what to embed", hint="give one of them")
    if words:  # stronger than what the file says
        written = {key: value for key, value in written.items() if key not in ("sql", "attach")}
    if flags.get("sql"):
        written.pop("input", None)
    listed = [written["input"]] if isinstance(written.get("input"), str) else written.get("input", [])
    sources = words or [os.path.expanduser(source) for source in listed]  # noqa: PTH111 - no shell did it
    folder = output or (expanded(written["output"]) if written.get("output") else None)
    if sources and "sql" in written:
        raise WrongUsage(f"{job_file}: input and sql both say what to embed", hint="keep one of them")
    if not sources and not flags.get("sql") and "sql" not in written:
        raise WrongUsage("nothing to embed", hint="name files or folders: embedctl batch run INPUT... -o DIR")
    if folder is None:
        raise WrongUsage("no output named", hint="name a folder: embedctl batch run INPUT... -o DIR")
    if str(folder) == "-":
        raise WrongUsage("batch run writes a folder", hint="`embedctl embed INPUT... -o -` prints JSON lines")
    name = job or written.get("job")
    execute(
        "batch run",
        inputs=sources,
        kind="folder",
        output=folder,
        flags=flags,
        job_options={key: value for key, value in written.items() if key not in ("input", "output", "job")},
        job=checked_name(name, "job") if name else None,
        job_file=job_file,
        config=config,
        ledger=ledger,
        overwrite=overwrite,
        retry_failed=retry_failed,
        dry_run=dry_run,
        key_budget=_key_budget(key_budget, flags.get("workspace")),
        talk=Talk(as_json=as_json, quiet=quiet, progress=not no_progress, verbose=verbose),
    )


def _key_budget(text: str | None, workspace: str | None) -> Any:
    """`KEY=AMOUNT/PERIOD` of a key whose workspace pays; the service gives it to its jobs.

    Raises:
        WrongUsage: It is none, or nobody says which workspace pays.
    """
    if text is None:
        return None
    from embedctl.budgets.limits import KeyBudget
    from embedctl.server import keys

    key_id, _, budget = text.partition("=")
    if not key_id or workspace is None:
        raise WrongUsage("--key-budget is KEY=AMOUNT/PERIOD, and needs --workspace", hint="the service gives it")
    amount, period = keys.budget(budget)
    return KeyBudget(key_id=key_id, workspace=workspace, amount=amount, period=period)

"""`embedctl batch`: large inputs in resumable, incremental runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from embedctl.cli import SuggestingGroup
from embedctl.cli.flags import ConfigFlag, LedgerFlag, with_options
from embedctl.errors import WrongUsage


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
    from embedctl.cli.running import Talk, execute
    from embedctl.options import checked_name
    from embedctl.settings import read_job

    words = list(inputs or ())
    found = read_job(Path(words.pop(0))) if words and words[0].endswith(".toml") else {}
    inputs_named = words or [found["input"]] if isinstance(found.get("input"), str) else words or found.get("input", [])
    folder = output or found.get("output")
    if not inputs_named:
        raise WrongUsage("nothing to embed", hint="name files or folders: embedctl batch run INPUT... -o DIR")
    if folder is None:
        raise WrongUsage("no output named", hint="name a folder: embedctl batch run INPUT... -o DIR")
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
        talk=Talk(as_json=as_json, quiet=quiet, progress=not no_progress, verbose=verbose),
    )

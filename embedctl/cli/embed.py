"""`embedctl embed`: files, folders or stdin into one Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from embedctl.cli._flags import ConfigFlag, LedgerFlag, with_options
from embedctl.cli._help import GroupedFlags
from embedctl.errors import WrongUsage
from embedctl.runs import memory

app = typer.Typer()


@app.command(cls=GroupedFlags, epilog="Example: embedctl embed handbook.md notes.txt -o texts.parquet --workspace acme")
@with_options
def embed(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Files, globs, folders, addresses (s3://…), or - for stdin.", metavar="INPUT"),
    ] = None,
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Parquet file, or - for JSON lines on stdout. [default: STEM.embeddings.parquet, here]",
            metavar="FILE",
        ),
    ] = None,
    vectors: Annotated[
        Literal["float", "base64"], typer.Option("--vectors", help="With -o -: how vectors are shown.")
    ] = "float",
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
    """Embed files, folders or stdin into one Parquet file.

    Without a model this runs offline, with the bundled one, and costs nothing.
    """
    memory.keep_memory()
    from embedctl.cli._run import Talk, default_name, execute
    from embedctl.storage import named

    if output == "-" and as_json:
        raise WrongUsage("--json and -o - both want stdout", hint="give one of them")
    if output is not None and output != "-":
        named.check_format(Path(output), "parquet")
    inputs = inputs or []
    if inputs and flags.get("sql"):
        raise WrongUsage("INPUT and --sql both say what to embed", hint="give one of them")
    if not inputs and not flags.get("sql"):
        raise WrongUsage(
            "missing argument 'INPUT...'",
            hint="name files, folders or -, or a query with --sql; `embedctl embed --help` shows the flags",
        )
    execute(
        "embed",
        inputs=inputs,
        kind="stream" if output == "-" else "file",
        output=None if output == "-" else Path(output or default_name(inputs)),
        flags=flags,
        config=config,
        ledger=ledger,
        overwrite=overwrite,
        retry_failed=retry_failed,
        dry_run=dry_run,
        vectors=vectors,
        talk=Talk(as_json=as_json, quiet=quiet, progress=not no_progress, verbose=verbose),
    )

"""`embedctl vectors verify`: whether an output is right, and, with --sample, whether its model still agrees."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, StoreOptionFlag, pairs
from embedctl.cli.vectors._asking import (
    AskingFlags,
    ModelFlag,
    ProviderFlag,
    TagFlag,
    VerboseFlag,
    WorkspaceFlag,
    spent,
    with_ledger,
)
from embedctl.cli.vectors._output import OutputPath, opened
from embedctl.errors import InputInvalid, WrongUsage
from embedctl.telemetry.watching import watched

if TYPE_CHECKING:
    from embedctl.inputs import Query
    from embedctl.vectors.asking import Asking
    from embedctl.vectors.files import Stored
    from embedctl.vectors.findings import Findings
    from embedctl.vectors.verify import Input

app = typer.Typer()


@app.command(epilog="Example: embedctl vectors verify tickets/ -i tickets.parquet")
def verify(
    file: OutputPath,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="What it was made of: no row may be lost; repeatable.", metavar="INPUT"),
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Embed so many texts again and compare.")] = 0,
    sql: Annotated[
        str | None, typer.Option("--sql", help="Query that the output was made of, instead of --input.")
    ] = None,
    attach: Annotated[
        list[str] | None,
        typer.Option("--attach", help="With --sql: a DuckDB file it reads as NAME; repeatable.", metavar="NAME=PATH"),
    ] = None,
    model: ModelFlag = None,
    provider: ProviderFlag = None,
    workspace: WorkspaceFlag = None,
    tag: TagFlag = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
    store_option: StoreOptionFlag = None,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Check rows, numbers, widths, ids, texts, spaces, parts and checksums; exit 65 when something is wrong."""
    from embedctl.inputs import asked
    from embedctl.vectors.findings import Findings

    flags = AskingFlags(
        model=model, provider=provider, workspace=workspace, tag=tag, config=config, ledger=ledger, verbose=verbose
    )
    if attach and sql is None:
        raise WrongUsage("--attach belongs to --sql", hint="--sql QUERY says what is read of it")
    if sql is not None and inputs:
        raise WrongUsage("--input and --sql both say what it was made of", hint="give one of them")
    stored, findings = opened(file, store_option, config), Findings()
    query = None if sql is None else asked(sql, pairs(attach or [], "attach"), folder=None, attach_folder=None)
    counts = _verified(stored, findings, flags, query or inputs or [], sample)
    looked = [f"{counts['rows']:,} rows"]
    looked += [f"{counts['rows_read']:,} rows of the input"] if counts["rows_read"] is not None else []
    looked += [f"{counts['sampled']:,} texts embedded again"] if sample else []
    _print_findings(
        f"{stored.path}: {'wrong' if findings.wrong else 'right'} ({', '.join(looked)})",
        findings,
        {"schema_version": 1, "path": str(stored.path), "ok": not findings.wrong, **counts},
        _ledger.chosen_format(form, as_json),
    )
    if findings.wrong:
        _ledger.after_result(InputInvalid(f"{stored.path} is wrong in {findings.wrong:,} places"))


def _verified(
    stored: Stored, findings: Findings, flags: AskingFlags, inputs: list[str] | Query, sample: int
) -> dict[str, Any]:
    """Look at everything; what was looked at, and what asking again cost."""
    import asyncio

    import numpy as np

    from embedctl.vectors import verify
    from embedctl.vectors.sample import Sample

    asking = flags.asking(stored, must=sample > 0)
    chosen = Sample(sample, np.random.default_rng()) if sample else None
    with tempfile.TemporaryDirectory(prefix="embedctl-") as folder:
        walked = verify.verify(
            stored,
            findings,
            folder=Path(folder),
            endpoint=asking.endpoint if asking else None,
            asked=_input(stored, inputs, asking, flags, Path(folder), findings) if inputs else None,
            sample=chosen,
        )
    compared, spending = 0, None
    if chosen is not None and asking is not None:
        with watched(asking.settings, flags.observer) as told:
            again = verify.embedded_again(stored, chosen, asking, findings, command="vectors verify", observer=told)
            compared, spending = with_ledger(asking.settings, lambda: asyncio.run(again))
    return {"rows": walked.rows, "rows_read": walked.rows_read, "sampled": compared, **spent(spending)}


def _input(
    stored: Stored,
    inputs: list[str] | Query,
    asking: Asking | None,
    flags: AskingFlags,
    folder: Path,
    findings: Findings,
) -> Input:
    """The input, read as it was when the output was made."""
    from dataclasses import replace

    from embedctl.inputs import open_input, open_query
    from embedctl.vectors import against
    from embedctl.vectors.verify import Input

    shaped = against.options_of(stored)
    exact = shaped is not None and asking is not None
    if not exact:
        why = "it does not say how it was made" if shaped is None else "its model is not configured here"
        findings.add("not_checked", str(stored.path), f"only ids are compared with the input: {why}", wrong=False)
    loaded = flags.load(shaped or {})
    options = loaded.options
    read = replace(against.read_options(options, folder), stores=loaded.stores)
    return Input(
        source=open_input(inputs, read) if isinstance(inputs, list) else open_query(inputs, read),
        options=options,
        endpoint=asking.endpoint if exact and asking is not None else None,
    )


def _print_findings(title: str, findings: Findings, envelope: Mapping[str, Any], form: terminal.Format) -> None:
    """What is wrong or worth a note; only `title` where nothing is."""
    rows = [{**finding.as_dict(), "state": "wrong" if finding.wrong else "note"} for finding in findings]
    if not rows and form in ("table", "md"):
        terminal.out(f"{terminal.safe(title)}\n")
        return
    whole = {
        **envelope,
        "findings": [finding.as_dict() for finding in findings],
        "warnings": [f"{finding.where}: {finding.message}" for finding in findings if not finding.wrong],
    }
    words = (("state", "State"), ("check", "Check"), ("where", "Where"), ("message", "What"))
    columns = [terminal.Column(key, name) for key, name in words]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=whole, title=title), form)

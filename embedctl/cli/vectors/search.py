"""`embedctl vectors search`: the rows of an output that are nearest in meaning to some words."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, StoreOptionFlag
from embedctl.cli.vectors import _passages
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
from embedctl.errors import InputInvalid, InputMissing, WrongUsage
from embedctl.records import printable
from embedctl.telemetry.watching import watched

if TYPE_CHECKING:
    from embedctl.vectors.files import Stored

app = typer.Typer()


@app.command(epilog="Example: embedctl vectors search handbook.parquet 'sick leave'")
def search(
    file: OutputPath,
    words: Annotated[str, typer.Argument(help="What to look for.", metavar="WORDS")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, max=10_000, help="Most results.")] = 5,
    full: Annotated[bool, typer.Option("--full", help="Show texts whole, not only the best lines.")] = False,
    width: Annotated[
        int | None, typer.Option("--width", min=20, max=1000, help="Characters of a line (the terminal's, or 100).")
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
    """Find the rows nearest in meaning, by cosine, with the model that made the file."""
    from embedctl.vectors.search import nearest

    if not words.strip():
        raise WrongUsage("nothing to look for", hint="embedctl vectors search FILE 'some words'")
    flags = AskingFlags(
        model=model, provider=provider, workspace=workspace, tag=tag, config=config, ledger=ledger, verbose=verbose
    )
    try:
        stored = opened(file, store_option, config)
    except InputMissing as error:
        if not os.path.exists(words):  # noqa: PTH110 - a Path raises where words are longer than any name
            raise
        raise InputMissing(error.message, hint=f"FILE comes first, then the words: is it {printable(words)}?") from None
    query, paid = _embedded(words, stored, flags)
    hits = [hit.as_dict() for hit in nearest(stored, query, count)]
    form = _ledger.chosen_format(form, as_json)
    if form == "table":
        for place, hit in enumerate(hits):
            terminal.passage(*_shown(hit, words, width or terminal.width(), full=full), first=not place)
        return
    rows = [{**hit, "id": str(hit["id"]), "score": f"{hit['score']:.4f}"} for hit in hits]
    columns = [
        terminal.Column("score", "Score", "right"),
        terminal.Column("id", "Id", exact=True),
        terminal.Column("chunk_index", "Chunk", "right"),
        terminal.Column("text", "Text"),
    ]
    envelope = {"results": hits, "query": words, **paid, "warnings": []}
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), form)


def _embedded(words: str, stored: Stored, flags: AskingFlags) -> tuple[Any, dict[str, Any]]:
    """The vector of a question in the output's space; who made it, and what it cost."""
    import asyncio

    from embedctl.runs import adhoc

    if printable(words) != words:
        raise WrongUsage("the words are no text: a byte of them is not UTF-8")
    asking = flags.asking(stored, must=True, as_query=True)
    assert asking is not None  # noqa: S101 - it must
    with watched(asking.settings, flags.observer) as told:
        answer = with_ledger(
            asking.settings,
            lambda: asyncio.run(
                adhoc.embed(
                    asking.settings,
                    asking.chain,
                    [asking.endpoint.prefix + words],
                    purpose="query",
                    command="vectors search",
                    space=asking.space,
                    observer=told,
                )
            ),
        )
    query = answer.vector(0)
    if query is None:
        raise InputInvalid(f"the words cannot be embedded: {answer.refusals[0].message}")
    return query, {"model": asking.endpoint.id, **spent(answer.spending)}


def _shown(hit: dict[str, Any], query: str, width: int, *, full: bool) -> tuple[str, list[str], Callable[..., str]]:
    """What people see of a row: a line that says where, the lines of its text, and how their matches are marked."""
    words = _passages.wanted(query)
    found = _passages.passage(hit["text"] or "", words, width - terminal.INDENT, full=full)
    where = [f"{hit['score']:.4f}", str(hit["id"]), f"chunk {hit['chunk_index']}", found.heading]
    return "  ".join(filter(None, where)), list(found.lines), partial(_passages.marked, words=words)

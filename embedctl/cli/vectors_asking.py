"""`embedctl vectors verify|search`: the commands that may ask the model that made an output."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, tags
from embedctl.errors import EmbedctlError, InputInvalid, WrongUsage
from embedctl.records import printable
from embedctl.settings.options import checked_name

if TYPE_CHECKING:
    from embedctl.runs.receipt import Spending
    from embedctl.settings import Settings
    from embedctl.vectors.asking import Asking
    from embedctl.vectors.files import Stored
    from embedctl.vectors.findings import Findings
    from embedctl.vectors.verify import Input

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
_HELP = {"help_option_names": ["-h", "--help"]}
_T = TypeVar("_T")

MAX_WAIT_S = 60.0
"""A person waits for the answer: a provider that asks for more is told at once."""

Where = Annotated[Path, typer.Argument(help="A Parquet file or folder of parts that embedctl wrote.", metavar="FILE")]
Words = Optional[str]  # noqa: UP045 - typer reads the annotation of a parameter
Several = Optional[list[str]]  # noqa: UP045
InputFlag = typer.Option("--input", "-i", help="What it was made of: no row may be lost; repeatable.", metavar="INPUT")
ModelFlag = Annotated[Words, typer.Option("--model", "-m", help="Model to ask (default: the one that made FILE).")]
ProviderFlag = Annotated[Words, typer.Option("--provider", help="Provider to ask (default: the one that made FILE).")]
WorkspaceFlag = Annotated[Words, typer.Option("--workspace", "-w", help="Who pays.")]
TagFlag = Annotated[Several, typer.Option("--tag", help="K=V kept with every usage event; repeatable.", metavar="K=V")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is waited for and why.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flags:
    """Whom to ask, who pays, and where the settings are."""

    model: str | None
    provider: str | None
    workspace: str | None
    tag: list[str] | None
    config: Path | None
    ledger: Path | None
    verbose: bool

    def load(self, shaped: Mapping[str, Any]) -> Settings:
        """Settings for options that the output decides."""
        from embedctl import settings

        own = {
            "workspace": checked_name(self.workspace, "workspace") if self.workspace else None,
            "tag": tags(self.tag) if self.tag else None,
            "max_wait": MAX_WAIT_S,
        }
        return settings.load(flags={**shaped, **own}, config=self.config, ledger=self.ledger)

    def told(self, line: str) -> None:
        """Why it waits, for -v."""
        if self.verbose:
            terminal.notice(line)

    def asking(self, stored: Stored, *, must: bool, as_query: bool = False) -> Asking | None:
        """Who can make vectors that fit the output; None when nobody can and nobody must."""
        from embedctl.vectors import asking

        if must or self.model or self.provider:
            return asking.fitting(stored, self.load, model=self.model, provider=self.provider, as_query=as_query)
        with suppress(EmbedctlError):
            return asking.fitting(stored, self.load, model=None, provider=None, as_query=as_query)
        return None


@app.command(epilog="Example: embedctl vectors verify tickets/ -i tickets.parquet", context_settings=_HELP)
def verify(
    file: Where,
    inputs: Annotated[Several, InputFlag] = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Embed so many texts again and compare.")] = 0,
    model: ModelFlag = None,
    provider: ProviderFlag = None,
    workspace: WorkspaceFlag = None,
    tag: TagFlag = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Check rows, numbers, widths, ids, texts, spaces, parts and checksums; exit 65 when something is wrong."""
    from embedctl.vectors import files
    from embedctl.vectors.findings import Findings

    flags = _Flags(
        model=model, provider=provider, workspace=workspace, tag=tag, config=config, ledger=ledger, verbose=verbose
    )
    stored, findings = files.open_stored(file), Findings()
    told = _verified(stored, findings, flags, inputs or [], sample)
    looked = [f"{told['rows']:,} rows"]
    looked += [f"{told['rows_read']:,} rows of the input"] if told["rows_read"] is not None else []
    looked += [f"{told['sampled']:,} texts embedded again"] if sample else []
    _print_findings(
        f"{file}: {'wrong' if findings.wrong else 'right'} ({', '.join(looked)})",
        findings,
        {"schema_version": 1, "path": str(file), "ok": not findings.wrong, **told},
        _ledger.chosen_format(form, as_json),
    )
    if findings.wrong:
        _ledger.after_result(InputInvalid(f"{file} is wrong in {findings.wrong:,} places"))


def _verified(stored: Stored, findings: Findings, flags: _Flags, inputs: list[str], sample: int) -> dict[str, Any]:
    """Look at everything; what was looked at, and what asking again cost."""
    import numpy as np

    from embedctl.vectors import verify
    from embedctl.vectors.sample import Sample

    asking = flags.asking(stored, must=sample > 0)
    chosen = Sample(sample, np.random.default_rng()) if sample else None
    with tempfile.TemporaryDirectory(prefix="embedctl-") as place:
        walked = verify.verify(
            stored,
            findings,
            folder=Path(place),
            endpoint=asking.endpoint if asking else None,
            asked=_input(stored, inputs, asking, flags, Path(place), findings) if inputs else None,
            sample=chosen,
        )
    compared, spending = 0, None
    if chosen is not None and asking is not None:
        again = verify.Again("vectors verify", flags.told, terminal.warning)
        compared, spending = _with_ledger(
            asking.settings, lambda: verify.embedded_again(stored, chosen, asking, findings, again)
        )
    return {"rows": walked.rows, "rows_read": walked.rows_read, "sampled": compared, **_spent(spending)}


@app.command(epilog="Example: embedctl vectors search handbook.parquet 'sick leave'", context_settings=_HELP)
def search(
    file: Where,
    words: Annotated[str, typer.Argument(help="What to look for.", metavar="WORDS")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, max=10_000, help="Most results.")] = 5,
    model: ModelFlag = None,
    provider: ProviderFlag = None,
    workspace: WorkspaceFlag = None,
    tag: TagFlag = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Find the rows nearest in meaning, by cosine, with the model that made the file."""
    from embedctl.vectors import files
    from embedctl.vectors import search as searching

    if not words.strip():
        raise WrongUsage("nothing to look for", hint="embedctl vectors search FILE 'some words'")
    flags = _Flags(
        model=model, provider=provider, workspace=workspace, tag=tag, config=config, ledger=ledger, verbose=verbose
    )
    stored = files.open_stored(file)
    query, paid = _embedded(words, stored, flags)
    hits = [hit.as_dict() for hit in searching.nearest(stored, query, count)]
    shape = _ledger.chosen_format(form, as_json)
    short = _short if shape == "table" else lambda text: text
    rows = [{**hit, "score": f"{hit['score']:.4f}", "text": short(hit["text"])} for hit in hits]
    columns = [
        terminal.Column("score", "Score", "right"),
        terminal.Column("id", "Id"),
        terminal.Column("chunk_index", "Chunk", "right"),
        terminal.Column("text", "Text"),
    ]
    envelope = {"results": hits, "query": words, **paid, "warnings": []}
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), shape)


def _embedded(words: str, stored: Stored, flags: _Flags) -> tuple[Any, dict[str, Any]]:
    """The vector of a question in the output's space; who made it, and what it cost."""
    from embedctl.runs import adhoc

    if printable(words) != words:
        raise WrongUsage("the words are no text: a byte of them is not UTF-8")
    asking = flags.asking(stored, must=True, as_query=True)
    assert asking is not None  # noqa: S101 - it must
    made = _with_ledger(
        asking.settings,
        lambda: adhoc.embed(
            asking.settings,
            asking.chain,
            [asking.endpoint.prefix + words],
            purpose="query",
            command="vectors search",
            space=asking.space,
            told=flags.told,
            warned=terminal.warning,
        ),
    )
    query = made.vector(0)
    if query is None:
        raise InputInvalid(f"the words cannot be embedded: {made.refusals[0].message}")
    return query, {"model": asking.endpoint.id, **_spent(made.spending)}


def _input(
    stored: Stored, inputs: list[str], asking: Asking | None, flags: _Flags, place: Path, findings: Findings
) -> Input:
    """The input, read as it was when the output was made."""
    from embedctl.inputs import source as sources
    from embedctl.vectors import against
    from embedctl.vectors.verify import Input

    shaped = against.options_of(stored)
    exact = shaped is not None and asking is not None
    if not exact:
        why = "it does not say how it was made" if shaped is None else "its model is not configured here"
        findings.add("not_checked", str(stored.path), f"only ids are compared with the input: {why}", wrong=False)
    options = flags.load(shaped or {}).options
    return Input(
        source=sources.open_input(inputs, against.read_options(options, place)),
        options=options,
        endpoint=asking.endpoint if exact and asking is not None else None,
    )


def _with_ledger(found: Settings, call: Callable[[], _T]) -> _T:
    """Do it, and take what it cost into the ledger, however it ends."""
    try:
        return call()
    finally:
        _ledger.book(found)


def _spent(spending: Spending | None) -> dict[str, Any]:
    if spending is None:
        return {"tokens": 0, "cost": None, "currency": "USD"}
    known = spending.priced or not spending.unpriced
    return {"tokens": spending.tokens, "cost": spending.cost if known else None, "currency": "USD"}


def _print_findings(title: str, findings: Findings, envelope: Mapping[str, Any], form: terminal.Format) -> None:
    rows = [{**one.as_dict(), "state": "wrong" if one.wrong else "note"} for one in findings]
    if not rows and form in ("table", "md"):
        typer.echo(terminal.safe(title))
        return
    whole = {
        **envelope,
        "findings": [one.as_dict() for one in findings],
        "warnings": [f"{one.where}: {one.message}" for one in findings if not one.wrong],
    }
    words = (("state", "State"), ("check", "Check"), ("where", "Where"), ("message", "What"))
    columns = [terminal.Column(key, name) for key, name in words]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=whole, title=title), form)


def _short(text: str | None, width: int = 72) -> str | None:
    if text is None:
        return None
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"

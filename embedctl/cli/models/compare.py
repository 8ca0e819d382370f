"""`embedctl models compare`: which model finds what, on one's own texts, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import (
    ConfigFlag,
    FormatFlag,
    JsonFlag,
    LedgerFlag,
    OverwriteFlag,
    as_options,
)
from embedctl.errors import WrongUsage
from embedctl.telemetry.watching import watched

if TYPE_CHECKING:
    from embedctl.evaluation.candidates import Candidate
    from embedctl.evaluation.collection import Sampled
    from embedctl.evaluation.comparison import Comparison, Variant
    from embedctl.evaluation.queries import QuerySet
    from embedctl.settings import Settings

app = typer.Typer()

MOST = 10_000
"""Rows of a sample: all pairs of questions and items are looked at."""


@app.command(
    epilog="Example: embedctl models compare docs/ --candidates onnx:all-MiniLM-L6-v2,openai:text-embedding-3-small "
    "--max-cost 0.25 --html models.html"
)
def compare(
    inputs: Annotated[list[str], typer.Argument(help="Files, globs, folders.", metavar="INPUT...")],
    *,
    candidates: Annotated[
        list[str],
        typer.Option(
            "--candidates",
            "-m",
            autocompletion=_completion.models,
            help="Models, with commas; repeatable.",
            metavar="MODEL,MODEL",
        ),
    ],
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            help="Table of questions: columns query, and id of the row that answers it. [default: made of the texts: "
            "a title or heading, else the first sentence, asks for the rest]",
            metavar="FILE",
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, max=MOST, help="Rows to search, chosen by chance.", show_default=True)
    ] = 500,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed chooses the same.", show_default=True)] = 0,
    dimensions: Annotated[
        str | None,
        typer.Option(
            "--dimensions", help="Shorter vectors to look at, with commas. [default: those a model was trained for]"
        ),
    ] = None,
    rows_per_month: Annotated[
        int | None,
        typer.Option("--rows-per-month", min=0, help="Rows that a month brings. [default: as many as INPUT has]"),
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option("--max-cost", help="Maximum cost of all candidates together.", metavar="USD")
    ] = None,
    allow_unpriced: Annotated[
        bool, typer.Option("--allow-unpriced", help="With --max-cost: allow models without a price.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep and use vectors in the shared cache.", show_default=True)
    ] = True,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", autocompletion=_completion.workspaces, help="Workspace to charge."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="K=V kept with every usage event; repeatable.", metavar="K=V")
    ] = None,
    text_column: Annotated[str | None, typer.Option("--text-column", help="Table column to embed.")] = None,
    id_column: Annotated[str | None, typer.Option("--id-column", help="Table column of row ids.")] = None,
    title_column: Annotated[
        str | None,
        typer.Option("--title-column", help="Table column of titles. [default: title, subject, headline or heading]"),
    ] = None,
    split: Annotated[
        Literal["document", "lines", "paragraphs"] | None,
        typer.Option("--split", help="Unit of a text file that becomes one row. [default: document]"),
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option("--chunk-size", help="Tokens per chunk. [default: as `embed` chunks]")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the frontier, too.", metavar="FILE")
    ] = None,
    overwrite: OverwriteFlag = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is waited for and why.")] = False,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Compare models on your own texts: what each finds, costs and stores, keyword search beside them.

    Every candidate embeds the same sample (purpose `test`; what is answered is kept, and never bought again). Rows with
    the same text are one item; near-duplicates of what a question should find are left out of its ranking.
    """
    from embedctl import settings
    from embedctl.storage import named

    if html is not None:
        named.check_free(html, overwrite=overwrite)
    given = {
        "workspace": workspace, "tag": tag or None, "text_column": text_column, "id_column": id_column,
        "split": split, "chunk_size": chunk_size, "max_cost": max_cost, "allow_unpriced": allow_unpriced or None,
    }  # fmt: skip
    flags = as_options({name: value for name, value in given.items() if value is not None})
    loaded = settings.load(flags=flags, config=config, ledger=ledger)
    widths = _widths(dimensions)
    names = [name.strip() for text in candidates for name in text.split(",") if name.strip()]
    found = _compared(
        loaded, names, inputs, queries,
        sample=sample, seed=seed, title_column=title_column, widths=widths, rows_a_month=rows_per_month, cache=cache,
        observer=terminal.TerminalObserver(verbose=verbose),
    )  # fmt: skip
    if html is not None:
        from embedctl.evaluation import page

        page.write(found, html, overwrite=overwrite)
        terminal.notice(f"page written to {html}")
    _print(found, _ledger.chosen_format(form, as_json))


def _compared(
    settings: Settings,
    names: Sequence[str],
    inputs: Sequence[str],
    queries: Path | None,
    *,
    sample: int,
    seed: int,
    title_column: str | None,
    widths: Sequence[int],
    rows_a_month: int | None,
    cache: bool,
    observer: terminal.TerminalObserver,
) -> Comparison:
    """Everything is looked at before anything is bought; what was bought is booked however it ends."""
    from embedctl.evaluation import comparison
    from embedctl.evaluation.candidates import candidates
    from embedctl.ledger.prices.run_prices import RunPrices
    from embedctl.records import utc_now
    from embedctl.storage.vector_cache import VectorCache

    prices = RunPrices(settings.paths.price_file, utc_now())
    models = candidates(settings, names, prices, observer)
    sampled, query_set = _sampled(settings, inputs, queries, sample=sample, seed=seed, title_column=title_column)
    kept = settings.cache
    store = VectorCache(settings.paths.cache, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, observer=observer)
    with closing(store), watched(settings, observer) as told:
        try:
            return comparison.compare(
                models,
                query_set,
                sampled,
                seed=seed,
                dimensions=widths,
                rows_a_month=rows_a_month,
                max_cost=settings.options.max_cost,
                cache=store if cache else None,
                observer=told,
                tell=_tell,
            )
        finally:
            _ledger.book(settings)


def _sampled(
    settings: Settings,
    inputs: Sequence[str],
    queries: Path | None,
    *,
    sample: int,
    seed: int,
    title_column: str | None,
) -> tuple[Sampled, QuerySet]:
    from embedctl.evaluation import collection
    from embedctl.evaluation import queries as query_sets
    from embedctl.inputs import ALIKE, ReadOptions

    options = settings.options
    alike: dict[str, Any] = {name: getattr(options, name) for name in ALIKE}
    read = ReadOptions(on_bad_file=options.on_bad_file, **alike)
    asked = [] if queries is None else collection.some(collection.asked(queries), sample, seed)
    sampled = collection.read(
        inputs, read, size=sample, seed=seed, title_column=title_column, wanted={row_id for _, row_id in asked}
    )
    if queries is None:
        return sampled, query_sets.known_items(sampled.items)
    return sampled, query_sets.questions(sampled.items, asked, queries.name)


def _tell(candidate: Candidate, texts: int, questions: int) -> None:
    terminal.notice(f"{candidate.endpoint.id}: {texts:,} texts and {questions:,} questions")


def _widths(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 100_000 for part in parts):
        raise WrongUsage(f"--dimensions {text!r} is no list of numbers", hint="like --dimensions 512,256")
    return sorted({int(part) for part in parts}, reverse=True)


_COLUMNS = (
    terminal.Column("model", "Model"),
    terminal.Column("dimensions", "Dims", "right"),
    terminal.Column("dtype", "Type"),
    terminal.Column("recall_at_1", "Recall@1", "right"),
    terminal.Column("recall_at_10", "Recall@10", "right"),
    terminal.Column("mrr", "MRR", "right"),
    terminal.Column("interval", "95 % of MRR", "right", optional=1),
    terminal.Column("cost_input", "Input USD ~", "right"),
    terminal.Column("cost_input_batch", "in batches", "right", optional=3),
    terminal.Column("cost_month", "Month USD ~", "right", optional=4),
    terminal.Column("bytes", "Stored ~", "right"),
    terminal.Column("time", "Time ~", "right", optional=2),
    terminal.Column("best", "Best"),
)


def _print(found: Comparison, form: terminal.Format) -> None:
    envelope = found.as_dict()
    if form == "csv":
        rows = [{**row, **{f"{key}_{end}": value for key, pair in row["intervals"].items()
                           for end, value in zip(("low", "high"), pair, strict=True)}}
                for row in (*envelope["candidates"], envelope["baseline"])]  # fmt: skip
        keys = [key for key in rows[0] if key != "intervals"]
        columns = [terminal.Column(key, key, exact=not isinstance(rows[0][key], str)) for key in keys]
        for line in found.warnings:
            terminal.warning(line)
        terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), form)
        return
    shown = [_row(one, row) for one, row in zip(found.variants, envelope["candidates"], strict=True)]
    legend = (
        "best: pareto = no other is as good in MRR, cost and bytes and better in one; ~ = may be as good as the best"
    )
    terminal.table(
        terminal.Table(
            columns=_COLUMNS,
            rows=[*shown, _quality_cells(envelope["baseline"])],
            envelope=envelope,
            title=f"{envelope['queries']:,} queries, {envelope['sample']:,} items (seed {found.seed})",
            footer=[legend, *(f"! {line}" for line in found.warnings)],
        ),
        form,
    )


def _row(one: Variant, row: dict[str, Any]) -> dict[str, Any]:
    """A variant as people read it."""
    from embedctl.evaluation.page import bytes_shown, seconds_shown, usd_shown

    expected = one.expected
    return {
        **_quality_cells(row),
        "dimensions": str(one.dimensions),
        "dtype": one.dtype,
        "cost_input": usd_shown(expected.cost),
        "cost_input_batch": None if expected.cost_batch is None else usd_shown(expected.cost_batch),
        "cost_month": usd_shown(expected.month),
        "bytes": bytes_shown(one.bytes),
        "time": seconds_shown(expected.seconds if expected.seconds is not None else expected.seconds_measured),
        "best": " ".join([*(["pareto"] if one.pareto else []), *(["~"] if one.as_good_as_best else [])]) or None,
    }


def _quality_cells(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row["intervals"]["mrr"]
    return {
        "model": row["model"],
        **{name: f"{row[name]:.3f}" for name in ("recall_at_1", "recall_at_10", "mrr")},
        "interval": f"{low:.3f} .. {high:.3f}",
    }

"""`embedctl vectors`: what an output holds, whether it is right, what is near to what."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedctl import storage, terminal
from embedctl.cli import _ledger, vectors_asking
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli._groups import Group
from embedctl.cli.vectors_asking import Where, Words
from embedctl.errors import EmbedctlError, OutputRefused, WrongUsage
from embedctl.records import format_money
from embedctl.reports import charts

if TYPE_CHECKING:
    from embedctl.vectors.about import About

app = Group(
    help="Look at vectors: info, verify, search, map.",
    epilog="Example: embedctl vectors search handbook.parquet 'sick leave'",
)
_HELP = {"help_option_names": ["-h", "--help"]}


@app.command(epilog="Example: embedctl vectors info tickets/", context_settings=_HELP)
def info(
    file: Where,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Show what is in it: space, rows, failures, who made it, tokens, cost, size."""
    from embedctl.vectors import about, files

    found = about.about(files.open_stored(file))
    money = _cost(found, config, ledger)
    rows = [{"fact": fact, "value": value} for fact, value in {**_facts(found), **_said(money)}.items()]
    envelope = {"schema_version": 1, **found.as_dict(), **money, "currency": "USD", "warnings": []}
    columns = [terminal.Column("fact", "Fact"), terminal.Column("value", "Value")]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), _ledger.chosen_format(form, as_json))


app.add_typer(vectors_asking.app)


@app.command("map", epilog="Example: embedctl vectors map tickets/ -o map.html --color product", context_settings=_HELP)
def picture(
    file: Where,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .html or .png file.", metavar="FILE")],
    color: Annotated[
        Words, typer.Option("--color", "-c", help="Column that decides the colour.", metavar="COLUMN")
    ] = None,
    most: Annotated[
        int, typer.Option("--points", min=3, max=20_000, help="Most points, evenly over the rows.")
    ] = 10_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Draw it in two dimensions (PCA): a page that loads nothing from elsewhere, or a picture."""
    from embedctl.vectors import files
    from embedctl.vectors import picture as drawing

    kind = output.suffix.casefold()
    if kind not in (".html", ".png"):
        raise WrongUsage(f"{output} is neither .html nor .png", hint="name it map.html or map.png")
    if output.exists() and not overwrite:
        raise OutputRefused(f"{output} exists", hint="choose another name, or --overwrite it")
    charts.require("plotly" if kind == ".html" else "matplotlib")
    stored = files.open_stored(file)
    axes = drawing.principal(stored)
    drawn = drawing.points(stored, axes, colour=color, most=most)
    title = f"{file.name}: {len(drawn.ids):,} of {stored.rows:,} vectors of {stored.space.model}"
    if kind == ".html":
        page = drawing.as_page(drawn, axes, title=title, colour=color).encode("utf-8", "replace")
        storage.replace(storage.DISK, output, page, mode=0o666)
    else:
        storage.replace(
            storage.DISK,
            output,
            lambda sink: drawing.as_png(sink, drawn, axes, title=title, colour=color),
            mode=0o666,
        )
    terminal.notice(f"{len(drawn.ids):,} points in {output}")


def _cost(found: About, config: Path | None, ledger: Path | None) -> dict[str, Any]:
    """What the ledger says of the operations that bought the vectors; nulls where it says nothing."""
    opened = _ledger.opened(ledger, config)
    money: dict[str, Any] = {"cost": None, "cost_is_lower_bound": True}
    if not found.operations or not opened.paths.database.exists():
        return money
    from embedctl.ledger import database, operations

    with suppress(EmbedctlError):
        _ledger.take_in(opened, wait_s=1)
        with database.reader(opened.paths, wait_s=1, now=opened.now) as connection:
            spent = operations.spent(connection, found.operations)
        return {"cost": spent.cost, "cost_is_lower_bound": spent.is_lower_bound}
    return money


def _said(money: Mapping[str, Any]) -> dict[str, Any]:
    if money["cost"] is None:
        return {"cost": "unknown: not in this ledger, or without a price"}
    return {"cost": f"{'at least ' if money['cost_is_lower_bound'] else ''}{format_money(money['cost'])} USD"}


def _facts(found: About) -> dict[str, Any]:
    """For people."""
    space = found.space
    extras = {
        "dimension_policy": None if space.dimension_policy == "native" else space.dimension_policy,
        "input_type": space.input_type,
        "prefix": space.prefix or None,
        "truncation": None if space.truncation == "none" else space.truncation,
    }
    lost = [f"{reason}: {count:,}" for reason, count in found.failures.items()]
    return {
        "path": f"{found.path} ({found.parts:,} parts)" if found.parts > 1 else found.path,
        "rows": found.rows,
        "model": f"{space.model}, {space.dimensions} dimensions, {found.dtype}",
        **{name: value for name, value in extras.items() if value is not None},
        "space_id": space.space_id,
        "made by": ", ".join(f"{p}:{m} ({rows:,})" for (p, m), rows in found.makers.items()),
        "tokens": f"at least {found.tokens:,}" if found.rows_without_tokens else found.tokens,
        "input rows": found.rows_read,
        "not embedded": ", ".join(lost) or "none",
        "columns": ", ".join(found.columns),
        "size": f"{found.size_bytes / 1e6:,.1f} MB" if found.size_bytes >= 1e6 else f"{found.size_bytes / 1e3:,.1f} kB",
    }

"""`embedctl vectors map`: an output drawn in two dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli._flags import OverwriteFlag, StoreOptionFlag
from embedctl.cli.vectors._output import OutputPath, opened
from embedctl.errors import WrongUsage
from embedctl.storage import named

app = typer.Typer()


@app.command("map", epilog="Example: embedctl vectors map tickets/ -o map.html --color product")
def draw(
    file: OutputPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .html or .png file.", metavar="FILE")],
    color: Annotated[
        str | None, typer.Option("--color", "-c", help="Column that decides the colour.", metavar="COLUMN")
    ] = None,
    most: Annotated[
        int, typer.Option("--points", min=3, max=20_000, help="Most points, evenly over the rows.")
    ] = 10_000,
    overwrite: OverwriteFlag = False,
    store_option: StoreOptionFlag = None,
) -> None:
    """Draw it in two dimensions (PCA): a page that loads nothing from elsewhere, or a picture."""
    from embedctl.reports import charts
    from embedctl.vectors import picture

    kind = output.suffix.casefold()
    if kind not in (".html", ".png"):
        raise WrongUsage(f"{output} is neither .html nor .png", hint="name it map.html or map.png")
    named.check_free(output, overwrite=overwrite)
    if kind == ".png":
        charts.require_pictures()
    stored = opened(file, store_option)
    axes = picture.principal(stored)
    points = picture.points(stored, axes, colour=color, most=most)
    title = f"{file.name}: {len(points.ids):,} of {stored.rows:,} vectors of {stored.space.model}"
    if kind == ".html":
        page = picture.as_page(points, axes, title=title, colour=color).encode("utf-8", "replace")
        named.write(output, page, overwrite=overwrite)
    else:
        named.write(
            output,
            lambda sink: picture.as_png(sink, points, axes, title=title, colour=color),
            overwrite=overwrite,
        )
    terminal.notice(f"{len(points.ids):,} points in {output}")

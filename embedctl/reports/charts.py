"""Charts for pages that load nothing from elsewhere (uPlot, bundled), and pictures (the only door to matplotlib)."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from functools import cache
from importlib import resources, util
from pathlib import Path
from typing import Any, BinaryIO

from embedctl import terminal, tokens
from embedctl.errors import ExtraMissing


def require_pictures() -> None:
    """Look for matplotlib before any work is done.

    Raises:
        ExtraMissing: It is not installed.
    """
    if util.find_spec("matplotlib") is None:
        raise ExtraMissing("pictures need matplotlib, which is not installed", extra="charts")


@cache
def library() -> str:
    """The script that every page with charts begins with: uPlot, and `Charts` on top of it.

    Raises:
        ConfigurationInvalid: The bundled uPlot is damaged or missing; so does what calls this.
    """
    return _asset("uplot.min.js") + "\n" + own("charts.js")


@cache
def style() -> str:
    """The style sheet of every page with charts; light or dark as the reader's system is."""
    return _asset("uplot.min.css") + own("page.css")


@cache
def own(name: str) -> str:
    """A script or style sheet of the pages, by its file's name."""
    return resources.files("embedctl.reports").joinpath("page", name).read_text("utf-8")


def _asset(name: str) -> str:
    return tokens.asset(f"uplot/{name}").read_text("utf-8")


def page(
    title: str, body: Sequence[str], *, script: str, values: Mapping[str, str], more_style: str = "", asks: bool = False
) -> str:
    """A whole page with charts.

    Args:
        body: HTML.
        script: What runs when the page is there, after `library()`.
        values: An element's id → JSON that the script reads from it.
        more_style: After `style()`.
        asks: Its script may ask the server that the page is from.
    """
    return document(title, body, scripts=[library(), script], sheet=style() + more_style, values=values, asks=asks)


def document(
    title: str,
    body: Sequence[str],
    *,
    scripts: Sequence[str],
    sheet: str,
    values: Mapping[str, str],
    asks: bool = False,
) -> str:
    """A whole page, whose policy lets it load nothing and run nothing but its own scripts; see `page`."""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hashed(sheet)}; "
        + ("connect-src 'self'; " if asks else "")
        + f"script-src {' '.join(_hashed(each) for each in scripts)}; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="referrer" content="no-referrer">',
            '<link rel="icon" href="data:,">',
            f"<title>{html.escape(terminal.safe(title))}</title>",
            f"<style>{sheet}</style>",
            "</head><body>",
            *body,
            *(f'<script type="application/json" id="{name}">{inline(text)}</script>' for name, text in values.items()),
            *(f"<script>{each}</script>" for each in scripts),
            "</body></html>\n",
        ]
    )


def inline(json: str) -> str:
    """JSON that may stand in a script element: the same to a reader of JSON, and it neither ends nor opens anything."""
    for char in "<>&\u2028\u2029":
        json = json.replace(char, f"\\u{ord(char):04x}")
    return json


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def scatter_png(sink: BinaryIO, groups: Sequence[Mapping[str, Any]], *, title: str, axes: tuple[str, str]) -> None:
    """Points as a PNG picture.

    Args:
        groups: Each with `name`, `x`, `y`; or a single one with numbers in `values`, shown by colour.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    require_pictures()
    with _matplotlib():
        _draw(sink, groups, title, axes)


@contextmanager
def _matplotlib() -> Iterator[None]:
    """Matplotlib with its own settings: it looks for a `matplotlibrc` in the current folder, which may start LaTeX."""
    with chdir(Path(__file__).parent):  # where it looks when it is imported
        import matplotlib as mpl
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def _draw(sink: BinaryIO, groups: Sequence[Mapping[str, Any]], title: str, axes: tuple[str, str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(10, 7.5), dpi=120, layout="constrained")
    FigureCanvasAgg(picture)
    plot = picture.subplots()
    for group in groups:
        values = group.get("values")
        label = str(group["name"]).replace("$", r"\$")
        points = plot.scatter(group["x"], group["y"], c=values, s=9, alpha=0.75, linewidths=0, label=label)
        if values is not None:
            picture.colorbar(points, ax=plot, label=label)
    if len(groups) > 1:
        plot.legend(markerscale=2, fontsize="small", loc="best")
    plot.set(xlabel=axes[0], ylabel=axes[1])
    plot.set_title(title.replace("$", r"\$"))
    picture.savefig(sink, format="png")

"""Charts for pages that load nothing from elsewhere. The only door to plotly (pages) and matplotlib (pictures)."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from importlib import util
from pathlib import Path
from typing import Any, BinaryIO

from embedctl.errors import ExtraMissing

Figure = Mapping[str, Any]
"""A plotly figure as data: `data` (traces) and `layout`."""

_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}


def require(library: str) -> None:
    """Look for plotly or matplotlib before any work is done.

    Raises:
        ExtraMissing: It is not installed.
    """
    if util.find_spec(library) is None:
        raise ExtraMissing(f"charts need {library}, which is not installed", extra="charts")


def script() -> str:
    """plotly.js, whole (about 5 MB): to stand once in a page, before its figures.

    Raises:
        ExtraMissing: plotly is not installed.
    """
    require("plotly")
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def figure(content: Figure, name: str) -> str:
    """The HTML of one figure; texts cannot end its script.

    Args:
        name: Its element's id, once in a page.

    Raises:
        ExtraMissing: plotly is not installed.
    """
    require("plotly")
    from plotly.io import to_html

    made = to_html(dict(content), include_plotlyjs=False, full_html=False, validate=False, config=_CONFIG, div_id=name)
    return str(made)


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """A whole page: plotly.js and `parts`, which are HTML; light or dark as the reader's system is.

    Raises:
        ExtraMissing: plotly is not installed.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data: blob:; '
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:\">",
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}{style}</style>",
            script(),
            "</head><body>",
            *parts,
            "</body></html>\n",
        ]
    )


def plain(text: object) -> str:
    """Text for plotly, which takes some tags for its own, and what stands between dollars for a formula."""
    return html.escape(str(text), quote=False).replace("$", "&#36;")


def scatter_png(sink: BinaryIO, groups: Sequence[Mapping[str, Any]], *, title: str, axes: tuple[str, str]) -> None:
    """Points as a PNG picture.

    Args:
        groups: Each with `name`, `x`, `y`; or a single one with numbers in `values`, shown by colour.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    require("matplotlib")
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


_STYLE = (
    ":root{color-scheme:light dark}body{margin:0;font:15px/1.4 system-ui,sans-serif;background:#fff;color:#222}"
    "@media(prefers-color-scheme:dark){body{background:#16181d;color:#ddd}}"
)

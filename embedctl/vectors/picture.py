"""A map of an output: every vector as a point, in the two directions in which they differ most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embedctl.errors import InputInvalid, WrongUsage, nearest
from embedctl.reports import charts
from embedctl.vectors.files import Stored

MOST_WORDS = 10
"""Words of a column that get a colour of their own; the others share one."""

_TEXT_LETTERS = 200
_ALL_THE_SAME = 1e-5
"""Variance of vectors of length 1 that is nothing but rounding."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The two directions in which vectors of length 1 differ most.

    Attributes:
        mean: float64, shape (D,).
        directions: float64, shape (2, D), of length 1, at a right angle.
        shares: Of the whole variance, each direction's part, 0 to 1.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    shares: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Points:
    """What is drawn.

    Attributes:
        places: float32, shape (n, 2).
        colours: The value of the colour column for each; empty without one.
    """

    places: NDArray[np.float32]
    ids: list[Any]
    chunk_indexes: list[int]
    texts: list[str | None]
    colours: list[Any]


def principal(stored: Stored) -> Axes:
    """PCA by one streaming pass: sums and products, never the vectors themselves.

    Raises:
        InputInvalid: It cannot be read, or holds fewer than three vectors, or they are all the same.
    """
    width = stored.space.dimensions
    count, total, products = 0, np.zeros(width), np.zeros((width, width))
    for batch in stored.batches(["embedding"]):
        vectors = _unit(batch.vectors(width), stored, batch.first_row)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        count += len(vectors)
        total += vectors.sum(axis=0, dtype=np.float64)
        products += vectors.T @ vectors
    if count < 3:
        raise InputInvalid(f"{stored.path} holds {count} vectors; a map needs three at least")
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    whole = float(variances.clip(0).sum())
    if whole < _ALL_THE_SAME:
        raise InputInvalid(f"all vectors of {stored.path} are the same; there is nothing to map")
    two = directions[:, ::-1][:, :2].T
    two *= np.sign(two[np.arange(2), np.abs(two).argmax(axis=1)])[:, None]  # the same map on every machine
    shares = (variances[::-1][:2].clip(0) / whole).tolist()
    return Axes(mean, two, (shares[0], shares[1]))


def points(stored: Stored, axes: Axes, *, colour: str | None, most: int) -> Points:
    """At most `most` rows, evenly over the output, where they stand on the map.

    Raises:
        WrongUsage: There is no such column to colour by.
        InputInvalid: It cannot be read.
    """
    columns = ["id", "chunk_index", "embedding", *(["text"] if stored.has_text else [])]
    if colour is not None:
        _check_column(stored, colour)
        columns += [colour] if colour not in columns else []
    step = -(-stored.rows // most)
    found = Points(np.empty((0, 2), np.float32), [], [], [], [])
    places = []
    for batch in stored.batches(columns):
        at = np.arange(-batch.first_row % step, len(batch), step)
        vectors = batch.vectors(stored.space.dimensions)
        unit = _unit(None if vectors is None else vectors[at], stored, batch.first_row)
        good = np.isfinite(unit).all(axis=1)
        places.append((unit[good] - axes.mean) @ axes.directions.T)
        for name, into in (("id", found.ids), ("chunk_index", found.chunk_indexes)):
            into += batch.some(name, at[good])
        found.texts.extend(batch.some("text", at[good]) if stored.has_text else [None] * int(good.sum()))
        if colour is not None:
            found.colours.extend(batch.some(colour, at[good]))
    together = np.concatenate(places).astype(np.float32) if places else found.places
    return Points(together, found.ids, found.chunk_indexes, found.texts, found.colours)


def as_page(drawn: Points, axes: Axes, *, title: str, colour: str | None) -> str:
    """The map as HTML that loads nothing from elsewhere.

    Raises:
        ExtraMissing: plotly is not installed.
    """
    hover = [
        f"<b>{charts.plain(name)}</b> · {chunk}<br>{_wrapped(text)}"
        for name, chunk, text in zip(drawn.ids, drawn.chunk_indexes, drawn.texts, strict=True)
    ]
    traces = []
    for name, rows, values in _groups(drawn.colours, len(hover), colour):
        marker: dict[str, Any] = {"size": 6, "opacity": 0.75}
        if values is not None:
            bar = {"title": {"text": charts.plain(name)}}
            marker |= {"color": values, "colorscale": "Viridis", "showscale": True, "colorbar": bar}
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": charts.plain(name),
                "x": drawn.places[rows, 0].round(5).tolist(),
                "y": drawn.places[rows, 1].round(5).tolist(),
                "text": [hover[row] for row in rows],
                "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
                "marker": marker,
            }
        )
    layout = _layout(title, axes, colour, legend=len(traces) > 1)
    return charts.page(title, [charts.figure({"data": traces, "layout": layout}, "map")], "html,body{height:100%}")


def as_png(sink: BinaryIO, drawn: Points, axes: Axes, *, title: str, colour: str | None) -> None:
    """The map as a picture.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    groups = [
        {"name": name, "x": drawn.places[rows, 0], "y": drawn.places[rows, 1], "values": values}
        for name, rows, values in _groups(drawn.colours, len(drawn.ids), colour)
    ]
    charts.scatter_png(sink, groups, title=title, axes=(_axis(axes, 0), _axis(axes, 1)))


def _layout(title: str, axes: Axes, colour: str | None, *, legend: bool) -> dict[str, Any]:
    return {
        "title": {"text": charts.plain(title), "font": {"size": 16}},
        "xaxis": {"title": {"text": _axis(axes, 0)}, "gridcolor": _GREY, "zerolinecolor": _GREY},
        "yaxis": {"title": {"text": _axis(axes, 1)}, "gridcolor": _GREY, "zerolinecolor": _GREY},
        "hovermode": "closest",
        "showlegend": legend,
        "legend": {"title": {"text": charts.plain(colour or "")}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888"},
        "hoverlabel": {"align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
    }


def _groups(
    colours: Sequence[Any], count: int, colour: str | None
) -> list[tuple[str, NDArray[np.int64], list[float] | None]]:
    """(name, rows, numbers) of what is drawn in one colour, or by a scale of numbers."""
    everything = np.arange(count)
    if colour is None:
        return [("rows", everything, None)]
    numbers = [value for value in colours if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) + sum(value is None for value in colours) == count:
        return [(colour, everything, [float("nan") if value is None else float(value) for value in colours])]
    words = ["none" if value is None else str(value) for value in colours]
    ranked = [word for word, _ in Counter(words).most_common()]
    kept = ranked if len(ranked) <= MOST_WORDS + 1 else ranked[:MOST_WORDS]
    named = np.array(words, dtype=object)
    groups: list[tuple[str, NDArray[np.int64], list[float] | None]] = [
        (word, np.flatnonzero(named == word), None) for word in kept
    ]
    if rest := set(ranked) - set(kept):
        others = np.flatnonzero([word in rest for word in words])
        groups.append((f"{len(rest):,} others", others, None))
    return groups


def _unit(vectors: NDArray[Any] | None, stored: Stored, first_row: int) -> NDArray[np.float32]:
    """Vectors of length 1; NaN where one is none."""
    if vectors is None:
        raise InputInvalid(
            f"a vector near {stored.place(first_row)} is missing, or not as wide as the others",
            hint="`embedctl vectors verify` names everything that is wrong",
        )
    numbers = vectors.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        unit: NDArray[np.float32] = numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
    return unit


def _check_column(stored: Stored, name: str) -> None:
    known = [one for one in stored.schema.names if one not in ("embedding", "embedding_text_hash")]
    if name not in known:
        close = nearest(name, known)
        raise WrongUsage(
            f"{stored.path} has no column {name!r} to colour by",
            hint=f"did you mean {close!r}?" if close else f"columns: {', '.join(known)}",
        )


def _axis(axes: Axes, which: int) -> str:
    return f"{('first', 'second')[which]} direction ({axes.shares[which]:.0%} of the variance)"


def _wrapped(text: str | None) -> str:
    if text is None:
        return ""
    line = " ".join(text.split())
    line = line if len(line) <= _TEXT_LETTERS else line[: _TEXT_LETTERS - 1] + "…"
    return "<br>".join(charts.plain(line[at : at + 60]) for at in range(0, len(line), 60))


_GREY = "rgba(128,128,128,.25)"

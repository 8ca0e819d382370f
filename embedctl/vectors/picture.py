"""A map of an output: every vector as a point, in the two directions in which they differ most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from embedctl import terminal
from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, WrongUsage, nearest
from embedctl.reports import charts
from embedctl.vectors.files import Stored

MOST_WORDS = 10
"""Words of a column that get a colour of their own; the others share one."""

_TEXT_LETTERS = (200, 160, 130, 100, 80, 60, 50, 40, 30, 24, 18, 12)
_ID_LETTERS = (80, 50, 30, 20, 12, 8, 5, 3)
_MOST_BYTES = 1_400_000  # of a page's points; its script takes some 80 kB
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
    """The map as HTML that loads nothing from elsewhere; texts are cut until it weighs little."""
    groups = _groups(drawn.colours, len(drawn.ids), colour)
    order = np.concatenate([rows for _, rows, _ in groups]).tolist()
    numbers = groups[0][2]
    ends = [(float(low), float(high)) for low, high in zip(drawn.places.min(0), drawn.places.max(0), strict=True)]
    places = [_steps(drawn.places[order, axis], ends[axis]) for axis in (0, 1)]
    ids, id_letters = _within([_line(drawn.ids[row]) for row in order], _ID_LETTERS, _MOST_BYTES // 2)
    chunks = [drawn.chunk_indexes[row] for row in order]
    values: dict[str, Any] = {
        "title": terminal.safe(title),
        "colour": None if colour is None else _line(colour),
        "axes": [_axis(axes, 0), _axis(axes, 1)],
        "ranges": ends,
        "groups": _spans(groups),
        "x": places[0],
        "y": places[1],
        "ids": ids,
        "chunks": chunks if any(chunks) else None,
        "values": None if numbers is None else [None if number != number else _digits(number) for number in numbers],
        "texts": None,
        "notes": [],
    }
    if id_letters < _ID_LETTERS[0]:
        values["notes"].append(f"Ids are cut after {id_letters} letters, so that the page weighs little.")
    if any(text is not None for text in drawn.texts):
        left = _MOST_BYTES - len(_json(values).encode())
        texts, letters = _within([_line(drawn.texts[row] or "") for row in order], _TEXT_LETTERS, left)
        values["texts"] = texts if letters else None
        if not letters:
            values["notes"].append("Texts are left out, so that the page weighs little: draw fewer --points.")
        elif letters < _TEXT_LETTERS[0]:
            values["notes"].append(f"Texts are cut after {letters} letters, so that the page weighs little.")
    body = [
        '<main><div class="filters" id="filters" role="group" aria-label="Search"></div>',
        '<noscript><p class="warn">The map needs JavaScript; it loads nothing.</p></noscript>',
        '<div class="cards" id="charts"></div></main>',
    ]
    return charts.page(title, body, script=charts.own("map.js"), values={"page": _json(values)})


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


def _spans(groups: Sequence[tuple[str, NDArray[np.int64], Any]]) -> list[dict[str, Any]]:
    """Names of groups, and where each stands among the points."""
    spans: list[dict[str, Any]] = []
    first = 0
    for index, (name, rows, _) in enumerate(groups):
        spans.append({"name": _line(name), "first": first, "count": len(rows), "rest": index >= MOST_WORDS})
        first += len(rows)
    return spans


def _steps(places: NDArray[np.float32], ends: tuple[float, float]) -> list[int]:
    """Places as 65535ths of their range: finer than any screen, and short."""
    low, high = ends
    whole: list[int] = np.rint((places.astype(np.float64) - low) / ((high - low) or 1.0) * 65535).astype(int).tolist()
    return whole


def _within(lines: list[str], letters: Sequence[int], most: int) -> tuple[list[str], int]:
    """Lines cut after as many letters, of those given, as make them take `most` bytes in a page; 0 if none do."""
    for count in letters:
        cut = [line if len(line) <= count else line[: count - 1] + "…" for line in lines]
        if len(_json(cut).encode()) <= most:
            return cut, count
    return [], 0


def _line(text: object) -> str:
    """A text as one line that is safe to show."""
    return terminal.safe(" ".join(str(text).split())[: _TEXT_LETTERS[0] + 1])


def _json(value: object) -> str:
    return charts.inline(orjson.dumps(value).decode())


def _digits(number: float) -> float:
    return float(f"{number:.6g}")


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

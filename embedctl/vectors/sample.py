"""Some rows of an output, chosen evenly while it is read, and what their texts look like embedded once more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_COSINE = 0.999
"""Two vectors of one text are the same from here on: hosts and quantisation differ by less."""


ALIKE_HERE = 0.997
"""Of a model that runs here: versions of its arithmetic differ by less (0.9979 was the most that was seen)."""


class Sample:
    """At most `size` rows, each with the same chance, however many come by.

    Args:
        draw: Where chance comes from.
    """

    def __init__(self, size: int, draw: np.random.Generator) -> None:
        self._size = size
        self._draw = draw
        self._kept: list[tuple[float, int, str, NDArray[Any]]] = []

    def take(self, first_row: int, texts: list[str | None], vectors: NDArray[Any]) -> None:
        """See some rows: vectors[i] is said to be of texts[i]."""
        chances = self._draw.random(len(texts))
        bound = self._kept[-1][0] if len(self._kept) == self._size else 1.0
        for at in np.flatnonzero(chances < bound):
            text = texts[at]
            if text is not None:
                self._kept.append((float(chances[at]), first_row + int(at), text, vectors[at].copy()))
        self._kept = sorted(self._kept, key=lambda kept: kept[:2])[: self._size]

    def rows(self) -> list[tuple[int, str, NDArray[Any]]]:
        """(row, text, vector) of those that were chosen, in the order of the output."""
        return sorted((kept[1:] for kept in self._kept), key=lambda kept: kept[0])


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Of two vectors; 0 when their widths differ or one of them is none."""
    if one.shape != other.shape:
        return 0.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        found = float(a @ b) / length if length else 0.0
    return found if np.isfinite(found) else 0.0

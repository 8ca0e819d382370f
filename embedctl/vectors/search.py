"""The rows whose vectors point most nearly where a query's vector points: exact, streaming, by cosine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid
from embedctl.vectors.files import Stored


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A row that was found.

    Attributes:
        score: Cosine, -1 to 1.
        text: None where the output holds no texts.
    """

    row: int
    id: str | int
    chunk_index: int
    score: float
    text: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON (design.md 3)."""
        return {"id": self.id, "chunk_index": self.chunk_index, "score": self.score, "text": self.text}


def nearest(stored: Stored, query: NDArray[np.float32], k: int) -> list[SearchResult]:
    """The `k` rows with the greatest cosine, best first; of equal ones the first in the output.

    Args:
        query: float32, shape (D,), D being the output's width.

    Raises:
        InputInvalid: The output cannot be read.
    """
    scores, rows = np.empty(0, np.float32), np.empty(0, np.int64)
    direction = (query / np.linalg.norm(query)).astype(np.float32)
    for batch in stored.batches(["embedding"]):
        vectors = batch.vectors(stored.space.dimensions)
        if vectors is None:
            raise InputInvalid(
                f"a vector near {stored.place(batch.first_row)} is missing, or not as wide as the others",
                hint="`embedctl vectors verify` names everything that is wrong",
            )
        found = cosines(vectors, direction)
        at = np.flatnonzero(found > (scores[-1] if len(scores) == k else -np.inf))
        scores = np.concatenate([scores, found[at]])
        rows = np.concatenate([rows, at + batch.first_row])
        order = np.lexsort((rows, -scores))[:k]
        scores, rows = scores[order], rows[order]
    return [_hit(stored, int(row), float(score)) for row, score in zip(rows, scores, strict=True)]


def cosines(vectors: NDArray[Any], direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each vector with a direction of length 1; NaN, greater than nothing, where a vector is none."""
    numbers = vectors.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", numbers, numbers))
        found: NDArray[np.float32] = (numbers @ direction) / lengths
    return found


def _hit(stored: Stored, row: int, score: float) -> SearchResult:
    names = ["id", "chunk_index", "text"] if stored.has_text else ["id", "chunk_index"]
    found = stored.take(row, names)
    return SearchResult(row, found["id"], found["chunk_index"], score, found.get("text"))

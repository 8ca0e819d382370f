"""Whether a model is still the one that made some vectors: pure comparisons of what it makes of the same texts.

Thresholds were measured with the bundled model (tests/cli/test_drift.py): half precision, of numbers
or of whole layers, is above 0.99999; eight bits of the weights, another pooling, prefix or tokenizer are below 0.999.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass

SAME_COSINE = 0.999
DOUBTFUL_COSINE = 0.97
"""Between the two, other arithmetic may be all: ranks decide. Below, no arithmetic is that coarse."""

SAME_LENGTH = 0.01
RANKED_TEXTS = 8
"""So many texts at least are ranked; of fewer, cosines alone decide."""

_MEAN_RANKS, _LEAST_RANKS = 0.9985, 0.99


@dataclass(frozen=True, slots=True)
class Difference:
    """How vectors of the same texts compare.

    Attributes:
        cosine: The least of them; 0 when widths differ.
        what: In words, what differs; None when nothing does.
    """

    cosine: float
    what: str | None = None

    @property
    def is_doubtful(self) -> bool:
        """Directions differ a little, and nothing else does."""
        return self.what is not None and DOUBTFUL_COSINE <= self.cosine < SAME_COSINE


def compare(before: NDArray[np.float32], now: NDArray[np.float32]) -> Difference:
    """Compare vectors of the same texts, shape (n, D): their width, their lengths, their directions."""
    if before.shape != now.shape:
        return Difference(0.0, f"{now.shape[1]} dimensions instead of {before.shape[1]}")
    lengths, were = (np.linalg.norm(one.astype(np.float64), axis=1) for one in (now, before))
    cosine = round(float(np.clip((np.einsum("ij,ij->i", before, now) / (lengths * were)).min(), -1, 1)), 6)
    if cosine < SAME_COSINE:
        return Difference(cosine, f"cosine {cosine:.4f}")
    ratio = lengths / were
    if np.abs(ratio - 1).max() > SAME_LENGTH:
        worst = float(ratio[np.abs(ratio - 1).argmax()])
        return Difference(cosine, f"vectors {worst:.3g} times as long: they are normalised in another way")
    return Difference(cosine)


def ranks_agree(before: NDArray[np.float32], now: NDArray[np.float32]) -> bool:
    """Whether each text, as it is embedded now, finds the others in the order in which it found them before.

    Args:
        before: Vectors as they are kept, shape (n, D); `now` of the same texts. n is at least RANKED_TEXTS.
    """
    ours, theirs = _unit(before), _unit(now)
    were, are = ours @ ours.T, theirs @ ours.T
    if (are.argmax(axis=1) != np.arange(len(ours))).any():
        return False  # a text does not find itself
    agreements = [_spearman(np.delete(were[at], at), np.delete(are[at], at)) for at in range(len(ours))]
    return float(np.mean(agreements)) >= _MEAN_RANKS and min(agreements) >= _LEAST_RANKS


def _spearman(one: Sequence[float] | NDArray[np.float32], other: Sequence[float] | NDArray[np.float32]) -> float:
    """Rank correlation; ranks of different numbers."""
    mine, theirs = (np.argsort(np.argsort(values)).astype(np.float64) for values in (one, other))
    mine, theirs = mine - mine.mean(), theirs - theirs.mean()
    return float(mine @ theirs / np.sqrt((mine @ mine) * (theirs @ theirs)))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = vectors.astype(np.float32)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), dtype=np.float32)

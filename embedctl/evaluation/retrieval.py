"""What a ranking is worth: Recall@1, Recall@10, MRR, and how sure one can be of them. Pure.

Written out, because each is a line; tests compare them with trec_eval and with a computation of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.evaluation.queries import Question

RESAMPLES = 1000
CONFIDENCE = 0.95
_QUERIES_AT_ONCE = 256

Scores = Callable[[int, int], NDArray[np.float32]]
"""First and last query (left out) → float32, shape (queries, items): the higher the better, -inf for an item that has
no vector."""

MEASURES = ("recall_at_1", "recall_at_10", "mrr")


@dataclass(frozen=True, slots=True)
class Quality:
    """What a ranking is worth, query by query.

    Attributes:
        each: Measure → float64, shape (queries,).
    """

    each: dict[str, NDArray[np.float64]]

    def mean(self, measure: str) -> float:
        """Over all queries."""
        return float(self.each[measure].mean())

    def interval(self, measure: str, resamples: NDArray[np.float64]) -> tuple[float, float]:
        """Where the mean lies with 95 %, had other queries of the kind been asked (percentile bootstrap)."""
        return _interval(resamples @ self.each[measure])

    def lead(self, other: Quality, measure: str, resamples: NDArray[np.float64]) -> tuple[float, float]:
        """Where the mean's distance from another's lies with 95 %: both are asked the same queries."""
        return _interval(resamples @ (self.each[measure] - other.each[measure]))

    def as_dict(self, resamples: NDArray[np.float64]) -> dict[str, Any]:
        """Means and intervals, with four decimals."""
        intervals = {name: [round(end, 4) for end in self.interval(name, resamples)] for name in MEASURES}
        return {**{name: round(self.mean(name), 4) for name in MEASURES}, "intervals": intervals}


def quality(scores: Scores, queries: Sequence[Question]) -> Quality:
    """How well the queries' targets are ranked.

    Recall@k: the share of a query's targets among the first k. MRR: 1 / the rank of the first of them. Items of equal
    score stand before the target: nobody is ranked high by chance.
    """
    found = {name: np.zeros(len(queries)) for name in MEASURES}
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        end = min(start + _QUERIES_AT_ONCE, len(queries))
        for place, row in zip(range(start, end), scores(start, end), strict=True):
            ranks = _ranks(row, queries[place])
            for name, most in (("recall_at_1", 1), ("recall_at_10", 10)):
                found[name][place] = (ranks <= most).mean()
            found["mrr"][place] = (1 / ranks).max()
    return Quality(found)


def _ranks(scores: NDArray[np.float32], query: Question) -> NDArray[np.float64]:
    """Rank of each target, from 1; infinite for one without a vector."""
    if query.left_out:
        scores = scores.copy()
        scores[list(query.left_out)] = -np.inf
    own = scores[list(query.targets)]
    ranks: NDArray[np.float64] = (scores[None, :] >= own[:, None]).sum(axis=1).astype(np.float64)
    ranks[np.isneginf(own)] = np.inf
    return ranks


def resamples(queries: int, seed: int) -> NDArray[np.float64]:
    """Weights of each query in RESAMPLES draws with replacement, shape (RESAMPLES, queries); rows sum up to 1."""
    draw = np.random.default_rng(seed)
    drawn = draw.multinomial(queries, np.full(queries, 1 / queries), size=RESAMPLES)
    weights: NDArray[np.float64] = drawn.astype(np.float64) / queries
    return weights


def _interval(means: NDArray[np.float64]) -> tuple[float, float]:
    edge = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [edge, 100 - edge])
    return float(low), float(high)

"""Keyword search, which a model must beat: BM25 as Lucene computes it. Pure.

Written out, because the library that has it brings SciPy along (35 MB) for what stands here in a page; a test compares
it with that one, bm25s. Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), and Lucene's
BM25Similarity, whose idf is never negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

K1 = 1.5
B = 0.75


class KeywordIndex:
    """Which texts have a word, and what it weighs in each.

    Args:
        texts: The words of each.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._count = len(texts)
        lengths = np.array([len(one) for one in texts], np.float64)
        damping = K1 * (1 - B + B * lengths / max(lengths.mean(), 1.0))
        holders: dict[str, list[tuple[int, int]]] = {}
        for place, one in enumerate(texts):
            for word, times in Counter(one).items():
                holders.setdefault(word, []).append((place, times))
        self._weights: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for word, pairs in holders.items():
            places, often = np.array(pairs).T
            rarity = np.log1p((self._count - len(places) + 0.5) / (len(places) + 0.5))
            self._weights[word] = places, rarity * often / (often + damping[places])

    def scores(self, queries: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """float32, shape (queries, texts): how well each text fits the words of each query, 0 for not at all."""
        found = np.zeros((len(queries), self._count), np.float64)
        for row, query in zip(found, queries, strict=True):
            for word, times in Counter(query).items():
                if word in self._weights:
                    places, weights = self._weights[word]
                    row[places] += times * weights
        return found.astype(np.float32)

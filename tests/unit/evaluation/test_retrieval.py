"""Recall, MRR and their intervals, and keyword search, against computations of their own."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedctl.evaluation import bm25, retrieval
from embedctl.evaluation.queries import Question


def measured(scores: NDArray[np.float32], queries: list[Question]) -> retrieval.Quality:
    return retrieval.quality(lambda first, last: scores[first:last], queries)


@given(st.data())
def test_figures_are_those_of_a_sorted_list(data: st.DataObject) -> None:
    """Recall@k and MRR are what sorting by score gives, items of equal score before the target, some left out."""
    count = data.draw(st.integers(3, 25))
    places = st.integers(0, count - 1)
    targets = data.draw(st.lists(places, min_size=1, max_size=3, unique=True))
    left_out = data.draw(st.frozensets(places, max_size=3)) - set(targets)
    scores = data.draw(
        st.lists(st.sampled_from([-math.inf, 0.0, 0.25, 0.5, 0.75, 1.0]), min_size=count, max_size=count)
    )
    found = measured(np.array([scores], np.float32), [Question("q", tuple(targets), left_out)])

    ranks = []
    for target in targets:
        ranked = sorted((at for at in range(count) if at not in left_out), key=lambda at: (-scores[at], at == target))
        ranks.append(math.inf if scores[target] == -math.inf else ranked.index(target) + 1)
    expected = [sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 10)] + [max(1 / rank for rank in ranks)]
    assert [found.mean(name) for name in retrieval.MEASURES] == pytest.approx(expected)


def test_more_queries_than_fit_at_once() -> None:
    """Queries are ranked some at a time, and each by its own scores."""
    scores = np.random.default_rng(1).random((600, 30), np.float32)
    queries = [Question(str(n), (n % 30,)) for n in range(600)]
    ranks = [1 + int((row > row[n % 30]).sum()) for n, row in enumerate(scores)]

    assert measured(scores, queries).each["mrr"].tolist() == [1 / rank for rank in ranks]


def test_intervals_are_those_of_resampled_queries() -> None:
    """The interval of a mean holds 95 % of the means of queries drawn with replacement, the same for the same seed."""
    values = np.random.default_rng(5).random(80)
    quality = retrieval.Quality(dict.fromkeys(retrieval.MEASURES, values))
    low, high = quality.interval("mrr", retrieval.resamples(80, 3))
    draw = np.random.default_rng(99)
    means = np.array([values[draw.integers(0, 80, 80)].mean() for _ in range(20_000)])

    assert (low, high) == quality.interval("mrr", retrieval.resamples(80, 3))
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.01)
    assert quality.lead(quality, "mrr", retrieval.resamples(80, 3)) == (0, 0)


def test_keyword_search_is_bm25() -> None:
    """Scores are those of the formula, term by term; a word that no text has adds nothing."""
    texts = [
        ["a", "ship", "came", "in", "a", "storm"],
        ["the", "harbour"],
        ["a", "storm", "in", "the", "harbour", "in", "spring"],
        [],
    ]
    queries = [["storm", "storm", "harbour"], ["nothing", "here"]]
    mean = sum(map(len, texts)) / len(texts)

    def score(query: list[str], text: list[str]) -> float:
        total = 0.0
        for word in query:
            holding = sum(word in one for one in texts)
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            times = Counter(text)[word]
            total += idf * times / (times + bm25.K1 * (1 - bm25.B + bm25.B * len(text) / mean))
        return total

    expected = np.array([[score(query, text) for text in texts] for query in queries])
    assert bm25.KeywordIndex(texts).scores(queries) == pytest.approx(expected, abs=1e-6)
    assert expected[0].argmax() == 2 or expected[0].argmax() == 1

"""Texts that are the same, or nearly: what would make figures lie if each counted for itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedctl.evaluation.words import normalized, words

NEARLY = 0.8
"""From this share of common three-word sequences on (Jaccard), two texts are near-duplicates."""

_SEQUENCE = 3


def first_alike(texts: Sequence[str]) -> list[int]:
    """For each text the place of the first that is the same when normalized: its own for most."""
    seen: dict[str, int] = {}
    return [seen.setdefault(normalized(text), place) for place, text in enumerate(texts)]


def nearly_alike(texts: Sequence[str]) -> list[frozenset[int]]:
    """For each text the places of its near-duplicates, itself left out.

    Exact: the common sequences of every pair that has any are counted.
    """
    sets = _sequences(texts)
    sizes = np.array([len(one) for one in sets])
    whole = np.concatenate(sets) if sets else np.zeros(0, np.int64)
    holder = np.repeat(np.arange(len(sets)), sizes)
    _, number, held_by = np.unique(whole, return_inverse=True, return_counts=True)
    by_sequence = holder[np.argsort(number, kind="stable")]
    first = np.concatenate([[0], np.cumsum(held_by)])
    found: list[frozenset[int]] = []
    end = 0
    for place, size in enumerate(sizes.tolist()):
        start, end = end, end + size
        shared = number[start:end]
        shared = shared[held_by[shared] > 1]
        if not len(shared):
            found.append(frozenset())
            continue
        counts = held_by[shared]
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        others = by_sequence[np.repeat(first[shared], counts) + steps]
        common = np.bincount(others, minlength=len(sets))
        alike = common / (sizes + size - common) >= NEARLY
        alike[place] = False
        found.append(frozenset(np.flatnonzero(alike).tolist()))
    return found


def _sequences(texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Of each text its different three-word sequences, as numbers: words are numbered, from 1."""
    numbers: dict[str, int] = {}
    numbered = [
        np.array([numbers.setdefault(word, len(numbers) + 1) for word in words(text)], np.int64) for text in texts
    ]
    base = len(numbers) + 1  # its third power stays below 2^63 up to two million words
    found = []
    for one in numbered:
        count = max(len(one) - _SEQUENCE + 1, min(len(one), 1))
        padded = np.concatenate([one, np.zeros(_SEQUENCE, np.int64)])
        found.append(np.unique(sum(padded[at : at + count] * base**at for at in range(_SEQUENCE))))
    return found

"""Texts that are the same, or nearly: what would make figures lie if each counted for itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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

    Exact: common sequences are counted for every pair that has any.
    """
    sets = [_sequences(text) for text in texts]
    sizes = np.array([len(one) for one in sets])
    holders: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(sets):
        for sequence in one:
            holders.setdefault(sequence, []).append(place)
    found: list[frozenset[int]] = []
    for place, one in enumerate(sets):
        shared = [np.array(holders[sequence]) for sequence in one if len(holders[sequence]) > 1]
        if not shared:
            found.append(frozenset())
            continue
        common = np.bincount(np.concatenate(shared), minlength=len(texts))
        alike = common / (sizes + sizes[place] - common) >= NEARLY
        alike[place] = False
        found.append(frozenset(np.flatnonzero(alike).tolist()))
    return found


def _sequences(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[at : at + _SEQUENCE]) for at in range(max(1, len(said) - _SEQUENCE + 1))} if said else set()

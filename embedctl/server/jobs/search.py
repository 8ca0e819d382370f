"""Chunks of media that are nearest to a query's vector.

The query itself is not among what it is told: only its vector.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import numpy as np


def nearest(folders: dict[str, str], query: list[float], count: int) -> list[dict[str, Any]]:
    """The nearest chunks of all, best first.

    Args:
        folders: Media id → the folder of its vectors.

    Raises:
        InputMissing, InputInvalid: One of them is not there, or damaged.
    """
    from embedctl.vectors import search
    from embedctl.vectors.files import open_stored

    direction = np.array(query, np.float32)
    found: list[tuple[float, str, search.SearchResult]] = []
    for media_id, folder in folders.items():
        hits = search.nearest(open_stored(Path(folder)), direction, count)
        found = heapq.nlargest(count, [*found, *((hit.score, media_id, hit) for hit in hits)], key=lambda one: one[0])
    return [
        {
            "id": f"{media_id}:{hit.chunk_index}",
            "document": hit.text,
            "metadata": {"media_id": media_id, "chunk_index": hit.chunk_index, "source": str(hit.id)},
            "distance": round(1.0 - score, 7),
        }
        for score, media_id, hit in found
    ]

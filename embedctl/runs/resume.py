"""A run goes on with what is there: whether it is the same run, in which space, and which vectors it need not buy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from embedctl.embedding.batch_collector import READ_AT
from embedctl.errors import OutputRefused
from embedctl.outputs import Existing
from embedctl.outputs.assemble import Purchase, Purchases, SegmentNumbers, tokens_array
from embedctl.planning.planner import JOURNAL_FILES
from embedctl.records import Space, minted_at
from embedctl.storage.hash_index import LOCATION, HashIndex


def binding(source: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What must be equal for a run to be the same run: the input as it lies there, and all that shapes the output."""
    return digest({"input": source, "options": options})


def digest(of: Mapping[str, Any]) -> str:
    """Equal for equal content, whatever order its keys are in."""
    return blake2b(orjson.dumps(of, option=orjson.OPT_SORT_KEYS, default=str), digest_size=16).hexdigest()


def space_of_journal(
    existing: Existing, candidates: Sequence[Callable[[int], Space | None]], where: Path, *, overwrite: bool = False
) -> Space | None:
    """The space that an interrupted run's answers have; None when there are none.

    Args:
        candidates: For each endpoint of the chain: width → its space.
        overwrite: Answers of other spaces do not matter.

    Raises:
        OutputRefused: None of the chain has that space: the model or an option was changed.
    """
    for answer in existing.recovered.answers if existing.recovered else ():
        space_id = (answer.extra or {}).get("space_id")
        if space_id is None:
            continue
        for candidate in candidates:
            space = candidate(answer.place.dimensions)
            if space is not None and space.space_id == space_id:
                return space
        if not overwrite:
            raise OutputRefused(
                f"an interrupted run for {where} holds vectors of {answer.provider}:{answer.model} "
                f"({answer.place.dimensions} dimensions), which is another space than the one asked for now",
                hint="run it with the options it began with, choose another -o, or begin anew with --overwrite",
            )
    return None


Keeps = Callable[[str, str, float, float], bool]
"""Provider, model, when it was asked for and answered, in Unix seconds → whether such a vector may be taken."""


def index(
    existing: Existing,
    space_id: str | None,
    known: HashIndex,
    segments: SegmentNumbers,
    purchases: Purchases,
    keeps: Keeps,
) -> None:
    """Fill `known` with everything that has a vector of this space: parts first, then the recovered journal.

    Args:
        keeps: Says which answers of the journal may stand in the output.
    """
    for number, part in enumerate(existing.parts):
        row = 0
        for hashes in part.hashes():
            count = len(hashes) // 16
            places = np.zeros(count, LOCATION)
            places["file"] = number
            places["row"] = np.arange(row, row + count, dtype=np.uint64)
            known.add(hashes, places)
            row += count
    for answer in existing.recovered.answers if existing.recovered else ():
        width = answer.place.dimensions
        if space_id is None or (answer.extra or {}).get("space_id") != space_id:
            continue
        event = answer.event
        answered_at = (answer.extra or {}).get(READ_AT, event.occurred_at.timestamp())
        if not keeps(event.provider, event.model, minted_at(event.event_id), answered_at):
            continue
        file = segments.number(answer.place.segment)
        bought = Purchase(
            answer.place.offset,
            answer.place.count,
            answer.model,
            answer.provider,
            answer.operation_id,
            tokens_array(answer.tokens_each),
        )
        purchases.add(file, bought)
        places = np.zeros(answer.place.count, LOCATION)
        places["file"] = JOURNAL_FILES + file
        end = answer.place.offset + answer.place.count * width * 4
        places["row"] = np.arange(answer.place.offset, end, width * 4, dtype=np.uint64)
        known.add(answer.hashes, places)

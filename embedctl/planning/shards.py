"""Shards: what one worker takes of an input. Values, planned before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A run of slices that one worker embeds, whatever other workers do.

    Attributes:
        ordinal: Its number in the plan, from 0.
        file: The input file it is a part of; None: all files, one after the other.
        first_row: Ordinal, in the whole input, of its first row.
        key: Equal only if the rows are, and all that shapes their vectors: what was answered for it may be used again.
    """

    ordinal: int
    key: str
    file: str | None = None
    first_row: int = 0


def plan(binding: str) -> Sequence[Shard]:
    """The shards of an input. One process takes all of it: a single shard.

    Args:
        binding: Of the input and all options that shape the output (`resume.binding`).
    """
    return (Shard(ordinal=0, key=binding),)

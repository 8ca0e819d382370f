"""Who works on the shards of a run. One way: this process, one shard after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from embedctl.planning.shards import Shard
from embedctl.records import RowCounts
from embedctl.runs.pipeline import Tools, run_shard


class Executor(Protocol):
    """Runs shards, which are planned before anything is sent and know nothing of each other."""

    def run(self, shards: Sequence[Shard], tools: Tools) -> AsyncIterator[RowCounts]:
        """What became of the rows of each shard, in the order in which they end.

        Raises:
            EmbedctlError: Why it stopped; what was answered is kept.
        """


class InProcess:
    """One shard after the other, in this process and its event loop."""

    async def run(self, shards: Sequence[Shard], tools: Tools) -> AsyncIterator[RowCounts]:
        """What became of the rows of each shard, in order."""
        for shard in shards:
            yield await run_shard(shard, tools)

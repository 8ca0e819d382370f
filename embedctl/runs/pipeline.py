"""The steps of a run, in order: start reading here.

    inputs ─▶ planning ─▶ embedding ─▶ journal ─▶ outputs
    rows      requests    outcomes     vectors    parts

The steps go on side by side. Queues, threads and draining stand behind these calls, in the rooms they belong to.
Nothing grows with the input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.embedding.answers import Answers
from embedctl.outputs.publisher import Publisher
from embedctl.planning.shards import Shard
from embedctl.records import Outcome, RowCounts
from embedctl.runs.slices import OpenSlices
from embedctl.runs.stop import StopSignal

DRAIN_S = 15.0
"""How long answers in flight are waited for when a run is told to stop; then complete slices, for PUBLISH_S."""

PUBLISH_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the steps work with, as `wiring` built it.

    Attributes:
        blocks: Step 1: the rows of a shard, a block at a time; read in a thread.
        slices: Steps 2 and 3.
        answers: Steps 4 and 5: what it tells is in the journal.
        publisher: Step 6.
        counted: Reused vectors and duplicate texts so far.
        settled: Told each outcome.
    """

    blocks: Callable[[Shard], Iterator[Any]]
    slices: OpenSlices
    answers: Answers
    publisher: Publisher
    stop: StopSignal
    counted: Callable[[], tuple[int, int]]
    settled: Callable[[Outcome], None] = lambda outcome: None
    rows: RowCounts = field(default_factory=RowCounts)


async def run_shard(shard: Shard, tools: Tools) -> RowCounts:
    """Embed a shard, until its input is done or the run is told to stop; what became of its rows.

    Raises:
        EmbedctlError: Why it stopped; complete slices are published, and everything paid for is in the journal.
    """
    slices, answers, publisher, rows = tools.slices, tools.answers, tools.publisher, tools.rows

    async def plan() -> None:
        blocks = tools.blocks(shard)  # 1  inputs/
        async for request in slices.requests(blocks):  # 2, 3  planning/
            await answers.submit(request)
        await answers.close()

    async def take() -> None:
        async for outcome in answers.outcomes():  # 4  embedding/, kept by 5  journal/ before it is told
            publisher.bought(outcome)
            slices.settle(outcome)
            tools.settled(outcome)

    async def publish() -> None:
        async for slice_ in slices.complete():
            rows.add(await publisher.publish(slice_))  # 6  outputs/
            rows.reused, rows.duplicates = tools.counted()

    await _side_by_side(tools, plan=plan(), take=take(), publish=publish())
    rows.check()
    return rows


async def _side_by_side(tools: Tools, **steps: Any) -> None:
    """All steps, until they are done or the run is told to stop: then nothing new is sent, and what is due is kept."""
    tasks = {name: asyncio.create_task(tools.stop.heed(step)) for name, step in steps.items()}
    done = asyncio.gather(*tasks.values())
    asked = asyncio.create_task(tools.stop.asked.wait())
    try:
        await asyncio.wait((done, asked), return_when=asyncio.FIRST_COMPLETED)
        if tools.stop.asked.is_set():
            tasks["plan"].cancel()
            await tools.answers.drain(DRAIN_S)
            await asyncio.wait((tasks["take"],), timeout=PUBLISH_S)
            tools.slices.stop()
            await asyncio.wait((tasks["publish"],), timeout=PUBLISH_S)
        else:
            done.result()
    finally:
        for task in (asked, *tasks.values()):
            task.cancel()
        await asyncio.gather(asked, done, *tasks.values(), return_exceptions=True)
    tools.stop.proceed()

"""A run while it sends: lanes, till, journal and cache around the pipeline, closed in the right order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from embedctl import inputs, storage
from embedctl.budgets import limits as spend_limits
from embedctl.budgets.reservations import Reservations
from embedctl.embedding.cached import CachedEmbedder
from embedctl.embedding.call import CallPoint
from embedctl.embedding.router import Router
from embedctl.embedding.usage_events import Caller
from embedctl.journal import Journal
from embedctl.journal.commands import Spool
from embedctl.ledger import segment_owners
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.outputs import Finished, FolderOutput, Output, parquet
from embedctl.outputs.assemble import Purchases
from embedctl.planning import packer as packers
from embedctl.planning.duplicate_ids import DuplicateIds
from embedctl.records import Limits, RowCounts, Space
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.retry import Policy
from embedctl.runs import preparation, resume
from embedctl.runs.job import JobRequest, Observer
from embedctl.runs.pipeline import Pipeline, Segments, Steps
from embedctl.runs.receipt import Progress, Spending
from embedctl.runs.record import RunRecord
from embedctl.runs.registration import Registration
from embedctl.runs.resume import Existing
from embedctl.runs.stop import StopSignal
from embedctl.settings.options import Options
from embedctl.storage import Disk
from embedctl.storage.hash_index import HashIndex
from embedctl.storage.vector_cache import VectorCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What one run sends, and where it goes.

    Attributes:
        before: What was there when it began.
        barred: Workspaces of rows that may not use the model → why.
        record: Told the space and the rows.
        spool: Takes the events of a segment.
        segment_bytes: Of the journal.
    """

    order: JobRequest
    watch: Observer
    stop: StopSignal
    chain: FallbackChain
    source: inputs.Source
    output: Output
    before: Existing
    denied: Mapping[str, str]
    record: RunRecord
    spending: Spending
    run_prices: RunPrices
    entry: Registration
    spool: Spool
    ledger: LedgerPaths
    disk: Disk = storage.DISK
    segment_bytes: int = 64 << 20

    @property
    def _options(self) -> Options:
        return self.order.settings.options

    async def run(self) -> None:
        """Send what is left to send, and finish the output.

        Raises:
            EmbedctlError: Why it stopped; what was bought is in the journal.
        """
        finished = False

        async def close_journal() -> None:
            await opened.journal.close(published=finished)

        with self.stop.heeded():
            async with AsyncExitStack() as stack:  # closed in the opposite order
                packer = preparation.packer(self.source, self.chain.first, self._options)
                router = self._router(packer)
                stack.push_async_callback(router.aclose)
                till = self._till()
                stack.callback(till.close)
                endpoint = await router.ask()
                self._begin()
                opened = self._opened(stack, router, till, endpoint, packer)
                stack.push_async_callback(close_journal)
                stack.callback(self.output.close)
                if opened.cache is not None:
                    stack.callback(opened.cache.close)
                stack.callback(self.stop.too_late)
                timer = asyncio.create_task(self.stop.at(opened.deadline))
                stack.callback(timer.cancel)
                try:
                    await self._through(opened)
                    finished = True
                finally:
                    self.record.space = opened.space

    def _begin(self) -> None:
        """Say that it begins to send, and under which ledger.

        Raises:
            OutputRefused: Nothing could be put into that ledger's spool.
        """
        self.disk.make_folder(self.ledger.spool)
        self.output.record(self.record.as_dict(self.output, "running"))
        for path in self.before.damaged:
            self.watch.warned(f"{path} is damaged: its rows are embedded anew")
        found = [one.segment_id for one in self.before.recovered.segments] if self.before.recovered else []
        payer = segment_owners.SegmentOwner(str(self.ledger.database.absolute()), str(self.ledger.spool.absolute()))
        for other in segment_owners.bind(self.output.state, payer, found, self.disk):
            self.watch.warned(f"what an interrupted run spent here is counted in the ledger it ran under: {other}")
        self.entry.running()

    def _opened(
        self, stack: AsyncExitStack, router: Router, till: Reservations, endpoint: Endpoint, packer: packers.Packer
    ) -> Resources:
        """Everything that is open while the pipeline runs; indexes are closed with the stack."""
        options, state = self._options, self.output.state
        known, seen = (stack.enter_context(HashIndex(state)) for _ in range(2))
        ids = stack.enter_context(DuplicateIds(self.source, state))
        deadline = time.monotonic() + options.deadline if options.deadline is not None else None
        journal = Journal.open(
            state / "journal",
            spool=segment_owners.routed(state, self.spool, ledger=self.ledger.database, disk=self.disk),
            recovered=self.before.recovered,
            disk=self.disk,
            sync_intents=any(one.price_as != "free" for one in self.chain.endpoints),
            segment_bytes=self.segment_bytes,
            dimensions=endpoint.dimensions or 0,
        )
        caller = Caller(
            run_id=self.record.run_id, workspace_id=options.workspace, job_id=self.order.job, tags=options.tag
        )
        call = CallPoint(
            router,
            journal,
            till,
            caller,
            policy=Policy(retries=options.retries, max_wait_s=options.max_wait, deadline=deadline),
            space=self.before.space,
            sleep=self.stop.sleep,
            watch=self.spending.count,
            told=self.watch.told,
            proceed=self.stop.proceed,
        )
        return Resources(
            endpoint=endpoint,
            packer=packer,
            journal=journal,
            call=call,
            caller=caller,
            cache=self._cache(endpoint),
            known=known,
            seen=seen,
            ids=ids,
            deadline=deadline,
        )

    async def _through(self, opened: Resources) -> None:
        """The pipeline, until the output is finished."""
        segments, purchases, space = Segments(), Purchases(), self.before.space
        resume.index(self.before, space.space_id if space else None, opened.known, segments, purchases)
        pipeline = Pipeline(self._steps(opened, segments, purchases), self.stop)
        self.record.rows = pipeline.rows
        await pipeline.run()
        self.record.check_unchanged(self.source)
        self.record.space = opened.space
        layout = None if pipeline.width is None else pipeline.layout(pipeline.width)
        if not pipeline.rows.read and layout is not None and isinstance(self.output, FolderOutput):
            empty = partial(self.record.facts, opened.space, counts=pipeline.rows)
            self.output.put(Finished(number=0, tables=iter(()), layout=layout, facts=empty, failed=()))
        self.output.finish(
            layout,
            lambda written: self.record.facts(opened.space, written, pipeline.rows),
            self.record.as_dict(self.output, "complete"),
        )
        opened.ids.warn(self.watch.warned)

    def _steps(self, opened: Resources, segments: Segments, purchases: Purchases) -> Steps:
        """What the pipeline is made of."""
        source, options, endpoint = self.source, self._options, opened.endpoint
        columns = preparation.row_columns(source, options)

        def layout(width: int) -> parquet.Layout:
            return parquet.Layout(
                columns=columns, dimensions=width, dtype=options.dtype, vector_type=options.vector_type
            )

        def watch(headway: Progress) -> None:
            self.watch.headway(headway, source.rows_hint, self.spending)
            self.entry.headway(headway, source.rows_hint, self.spending)

        def facts(written: int, counts: RowCounts) -> bytes:
            return self.record.facts(opened.space, written, counts)

        return Steps(
            blocks=source.blocks(),
            intake=preparation.intake(
                source, endpoint, options, opened.packer, opened.known, opened.seen, self.before.failed, self.denied
            ),
            call=opened.call,
            recall=CachedEmbedder(opened.call, opened.cache, opened.journal, opened.caller, endpoint),
            journal=opened.journal,
            output=self.output,
            purchases=purchases,
            parts=self.before.parts,
            segments=segments,
            done=self.before.done.get,
            layout=layout,
            facts=facts,
            dimensions=endpoint.dimensions,
            concurrency=endpoint.rate_limits.concurrency,
            see=opened.ids.see,
            watch=watch,
        )

    def _till(self) -> Reservations:
        return spend_limits.till(
            self.ledger,
            self.order.settings,
            self.chain.endpoints,
            self.run_prices.of,
            self.watch.warned,
            run_id=str(self.record.run_id),
            state=self.output.state,
        )

    def _cache(self, endpoint: Endpoint) -> VectorCache | None:
        """The shared cache, where it is wanted: for `embed` with a paid model unless told otherwise."""
        wanted = self._options.cache
        if wanted is None:
            wanted = self.order.kind != "folder" and self.run_prices.of(endpoint) != 0
        kept, path = self.order.settings.cache, self.order.settings.paths.cache
        if not wanted:
            return None
        return VectorCache(path, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, warned=self.watch.warned)

    def _router(self, packer: packers.Packer) -> Router:
        """The chain's lines; they tell the packer what fits into a request."""
        options, endpoint = self._options, self.chain.first

        def limits(known: Limits) -> None:
            packer.limits = preparation.packed_limits(known, endpoint, options)

        router = Router(
            self.chain,
            hints_file=self.order.settings.paths.home / "hints.json",
            mode=options.fallback,
            max_wait_s=options.max_wait,
            jitter=random.random,
            connections=endpoint.rate_limits.concurrency,
            sleep=self.stop.sleep,
            changed=limits,
            told=self.watch.told,
            waits=self.watch.warned,
        )
        limits(router.limits())
        return router


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What is open while the pipeline runs.

    Attributes:
        offer: The first one, as its server described it.
        deadline: Of the monotonic clock.
    """

    endpoint: Endpoint
    packer: packers.Packer
    journal: Journal
    call: CallPoint
    caller: Caller
    cache: VectorCache | None
    known: HashIndex
    seen: HashIndex
    ids: DuplicateIds
    deadline: float | None

    @property
    def space(self) -> Space | None:
        """Of the vectors, as far as it is known."""
        return self.call.space or self.endpoint.space()

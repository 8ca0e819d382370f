"""One run from order to receipt: what is there already, the pipeline, the record for the next run, the ledger."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from decimal import Decimal
from typing import Any
from uuid import UUID

from embedctl import before as befores
from embedctl import dry_run, money, output_place, plan, preparation, read, serving, storage, write
from embedctl.assemble import Purchases
from embedctl.before import Asked, Before
from embedctl.cache import Cache
from embedctl.call import CallPoint
from embedctl.dry_run import Forecast
from embedctl.errors import EmbedctlError, InputChanged, OutputRefused
from embedctl.events import Caller
from embedctl.ids import Ids
from embedctl.journal import Journal
from embedctl.known import Known
from embedctl.lanes import Lanes, check_usable
from embedctl.ledger import prices, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.offers import Offer
from embedctl.options import Options
from embedctl.order import Order, Watch
from embedctl.output import FolderOutput
from embedctl.output_file import FileOutput
from embedctl.output_stream import StreamOutput
from embedctl.pipeline import Pipeline, Segments, Steps
from embedctl.recall import Recall
from embedctl.receipt import Headway, Receipt, Rows, Spending
from embedctl.receipt import made as receipt_made
from embedctl.records import Limits, Space, utc_now, uuid7
from embedctl.registration import Registration
from embedctl.resilience.retry import Policy
from embedctl.runs import recover_dead, rescue
from embedctl.serving import Chain
from embedctl.stopping import Stop
from embedctl.storage import Disk

_SHAPING = frozenset(
    "text_column id_column keep split encoding chunk_size chunk_overlap input_type dimensions dimension_policy "  # noqa: SIM905
    "on_too_long on_blank vector_type dtype max_row_bytes model provider".split()
)
"""Options that decide what stands in the output."""

INGEST_WAIT_S = 5
LEFTOVER_S = 3600
"""Unfinished files in folders that runs share are removed when they are older than any write takes."""


class Run:
    """A run while it is under way.

    Args:
        disk: Everything durable goes through it.
        ingest: Takes the spool into the ledger; duckdb's by default.
        segment_bytes: Of the journal.
    """

    def __init__(
        self,
        order: Order,
        watch: Watch | None = None,
        *,
        disk: Disk = storage.DISK,
        ingest: Callable[[LedgerPaths], None] | None = None,
        segment_bytes: int = 64 << 20,
    ) -> None:
        self.order = order
        self.watch = watch or Watch()
        self.run_id: UUID = uuid7()
        self.stop = Stop()
        self.rows = Rows()
        self.spending = Spending(self._price)
        self._disk = disk
        self._ingest = ingest or _into_ledger
        self._segment_bytes = segment_bytes
        self._options = order.settings.options
        places = order.settings.paths
        self._ledger_paths = LedgerPaths(places.ledger, places.spool, places.price_file)
        self._book = prices.load(prices.price_texts(places.price_file))
        self._now = utc_now()
        self._space: Space | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stoppable = True
        self._bound = ""

    def _price(self, provider: str, model: str, price_as: str | None, tier: str = "standard") -> Decimal | None:
        if price_as == "free":
            return Decimal(0)
        found = self._book.price_at(price_as, model, at=self._now, place=provider, tier=tier)
        return found.usd_per_million if found else None

    def _unit_price(self, offer: Offer) -> Decimal | None:
        return self._price(offer.provider, offer.wire_model, offer.price_as)

    def ask_to_stop(self, reason: EmbedctlError) -> None:
        """Stop sending, from a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop.because, reason)
        elif self._stoppable:
            raise reason

    def execute(self) -> Receipt:
        """The whole run; its spending is in the ledger or on its way when this returns or raises.

        Raises:
            EmbedctlError: Why nothing was done. Once a run has begun, its end is in the receipt instead.
        """
        started = time.monotonic()
        chain = serving.chain(self.order.settings)
        check_usable(chain.first)
        money.check_priced(chain.offers, self._unit_price, self._options)
        self._space = chain.first.space()
        output = output_place.output(self.order, self.run_id, self._disk, self.watch.warned)
        failure: EmbedctlError | None = None
        with output_place.held(output, self.order, self._disk):
            entry = Registration(self.order, self.run_id, output, chain.first.id, self._disk, time.monotonic)
            entry.begin()
            try:
                self._fulfil(output, chain, entry)
            except EmbedctlError as error:
                failure = error
            finally:
                self._stoppable = False
                if isinstance(output, StreamOutput):  # nobody comes back to its vectors
                    rescue(output.state / "journal", self._spool, keeps_vectors=False, disk=self._disk)
                    output.tidy()
            receipt = self._receipt(output, failure, time.monotonic() - started, chain)
            entry.end(self.rows, self.spending, failure, receipt.exit_code)
            if failure is not None and not self._has_begun(failure):
                raise failure
        self._take_in()
        return receipt

    def _has_begun(self, failure: EmbedctlError) -> bool:
        """Whether there is anything to account for."""
        return bool(self.spending.attempts or self.rows.read or failure.exit_code in (4, 75, 130, 143))

    def _fulfil(self, output: FileOutput | FolderOutput | StreamOutput, chain: Chain, entry: Registration) -> None:
        """Do what is left to do."""
        reading = preparation.read_options(self._options, output.state)
        source = read.open_input(self.order.inputs, reading, stdin=self.order.stdin)
        preparation.check_source(source, self._options, output.state)
        before = self._before(output, source, chain)
        if before.finished is not None:
            rescue(output.state / "journal", self._spool, keeps_vectors=False, disk=self._disk)
            self.rows = before.finished
            self.rows.reused, self.rows.duplicates = self.rows.vectors, 0
        else:
            asyncio.run(self._flow(output, source, chain, before, entry))
        output.tidy()

    def _spool(self, spool_id: str, events: Any) -> bool:
        return spool.publish(self.order.settings.paths.spool, spool_id, events, disk=self._disk)

    def _asked(self, source: read.Source, chain: Chain) -> Asked:
        """What is wanted of the output; the input is bound as it is now."""
        space = chain.first.space()
        shaping = {**self._shaping(), "space": space.space_id if space else chain.first.id}
        self._seen_at_start = source.fingerprint()
        self._bound = befores.binding(self._seen_at_start, shaping)
        return Asked(
            space=space,
            binding=self._bound,
            overwrite=self.order.overwrite,
            reuse=self._options.reuse,
            retry_failed=self.order.retry_failed,
            dtype=self._options.dtype,
        )

    def forecast(self) -> Forecast:
        """What `execute` would do; nothing is sent, made or changed.

        Raises:
            EmbedctlError: Why it could not be done.
        """
        chain = serving.chain(self.order.settings)
        money.check_priced(chain.offers, self._unit_price, self._options)
        output = output_place.output(self.order, self.run_id, self._disk, self.watch.warned)
        reading = preparation.read_options(self._options, None)
        source = read.open_input(self.order.inputs, reading, stdin=self.order.stdin)
        asked, offer = self._asked(source, chain), chain.first
        before = Before() if isinstance(output, StreamOutput) else befores.glance(output, asked)

        def price(tier: str) -> Decimal | None:
            return self._price(offer.provider, offer.wire_model, offer.price_as, tier)

        return dry_run.forecast(source, offer, self._options, before, price)

    def _before(self, output: FileOutput | FolderOutput | StreamOutput, source: read.Source, chain: Chain) -> Before:
        asked = self._asked(source, chain)
        if isinstance(output, FileOutput):
            found = befores.of_file(output, asked)
        elif isinstance(output, FolderOutput):
            found = befores.of_folder(output, asked)
        else:
            return Before()
        if found.space is None:
            offers = [offer.space for offer in chain.offers]
            where = self.order.output or output.state
            found.space = befores.space_of_journal(found, offers, where, overwrite=asked.overwrite)
        return found

    async def _flow(
        self,
        output: FileOutput | FolderOutput | StreamOutput,
        source: read.Source,
        chain: Chain,
        before: Before,
        entry: Registration,
    ) -> None:
        """The lanes to the providers, opened and closed around the pipeline."""
        self._loop = asyncio.get_running_loop()
        packer = preparation.packer(source, chain.first, self._options)
        lanes = self._lanes(chain, packer)
        try:
            await self._through(lanes, packer, output, source, chain, before, entry)
        finally:
            await lanes.aclose()

    async def _through(
        self,
        lanes: Lanes,
        packer: plan.Packer,
        output: FileOutput | FolderOutput | StreamOutput,
        source: read.Source,
        chain: Chain,
        before: Before,
        entry: Registration,
    ) -> None:
        """The pipeline with everything it needs, and the record of how it ended."""
        options = self._options
        till = money.till(self._ledger_paths, self.order.settings, chain.offers, self._unit_price, self.watch.warned)
        deadline = time.monotonic() + options.deadline if options.deadline is not None else None
        offer = await lanes.ask()
        segments, purchases = Segments(), Purchases()
        output.record(self._record(output, "running"))
        entry.running()
        journal = Journal.open(
            output.state / "journal",
            spool=self._spool,
            recovered=before.recovered,
            disk=self._disk,
            sync_intents=any(one.price_as != "free" for one in chain.offers),
            segment_bytes=self._segment_bytes,
            dimensions=offer.dimensions or 0,
        )
        caller = Caller(run_id=self.run_id, workspace_id=options.workspace, job_id=self.order.job, tags=options.tag)
        call = CallPoint(
            lanes,
            journal,
            till,
            caller,
            policy=Policy(retries=options.retries, max_wait_s=options.max_wait, deadline=deadline),
            space=before.space,
            sleep=self.stop.sleep,
            watch=self.spending.count,
            told=self.watch.told,
            proceed=self.stop.proceed,
        )
        cache = self._cache(offer)
        timer = asyncio.create_task(self.stop.at(deadline))
        finished = False
        with Known(output.state) as known, Known(output.state) as seen, Ids(source, output.state) as ids:
            befores.index(before, before.space.space_id if before.space else None, known, segments, purchases)
            intake = preparation.intake(source, offer, options, packer, known, seen, before.failed)
            columns = preparation.row_columns(source, options)

            def watch(headway: Headway) -> None:
                self.watch.headway(headway, source.rows_hint, self.spending)
                entry.headway(headway, source.rows_hint, self.spending)

            def facts(written: int, counts: Rows) -> bytes:
                return self._facts(call.space or offer.space(), source, written, counts)

            pipeline = Pipeline(
                Steps(
                    blocks=source.blocks(),
                    intake=intake,
                    call=call,
                    recall=Recall(call, cache, journal, caller, offer),
                    journal=journal,
                    output=output,
                    purchases=purchases,
                    parts=before.parts,
                    segments=segments,
                    done=before.done.get,
                    layout=lambda width: write.Layout(
                        columns=columns, dimensions=width, dtype=options.dtype, vector_type=options.vector_type
                    ),
                    facts=facts,
                    dimensions=offer.dimensions,
                    concurrency=offer.ceiling.concurrency,
                    see=ids.see,
                    watch=watch,
                ),
                self.stop,
            )
            self.rows = pipeline.rows
            try:
                await pipeline.run()
                self._check_unchanged(source)
                self._space = call.space or offer.space()
                layout = None if pipeline.width is None else pipeline.layout(pipeline.width)
                output.finish(layout, lambda written: facts(written, self.rows), self._record(output, "complete"))
                finished = True
            finally:
                self._space = call.space or offer.space()
                timer.cancel()
                self._loop, self._stoppable = None, False
                if cache is not None:
                    cache.close()
                try:
                    output.close()
                finally:
                    await journal.close(published=finished)
            ids.warn(self.watch.warned)

    def _cache(self, offer: Offer) -> Cache | None:
        """The shared cache, where it is wanted: for `embed` with a paid model unless told otherwise."""
        wanted = self._options.cache
        if wanted is None:
            wanted = self.order.kind != "folder" and self._unit_price(offer) != 0
        kept = self.order.settings.cache
        if not wanted:
            return None
        path = self.order.settings.paths.cache
        return Cache(path, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, warned=self.watch.warned)

    def _lanes(self, chain: Chain, packer: plan.Packer) -> Lanes:
        """The chain's lines; they tell the packer what fits into a request."""
        options, offer = self._options, chain.first

        def limits(known: Limits) -> None:
            packer.limits = preparation.packed_limits(known, offer, options)

        lanes = Lanes(
            chain,
            hints_file=self.order.settings.paths.home / "hints.json",
            mode=options.fallback,
            max_wait_s=options.max_wait,
            jitter=random.random,
            connections=offer.ceiling.concurrency,
            sleep=self.stop.sleep,
            changed=limits,
            told=self.watch.told,
            waits=self.watch.warned,
        )
        limits(lanes.limits())
        return lanes

    def _check_unchanged(self, source: read.Source) -> None:
        """Raise InputChanged when a file is not what it was at the start."""
        if source.fingerprint() != self._seen_at_start:
            raise InputChanged("the input changed while it was read", hint="run the same command again")

    def _shaping(self) -> dict[str, Any]:
        """Options that decide what stands in the output; `vectors verify` and `vectors search` read them."""
        return {f.name: getattr(self._options, f.name) for f in fields(Options) if f.name in _SHAPING}

    def _facts(self, space: Space | None, source: read.Source, written: int, counts: Rows) -> bytes:
        if space is None:
            raise OutputRefused("no vector was made, so nobody knows how wide one is")
        extra = {"binding": self._bound, "counts": asdict(counts), "options": self._shaping()}
        return write.metadata(space, run_id=str(self.run_id), source=self._seen_at_start, rows=written, extra=extra)

    def _record(self, output: FileOutput | FolderOutput | StreamOutput, state: str) -> dict[str, Any]:
        """What the run binds, for the next one."""
        replacing, parts = False, 0
        if isinstance(output, FolderOutput):
            replacing, parts = output.replacing, len(output.parts(output.into))
        return {
            "run_id": str(self.run_id),
            "job": self.order.job,
            "state": state,
            "binding": self._bound,
            "overwrite": self.order.overwrite,
            "replacing": replacing,
            "parts": parts,
            "space": self._space.as_dict() if self._space else None,
            "space_id": self._space.space_id if self._space else None,
            "options": self._shaping(),
            "counts": asdict(self.rows),
            "at": utc_now(),
        }

    def _take_in(self) -> None:
        """Take what is spooled into the ledger; when it cannot be now, the next command does."""
        try:
            places = self.order.settings.paths
            for folder in (places.runs, places.spool):
                storage.remove_leftovers(self._disk, folder, older_than_s=LEFTOVER_S)
            recover_dead(places.runs, self._spool, ledger=places.ledger, disk=self._disk)
            self._ingest(self._ledger_paths)
        except EmbedctlError as error:
            self.watch.warned(f"usage is spooled, not in the ledger yet: {error.message}")

    def _receipt(
        self,
        output: FileOutput | FolderOutput | StreamOutput,
        failure: EmbedctlError | None,
        seconds: float,
        chain: Chain,
    ) -> Receipt:
        return receipt_made(
            run_id=str(self.run_id),
            job=self.order.job,
            workspace=self._options.workspace,
            model=chain.first.id,
            dimension_policy=chain.first.policy,
            space=self._space,
            rows=self.rows,
            spending=self.spending,
            unit_price=self._unit_price(chain.first),
            seconds=round(seconds, 3),
            output=str(self.order.output) if self.order.output else None,
            failures=str(output.failures) if output.failures else None,
            failure=failure,
            resume=self.order.resume,
        )


def _into_ledger(paths: LedgerPaths) -> None:
    from embedctl.ledger.ingest import ingest  # duckdb takes longer to import than a small run takes

    ingest(paths, wait_s=INGEST_WAIT_S, now=utc_now())

"""The only place that builds, and closes, what a run, a search, an estimate or a comparison works with."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from embedctl import inputs, storage
from embedctl.budgets import limits as spend_limits
from embedctl.budgets.limits import KeyBudget
from embedctl.budgets.reservations import Reservations, SpendLimit
from embedctl.dataclass import dataclass
from embedctl.embedding.answers import OnlineAnswers, Turns
from embedctl.embedding.batch_answers import BatchAnswers, line_limits
from embedctl.embedding.batch_calls import BatchCalls
from embedctl.embedding.batch_lines import TIER
from embedctl.embedding.cached import CachedEmbedder, unknown_to
from embedctl.embedding.call import Embedder
from embedctl.embedding.canary import CanaryWatch
from embedctl.embedding.route import Route
from embedctl.embedding.router import Router
from embedctl.embedding.usage_events import Caller
from embedctl.errors import BudgetReached, InputInvalid, ProviderError
from embedctl.inputs.columns import is_name, matching
from embedctl.journal import Journal, Recovered, Spool, Trust
from embedctl.journal.batches import Batch, BatchLog
from embedctl.journal.batches import Found as FoundBatches
from embedctl.journal.rescue import JOURNAL
from embedctl.journal.shipping import ShippingDisk, ShippingTurnstile
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.outputs import Existing, Output, parquet
from embedctl.outputs.assemble import Purchases, SegmentNumbers
from embedctl.outputs.parquet import Layout
from embedctl.outputs.publisher import Publisher
from embedctl.planning.chunks import REASON_WORDS, is_bad_row
from embedctl.planning.duplicate_ids import DuplicateIds
from embedctl.planning.packer import PackedRequest, Packer
from embedctl.planning.planner import JOURNAL_FILES, Planner
from embedctl.planning.text_rules import text_rules
from embedctl.providers._batch_places import BatchApi
from embedctl.records import TEXT_HASH_BYTES, Limits, Observer, Observers, RowCounts, Space, Warned
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import AdaptiveLimiter, Limiter
from embedctl.routing.retry import Policy
from embedctl.runs import foundations, resume
from embedctl.runs.job import JobRequest
from embedctl.runs.job_limits import JobLimits
from embedctl.runs.pipeline import Tools
from embedctl.runs.progress import Progress, UnderWay
from embedctl.runs.receipt import Spending
from embedctl.runs.slices import OpenSlices, PublishedSlice
from embedctl.runs.stop import StopSignal
from embedctl.settings import Settings
from embedctl.settings.options import Options
from embedctl.storage import Disk
from embedctl.storage.hash_index import LOCATION, HashIndex
from embedctl.storage.vector_cache import VectorCache

# ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read_options(options: Options, spool: Path | None, leave_out: tuple[Path, ...] = ()) -> inputs.ReadOptions:
    """How the input is read; a column that names workspaces is read also when it is not kept.

    Args:
        spool: Where what comes through a pipe is kept for the next run.
        leave_out: Files that are no input.
    """
    column = options.workspace_column
    keep: Any = options.keep if options.keep in ("all", "none") else tuple(options.keep.split(","))
    if column is not None and keep != "all":
        keep = tuple(dict.fromkeys([*(() if keep == "none" else keep), column]))
    return inputs.ReadOptions(
        keep=keep,
        on_bad_file=options.on_bad_file,
        **{name: getattr(options, name) for name in inputs.ALIKE},
        spool=spool,
        leave_out=leave_out,
    )


def source(job: JobRequest, output: Output, spool: Path | None) -> inputs.Source:
    """The input of a job, without an output of ours that an argument means too.

    Args:
        spool: Where what comes through a pipe is kept for the next run.

    Raises:
        OutputRefused: The output would replace an input.
    """
    reading = replace(read_options(job.settings.options, spool, output.own_files()), stores=job.settings.stores)
    if job.query is not None:
        return inputs.open_query(job.query, reading)
    opened = inputs.open_input(job.inputs, reading, stdin=job.stdin)
    for file in opened.files:
        if file.stored is None:
            output.check_input(file.path, file.label)
    return opened


def check_source(opened: inputs.Source, options: Options, folder: Path) -> None:
    """What the options ask of the input beside the columns that are read.

    Args:
        folder: Where an index of ids goes when it is large.

    Raises:
        InputInvalid: No such workspace column, or duplicate ids with --unique-ids.
    """
    column = options.workspace_column
    if column is not None and matching(column, opened.schema_kept.names, "the input") is None:
        columns = ", ".join(opened.schema_kept.names) or "none"
        raise InputInvalid(f"no column {column!r} to take workspaces from", hint=f"columns: {columns}")
    if options.unique_ids:
        with DuplicateIds(opened, folder) as ids:
            for block in opened.blocks():
                ids.see(block)
            ids.refuse()


# ── what is planned ──────────────────────────────────────────────────────────────────────────────────────────────────


def row_columns(opened: inputs.Source, options: Options) -> Any:
    """The fields of the output's rows beside the embedding ones: not a column that only names workspaces."""
    keep, column, kept = options.keep, options.workspace_column, opened.schema_kept
    if column is not None and keep != "all" and not any(is_name(name, column) for name in keep.split(",")):
        kept = kept.remove(kept.get_field_index(matching(column, kept.names, "the input")))
    return parquet.row_columns(opened.id_type, kept, text=keep != "none" and not opened.is_tokens)


def packer(opened: inputs.Source, endpoint: Endpoint, options: Options) -> Packer:
    """What collects texts into requests."""
    sends_tokens = opened.is_tokens and endpoint.takes_tokens and not endpoint.prefix
    return Packer(Limits(), purpose=options.purpose, token_arrays=sends_tokens)


@contextmanager
def planner(
    opened: inputs.Source,
    endpoint: Endpoint,
    options: Options,
    packing: Packer,
    folder: Path,
    *,
    existing: Existing | None = None,
    purchases: Purchases | None = None,
    segments: SegmentNumbers | None = None,
    denied: Mapping[str, str] | None = None,
    tenants: frozenset[str] = frozenset(),
    columns: Callable[[Any, list[int], list[int], list[str] | None], Any] | None = None,
    cut: Callable[[int, str, int], None] = lambda rows, name, characters: None,
    own_run: UUID | None = None,
    keeps: resume.Keeps = lambda provider, model, asked_at, answered_at: True,
) -> Iterator[Planner]:
    """Steps 2 and 3, with indexes of known and of seen texts, closed at the end.

    Args:
        folder: Where the indexes go when they are large.
        existing: What need not be bought; its answers are put into `purchases`, numbered by `segments`.
        denied: Workspaces of rows that may not use the model → why.
        tenants: Workspaces whose rows fail once their budget is used up.
        columns: Makes the record batch of some rows; None: the columns of the output.
        cut: See `Chunks`.
        own_run: Which of the answers that are there are not reused, because this run has bought them.
        keeps: Which of them may stand in the output at all.
    """
    existing = existing or Existing()
    segments = segments or SegmentNumbers()
    fields = row_columns(opened, options) if columns is None else None
    with HashIndex(folder) as known, HashIndex(folder) as seen:
        space_id = existing.space.space_id if existing.space else None
        resume.index(existing, space_id, known, segments, purchases or Purchases(), keeps)
        answers = existing.recovered.answers if existing.recovered and own_run else ()
        own = {JOURNAL_FILES + segments.number(one.place.segment) for one in answers if one.event.run_id == own_run}
        yield Planner(
            options=options,
            wording=text_rules(endpoint, options, opened),
            packer=packing,
            known=known,
            seen=seen,
            columns=columns or (lambda block, at, chunks, texts: parquet.row_batch(block, at, chunks, texts, fields)),
            failed_before=existing.failed,
            denied=denied or {},
            tenants=tenants,
            cut=cut,
            own_files=own,
        )


# ── what is asked and paid ───────────────────────────────────────────────────────────────────────────────────────────


def reservations(
    settings: Settings,
    chain: FallbackChain,
    prices: RunPrices,
    observer: Observer,
    believed: Trust,
    *,
    run_id: str,
    state: Path,
    tier: str = "standard",
    spent: Decimal = Decimal(0),
    key: KeyBudget | None = None,
) -> Reservations:
    """What may be spent: --max-cost, and what is left of the workspaces' budgets. To be closed.

    Args:
        state: The state folder whose lock the caller holds.
        tier: Whose prices are reserved.
        spent: By this run so far.
        key: Of a service, that pays for all of it.

    Raises:
        BudgetReached, Locked, WrongUsage: See `budgets.limits.reservations`.
    """
    return spend_limits.reservations(
        foundations.ledger_paths(settings),
        settings,
        chain.endpoints,
        partial(prices.of, tier=tier),
        observer,
        believed,
        run_id=run_id,
        state=state,
        take_in=foundations.taking_in(settings, observer),
        spent=spent,
        key=key,
    )


def router(
    settings: Settings,
    observer: Observer,
    *,
    connections: int,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ahead: int = 0,
    shared: JobLimits | None = None,
) -> Router:
    """All endpoints of this process. To be closed.

    Args:
        connections: Most at once to one host.
        ahead: Requests that are prepared beside those in flight.
        sleep: Waits, and raises when the run is told to stop.
        shared: Of all workers of the job; None: there is but this one.
    """
    max_wait_s = settings.options.max_wait

    def limiter(endpoint: Endpoint, waiting: Callable[[float], None]) -> Limiter:
        limits = replace(endpoint.rate_limits, concurrency=endpoint.rate_limits.concurrency + ahead)
        alone = AdaptiveLimiter(limits, sleep=sleep, longest_gate_s=max_wait_s, waiting=waiting)
        return alone if shared is None else shared.limiter(endpoint, limits, alone)

    return Router(
        hints_file=settings.paths.home / "hints.json",
        limiter=limiter,
        max_wait_s=max_wait_s,
        jitter=random.random,
        connections=connections,
        sleep=sleep,
        observer=observer,
    )


def policy(options: Options, *, deadline: float | None = None) -> Policy:
    """How often and how long one request is tried.

    Args:
        deadline: Of the monotonic clock.
    """
    return Policy(retries=options.retries, max_wait_s=options.max_wait, deadline=deadline)


def cache(job: JobRequest, price: object, observer: Observer) -> VectorCache | None:
    """The shared cache, where it is asked for: for `embed` with a paid model unless told otherwise.

    Args:
        price: Of the model; 0 when it is free.
    """
    settings = job.settings
    asked = settings.options.cache
    if asked is None:
        asked = job.kind != "folder" and price != 0
    if not asked:
        return None
    kept = settings.cache
    return VectorCache(settings.paths.cache, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, observer=observer)


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


BESIDE_SHARE = 4
"""For so many requests in flight, one more is written down meanwhile: its intent, or its answer.

At 200 ms of latency that takes a fifth of the time in which another one could be in flight. It holds its vectors alone,
those in flight their base64 alone: together less than the two of each that `planning.packer` counts with.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipping:
    """A journal that is kept on a store.

    Attributes:
        disk: Of the journal alone.
        secret: Makes its frames evidence to all workers of the job.
        most_unshipped: Answers that may be on their way while requests are sent.
        ahead: Requests whose intents are on their way while others are in flight.
    """

    disk: ShippingDisk
    secret: bytes
    most_unshipped: int
    ahead: int


def _turnstile(far: Shipping, most_sent: int, stop: StopSignal) -> ShippingTurnstile:
    return ShippingTurnstile(far.disk, most_sent=most_sent, most_unshipped=far.most_unshipped, proceed=stop.proceed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run does, before anything of it is open.

    Attributes:
        shipping: The journal is on a store; None: it is in the output's folder.
        held: State folder whose lock the run holds; None: the output's.
        spent_before: By earlier runs of the same job, in USD, where that counts against --max-cost.
        existing: What was there when it began.
        denied: Workspaces of rows that may not use the model → why.
        segment_bytes: Of the journal.
        canary: Looks at whoever is asked.
        facts: Space, rows written, rows read and their hash → metadata of a part or file.
        after_batches: What can be had through them is there: --deadline was for them, and what they cost is spent.
        observer: Told of everything, the spending's own counting included.
        shared: Limits of all workers of the job; None: there is but this one.
    """

    job: JobRequest
    run_id: Any
    observer: Observer
    stop: StopSignal
    chain: FallbackChain
    source: inputs.Source
    output: Output
    existing: Existing
    denied: Mapping[str, str]
    trust: Trust
    spending: Spending
    prices: RunPrices
    canary: CanaryWatch
    facts: Callable[[Space | None, int, RowCounts, str | None], bytes]
    rows: RowCounts
    disk: Disk = storage.DISK
    segment_bytes: int = 64 << 20
    after_batches: bool = False
    shipping: Shipping | None = None
    held: Path | None = None
    spent_before: Decimal = Decimal(0)
    shared: JobLimits | None = None

    @property
    def width(self) -> int | None:
        """Dimensions that slices are cut by: known before anything is asked."""
        return self.chain.first.dimensions


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What is open while a run sends.

    Attributes:
        layout: Dimensions → how the output looks.
    """

    tools: Tools
    progress: Progress
    route: Route
    endpoint: Endpoint
    duplicate_ids: DuplicateIds
    layout: Callable[[int], Layout]

    @property
    def space(self) -> Space | None:
        """Of the vectors, as far as it is known."""
        return self.route.space or self.endpoint.space()

    @property
    def width(self) -> int | None:
        """Dimensions of the vectors; None while nobody knows."""
        return self.route.space.dimensions if self.route.space else self.endpoint.dimensions


def published_slice(existing: Existing, number: int) -> PublishedSlice | None:
    """What an interrupted run has published as this slice."""
    counts = existing.done.get(number)
    return None if counts is None else PublishedSlice(counts, existing.rows_hashes.get(number))


@asynccontextmanager
async def opened(plan: RunPlan, begin: Callable[[], Spool]) -> AsyncIterator[Resources]:
    """Everything a run sends with, closed in the opposite order.

    Args:
        begin: Called once it is known that it may send; says who takes the events of the journal's segments.
    """
    job, options, state, stop = plan.job, plan.job.settings.options, plan.output.state, plan.stop
    first = plan.chain.first
    finished = False

    async def close_journal() -> None:
        await journal.close(published=finished)

    with stop.heeded():
        async with AsyncExitStack() as stack:
            packing, under_way = packer(plan.source, first, options), UnderWay(stop.proceed)

            def limits(known: Limits) -> None:
                packing.limits = foundations.packed_limits(known, first, options)

            far = plan.shipping
            connections = first.rate_limits.concurrency
            ahead = far.ahead if far else 0 if first.local else connections // BESIDE_SHARE
            asked = router(
                job.settings, plan.observer, connections=connections, sleep=stop.sleep, ahead=ahead, shared=plan.shared
            )
            turns = Turns(connections + ahead)
            embedder = Embedder(
                asked,
                sleep=turns.giving(stop.sleep),
                observer=Observers(under_way, plan.observer),
                proceed=stop.proceed,
                keep_bodies=False,
            )
            stack.push_async_callback(embedder.aclose)
            deadline = time.monotonic() + options.deadline if options.deadline is not None else None
            deadline = None if plan.after_batches and options.mode != "online" else deadline
            route = asked.route(
                plan.chain,
                mode=options.fallback,
                policy=policy(options, deadline=deadline),
                space=plan.existing.space,
                canary=plan.canary,
                limits_changed=limits,
            )
            stack.callback(route.close)
            limits(asked.limits(route))
            money = _money(plan)
            stack.callback(money.close)
            endpoint = await asked.ask(route)
            spool_segment = begin()
            bought_in_batches = plan.spending.texts_batched
            purchases, segments = Purchases(), SegmentNumbers()
            plans = stack.enter_context(
                planner(
                    plan.source,
                    endpoint,
                    options,
                    packing,
                    state,
                    existing=plan.existing,
                    purchases=purchases,
                    segments=segments,
                    denied=plan.denied,
                    tenants=money.tenants,
                    own_run=plan.run_id if plan.after_batches else None,
                    cut=under_way.cut,
                    keeps=plan.canary.keeps,
                )
            )
            plan.canary.holds |= plans.reuses
            ids = stack.enter_context(DuplicateIds(plan.source, state))
            journal = Journal.open(
                state / JOURNAL,
                secret=far.secret if far else plan.trust.secret,
                spool=spool_segment,
                recovered=plan.existing.recovered,
                disk=far.disk if far else plan.disk,
                turnstile=_turnstile(far, first.rate_limits.concurrency, stop) if far else None,
                sync_intents=any(one.price_as != "free" for one in plan.chain.endpoints),
                segment_bytes=plan.segment_bytes,
                dimensions=endpoint.dimensions or 0,
                copies=None if far or state.is_relative_to(job.settings.paths.journal) else job.settings.paths.attempts,
            )
            stack.push_async_callback(close_journal)
            caller = Caller(run_id=plan.run_id, workspace_id=options.workspace, job_id=job.job, tags=options.tag)
            stack.push_async_callback(foundations.charge_idle, asked, caller, journal, money, plan.observer)
            stack.callback(plan.output.close)
            shared = cache(plan.job, plan.prices.of(endpoint), plan.observer)
            if shared is not None:
                stack.callback(shared.close)
            cached = CachedEmbedder(
                embedder,
                shared,
                route=route,
                journal=journal,
                budget=money,
                caller=caller,
                endpoint=endpoint,
                watch=plan.canary,
            )
            columns = row_columns(plan.source, options)

            def layout(width: int) -> Layout:
                return Layout(columns=columns, dimensions=width, dtype=options.dtype, vector_type=options.vector_type)

            def see(block: inputs.Block) -> None:
                ids.see(block)
                if options.on_bad_row == "skip":
                    for at, reason in block.reasons.items():
                        if is_bad_row(reason):
                            why = block.messages.get(at) or REASON_WORDS[reason]
                            plan.observer.notify(Warned("bad_row", str(block.ids[at]), why))

            answers = OnlineAnswers(cached, endpoint.rate_limits.concurrency + ahead, failed=stop.because, turns=turns)
            stack.push_async_callback(answers.aclose)
            open_slices = OpenSlices(
                plans,
                plan.width,
                lambda: far is not None or resources.width is not None,
                lambda number: published_slice(plan.existing, number),
                see,
                plan.rows,
            )
            progress = Progress(
                source=plan.source,
                planner=plans,
                slices=open_slices,
                under_way=under_way,
                spending=plan.spending,
                in_flight=lambda: answers.in_flight,
            )
            tools = Tools(
                blocks=lambda shard: plan.source.blocks(),
                slices=open_slices,
                answers=answers,
                publisher=Publisher(
                    journal,
                    plan.output,
                    purchases=purchases,
                    segments=segments,
                    parts=plan.existing.parts,
                    width=lambda: resources.width,
                    layout=layout,
                    facts=lambda written, counts, rows_hash: plan.facts(resources.space, written, counts, rows_hash),
                ),
                stop=stop,
                counted=lambda: (
                    plans.reused + cached.hits,
                    plans.duplicates + max(0, plans.own - bought_in_batches),
                ),
                settled=under_way.settled,
                rows=plan.rows,
            )
            resources = Resources(
                tools=tools, progress=progress, route=route, endpoint=endpoint, duplicate_ids=ids, layout=layout
            )
            stack.callback(stop.too_late)
            stack.push_async_callback(plan.canary.aclose)
            timer = asyncio.create_task(stop.at(deadline))
            stack.callback(timer.cancel)
            telling = asyncio.create_task(progress.tell(plan.observer))
            stack.callback(telling.cancel)
            yield resources
            finished = True


def _money(plan: RunPlan) -> Reservations:
    """What the run may spend."""
    if plan.shared is not None:
        return plan.shared.reservations(plan.prices.of)
    try:
        return reservations(
            plan.job.settings,
            plan.chain,
            plan.prices,
            plan.observer,
            plan.trust,
            run_id=str(plan.run_id),
            state=plan.held or plan.output.state,
            spent=plan.spending.cost + plan.spending.cost_at_risk + plan.spent_before,
            key=plan.job.key_budget,
        )
    except BudgetReached as reached:
        if not plan.after_batches or not isinstance(reached.limit, SpendLimit):
            raise
        return Reservations(plan.prices.of, [reached.limit], plan.observer)  # nothing more, but what is there


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResources:
    """What is open while a run works with batches.

    Attributes:
        lines: Plans the whole input: what is neither there nor in a batch, as lines.
        may_submit: Something may be spent.
    """

    answers: BatchAnswers
    lines: Callable[[], AsyncIterator[PackedRequest]]
    may_submit: bool


SHAPES_THE_SPACE = ("dimensions", "dimension_policy", "input_type", "on_too_long")
"""Options that whoever collects a batch must have as its run had them."""


class _NoColumns:
    """Rows of the output are of no interest while lines are planned."""

    nbytes = 0


@asynccontextmanager
async def opened_batches(
    plan: RunPlan,
    begin: Callable[[], Spool],
    api: BatchApi,
    left: FoundBatches,
    *,
    patient: bool,
    cancels: bool = False,
) -> AsyncIterator[BatchResources]:
    """Everything a run buys batches with, closed in the opposite order.

    Args:
        begin: As of `opened`.
        left: What earlier runs of this output have under way.
        patient: Whether it waits for them.
        cancels: All of them are to end: what they cost is booked, whatever has become of their model.
    """
    job, options, state, stop = plan.job, plan.job.settings.options, plan.output.state, plan.stop
    recovered = plan.existing.recovered
    with stop.heeded():
        async with AsyncExitStack() as stack:
            asked = router(job.settings, plan.observer, connections=8, sleep=stop.sleep)
            stack.push_async_callback(asked.aclose)
            route = asked.route(
                plan.chain,
                mode="off",
                policy=policy(options),
                space=plan.existing.space,
                canary=plan.canary,
                limits_changed=_ignored,
            )
            stack.callback(route.close)
            endpoint = await asked.ask(route)
            leg = route.first
            calls = BatchCalls(
                endpoint,
                asked.transport(endpoint),
                api.protocol,
                api.capabilities,
                retries=options.retries,
                sleep=stop.sleep,
                jitter=random.random,
            )
            try:
                money = reservations(
                    job.settings,
                    plan.chain,
                    plan.prices,
                    plan.observer,
                    plan.trust,
                    run_id=str(plan.run_id),
                    state=state,
                    tier=TIER,
                    spent=plan.spending.cost + plan.spending.cost_at_risk,
                    key=job.key_budget,
                )
                may_submit = True
            except BudgetReached:
                if not left.pending:
                    raise
                money, may_submit = Reservations(partial(plan.prices.of, tier=TIER)), False  # what is bought is read
            stack.callback(money.close)
            spool_segment = begin()
            had = stack.enter_context(HashIndex(state))
            space_id = plan.existing.space.space_id if plan.existing.space else None
            resume.index(plan.existing, space_id, had, SegmentNumbers(), Purchases(), plan.canary.keeps)
            plan.canary.holds |= len(had) > 0
            journal = Journal.open(
                state / JOURNAL,
                secret=plan.trust.secret,
                spool=spool_segment,
                recovered=recovered,
                disk=plan.disk,
                segment_bytes=plan.segment_bytes,
                dimensions=endpoint.dimensions or 0,
                copies=None if state.is_relative_to(job.settings.paths.journal) else job.settings.paths.attempts,
            )
            log = BatchLog(state / JOURNAL, job.settings.paths.batches, secret=plan.trust.secret, disk=plan.disk)
            stack.callback(log.close)
            stack.push_async_callback(journal.close)
            stack.callback(plan.output.close)

            def remember(hashes: bytes) -> None:
                had.add(hashes, np.zeros(len(hashes) // TEXT_HASH_BYTES, LOCATION))

            space = plan.existing.space or endpoint.space()
            shared = cache(plan.job, plan.prices.of(endpoint), plan.observer)
            if shared is not None:
                stack.callback(shared.close)
            caller = Caller(run_id=plan.run_id, workspace_id=options.workspace, job_id=job.job, tags=options.tag)
            embedder = Embedder(
                asked, sleep=stop.sleep, observer=plan.observer, proceed=stop.proceed, keep_bodies=False
            )
            stack.push_async_callback(plan.canary.aclose)

            async def look() -> None:
                """Before a batch is ordered, and before one is read: in between may be a day, and another model."""
                spends = money.at(plan.prices.of)
                await embedder.look(route=route, caller=caller, journal=journal, budget=spends)
                await plan.canary.settled()

            async def look_again() -> None:
                """What is paid for already is read, also when three more texts are too dear; or refused, at the end."""
                try:
                    await look()
                except (BudgetReached, ProviderError) as refused:
                    if isinstance(refused, ProviderError) and not cancels:
                        raise
                    plan.observer.notify(Warned("canary", endpoint.id, refused.message))

            answers = BatchAnswers(
                calls,
                route=route,
                leg=leg,
                log=log,
                journal=journal,
                budget=money,
                caller=caller,
                observer=plan.observer,
                folder=state,
                about=Batch(
                    mark="",
                    provider=endpoint.provider,
                    model=endpoint.model,
                    space_id=space.space_id if space else None,
                    account=endpoint.account,
                    price_as=endpoint.price_as,
                    folder=str(state.absolute()),
                    output=str(plan.output.place.absolute()),
                    ledger=str(job.settings.paths.ledger.absolute()),
                    run_id=plan.run_id,
                    job_id=job.job,
                    purpose=options.purpose,
                    options={
                        **{name: getattr(options, name) for name in SHAPES_THE_SPACE},
                        **({} if job.key_budget is None else {"key": job.key_budget.key_id}),
                    },
                ),
                known=_collected(recovered),
                had=remember,
                patient=patient,
                deadline_s=options.deadline,
                sleep=stop.sleep,
                proceed=stop.proceed,
                look=look_again,
                books_all=cancels,
            )
            await answers.take_over([*left.batches.values()])
            for path in left.paths:
                plan.disk.unlink(path)

            async def not_cached(packed: PackedRequest) -> PackedRequest | None:
                if shared is None or space is None:
                    return packed
                return await unknown_to(shared, space, packed, plan.canary)

            async def lines() -> AsyncIterator[PackedRequest]:
                looked = False
                async for packed in unlooked():
                    if not looked:
                        looked = True
                        await look()
                    yield packed

            async def unlooked() -> AsyncIterator[PackedRequest]:
                packing = packer(plan.source, endpoint, options)
                packing.limits = line_limits(calls, asked.limits(route), batch_size=options.batch_size)
                with HashIndex(state) as seen:
                    planner_ = Planner(
                        options=options,
                        wording=text_rules(endpoint, options, plan.source),
                        packer=packing,
                        known=had,
                        seen=seen,
                        columns=lambda block, at, chunks, texts: _NoColumns(),
                        failed_before=plan.existing.failed,
                        denied=plan.denied,
                        tenants=money.tenants,
                    )
                    for batch in answers.pending:
                        keys = planner_.keys_of(batch.hashes, batch.payers)
                        seen.add(keys, np.zeros(len(keys) // TEXT_HASH_BYTES, LOCATION))
                    blocks: Iterator[Any] = plan.source.blocks()
                    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                        stop.proceed()
                        slice_ = planner_.open_slice(0, block.first_row)
                        for packed in await asyncio.to_thread(_taken, planner_, block, slice_):
                            if (asked_for := await not_cached(packed)) is not None:
                                yield asked_for
                    for packed in packing.rest():
                        if (asked_for := await not_cached(packed)) is not None:
                            yield asked_for

            try:
                yield BatchResources(answers=answers, lines=lines, may_submit=may_submit)
            finally:
                await journal.close()  # what was spent is on its way to the ledger: now its files may go
                if not stop.reasons:
                    await answers.clean(keep_files=options.keep_remote_files)


def _collected(recovered: Recovered | None) -> dict[UUID, bool]:
    """Events of lines that are in the journal, and whether their vectors are."""
    if recovered is None:
        return {}
    found = {event.event_id: False for event in recovered.events if event.batch_id}
    return found | {one.event.event_id: True for one in recovered.answers if one.event.batch_id}


def _taken(planner_: Planner, block: Any, slice_: Any) -> list[PackedRequest]:
    return list(planner_.take(block, slice_))


def _ignored(limits: Limits) -> None:
    """Lines have limits of their own."""

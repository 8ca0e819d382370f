"""The only place that builds, and closes, what a run, a search, an estimate or a comparison works with."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedctl import inputs, storage
from embedctl.budgets import limits as spend_limits
from embedctl.budgets.reservations import Reservations
from embedctl.embedding.answers import OnlineAnswers, Turns
from embedctl.embedding.cached import CachedEmbedder
from embedctl.embedding.call import Embedder
from embedctl.embedding.route import Route
from embedctl.embedding.router import Router
from embedctl.embedding.usage_events import Caller
from embedctl.errors import InputInvalid
from embedctl.inputs.columns import is_name, matching
from embedctl.journal import Journal, Spool, Trust
from embedctl.journal.rescue import JOURNAL
from embedctl.ledger import spool as spools
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.outputs import Existing, Output, parquet
from embedctl.outputs.assemble import Purchases, SegmentNumbers
from embedctl.outputs.parquet import Layout
from embedctl.outputs.publisher import Publisher
from embedctl.planning import packer as packers
from embedctl.planning.chunks import REASON_WORDS, is_bad_row
from embedctl.planning.duplicate_ids import DuplicateIds
from embedctl.planning.packer import Packer
from embedctl.planning.planner import Planner
from embedctl.planning.text_rules import text_rules
from embedctl.records import Limits, Observer, Observers, RowCounts, Space, Warned, utc_now
from embedctl.routing.breaker import Thresholds
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import AdaptiveLimiter, Limiter
from embedctl.routing.retry import Policy
from embedctl.runs import intake, resume
from embedctl.runs.job import JobRequest
from embedctl.runs.pipeline import Tools
from embedctl.runs.progress import Progress, UnderWay
from embedctl.runs.receipt import Spending
from embedctl.runs.slices import OpenSlices, PublishedSlice
from embedctl.runs.stop import StopSignal
from embedctl.settings import Settings
from embedctl.settings.options import Options
from embedctl.storage import Disk
from embedctl.storage.hash_index import HashIndex
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
    reading = read_options(job.settings.options, spool, output.own_files())
    if job.query is not None:
        return inputs.open_query(job.query, reading)
    opened = inputs.open_input(job.inputs, reading, stdin=job.stdin)
    for file in opened.files:
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


def packed_limits(known: Limits, endpoint: Endpoint, options: Options, *, concurrency: int | None = None) -> Limits:
    """What one request may hold.

    Args:
        concurrency: Requests at once; None: the endpoint's.
    """
    return packers.packed_limits(
        known,
        batch_size=options.batch_size,
        dimensions=endpoint.dimensions,
        concurrency=endpoint.rate_limits.concurrency if concurrency is None else concurrency,
    )


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
    cut: Callable[[int], None] = lambda rows: None,
) -> Iterator[Planner]:
    """Steps 2 and 3, with indexes of known and of seen texts, closed at the end.

    Args:
        folder: Where the indexes go when they are large.
        existing: What need not be bought; its answers are put into `purchases`, numbered by `segments`.
        denied: Workspaces of rows that may not use the model → why.
        tenants: Workspaces whose rows fail once their budget is used up.
        columns: Makes the record batch of some rows; None: the columns of the output.
        cut: Told how many rows of a block are cut into chunks; may raise, and no more are.
    """
    existing = existing or Existing()
    fields = row_columns(opened, options) if columns is None else None
    with HashIndex(folder) as known, HashIndex(folder) as seen:
        space_id = existing.space.space_id if existing.space else None
        resume.index(existing, space_id, known, segments or SegmentNumbers(), purchases or Purchases())
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
        )


# ── what is asked and paid ───────────────────────────────────────────────────────────────────────────────────────────


def ledger_paths(settings: Settings) -> LedgerPaths:
    """Where spending goes."""
    return LedgerPaths.of(settings.paths)


def spool(settings: Settings, disk: Disk = storage.DISK) -> Spool:
    """Takes the events of a segment to the ledger's spool."""
    return lambda spool_id, events: spools.publish(settings.paths.spool, spool_id, events, disk=disk)


def taking_in(settings: Settings, observer: Observer) -> Callable[[], object]:
    """Puts what was spent by now into the ledger, dead runs' spending included; before budgets are looked up."""
    return lambda: intake.take_in(settings.paths, wait_s=spend_limits.LEDGER_WAIT_S, now=utc_now(), observer=observer)


def reservations(
    settings: Settings,
    chain: FallbackChain,
    prices: RunPrices,
    observer: Observer,
    believed: Trust,
    *,
    run_id: str,
    state: Path,
) -> Reservations:
    """What may be spent: --max-cost, and what is left of the workspaces' budgets. To be closed.

    Args:
        state: The state folder whose lock the caller holds.

    Raises:
        BudgetReached, Locked, WrongUsage: See `budgets.limits.reservations`.
    """
    return spend_limits.reservations(
        ledger_paths(settings),
        settings,
        chain.endpoints,
        prices.of,
        observer,
        believed,
        run_id=run_id,
        state=state,
        take_in=taking_in(settings, observer),
    )


def router(
    settings: Settings,
    observer: Observer,
    *,
    connections: int,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Router:
    """All endpoints of this process. To be closed.

    Args:
        connections: Most at once to one host.
        sleep: Waits, and raises when the run is told to stop.
    """
    max_wait_s = settings.options.max_wait

    def limiter(endpoint: Endpoint, waiting: Callable[[float], None]) -> Limiter:
        return AdaptiveLimiter(endpoint.rate_limits, sleep=sleep, longest_gate_s=max_wait_s, waiting=waiting)

    return Router(
        hints_file=settings.paths.home / "hints.json",
        limiter=limiter,
        max_wait_s=max_wait_s,
        jitter=random.random,
        connections=connections,
        sleep=sleep,
        observer=observer,
    )


def server_router(
    settings: Settings,
    observer: Observer,
    limiter: Callable[[Endpoint, Callable[[float], None]], Limiter],
    thresholds: Thresholds,
) -> Router:
    """All endpoints of a server: nobody waits for one that is ill. To be closed.

    Args:
        limiter: Makes that of an endpoint.
    """
    return Router(
        hints_file=settings.paths.home / "hints.json",
        limiter=limiter,
        max_wait_s=0.0,
        jitter=random.random,
        connections=settings.serve.in_flight,
        thresholds=thresholds,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run does, before anything of it is open.

    Attributes:
        existing: What was there when it began.
        denied: Workspaces of rows that may not use the model → why.
        segment_bytes: Of the journal.
        facts: Space, rows written, rows read and their hash → metadata of a part or file.
        observer: Told of everything, the spending's own counting included.
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
    facts: Callable[[Space | None, int, RowCounts, str | None], bytes]
    rows: RowCounts
    disk: Disk = storage.DISK
    segment_bytes: int = 64 << 20


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
                packing.limits = packed_limits(known, first, options)

            asked = router(job.settings, plan.observer, connections=first.rate_limits.concurrency, sleep=stop.sleep)
            turns = Turns(first.rate_limits.concurrency)
            embedder = Embedder(
                asked,
                sleep=turns.giving(stop.sleep),
                observer=Observers(under_way, plan.observer),
                proceed=stop.proceed,
                keep_bodies=False,
            )
            stack.push_async_callback(embedder.aclose)
            deadline = time.monotonic() + options.deadline if options.deadline is not None else None
            route = asked.route(
                plan.chain,
                mode=options.fallback,
                policy=policy(options, deadline=deadline),
                space=plan.existing.space,
                limits_changed=limits,
            )
            stack.callback(route.close)
            limits(asked.limits(route))
            money = reservations(
                job.settings, plan.chain, plan.prices, plan.observer, plan.trust, run_id=str(plan.run_id), state=state
            )
            stack.callback(money.close)
            endpoint = await asked.ask(route)
            spool_segment = begin()
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
                    cut=under_way.cut,
                )
            )
            ids = stack.enter_context(DuplicateIds(plan.source, state))
            journal = Journal.open(
                state / JOURNAL,
                secret=plan.trust.secret,
                spool=spool_segment,
                recovered=plan.existing.recovered,
                disk=plan.disk,
                sync_intents=any(one.price_as != "free" for one in plan.chain.endpoints),
                segment_bytes=plan.segment_bytes,
                dimensions=endpoint.dimensions or 0,
                copies=None if state.is_relative_to(job.settings.paths.journal) else job.settings.paths.attempts,
            )
            stack.push_async_callback(close_journal)
            stack.callback(plan.output.close)
            caller = Caller(run_id=plan.run_id, workspace_id=options.workspace, job_id=job.job, tags=options.tag)
            shared = cache(job, plan.prices.of(endpoint), plan.observer)
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

            answers = OnlineAnswers(cached, endpoint.rate_limits.concurrency, failed=stop.because, turns=turns)
            stack.push_async_callback(answers.aclose)
            open_slices = OpenSlices(
                plans,
                lambda: resources.width,
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
                counted=lambda: (plans.reused + cached.hits, plans.duplicates),
                settled=under_way.settled,
                rows=plan.rows,
            )
            resources = Resources(
                tools=tools, progress=progress, route=route, endpoint=endpoint, duplicate_ids=ids, layout=layout
            )
            stack.callback(stop.too_late)
            timer = asyncio.create_task(stop.at(deadline))
            stack.callback(timer.cancel)
            telling = asyncio.create_task(progress.tell(plan.observer))
            stack.callback(telling.cancel)
            yield resources
            finished = True

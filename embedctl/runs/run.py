"""One run, from what a command asks for to its receipt: what is there already, what is sent, and the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from embedctl import inputs, storage
from embedctl.budgets import limits as spend_limits
from embedctl.budgets.foreseen import foreseen
from embedctl.dataclass import dataclass
from embedctl.embedding.canary import CanaryWatch
from embedctl.errors import BegunAnew, EmbedctlError, Locked
from embedctl.inputs.left_out import LeftOut, LeftOutFile
from embedctl.journal import Spool, Trust
from embedctl.journal.batches import Found
from embedctl.journal.rescue import JOURNAL, rescue
from embedctl.ledger import segment_owners
from embedctl.ledger.prices.price import cost
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.outputs import Existing, Output, failures, parquet
from embedctl.planning import shards
from embedctl.records import (
    UNOBSERVED,
    ColumnsChosen,
    Observer,
    Observers,
    PhaseBegan,
    RowCounts,
    Space,
    UsageEvent,
    Warned,
    utc_now,
    uuid7,
)
from embedctl.routing import allow, credentials
from embedctl.routing import chain as chains
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint, check_usable
from embedctl.routing.space_lock import SpaceLock
from embedctl.runs import batching, estimate, foundations, intake, resume, savings, space_locks, target, wiring
from embedctl.runs.batching import Bought, ModeChoice
from embedctl.runs.estimate import Estimate
from embedctl.runs.executor import Executor, InProcess
from embedctl.runs.intake import Ingest
from embedctl.runs.job import JobRequest
from embedctl.runs.progress import Progress
from embedctl.runs.receipt import FailureReasons, Receipt, Spending, Unfinished, build_receipt
from embedctl.runs.record import RunRecord
from embedctl.runs.registration import Registration
from embedctl.runs.registry import RunRegistry, home_trust
from embedctl.runs.slices import RowsDiffer
from embedctl.runs.stop import StopSignal
from embedctl.runs.wiring import Resources, RunPlan
from embedctl.storage import Disk

INGEST_WAIT_S = 5

RunAsync = Callable[[Coroutine[Any, Any, None]], None]


@dataclass(frozen=True, slots=True)
class JobWork:
    """What a run works on, once it is known and before anything is open.

    Attributes:
        denied: Workspaces of rows that may not use the model → why.
    """

    source: inputs.Source
    chain: FallbackChain
    denied: Mapping[str, str]
    entry: Registration


class Run:
    """A run while it is under way.

    Args:
        disk: Everything durable goes through it.
        ingest: Takes the spool into the ledger; duckdb's by default.
        segment_bytes: Of the journal.
        executor: Works on the shards.
    """

    def __init__(
        self,
        job: JobRequest,
        observer: Observer = UNOBSERVED,
        *,
        disk: Disk = storage.DISK,
        ingest: Ingest | None = None,
        segment_bytes: int = 64 << 20,
        executor: Executor | None = None,
    ) -> None:
        self.job = job
        self._observer = observer
        self.run_id: UUID = uuid7()
        self.stop = StopSignal()
        self._executor = executor or InProcess()
        self._disk = disk
        self._ingest = ingest
        self._segment_bytes = segment_bytes
        self._options = job.settings.options
        self._ledger = foundations.ledger_paths(job.settings)
        self._ledger.refuse_others()
        self._prices = RunPrices(self._ledger.price_file, utc_now())
        self._record = RunRecord(job, self.run_id)
        self._spool = foundations.spool(job.settings, disk)
        self.spending = Spending(self._prices.price)
        self.batches = Bought()
        self._failures = FailureReasons()
        self._left_out = LeftOut()
        self._progress: Progress | None = None
        self._keeps = False

    def ask_to_stop(self, reason: EmbedctlError) -> None:
        """Stop sending, from a signal handler."""
        self.stop.ask(reason)

    def unfinished(self) -> Unfinished | None:
        """What is kept, should it stop now; None where nothing was begun, or nothing can be kept."""
        return self._progress.unfinished() if self._progress is not None and self._keeps else None

    def execute(self, run_async: RunAsync) -> Receipt:
        """The whole run; its spending is in the ledger or on its way when this returns or raises.

        Args:
            run_async: Runs a coroutine to its end: `asyncio.run`, which front ends call and nobody below them.

        Raises:
            EmbedctlError: Why nothing was done. Once a run has begun, its end is in the receipt instead.
        """
        started = time.monotonic()
        self._observer.notify(PhaseBegan("reading"))
        chain = self._chain()
        check_usable(chain.first)
        spend_limits.check_priced(chain.endpoints, self._prices.of, self._options)
        self._record.space = chain.first.space()
        self._trust = home_trust(self.job.settings.paths, self._disk, run_id=self.run_id)
        seen_by = Observers(self._failures, self._observer)
        output = target.output(self.job, self.run_id, self._trust, self._disk, seen_by)
        self._keeps = output.resumable
        failure: EmbedctlError | None = None
        with target.held(output, self.job, self._disk) as self._lock:
            entry = Registration(
                self.job, self.run_id, output, chain.first.id, self._disk, time.monotonic, self.spending
            )
            entry.begin()
            try:
                self._fulfil(output, chain, entry, run_async)
            except EmbedctlError as error:
                failure = error
            finally:
                self.stop.too_late()
                if not output.resumable:
                    self._hand_over(output)
                    output.tidy()
            receipt = self._receipt(output, failure, time.monotonic() - started, chain)
            self._observer.notify(PhaseBegan("accounting"))
            self._sign_off(entry, failure, receipt.exit_code)
            if failure is not None and not self._has_begun(failure):
                raise failure
        self._ingest_spool()
        return self._with_savings(receipt, output, chain)

    def estimate(self) -> Estimate:
        """What `execute` would do; nothing is sent, made or changed.

        Raises:
            EmbedctlError: Why it could not be done.
        """
        self._observer.notify(PhaseBegan("reading"))
        chain = self._chain()
        spend_limits.check_priced(chain.endpoints, self._prices.of, self._options)
        trust = home_trust(self.job.settings.paths, self._disk, make=False)
        output = target.output(self.job, self.run_id, trust, self._disk, self._observer)
        chain = self._like(output, chain)
        source, endpoint = self._source(output, None), chain.first
        denied = allow.denied(self.job.settings, endpoint.in_chain)
        existing = output.peek(self._record.bind(source, endpoint, tuple(denied)))
        price = partial(self._prices.of, endpoint)
        chosen = self._choice(endpoint, source)
        found = estimate.estimate(source, endpoint, self._options, existing, denied, price, self._observer)
        if self.job.kind == "folder":
            found = batching.with_choice(found, endpoint, source, chosen)
        return self._with_limits(found, price("batch" if found.mode == "batch" else "standard"), trust, output.state)

    def _with_limits(self, found: Estimate, unit_price: Decimal | None, trust: Trust, state: Path) -> Estimate:
        """The estimate, with the limits on spending that the run would meet; who looks on is told of them."""
        costs = {
            one.workspace: None if unit_price is None else cost(one.tokens, unit_price) for one in found.workspaces
        }
        try:
            met = foreseen(
                self._ledger,
                self.job.settings,
                costs,
                trust,
                state=state,
                take_in=foundations.taking_in(self.job.settings, self._observer),
            )
        except EmbedctlError as error:
            self._observer.notify(Warned("budgets_unknown", detail=error.message))
            return found
        for one in met:
            self._observer.notify(one)
        return replace(found, limits=tuple(met))

    def _chain(self) -> FallbackChain:
        """Who may be asked; a warning for each key that others could read."""
        chain = chains.chain(
            self.job.settings,
            observer=self._observer,
            type_by_flag=self.job.settings.origins.get("input_type") == "flag",
        )
        for name in dict.fromkeys(endpoint.provider for endpoint in chain.endpoints):
            variables = credentials.key_variables(self.job.settings, name)
            if note := credentials.exposed_key_file(self.job.settings.environment, variables):
                self._observer.notify(Warned("key_file", detail=note))
        return chain

    def _like(self, output: Output, chain: FallbackChain) -> FallbackChain:
        """The chain, with its space named as in the output that it goes on with."""
        if chain.first.revision is None or self.job.overwrite:
            return chain
        found = next(filter(None, map(parquet.read_metadata, output.own_files())), None)
        same = chain if found is None else chain.like(Space(**found["space"]))
        if same.first.revision is None:
            self._observer.notify(Warned("older_space", str(self.job.output)))
            self._record.space = same.first.space()
        return same

    def _has_begun(self, failure: EmbedctlError) -> bool:
        """Whether there is anything to account for."""
        return bool(self.spending.attempts or self._record.rows.read or failure.exit_code in (4, 75, 130, 143))

    def _fulfil(self, output: Output, chain: FallbackChain, entry: Registration, run_async: RunAsync) -> None:
        """Do what is left to do."""
        chain = self._like(output, chain)
        source = self._source(output, output.state)
        wiring.check_source(source, self._options, output.state)
        denied = allow.denied(self.job.settings, chain.first.in_chain)
        existing = self._existing(output, source, chain, tuple(denied))
        if existing.finished is not None:
            self._hand_over(output)
            if self.job.kind == "folder":
                batching.forget(batching.left(output.state, self.job.settings.paths.batches, self._trust), self._disk)
            self._record.rows = existing.finished
            self._record.rows.reused, self._record.rows.duplicates = existing.finished.vectors, 0
        else:
            chosen = self._choice(chain.first, source)
            self._lock_found = space_locks.find(self.job, output, existing.space or chain.first.space())
            self._chunker = partial(space_locks.chunker_of, source, self._options)
            self._check_locked(chain.first, existing)
            canary = self._watch(chain, existing)
            existing = self._without_older(canary, existing, output, source, chain, tuple(denied))
            plan = self._run_plan(JobWork(source, chain, denied, entry), output, existing, canary, self._record.rows)
            run_async(self._send(plan, entry, chosen))
        output.tidy()
        segment_owners.forget(output.state, self._disk)

    def _run_plan(
        self,
        work: JobWork,
        output: Output,
        existing: Existing,
        canary: CanaryWatch,
        rows: RowCounts,
        **more: Any,
    ) -> RunPlan:
        """What is done now, of all of the input or of a part of it.

        Args:
            rows: Counted there.
            more: Fields of `RunPlan`.
        """
        return RunPlan(
            job=self.job,
            run_id=self.run_id,
            observer=Observers(self.spending, work.entry, self._observer),
            stop=self.stop,
            chain=work.chain,
            source=work.source,
            output=output,
            existing=existing,
            denied=work.denied,
            trust=self._trust,
            spending=self.spending,
            prices=self._prices,
            canary=canary,
            facts=self._record.facts,
            rows=rows,
            disk=self._disk,
            segment_bytes=self._segment_bytes,
            **more,
        )

    def _watch(self, chain: FallbackChain, existing: Existing) -> CanaryWatch:
        """Looks at the model; what its vectors are compared with is what the output began with."""
        lock, first, others = self._lock_found.lock, chain.first, chain.endpoints[1:]
        return space_locks.watch(
            self.job.settings, self._observer, lock, existing, first, others=others, overwrite=self.job.overwrite
        )

    def _without_older(
        self,
        canary: CanaryWatch,
        existing: Existing,
        output: Output,
        source: inputs.Source,
        chain: FallbackChain,
        denied: tuple[str, ...],
    ) -> Existing:
        """What is there of the model as it is now."""
        self._record.begun_at = canary.begun_at
        found = space_locks.without_older(existing, canary)
        if found is None:
            self._record.rows = RowCounts()
            anew = self._existing(output, source, chain, denied, anew=True)
            found = space_locks.without_older(anew, canary) or anew
        return found

    def _check_locked(self, first: Endpoint, existing: Existing) -> None:
        """Raise ModelChanged when --locked does not allow what would be bought."""
        lock = self._lock_found.lock
        if not self._options.locked or lock is None:
            return
        existing.space = existing.space or lock.space
        space = first.space() or first.space(lock.space.dimensions)
        if space is not None:
            mine = SpaceLock.of(first, space, chunker=self._chunker())
            space_locks.check(self._lock_found, mine, space_locks.hosts_of(first))

    def _source(self, output: Output, spool_folder: Path | None) -> inputs.Source:
        """The input; what of it is left out is said."""
        source = wiring.source(self.job, output, spool_folder)
        for line in source.warnings:
            self._observer.notify(Warned("input", detail=line))
        self._left_out = source.left_out
        source.left_out.tell(self._tell_left_out)
        columns, said = source.columns, (self._options.text_column, self._options.id_column)
        if columns is not None and None in said:
            self._observer.notify(ColumnsChosen(", ".join(columns.texts), columns.id, source.id_candidate()))
        return source

    def _tell_left_out(self, file: LeftOutFile) -> None:
        if file.why == "unreadable":
            self._observer.notify(Warned("bad_file", file.label, file.message))
        else:
            self._observer.notify(Warned("left_out", file.label, file.message or file.why.replace("_", " ")))

    def _existing(
        self, output: Output, source: inputs.Source, chain: FallbackChain, denied: tuple[str, ...], anew: bool = False
    ) -> Existing:
        """What is there; the input is bound as it is now.

        Args:
            anew: An interrupted run is not gone on with.
        """
        request = replace(self._record.bind(source, chain.first, denied), anew=anew)
        existing = output.existing(request)
        for note in existing.notes:
            self._observer.notify(note)
        if existing.space is None:
            spaces = [endpoint.space for endpoint in chain.endpoints]
            where = self.job.output or output.state
            existing.space = resume.space_of_journal(existing, spaces, where, overwrite=request.overwrite)
        return existing

    async def _send(self, plan: RunPlan, entry: Registration, chosen: ModeChoice) -> None:
        """Send what is left to send, and finish the output.

        Raises:
            BatchesPending: Batches are under way, and nobody waits for them.
            EmbedctlError: Why it stopped; what was bought is in the journal.
        """
        try:
            await self._send_all(plan, entry, chosen)
        except BegunAnew:
            if not plan.output.resumable:  # its rows are printed already
                raise
            self.stop.go_on()
            plan.canary.begin_anew()
            await self._send_all(self._anew(plan), entry, chosen)

    async def _send_all(self, plan: RunPlan, entry: Registration, chosen: ModeChoice) -> None:
        if self.job.kind != "folder":
            return await self._send_the_rest(plan, entry)
        with self.stop.heeded():
            await self._send_the_rest(await self._bought(plan, entry, chosen), entry)
        batching.forget(self._batches_left(plan), self._disk)
        return None

    def _anew(self, plan: RunPlan) -> RunPlan:
        """The same run from its first row on; of what is there, it takes what may stand in its output."""
        self._record.rows = RowCounts()
        denied = tuple(plan.denied)
        existing = self._existing(plan.output, plan.source, plan.chain, denied, anew=True)
        existing = self._without_older(plan.canary, existing, plan.output, plan.source, plan.chain, denied)
        return replace(plan, existing=existing, rows=self._record.rows)

    def _choice(self, endpoint: Endpoint, source: inputs.Source) -> ModeChoice:
        """Only a folder can wait for batches."""
        if self.job.kind != "folder":
            return ModeChoice(None)
        return batching.choice(endpoint, self._options, source, self._prices)

    def _batches_left(self, plan: RunPlan) -> Found:
        return batching.left(plan.output.state, self.job.settings.paths.batches, self._trust)

    async def _bought(self, plan: RunPlan, entry: Registration, chosen: ModeChoice) -> RunPlan:
        """What is to be bought in batches; the plan for the rest, once none is under way.

        Raises:
            BatchesPending, EmbedctlError: As `batching.buy`.
        """
        found, endpoint, options = self._batches_left(plan), plan.chain.first, self._options
        self.batches.why, self.batches.chosen = chosen.why, chosen.api is not None
        if options.mode == "auto" and chosen.api is None:
            self._observer.notify(Warned("batch_mode", endpoint.id, chosen.why))
        if chosen.api is None and not any(
            one.step in ("creating", "submitted", "collected") for one in found.batches.values()
        ):
            batching.forget(found, self._disk)
            return plan
        batching.check_same_space(found, endpoint, plan.existing.space)
        self.batches.chosen = True
        api = chosen.api or batching.usable(endpoint, None)
        waits = self.job.waits if options.mode != "online" else False
        patient = waits if options.wait is None else options.wait
        begin = partial(self._begin, plan, entry)
        async with wiring.opened_batches(plan, begin, api, found, patient=patient) as resources:
            answers = resources.answers
            try:
                await batching.buy(
                    answers,
                    resources.lines,
                    patient=patient,
                    submits=chosen.api is not None and resources.may_submit,
                    min_inputs=chosen.min_inputs,
                )
            finally:
                self.batches.pending, self.batches.submitted = answers.pending, answers.submitted
        self._record.rows = RowCounts()
        denied = tuple(plan.denied)
        existing = self._existing(plan.output, plan.source, plan.chain, denied)
        existing = self._without_older(plan.canary, existing, plan.output, plan.source, plan.chain, denied)
        return replace(plan, existing=existing, rows=self._record.rows, after_batches=True)

    async def _send_the_rest(self, plan: RunPlan, entry: Registration) -> None:
        """Send what nobody has, and finish the output."""
        try:
            await self._attempt(plan, entry)
        except RowsDiffer:  # before anything was sent: what is published comes first
            self._observer.notify(Warned("input_differs"))
            self.stop.go_on()
            await self._attempt(self._anew(plan), entry)

    async def _attempt(self, plan: RunPlan, entry: Registration) -> None:
        """Send what is left to send.

        Raises:
            RowsDiffer: Parts that are there hold other rows than the input does now.
        """
        async with wiring.opened(plan, partial(self._begin, plan, entry)) as resources:
            self._progress = resources.progress
            try:
                async for _ in self._executor.run(shards.plan(self._record.binding), resources.tools):
                    pass
                await plan.canary.settled()
                await asyncio.to_thread(self._finish, plan, resources)
            finally:
                self._record.space = resources.space

    def _begin(self, plan: RunPlan, entry: Registration) -> Spool:
        """Say that it begins to send, and under which ledger; where the events of its segments go.

        Raises:
            OutputRefused: Nothing could be put into that ledger's spool.
        """
        self._disk.make_folder(self._ledger.spool)
        plan.output.record(self._record.as_dict(plan.output, "running"))
        for path in plan.existing.damaged:
            self._observer.notify(Warned("damaged_part", str(path)))
        recovered = plan.existing.recovered
        segment_ids = [one.segment_id for one in recovered.segments] if recovered else []
        owner = segment_owners.SegmentOwner(str(self._ledger.database.absolute()), str(self._ledger.spool.absolute()))
        if segment_owners.is_broken(plan.output.state):
            aside = storage.set_aside(self._disk, plan.output.state / segment_owners.FILE)
            self._observer.notify(Warned("set_aside", str(aside)))
        for other in segment_owners.bind(plan.output.state, owner, segment_ids, self._trust, self._disk):
            self._observer.notify(Warned("other_ledger", other))
        entry.running()
        return self._routed(plan.output)

    def _finish(self, plan: RunPlan, resources: Resources) -> None:
        """Make the output what its name says."""
        self._observer.notify(PhaseBegan("writing"))
        self._record.check_unchanged(plan.source)
        self._record.space = resources.space
        plan.output.finish(
            None if resources.width is None else resources.layout(resources.width),
            lambda written: self._record.facts(resources.space, written, self._record.rows, None),
            lambda: self._record.as_dict(plan.output, "complete"),
        )
        if resources.space is not None and not resources.endpoint.local and not self._options.locked:
            mine = SpaceLock.of(
                resources.endpoint,
                resources.space,
                chunker=self._chunker(),
                canaries=plan.canary.begun_with(),
                hosts=plan.canary.equal_hosts,
            )
            space_locks.keep(self._lock_found, mine, self._disk)
        resources.duplicate_ids.warn(self._observer)

    def _sign_off(self, entry: Registration, failure: EmbedctlError | None, exit_code: int) -> None:
        """Say in the registry how it ended; the output is what it is, whether that can be written or not."""
        try:
            reached = None if self._progress is None or not self._keeps else self._progress.told()
            rows, waiting = self._record.rows, bool(self.batches.pending)
            entry.end(rows, self.spending, failure, exit_code, reached=reached, waiting=waiting)
        except EmbedctlError as refusal:
            self._observer.notify(Warned("not_registered", detail=refusal.message))

    def _hand_over(self, output: Output) -> None:
        """Spool what the journal holds, whose vectors nobody needs."""
        give = self._routed(output)
        rescue(output.state / JOURNAL, give, self._trust, keeps_vectors=False, observer=self._observer, disk=self._disk)

    def _routed(self, output: Output) -> Spool:
        """Takes a segment's events to the ledger it was bought under, as long as nobody has taken the output over.

        Who has would spool the same segments as those of a dead run.
        """
        route = segment_owners.routed(
            output.state, self._spool, self._trust, ledger=self._ledger.database, disk=self._disk
        )

        def give(segment_id: str, events: Sequence[UsageEvent]) -> bool:
            if not self._lock.is_ours:
                raise Locked(
                    f"{self._lock.path} was removed, and another run holds its place",
                    hint="run the same command again: what was answered is kept, and is in the ledger then",
                )
            return route(segment_id, events)

        return give

    def _ingest_spool(self) -> None:
        """Take what is spooled into the ledger; when it cannot be now, the next command does."""
        try:
            notes = intake.take_in(
                self.job.settings.paths,
                wait_s=INGEST_WAIT_S,
                now=utc_now(),
                observer=self._observer,
                disk=self._disk,
                thorough=True,
                into_ledger=self._ingest,
            )
            for note in notes:
                self._observer.notify(Warned("ledger", detail=note))
        except EmbedctlError as error:
            self._observer.notify(Warned("not_ingested", detail=error.message))

    def _with_savings(self, receipt: Receipt, output: Output, chain: FallbackChain) -> Receipt:
        """What was not bought, at today's price: by then the ledger knows what it cost, or such texts do."""
        price = self._prices.of(chain.first)
        if not price or not (receipt.reused or receipt.duplicates):
            return receipt
        saved = savings.cost_saved(
            self._ledger,
            RunRegistry(self.job.settings.paths.runs),
            output.state,
            run_id=self.run_id,
            reused=receipt.reused,
            duplicates=receipt.duplicates,
            model=chain.first.model,
            bought=(self.spending.tokens, self.spending.texts),
            unit_price=price,
            now=utc_now(),
        )
        return replace(receipt, cost_saved=saved)

    def _reasons(self, output: Output) -> Mapping[str, int]:
        """Why rows failed, as the finished output lists it."""
        if not self._record.rows.failed:
            return {}
        return failures.reasons(output.failures) if output.failures else self._failures.counts

    def _receipt(self, output: Output, failure: EmbedctlError | None, seconds: float, chain: FallbackChain) -> Receipt:
        return build_receipt(
            run_id=str(self.run_id),
            job=self.job.job,
            workspace=self._options.workspace,
            workspace_column=self._options.workspace_column,
            model=chain.first.id,
            dimension_policy=chain.first.policy,
            space=self._record.space,
            rows=self._record.rows,
            spending=self.spending,
            unit_price=self._prices.of(chain.first),
            seconds=round(seconds, 3),
            output=str(self.job.output) if self.job.output else None,
            output_is_there=bool(self.job.output and self.job.output.exists()),
            failures=str(output.failures) if output.failures else None,
            failed_reasons=self._reasons(output),
            failure=failure,
            resume=self.job.resume,
            batch=self.batches.as_dict(self.spending.saved_by_tier),
            left_out=self._left_out.as_dict(),
            unfinished=self.unfinished(),
        )

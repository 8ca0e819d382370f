"""A run whose output is on a store: one worker of a job that survives its machine.

    plan ─▶ take a shard ─▶ fetch what earlier holders left ─▶ pipeline.py ─▶ done ─▶ … ─▶ manifest

Workers know of each other by what is on the store alone. Each takes shards that nobody holds, or whose holder was
silent for a lease; the shard's log keeps two of them apart.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from embedctl import __version__, inputs, storage
from embedctl.embedding.canary import CanaryWatch
from embedctl.errors import (
    ConfigurationInvalid,
    EmbedctlError,
    OutputRefused,
    ShardLost,
    ShardsHeld,
    WrongUsage,
)
from embedctl.journal import Recovered, Spool, recover
from embedctl.journal.rescue import JOURNAL, LOCK
from embedctl.journal.shard_log import (
    Patience,
    ShardLog,
    boot_time,
    done_name,
    is_there,
    tail,
)
from embedctl.journal.shipping import ShippingDisk, fetch
from embedctl.ledger import budget_copy, identity
from embedctl.ledger import spool as spools
from embedctl.ledger.prices.price import cost
from embedctl.outputs import Existing, Output, failures, parquet
from embedctl.outputs.parquet import Part
from embedctl.outputs.parts import PublishedPart
from embedctl.outputs.shard import FAILURES_FOLDER, ShardOutput, failures_name
from embedctl.planning import shards
from embedctl.planning.shards import Shard, Unit
from embedctl.records import (
    AtRisk,
    PhaseBegan,
    Refusal,
    RowCounts,
    ShardBegan,
    ShardEnded,
    Space,
    UsageEvent,
    Warned,
    utc_now,
    uuid7,
)
from embedctl.routing import allow
from embedctl.routing.chain import FallbackChain
from embedctl.runs import foundations, resume, space_locks, store_plan, store_usage, wiring
from embedctl.runs.job import JobRequest
from embedctl.runs.job_limits import JobLimits
from embedctl.runs.receipt import Receipt, Spending
from embedctl.runs.registration import Registration
from embedctl.runs.run import JobWork, Run, RunAsync
from embedctl.runs.store_plan import SPACE, USAGE, Manifest, ShardDone, StorePlan, inputs_name, plan_name
from embedctl.runs.wiring import Resources, RunPlan, Shipping
from embedctl.settings.share import resolved_share, share_of
from embedctl.storage import locks
from embedctl.storage.store import OutputFolder, Store, StoredObject, at_once, check_refuses
from embedctl.storage.store_file import StoreFile

LEAST_POLL_S, MOST_POLL_S = 0.1, 5.0
"""How long it takes until the shards of other workers are looked at again."""

AHEAD_SHARE = 1
"""For so many requests in flight, one more has its intent on the way to the store meanwhile."""

UNSHIPPED_SHARE = 2
"""For so many requests in flight, one answer more may be on its way to the store: a put takes less than half of what
an answer takes, for nearly all providers.
"""


class StoreRun(Run):
    """A worker.

    Args:
        clock: Goes on while the machine is suspended: leases are measured with it.
        patience: How long a store that cannot be reached is tried again.
        shared: Limits of all workers of the job; None: this one knows of no other.
    """

    def __init__(
        self,
        job: JobRequest,
        *args: Any,
        clock: Callable[[], float] = boot_time,
        patience: Patience | None = None,
        shared: JobLimits | None = None,
        **rest: Any,
    ) -> None:
        shard = resolved_share(job.settings.options.shard, job.settings.environment)
        options = replace(job.settings.options, shard=shard)
        super().__init__(replace(job, settings=replace(job.settings, options=options)), *args, **rest)
        assert job.store is not None  # noqa: S101 - who makes such a run gives it
        self._share = share_of(shard)
        self._store: Store = job.store
        self._clock = clock
        self._patience = patience or Patience()
        self._shared = shared
        self._told_to_stop: EmbedctlError | None = None
        self._dead: frozenset[str] = frozenset()
        self._seen: dict[str, tuple[int, float]] = {}
        self._living: set[str] = set()
        self._done: dict[int, ShardDone] = {}
        self._oldest_part = math.inf
        self._own = RowCounts()
        self._worked = self._said_risk = False
        self._space: Space | None = None
        self._before: StorePlan | None = None
        self._marks: list[tuple[str, int, str]] = []
        self._manifest: Manifest | None = None
        self._plan: StorePlan | None = None
        self._sweeper = ThreadPoolExecutor(1, "sweeper")
        self._swept: list[Future[None]] = []
        self._spent_before = Decimal(0)
        self._has_booked = False
        self._counted: set[str] = set()  # segments that are part of it

    def ask_to_stop(self, reason: EmbedctlError) -> None:
        """Stop sending; a store that cannot be reached is not waited for much longer."""
        self._patience.hurry()
        self._told_to_stop = self._told_to_stop or reason
        super().ask_to_stop(reason)

    def others_died(self, workers: Collection[str]) -> None:
        """Workers of the job are known to be dead: their shards are free at once."""
        self._dead |= frozenset(workers)

    def execute(self, run_async: RunAsync) -> Receipt:
        """The whole run; what it spent is on the store, or in the ledger, when this returns or raises."""
        refuse_what_stores_cannot(self.job)
        scratch = self.job.scratch
        dead = dead_workers(scratch)
        self.others_died(dead)
        for worker in dead:
            storage.remove_tree(self._disk, scratch / worker)
        try:
            return super().execute(run_async)
        finally:
            self._sweeper.shutdown(cancel_futures=True)
            storage.remove_tree(self._disk, scratch / str(self.run_id))

    # the plan

    def _fulfil(self, output: Output, chain: FallbackChain, entry: Registration, run_async: RunAsync) -> None:
        """Do what is left to do of the job."""
        source = self._source(output, None)
        denied = allow.denied(self.job.settings, chain.first.in_chain)
        self._record.bind(source, chain.first, tuple(denied))
        self._marks = list(_marks(self._record.files))
        plan = self._agreed(source, chain)
        if len(plan.shards) > 1 and self._options.unique_ids:
            raise WrongUsage(
                f"--unique-ids is not checked across the {len(plan.shards)} shards of a job on a store",
                hint="check the ids before, or give --shard-rows so that one shard holds them all",
            )
        wiring.check_source(source, self._options, output.state)
        self._plan = plan
        self._look_how_far(plan)
        if self._manifest is not None:
            self._patience.with_(lambda: store_plan.finish(self._store, plan))  # whoever made it may have died then
        else:
            self._spent_before = self._spent_by_others(plan)
            self._carry_over(plan)
            run_async(self._work(plan, JobWork(source, chain, denied, entry)))
        if self._manifest is None:
            return
        self._record.rows = store_plan.total([self._manifest.counts])
        reused = self._own if self._worked else RowCounts(reused=self._manifest.counts.vectors)
        self._record.rows.reused, self._record.rows.duplicates = reused.reused, reused.duplicates
        if self._record.space is None and self._manifest.space is not None:
            self._record.space = Space(**self._manifest.space)

    def _look_how_far(self, plan: StorePlan) -> None:
        """What there is of the job: its manifest, its space, and which shards are done."""

        def manifest() -> None:
            self._manifest = self._patience.with_(lambda: store_plan.read_manifest(self._store, plan))

        def space() -> None:
            self._space = self._patience.with_(lambda: store_plan.read_space(self._store))

        at_once((manifest, space, partial(self._look_at_done, plan)))

    def _agreed(self, source: inputs.Source, chain: FallbackChain) -> StorePlan:
        """The plan of the job, made where there is none.

        Raises:
            OutputRefused: Another job has its plan there, or something else stands there; the store overwrites.
        """
        found = self._found()
        if found is None:
            found = self._made(source, chain, after=None)
        elif self._is_changed(found):
            found = self._made(source, chain, after=found)
        self._check_same(found)
        self._check_shares(found)
        return found

    def _found(self) -> StorePlan | None:
        """The plan that is there; meanwhile the store is tried, whose verdict comes first."""

        def trial() -> None:
            if self._options.share:
                self._patience.with_(lambda: check_refuses(self._store))

        def look() -> StorePlan | None:
            found = self._patience.with_(lambda: store_plan.read_plan(self._store))
            if found is None:
                self._check_nothing_else()
            return found

        _, found = at_once((trial, look))
        return found

    def _check_shares(self, found: StorePlan) -> None:
        """What the job may spend and send is divided once: by as many shares for all of its workers.

        Raises:
            ConfigurationInvalid: It was begun with another number of shares; budgets are no machine's to divide.
        """
        if self._share.count > 1 and self._has_budget():
            raise ConfigurationInvalid(
                "--shard does not divide a workspace's budget: each machine has a ledger of its own",
                hint="--max-cost is divided; or run it without --shard",
            )
        if (found.limited or self._is_limited()) and found.shares != self._share.count:
            begun = f"with --shard I/{found.shares}" if found.shares > 1 else "without --shard"
            raise ConfigurationInvalid(
                f"{self._store.url} was begun {begun}, and --max-cost, --rpm and --tpm are divided by that",
                hint="give the same number of shares, or choose another -o",
            )

    def _is_changed(self, found: StorePlan) -> bool:
        """Whether the job is finished, and nothing but its input has changed since."""
        same = found.terms == self._record.terms and self._options.shard_rows in (None, found.shard_rows)
        if found.binding == self._record.binding or not same:
            return False
        return self._patience.with_(lambda: store_plan.read_manifest(self._store, found)) is not None

    def _check_nothing_else(self) -> None:
        for one in self._patience.with_(lambda: list(_first(self._store.objects(), 100))):
            if not one.name.startswith("_embedctl/"):
                raise OutputRefused(
                    f"{self._store.url} is not empty and not embedctl's: {one.name}",
                    hint="choose a new prefix: nothing under it is touched",
                )

    def _made(self, source: inputs.Source, chain: FallbackChain, after: StorePlan | None) -> StorePlan:
        """A new plan, or that of who was faster.

        Args:
            after: The finished one whose input has changed.
        """
        generation = after.generation + 1 if after is not None else 1
        sizes = source.sizes()
        units = list(_units(sizes))
        rows = self._options.shard_rows or shards.rows_for(units, self._options.workers)
        rows = after.shard_rows if after is not None else rows
        cut = shards.cut(units, self._record.binding, rows)
        if source.numbers_rows and len(cut) > 1 and any(size.group_rows is None for size in sizes):
            cut = _counted(source, cut)
        if self._options.workers > 1 or (after is not None and any(one.within for one in after.shards)):
            cut = tuple(self._divided(source, units, cut, rows))
        cut = tuple(replace(one, key=self._key(one, source)) for one in cut)
        made = StorePlan(
            job_id=str(uuid7()),
            version=__version__,
            binding=self._record.binding,
            input=self._record.input,
            options=orjson.loads(orjson.dumps(self._record.shaping, default=str)),
            model=chain.first.id,
            workspace=self._options.workspace,
            workspace_column=self._options.workspace_column,
            ledger=identity.ledger_id(self._ledger, self._disk),
            secret=secrets.token_hex(32),
            shard_rows=rows,
            shards=cut,
            width=chain.first.dimensions,
            terms=self._record.terms,
            generation=generation,
            limited=self._is_limited(),
            shares=self._share.count,
            format=2 if any(one.within for one in cut) else 1,
            job=self.job.job,
            at=utc_now().isoformat(),
        )
        listing = _listing(self._marks, sizes)
        name = inputs_name(generation)
        if not self._put(name, listing) and self._patience.with_(lambda: self._store.read(name)) != listing:
            self._patience.with_(lambda: self._store.remove(name))  # of one who died before the plan was there
            self._put(name, listing)
        content = store_plan.encoded(made)
        if self._put(plan_name(generation), content):
            return store_plan.decoded(content)
        return self._patience.with_(lambda: store_plan.plan_of(self._store))

    def _divided(self, source: inputs.Source, units: Sequence[Unit], cut: Sequence[Shard], rows: int) -> list[Shard]:
        """Shards of which none is a file much larger than the others: several workers are to have work."""
        if source.query is not None or self._options.shard_rows is not None:
            return list(cut)
        weights = {(unit.file, unit.group): unit.weight for unit in units}
        found: list[Shard] = []
        for shard in cut:
            weight = 0
            if len(shard.pieces) == 1:
                file, groups = shard.pieces[0]
                weight = weights.get((file, groups[0] if groups else None), 0)
            if weight <= rows:  # else nothing that is cut: a shard of several is never larger
                found.append(shard)
                continue
            counted = shard.rows
            if counted is None:
                counted = sum(len(block) for block in source.part(shard.pieces, 0).blocks())
            most = shards.PARTS_EACH * self._options.workers
            found += shards.divided(shard, counted, max(rows, -(-counted // most)))
        return list(shards.numbered(found))

    def _key(self, shard: Shard, source: inputs.Source) -> str:
        """Equal for shards of the same rows with the same options, whatever else the input holds."""
        pieces = [(*self._marks[file], groups) for file, groups in shard.pieces]
        first_row = shard.first_row if source.numbers_rows else None
        about = {"terms": self._record.terms, "pieces": pieces, "first_row": first_row}
        return resume.digest(about if shard.within is None else {**about, "within": shard.within})

    def _check_same(self, found: StorePlan) -> None:
        """Refuse a plan that is not of this job, naming what differs."""
        asked = self._options.shard_rows
        if found.binding == self._record.binding and asked in (None, found.shard_rows):
            return
        differences = []
        options = orjson.loads(orjson.dumps(self._record.shaping, default=str))
        for name in sorted(found.options.keys() | options.keys()):
            if found.options.get(name) != options.get(name):
                differences.append(f"{name} is {found.options.get(name)} there, {options.get(name)} here")
        if asked not in (None, found.shard_rows):
            differences.append(f"shard_rows is {found.shard_rows} there, {asked} here")
        if found.input != self._record.input:
            differences.append(self._differing_input(found))
        raise OutputRefused(
            f"{self._store.url} is the output of another job: {'; '.join(differences) or 'its workspaces differ'}",
            hint="run it with the options it was begun with (and, as long as it is not finished, the input), "
            "or choose another -o",
        )

    def _listed(self, generation: int) -> dict[str, list[Any]]:
        """The input files of a plan; nothing where the list is gone."""
        try:
            return parquet.read_listing(self._patience.with_(lambda: self._store.read(inputs_name(generation))))
        except (FileNotFoundError, OutputRefused):
            return {}

    def _differing_input(self, found: StorePlan) -> str:
        there = self._listed(found.generation)
        if not there:
            return "its input differs"
        before = set(zip(there.get("name", []), there.get("size", []), there.get("mark", []), strict=False))
        now = set(self._marks)
        names = sorted({name for name, _, _ in before ^ now})
        return f"the input differs in {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"

    def _is_limited(self) -> bool:
        """Whether it has money or a rate that workers would have to share."""
        options = self._options
        return bool(options.max_cost is not None or options.rpm or options.tpm or self._has_budget())

    def _has_budget(self) -> bool:
        workspaces = self.job.settings.workspaces.values()
        return any(one.budget is not None for one in workspaces) or budget_copy.there_are(self._ledger)

    def _spent_by_others(self, plan: StorePlan) -> Decimal:
        """What earlier workers of the job, or of this share of it, have spent, where that counts against --max-cost."""
        if self._options.max_cost is None:
            return Decimal(0)
        spending, mine = Spending(self._prices.price), None
        if self._share.count > 1:
            folder = self._say_whose(plan)
            mine = {name.removeprefix(folder) for name in self._patience.with_(lambda: self._store.list(folder))}
        for name in self._patience.with_(lambda: self._store.list(USAGE)):
            self._counted.add(name.removeprefix(USAGE).removesuffix(spools.SUFFIX))
            content = self._patience.with_(lambda n=name: self._store.read(n))  # type: ignore[misc]
            for event in spools.events(content):
                if mine is None or str(event.run_id) in mine:
                    spending.count(event)
        return spending.cost + spending.cost_at_risk

    def _say_whose(self, plan: StorePlan) -> str:
        """Say whose share this worker's spending is, before it spends anything; the folder of all that say so."""
        folder = store_plan.workers_name(self._share.index, plan.generation)
        self._put(f"{folder}{self.run_id}", b"{}")
        return folder

    def _count_earlier_holders(self, recovered: Recovered) -> None:
        """What earlier holders of a shard had spent, and had not put among the job's usage when this run began."""
        for segment in recovered.segments:
            run = next((str(event.run_id) for event in segment.events), str(self.run_id))
            if run == str(self.run_id):
                continue
            spending = Spending(self._prices.price)
            for event in segment.events:
                spending.count(event)
            if self._shared is not None:
                shares = spending.workspaces.items()
                by_workspace = {name: share.cost + share.cost_at_risk for name, share in shares}
                self._shared.spent_before(segment.segment_id, run, by_workspace)
            elif segment.segment_id not in self._counted:
                self._counted.add(segment.segment_id)
                self._spent_before += spending.cost + spending.cost_at_risk

    # reruns

    def _carry_over(self, plan: StorePlan) -> None:
        """Shards whose rows are as they were are done: their parts are only named again."""
        self._before = self._earlier(plan)
        if self._before is None:
            return
        keys = {shard.key: shard for shard in self._before.shards}
        done = self._patience.with_(lambda: store_plan.done_ordinals(self._store, plan))
        for shard in plan.shards:
            same = keys.get(shard.key)
            if same is None or shard.ordinal in done:
                continue
            had = self._done_before(same)
            if had is not None:
                again = replace(had, ordinal=shard.ordinal, worker=str(self.run_id), at=utc_now().isoformat())
                if self._put(done_name(plan.label(shard)), store_plan.encoded(again)):
                    self._own.reused += had.counts.vectors

    def _earlier(self, plan: StorePlan) -> StorePlan | None:
        if plan.generation == 1:
            return None
        return self._patience.with_(lambda: store_plan.read_plan(self._store, plan.generation - 1))

    def _done_before(self, shard: Shard) -> ShardDone | None:
        assert self._before is not None  # noqa: S101 - asked for its shards
        before = self._before
        return self._patience.with_(lambda: store_plan.read_done(self._store, before, shard))

    def _known_before(self, shard: Shard) -> tuple[list[Part], dict[bytes, Refusal]]:
        """Parts whose vectors may be taken for a shard that has changed, and texts that were refused: those of shards
        that had one of its files, and of its neighbours.
        """
        if self._before is None or self._space is None:
            return [], {}
        names = self._listed(self._before.generation).get("name", [])
        own = {self._marks[file][0] for file, _ in shard.pieces}
        parts: list[Part] = []
        refused: dict[bytes, Refusal] = {}
        for one in self._before.shards:
            near = abs(one.ordinal - shard.ordinal) <= 1
            if not near and not any(file < len(names) and names[file] in own for file, _ in one.pieces):
                continue
            done = self._done_before(one)
            for part in done.parts if done else ():
                found = self._patience.with_(lambda n=part.name: self._store.stat(n))  # type: ignore[misc]
                if found is not None and self._options.reuse:
                    parts.append(self._part(found, self._space.dimensions))
            if done is not None and done.failures is not None:
                with suppress(FileNotFoundError):
                    content = self._patience.with_(lambda n=done.failures: self._store.read(n))  # type: ignore[misc]
                    refused.update(failures.of_lines(content.splitlines(keepends=True)))
        return parts, refused

    def _part(self, found: StoredObject, dimensions: int) -> Part:
        url = f"{self._store.url}/{found.name}"

        def opened() -> BinaryIO:
            file = StoreFile(self._store, found.name, found.size, found.etag, url=url)
            return cast("BinaryIO", file)

        return Part(Path(url), dimensions, opened)

    # the work

    async def _work(self, plan: StorePlan, work: JobWork) -> None:
        """Shards, one after the other, until all of the job are done."""
        waits_since: float | None = None
        has_looked = plan.generation == 1  # as the run began
        while True:
            with self.stop.heeded():
                if self._told_to_stop is not None:
                    raise self._told_to_stop
                if not has_looked and len(self._done) < len(plan.shards):
                    await asyncio.to_thread(self._look_at_done, plan)
                has_looked = False
                if len(self._done) == len(plan.shards):
                    break
                taken = await asyncio.to_thread(self._take, plan)
                if taken is None:
                    if self._options.wait is False and len(self._living) == len(list(self._left(plan))):
                        raise ShardsHeld(
                            f"{len(plan.shards) - len(self._done)} shards of {self._store.url} are other workers'",
                            hint="run the same command again later, or without --no-wait",
                        )
                    waits_since = self._clock() if waits_since is None else waits_since
                    await self.stop.sleep(self._pause_s(self._clock() - waits_since))
                    continue
            waits_since = None
            await self._embed_shard(plan, work, *taken)
        await self._finish_job(plan)

    def _pause_s(self, waited_s: float) -> float:
        """Until the shards of others are looked at again: it costs at most a fourth of the time that they take."""
        return min(MOST_POLL_S, self._options.lease / 10, max(LEAST_POLL_S, waited_s / 4))

    async def _finish_job(self, plan: StorePlan) -> None:
        """All shards are done: make the manifest. Of several workers, their command does."""
        for swept in self._swept:
            await asyncio.wrap_future(swept)
        if not self.job.is_worker:
            self._observer.notify(PhaseBegan("writing"))
            made = partial(store_plan.finish, self._store, plan, self._done)
            self._manifest = await asyncio.to_thread(self._patience.with_, made)

    def _look_at_done(self, plan: StorePlan) -> None:
        done = self._patience.with_(lambda: store_plan.done_ordinals(self._store, plan))
        new = [one for one in plan.shards if one.ordinal in done and one.ordinal not in self._done]
        read = [partial(self._patience.with_, partial(store_plan.read_done, self._store, plan, one)) for one in new]
        for shard, found in zip(new, at_once(read), strict=True):
            if found is not None:
                self._is_done(shard, found)

    def _is_done(self, shard: Shard, done: ShardDone) -> None:
        self._done[shard.ordinal] = done
        self._oldest_part = min([self._oldest_part, *_made(done.parts)])

    def _left(self, plan: StorePlan) -> Iterator[Shard]:
        """Shards of its own share that are not done."""
        return (one for one in plan.shards if one.ordinal not in self._done and self._share.has(one.ordinal))

    def _take(self, plan: StorePlan) -> tuple[Shard, ShardLog] | None:
        """A shard that is ours from now on; None: all that are left are held by others.

        Raises:
            ConfigurationInvalid: Another worker lives, and they cannot share what the job may spend.
        """
        limited, free = self._shared is None and (plan.limited or self._is_limited()), []
        if limited and self._number_to_claim(plan.host_label, limited=True) is None:
            return None
        for shard in self._left(plan):
            number = self._number_to_claim(plan.label(shard), limited=limited)
            if number is None and limited:
                return None  # whether its worker lives is not known: nothing is sent beside it
            if number is not None:
                free.append((shard, number))
            if free and not limited:
                break
        if limited and free and not self._has_booked:
            self._book_the_dead(plan)
            return self._take(plan)
        for shard, number in free:
            name = plan.label(shard)
            log = self._log(name)
            if log.claim(number):
                if self._patience.with_(lambda n=name: self._store.stat(done_name(n))) is None:  # type: ignore[misc]
                    self._living.discard(name)
                    return shard, log
                log.release(drained=True)  # it was done since, and its log was removed
        return None

    def _log(self, name: str) -> ShardLog:
        """The log of this name, in no hands yet."""
        return ShardLog(
            self._store,
            name,
            str(self.run_id),
            lease_s=self._options.lease,
            patience=self._patience,
            clock=self._clock,
        )

    def _book_the_dead(self, plan: StorePlan) -> None:
        """Count what dead holders of all shards have spent, before any of it is spent again; nobody else lives."""
        self._has_booked = True
        for shard in self._left(plan):
            name = plan.label(shard)
            end = self._patience.with_(lambda n=name: tail(self._store, n))  # type: ignore[misc]
            if end is not None and not end.is_drained:
                log = self._log(name)
                if log.claim(end.number + 1):
                    store_usage.book(log, plan)
        if self._has_budget() and plan.ledger == identity.ledger_id(self._ledger, self._disk):
            store_usage.copy(self._store, self._ledger.spool, patience=self._patience, disk=self._disk)
        self._spent_before = self._spent_by_others(plan)

    def _number_to_claim(self, name: str, *, limited: bool) -> int | None:
        """The entry that takes a shard; None: somebody holds it, as far as is known."""
        before = self._seen.get(name)
        if before is not None:
            number, since = before
            if not self._patience.with_(lambda: is_there(self._store, name, number + 1)):
                if self._clock() - since < self._options.lease:
                    return None
                self._living.discard(name)
                return number + 1
        end = self._patience.with_(lambda: tail(self._store, name))
        if end is None:
            return 0
        if end.is_drained or end.worker in self._dead:
            return end.number + 1
        self._seen[name] = (end.number, self._clock())
        if before is not None:
            self._living.add(name)
            if limited:
                raise ConfigurationInvalid(
                    f"another worker works on {self._store.url}, and the job has a budget or limits: "
                    "workers that know nothing of each other cannot share them",
                    hint="wait for it, or start one command with --workers N, or begin the job with --shard I/N for "
                    "each, or without --max-cost, --rpm, --tpm and budgets",
                )
        return None

    async def _embed_shard(self, plan: StorePlan, work: JobWork, shard: Shard, log: ShardLog) -> None:
        """One shard, from what earlier holders have left of it to `done`."""
        folder = self.job.scratch / str(self.run_id) / log.shard
        self._disk.make_folder(folder)
        self._worked = True
        log.keep(self._lost)
        disk, drained = ShippingDisk(log), False
        counts: RowCounts | None = None
        self._observer.notify(ShardBegan(log.shard, shard.rows))
        try:
            out = ShardOutput(folder, log=log, fix_space=self._fix_space)
            if not log.is_new:
                fetched = await asyncio.to_thread(fetch, log, folder / JOURNAL)
                await asyncio.to_thread(out.take_over, fetched.parts)
            counts = await self._embed_rows(plan, work, shard, out, disk)
            await asyncio.to_thread(self._say_done, plan, shard, out, counts)
        except ShardLost:
            raise
        except EmbedctlError:
            drained = True
            raise
        finally:
            await asyncio.to_thread(disk.end)
            await asyncio.to_thread(partial(log.release, drained=drained))
            storage.remove_tree(self._disk, folder)
            self._observer.notify(ShardEnded(log.shard, counts))

    async def _embed_rows(
        self, plan: StorePlan, work: JobWork, shard: Shard, out: ShardOutput, disk: ShippingDisk
    ) -> RowCounts:
        """Send what nobody has; what became of the shard's rows."""
        trusted = store_usage.trust(plan)
        recovered = await asyncio.to_thread(partial(recover, out.state / JOURNAL, trusted, fenced=True))
        self._count_earlier_holders(recovered)
        parts, failed = await asyncio.to_thread(self._known_before, shard)
        existing = Existing(
            space=self._space,
            parts=parts,
            failed=failed,
            recovered=recovered,
            done={number: part.counts for number, part in out.parts.items()},
            rows_hashes={n: part.rows_hash for n, part in out.parts.items() if part.rows_hash is not None},
        )
        chain, source = work.chain, work.source
        if existing.space is None:
            spaces = [endpoint.space for endpoint in chain.endpoints]
            existing.space = resume.space_of_journal(existing, spaces, Path(out.log.store.url))
        concurrency = chain.first.rate_limits.concurrency
        unshipped = max(2, concurrency // UNSHIPPED_SHARE)
        part = source.part(shard.pieces, shard.first_row, shard.within) if shard.pieces else source
        run = self._run_plan(
            replace(work, source=part),
            out,
            existing,
            self._watch_shard(chain, existing, out),
            RowCounts(),
            shipping=Shipping(
                disk=disk, secret=trusted.secret, most_unshipped=unshipped, ahead=max(2, concurrency // AHEAD_SHARE)
            ),
            held=self.job.scratch / str(self.run_id),
            spent_before=self._spent_before,
            shared=self._shared,
        )
        risk = None if self._said_risk else self._risk(chain, part, concurrency + unshipped)
        self._said_risk = True
        begin = partial(self._begin_shard, work.entry, out.log, risk)
        async with wiring.opened(run, begin) as resources:
            self._progress = resources.progress
            try:
                async for _ in self._executor.run((shard,), resources.tools):
                    pass
                await run.canary.settled()
                await asyncio.to_thread(self._finish_shard, run, resources, shard)
            finally:
                self._record.space = resources.space
        return run.rows

    def _watch_shard(self, chain: FallbackChain, existing: Existing, out: ShardOutput) -> CanaryWatch:
        """Looks at the model: it must be the one that the job's parts were made with."""
        oldest = min([self._oldest_part, *_made(out.published)])
        return space_locks.watch(
            self.job.settings,
            self._observer,
            None,
            Existing(space=existing.space),
            chain.first,
            made_at=oldest if oldest < math.inf else None,
        )

    def _begin_shard(self, entry: Registration, log: ShardLog, risk: AtRisk | None) -> Spool:
        entry.running()
        if risk is not None:
            self._observer.notify(risk)

        def give(segment_id: str, events: Sequence[UsageEvent]) -> bool:
            """What another holder's recovery has put there already stays: it has our intents."""
            return not log.is_lost and store_usage.spool_to(log, segment_id, events)

        return give

    def _risk(self, chain: FallbackChain, source: inputs.Source, requests: int) -> AtRisk:
        """What a dead worker's requests cost once more, by the first rows of the input."""
        price, limits = self._prices.of(chain.first), chain.first.protocol.LIMITS
        block = next(source.blocks(), None) if price else None
        texts = [text for text in block.texts if text] if block is not None else []
        if not price or not texts:
            return AtRisk(requests, None)
        tokens = max(1, sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) // 4 // len(texts))
        packed = foundations.packed_limits(limits, chain.first, self._options)
        most = [(packed.items, 1), (packed.tokens, tokens), (packed.bytes, 4 * tokens)]
        fits = min((limit // each for limit, each in most if limit is not None), default=1)
        return AtRisk(requests, cost(requests * max(1, fits) * tokens, price))

    def _finish_shard(self, run: RunPlan, resources: Resources, shard: Shard) -> None:
        self._record.check_unchanged(run.source, [file for file, _ in shard.pieces] if shard.pieces else None)
        run.output.finish(
            None if resources.width is None else resources.layout(resources.width),
            lambda written: self._record.facts(resources.space, written, run.rows, None),
            dict,
        )
        resources.duplicate_ids.warn(self._observer)

    def _say_done(self, plan: StorePlan, shard: Shard, out: ShardOutput, counts: RowCounts) -> None:
        """The shard is done: all its parts and usage are there. Then its answers go."""
        log = out.log
        done = ShardDone(
            ordinal=shard.ordinal,
            key=shard.key,
            counts=counts,
            parts=out.published,
            space_id=self._space.space_id if self._space else None,
            failures=failures_name(log.shard) if out.failures is not None else None,
            failed_reasons=out.reasons,
            worker=log.worker,
            at=utc_now().isoformat(),
        )
        log.append({"done": shard.ordinal})
        if not log.put(done_name(log.shard), store_plan.encoded(done)):
            done = self._patience.with_(lambda: store_plan.read_done(self._store, plan, shard)) or done
        self._is_done(shard, done)
        self._own.reused += counts.reused
        self._own.duplicates += counts.duplicates
        if len(self._done) < len(plan.shards) or self.job.is_worker:  # else all goes together, in a moment
            self._swept.append(self._sweeper.submit(self._sweep, log.folder))

    def _sweep(self, folder: str) -> None:
        """Remove what only served the work on a shard; its log stays. Nothing waits for it but the end of the job."""
        kinds = [partial(self._store.list, f"{folder}{kind}") for kind in ("answers/", "failed/")]
        self._patience.with_(lambda: self._store.remove_all([name for names in at_once(kinds) for name in names]))

    def _fix_space(self, space: Space) -> None:
        """The job's vectors are of this space, from the first part on.

        Raises:
            OutputRefused: Another worker has published vectors of another space.
        """
        if self._space is None and self._put(SPACE, store_plan.encoded(space)):
            self._space = space
        elif self._space is None:
            self._space = self._patience.with_(lambda: store_plan.read_space(self._store))
        if self._space is None or self._space.space_id != space.space_id:
            differences = "; ".join(space.differences(self._space)) if self._space else "nobody knows which"
            raise OutputRefused(f"{self._store.url} holds vectors of another space ({differences})")

    def _lost(self, error: ShardLost) -> None:
        with suppress(EmbedctlError):
            self.stop.ask(error)

    def _put(self, name: str, content: bytes) -> bool:
        write_id = uuid7().hex
        return self._patience.with_(lambda: self._store.put_if_absent(name, content, write_id=write_id))

    # the end

    def _ingest_spool(self) -> None:
        """What the job has spent goes into the ledger it was begun under; another one has to be told to take it in."""
        try:
            plan = self._plan or store_plan.read_plan(self._store)
            if plan is not None and plan.ledger == identity.ledger_id(self._ledger, self._disk):
                store_usage.copy(self._store, self._ledger.spool, patience=self._patience, disk=self._disk)
            elif plan is not None:
                self._observer.notify(Warned("store_usage", self._store.url))
        except EmbedctlError as error:
            self._observer.notify(Warned("not_ingested", detail=error.message))
        super()._ingest_spool()

    def _with_savings(self, receipt: Receipt, output: Output, chain: FallbackChain) -> Receipt:
        """What others have bought is known to them."""
        return receipt

    def _reasons(self, output: Output) -> Mapping[str, int]:
        return self._manifest.failed_reasons if self._manifest is not None else {}

    def _receipt(self, output: Output, failure: EmbedctlError | None, seconds: float, chain: FallbackChain) -> Receipt:
        if self._manifest is None:
            self._record.rows = store_plan.total([done.counts for done in self._done.values()])
        receipt = super()._receipt(output, failure, seconds, chain)
        there = any(done.failures for done in self._done.values()) or bool(self._manifest and self._manifest.failures)
        listed = f"{self._store.url}/{FAILURES_FOLDER}" if there else None
        return replace(receipt, output=self._store.url, output_is_there=True, failures=listed)


def refuse_what_stores_cannot(job: JobRequest) -> None:
    """Refuse what an output on a store cannot keep its promises with.

    Raises:
        WrongUsage: It was asked for.
    """
    options = job.settings.options
    tenants = sum(one.budget is not None for one in job.settings.workspaces.values())
    refused = {
        "stdin as input": "-" in job.inputs,
        "--sql": job.query is not None,
        "--cache": options.cache is True,
        "--mode batch and auto": options.mode != "online",
        "--overwrite": job.overwrite,
        "--retry-failed": job.retry_failed,
        "--locked": options.locked,
        "--workspace-column with budgets of several workspaces": options.workspace_column is not None and tenants > 1,
        "--no-share": not options.share and options.workers > 1,
    }
    of, hint = "an output on a store", "write to a folder, and copy that there"
    if isinstance(job.store, OutputFolder):
        of, hint = "several workers, or what they have written,", "use another folder, without --workers"
    for what, is_asked in refused.items():
        if is_asked:
            raise WrongUsage(
                f"{what} and {'several workers' if what == '--no-share' else of} do not go together", hint=hint
            )


def dead_workers(scratch: Path) -> frozenset[str]:
    """Workers of the job on this machine whose process is dead."""
    return frozenset(path.name for path in storage.paths_in(scratch) if locks.is_abandoned(path / LOCK))


def _units(sizes: Sequence[inputs.FileSize]) -> Iterator[Unit]:
    for number, size in enumerate(sizes):
        if size.group_rows is None:
            yield Unit(number, None, size.rows, size.size_bytes)
        else:
            yield from (Unit(number, group, rows, 0) for group, rows in enumerate(size.group_rows))


def _counted(source: inputs.Source, cut: Sequence[Shard]) -> tuple[Shard, ...]:
    """Shards that know how many rows come before them: ids are numbers of rows. Reads the whole input once."""
    found, first_row = [], 0
    for shard in cut:
        rows = sum(len(block) for block in source.part(shard.pieces, 0).blocks())
        found.append(replace(shard, first_row=first_row, rows=rows))
        first_row += rows
    return tuple(found)


def _marks(files: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, str]]:
    """What each input file is known by: name, size, and a mark that changes with its content."""
    for one in files:
        mark = next((str(one[key]) for key in ("etag", "blake2b", "mtime_ns") if one.get(key) is not None), "")
        yield one["name"], one["size"], mark


def _made(parts: Iterable[PublishedPart]) -> Iterator[float]:
    """When parts were made, in Unix seconds, as far as they say."""
    return (at for part in parts if (at := part.made_at) is not None)


def _listing(marks: Sequence[tuple[str, int, str]], sizes: Sequence[inputs.FileSize]) -> bytes:
    return parquet.listing(
        {
            "name": [name for name, _, _ in marks],
            "size": [size for _, size, _ in marks],
            "mark": [mark for _, _, mark in marks],
            "row_groups": [list(one.group_rows) if one.group_rows is not None else None for one in sizes],
        }
    )


def _first(objects: Iterator[Any], count: int) -> Iterator[Any]:
    for number, one in enumerate(objects):
        if number == count:
            return
        yield one

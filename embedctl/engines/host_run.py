"""A command that works with several workers: it plans, keeps limits and budget for them, and makes the manifest.

    plan ─▶ nobody else keeps the job's limits ─▶ workers ─▶ manifest ─▶ usage into the ledger, once
            SharedLimits, a Crew

How workers are started and heard is the engine's: `_run_workers`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from embedctl.budgets.reservations import Reservations
from embedctl.engines.crew import Crew
from embedctl.engines.shared_limits import SharedLimits, limiters
from embedctl.errors import EmbedctlError, ShardsHeld, WrongUsage
from embedctl.journal.shard_log import ShardLog
from embedctl.planning.shards import Shard
from embedctl.records import (
    AtRisk,
    AttemptEnded,
    ColumnsChosen,
    Event,
    Observers,
    PhaseBegan,
    Progressed,
    RowCounts,
    ShardEnded,
    Warned,
)
from embedctl.runs import store_plan, wiring
from embedctl.runs.run import JobWork
from embedctl.runs.store_plan import StorePlan
from embedctl.runs.store_run import StoreRun

EVERY_S = 0.25
"""How often is told how far the job is."""

_SAID_ONCE = (Warned, AtRisk)
"""What each of several workers finds out, and one person needs to hear once."""

_SAID_BEFORE = (ColumnsChosen, PhaseBegan)
"""What the command has said itself."""

_OF_THE_INPUT = frozenset({"input", "left_out", "bad_file", "key_file"})


class HostRun(StoreRun, ABC):
    """Such a command."""

    _crew: Crew
    _told: Observers
    _counts_before: RowCounts
    _heard: set[Event]

    @abstractmethod
    async def _run_workers(self, plan: StorePlan, left: Sequence[Shard], money: Reservations) -> None:
        """Start workers, keep limits and `money` for them, give what they tell to `_hear`; return when all have ended.

        Raises:
            EmbedctlError: Why the job ends before it is done; all workers have ended then.
        """

    async def _work(self, plan: StorePlan, work: JobWork) -> None:
        """Let workers do what is left, and finish."""
        with self.stop.heeded():
            if self._told_to_stop is not None:
                raise self._told_to_stop
            await asyncio.to_thread(self._look_at_done, plan)
            if left := list(self._left(plan)):
                await self._let_work(plan, work, left)
                await asyncio.to_thread(self._look_at_done, plan)
            if len(self._done) < len(plan.shards):
                raise ShardsHeld(
                    f"{len(plan.shards) - len(self._done)} shards of {self._store.url} are other workers'",
                    hint="run the same command again later, or without --no-wait",
                )
        await self._finish_job(plan)

    async def _let_work(self, plan: StorePlan, work: JobWork, left: Sequence[Shard]) -> None:
        self._check_machines(work)
        limited = plan.limited or self._is_limited()
        held = await self._hold_limits(plan) if limited else None
        drained = False
        try:
            money = await asyncio.to_thread(self._money, work)
            try:
                self._crew = Crew({plan.label(shard): shard.rows for shard in left})
                self._told = Observers(self.spending, work.entry, self._observer)
                self._counts_before = store_plan.total([done.counts for done in self._done.values()])
                self._heard = set()
                work.entry.running()
                telling = asyncio.create_task(self._tell(documents=work.source.is_document))
                try:
                    await self._run_workers(plan, left, money)
                finally:
                    telling.cancel()
            finally:
                money.close()
        except EmbedctlError:
            drained = True
            raise
        finally:
            if held is not None:
                await asyncio.to_thread(lambda: held.release(drained=drained))

    def _worker_count(self, left: Sequence[Shard]) -> int:
        """No more than there are shards."""
        count = min(self._options.workers, len(left))
        if count < self._options.workers:
            self._observer.notify(Warned("few_shards", count=len(left)))
        return count

    def _check_machines(self, work: JobWork) -> None:
        """Raise WrongUsage for a machine that costs by the hour: each worker would account for all of its time."""
        for endpoint in work.chain.endpoints:
            if endpoint.per_hour is not None:
                raise WrongUsage(
                    f"{endpoint.id} costs by the hour, and each of several workers would count its whole time",
                    hint="run it without --workers, with a larger --concurrency",
                )

    async def _hold_limits(self, plan: StorePlan) -> ShardLog:
        """The log that says who keeps the job's limits, in our hands.

        Raises:
            ConfigurationInvalid: Somebody else lives who works on the job.
        """
        began = self._clock()
        while True:
            free = await asyncio.to_thread(self._free_host, plan)
            if free is not None:
                log = self._log(plan.host_label)
                if await asyncio.to_thread(log.claim, free):
                    log.keep(self._lost)
                    await asyncio.to_thread(self._book_the_dead, plan)
                    return log
            await self.stop.sleep(self._pause_s(self._clock() - began))

    def _free_host(self, plan: StorePlan) -> int | None:
        """The number that makes the log ours; None: whether somebody lives is not known yet."""
        number = self._number_to_claim(plan.host_label, limited=True)
        for shard in self._left(plan):
            if self._number_to_claim(plan.label(shard), limited=True) is None:
                return None
        return number

    def _money(self, work: JobWork) -> Reservations:
        """What all workers together may spend."""
        return wiring.reservations(
            self.job.settings,
            work.chain,
            self._prices,
            self._observer,
            self._trust,
            run_id=str(self.run_id),
            state=self.job.scratch / str(self.run_id),
            spent=self.spending.cost + self.spending.cost_at_risk + self._spent_before,
            key=self.job.key_budget,
        )

    def _shared_limits(self, money: Reservations) -> SharedLimits:
        limiter = limiters(self._observer, self._options.max_wait, time.monotonic)
        return SharedLimits(money, limiter, workers=self._options.workers, counted=self._counted)

    def _shard_of_dead(self, plan: StorePlan, worker: str) -> str:
        """The shard that a dead worker had; "" when it had none. It may have taken one that it never told of."""
        if (told := self._crew.shard_of(worker)) is not None or not worker:
            return told or ""
        done = self._patience.with_(lambda: store_plan.done_ordinals(self._store, plan))
        for shard, end in self._patience.with_(lambda: list(store_plan.tails(self._store, plan, done))):
            if end is not None and end.worker == worker and not end.is_drained:
                return plan.label(shard)
        return ""

    # what workers tell

    def _hear(self, worker: str, event: Event) -> None:
        """A worker has told something: it is counted, and shown where it is news."""
        self._crew.hear(worker, event)
        if isinstance(event, Progressed):
            return
        if isinstance(event, ShardEnded) and event.counts is not None:
            self._own.reused += event.counts.reused
            self._own.duplicates += event.counts.duplicates
            self._worked = True
        if isinstance(event, AttemptEnded):
            self._told.notify(event)
            return
        if isinstance(event, _SAID_BEFORE) or (isinstance(event, Warned) and event.concern in _OF_THE_INPUT):
            return
        if isinstance(event, _SAID_ONCE):
            if event in self._heard or (isinstance(event, AtRisk) and self._said_risk):
                return
            self._said_risk = self._said_risk or isinstance(event, AtRisk)
            self._heard.add(event)
        self._told.notify(event)

    async def _tell(self, *, documents: bool) -> None:
        """Say how far the job is until cancelled."""
        while True:
            cost, tokens = self.spending.known_cost, self.spending.tokens
            self._told.notify(self._crew.told(self._counts_before.read, cost=cost, tokens=tokens, documents=documents))
            await asyncio.sleep(EVERY_S)

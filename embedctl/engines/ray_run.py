"""A job whose workers run on a Ray cluster, as the command sees it: it starts them, is told how far they are, and ends.

    plan ─▶ actors (limiter, budget) ─▶ workers ─▶ every shard done ─▶ manifest ─▶ ledger

A worker whose process or machine dies is started again by Ray; one that ends for a reason of its machine alone, by us.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from typing import Any

from embedctl import inputs
from embedctl.budgets.reservations import Reservations
from embedctl.dataclass import dataclass
from embedctl.engines import ray_cluster, ray_worker
from embedctl.engines.host_run import EVERY_S, HostRun
from embedctl.engines.ray_actor import Joined, KeptLimits
from embedctl.errors import (
    ConfigurationInvalid,
    EmbedctlError,
    HostLost,
    InputMissing,
    Interrupted,
    KeyRejected,
    ShardLost,
    ShardsHeld,
    StorageFailed,
    StoreDenied,
    Terminated,
    WrongUsage,
)
from embedctl.ledger import spool as spools
from embedctl.planning.shards import Shard
from embedctl.records import Warned
from embedctl.routing.chain import FallbackChain
from embedctl.runs.receipt import Receipt, Spending
from embedctl.runs.run import RunAsync
from embedctl.runs.store_plan import USAGE, StorePlan

LONG_S = 30.0
"""After so long a worker that no machine has taken is told of."""

MOST_AGAIN = 32
"""How often workers are started again in a row, while no shard is done."""

_STARTED_AGAIN = (ShardLost, HostLost, Interrupted, Terminated)
"""Ends of a worker alone, that say nothing about the job."""

_OF_A_MACHINE = (ConfigurationInvalid, InputMissing, StorageFailed, StoreDenied, KeyRejected)
"""What need not be so on another one."""


@dataclass(slots=True)
class _Place:
    """Where one worker after the other works.

    Attributes:
        task: Of the one that is to work now, or does.
        worker: Its run's id, once it has joined.
    """

    task: Any = None
    worker: str = ""


class RayRun(HostRun):
    """A command whose workers are tasks of a cluster."""

    def __init__(self, *arguments: Any, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self._closing = ExitStack()
        self._cluster: ray_cluster.RayCluster | None = None
        self._places: dict[int, _Place] = {}
        self._runs: set[str] = set()
        self._again = 0

    def execute(self, run_async: RunAsync) -> Receipt:
        """The whole job; the cluster is left, or ended where it is its own, when this returns or raises."""
        if self._options.shard is not None:
            raise WrongUsage("--shard and --engine ray do not go together", hint="Ray's workers share the whole job")
        with self._closing:
            return super().execute(run_async)

    def _agreed(self, source: inputs.Source, chain: FallbackChain) -> StorePlan:
        """The plan; a cluster that cannot be had ends the job before there is one."""
        address = self._options.ray_address
        assert address is not None  # noqa: S101 - checked with the options
        for name in {endpoint.provider for endpoint in chain.endpoints}:
            ray_worker.check_headers(self.job.settings, name)
        joined = ray_cluster.joined(address, workers=self._options.workers, cpus=self._options.ray_cpus)
        self._cluster = self._closing.enter_context(joined)
        return super()._agreed(source, chain)

    def _has_begun(self, failure: EmbedctlError) -> bool:
        """Not before there is a cluster."""
        return self._cluster is not None and super()._has_begun(failure)

    async def _run_workers(self, plan: StorePlan, left: Sequence[Shard], money: Reservations) -> None:
        """Start them, and return when all have ended."""
        assert self._cluster is not None  # noqa: S101 - joined before there was a plan
        cluster, count = self._cluster, self._worker_count(left)
        actors = await cluster.keep(*self._kept(money, count))
        job = ray_worker.handed(self.job)
        beside = [
            asyncio.create_task(one)
            for one in (
                self._hear_from(cluster, actors.limiter),
                self._hear_from(cluster, actors.budget),
                self._watch_silent(cluster, actors),
                self._pass_on_stop(cluster, actors),
                self.stop.at(self._deadline()),
            )
        ]
        try:
            async with asyncio.TaskGroup() as places:
                for number in range(count):
                    places.create_task(self._place(cluster, actors, number, job))
            await asyncio.sleep(2 * EVERY_S)  # what they have told last
        finally:
            for one in beside:
                one.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await asyncio.to_thread(self._count_spending)
        self.stop.proceed()

    def _deadline(self) -> float | None:
        seconds = self._options.deadline
        return None if seconds is None else asyncio.get_running_loop().time() + seconds

    async def _pass_on_stop(self, cluster: ray_cluster.RayCluster, actors: ray_cluster.Actors) -> None:
        """Told to stop, or one of them has failed: all of them end in order; who waits for a machine does not begin."""
        await self.stop.asked.wait()
        reason = self.stop.reason
        actors.limiter.stop.remote("stopped" if reason is None else reason.message)
        for place in self._places.values():
            if not place.worker:
                cluster.cancel(place.task)

    async def _place(
        self, cluster: ray_cluster.RayCluster, actors: ray_cluster.Actors, number: int, job: bytes
    ) -> None:
        """One worker after the other, until one ends in order, or none may be started any more."""
        place = self._places[number] = _Place()
        try:
            while not self.stop.reasons:
                place.task, place.worker = cluster.start_worker(number, job, actors), ""
                answer = await cluster.result(place.task)
                if not await self._is_started_again(place, answer):
                    return
        except EmbedctlError as error:
            self.stop.because(error)

    async def _is_started_again(self, place: _Place, answer: dict[str, Any]) -> bool:
        """Whether another worker takes its place.

        Raises:
            EmbedctlError: The job is at its end.
        """
        if "lost" in answer:
            if self.stop.reasons:
                return False
            self._died(place.worker, f": {answer['lost']}")
            return True
        error: EmbedctlError | None = answer["error"] and pickle.loads(answer["error"])  # noqa: S301 - a worker's
        self._crew.ended(place.worker)
        if error is None or isinstance(error, ShardsHeld) or self.stop.reasons:
            return False
        self._again += 1
        if not isinstance(error, _STARTED_AGAIN) or self._again > MOST_AGAIN:
            if isinstance(error, _OF_A_MACHINE):
                error.message = f"worker on {answer['host']}: {error.message}"
            raise error
        return True

    def _died(self, worker: str, how: str) -> None:
        """A worker is dead.

        Raises:
            WorkersDied: Several have died of the same shard, or before they had one.
        """
        shard = self._crew.shard_of(worker) or ""
        self._crew.died(worker, how.removeprefix(": ") or "killed", shard)
        self._observer.notify(Warned("worker_died", worker[-12:], f" at shard {shard}" if shard else how))

    # what workers tell

    async def _hear_from(self, cluster: ray_cluster.RayCluster, actor: Any) -> None:
        """Hear what an actor has been told; one that is started again is asked again."""
        while True:
            news = await cluster.ask(actor.news.remote())
            if news is None:
                await asyncio.sleep(ray_cluster.AGAIN_S)
                continue
            for worker, event in pickle.loads(news):  # noqa: S301 - of workers of ours
                if isinstance(event, Joined):
                    self._joined(worker, event.number)
                else:
                    self._hear(worker, event)

    def _joined(self, worker: str, number: int) -> None:
        """A worker has begun; where another one has its number, Ray has started it again."""
        self._runs.add(worker)
        place = self._places.get(number)
        if place is None or place.worker == worker:
            return
        before, place.worker = place.worker, worker
        if before:
            try:
                self._died(before, "")
            except EmbedctlError as error:
                self.stop.because(error)

    async def _watch_silent(self, cluster: ray_cluster.RayCluster, actors: ray_cluster.Actors) -> None:
        """Give up workers that say nothing for a lease; tell of those that no machine takes."""
        await asyncio.sleep(LONG_S)
        waiting = sum(not place.worker for place in self._places.values())
        if waiting:
            self._observer.notify(Warned("workers_waiting", count=waiting))
        while True:
            for worker in await cluster.ask(actors.limiter.silent.remote(self._options.lease)) or ():
                await cluster.ask(actors.budget.gone.remote(worker))
            await asyncio.sleep(self._options.lease / 3)

    def _count_spending(self) -> None:
        """What the workers came to, as it is on the store: what a dead one has told last is lost."""
        found = Spending(self._prices.price)
        with suppress(EmbedctlError):  # else it is in the ledger once the store can be read
            for name in self._patience.with_(lambda: self._store.list(USAGE)):
                content = self._patience.with_(lambda n=name: self._store.read(n))  # type: ignore[misc]
                for event in spools.events(content):
                    if str(event.run_id) in self._runs:
                        found.count(event)
            if found.attempts >= self.spending.attempts:
                for field in fields(Spending):
                    setattr(self.spending, field.name, getattr(found, field.name))

    # what they share

    def _kept(self, money: Reservations, count: int) -> tuple[KeptLimits, KeptLimits]:
        """What limiter and budget begin with."""
        limits, shared, also = money.handed_over()
        money.close()
        folder = (self.job.scratch / str(self.run_id)).absolute()
        common: dict[str, Any] = {
            "folder": folder,
            "counted": sorted(self._counted),
            "workers": count,
            "longest_gate_s": self._options.max_wait,
        }
        return (
            KeptLimits(limits=(), shared=None, also=(), **common),
            KeptLimits(limits=limits, shared=shared, also=also, **common),
        )

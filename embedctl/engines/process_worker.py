"""A worker process: `python -m embedctl.engines.process_worker FD`, whose command is at the other end of FD."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any

from embedctl.engines.leases import LeasedLimits
from embedctl.engines.packed_job import unpacked
from embedctl.engines.process_line import WorkerEnd, lost, portable
from embedctl.errors import EmbedctlError, Interrupted, Terminated
from embedctl.records import (
    Event,
    Inferred,
    Observer,
    OperationBegan,
    OperationEnded,
    PhaseBegan,
    ShardBegan,
    ShardEnded,
)
from embedctl.runs import store_plan
from embedctl.runs.run import JobWork
from embedctl.runs.store_plan import StorePlan
from embedctl.runs.store_run import StoreRun

EVERY_S = 0.25
"""How often events are sent; those of shards at once: the command must know whose death it was."""

_OWN = (OperationBegan, OperationEnded, Inferred, PhaseBegan)
"""Events that concern this process alone."""


class Reports:
    """An observer that tells the command, some events at a time. From any thread."""

    def __init__(self, end: WorkerEnd) -> None:
        self._end = end
        self._waiting: list[Event] = []
        self._said_at = 0.0
        self._lock = threading.Lock()

    def notify(self, event: Event) -> None:
        """Tell it soon."""
        if isinstance(event, _OWN):
            return
        with self._lock:
            self._waiting.append(event)
            now = time.monotonic()
            if now - self._said_at >= EVERY_S or isinstance(event, ShardBegan | ShardEnded):
                self._said_at = now
                self._send()

    def flush(self) -> None:
        """Tell what is left."""
        with self._lock:
            self._send()

    def _send(self) -> None:
        if self._waiting:
            self._end.say("events", self._waiting)
            self._waiting = []


class ProcessWorkerRun(StoreRun):
    """One of several workers, in a process of its own. The command has refused what is to be refused."""

    end: WorkerEnd

    def _agreed(self, *_: Any) -> StorePlan:
        """The plan that the command has made, or found."""
        found = self._patience.with_(lambda: store_plan.plan_of(self._store))
        self._check_same(found)
        return found

    def _spent_by_others(self, plan: StorePlan) -> Decimal:
        """The command has counted it."""
        if self._share.count > 1:
            self._say_whose(plan)
        return Decimal(0)

    async def _work(self, plan: StorePlan, work: JobWork) -> None:
        """Shards, one after the other; limits and money are asked for."""
        with self.end.listening():
            terms = await self.end.ask("join", str(self.run_id))
            self._shared = LeasedLimits(self.end, is_limited=terms["is_limited"], tenants=terms["tenants"])
            await super()._work(plan, work)

    def _ingest_spool(self) -> None:
        """Workers open no ledger."""


def work(fd: int) -> int:
    """Work for the command at the other end until the job is done, or this worker has to end; the exit code."""
    run: ProcessWorkerRun | None = None
    is_stopping = False

    def heard(frame: tuple[Any, ...]) -> None:
        nonlocal is_stopping
        if run is None:
            return
        if frame[0] == "stop":
            is_stopping = True
            _stop(run, frame[1])
        elif frame[0] == "dead":
            run.others_died(frame[1])

    def gone() -> None:
        if is_stopping:  # a second signal has ended the command: so it is meant here
            os._exit(Terminated.exit_code)
        if run is not None:
            _stop(run, lost())

    end = WorkerEnd(socket.socket(fileno=fd), heard, gone)
    error: EmbedctlError | None = None
    reports = Reports(end)
    try:
        job = unpacked(end.first()[1], dict(os.environ))
        with _watched(job.settings.environment, reports, job.settings.paths.price_file) as observer:
            run = ProcessWorkerRun(job, observer)
            run.end = end
            with _signals(run):
                error = run.execute(asyncio.run).error
    except EmbedctlError as failure:
        error = failure
    reports.flush()
    end.say("ended", portable(error))
    return 0 if error is None else error.exit_code


def _stop(run: StoreRun, reason: EmbedctlError) -> None:
    with suppress(EmbedctlError):  # nothing is sent yet: it looks itself before it does
        run.ask_to_stop(reason)


@contextmanager
def _signals(run: StoreRun) -> Iterator[None]:
    """SIGINT and SIGTERM end the sending, as often as they come: schedulers send them to every process."""
    kinds: dict[int, type[Interrupted | Terminated]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}

    def stop(number: int, frame: object) -> None:
        run.ask_to_stop(kinds[number]("stopped; answers in flight are kept"))

    before = {number: signal.signal(number, stop) for number in kinds}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(environment: Any, observer: Observer, price_file: Any) -> Iterator[Observer]:
    """The observer, and a collector beside it where the environment names one."""
    if not any(name.startswith("OTEL_EXPORTER_OTLP_") for name in environment):
        yield observer
        return
    from embedctl.ledger.prices.run_prices import RunPrices
    from embedctl.records import utc_now
    from embedctl.telemetry import collector

    with collector.watched(environment, observer, RunPrices(price_file, utc_now()).price) as told:
        yield told


if __name__ == "__main__":
    sys.exit(work(int(sys.argv[1])))

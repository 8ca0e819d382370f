"""A worker that a command elsewhere has started, whatever its engine: what it shares, what it tells, when it ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from embedctl.engines.leases import LeasedLimits, LimitsLine
from embedctl.errors import Interrupted, Terminated
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
from embedctl.runs.store_plan import StorePlan
from embedctl.runs.store_run import StoreRun

EVERY_S = 0.25
"""How often events are sent; those of shards at once: the command must know whose death it was."""

_OWN = (OperationBegan, OperationEnded, Inferred, PhaseBegan)
"""Events that concern this process alone."""


class WorkerRun(StoreRun):
    """One of several workers. The command has refused what is to be refused."""

    def share(self, line: LimitsLine, terms: Mapping[str, Any]) -> None:
        """Limits and money are asked for.

        Args:
            terms: As `join` has answered.
        """
        self._shared = LeasedLimits(line, is_limited=terms["is_limited"], tenants=terms["tenants"])

    def watch(self, observer: Observer) -> None:
        """Tell somebody else, from before it is executed."""
        self._observer = observer

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

    def _ingest_spool(self) -> None:
        """Workers open no ledger."""


class Reports:
    """An observer that tells the command, some events at a time. From any thread.

    Args:
        send: Sends them; quick, and never raises.
    """

    def __init__(self, send: Callable[[list[Event]], None]) -> None:
        self._send = send
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
                self._tell()

    def flush(self) -> None:
        """Tell what is left."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        if self._waiting:
            self._send(self._waiting)
            self._waiting = []


@contextmanager
def signals(run: StoreRun) -> Iterator[None]:
    """SIGINT and SIGTERM end the sending, as often as they come: schedulers send them to every process."""
    kinds: dict[int, type[Interrupted | Terminated]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}

    def stop(number: int, frame: object) -> None:
        run.ask_to_stop(kinds[number]("stopped; what was answered is kept"))

    before = {number: signal.signal(number, stop) for number in kinds}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What all requests of a process share, and what of it is changed while it serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.embedding.router import Router
from embedctl.journal import Journal
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.routing.breaker import Snapshot, State
from embedctl.server.admission import AdmissionQueue, KeyRates
from embedctl.server.authentication import Failures, Keyring
from embedctl.server.gateway import Gateway
from embedctl.server.log import AccessLog, shown
from embedctl.server.metrics import Metrics
from embedctl.settings import ServeSettings, Settings
from embedctl.storage.vector_cache import VectorCache

WORST = (State.CLOSED, State.HALF_OPEN, State.OPEN, State.DEAD)
"""States of circuits, the worst last."""


def worst_last(one: Snapshot) -> tuple[int, int]:
    """Sorts circuits."""
    return WORST.index(one.state), one.failures


_A_VECTOR = 1536 * 4


@dataclass(slots=True, kw_only=True)
class ServerState:
    """The service as its endpoints see it.

    Attributes:
        loopback: Only this machine can reach it.
        behind_tls: What is in front says who asks.
        starting, draining: It takes no requests yet, or none any more.
        journals: That of now, and those whose last calls end.
        disk_trouble: Why nothing can be written down; None when all is well.
    """

    gateway: Gateway
    router: Router
    admission: AdmissionQueue
    rates: KeyRates
    failures: Failures
    keyring: Keyring
    log: AccessLog
    metrics: Metrics
    cache: VectorCache | None
    prices: Callable[[], RunPrices]
    journals: Callable[[], Sequence[Journal]]
    loopback: bool
    behind_tls: bool
    disk_trouble: Callable[[], str | None]
    starting: bool = True
    draining: bool = False
    clock: Callable[[], float] = time.monotonic
    _ignored: set[str] = field(default_factory=set)

    @property
    def settings(self) -> Settings:
        """As they are now."""
        return self.gateway.routes.settings

    @property
    def serve(self) -> ServeSettings:
        """Those of `[serve]`."""
        return self.gateway.serve

    @property
    def trouble(self) -> str | None:
        """Why it cannot serve; None when it can."""
        if self.starting:
            return "starting"
        return "draining" if self.draining else self.disk_trouble()

    async def prometheus(self) -> bytes:
        """What is counted, as Prometheus reads it."""
        kept = 0 if self.cache is None else await asyncio.to_thread(self.cache.count)
        open_intents = sum(one.open_intents for one in self.journals())
        return self.metrics.text(active=self.admission.in_flight, kept=kept, open_intents=open_intents)

    def ignored(self, name: str) -> None:
        """A field that nobody knows; said once."""
        if name not in self._ignored and len(self._ignored) < 100:
            self._ignored.add(name)
            self.log.say("unknown_parameter", name=shown(name))

    def circuits(self) -> dict[str, dict[str, Any]]:
        """Provider → the worst of its circuits."""
        found: dict[str, dict[str, Any]] = {}
        for one in sorted(self.router.snapshots(), key=worst_last):
            found[one.provider] = {"state": one.state.value, "failure_count": one.failures}
        return found

    def cache_stats(self) -> dict[str, int]:
        """Vectors that are kept, about how many have room, and for how long."""
        kept = self.settings.cache
        if self.cache is None:
            return {"size": 0, "max_size": 0, "ttl_seconds": 0}
        stats = self.cache.stats()
        each = stats.bytes // stats.entries if stats.entries else _A_VECTOR
        return {
            "size": stats.entries,
            "max_size": kept.max_bytes // max(1, each),
            "ttl_seconds": kept.ttl_days * 86_400,
        }

"""What runs and the service are both built of. Loads neither Arrow nor DuckDB: a service needs neither to serve."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

from embedctl import storage
from embedctl.budgets import limits as spend_limits
from embedctl.budgets.reservations import Reservations
from embedctl.embedding.router import Router
from embedctl.embedding.usage_events import Caller
from embedctl.errors import StorageFailed
from embedctl.journal import Journal, Spool
from embedctl.ledger import spool as spools
from embedctl.ledger.paths import LedgerPaths
from embedctl.planning import packer as packers
from embedctl.records import AttemptEnded, Limits, Observer, utc_now
from embedctl.routing.breaker import Thresholds
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import Limiter
from embedctl.runs import intake
from embedctl.settings import Settings
from embedctl.settings.options import Options
from embedctl.storage import Disk
from embedctl.storage.vector_cache import VectorCache


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


def ledger_paths(settings: Settings) -> LedgerPaths:
    """Where spending goes."""
    return LedgerPaths.of(settings.paths)


def spool(settings: Settings, disk: Disk = storage.DISK) -> Spool:
    """Takes the events of a segment to the ledger's spool."""
    return lambda spool_id, events: spools.publish(settings.paths.spool, spool_id, events, disk=disk)


def taking_in(settings: Settings, observer: Observer) -> Callable[[], object]:
    """Puts what was spent by now into the ledger, dead runs' spending included; before budgets are looked up."""
    return lambda: intake.take_in(settings.paths, wait_s=spend_limits.LEDGER_WAIT_S, now=utc_now(), observer=observer)


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


async def charge_idle(
    router: Router, caller: Caller, journal: Journal, money: Reservations, observer: Observer
) -> None:
    """Account for the time of machines that cost by the hour which no call was charged; before the journal is closed.

    A disk that refuses has ended the run with that already.
    """
    for event in router.idle(caller):
        with suppress(StorageFailed):
            await journal.note(event)
            observer.notify(AttemptEnded(event))
            await money.charge(event)


def forget_cached(settings: Settings, observer: Observer, endpoint: Endpoint) -> None:
    """Empty the shared cache of what an endpoint made: its model is another one now."""
    if settings.paths.cache.exists():
        kept = settings.cache
        cache = VectorCache(settings.paths.cache, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, observer=observer)
        try:
            cache.forget(endpoint.provider, endpoint.model)
        finally:
            cache.close()

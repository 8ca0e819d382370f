"""The one place that takes spending into a ledger: what dead runs have left, then what waits in the spool.

Reports come through here each time: nothing is imported, and no file is opened, for what there is not to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from embedctl import storage
from embedctl.ledger import missing, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import UNOBSERVED, Observer, utc_now
from embedctl.settings import Paths
from embedctl.storage import DISK, Disk, locks

if TYPE_CHECKING:
    from embedctl.ledger.ingest import Ingested

Ingest = Callable[[LedgerPaths], Sequence[str] | None]
"""Takes a spool into its ledger; what a reader should know of it."""


def take_in(
    paths: Paths,
    *,
    wait_s: float,
    now: datetime,
    observer: Observer = UNOBSERVED,
    disk: Disk = DISK,
    thorough: bool = False,
    into_ledger: Ingest | None = None,
) -> list[str]:
    """Put everything that was spent by now into the ledger, as far as it is not there. No ledger is made for nothing.

    Args:
        wait_s: For another process that holds the ledger.
        thorough: Look into the folder of every run that is registered, not only where the home shows that one died.
        into_ledger: duckdb's by default.

    Returns:
        What a reader should know of it: lines dropped, files set aside, a ledger that was rebuilt or cannot be written.

    Raises:
        Locked: It is held for longer than `wait_s`; nothing is lost.
        EmbedctlError: As `ledger.ingest.ingest`.
    """
    ledger = LedgerPaths.of(paths)
    if is_read_only(ledger):
        return [_read_only_note(ledger)]
    if thorough or _is_left(paths):
        recover(paths, observer=observer, disk=disk)
    half_made = not ledger.database.exists() and ledger.rebuilding.exists()
    if not (half_made or spool.pending(ledger.spool) or missing.count(ledger, wait_s=wait_s, now=now)):
        return spool.aside_notes(ledger.aside)
    if into_ledger is not None:
        return list(into_ledger(ledger) or ())
    return _ingested(ledger, wait_s=wait_s, now=now).notes()


def ingest(paths: Paths, *, wait_s: float, now: datetime, rebuild: bool, observer: Observer = UNOBSERVED) -> Ingested:
    """As `take_in`, whatever there is to do, and what was done.

    Args:
        rebuild: The database is set aside, and made anew from all kept spool files.
    """
    recover(paths, observer=observer)
    return _ingested(LedgerPaths.of(paths), wait_s=wait_s, now=now, rebuild=rebuild)


def recover(paths: Paths, *, observer: Observer = UNOBSERVED, disk: Disk = DISK) -> int:
    """Spool what runs have spent that died and were not resumed; how many events that were."""
    from embedctl.routing import circuits  # reports start without
    from embedctl.runs.copies import give_up_batches, recover_copies
    from embedctl.runs.registry import RunRegistry, home_trust, recover_dead, sweep

    for folder in (paths.runs, paths.spool):
        storage.remove_leftovers(disk, folder, older_than_s=storage.LEFTOVER_S)
    publish = partial(spool.publish, paths.spool, disk=disk)
    trust = home_trust(paths, disk)
    put = recover_dead(paths.runs, publish, trust, ledger=paths.ledger, observer=observer, disk=disk)
    put += recover_copies(
        paths.attempts,
        RunRegistry(paths.runs, disk=disk),
        publish,
        trust,
        is_known=partial(spool.is_known, paths.spool),
        ledger=paths.ledger,
        observer=observer,
        disk=disk,
    )
    put += give_up_batches(paths.batches, publish, trust, ledger=paths.ledger, now=utc_now().timestamp(), disk=disk)
    sweep(paths.journal, disk=disk)
    circuits.sweep(paths.home / "circuits")
    return put


def _is_left(paths: Paths) -> bool:
    """Whether the home itself shows that a run has died: attempts that are in no spool, and that nobody writes.

    Runs that died before homes kept copies of them are found by the next run, and by `usage ingest`.
    """
    files = storage.paths_in(paths.attempts)
    for call in storage.paths_in(paths.journal):
        files += storage.paths_in(call / "journal")
    return not all(map(locks.is_held, files))


def is_read_only(ledger: LedgerPaths) -> bool:
    """Whether a ledger is there that this process may only read, as on a read-only mount."""
    places = (ledger.database, ledger.database.parent, ledger.spool)
    return ledger.database.exists() and not all(os.access(one, os.W_OK) for one in places if one.exists())


def _read_only_note(ledger: LedgerPaths) -> str:
    waiting = spool.pending_events(ledger.spool)
    more = f"; {waiting:,} spooled events are not included" if waiting else ""
    return f"the ledger {ledger.database} may only be read here: nothing was taken in{more}"


def _ingested(ledger: LedgerPaths, *, wait_s: float, now: datetime, rebuild: bool = False) -> Ingested:
    from embedctl.ledger.ingest import ingest as into_database  # duckdb takes longer to import than a small run takes

    return into_database(ledger, wait_s=wait_s, now=now, rebuild=rebuild)

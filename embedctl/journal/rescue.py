"""What a dead run left in its journal: its events go to the spool, what is of no more use goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embedctl import storage
from embedctl.journal.commands import Spool
from embedctl.journal.recovery import Recovered, recover
from embedctl.journal.trust import Trust
from embedctl.records import UNOBSERVED, Observer, Warned, uuid7
from embedctl.storage import DISK, Disk

LOCK = "lock"
JOURNAL = "journal"
OWNERS = "ledger.json"
"""Names in a run's state folder."""

FOREIGN_PREFIX = "foreign-"
"""Folders in it of journals that were there and not this home's. The home that made them still finds them."""

_OWNERS_BYTES = 1 << 24


def rescue(
    journal: Path,
    spool: Spool,
    trust: Trust,
    *,
    keeps_vectors: bool,
    observer: Observer = UNOBSERVED,
    disk: Disk = DISK,
) -> int:
    """Spool the events of a journal whose lock the caller holds; how many were put.

    Idempotent: a segment's events and its spool id are the same at every recovery. What another process is writing,
    and what is not this home's, is left alone.
    """
    recovered = recover(journal, trust)
    put = 0
    for segment in recovered.segments:
        if segment.events and spool(segment.segment_id, segment.events):
            put += len(segment.events)
            if segment.lost_bytes:
                observer.notify(lost(journal, segment.lost_bytes))
        if not segment.vectors or not keeps_vectors:
            intents, answers = segment.names
            disk.unlink(journal / intents)
            disk.sync_folder(journal)
            disk.unlink(journal / answers)
    for path in recovered.remains:
        disk.unlink(path)
    return put


def lost(journal: Path, count: int) -> Warned:
    """The word about bytes that cannot be read."""
    return Warned("damaged_journal", str(journal), count=count)


def foreign_journals(state: Path) -> list[Path]:
    """Journals in a state folder that were set aside."""
    return [path for path in storage.paths_in(state, f"{FOREIGN_PREFIX}*") if path.is_dir() and not path.is_symlink()]


def journals(state: Path) -> Iterator[Path]:
    """Every folder of a state folder in which a journal of this home may be, though another home set it aside."""
    yield state / JOURNAL
    yield from foreign_journals(state)


def set_aside(state: Path, recovered: Recovered, disk: Disk = DISK) -> Path | None:
    """Move files that this home has not made out of a journal; the folder they are in now."""
    if not recovered.foreign:
        return None
    folder = state / f"{FOREIGN_PREFIX}{uuid7().hex}"
    disk.make_folder(folder)
    try:
        owners = storage.read_small(state / OWNERS, max_bytes=_OWNERS_BYTES, follow=False)
    except OSError:
        owners = b""
    if owners:
        storage.publish(disk, folder / OWNERS, owners)
    for path in recovered.foreign:
        disk.rename(path, folder / path.name)
    disk.sync_folder(folder)
    disk.sync_folder(recovered.folder)
    return folder


def forget_foreign(journal: Path, disk: Disk = DISK) -> None:
    """Remove a folder of journals that were set aside once all of them are spooled; the journal itself stays."""
    if journal.name.startswith(FOREIGN_PREFIX) and {path.name for path in storage.paths_in(journal)} <= {OWNERS}:
        storage.remove_tree(disk, journal)

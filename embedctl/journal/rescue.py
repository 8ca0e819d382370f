"""What a dead run left in its journal: its events go to the spool, what is of no more use goes."""

from __future__ import annotations

from pathlib import Path

from embedctl.journal.commands import Spool
from embedctl.journal.recovery import recover
from embedctl.journal.segments import ANSWERS, INTENTS
from embedctl.storage import DISK, Disk

LOCK = "lock"
JOURNAL = "journal"
"""Names in a run's state folder."""


def rescue(journal: Path, spool: Spool, *, keeps_vectors: bool, disk: Disk = DISK) -> int:
    """Spool the events of a journal whose lock the caller holds; how many were put.

    Idempotent: a segment's events and its spool id are the same at every recovery.
    """
    recovered = recover(journal)
    put = 0
    for segment in recovered.segments:
        if segment.events and spool(segment.segment_id, segment.events):
            put += len(segment.events)
        if not segment.vectors or not keeps_vectors:
            disk.unlink(journal / f"{segment.segment_id}{INTENTS}")
            disk.sync_folder(journal)
            disk.unlink(journal / f"{segment.segment_id}{ANSWERS}")
    for path in recovered.remains:
        disk.unlink(path)
    return put

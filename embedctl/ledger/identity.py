"""A ledger is known by its id: jobs on a store are begun on machines whose paths mean nothing elsewhere."""

from __future__ import annotations

from uuid import UUID

from embedctl import storage
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import uuid7
from embedctl.storage import DISK, Disk

_MOST_BYTES = 64


def ledger_id(paths: LedgerPaths, disk: Disk = DISK) -> str:
    """The id of a ledger, made when there is none; it stands beside the database, which may not exist yet.

    Raises:
        StorageFailed, OutputRefused: It cannot be made.
    """
    found = _read(paths)
    if found is not None:
        return found
    disk.make_folder(paths.identity.parent)
    if paths.identity.exists():
        storage.set_aside(disk, paths.identity)
    storage.publish(disk, paths.identity, f"{uuid7()}\n".encode())
    return _read(paths) or str(uuid7())


def _read(paths: LedgerPaths) -> str | None:
    try:
        return str(UUID(storage.read_small(paths.identity, max_bytes=_MOST_BYTES, follow=False).decode().strip()))
    except (OSError, ValueError):
        return None

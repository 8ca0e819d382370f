"""A whole copy of the ledger, made through duckdb while others read."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import datetime
from pathlib import Path

import duckdb

from embedctl import storage
from embedctl.errors import OutputRefused
from embedctl.ledger import database
from embedctl.ledger.paths import LedgerPaths
from embedctl.storage import DISK


def backup(paths: LedgerPaths, place: Path, *, wait_s: float = 60, now: datetime) -> int:
    """Copy the ledger to `place`, a new file that any DuckDB from 1.4 on opens.

    Returns:
        Events in the copy.

    Raises:
        OutputRefused: Something is at `place`, or its folder is not there.
        Locked: The ledger is being written for all of `wait_s`.
    """
    if os.path.lexists(place):
        raise OutputRefused(f"{place} exists", hint="a backup never replaces a file: name another")
    if not place.parent.is_dir():
        raise OutputRefused(f"no such folder: {place.parent}")
    with database.reader(paths, wait_s=wait_s, now=now):
        pass  # makes it when it is not there, and refuses what is no ledger of ours
    with storage.private_folder(DISK, place) as folder:
        temporary = folder / place.name
        source, target = (str(path).replace("'", "''") for path in (paths.database, temporary))
        with (
            database.held(paths, shared=True, wait_s=wait_s),
            database.translated(paths.database),
            closing(duckdb.connect()) as connection,
        ):
            connection.execute(f"ATTACH '{source}' AS source (READ_ONLY)")
            connection.execute(f"ATTACH '{target}' AS target (STORAGE_VERSION '{database.STORAGE_VERSION}')")
            connection.execute("COPY FROM DATABASE source TO target")
            row = connection.execute("SELECT count(*) FROM target.usage_event").fetchone()
            connection.execute("CHECKPOINT target")
        temporary.chmod(0o600)
        DISK.sync_folder(place.parent)
        if not DISK.link(temporary, place):
            raise OutputRefused(f"{place} exists", hint="a backup never replaces a file: name another")
    DISK.sync_folder(place.parent)
    return int(row[0]) if row else 0

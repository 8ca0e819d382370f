"""A whole copy of the ledger, made through duckdb while others read."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path

import duckdb

from embedctl.errors import InputMissing, OutputRefused
from embedctl.ledger import database
from embedctl.ledger.paths import LedgerPaths
from embedctl.storage import named


def backup(paths: LedgerPaths, place: Path, *, overwrite: bool = False, wait_s: float = 60, now: datetime) -> int:
    """Copy the ledger to `place`, a new file that any DuckDB from 1.4 on opens.

    Returns:
        Events in the copy.

    Raises:
        InputMissing: There is no ledger.
        OutputRefused: As `named.check_free`; or `place` is the ledger.
        Locked: The ledger is being written for all of `wait_s`.
    """
    named.check_free(place, overwrite=overwrite)
    if not paths.database.exists():
        raise InputMissing(f"there is no ledger {paths.database} yet", hint="it comes with the first run")
    if place.exists() and place.samefile(paths.database):
        raise OutputRefused(f"{place} is the ledger itself", hint="name another file")
    with database.reader(paths, wait_s=wait_s, now=now):
        pass  # refuses what is no ledger of ours
    with named.filled(place, overwrite=overwrite) as made:
        source, target = (str(path).replace("'", "''") for path in (paths.database, made))
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
    return int(row[0]) if row else 0

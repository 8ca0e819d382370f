"""Spool files that were taken in once and that the ledger knows nothing of: it was deleted, or is an older copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from embedctl.ledger import spool
from embedctl.ledger.paths import LedgerPaths

if TYPE_CHECKING:
    from datetime import datetime

    from embedctl.ledger.database import Connection


def count(paths: LedgerPaths, *, wait_s: float = 10, now: datetime) -> int:
    """How many there are.

    Args:
        wait_s: For a process that writes the ledger.

    Raises:
        Locked, Broken, ConfigurationInvalid: As `database.reader`.
    """
    from embedctl.ledger import database

    done = spool.pending(paths.done)
    if not done or not paths.database.exists():
        return len(done)
    with database.reader(paths, wait_s=wait_s, now=now) as connection:
        return len(files(connection, paths))


def files(connection: Connection, paths: LedgerPaths) -> list[Path]:
    """Files of `done` that the ledger does not know."""
    done = spool.pending(paths.done)
    if not done:
        return []
    known = {row[0] for row in connection.execute("SELECT spool_id FROM spool_offset").fetchall()}
    return [path for path in done if spool.spool_id(path) not in known]

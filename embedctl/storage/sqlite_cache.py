"""One SQLite file that any number of processes share. Broken or busy, it is of no use, and nobody stops.

Nothing in it is precious: whoever cannot read or write it goes on without. Door to sqlite3.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from embedctl.dataclass import dataclass
from embedctl.errors import OutputRefused
from embedctl.records import UNOBSERVED, Observer, Warned
from embedctl.storage.files import check_own

_T = TypeVar("_T")

BUSY_MS = 500
"""How long another process that writes is waited for."""

_OWN_FILES = ("", "-wal", "-shm", "-journal")
_VARIABLES = 500  # SQLite took 999 in one statement before 3.32
_TALLY = """
CREATE TABLE IF NOT EXISTS tally (
  kind TEXT PRIMARY KEY, hits INTEGER NOT NULL DEFAULT 0, misses INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS look_up_time (
  kind TEXT PRIMARY KEY, look_ups INTEGER NOT NULL DEFAULT 0, microseconds INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What was looked up since the file was made, by processes that ended well: found, or not.

    Attributes:
        look_ups: Of any number of entries at once; only where their time is taken.
        seconds: That they took, all of them.
    """

    hits: int = 0
    misses: int = 0
    look_ups: int = 0
    seconds: float = 0.0


class SqliteCache:
    """Entries of one kind in `path`; from any thread.

    Args:
        kind: What the entries are, in words.
        schema: SQL that makes their tables where they are not.
        busy_ms: How long another process that writes is waited for.
        observer: Told once when it is of no use; from then on everything is a miss.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        schema: str,
        *,
        busy_ms: int | None = None,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self.path = path
        self._kind = kind
        self._schema = schema
        self._busy_ms = BUSY_MS if busy_ms is None else busy_ms
        self._observer = observer
        self._connection: sqlite3.Connection | None = None
        self._broken = False
        self._lock = threading.Lock()
        self._seen = CacheStats()

    @property
    def is_open(self) -> bool:
        """Whether the file was opened, and is of use."""
        return self._connection is not None and not self._broken

    def open(self) -> None:
        """Open the file now."""
        if self._connection is None:
            self.do(lambda _: None, None)

    def do(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """What `work` gives, as one transaction; `otherwise`, and a word of it, when the file is of no use."""
        with self._lock:
            if self._broken:
                return otherwise
            try:
                self._connection = self._connection or self._connect()
                with self._connection:
                    return work(self._connection)
            except (sqlite3.Error, OSError) as problem:
                busy = isinstance(problem, sqlite3.OperationalError) and "locked" in str(problem)
                self._broken = not busy
                if not busy:
                    self._observer.notify(Warned("cache", f"{self._kind} cache {self.path}", str(problem)))
                return otherwise

    def saw(self, hits: int, misses: int, seconds: float | None = None) -> None:
        """Count a look-up; written down with `close`."""
        with self._lock:
            seen = self._seen
            look_ups, took = (0, 0.0) if seconds is None else (1, seconds)
            self._seen = CacheStats(
                seen.hits + hits, seen.misses + misses, seen.look_ups + look_ups, seen.seconds + took
            )

    @property
    def seen(self) -> CacheStats:
        """Of this process, since it last wrote them down."""
        return self._seen

    def tally(self) -> CacheStats:
        """Of all processes."""

        def select(connection: sqlite3.Connection) -> CacheStats:
            asked = "SELECT {} FROM {} WHERE kind = ?"
            found = connection.execute(asked.format("hits, misses", "tally"), [self._kind]).fetchone()
            time = connection.execute(asked.format("look_ups, microseconds", "look_up_time"), [self._kind]).fetchone()
            look_ups, microseconds = time or (0, 0)
            hits, misses = found or (0, 0)
            return CacheStats(hits, misses, look_ups, microseconds / 1_000_000)

        return self.do(select, CacheStats()) if self.path.exists() else CacheStats()

    def clear(self) -> None:
        """Remove the file, whatever is in it."""
        self._let_go()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Write down how often it was of use, and let go of the file."""
        seen, self._seen = self._seen, CacheStats()
        if seen != CacheStats():
            self.do(lambda connection: self._add(connection, seen), None)
        self._let_go()

    def _add(self, connection: sqlite3.Connection, seen: CacheStats) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT OR IGNORE INTO tally (kind) VALUES (?)", [self._kind])
        connection.execute(
            "UPDATE tally SET hits = hits + ?, misses = misses + ? WHERE kind = ?",
            [seen.hits, seen.misses, self._kind],
        )
        if seen.look_ups:
            connection.execute("INSERT OR IGNORE INTO look_up_time (kind) VALUES (?)", [self._kind])
            connection.execute(
                "UPDATE look_up_time SET look_ups = look_ups + ?, microseconds = microseconds + ? WHERE kind = ?",
                [seen.look_ups, round(seen.seconds * 1_000_000), self._kind],
            )

    def _let_go(self) -> None:
        with self._lock, suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for suffix in _OWN_FILES:  # SQLite follows links
                check_own(self.path.with_name(self.path.name + suffix))
        except OutputRefused as refusal:
            raise OSError(refusal.message) from refusal
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = sqlite3.connect(
            self.path, timeout=self._busy_ms / 1000, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(self._schema + _TALLY)
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def some_at_once(keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    """`keys` in such portions as one statement takes, each with its marks for IN."""
    for start in range(0, len(keys), _VARIABLES):
        some = keys[start : start + _VARIABLES]
        yield some, ",".join("?" * len(some))

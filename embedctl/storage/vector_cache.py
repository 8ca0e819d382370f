"""The shared vector cache across outputs: an entry per text and space. Broken or busy, it is a miss."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.records import UNOBSERVED, Observer
from embedctl.storage.sqlite_cache import CacheStats, SqliteCache, some_at_once

_FULL_TO = 0.9
"""When it is too large, the entries used longest ago go until it is so full."""

_TOUCHED_S = 3600
"""How exactly it is known when an entry was used last."""

_SWEPT_S = 60
"""How often entries that are too old are looked for."""

_FORGOTTEN = 1000
"""How many entries are removed in one transaction."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
  space_id TEXT NOT NULL, text_hash BLOB NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, tokens INTEGER,
  made_at INTEGER NOT NULL, used_at INTEGER NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (space_id, text_hash));
CREATE INDEX IF NOT EXISTS entry_used_at ON entry (used_at);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
"""

_RENEW = """
UPDATE entry SET provider = ?, model = ?, tokens = ?, made_at = ?, used_at = ?, vector = ?
WHERE space_id = ? AND text_hash = ? AND made_at < ? AND length(vector) = ?
"""
"""A newer vector of a text; one of another width has another space."""


@dataclass(frozen=True, slots=True)
class CachedVector:
    """A text's vector (float32, shape (D,)) and who made it; tokens where somebody counted.

    Attributes:
        made_at: When it was asked for, in Unix seconds.
    """

    provider: str
    model: str
    tokens: int | None
    vector: NDArray[np.float32]
    made_at: float


Stands = Callable[[CachedVector], bool]
"""Whether a vector may be taken: of whoever reads the cache, because a model may be another one since."""


@dataclass(frozen=True, slots=True)
class VectorCacheStats:
    """What is in the cache; bytes of vectors, times in epoch seconds."""

    entries: int
    bytes: int
    spaces: Sequence[dict[str, Any]]
    oldest_at: int | None


class VectorCache:
    """The cache in `path`; from any thread, for any number of processes.

    Args:
        observer: Told once when it is of no use; from then on everything is a miss.
        wall: Epoch seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_days: int,
        observer: Observer = UNOBSERVED,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cache = SqliteCache(path, "vector", _SCHEMA, observer=observer)
        self._reading = SqliteCache(path, "vector", _SCHEMA)
        self._max_bytes = max_bytes
        self._ttl_s = ttl_days * 86_400
        self._wall = wall
        self._swept_at = 0

    def look_up(self, space_id: str, hashes: Sequence[bytes], width: int, stands: Stands) -> dict[bytes, CachedVector]:
        """The vectors of those texts that it has, that are not too old, and that may stand where they are wanted.

        Args:
            hashes: 16 bytes each.
            width: Of the vectors, D.
        """
        now = int(self._wall())
        nothing: tuple[dict[bytes, CachedVector], list[bytes]] = ({}, [])
        found, stale = self._cache.do(lambda one: self._select(one, space_id, hashes, width, now), nothing)
        found = {text_hash: one for text_hash, one in found.items() if stands(one)}

        def touch(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "UPDATE entry SET used_at = ? WHERE space_id = ? AND text_hash = ?",
                [(now, space_id, text_hash) for text_hash in stale],
            )

        self._cache.saw(len(found), len(set(hashes)) - len(found))
        if stale:
            self._cache.do(touch, None)
        return found

    def open(self) -> None:
        """Open the file for `glance` and for all else at once: it may be replaced later."""
        self._cache.open()
        self._reading.open()

    def glance(
        self, space_id: str, hashes: Sequence[bytes], width: int, stands: Stands
    ) -> dict[bytes, CachedVector] | None:
        """The same, and never waits for who writes; None where only `look_up` can tell.

        From one thread. It takes some 30 µs a text.
        """
        if not self._reading.is_open:
            return None
        now = int(self._wall())
        nothing: tuple[dict[bytes, CachedVector], list[bytes]] = ({}, [])
        found, stale = self._reading.do(lambda one: self._select(one, space_id, hashes, width, now), nothing)
        if stale:
            return None
        found = {text_hash: one for text_hash, one in found.items() if stands(one)}
        self._reading.saw(len(found), len(hashes) - len(found))
        return found

    def _select(
        self, connection: sqlite3.Connection, space_id: str, hashes: Sequence[bytes], width: int, now: int
    ) -> tuple[dict[bytes, CachedVector], list[bytes]]:
        """What is there, and which of it was not used for so long that it must be said."""
        found: dict[bytes, CachedVector] = {}
        stale: list[bytes] = []
        for some, marks in some_at_once(hashes):
            rows = connection.execute(
                "SELECT text_hash, provider, model, tokens, vector, made_at, used_at FROM entry "  # noqa: S608 - only marks are put in
                f"WHERE space_id = ? AND made_at > ? AND length(vector) = ? AND text_hash IN ({marks})",
                [space_id, now - self._ttl_s, width * 4, *some],
            )
            for text_hash, provider, model, tokens, vector, made_at, used_at in rows:
                found[text_hash] = CachedVector(provider, model, tokens, np.frombuffer(vector, "<f4"), made_at)
                if used_at < now - _TOUCHED_S:
                    stale.append(text_hash)
        return found, stale

    def space_ids(self) -> set[str]:
        """Spaces that it has vectors of."""

        def select(connection: sqlite3.Connection) -> set[str]:
            return {space_id for (space_id,) in connection.execute("SELECT DISTINCT space_id FROM entry")}

        return self._cache.do(select, set())

    def put(self, space_id: str, hashes: Sequence[bytes], hits: Sequence[CachedVector]) -> None:
        """Keep these vectors; what is too old or too much goes."""
        self.put_all([(space_id, hashes, hits)])

    def put_all(self, some: Sequence[tuple[str, Sequence[bytes], Sequence[CachedVector]]]) -> None:
        """Keep vectors of several spaces, in one transaction.

        Args:
            some: As the arguments of `put`.
        """
        now = int(self._wall())
        rows = [
            (
                space_id,
                text_hash,
                hit.provider,
                hit.model,
                hit.tokens,
                hit.made_at,
                now,
                hit.vector.astype("<f4").tobytes(),
            )
            for space_id, hashes, hits in some
            for text_hash, hit in zip(hashes, hits, strict=True)
        ]

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            if now - self._swept_at >= _SWEPT_S:  # it looks at every entry
                self._swept_at = now
                self._forget(
                    connection,
                    "rowid IN (SELECT rowid FROM entry WHERE made_at <= ? ORDER BY used_at LIMIT 1000)",
                    [now - self._ttl_s],
                )
            added = 0
            for row in rows:
                new = connection.execute("INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount
                added += len(row[-1]) if new else 0
                if not new:  # what is bought once more takes the place of what did not stand
                    connection.execute(_RENEW, (*row[2:], *row[:2], row[5], len(row[-1])))
            connection.execute("UPDATE total SET bytes = bytes + ?", [added])
            self._make_room(connection)

        self._cache.do(insert, None)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        (size,) = connection.execute("SELECT bytes FROM total").fetchone()
        while size > self._max_bytes:
            self._forget(
                connection,
                "rowid IN (SELECT rowid FROM entry ORDER BY used_at LIMIT ?)",
                [1 + int(connection.execute("SELECT count(*) FROM entry").fetchone()[0] * (1 - _FULL_TO))],
            )
            (size,) = connection.execute("SELECT bytes FROM total").fetchone()

    def _forget(self, connection: sqlite3.Connection, which: str, values: Sequence[Any]) -> int:
        gone = connection.execute(f"DELETE FROM entry WHERE {which} RETURNING length(vector)", values).fetchall()  # noqa: S608 - conditions are ours
        if gone:
            connection.execute("UPDATE total SET bytes = max(0, bytes - ?)", [sum(row[0] for row in gone)])
        return len(gone)

    def stats(self) -> VectorCacheStats:
        """What is in it; nothing, where there is none."""

        def select(connection: sqlite3.Connection) -> VectorCacheStats:
            rows = connection.execute(
                "SELECT space_id, min(model), count(*), sum(length(vector)) FROM entry GROUP BY 1 ORDER BY 3 DESC"
            ).fetchall()
            spaces = [dict(zip(("space_id", "model", "entries", "bytes"), row, strict=True)) for row in rows]
            (oldest,) = connection.execute("SELECT min(made_at) FROM entry").fetchone()
            return VectorCacheStats(sum(s["entries"] for s in spaces), sum(s["bytes"] for s in spaces), spaces, oldest)

        nothing = VectorCacheStats(0, 0, [], None)
        return self._cache.do(select, nothing) if self._cache.path.exists() else nothing

    def count(self) -> int:
        """How many entries it has; reads an index, not the vectors."""

        def select(connection: sqlite3.Connection) -> int:
            return int(connection.execute("SELECT count(*) FROM entry").fetchone()[0])

        return self._cache.do(select, 0) if self._cache.path.exists() else 0

    def tally(self) -> CacheStats:
        """How often it had a text, and how often not."""
        return self._cache.tally()

    def forget(self, provider: str | None = None, model: str | None = None) -> int:
        """Remove entries, some at a time: others read and write between them.

        Args:
            provider, model: Only those that they made; None: whoever made them.

        Returns:
            How many.
        """
        conditions = [f"{name} = ?" for name, value in (("provider", provider), ("model", model)) if value is not None]
        values = [value for value in (provider, model) if value is not None]
        which = f"rowid IN (SELECT rowid FROM entry WHERE {' AND '.join(conditions) or 'true'} LIMIT {_FORGOTTEN})"  # noqa: S608 - only marks are put in

        def delete(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            return self._forget(connection, which, values)

        total = 0
        while gone := self._cache.do(delete, 0):
            total += gone
        return total

    def clear(self) -> None:
        """Remove the file, whatever is in it."""
        self._reading.close()
        self._cache.clear()

    def close(self) -> None:
        """Let go of the file."""
        self._reading.close()
        self._cache.close()

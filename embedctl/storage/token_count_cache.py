"""What texts count in tokens, remembered: in the run, and across runs where `[token_usage] cache` asks for it.

Across runs it is in a file of this machine, or in a Redis that machines share.

A count that is forgotten, or that cannot be read, is counted again. Counting is what costs: cl100k_base takes 100 us
for 1,000 characters, MiniLM's tokenizer 200 us; the look-up of a text, hash included, 4 us (2 cores, 2026-11-21). So
it pays from some 40 characters on, where the same texts are counted again: estimates and dry runs of one input,
`fallback` mode, servers that say nothing of tokens. Most runs count three requests and 1 % of the rest, and have no use
for it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from itertools import islice
from pathlib import Path
from typing import Protocol

from embedctl.dataclass import dataclass
from embedctl.records import UNOBSERVED, Observer, text_hash
from embedctl.storage import redis_counts
from embedctl.storage.redis_counts import RedisCounts
from embedctl.storage.sqlite_cache import CacheStats, SqliteCache, some_at_once
from embedctl.tokens import BYTES, Counter

KIND = "token count"
MOST_IN_MEMORY = 1 << 14
MOST_KEPT = 1_000_000
"""About 60 MB in the file; the oldest go first."""

_BUSY_MS = 50  # counting again takes no longer, and the event loop waits for it
_AT_ONCE = 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS token_count (
  tokenizer_id TEXT NOT NULL, text_hash BLOB NOT NULL, tokens INTEGER NOT NULL, made_at INTEGER NOT NULL,
  PRIMARY KEY (tokenizer_id, text_hash)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS token_count_made_at ON token_count (made_at);
"""


class CountStore(Protocol):
    """Counts that outlive a run. It is never waited for long, and what it cannot say is counted."""

    @property
    def place(self) -> str | None:
        """Where they are, for people, when that is not this home."""

    def look_up(self, tokenizer: str, hashes: Sequence[bytes]) -> dict[bytes, int]:
        """The counts of those texts that it has, and that are not too old."""

    def put(self, tokenizer: str, counts: Mapping[bytes, int]) -> None:
        """Keep these counts."""

    def kept(self) -> int | None:
        """How many counts there are; None when nobody knows."""

    def seen(self) -> CacheStats:
        """What this process has looked up."""

    def tally(self) -> CacheStats:
        """What was looked up from this home."""

    def close(self) -> None:
        """Write what is not written yet."""


def count_store(asked: bool | str, path: Path, *, ttl_s: int, observer: Observer = UNOBSERVED) -> CountStore | None:
    """The store that `[token_usage] cache` asks for; None: none.

    Args:
        asked: The setting: whether, or the address of a Redis.
        path: The shared cache file of this home.
    """
    if isinstance(asked, str):
        return RedisCounts(asked, path, ttl_s=ttl_s, observer=observer)
    return SharedCounts(path, ttl_s=ttl_s, observer=observer) if asked else None


def tallies(path: Path, *, observer: Observer = UNOBSERVED) -> list[tuple[str, CacheStats]]:
    """What was looked up from this home: in its own file, and in Redis where it ever was."""
    kinds = (("local", KIND), ("redis", redis_counts.KIND))
    found = []
    for name, kind in kinds:
        cache = SqliteCache(path, kind, _SCHEMA, observer=observer)
        found.append((name, cache.tally()))
        cache.close()
    return [(name, stats) for name, stats in found if name == "local" or stats != CacheStats()]


class SharedCounts:
    """Counts in the shared cache file; written in bundles, and with `close`.

    Args:
        ttl_s: Seconds after which a count is made anew.
        observer: Told once when the file is of no use.
        wall: Epoch seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        ttl_s: int,
        observer: Observer = UNOBSERVED,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cache = SqliteCache(path, KIND, _SCHEMA, busy_ms=_BUSY_MS, observer=observer)
        self._ttl_s = ttl_s
        self._wall = wall
        self._fresh: dict[tuple[str, bytes], int] = {}

    place = None

    def look_up(self, tokenizer_id: str, hashes: Sequence[bytes]) -> dict[bytes, int]:
        """The counts of those texts that it has, and that are not too old."""
        since, started = int(self._wall()) - self._ttl_s, time.perf_counter()

        def select(connection: sqlite3.Connection) -> dict[bytes, int]:
            found: dict[bytes, int] = {}
            for some, marks in some_at_once(hashes):
                rows = connection.execute(
                    "SELECT text_hash, tokens FROM token_count WHERE tokenizer_id = ? AND made_at > ? "  # noqa: S608 - only marks are put in
                    f"AND text_hash IN ({marks})",
                    [tokenizer_id, since, *some],
                )
                found.update(rows.fetchall())
            return found

        nothing: dict[bytes, int] = {}
        found = self._cache.do(select, nothing)
        self._cache.saw(len(found), len(hashes) - len(found), time.perf_counter() - started)
        return found

    def put(self, tokenizer_id: str, counts: Mapping[bytes, int]) -> None:
        """Keep these counts."""
        self._fresh.update({(tokenizer_id, text_hash): tokens for text_hash, tokens in counts.items()})
        if len(self._fresh) >= _AT_ONCE:
            self._write()

    def _write(self) -> None:
        now = int(self._wall())
        rows = [(*key, tokens, now) for key, tokens in self._fresh.items()]
        self._fresh = {}

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM token_count WHERE made_at <= ?", [now - self._ttl_s])
            connection.executemany("INSERT OR REPLACE INTO token_count VALUES (?, ?, ?, ?)", rows)
            (kept,) = connection.execute("SELECT count(*) FROM token_count").fetchone()
            if kept > MOST_KEPT:
                connection.execute(
                    "DELETE FROM token_count WHERE (tokenizer_id, text_hash) IN "
                    "(SELECT tokenizer_id, text_hash FROM token_count ORDER BY made_at LIMIT ?)",
                    [kept - MOST_KEPT * 9 // 10],
                )

        self._cache.do(insert, None)

    def kept(self) -> int:
        """How many counts there are."""

        def select(connection: sqlite3.Connection) -> int:
            return int(connection.execute("SELECT count(*) FROM token_count").fetchone()[0])

        return self._cache.do(select, 0) if self._cache.path.exists() else 0

    def seen(self) -> CacheStats:
        """What this process has looked up."""
        return self._cache.seen

    def tally(self) -> CacheStats:
        """How often it had a text, and how often not."""
        return self._cache.tally()

    def close(self) -> None:
        """Write what is not written yet, and let go of the file."""
        if self._fresh:
            self._write()
        self._cache.close()


@dataclass(slots=True)
class RunCounts:
    """The counts of one run.

    Attributes:
        shared: Asked before a text is counted; None: only this run's own memory.
    """

    shared: CountStore | None = None
    _memory: dict[tuple[str, bytes], int] = field(default_factory=dict, init=False, repr=False)

    def of(self, counter: Counter, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, by `counter` or as it once said."""
        name = counter.content_id
        if name == BYTES:
            return counter.count(texts)  # takes less than to remember
        hashes = [text_hash(text) for text in texts]
        known = {one: tokens for one in hashes if (tokens := self._memory.get((name, one))) is not None}
        if self.shared is not None and (missing := list(dict.fromkeys(one for one in hashes if one not in known))):
            kept = self.shared.look_up(name, missing)
            known |= {one: kept[one] for one, text in zip(hashes, texts, strict=True) if _may_be(kept.get(one), text)}
        wanted = {one: text for one, text in zip(hashes, texts, strict=True) if one not in known}
        fresh = dict(zip(wanted, counter.count([*wanted.values()]) if wanted else (), strict=True))
        if self.shared is not None and fresh:
            self.shared.put(name, fresh)
        known |= fresh
        self._remember(name, known.items())
        return [known[one] for one in hashes]

    def _remember(self, name: str, counts: Iterable[tuple[bytes, int]]) -> None:
        self._memory.update({(name, one): tokens for one, tokens in counts})
        if len(self._memory) > MOST_IN_MEMORY:
            for key in [*islice(self._memory, len(self._memory) - MOST_IN_MEMORY // 2)]:
                del self._memory[key]

    def close(self) -> None:
        """Hand what was counted to the runs that come."""
        if self.shared is not None:
            self.shared.close()


def _may_be(tokens: int | None, text: str) -> bool:
    """Whether a kept count can be that of a text: 0 only of an empty one; a token a byte at most, and a few special."""
    return tokens is not None and (tokens > 0 or not text) and 0 <= tokens <= 4 * len(text) + 16

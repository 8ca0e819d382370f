"""From the spool into the database: exactly once, priced, however often it is killed or run side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import orjson

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.ledger import budget_copy, database, loading, missing, prices, rating, schema, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.spool import SpoolFile

_BATCH_BYTES = 512 << 20  # a transaction's; its last rows do not fill a row group, and are copied when it is closed
_BATCH_FILES = 4000
_NO_EVENT = (duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException, UnicodeDecodeError)
"""What DuckDB says to a line whose checksum is right and which is no event all the same.

The last one is its own words, which show a piece of the line, cut in the middle of a character.
"""

_MEMORY = "160MB"
_MORE_MEMORY = "1GB"
"""For a file that alone is refused: before it is set aside."""

_FILE_BYTES = 1 << 30
"""A larger file than any that is written; it is not read."""

_LARGE_BYTES = 16 << 20
"""A smaller file is not to blame when memory is short."""

_NO_MEMORY = re.compile(r"failed to (?:pin|allocate)")


def _is_out_of_memory(error: Exception) -> bool:
    late = isinstance(error, duckdb.TransactionException) and _NO_MEMORY.search(str(error)) is not None
    return late or isinstance(error, duckdb.OutOfMemoryException)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What one ingest did.

    Attributes:
        events: New rows.
        repeated: Events that were there already, or twice in the spool.
        bad_lines: Lines dropped and counted: torn, foreign, bit-flipped, or no event.
        files: Spool files taken in.
        rebuilt_from: Where a damaged database was set aside; None when there was none.
        asked: It was set aside because somebody wanted that, damaged or not.
        unreadable: Spool files that could not be read, left where they are.
        refused: Spool files that the database did not take, and why.
        aside: Where all such files lie, of this ingest and of earlier ones; None when there are none.
        returned: Events that had been taken in once and were not in the ledger any more.
    """

    events: int = 0
    repeated: int = 0
    bad_lines: int = 0
    files: int = 0
    rebuilt_from: Path | None = None
    asked: bool = False
    unreadable: tuple[str, ...] = field(default=())
    refused: tuple[str, ...] = field(default=())
    aside: Path | None = None
    returned: int = 0

    def notes(self) -> list[str]:
        """What went wrong, in sentences."""
        found = []
        if self.rebuilt_from is not None:
            why = "is" if self.asked else "was damaged:"
            found.append(f"the ledger {why} set aside as {self.rebuilt_from}, rebuilt from the spool")
            found.append("exchange rates are not in the spool: take them in again (`embedctl usage rates FILE`)")
        if self.returned:
            found.append(
                f"{self.returned:,} events that had been taken in were not in the ledger: it was deleted, or restored "
                "from an older copy; they are in it again, from what the spool keeps"
            )
        if self.bad_lines:
            found.append(spool.bad_lines_note(self.bad_lines))
        found += [f"spool file not read: {name}" for name in self.unreadable]
        found += [f"spool file not taken in: {name}" for name in self.refused]
        return [*found, *(spool.aside_notes(self.aside) if self.aside else ())]


def ingest(paths: LedgerPaths, *, wait_s: float = 60, now: datetime, rebuild: bool = False) -> Ingested:
    """Take everything in the spool into the database, one transaction per handful of files.

    A damaged database is set aside and rebuilt from the spool and what was taken in before (`spool/done`).

    Args:
        wait_s: Seconds to wait for another process that holds the ledger.
        rebuild: Set the database aside even when opening it shows no damage.

    Raises:
        Locked: It is still held after `wait_s`; nothing is lost.
        ConfigurationInvalid: The schema is newer, a price file is wrong, or what is there never was a ledger: it is
            somebody's file, and stays; so does the spool.
        StorageFailed: The disk refused.
    """
    book = prices.price_texts(paths.price_file)
    aside: Path | None = None
    if not rebuild:
        try:
            return _ingest(paths, book, wait_s, now)
        except database.Broken:
            pass
    with database.held(paths, shared=False, wait_s=wait_s):
        if paths.database.exists() and (rebuild or _is_broken(paths)):
            paths.refuse_others()
            storage.publish(storage.DISK, paths.rebuilding, b"")
            aside = database.set_aside(paths.database, now)
    return replace(_ingest(paths, book, wait_s, now), rebuilt_from=aside, asked=rebuild)


def _is_broken(paths: LedgerPaths) -> bool:
    """Whether the database is damaged now: another process may have rebuilt it meanwhile."""
    try:
        with database.opened(paths.database, wait_s=1, read_only=False) as connection:
            if schema.refuse_foreign(connection, paths.database):
                connection.execute("SELECT count(*), sum(tokens_total), max(event_id) FROM usage_event").fetchall()
    except database.Broken:
        return True
    return False


def _ingest(paths: LedgerPaths, book: list[tuple[str, str]], wait_s: float, now: datetime) -> Ingested:
    total = Ingested()
    with database.writer(paths, wait_s=wait_s, now=now) as connection:
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute("SET preserve_insertion_order = false")  # or one core fills the table of a portion
        intake = _Ingestion(connection, paths, book, now)
        if paths.rebuilding.exists():
            budget_copy.restore(connection, paths)
            for batch in _batches(spool.pending(paths.done)):
                total = _sum(total, intake.take_in(batch))
                _move([path for path in batch if path in intake.refused], paths.aside)
            storage.DISK.unlink(paths.rebuilding)
        for batch in _batches(missing.files(connection, paths)):
            again = intake.take_in(batch)
            _move([path for path in batch if path in intake.refused], paths.aside)
            total = replace(_sum(total, again), returned=total.returned + again.events)
        for batch in _batches(spool.pending(paths.spool)):
            total = _sum(total, intake.take_in(batch))
            _move([path for path in batch if path in intake.refused], paths.aside)
            _move([path for path in batch if path not in intake.unreadable and path not in intake.refused], paths.done)
        budget_copy.keep(connection, paths)
    return replace(total, unreadable=_named(intake.unreadable), refused=_named(intake.refused), aside=paths.aside)


def _named(files: Mapping[Path, str]) -> tuple[str, ...]:
    return tuple(f"{path.name}: {why}" for path, why in files.items())


def _batches(files: Iterable[Path]) -> Iterator[list[Path]]:
    """Files that are taken in together."""
    batch: list[Path] = []
    size = 0
    for path in files:
        with suppress(OSError):  # told when it is read
            size += path.stat().st_size
        batch.append(path)
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Ingestion:
    """Takes batches of spool files in, under the lock.

    Attributes:
        unreadable: Files that could not be read, and why.
        refused: Files that the database takes neither whole nor without the lines that are no event, and why.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, paths: LedgerPaths, book: list[tuple[str, str]], now: datetime
    ) -> None:
        self._connection = connection
        self._paths = paths
        self._book = book
        self._now = now
        self.unreadable: dict[Path, str] = {}
        self.refused: dict[Path, str] = {}

    def take_in(self, batch: Sequence[Path]) -> Ingested:
        """All files that the ledger does not know yet."""
        known = _known(self._connection, batch)
        total = self._in_one([path for path in batch if spool.spool_id(path) not in known])
        taken = [path for path in batch if path not in self.unreadable and path not in self.refused]
        return replace(total, files=len(taken))

    def _in_one(self, paths: Sequence[Path]) -> Ingested:
        """One transaction for all; where that is refused, two halves, down to a closer look at one file alone."""
        try:
            return self._transaction(self._files(paths))
        except (duckdb.Error, UnicodeDecodeError) as error:
            if not (isinstance(error, _NO_EVENT) or _is_out_of_memory(error)):
                raise
            self._roll_back()
        if len(paths) > 1:
            middle = len(paths) // 2
            return _sum(self._in_one(paths[:middle]), self._in_one(paths[middle:]))
        return self._alone(paths[0])

    def _alone(self, path: Path) -> Ingested:
        """A file without the lines that are no event, and with more memory; what is refused all the same is named."""
        self._connection.execute(f"SET memory_limit = '{_MORE_MEMORY}'")
        try:
            return self._transaction([self._only_events(file) for file in self._files([path])])
        except (duckdb.Error, UnicodeDecodeError) as error:  # other files must not wait for it
            large = path.stat().st_size >= _LARGE_BYTES
            if not (isinstance(error, _NO_EVENT) or (_is_out_of_memory(error) and large)):
                raise
            self._roll_back()
            self.refused[path] = str(error).partition("\n")[0]
            return Ingested()
        finally:
            with suppress(duckdb.Error):  # what went wrong is what must be seen
                self._connection.execute(f"SET memory_limit = '{_MEMORY}'")

    def _begin(self) -> None:
        """A transaction in which events are rated by today's prices."""
        self._connection.execute("BEGIN")
        if rating.known_fingerprint(self._connection) != prices.fingerprint(self._book):
            rating.sync_prices(self._connection, prices.load(self._book), self._now)

    def _roll_back(self) -> None:
        with suppress(duckdb.TransactionException):  # a commit that failed has done it
            self._connection.execute("ROLLBACK")

    def _files(self, paths: Iterable[Path]) -> Iterator[SpoolFile]:
        """One after the other, so that only one is in memory."""
        for path in paths:
            try:
                if path.stat().st_size > _FILE_BYTES:
                    self.refused[path] = "it is larger than any file of events"
                else:
                    yield spool.read(path)
            except OSError as error:
                self.unreadable[path] = error.strerror or "it cannot be read"

    def _transaction(self, files: Iterable[SpoolFile]) -> Ingested:
        connection = self._connection
        self._begin()
        taken: list[loading.Taken] = []
        lines = loading.lines_of(files, taken)
        events = loaded = 0
        while portion := loading.load(connection, self._paths, lines):
            loaded += portion
            rating.make_rates(connection)
            events += loading.insert(connection, self._now)
            loading.remember_aliases(connection)
        if taken:
            rows = [[f.spool_id, f.size_bytes, f.lines, f.bad] for f in taken]
            connection.execute(
                "INSERT INTO spool_offset SELECT x[1]->>'$', x[2]::BIGINT, x[3]::BIGINT, x[4]::BIGINT, true, ? "
                "FROM (SELECT unnest(from_json(?::JSON, '[[\"JSON\"]]')) AS x)",
                [self._now, orjson.dumps(rows).decode()],
            )
        connection.execute("DROP TABLE IF EXISTS temp.batch")
        connection.execute("COMMIT")
        return Ingested(events=events, repeated=loaded - events, bad_lines=sum(file.bad for file in taken))

    def _only_events(self, file: SpoolFile) -> SpoolFile:
        """`file` without lines whose checksum is right and which yet are no event: halved until they stand alone."""

        def good(lines: tuple[bytes, ...]) -> tuple[bytes, ...]:
            if not lines or self._acceptable(replace(file, lines=lines)):
                return lines
            if len(lines) == 1:
                return ()
            middle = len(lines) // 2
            return good(lines[:middle]) + good(lines[middle:])

        lines = good(file.lines)
        return replace(file, lines=lines, bad=file.bad + len(file.lines) - len(lines))

    def _acceptable(self, file: SpoolFile) -> bool:
        """Whether the table's own constraints take all lines, as far as memory lets that be seen; nothing stays."""
        self._begin()  # a line may be no event because of its price: less than nothing of it costs less than nothing
        try:
            lines = loading.lines_of([file], [])
            while loading.load(self._connection, self._paths, lines):
                rating.make_rates(self._connection)
                loading.insert(self._connection, rating.EPOCH)
        except _NO_EVENT:
            return False
        except duckdb.Error as error:
            if not _is_out_of_memory(error) or len(file.lines) == 1:
                raise
            return False
        else:
            return True
        finally:
            self._roll_back()


def _known(connection: duckdb.DuckDBPyConnection, batch: Sequence[Path]) -> set[str]:
    """Ids of files that are in the ledger already: a kill came between the commit and the putting away."""
    rows = connection.execute(
        "SELECT spool_id FROM spool_offset WHERE spool_id IN (SELECT unnest(?))", [[*map(spool.spool_id, batch)]]
    ).fetchall()
    return {row[0] for row in rows}


def _move(files: Sequence[Path], folder: Path) -> None:
    """Move files out of the way: they are in the ledger, or it does not take them."""
    if not files:
        return
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in files:
            path.replace(folder / path.name)
    except OSError as error:
        raise StorageFailed(f"{folder} cannot be written: {error.strerror}") from error


def _sum(one: Ingested, other: Ingested) -> Ingested:
    return replace(
        one,
        events=one.events + other.events,
        repeated=one.repeated + other.repeated,
        bad_lines=one.bad_lines + other.bad_lines,
        files=one.files + other.files,
    )


def prune(paths: LedgerPaths, *, older_than: timedelta, now: datetime) -> int:
    """Remove taken-in spool files last written before `now - older_than`; a rebuild can then not bring them back.

    Returns:
        How many were removed.
    """
    before = (now - older_than).timestamp()
    removed = 0
    for path in spool.pending(paths.done):
        with suppress(FileNotFoundError):  # another one does the same
            if path.stat().st_mtime < before:
                path.unlink()
                removed += 1
    return removed

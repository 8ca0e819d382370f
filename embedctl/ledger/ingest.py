"""From the spool into the database: exactly once, priced, however often it is killed or run side by side."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import orjson

from embedctl import storage
from embedctl.errors import StorageFailed
from embedctl.ledger import database, prices, rating, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.spool import SpoolFile

_BATCH_BYTES = 96 * 1024 * 1024  # more than a row group of DuckDB (122,880 rows), which is then written once
_BATCH_FILES = 500

_COLUMNS = {
    "event_id": "UUID",
    "entry_kind": "VARCHAR",
    "corrects_event_id": "UUID",
    "workspace_id": "VARCHAR",
    "job_id": "VARCHAR",
    "run_id": "UUID",
    "operation_id": "VARCHAR",
    "operation_kind": "VARCHAR",
    "purpose": "VARCHAR",
    "attempt": "SMALLINT",
    "fallback_from": "VARCHAR",
    "provider": "VARCHAR",
    "model": "VARCHAR",
    "response_model": "VARCHAR",
    "region": "VARCHAR",
    "provider_account": "VARCHAR",
    "provider_request_id": "VARCHAR",
    "batch_id": "VARCHAR",
    "occurred_at": "TIMESTAMPTZ",
    "duration_ms": "INTEGER",
    "status": "VARCHAR",
    "error_class": "VARCHAR",
    "billable": "VARCHAR",
    "price_tier": "VARCHAR",
    "price_as": "VARCHAR",
    "meter": "VARCHAR",
    "quantity": "BIGINT",
    "tokens_total": "BIGINT",
    "tokens_cached": "BIGINT",
    "tokens_native": "BIGINT",
    "tokens_estimated": "BIGINT",
    "usage_mode": "VARCHAR",
    "usage_source": "VARCHAR",
    "tokenizer_id": "VARCHAR",
    "input_count": "INTEGER",
    "content_bytes": "BIGINT",
    "cost_provider": "DECIMAL(28,15)",
    "tags": "JSON",
    "reason": "VARCHAR",
    "tool_version": "VARCHAR",
    "spool_id": "VARCHAR",
}
_DEFAULTS = {
    "entry_kind": "'usage'",
    "operation_kind": "'request'",
    "purpose": "'ingest'",
    "attempt": "1",
    "region": "'*'",
    "price_tier": "'standard'",
    "meter": "'input_token'",
    "quantity": "tokens_total",
    "input_count": "1",
    "tool_version": "''",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What one ingest did.

    Attributes:
        events: New rows.
        repeated: Events that were there already, or twice in the spool.
        bad_lines: Lines dropped and counted: torn, foreign, bit-flipped, or no event.
        files: Spool files taken in.
        rebuilt_from: Where a damaged database was set aside; None when there was none.
        unreadable: Spool files that could not be read, left where they are.
    """

    events: int = 0
    repeated: int = 0
    bad_lines: int = 0
    files: int = 0
    rebuilt_from: Path | None = None
    unreadable: tuple[str, ...] = field(default=())


def ingest(paths: LedgerPaths, *, wait_s: float = 60, now: datetime, rebuild: bool = False) -> Ingested:
    """Take everything in the spool into the database, one transaction per handful of files.

    A damaged database is set aside and rebuilt from the spool and what was taken in before (`spool/done`).

    Args:
        wait_s: Seconds to wait for another process that holds the ledger.
        rebuild: Set the database aside even when opening it shows no damage.

    Raises:
        Locked: It is still held after `wait_s`; nothing is lost.
        ConfigurationInvalid: The schema is newer, or a price file is wrong; the spool stays.
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
            storage.publish(storage.DISK, paths.rebuilding, b"")
            aside = database.set_aside(paths.database, now)
    return replace(_ingest(paths, book, wait_s, now), rebuilt_from=aside)


def _is_broken(paths: LedgerPaths) -> bool:
    """Whether the database is damaged now: another process may have rebuilt it meanwhile."""
    try:
        with database.opened(paths.database, wait_s=1, read_only=False) as connection:
            if database.refuse_foreign(connection, paths.database):
                connection.execute("SELECT count(*), sum(tokens_total), max(event_id) FROM usage_event").fetchall()
    except database.Broken:
        return True
    return False


def _ingest(paths: LedgerPaths, book: list[tuple[str, str]], wait_s: float, now: datetime) -> Ingested:
    total = Ingested()
    unreadable: list[str] = []
    with database.writer(paths, wait_s=wait_s, now=now) as connection:
        if paths.rebuilding.exists():
            for batch in _batches(spool.pending(paths.done), unreadable):
                total = _sum(total, _take_in(connection, paths, batch, book, now))
            storage.DISK.unlink(paths.rebuilding)
        for batch in _batches(spool.pending(paths.spool), unreadable):
            total = _sum(total, _take_in(connection, paths, batch, book, now))
            _put_away(paths, batch)
    return replace(total, unreadable=tuple(unreadable))


def _batches(files: Iterable[Path], unreadable: list[str]) -> Iterator[list[SpoolFile]]:
    batch: list[SpoolFile] = []
    for path in files:
        try:
            batch.append(spool.read(path))
        except OSError as error:
            unreadable.append(f"{path.name}: {error.strerror}")
            continue
        if len(batch) >= _BATCH_FILES or sum(file.size_bytes for file in batch) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _take_in(
    connection: duckdb.DuckDBPyConnection,
    paths: LedgerPaths,
    files: Sequence[SpoolFile],
    book: list[tuple[str, str]],
    now: datetime,
) -> Ingested:
    """One transaction for all `files`; when one of their lines is no event, file by file with a closer look."""
    try:
        return _transaction(connection, paths, files, book, now)
    except (duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException):
        connection.execute("ROLLBACK")
    total = Ingested()
    for file in files:
        checked = _only_events(connection, paths, file)
        total = _sum(total, _transaction(connection, paths, [checked], book, now))
    return total


def _transaction(
    connection: duckdb.DuckDBPyConnection,
    paths: LedgerPaths,
    files: Sequence[SpoolFile],
    book: list[tuple[str, str]],
    now: datetime,
) -> Ingested:
    connection.execute("BEGIN")
    if rating.known_fingerprint(connection) != prices.fingerprint(book):
        rating.sync_prices(connection, prices.load(book), now)
    known = _known(connection, files)
    fresh = [file for file in files if file.spool_id not in known]
    lines = sum(len(file.lines) for file in fresh)
    events = 0
    if lines:
        _load(connection, paths, fresh)
        rating.make_rates(connection)
        events = _insert(connection, now)
        _remember_aliases(connection)
    if fresh:
        rows = [[f.spool_id, f.size_bytes, len(f.lines), f.bad] for f in fresh]
        connection.execute(
            "INSERT INTO spool_offset SELECT x[1]->>'$', x[2]::BIGINT, x[3]::BIGINT, x[4]::BIGINT, true, ? "
            "FROM (SELECT unnest(from_json(?::JSON, '[[\"JSON\"]]')) AS x)",
            [now, orjson.dumps(rows).decode()],
        )
    connection.execute("COMMIT")
    bad = sum(file.bad for file in fresh)
    return Ingested(events=events, repeated=lines - events, bad_lines=bad, files=len(files))


def _known(connection: duckdb.DuckDBPyConnection, files: Sequence[SpoolFile]) -> set[str]:
    """Ids of files that are in the ledger already: a kill came between the commit and the putting away."""
    rows = connection.execute(
        "SELECT spool_id FROM spool_offset WHERE spool_id IN (SELECT unnest(?))",
        [[file.spool_id for file in files]],
    ).fetchall()
    return {row[0] for row in rows}


def _load(connection: duckdb.DuckDBPyConnection, paths: LedgerPaths, files: Sequence[SpoolFile]) -> None:
    """Fill the temporary table `batch` with every good line, through a file: DuckDB parses it on all cores."""
    place = paths.database.with_name(f".{paths.database.name}.batch")
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            for file in files:
                head = b'{"spool_id":%s,' % orjson.dumps(file.spool_id)
                out.writelines(head + line[1:] + b"\n" for line in file.lines)
    except OSError as error:
        raise StorageFailed(f"{place} cannot be written: {error.strerror}") from error
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in _COLUMNS.items())
    values = ", ".join(f"coalesce({name}, {default}) AS {name}" for name, default in _DEFAULTS.items())
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE batch AS SELECT * EXCLUDE (cost_provider, tags) REPLACE ({values}), "
        "cost_provider AS amount, CAST(tags AS VARCHAR) AS tags "
        f"FROM read_json(?, format = 'newline_delimited', columns = {{{columns}}})",
        [str(place)],
    )
    place.unlink(missing_ok=True)


def _insert(connection: duckdb.DuckDBPyConnection, now: datetime) -> int:
    """Rate `batch` and insert what is not there yet; by a window of ids, so that old row groups are not read."""
    row = connection.execute("SELECT min(event_id), max(event_id), count(*), count(DISTINCT event_id) FROM batch")
    low, high, lines, events = row.fetchone() or (None, None, 0, 0)
    once = "DISTINCT ON (event_id)" if events < lines else ""  # costs as much as all the rest
    inserted = connection.execute(
        f"INSERT INTO usage_event BY NAME SELECT {once} *, ?::TIMESTAMPTZ AS recorded_at, "
        "CASE WHEN cost_status <> 'unpriced' THEN ?::TIMESTAMPTZ END AS rated_at "
        f"FROM ({rating.RATED}) n WHERE NOT EXISTS "
        "(SELECT 1 FROM usage_event u WHERE u.event_id BETWEEN ? AND ? AND u.event_id = n.event_id)",
        [now, now, low, high],
    ).fetchone()
    return int(inserted[0]) if inserted else 0


def _remember_aliases(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep whose prices each provider is charged by, when that is news."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE alias AS SELECT provider, arg_max(coalesce(price_as, ''), occurred_at) AS latest "
        "FROM batch WHERE entry_kind = 'usage' GROUP BY provider"
    )
    news = (
        "(SELECT provider, nullif(latest, '') AS price_as FROM alias a WHERE NOT EXISTS (SELECT 1 FROM price_alias p "
        "WHERE p.provider = a.provider AND coalesce(p.price_as, '') = a.latest))"
    )
    connection.execute(f"CREATE OR REPLACE TEMP TABLE alias_news AS {news}")
    connection.execute("DELETE FROM price_alias WHERE provider IN (SELECT provider FROM alias_news)")
    connection.execute("INSERT INTO price_alias SELECT * FROM alias_news")


def _only_events(connection: duckdb.DuckDBPyConnection, paths: LedgerPaths, file: SpoolFile) -> SpoolFile:
    """`file` without the lines whose checksum is right and which yet are no event: halved until they stand alone."""

    def good(lines: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if not lines or _acceptable(connection, paths, replace(file, lines=lines)):
            return lines
        if len(lines) == 1:
            return ()
        middle = len(lines) // 2
        return good(lines[:middle]) + good(lines[middle:])

    lines = good(file.lines)
    return replace(file, lines=lines, bad=file.bad + len(file.lines) - len(lines))


def _acceptable(connection: duckdb.DuckDBPyConnection, paths: LedgerPaths, file: SpoolFile) -> bool:
    """Whether the table's own constraints take all lines; nothing stays."""
    connection.execute("BEGIN")
    try:
        _load(connection, paths, [file])
        rating.make_rates(connection)
        _insert(connection, rating.EPOCH)
    except (duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException):
        return False
    else:
        return True
    finally:
        connection.execute("ROLLBACK")


def _put_away(paths: LedgerPaths, files: Sequence[SpoolFile]) -> None:
    """Move files that are in the ledger out of the way."""
    try:
        paths.done.mkdir(mode=0o700, exist_ok=True)
        for file in files:
            file.path.replace(paths.done / file.path.name)
    except OSError as error:
        raise StorageFailed(f"{paths.done} cannot be written: {error.strerror}") from error


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
    old = [path for path in spool.pending(paths.done) if path.stat().st_mtime < before]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)

"""The database file: made whole, opened under the sidecar lock, migrated, set aside when it is broken."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from embedctl import storage
from embedctl.errors import ConfigurationInvalid, InvariantBroken, Locked, StorageFailed, WrongUsage
from embedctl.ledger import schema
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import uuid7
from embedctl.storage import DISK, locks

Connection = duckdb.DuckDBPyConnection
"""Of the ledger; the only name of duckdb's that leaves this room."""

STORAGE_VERSION = "v1.2.0"
"""Opens in DuckDB 1.4, 1.5 and 2; a file made with 2.0's default opens in 2.0 alone (accounting.md 3)."""

_CONNECT = {
    "python_enable_replacements": "false",  # or a missing table's name finds a Python variable
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_BROKEN = re.compile(
    r"not a valid DuckDB database|Corrupt|checksum|Could not read enough bytes|Failed to load metadata"
    r"|Serialization Error|Failure while replaying WAL|INTERNAL Error",
    re.IGNORECASE,
)

_LOOK_AGAIN_S = 0.02
_REBUILD = "`embedctl usage ingest --rebuild` sets it aside and rebuilds it from the spool"
_MAY_NOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


class ReadOnly(StorageFailed):
    """The ledger can be read here and not written. Who reads goes on."""


class Broken(StorageFailed):
    """The file is no database, or a damaged one. Writers set it aside; readers show this."""

    word = "ledger_broken"


@contextmanager
def held(
    paths: LedgerPaths,
    *,
    shared: bool,
    wait_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold the sidecar lock. Where a reader may only read, and nobody has ever written, there is none to hold.

    Raises:
        Locked: Others held it for all of `wait_s` seconds.
        ReadOnly: Not shared, and the ledger's folder may not be written to.
    """
    descriptor = _open_lock(paths.lock, shared=shared)
    if descriptor is None:
        yield
        return
    try:
        try:
            locks.take(
                descriptor, paths.lock, wait_s=wait_s, shared=shared, poll_s=_LOOK_AGAIN_S, sleep=sleep, clock=clock
            )
        except Locked:
            raise Locked(
                f"the ledger {paths.database} is in use by another embedctl",
                hint="events wait in the spool, none is lost; `embedctl usage ingest --wait 600` waits longer",
            ) from None
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path, *, shared: bool) -> int | None:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        if error.errno not in _MAY_NOT_WRITE:
            raise StorageFailed(f"the ledger's lock {path} cannot be opened: {error.strerror}") from error
        refusal = error
    if not shared:
        raise ReadOnly(f"the ledger's folder {path.parent} may not be written to: {refusal.strerror}") from refusal
    try:
        return os.open(path, os.O_RDONLY | flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFailed(f"the ledger's lock {path} cannot be opened: {error.strerror}") from error


@contextmanager
def writer(paths: LedgerPaths, *, wait_s: float, now: datetime) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database, made when it is not there and migrated, for the one process that writes.

    Raises:
        Locked: Another embedctl, or another program, holds it.
        Broken: It cannot be read; see `set_aside`.
        ConfigurationInvalid: Of a newer version, not a ledger, or another file.
    """
    with held(paths, shared=False, wait_s=wait_s):
        if not _is_there(paths.database):
            _create(paths.database, now)
        with _opened(paths, wait_s, read_only=False) as connection:
            schema.migrate(connection, paths.database, now)
            yield connection


@contextmanager
def reader(paths: LedgerPaths, *, wait_s: float = 10, now: datetime) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database for queries only. Where there is none, one without events answers, and no file is made.

    Raises:
        Locked, Broken, ConfigurationInvalid: As for `writer`.
    """
    if not _is_there(paths.database):
        with closing(duckdb.connect(config=dict(_CONNECT))) as connection:
            fill_empty(connection, now)
            yield connection
        return
    with (
        held(paths, shared=True, wait_s=wait_s),
        _opened(paths, wait_s, read_only=True) as connection,
    ):
        schema.refuse_foreign(connection, paths.database)
        yield connection


def fill_empty(connection: duckdb.DuckDBPyConnection, now: datetime) -> None:
    """Make a database in memory a ledger without events."""
    connection.execute("SET TimeZone = 'UTC'")
    schema.migrate(connection, Path(":memory:"), now)


@contextmanager
def _opened(paths: LedgerPaths, wait_s: float, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """As `opened`; a file that never was a ledger is not called a damaged one."""
    try:
        with opened(paths.database, wait_s=wait_s, read_only=read_only) as connection:
            yield connection
    except Broken:
        paths.refuse_others()
        raise


@contextmanager
def opened(database: Path, *, wait_s: float, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """One connection in UTC; errors of the file come as errors of our tree."""
    with translated(database):
        connection = _connect(database, wait_s, read_only)
        with closing(connection):
            connection.execute("SET TimeZone = 'UTC'")
            spill = database.parent / f"{storage.TEMPORARY_PREFIX}{uuid7().hex}"  # made when it is needed
            connection.execute("SET temp_directory = '{}'".format(str(spill).replace("'", "''")))
            yield connection


@contextmanager
def translated(database: Path) -> Iterator[None]:
    """The one place in which DuckDB's errors about the file become ours."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error).partition("\n")[0]
        if "cannot encode str as UTF-8" in text:
            raise WrongUsage(
                "a byte of the path is not UTF-8, and DuckDB knows no such paths", hint="choose another name"
            ) from None
        if "Could not set lock" in text or "Conflicting lock" in text:
            holder = re.search(r"held in (.+?\(PID \d+\))", text)
            raise Locked(
                f"the ledger {database} is open in {holder[1] if holder else 'another program'}",
                hint="close it there and run again; nothing is lost, events wait in the spool",
            ) from error
        if "version number" in text and "can only read" in text:
            raise ConfigurationInvalid(
                f"the ledger {database} was written by a newer DuckDB: {text}", hint="upgrade embedctl and duckdb"
            ) from error
        if _BROKEN.search(text):
            raise Broken(
                f"the ledger {database} is damaged: {text}",
                hint=_REBUILD,
            ) from error
        if isinstance(error, duckdb.IOException | duckdb.PermissionException | duckdb.OutOfMemoryException):
            raise StorageFailed(f"the ledger {database} cannot be used: {text}") from error
        raise InvariantBroken(f"the ledger {database}: {text}") from error


def _connect(database: Path, wait_s: float, read_only: bool) -> duckdb.DuckDBPyConnection:
    until = time.monotonic() + wait_s
    while True:
        try:
            return duckdb.connect(str(database), read_only=read_only, config=dict(_CONNECT))
        except duckdb.IOException as error:
            if "lock" not in str(error) or time.monotonic() >= until:
                raise
            time.sleep(0.05)


def _is_there(database: Path) -> bool:
    """Whether there is a file to open; one without content was a ledger once (a power loss)."""
    try:
        size = database.stat().st_size
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageFailed(f"the ledger {database} cannot be reached: {error.strerror}") from error
    if size == 0:
        raise Broken(f"the ledger {database} is an empty file", hint=_REBUILD)
    return True


def _create(database: Path, now: datetime) -> None:
    """Make the file beside its place and link it there: a kill during DuckDB's own creation leaves rubbish."""
    try:
        storage.remove_leftovers(DISK, database.parent, older_than_s=storage.LEFTOVER_S)
        with storage.private_folder(DISK, database) as folder:
            temporary = folder / database.name
            with translated(database), closing(duckdb.connect(config=dict(_CONNECT))) as connection:
                quoted = str(temporary).replace("'", "''")
                connection.execute(f"ATTACH '{quoted}' AS ledger (STORAGE_VERSION '{STORAGE_VERSION}')")
                connection.execute("USE ledger")
                connection.execute("SET TimeZone = 'UTC'")
                schema.migrate(connection, database, now)
                connection.execute("CHECKPOINT ledger")
            temporary.chmod(0o600)
            descriptor = os.open(temporary, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            DISK.link(temporary, database)
        DISK.sync_folder(database.parent)
    except OSError as error:
        raise StorageFailed(f"the ledger {database} cannot be made: {error.strerror}") from error


def set_aside(database: Path, now: datetime) -> Path:
    """Rename a damaged database (and its log) to NAME.bad-UTC; hold the lock exclusively.

    Returns:
        Its new place.
    """
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    place = database.with_name(f"{database.name}.bad-{stamp}")
    try:
        database.rename(place)
        log = database.with_name(database.name + ".wal")
        if log.exists():
            log.rename(place.with_name(place.name + ".wal"))
        DISK.sync_folder(database.parent)
    except OSError as error:
        raise StorageFailed(f"the damaged ledger {database} cannot be set aside: {error.strerror}") from error
    return place

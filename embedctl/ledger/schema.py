"""The schema: its numbered steps, which of them a file has had, and which files are not ours."""

from __future__ import annotations

import hashlib
from datetime import datetime
from importlib import resources
from pathlib import Path

import duckdb

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid

_VERSION = "SELECT max(version) FROM schema_migration WHERE NOT EXISTS (SELECT event_id FROM usage_event WHERE false)"
"""One cheap question instead of a list of all tables, which costs 10 ms."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema, never edited once released."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All steps this version knows, in order."""
    folder = resources.files("embedctl.ledger") / "migrations"
    found = []
    for entry in folder.iterdir():
        number, _, name = entry.name.removesuffix(".sql").partition("_")
        if entry.name.endswith(".sql"):
            found.append(Migration(int(number), name, entry.read_text("utf-8")))
    return sorted(found, key=lambda step: step.version)


def refuse_foreign(connection: duckdb.DuckDBPyConnection, database: Path) -> int:
    """The schema version; 0 in an empty file.

    Raises:
        ConfigurationInvalid: Newer than this program, or a database of something else.
    """
    known = migrations()[-1].version
    try:
        row = connection.execute(_VERSION).fetchone()
    except (duckdb.CatalogException, duckdb.BinderException):
        _refuse_strangers(connection, database)
        return 0
    version = int(row[0] or 0) if row else 0
    if version > known:
        raise ConfigurationInvalid(
            f"the ledger {database} has schema {version}; this embedctl knows up to {known}",
            hint="upgrade embedctl; events wait in the spool meanwhile",
        )
    return version


def _refuse_strangers(connection: duckdb.DuckDBPyConnection, database: Path) -> None:
    """An empty file and one whose making was cut short are ours; others with tables are not."""
    tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if tables and "usage_event" not in tables:
        raise ConfigurationInvalid(
            f"{database} is a DuckDB file of something else (tables: {', '.join(sorted(tables)[:5])})",
            hint="name another file with --ledger or EMBEDCTL_LEDGER",
        )


def migrate(connection: duckdb.DuckDBPyConnection, database: Path, now: datetime) -> None:
    """Take every step that the file has not had, each in a transaction of its own.

    Raises:
        ConfigurationInvalid: As `refuse_foreign`.
    """
    version = refuse_foreign(connection, database)
    for step in migrations():
        if step.version <= version:
            continue
        connection.execute("BEGIN")
        connection.execute(step.sql)
        connection.execute(
            "INSERT INTO schema_migration VALUES (?, ?, ?, ?, ?)",
            [step.version, step.name, step.checksum, now, __version__],
        )
        connection.execute("COMMIT")

"""Where a ledger's files are."""

from __future__ import annotations

from pathlib import Path

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid
from embedctl.settings import Paths

_MAGIC = slice(8, 12)
"""Where "DUCK" stands in a database's file, after a checksum."""


@dataclass(frozen=True, slots=True)
class LedgerPaths:
    """The database, and the folder in which events wait for it.

    Attributes:
        database: Opened by duckdb alone: its lock is dropped when this process opens the path in any other way.
        price_file: The user's own prices (`prices set`, `prices import`), the same for every ledger.
    """

    database: Path
    spool: Path
    price_file: Path

    @classmethod
    def of(cls, paths: Paths) -> LedgerPaths:
        """Those that the settings name."""
        return cls(paths.ledger, paths.spool, paths.price_file)

    def refuse_others(self) -> None:
        """Refuse a file that never was a ledger: it is somebody's, and damaged ledgers are set aside.

        A ledger that has taken anything in, and that of the home, is not looked at: see `database`.

        Raises:
            ConfigurationInvalid: It is no database, and nothing beside it says that it was one.
        """
        if self.spool == self.database.with_name("spool") or storage.paths_in(self.done):
            return
        try:
            with self.database.open("rb") as file:
                start = file.read(_MAGIC.stop)
        except OSError:
            return  # told when it is opened
        if start and start[_MAGIC] != b"DUCK":
            raise ConfigurationInvalid(
                f"{self.database} is another file, not a ledger", hint="choose another with --ledger or EMBEDCTL_LEDGER"
            )

    @property
    def lock(self) -> Path:
        """Held exclusively by the one that writes, shared by those that read; never removed."""
        return self.database.with_name(self.database.name + ".lock")

    @property
    def budgets(self) -> Path:
        """What runs that go on now have spent of their workspaces' budgets (shared_purse.py); never removed."""
        return self.database.with_name(self.database.name + ".budgets")

    @property
    def identity(self) -> Path:
        """Its id (identity.py)."""
        return self.database.with_name(self.database.name + ".id")

    @property
    def limits(self) -> Path:
        """A copy of the budgets that the ledger holds (limits.py)."""
        return self.database.with_name(self.database.name + ".limits")

    @property
    def rebuilding(self) -> Path:
        """There from when a damaged database is set aside until all of `done` is in the new one."""
        return self.database.with_name(self.database.name + ".rebuilding")

    @property
    def done(self) -> Path:
        """Spool files that are in the ledger, kept so that it can be rebuilt."""
        return self.spool / "done"

    @property
    def aside(self) -> Path:
        """Spool files that the database does not take; nothing but a person removes them."""
        return self.spool / "aside"

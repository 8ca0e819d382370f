"""Shifts: stretches of a server's accounts, each a run of its own with journal, lock and budgets as they stood.

A run sees its budgets once, at its beginning; a server outlives days and months. So it hands over: the next shift looks
anew at what the ledger knows, while the calls of the last one end under it. One journal is written to at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import field
from datetime import datetime
from pathlib import Path
from uuid import UUID

from embedctl import storage
from embedctl.budgets import limits as spend_limits
from embedctl.budgets.limits import KeyBudget
from embedctl.budgets.reservations import Reservations
from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError
from embedctl.journal import Journal
from embedctl.journal.rescue import JOURNAL, LOCK
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.records import Observer, utc_now, uuid7
from embedctl.runs import foundations
from embedctl.runs.registry import RunEntry, RunRegistry, home_trust
from embedctl.settings import Settings
from embedctl.storage import Disk, locks

_AT_ONCE_BYTES = 64 << 10
"""Of frames that the loop writes itself: a few vectors."""

COMMAND = "serve"
"""Of a server's entries in the registry of runs."""


@dataclass(slots=True, eq=False)
class Shift:
    """One stretch.

    Attributes:
        ends: When the first period of its budgets does; None without budgets.
        calls: Under way; it is closed when there are none.
    """

    run_id: UUID
    journal: Journal
    money: Reservations
    prices: RunPrices
    ends: datetime | None
    calls: int = 0
    _entry: RunEntry | None = None
    _registry: RunRegistry | None = None
    _folder: Path = field(default_factory=Path)
    _stack: ExitStack = field(default_factory=ExitStack)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """A call."""
        self.calls += 1

    def end(self) -> None:
        """It is over."""
        self.calls -= 1
        if not self.calls:
            self._idle.set()

    async def close(self, charge_idle: Callable[[Shift], Awaitable[None]]) -> None:
        """Wait for its calls, hand what they came to to the spool, and leave nothing.

        Args:
            charge_idle: Accounts for what machines came to beside those calls.

        Raises:
            StorageFailed: The disk refused; recovery will do it.
        """
        while self.calls:
            self._idle.clear()
            await self._idle.wait()
        try:
            await charge_idle(self)
            await self.journal.close(published=True)
        finally:
            await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        self.money.close()
        empty = not storage.paths_in(self._folder / JOURNAL)
        if empty and self._registry is not None and self._entry is not None:
            self._registry.forget(self._entry)
            with suppress(EmbedctlError):
                storage.remove_tree(storage.DISK, self._folder)
        self._stack.close()


class TimedDisk(Disk):
    """The disk, which tells how long files of the journal took to be on it."""

    def __init__(self, told: Callable[[float], None]) -> None:
        super().__init__()
        self._told = told

    def sync(self, fd: int, path: Path) -> None:
        """See Disk."""
        began = time.monotonic()
        super().sync(fd, path)
        self._told(time.monotonic() - began)


def opened(settings: Settings, keys: Sequence[KeyBudget], observer: Observer, disk: Disk = storage.DISK) -> Shift:
    """A new shift. Takes its time: the ledger is read where there are budgets.

    Args:
        disk: The journal's.

    Raises:
        EmbedctlError: The disk refused, or nobody knows what budgets leave.
    """
    run_id = uuid7()
    paths = settings.paths
    folder = paths.journal / str(run_id)
    registry = RunRegistry(paths.runs)
    trust = home_trust(paths, run_id=run_id)
    with ExitStack() as stack:
        stack.enter_context(locks.hold_folder(folder, LOCK, make=storage.DISK.make_folder, command=COMMAND))
        entry = RunEntry(
            run_id=run_id,
            job_id="",
            folder=folder,
            output="",
            ledger=str(paths.ledger.absolute()),
            state="running",
            workspace_id=settings.options.workspace,
            command=COMMAND,
        )
        registry.register(entry)
        prices = RunPrices(paths.price_file, utc_now())
        money, ends = spend_limits.of_server(
            foundations.ledger_paths(settings),
            settings,
            keys,
            prices.of,
            observer,
            trust,
            run_id=str(run_id),
            state=folder,
            take_in=foundations.taking_in(settings, observer),
        )
        journal = Journal.open(
            folder / JOURNAL,
            secret=trust.secret,
            spool=foundations.spool(settings),
            disk=disk,
            sync_intents=settings.serve.durability == "sync",
            at_once_bytes=_AT_ONCE_BYTES,
        )
        return Shift(run_id, journal, money, prices, ends, 0, entry, registry, folder, stack.pop_all())

"""Budgets as all runs of one ledger see them together: what each has spent and set aside, in a file that they share.

The ledger learns what a run has spent only when its events are taken in. Until then it stands here, so that runs at the
same time cannot each spend the whole budget:

    used up = what the ledger knew, without the runs listed here + what these have spent and set aside

Every reservation is made under the file's lock, so all runs of a ledger on one machine together stay within a budget as
a single one does: what is set aside is at least what a provider bills. Not seen are other machines, runs that began
before the budget was set, and what the ledger is told by hand meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.records import from_json
from embedctl.storage import locks, read_small

if TYPE_CHECKING:
    from embedctl.ledger.budgets import BudgetStatus

WAIT_S = 30.0
"""How long the file is waited for: it is held for less than a millisecond, unless its holder was stopped."""

_ZERO = Decimal(0)
_MOST_USD = Decimal(10) ** 13
_MOST_BYTES = 1 << 24


@dataclass(slots=True)
class BudgetShare:
    """One run's part, in USD by workspace.

    Attributes:
        folder: Its state folder, whose lock it holds while it lives.
    """

    folder: str
    spent: dict[str, Decimal] = field(default_factory=dict)
    reserved: dict[str, Decimal] = field(default_factory=dict)


@dataclass(slots=True)
class Sums:
    """The file's content.

    Attributes:
        bases: "WORKSPACE/PERIOD" → what the ledger knew of runs that are not among `shares`.
        shares: By run id.
    """

    bases: dict[str, Decimal] = field(default_factory=dict)
    shares: dict[str, BudgetShare] = field(default_factory=dict)

    def spent(self, workspace: str, period: str) -> Decimal:
        """What is gone of a budget."""
        base = self.bases.get(f"{workspace}/{period}", _ZERO)
        return base + sum((share.spent.get(workspace, _ZERO) for share in self.shares.values()), _ZERO)

    def reserved(self, workspace: str) -> Decimal:
        """What all runs have set aside."""
        return sum((share.reserved.get(workspace, _ZERO) for share in self.shares.values()), _ZERO)


def peek(path: Path) -> Sums:
    """The sums as they are now, for who takes no part."""
    try:
        return _sums(read_small(path, max_bytes=_MOST_BYTES, follow=False))
    except FileNotFoundError:
        return Sums()
    except OSError as refusal:
        raise StorageFailed(f"cannot read {path}: {refusal.strerror}") from refusal


def _sums(content: bytes) -> Sums:
    """What stands there; nothing in a file that is empty, or was cut by a loss of power, or no run of ours wrote."""
    try:
        sums = from_json(content, Sums)
    except ValueError:
        return Sums()
    amounts = [*sums.bases.values()]
    for share in sums.shares.values():
        amounts += [*share.spent.values(), *share.reserved.values()]
    return sums if all(amount.is_finite() and abs(amount) < _MOST_USD for amount in amounts) else Sums()


class SharedBudget:
    """One run's access to the file; it lists the run from `join` on, until a later one finds it in the ledger."""

    def __init__(
        self, path: Path, run_id: str, folder: Path, bases: Mapping[str, Decimal] = MappingProxyType({})
    ) -> None:
        self._path = path
        self._run_id = run_id
        self._mine = BudgetShare(str(folder.absolute()))
        self._bases: Mapping[str, Decimal] = dict(bases)
        self._begun = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        except OSError as refusal:
            raise StorageFailed(f"cannot open {path}: {refusal.strerror}") from refusal

    def join(
        self,
        workspaces: Collection[str],
        settled: Callable[[Path], bool],
        standings: Callable[[Collection[str]], Sequence[BudgetStatus]],
    ) -> Sequence[BudgetStatus]:
        """Take part; how the budgets stand in the ledger without the runs that are listed.

        Args:
            workspaces: Whose budgets are asked for.
            settled: Whether a run with this state folder has ended, and all it spent is in the spool now.
            standings: Run ids to leave out → the ledger's standings, everything spooled included.
        """
        while True:
            with self.open() as sums:
                listed = {run_id: share for run_id, share in sums.shares.items() if run_id != self._run_id}
            over = {
                run_id
                for run_id, share in listed.items()
                if share.spent.keys() <= set(workspaces) and settled(Path(share.folder))
            }
            left_out = {*(listed.keys() - over), self._run_id}
            found = standings(left_out)
            with self.open() as sums:
                if not left_out <= sums.shares.keys():
                    continue  # another run has found one of them in the ledger meanwhile: so must we
                for run_id in over:
                    sums.shares.pop(run_id, None)
                for one in found:
                    sums.bases[f"{one.budget.workspace}/{one.budget.period}"] = one.spent.cost + one.spent.at_risk
                self._bases = dict(sums.bases)
            return found

    @contextmanager
    def open(self) -> Iterator[Sums]:
        """The sums as they are now; nobody else changes them meanwhile. What `add` is told inside is in the file after.

        Raises:
            Locked: A stopped process holds the file.
            StorageFailed: It cannot be read or written.
        """
        locks.take(self._fd, self._path, wait_s=WAIT_S)
        try:
            before = self._content()
            sums = self._decoded(before)
            yield sums
            self._put(orjson.dumps(asdict(sums), default=str), before)
        finally:
            locks.give_back(self._fd)

    def _content(self) -> bytes:
        try:
            return os.pread(self._fd, _MOST_BYTES, 0)
        except OSError as refusal:
            raise StorageFailed(f"cannot read {self._path}: {refusal.strerror}") from refusal

    def _put(self, content: bytes, before: bytes) -> None:
        if content == before:
            return
        try:
            os.pwrite(self._fd, content, 0)
            os.ftruncate(self._fd, len(content))
        except OSError as refusal:
            raise StorageFailed(f"cannot write {self._path}: {refusal.strerror}") from refusal

    def add(self, workspace: str, *, spent: Decimal = _ZERO, reserved: Decimal = _ZERO) -> None:
        """Count more as spent or set aside by this run; inside `open`."""
        self._mine.spent[workspace] = self._mine.spent.get(workspace, _ZERO) + spent
        self._mine.reserved[workspace] = self._mine.reserved.get(workspace, _ZERO) + reserved

    def is_flying(self, workspace: str) -> bool:
        """Whether a living run has set something aside: most of that comes back."""
        with self.open() as sums:
            shares = [share for share in sums.shares.values() if share.reserved.get(workspace)]
        return any(locks.is_held(Path(share.folder) / "lock") for share in shares)

    def handed_over(self) -> tuple[Path, str, Path, Mapping[str, Decimal]]:
        """Arguments for a process that takes part in place of this one."""
        return self._path, self._run_id, Path(self._mine.folder), self._bases

    def close(self) -> None:
        """Take no part any more; what was spent stays listed until it is in the ledger."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _decoded(self, content: bytes) -> Sums:
        """What stands there; a file that says nothing begins with what this run knows."""
        sums = _sums(content)
        for key, base in self._bases.items():
            sums.bases.setdefault(key, base)
        if not self._begun and (before := sums.shares.get(self._run_id)) is not None:
            self._mine.spent = dict(before.spent)  # in batches, by this same run …
            for workspace, amount in before.reserved.items():  # … or by a process of it that has died
                self._mine.spent[workspace] = self._mine.spent.get(workspace, _ZERO) + amount
        self._begun = True
        sums.shares[self._run_id] = self._mine
        return sums

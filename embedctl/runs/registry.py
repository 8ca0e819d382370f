"""Every run there was: one small file each in `$EMBEDCTL_HOME/runs/`, and the spend of those that died."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal
from uuid import UUID

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import InputMissing, InvariantBroken, Locked, OutputRefused
from embedctl.journal.commands import Spool
from embedctl.journal.rescue import JOURNAL, LOCK, forget_foreign, journals, rescue
from embedctl.journal.trust import Trust, home_secret
from embedctl.ledger import segment_owners
from embedctl.records import UNOBSERVED, Observer, from_json, storable, stored, to_json, utc_now
from embedctl.settings import LEDGER_NAME, Paths
from embedctl.storage import DISK, Disk, check_own, paths_in, publish, read_small, remove_tree, replace
from embedctl.storage.locks import RECOVERY, hold, is_held

State = Literal["accepted", "running", "completed", "partial", "failed", "interrupted", "waiting"]

MOST_BYTES = 1 << 20
"""Of an entry."""

UNFINISHED: tuple[State, ...] = ("accepted", "running", "interrupted", "failed", "waiting")
"""States of a run that may have left a journal."""

OPEN: tuple[State, ...] = ("accepted", "running")
"""States of a run that has not ended, unless its process is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """One execution of a job, as its file says it.

    Attributes:
        folder: Its state folder, beside the output; holds `lock` and `journal/`.
        output: What it writes.
        ledger: Where its spending belongs; "" in entries of versions that knew one ledger only.
        counts: Rows, vectors, tokens … as far as they are known by now, under the receipt's names.
        cost_usd: So far, as a decimal string; None when nothing is known.
        workspace_column: Of the table, where each row names who pays for it; `workspace_id` pays where a row does not.
        keeps_vectors: Whether its journal's vectors are of use to a later run (not for searches and tests).
    """

    run_id: UUID
    job_id: str
    folder: Path
    output: str
    ledger: str = ""
    state: State = "accepted"
    workspace_id: str = "default"
    workspace_column: str | None = None
    model: str = ""
    command: str = ""
    started_at: datetime = field(default_factory=utc_now)
    updated_at: datetime = field(default_factory=utc_now)
    finished_at: datetime | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    cost_usd: str | None = None
    exit_code: int | None = None
    last_error: str | None = None
    keeps_vectors: bool = True


class RunRegistry:
    """The registry. Any number of processes may use it: each writes only the file of its own run."""

    def __init__(self, folder: Path, *, disk: Disk = DISK) -> None:
        self.folder = folder
        self._disk = disk

    def register(self, run: RunEntry) -> None:
        """A run begins.

        Raises:
            InvariantBroken: Its id is taken.
            OutputRefused, StorageFailed: The file cannot be made.
        """
        self._disk.make_folder(self.folder)
        if not publish(self._disk, self._path(run.run_id), _bytes(run)):
            raise InvariantBroken(f"run {run.run_id} is registered already")

    def update(
        self,
        run: RunEntry,
        *,
        state: State | None = None,
        counts: Mapping[str, int] | None = None,
        cost_usd: str | None = None,
        exit_code: int | None = None,
        last_error: str | None = None,
    ) -> RunEntry:
        """Say how far it is; what is None stays as it was. With `exit_code` it has finished."""
        now = utc_now()
        changed = dataclasses.replace(
            run,
            state=state or run.state,
            counts=run.counts if counts is None else dict(counts),
            cost_usd=run.cost_usd if cost_usd is None else cost_usd,
            exit_code=run.exit_code if exit_code is None else exit_code,
            last_error=run.last_error if last_error is None else last_error,
            updated_at=now,
            finished_at=run.finished_at if exit_code is None else now,
        )
        replace(self._disk, self._path(run.run_id), _bytes(changed))
        return changed

    def finish(
        self,
        run: RunEntry,
        state: State,
        exit_code: int,
        *,
        counts: Mapping[str, int] | None = None,
        cost_usd: str | None = None,
        last_error: str | None = None,
    ) -> RunEntry:
        """It has ended."""
        return self.update(
            run, state=state, counts=counts, cost_usd=cost_usd, exit_code=exit_code, last_error=last_error
        )

    def forget(self, run: RunEntry) -> None:
        """A run that has no output and ended well leaves nothing to look at or to recover."""
        self._disk.unlink(self._path(run.run_id))

    def all(self) -> list[RunEntry]:
        """Newest first. A run that has not ended and whose lock is free is `interrupted`: its process is dead.

        Files that are no runs are passed over.
        """
        paths = reversed(paths_in(self.folder, "*.json"))
        runs = [run for path in paths if (run := _loaded(path)) is not None]
        return sorted(map(_as_it_is, runs), key=lambda run: run.started_at, reverse=True)

    def entry(self, run_id: UUID) -> RunEntry | None:
        """The run with this id; None when there is none, or its file says nothing."""
        return _loaded(self._path(run_id))

    def find(self, name: str) -> RunEntry:
        """The run with this id, or the newest of the job with this name.

        Raises:
            InputMissing: There is none.
        """
        return named(self.all(), name)

    def broken(self) -> list[Path]:
        """Files that stand among the entries and are none."""
        return [path for path in paths_in(self.folder, "*.json") if _loaded(path) is None]

    def is_registered(self, state: Path, *, without: UUID | None = None) -> bool:
        """Whether the newest run in this state folder has not finished.

        Args:
            without: Of a run that does not count: the one that asks.
        """
        runs = (run for run in self.all() if run.folder == state.absolute() and run.run_id != without)
        newest = next(runs, None)
        return newest is not None and newest.state in UNFINISHED

    def ledgers(self) -> set[str]:
        """Every ledger that a run was told to pay into."""
        return {run.ledger for run in self.all() if run.ledger}

    def _path(self, run_id: UUID) -> Path:
        return self.folder / f"{run_id}.json"


def named(runs: Sequence[RunEntry], name: str) -> RunEntry:
    """Of runs, the newest first, the one with this id, or the newest of the job with this name.

    Raises:
        InputMissing: There is none.
    """
    for run in runs:
        if name and name in (str(run.run_id), run.run_id.hex, run.job_id):
            return run
    raise InputMissing(f"no run and no job is called {name!r}", hint="see `embedctl batch list`")


def home_trust(paths: Paths, disk: Disk = DISK, *, run_id: UUID | None = None, make: bool = True) -> Trust:
    """Which journals and which ledgers this home knows as its own.

    Args:
        run_id: Of the run that asks, if one does: it is registered itself.
        make: See `journal.home_secret`.
    """
    runs = RunRegistry(paths.runs)

    def spools_known() -> dict[str, Path]:
        ledgers = {*runs.ledgers(), str(paths.ledger.absolute()), str((paths.home / LEDGER_NAME).absolute())}
        return {ledger: dataclasses.replace(paths, ledger=Path(ledger)).spool.absolute() for ledger in ledgers}

    return Trust(home_secret(paths.home, disk, make=make), partial(runs.is_registered, without=run_id), spools_known)


def recover_dead(
    runs_folder: Path, spool: Spool, trust: Trust, *, ledger: Path, observer: Observer = UNOBSERVED, disk: Disk = DISK
) -> int:
    """Put what dead runs spent into the spool; how many events were put.

    Args:
        ledger: Whose spool it is: runs of other ledgers are left for those.
        observer: Told what could not be read.

    A run whose lock is held lives, and does it itself. Segments with vectors of use stay: the next run on that
    output takes them. Everything that is left without use is removed.
    """
    put = 0
    for folder, keeps_vectors in _folders(RunRegistry(runs_folder, disk=disk).all(), str(ledger.absolute())).items():
        try:
            if not any(map(paths_in, journals(folder))):
                continue
            check_own(folder)
            with hold(folder / LOCK, command=RECOVERY):
                for journal in list(journals(folder)):
                    aside = journal.name != JOURNAL
                    owned = journal if aside else folder
                    give = segment_owners.routed(owned, spool, trust, ledger=ledger, disk=disk)
                    keeps = keeps_vectors and not aside
                    put += rescue(journal, give, trust, keeps_vectors=keeps, observer=observer, disk=disk)
                    forget_foreign(journal, disk)
        except (Locked, OutputRefused):  # it lives; or something else has taken its folder's place
            continue
    return put


def sweep(journals: Path, *, disk: Disk = DISK) -> int:
    """Remove the folders of calls without an output whose process is dead and whose journal holds nothing; how many.

    Args:
        journals: Where they are: `Paths.journal`.
    """
    gone = 0
    for folder in paths_in(journals):
        if not folder.is_dir() or is_held(folder / LOCK) or paths_in(folder / JOURNAL):
            continue
        try:
            with hold(folder / LOCK, command=RECOVERY):
                if not paths_in(folder / JOURNAL):
                    remove_tree(disk, folder)
                    gone += 1
        except (Locked, OutputRefused):  # it lives after all, or another one was faster
            continue
    return gone


def _folders(runs: Sequence[RunEntry], ledger: str) -> dict[Path, bool]:
    """State folders whose latest run pays into `ledger`, and whether any run there keeps its vectors."""
    payers: dict[Path, str] = {}
    folders: dict[Path, bool] = {}
    for run in runs:  # newest first
        if payers.setdefault(run.folder, run.ledger or ledger) == ledger:
            folders[run.folder] = folders.get(run.folder, False) or run.keeps_vectors
    return folders


def _as_it_is(run: RunEntry) -> RunEntry:
    if run.state in OPEN and not is_held(run.folder / LOCK):
        return dataclasses.replace(run, state="interrupted")
    return run


def _bytes(run: RunEntry) -> bytes:
    return to_json(run, option=orjson.OPT_INDENT_2, spelt=storable)


def _loaded(path: Path) -> RunEntry | None:
    try:
        content = read_small(path, max_bytes=MOST_BYTES, follow=False)
        run = from_json(content, RunEntry, hook=_decoded)
    except (OSError, ValueError):
        return None
    return dataclasses.replace(run, output=stored(run.output), ledger=stored(run.ledger))


def _decoded(kind: type, value: object) -> object:
    decode: Callable[[object], object] = kind
    return decode(stored(value) if kind is Path and isinstance(value, str) else value)

"""What runs spent whose folder is gone: from the copies of their attempts in the home.

A copy is of use only where its segment is not: one that is in the spool, or still in the folder of its run, is counted
from there. A segment has one id in all places, and a spool takes each id once, so nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

from embedctl.embedding import batch_lines
from embedctl.journal import batches
from embedctl.journal.commands import Spool
from embedctl.journal.recovery import recover_copy
from embedctl.journal.rescue import JOURNAL
from embedctl.journal.segments import COPY, INTENTS
from embedctl.journal.trust import Trust
from embedctl.records import UNOBSERVED, Observer, Warned
from embedctl.runs.registry import RunEntry, RunRegistry
from embedctl.storage import DISK, Disk, check_own_folder, paths_in


def recover_copies(
    attempts: Path,
    runs: RunRegistry,
    spool: Spool,
    trust: Trust,
    *,
    is_known: Callable[[str], bool],
    ledger: Path,
    observer: Observer = UNOBSERVED,
    disk: Disk = DISK,
) -> int:
    """Put what dead runs without a folder spent into the spool; how many events were put.

    After `recover_dead`. Copies that are of no use any more are removed.

    Args:
        attempts: Where copies are: `Paths.attempts`.
        is_known: Whether the spool has, or had, a segment of this id.
        ledger: Whose spool it is: runs of other ledgers are left for those.

    Raises:
        StorageFailed: A copy cannot be read.
        OutputRefused: Something else is in the place of their folder.
    """
    check_own_folder(attempts)
    put = 0
    gone: dict[str, int] = {}
    for path, segment_id in _copies(attempts):
        if is_known(segment_id):
            disk.unlink(path)
            continue
        segment = recover_copy(path, segment_id, trust)
        if segment is None:
            continue
        run = _run_of([event.run_id for event in segment.events], runs)
        if run is not None:
            if run.ledger not in ("", str(ledger.absolute())) or _is_there(run.folder, segment_id):
                continue
            gone[run.output] = gone.get(run.output, 0) + len(segment.events)
        if segment.events and spool(segment_id, segment.events):
            put += len(segment.events)
        disk.unlink(path)
    for output, count in gone.items():
        observer.notify(Warned("folder_gone", output, count=count))
    return put


def _copies(attempts: Path) -> Iterator[tuple[Path, str]]:
    """Every copy and its segment's id, oldest first."""
    return ((path, path.name.removesuffix(COPY)) for path in paths_in(attempts, f"*{COPY}"))


def _run_of(run_ids: list[UUID | None], runs: RunRegistry) -> RunEntry | None:
    """The run that all events of a segment are of."""
    run_id = next((one for one in run_ids if one is not None), None)
    return None if run_id is None else runs.entry(run_id)


def _is_there(state: Path, segment_id: str) -> bool:
    return (state / JOURNAL / f"{segment_id}{INTENTS}").exists()


def give_up_batches(copies: Path, spool: Spool, trust: Trust, *, ledger: Path, now: float, disk: Disk = DISK) -> int:
    """Book what batches of removed folders may have cost, once their results are gone; how many events were put.

    Until then `batch cancel` collects them, and they are told as under way. Files that say nothing more are removed.

    Args:
        copies: Where they are told of: `Paths.batches`.
        now: Unix seconds.
    """
    put = 0
    if not copies.is_dir():
        return 0
    check_own_folder(copies)
    for path, said, living in batches.known(copies, trust):
        if living or not said or any(Path(one.folder).is_dir() for one in said):
            continue
        pending = [one for one in said if one.pending]
        if any(one.lost_at > now or one.ledger != str(ledger.absolute()) for one in pending):
            continue
        events = [event for one in pending for event in batch_lines.given_up(one)]
        if events and spool(path.name.removesuffix(batches.BATCHES), events):
            put += len(events)
        disk.unlink(path)
    return put


def vanished(runs: Sequence[RunEntry]) -> list[RunEntry]:
    """Runs with an output that were killed and whose folder is gone: nothing of them goes on."""
    killed = (run for run in runs if run.output and run.keeps_vectors and run.finished_at is None)
    return [run for run in killed if not run.folder.exists()]

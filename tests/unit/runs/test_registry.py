"""Every run is found again, and a dead one's spend is not lost."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from embedctl import storage
from embedctl.errors import InputMissing, InvariantBroken
from embedctl.journal import Journal, recover
from embedctl.journal.rescue import JOURNAL, LOCK
from embedctl.records import UsageEvent, uuid7
from embedctl.runs.registry import RunEntry, RunRegistry, recover_dead, sweep
from embedctl.storage import DISK, Disk
from embedctl.storage.locks import Lock, hold, hold_folder
from tests.support.attempts import HASHES, SECRET, TRUST, die, intent, vectors
from tests.support.crashing import Crashed, CrashingDisk

LEDGER = Path("usage.duckdb")


@pytest.fixture
def runs(tmp_path: Path) -> RunRegistry:
    return RunRegistry(tmp_path / "home" / "runs")


def a_run(tmp_path: Path, job: str = "nightly", *, keeps_vectors: bool = True) -> RunEntry:
    folder = tmp_path / job / "_embedctl"
    folder.mkdir(parents=True, exist_ok=True)
    return RunEntry(
        run_id=uuid7(),
        job_id=job,
        folder=folder,
        output=str(folder.parent),
        model="fake:fake",
        command="batch run",
        keeps_vectors=keeps_vectors,
    )


def dead_journal(folder: Path) -> list[UsageEvent]:
    """One answered, one lost attempt of a process that is gone."""
    answered, lost = intent(), intent()

    async def run() -> None:
        book = Journal.open(folder / JOURNAL, secret=SECRET, spool=lambda *_: True)
        await book.intend(answered)
        await book.intend(lost)
        await book.answer(answered, HASHES, vectors(1))
        die(book)

    asyncio.run(run())
    return [answered, lost]


class Spool:
    def __init__(self) -> None:
        self.files: dict[str, list[UsageEvent]] = {}

    def __call__(self, segment_id: str, events: Sequence[UsageEvent]) -> bool:
        put = segment_id not in self.files
        self.files.setdefault(segment_id, list(events))
        return put


def test_a_run_is_found_by_its_id_and_its_job(tmp_path: Path, runs: RunRegistry) -> None:
    """A run is read back as it was registered; a job's name means its newest run."""
    first, second, other = a_run(tmp_path), a_run(tmp_path), a_run(tmp_path, "weekly")
    for run in (first, second, other):
        runs.register(dataclasses.replace(run, state="completed"))

    assert runs.find(str(first.run_id)) == dataclasses.replace(first, state="completed")
    assert runs.find("nightly").run_id == second.run_id
    assert [run.run_id for run in runs.all()] == [other.run_id, second.run_id, first.run_id]


def test_an_unknown_name_is_said(runs: RunRegistry) -> None:
    """A run nobody registered is exit 66, with a hint where to look."""
    with pytest.raises(InputMissing, match="'nightly'") as caught:
        runs.find("nightly")

    assert caught.value.exit_code == 66
    assert runs.all() == []


def test_a_run_id_is_registered_once(tmp_path: Path, runs: RunRegistry) -> None:
    """The same id twice is a bug."""
    run = a_run(tmp_path)
    runs.register(run)

    with pytest.raises(InvariantBroken):
        runs.register(run)


def test_a_run_without_its_process_is_interrupted(tmp_path: Path, runs: RunRegistry) -> None:
    """Accepted or running with a free lock is interrupted; with a held one it is what it says."""
    run = a_run(tmp_path)
    runs.register(run)
    with hold(run.folder / LOCK):
        running = runs.update(run, state="running", counts={"rows": 5}, cost_usd="0.25")
        alive = runs.find("nightly")

    assert alive == running
    assert (alive.state, alive.counts, alive.cost_usd) == ("running", {"rows": 5}, "0.25")
    assert runs.find("nightly").state == "interrupted"


def test_a_finished_run_stays_as_it_ended(tmp_path: Path, runs: RunRegistry) -> None:
    """The end keeps what was known before, and says when, how and why."""
    run = a_run(tmp_path)
    runs.register(run)
    run = runs.update(run, state="running", counts={"rows": 5})
    runs.finish(run, "partial", 3, last_error="one row was too long")
    found = runs.find("nightly")

    assert (found.state, found.exit_code, found.counts) == ("partial", 3, {"rows": 5})
    assert found.last_error == "one row was too long"
    assert found.finished_at is not None


def test_files_that_are_no_runs_are_passed_over(tmp_path: Path, runs: RunRegistry) -> None:
    """A broken or foreign file in the registry hides no run."""
    runs.register(a_run(tmp_path))
    for name, content in (("a.json", b"{"), ("b.json", b'{"run_id": 5}'), ("c.txt", b""), ("d.json", b"\xff")):
        (runs.folder / name).write_bytes(content)

    assert [run.job_id for run in runs.all()] == ["nightly"]


def test_the_spend_of_a_dead_run_reaches_the_spool_once(tmp_path: Path, runs: RunRegistry) -> None:
    """A dead run's attempts are spooled; recovering again puts nothing, and its vectors stay for the next run."""
    run = a_run(tmp_path)
    runs.register(run)
    answered, lost = dead_journal(run.folder)
    spool = Spool()

    put = recover_dead(runs.folder, spool, TRUST, ledger=LEDGER)
    again = recover_dead(runs.folder, spool, TRUST, ledger=LEDGER)
    (events,) = spool.files.values()

    assert (put, again) == (2, 0)
    assert {event.event_id: event.billable for event in events} == {
        answered.event_id: "yes",
        lost.event_id: "unknown",
    }
    assert len(list(recover(run.folder / JOURNAL, TRUST).answers)) == 1


def test_a_living_run_is_left_alone(tmp_path: Path, runs: RunRegistry) -> None:
    """While its lock is held, nobody else touches a run's journal."""
    run = a_run(tmp_path)
    runs.register(run)
    dead_journal(run.folder)
    spool = Spool()
    with hold(run.folder / LOCK):
        put = recover_dead(runs.folder, spool, TRUST, ledger=LEDGER)

    assert (put, spool.files) == (0, {})


def test_who_begins_waits_while_its_folder_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose new folder is taken for a dead one's and removed makes it again: it is not "already running"."""
    folder = tmp_path / "journals" / "new"
    folder.mkdir(parents=True)  # as far as the command has come: it holds no lock yet

    def slowly(disk: Disk, path: Path) -> None:
        begun.append(threads.submit(hold_folder, folder, LOCK, make=DISK.make_folder))
        time.sleep(0.3)
        storage.remove_tree(disk, path)

    begun: list[Future[Lock]] = []
    monkeypatch.setattr("embedctl.runs.registry.remove_tree", slowly)
    with ThreadPoolExecutor(1) as threads:
        gone = sweep(tmp_path / "journals")
        with begun[0].result() as lock:
            assert lock.is_ours

    assert gone == 1
    assert folder.is_dir()


def test_a_dead_run_pays_into_its_own_ledger(tmp_path: Path, runs: RunRegistry) -> None:
    """The spend of a run that named another ledger is left for that one."""
    run = dataclasses.replace(a_run(tmp_path), ledger=str(tmp_path / "other.duckdb"))
    runs.register(run)
    dead_journal(run.folder)
    mine, others = Spool(), Spool()
    put = [
        recover_dead(runs.folder, spool, TRUST, ledger=ledger)
        for spool, ledger in ((mine, LEDGER), (others, tmp_path / "other.duckdb"))
    ]

    assert put == [0, 2]
    assert mine.files == {}


def test_journals_whose_vectors_nobody_needs_are_removed(tmp_path: Path, runs: RunRegistry) -> None:
    """A search's or test's journal is gone once its events are spooled."""
    run = a_run(tmp_path, keeps_vectors=False)
    runs.register(run)
    dead_journal(run.folder)

    assert recover_dead(runs.folder, Spool(), TRUST, ledger=LEDGER) == 2
    assert list((run.folder / JOURNAL).iterdir()) == []


def test_a_crash_while_recovering_the_dead_loses_nothing(tmp_path: Path) -> None:
    """Killed at any operation of it, recovering again brings every attempt into the spool exactly once."""
    for at in range(1, 20):
        runs = RunRegistry(tmp_path / f"{at}" / "runs")
        run = a_run(tmp_path / f"{at}", keeps_vectors=False)
        runs.register(run)
        expected = {event.event_id for event in dead_journal(run.folder)}
        spool, disk = Spool(), CrashingDisk(at)
        try:
            recover_dead(runs.folder, spool, TRUST, ledger=LEDGER, disk=disk)
        except Crashed:
            recover_dead(runs.folder, spool, TRUST, ledger=LEDGER)
        events = [event for events in spool.files.values() for event in events]

        assert len(events) == 2
        assert {event.event_id for event in events} == expected
        assert list((run.folder / JOURNAL).iterdir()) == []
        if not disk.dead:
            assert at > 3
            return
    raise AssertionError("it never lived")

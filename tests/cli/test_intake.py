"""What was spent is in the ledger before anybody reads it, whoever reads, and whoever has died."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.journal import Journal, home_secret
from embedctl.journal.rescue import JOURNAL
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import UsageEvent, uuid7
from embedctl.runs.registry import RunEntry, RunRegistry
from tests.support.attempts import HASHES, die, intent, vectors
from tests.support.ledger_events import event, one, place, take

READERS = {
    "report": ["report"],
    "daily": ["daily"],
    "jobs": ["jobs"],
    "sql": ["sql", "SELECT count(*) FROM usage_event"],
    "metrics": ["metrics"],
    "budget list": ["budget", "list"],
    "budget check": ["budget", "check"],
    "drift": ["drift"],
    "explain": ["explain", str(uuid7())],
    "diff": ["diff", "--from", "2026-10", "--to", "2026-11"],
    "forecast": ["forecast"],
    "anomalies": ["anomalies"],
    "export": ["export", "-o", "focus.csv"],
    "backup": ["backup", "copy.duckdb"],
}


@pytest.fixture
def paths(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """The ledger of a home of its own; the current folder is the test's."""
    monkeypatch.chdir(tmp_path)
    return place(clean_environment)


def dead_run(home: Path, folder: Path, ledger: Path) -> list[UsageEvent]:
    """A run that was killed with one answered and one lost attempt."""
    run_id = uuid7()
    answered, lost = intent(run_id=run_id), intent(run_id=run_id)
    run = RunEntry(
        run_id=run_id, job_id="", folder=folder, output=str(folder.parent), ledger=str(ledger), state="running"
    )
    folder.mkdir(parents=True)

    async def run_until_killed() -> None:
        book = Journal.open(folder / JOURNAL, secret=home_secret(home), spool=lambda *_: True, copies=home / "attempts")
        await book.intend(answered)
        await book.intend(lost)
        await book.answer(answered, HASHES, vectors(1))
        die(book)

    asyncio.run(run_until_killed())
    RunRegistry(home / "runs").register(run)
    return [answered, lost]


@pytest.mark.parametrize("removed", [False, True], ids=["", "folder removed"])
@pytest.mark.parametrize("command", READERS, ids=list(READERS))
def test_who_reads_the_ledger_sees_what_dead_runs_have_spent(
    paths: LedgerPaths, tmp_path: Path, clean_environment: Path, command: str, removed: bool
) -> None:
    """Every command that reads the ledger takes in first, once, what a killed run has left, its folder there or not."""
    take(paths, event())
    dead_run(clean_environment, tmp_path / "out" / "_embedctl", paths.database)
    if removed:
        shutil.rmtree(tmp_path / "out")

    for _ in range(2):
        CliRunner().invoke(app, ["usage", *READERS[command]])

    assert one(paths, "SELECT count(*) FROM usage_event") == 3
    assert one(paths, "SELECT count(*) FROM usage_event WHERE status = 'interrupted' AND billable = 'unknown'") == 1


def test_a_run_whose_folder_is_gone_is_named(paths: LedgerPaths, tmp_path: Path, clean_environment: Path) -> None:
    """A killed run whose folder was removed is said when it is booked, and named by `usage doctor` from then on."""
    dead_run(clean_environment, tmp_path / "out" / "_embedctl", paths.database)
    shutil.rmtree(tmp_path / "out")

    told = CliRunner().invoke(app, ["usage", "ingest"])
    document = json.loads(CliRunner().invoke(app, ["usage", "doctor", "--json"]).stdout)
    findings = {one["check"]: one for one in document["findings"]}

    assert f"{tmp_path / 'out'} is gone" in " ".join(told.stderr.split())
    assert findings["killed runs"]["state"] == "look"
    assert str(tmp_path / "out") in findings["killed runs"]["detail"]
    assert one(paths, "SELECT count(*) FROM usage_event") == 2


def on_a_read_only_mount(paths: LedgerPaths, away: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`embedctl usage ARGUMENTS` where the ledger lies in a folder that is mounted read only."""
    away.mkdir()
    paths.database.rename(away / "usage.duckdb")
    mounted = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    shell = ["unshare", "-rm", "sh", "-c", mounted, str(away)]
    if subprocess.run([*shell, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces of mounts here")
    command = [sys.executable, "-m", "embedctl", "usage", *arguments, "--ledger", str(away / "usage.duckdb")]
    return subprocess.run([*shell, *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["report", "sql", "budget list", "budget check", "backup"])
def test_a_ledger_on_a_read_only_mount_is_read(paths: LedgerPaths, tmp_path: Path, command: str) -> None:
    """A ledger that may only be read is read as it is, with a word that nothing was taken in."""
    take(paths, event(tokens_total=4321, tokens_native=4321))

    told = on_a_read_only_mount(paths, tmp_path / "away", *READERS[command])

    assert told.returncode == 0, told.stderr
    assert "may only be read here: nothing was taken in" in " ".join((told.stdout + told.stderr).split())
    assert command != "report" or "4,321" in told.stdout
    assert not list((tmp_path / "away").glob("*.lock"))


def test_a_writer_of_a_read_only_ledger_is_told(paths: LedgerPaths, tmp_path: Path) -> None:
    """`usage ingest` of a ledger that may only be read ends with 74, and names its folder."""
    take(paths, event())

    told = on_a_read_only_mount(paths, tmp_path / "away", "ingest", "--json")

    assert told.returncode == 74
    assert str(tmp_path / "away") in json.loads(told.stdout)["message"]

"""Money that was lost from sight is said, in the run, in reports and by `usage doctor`, with how much it is."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from embedctl.errors import OutputRefused
from embedctl.journal import Journal, home_secret
from embedctl.journal.segments import INTENTS
from embedctl.ledger import budget_copy, database, missing, spool
from embedctl.ledger.ingest import ingest
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import uuid7
from embedctl.runs.registry import RunEntry, RunRegistry
from tests.support.attempts import die, intent
from tests.support.running import embedctl

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def home(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return clean_environment


@pytest.fixture
def paths(home: Path) -> LedgerPaths:
    home.mkdir(exist_ok=True)
    return LedgerPaths(home / "usage.duckdb", home / "spool", home / "prices.toml")


def spent(paths: LedgerPaths, tokens: int) -> None:
    """An event on its way to the ledger."""
    event = intent(provider="openai", model="text-embedding-3-small", tokens_total=tokens, tokens_native=tokens)
    spool.publish(paths.spool, uuid7().hex, [event])


def report() -> Any:
    return embedctl("usage", "report", "--json").json


def finding(name: str) -> Any:
    found = embedctl("usage", "doctor", "--json").json["findings"]
    return next(one for one in found if one["check"] == name)


def test_a_ledger_that_was_deleted_is_filled_again(paths: LedgerPaths) -> None:
    """What had been taken in is taken in again from what the spool keeps, and the report says so."""
    spent(paths, 100)
    assert report()["totals"]["tokens"] == 100
    paths.database.unlink()

    told = report()

    assert told["totals"]["tokens"] == 100
    assert any("1 events that had been taken in were not in the ledger" in one for one in told["warnings"])
    assert not any("taken in" in one for one in report()["warnings"])


def test_a_ledger_that_was_restored_is_filled_again(paths: LedgerPaths) -> None:
    """A copy of an earlier day lacks what came after: `usage doctor` says how much, the report takes it in."""
    spent(paths, 100)
    report()
    shutil.copy(paths.database, paths.database.with_name("copy"))
    spent(paths, 11)
    assert report()["totals"]["tokens"] == 111
    paths.database.with_name("copy").replace(paths.database)

    said = finding("kept spool")
    told = report()

    assert (said["state"], said["detail"]) == ("look", "1 spool file is missing from it (`usage ingest`)")
    assert told["totals"]["tokens"] == 111
    assert len([one for one in told["warnings"] if "taken in" in one]) == 1
    assert finding("kept spool")["state"] == "ok"


def test_events_count_once_whatever_is_taken_in_again(paths: LedgerPaths) -> None:
    """Filling a ledger up is idempotent, also when a kill comes between the files."""
    for tokens in (1, 2, 4):
        spent(paths, tokens)
    assert ingest(paths, now=NOW).events == 3
    for name in sorted(paths.done.iterdir())[:2]:
        with database.writer(paths, wait_s=1, now=NOW) as connection:
            connection.execute("DELETE FROM spool_offset WHERE spool_id = ?", [spool.spool_id(name)])
    assert missing.count(paths, now=NOW) == 2

    again = ingest(paths, now=NOW)

    assert (again.events, again.repeated, again.returned) == (0, 2, 0)
    assert missing.count(paths, now=NOW) == 0
    assert again.notes() == []


def test_a_ledger_younger_than_its_events_says_so(paths: LedgerPaths) -> None:
    """Made anew, it holds what the spool had kept: that something may be missing from before is a finding."""
    spent(paths, 1)
    old = uuid7((datetime.now(UTC) - timedelta(days=3)).timestamp()).hex
    assert finding("history")["state"] == "ok"
    spool.publish(paths.spool, old, [intent()])
    ingest(paths, now=datetime.now(UTC))

    assert finding("history")["state"] == "look"
    assert "made anew on" in finding("history")["detail"]


def test_what_a_damaged_journal_does_not_tell_is_reported(home: Path, paths: LedgerPaths, tmp_path: Path) -> None:
    """Bytes of a dead run's journal that cannot be read are unknown in the ledger, reports and doctor."""
    state = tmp_path / "out" / "_embedctl"

    async def killed() -> None:
        book = Journal.open(state / "journal", secret=home_secret(home), spool=lambda *_: True)
        for number in range(6):
            await book.intend(intent(provider="openai", model="text-embedding-3-small", operation_id=f"{number}"))
        die(book)

    asyncio.run(killed())
    (state / "lock").write_bytes(b"")
    run = RunEntry(run_id=uuid7(), job_id="", folder=state, output="out", ledger=str(paths.database), state="running")
    RunRegistry(home / "runs").register(run)
    (intents,) = (state / "journal").glob(f"*{INTENTS}")
    content = bytearray(intents.read_bytes())
    begin = content.index(b'"operation_id":"2"')
    content[begin : begin + 1000] = bytes(1000)
    intents.write_bytes(content)

    taken = embedctl("usage", "ingest")
    told = report()

    assert "cannot be read: what was spent for them is counted as unconfirmed" in taken.err
    assert told["totals"]["tokens_unknown"] == 6 * 30
    assert any("of killed runs could not be read: up to 2 attempts" in one for one in told["warnings"])
    assert finding("journals")["state"] == "look"
    assert "could not be read" in finding("journals")["detail"]


def test_foreign_journals_and_broken_entries_are_counted(home: Path, paths: LedgerPaths, tmp_path: Path) -> None:
    """`usage doctor` names journals that were set aside, and entries of the registry that say nothing."""
    state = tmp_path / "out" / "_embedctl"
    aside = state / "foreign-1"
    aside.mkdir(parents=True)
    RunRegistry(home / "runs").register(
        RunEntry(run_id=uuid7(), job_id="", folder=state, output="out", state="completed")
    )
    (home / "runs" / "x.json").write_bytes(b"{")
    os.mkfifo(home / "runs" / "y.json")

    assert finding("foreign journals")["detail"] == f"1 set aside, not counted: {aside}"
    assert finding("run registry")["detail"] == "2 entries cannot be read: x.json, y.json"


# R15: helper files


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file that nothing here may touch."""
    path = tmp_path / "bashrc"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


def planted(victim: Path, *names: Path) -> None:
    for name in names:
        name.symlink_to(victim)


def test_no_helper_file_of_a_ledger_goes_through_a_link(tmp_path: Path, victim: Path, home: Path) -> None:
    """Names beside a ledger that could be guessed once are links now: they are left alone, and what they lead to."""
    near = tmp_path / "project"
    near.mkdir()
    ledger = near / "u.duckdb"
    names = [f".u.duckdb.{word}" for word in ("batch", "new", "new.wal")]
    planted(victim, *(near / name for name in names), near / f".copy.duckdb.{os.getpid()}.tmp")
    planted(victim, near / f"tmp_.tmp-out.parquet.{os.getpid()}", near / f".tmp-out.parquet.{os.getpid()}")
    there = LedgerPaths(ledger, near / "u.duckdb.spool", home / "prices.toml")
    spent(there, 7)

    assert embedctl("usage", "ingest", "--ledger", ledger).code == 0
    assert embedctl("usage", "backup", "--ledger", ledger, near / "copy.duckdb").code == 0
    exported = embedctl("usage", "export", "--format", "parquet", "--ledger", ledger, "-o", near / "out.parquet")

    assert exported.code == 0, exported.err
    assert not [path for path in near.iterdir() if path.name.startswith((".tmp-0", "tmp_")) and not path.is_symlink()]


@pytest.mark.parametrize("name", ["u.duckdb.lock", "u.duckdb.spool", "u.duckdb.budgets"])
def test_lock_and_spool_are_no_links(tmp_path: Path, victim: Path, home: Path, name: str) -> None:
    """Lock, spool and budgets beside a ledger in a foreign folder are not followed."""
    near = tmp_path / "project"
    near.mkdir()
    target = victim if name != "u.duckdb.spool" else tmp_path / "elsewhere"
    if target != victim:
        target.mkdir()
    (near / name).symlink_to(target)
    (tmp_path / "notes.txt").write_text("a line")

    done = embedctl("embed", tmp_path / "notes.txt", "-o", tmp_path / "o.parquet", "--ledger", near / "u.duckdb")

    assert done.code in (0, 73, 74)
    if target != victim:
        assert list(target.iterdir()) == []


def test_a_pipe_in_the_spool_is_passed_over(paths: LedgerPaths) -> None:
    """A FIFO, a folder or a link among spool files is named, and the others are taken in."""
    spent(paths, 5)
    os.mkfifo(paths.spool / "a.spool")
    (paths.spool / "b.spool").mkdir()
    (paths.spool / "c.spool").symlink_to("/dev/zero")

    told = report()

    assert told["totals"]["tokens"] == 5
    assert len([one for one in told["warnings"] if "spool file not read" in one]) == 3


# R26: budgets


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[", b'["x"]', b"[[]]", b'[{"amount": "NaN", "warn_ratio": "0.8"}]', b"[" * 50_000,
        b'[{"amount": "1e99999999", "warn_ratio": "0.8", "workspace": "a", "period": "day", "action": "warn"}]',
    ],
)  # fmt: skip
def test_a_broken_copy_of_budgets(paths: LedgerPaths, content: bytes) -> None:
    """A copy of the budgets that somebody broke gives none back, and never ends in a traceback."""
    spent(paths, 1)
    ingest(paths, now=NOW)
    paths.limits.write_bytes(content)
    with database.writer(paths, wait_s=1, now=NOW) as connection:
        assert budget_copy.restore(connection, paths) == 0
    assert budget_copy.there_are(paths) in (True, False)
    assert embedctl("usage", "ingest", "--rebuild").code == 0


def test_shared_budgets_hold_amounts(tmp_path: Path) -> None:
    """A file of shared budgets with numbers that no ledger holds is as good as empty."""
    from embedctl.budgets.shared import SharedBudget

    path = tmp_path / "u.duckdb.budgets"
    for amount in ("NaN", "Infinity", "1e999999", "-1e20"):
        path.write_bytes(orjson.dumps({"bases": {"a/day": amount}, "shares": {}}))
        shared = SharedBudget(path, "run", tmp_path)
        with shared.open() as sums:
            assert sums.spent("a", "day") == 0
        shared.close()


def test_a_spool_of_another_user_is_refused(paths: LedgerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put into a spool folder that is another user's."""
    spent(paths, 1)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)

    with pytest.raises(OutputRefused, match="another user's"):
        spent(paths, 1)


def test_lines_that_could_not_be_read_are_said_by_reports(paths: LedgerPaths) -> None:
    """What a spool file lost is said by each report of its time, not only by the command that took it in."""
    whole = spool.line(intent(provider="openai", model="text-embedding-3-small"))
    began = datetime(2026, 11, 15, 12, tzinfo=UTC).timestamp()
    paths.spool.mkdir()
    (paths.spool / f"{uuid7(began).hex}.spool").write_bytes(whole + whole[:40] + b"\n")
    embedctl("usage", "ingest")

    def warnings(*flags: str) -> str:
        return " ".join(embedctl("usage", "report", "--json", *flags).json["warnings"])

    assert "1 spool lines were damaged" in warnings()
    assert "1 spool lines were damaged" in warnings("--since", "2026-11-15", "--until", "2026-11-16")
    assert "spool lines" not in warnings("--since", "2026-11-16", "--until", "2026-11-17")

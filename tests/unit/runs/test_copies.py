"""What a living run spends stands in the home, too: no folder of the user's holds the only copy."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from embedctl.journal import Journal, Trust
from embedctl.journal.recovery import recover_copy
from embedctl.journal.rescue import JOURNAL, LOCK
from embedctl.journal.segments import COPY
from embedctl.records import UNOBSERVED, Observer, UsageEvent, Warned, uuid7
from embedctl.runs.copies import recover_copies, vanished
from embedctl.runs.registry import RunEntry, RunRegistry, recover_dead
from embedctl.storage.locks import hold
from tests.support.attempts import HASHES, SECRET, TRUST, die, intent, vectors
from tests.support.observing import Kept

LEDGER = Path("usage.duckdb").absolute()


class Home:
    """A home with one run, and a ledger that is only what its spool was given."""

    def __init__(self, folder: Path, ledger: Path = LEDGER) -> None:
        self.attempts = folder / "home" / "attempts"
        self.runs = RunRegistry(folder / "home" / "runs")
        self.state = folder / "out" / "_embedctl"
        self.run = RunEntry(
            run_id=uuid7(),
            job_id="nightly",
            folder=self.state,
            output=str(folder / "out"),
            ledger=str(ledger),
            state="running",
        )
        self.state.mkdir(parents=True)
        self.runs.register(self.run)
        self.spooled: dict[str, list[UsageEvent]] = {}

    def put(self, segment_id: str, events: Sequence[UsageEvent]) -> bool:
        """The spool."""
        put = segment_id not in self.spooled
        self.spooled.setdefault(segment_id, list(events))
        return put

    def attempt(self, **about: object) -> UsageEvent:
        return intent(run_id=self.run.run_id, **about)

    def journal(self) -> Journal:
        return Journal.open(self.state / JOURNAL, secret=SECRET, spool=self.put, copies=self.attempts)

    def recover(self, trust: Trust = TRUST, ledger: Path = LEDGER, observer: Observer = UNOBSERVED) -> int:
        """What every command does first."""
        put = recover_dead(self.runs.folder, self.put, trust, ledger=ledger)
        return put + recover_copies(
            self.attempts,
            self.runs,
            self.put,
            trust,
            is_known=self.spooled.__contains__,
            ledger=ledger,
            observer=observer,
        )

    def copies(self) -> list[Path]:
        return sorted(self.attempts.glob(f"*{COPY}"))


def killed(home: Home) -> tuple[UsageEvent, UsageEvent, UsageEvent]:
    """One attempt that was answered, one that was refused, one that was in flight when the process died."""
    answered, refused, flying = home.attempt(), home.attempt(), home.attempt()

    async def run() -> None:
        book = home.journal()
        for one in (answered, refused, flying):
            await book.intend(one)
        await book.answer(answered, HASHES, vectors(1))
        await book.settle(refused)
        die(book)

    asyncio.run(run())
    return answered, refused, flying


def test_a_run_whose_folder_is_removed_is_booked_from_the_home(tmp_path: Path) -> None:
    """Killed, and its folder removed: what was answered is confirmed, what was in flight is perhaps billed, once."""
    home, told = Home(tmp_path), Kept()
    answered, refused, flying = killed(home)
    shutil.rmtree(tmp_path / "out")

    put, again = home.recover(observer=told), home.recover()

    [events] = home.spooled.values()
    assert (put, again) == (3, 0)
    assert events[:2] == [answered, refused]
    assert (events[2].event_id, events[2].status, events[2].billable) == (flying.event_id, "interrupted", "unknown")
    assert events[2].tokens_estimated == flying.tokens_estimated
    assert told.events == [Warned("folder_gone", str(tmp_path / "out"), count=3)]
    assert home.copies() == []
    assert [run.run_id for run in vanished(home.runs.all())] == [home.run.run_id]


def test_a_folder_that_is_there_comes_first(tmp_path: Path) -> None:
    """With folder and copy both there, the folder's journal is taken, and nothing is counted twice."""
    home = Home(tmp_path)
    killed(home)

    put = home.recover()

    assert put == 3
    assert len(home.spooled) == 1
    assert home.copies() == []
    assert vanished(home.runs.all()) == []


def test_a_folder_that_somebody_works_in_is_waited_for(tmp_path: Path) -> None:
    """While another run continues there, the folder's journal is that one's to book, and the copy stays for later."""
    home = Home(tmp_path)
    killed(home)
    with hold(home.state / LOCK):
        put, left = home.recover(), len(home.copies())

    assert (put, left, home.recover()) == (0, 1, 3)


def test_a_folder_that_comes_back_is_not_counted_again(tmp_path: Path) -> None:
    """A drive that was away while its run was booked adds nothing when it is there again."""
    home = Home(tmp_path)
    killed(home)
    (tmp_path / "out").rename(tmp_path / "away")
    first = home.recover()
    (tmp_path / "away").rename(tmp_path / "out")

    assert (first, home.recover()) == (3, 0)
    assert len(home.spooled) == 1


def test_a_living_run_is_left_alone(tmp_path: Path) -> None:
    """A copy that a living process writes is not taken in, though the folder was removed under its feet."""
    home = Home(tmp_path)

    async def run() -> int:
        book = home.journal()
        await book.intend(home.attempt())
        shutil.rmtree(tmp_path / "out")
        put = home.recover()
        die(book)
        return put

    assert asyncio.run(run()) == 0
    assert home.recover() == 1


def test_a_copy_goes_with_its_segment(tmp_path: Path) -> None:
    """Once its events are in the spool, the home holds no copy of them."""
    home = Home(tmp_path)

    async def run() -> int:
        book = home.journal()
        one = home.attempt()
        await book.intend(one)
        there = len(home.copies())
        await book.answer(one, HASHES, vectors(1))
        await book.close()
        return there

    assert asyncio.run(run()) == 1
    assert home.copies() == []
    assert len(home.spooled) == 1


def test_a_copy_is_for_the_ledger_of_its_run(tmp_path: Path) -> None:
    """A run that paid into another ledger is left for that one."""
    home = Home(tmp_path)
    killed(home)
    shutil.rmtree(tmp_path / "out")

    assert home.recover(ledger=tmp_path / "other.duckdb") == 0
    assert home.recover() == 3


@pytest.mark.parametrize("secret", [SECRET[::-1], None], ids=["another home's", "a journal's file"])
def test_only_what_the_home_has_written_is_a_copy(tmp_path: Path, secret: bytes | None) -> None:
    """A file made with another secret, or as another kind of file, books nothing, and stays."""
    home = Home(tmp_path)
    killed(home)
    [copy] = home.copies()
    segment_id = copy.name.removesuffix(COPY)
    if secret is None:
        intents = next((home.state / JOURNAL).glob("*.intents"))
        copy.write_bytes(intents.read_bytes())
    shutil.rmtree(tmp_path / "out")

    trust = TRUST if secret is None else Trust(secret)

    assert recover_copy(copy, segment_id, trust) is None
    assert home.recover(trust=trust) == 0
    assert home.copies() == [copy]

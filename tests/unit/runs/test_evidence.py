"""What a run finds in its output's state is evidence only as far as it is its own, whole, and of one reading."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import StorageFailed
from embedctl.journal import Journal, Trust, home_secret
from embedctl.journal.segments import Segment
from embedctl.planning import slice as slices
from embedctl.records import Event, Warned, text_hash
from embedctl.runs.receipt import Receipt
from embedctl.runs.run import Run
from embedctl.storage import DISK, Disk
from tests.support.attempts import die, intent
from tests.support.crashed_runs import Small
from tests.support.processes import sentence
from tests.support.wire.client import Wire, hash_of, started

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEXTS = [sentence(number) for number in range(30)]


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as wire:
        yield wire


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)


@pytest.fixture(params=["folder", "file"])
def small(request: pytest.FixtureRequest, tmp_path: Path, server: Wire) -> Small:
    server.reset()
    world = Small(tmp_path, server, request.param)
    world.fill(TEXTS)
    return world


@pytest.fixture
def batch(tmp_path: Path, server: Wire) -> Small:
    server.reset()
    world = Small(tmp_path, server)
    world.fill(TEXTS)
    return world


class Told:
    def __init__(self) -> None:
        self.warned: list[Warned] = []

    def notify(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warned.append(event)

    @property
    def concerns(self) -> list[str]:
        return [one.concern for one in self.warned]


def ran(world: Small, told: Told | None = None, disk: Disk = DISK, **about: Any) -> Receipt:
    run = Run(world.order(**about), told or Told(), disk=disk, ingest=world._take_in, segment_bytes=1)
    return run.execute(asyncio.run)


def asked(world: Small) -> list[str]:
    return sorted(h for one in world.wire.truth() for h in one["text_hashes"])


class NoSecondPart(Disk):
    """The disk is full when the second part is put."""

    def link(self, source: Path, target: Path) -> bool:
        if target.name == "part-000001.parquet":
            raise StorageFailed("no space left")
        return super().link(source, target)


def forged(folder: Path, texts: Sequence[str], secret: bytes, **about: Any) -> None:
    """A journal that somebody else made: a billion tokens, and vectors for texts of ours."""
    import numpy as np

    async def run() -> None:
        book = Journal.open(folder, secret=secret, spool=lambda *_: True)
        event = intent(provider="openai", model="text-embedding-3-small", input_count=len(texts), **about)
        await book.intend(event)
        done = dataclasses.replace(event, tokens_total=10**9)
        hashes = b"".join(map(text_hash, texts))
        await book.answer(done, hashes, np.ones((len(texts), 8), np.float32))
        await book.sync()
        die(book)

    asyncio.run(run())


# R3


def test_a_planted_journal_is_set_aside(small: Small) -> None:
    """Nothing of a foreign journal is spooled or used; the run buys its own vectors, and says where the files are."""
    (small.state / "journal").mkdir(parents=True)
    forged(small.state / "journal", TEXTS, os.urandom(32), workspace_id="victim")
    elsewhere = small.folder / "elsewhere" / "deep" / "er"
    owner = {"ledger": str(small.folder / "x.duckdb"), "spool": str(elsewhere)}
    (small.state / "ledger.json").write_bytes(orjson.dumps({"now": owner, "earlier": {}}))
    told = Told()

    ended = ran(small, told)

    assert (ended.exit_code, ended.reused) == (0, 0)
    assert asked(small) == sorted(map(hash_of, TEXTS))
    assert not (small.folder / "elsewhere").exists()
    assert {event["workspace_id"] for file in small.books.values() for event in file} == {"default"}
    small.check_bill()
    small.check_rows(TEXTS)
    (aside,) = small.state.glob("foreign-*")
    assert [(one.concern, one.subject) for one in told.warned] == [("foreign_journal", str(aside))]
    assert len(list(aside.glob("*.v2.*"))) == 2


def test_a_dead_run_s_owner_is_a_ledger_that_is_known(batch: Small) -> None:
    """`ledger.json` may name only ledgers of the registry and the settings; what it says of a spool counts not."""
    journal = batch.state / "journal"
    journal.mkdir(parents=True)
    forged(journal, TEXTS[:1], home_secret(batch.folder / "home"))
    elsewhere = batch.folder / "elsewhere"
    for ledger in (batch.folder / "x.duckdb", batch.folder / "home" / "usage.duckdb"):
        ledger.parent.mkdir(exist_ok=True)
        ledger.write_bytes(b"")
        owner = {"ledger": str(ledger), "spool": str(elsewhere)}
        (batch.state / "ledger.json").write_bytes(orjson.dumps({"now": owner, "earlier": {}}))
        (batch.folder / "home" / "usage.duckdb").unlink(missing_ok=True)
        ran(batch)

    assert not elsewhere.exists()
    assert any(event.get("tokens_total") == 10**9 for file in batch.books.values() for event in file)


# R11


def test_damage_is_said(batch: Small) -> None:
    """A run that goes on after a damaged one says how many bytes it could not read, and counts them as unknown."""
    assert ran(batch, disk=NoSecondPart()).exit_code == 74
    batch._take_in = lambda paths: None  # type: ignore[method-assign]
    (journal,) = [path for path in (batch.state / "journal").glob("*.answers") if path.stat().st_size][:1]
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    told = Told()

    ended = ran(batch, told)

    assert ended.exit_code == 0
    assert told.concerns == ["damaged_journal"]
    assert 0 < told.warned[0].count <= len(content)
    batch.check_rows(TEXTS)


# R16


def test_a_journal_that_changes_while_a_run_goes_on(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that change between the answer and the part end the run with 74; the next one publishes what is right."""
    original = Segment.sync
    done: list[Path] = []

    def sync(segment: Segment) -> None:
        original(segment)
        path = segment.folder / segment.names[1]
        size = segment.answers.end if segment.answers else 0
        if not done and size > 600:
            with path.open("r+b") as file:
                file.seek(size - 40)
                file.write(bytes(20))
            done.append(path)

    with monkeypatch.context() as damaging:
        damaging.setattr(Segment, "sync", sync)
        ended = ran(small)

    assert done
    assert ended.exit_code == 74
    assert "changed after it was written" in str(ended.error)
    assert ran(small).exit_code == 0
    small.check_rows(TEXTS)
    small.check_bill()


# R21


def test_a_lock_that_was_removed_is_taken_anew(batch: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaner that removes the lock while a run goes on does no harm, as long as nobody else comes."""
    removed: list[Path] = []

    class Cleaner:
        def notify(self, event: Event) -> None:
            if not removed and (batch.state / "lock").exists():
                (batch.state / "lock").unlink()
                removed.append(batch.state / "lock")

    run = Run(batch.order(), Cleaner(), ingest=batch._take_in, segment_bytes=1)
    ended = run.execute(asyncio.run)

    assert removed
    assert ended.exit_code == 0
    assert removed[0].exists()
    batch.check_bill()


def test_a_run_whose_lock_another_holds_spools_nothing(batch: Small) -> None:
    """When another run has taken the lock's place, this one ends with 75, and its segments stay to be recovered."""

    class Rival:
        one_at_a_time = threading.Lock()  # events come from several threads

        def notify(self, event: Event) -> None:
            lock = batch.state / "lock"
            with self.one_at_a_time:
                if lock.exists() and b"rival" not in lock.read_bytes():
                    lock.unlink()
                    lock.write_bytes(b"rival")

    run = Run(batch.order(), Rival(), ingest=batch._take_in, segment_bytes=1)
    ended = run.execute(asyncio.run)
    again = ran(batch)

    assert ended.exit_code == 75
    assert again.exit_code == 0
    batch.check_rows(TEXTS)
    batch.check_bill()


def test_the_segments_of_a_living_run_are_not_taken(batch: Small) -> None:
    """A second run that does not see the first one's lock ends with 75, and takes none of its segments for dead."""
    journal = batch.state / "journal"
    journal.mkdir(parents=True)
    secret = home_secret(batch.folder / "home")
    spooled: list[int] = []

    async def run() -> int:
        book = Journal.open(journal, secret=secret, spool=lambda _, events: bool(spooled.append(len(events)) or 1))
        await book.intend(intent())
        ended = await asyncio.to_thread(ran, batch)
        await book.close()
        assert "another process writes" in str(ended.error)
        return ended.exit_code

    assert asyncio.run(run()) == 75
    assert asked(batch) == []
    assert spooled == [1]


# R22


def write(path: Path, texts: Sequence[str], first: int) -> None:
    table = pa.table({"id": list(range(first, first + len(texts))), "text": list(texts)})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)


def test_rows_of_a_resumed_run_belong_to_one_reading(batch: Small) -> None:
    """An input that was replaced by one of the same size and time is seen in passing: all is planned anew."""
    path = batch.folder / "in" / "0.parquet"
    write(path, TEXTS[:10], 0)
    before = path.stat()
    assert ran(batch, disk=NoSecondPart()).exit_code == 74
    seen = len(asked(batch))
    others = [text.upper() for text in TEXTS[:10]]
    write(path, others, 0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    told = Told()

    ended = ran(batch, told)

    assert ended.exit_code == 0
    assert told.concerns == ["input_differs"]
    batch.check_rows([*others, *TEXTS[10:]])
    assert len(asked(batch)) - seen <= 10 + (30 - seen)
    batch.check_no_leftovers()
    batch.check_bill()


def test_fewer_rows_than_were_published(batch: Small) -> None:
    """Counts of a part that the input does not bear out are a change of the input, and no row is left out."""
    assert ran(batch, disk=NoSecondPart()).exit_code == 74
    part = batch.output / "part-000000.parquet"
    table = pq.read_table(part)
    told = orjson.loads(pq.read_metadata(part).metadata[b"embedctl"])
    del told["rows_hash"]  # as an older version left it
    told["counts"]["read"] = told["counts"]["skipped"] = 10**6
    told["counts"]["read"] += told["counts"]["embedded"] + told["counts"]["failed"]
    pq.write_table(table.replace_schema_metadata({b"embedctl": orjson.dumps(told)}), part)
    said = Told()

    assert ran(batch, said).exit_code == 0
    assert said.concerns == ["input_differs"]
    batch.check_rows(TEXTS)


# R26


@pytest.mark.parametrize(
    "commit",
    [
        b"", b"{", b"[]", b"null", b'{"parts": 1000000000, "failures": false, "record": {}}',
        b'{"parts": -1, "failures": false, "record": {}}', b'{"parts": "x", "failures": false, "record": {}}',
        b'{"parts": 0, "failures": false, "record": {}}', b"[" * 100_000,
        b'{"parts": 0, "failures": false, "record": {}, "seal": "00000000000000000000000000000000"}',
    ],
)  # fmt: skip
def test_a_commit_record_that_is_not_ours(batch: Small, commit: bytes) -> None:
    """Whatever stands in commit.json: no part is removed for it, nothing hangs, it is set aside, the run goes on."""
    assert ran(batch).exit_code == 0
    shown, told = batch.shown(), Told()
    (batch.state / "commit.json").write_bytes(commit)

    ended = ran(batch, told)

    assert (ended.exit_code, ended.requests) == (0, 0)
    assert batch.shown() == shown
    assert told.concerns == ["set_aside"]
    assert Path(told.warned[0].subject).read_bytes() == commit


@pytest.mark.parametrize(
    "counts",
    [
        {"read": 99, "embedded": 99, "vectors": 99}, {"read": 30, "embedded": 30, "vectors": 31}, {"read": "x"},
        {"read": -1, "failed": -1}, {"read": 5}, {"other": 1}, {"read": 1e9}, {"read": True, "failed": True},
    ],
)  # fmt: skip
def test_forged_counts_are_not_the_receipt(batch: Small, counts: dict[str, Any]) -> None:
    """A run record whose counts are not those of the parts counts for nothing; the receipt tells what is there."""
    assert ran(batch).exit_code == 0
    record = orjson.loads((batch.state / "run.json").read_bytes())
    (batch.state / "run.json").write_bytes(orjson.dumps(record | {"counts": counts}))

    again = ran(batch)

    assert (again.exit_code, again.rows, again.vectors, again.requests) == (0, 30, 30, 0)


def test_an_older_commit_counts_where_the_home_knows_the_run(batch: Small) -> None:
    """A commit record of this home is sealed; its seal holds for nothing else."""
    from embedctl.outputs.folder import Commit

    secret = os.urandom(32)
    content = Commit(2, False, {"x": 1}).encoded(secret)
    known, unknown = Trust(secret, lambda _: True), Trust(secret)

    assert Commit.decoded(content, unknown, batch.state) == Commit(2, False, {"x": 1})
    assert Commit.decoded(content.replace(b'"parts":2', b'"parts":3'), known, batch.state) is None
    assert Commit.decoded(content, Trust(os.urandom(32), lambda _: True), batch.state) is None
    plain = orjson.dumps({"parts": 2, "failures": False, "record": {"x": 1}})
    assert Commit.decoded(plain, known, batch.state) == Commit(2, False, {"x": 1})
    assert Commit.decoded(plain, unknown, batch.state) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"now": 5}', b"[" * 100_000])
def test_broken_owners_are_set_aside(batch: Small, content: bytes) -> None:
    """A `ledger.json` that says nothing is set aside with a word, and the run goes on under the ledger of now."""
    assert ran(batch, disk=NoSecondPart()).exit_code == 74
    (batch.state / "ledger.json").write_bytes(content)
    told = Told()

    assert ran(batch, told).exit_code == 0
    assert told.concerns == ["set_aside"]
    batch.check_bill()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"counts": {}, "counts": 5}', b"[" * 100_000])
def test_a_broken_record_is_set_aside(batch: Small, content: bytes) -> None:
    """A `run.json` that says nothing is set aside with a word; parts speak for themselves, and nothing is bought."""
    assert ran(batch).exit_code == 0
    (batch.state / "run.json").write_bytes(content)
    told = Told()

    again = ran(batch, told)

    assert (again.exit_code, again.requests) == (0, 0)
    assert told.concerns == ["set_aside"]
    assert Path(told.warned[0].subject).read_bytes() == content

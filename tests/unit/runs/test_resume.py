"""A command run again: it continues, embeds what is new, or does nothing. In one process, with a real provider."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl import tokens
from embedctl.errors import EmbedctlError, InputChanged, InputInvalid, OutputRefused, StorageFailed
from embedctl.planning import slice as slices
from embedctl.planning import splitter
from embedctl.records import AttemptEnded, Event, uuid7
from embedctl.runs.receipt import Receipt
from embedctl.runs.run import Run
from embedctl.runs.slices import OPEN_SLICES
from embedctl.storage import Disk
from tests.support.crashed_runs import MODEL, CrashingDisk, Small
from tests.support.observing import Kept
from tests.support.processes import sentence
from tests.support.serving import until
from tests.support.wire.client import Wire, hash_of, started

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEXTS = [sentence(number) for number in range(30)]


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as wire:
        yield wire


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.reset()
    return server


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)


@pytest.fixture(params=["folder", "file"])
def small(request: pytest.FixtureRequest, tmp_path: Path, wire: Wire) -> Small:
    """An input of three files, nothing embedded yet; `batch`, and `embed`."""
    world = Small(tmp_path, wire, request.param)
    world.fill(TEXTS)
    return world


@pytest.fixture
def batch(tmp_path: Path, wire: Wire) -> Small:
    world = Small(tmp_path, wire)
    world.fill(TEXTS)
    return world


def receipt(ended: object) -> Receipt:
    assert isinstance(ended, Receipt), ended
    return ended


def error(ended: object) -> EmbedctlError:
    assert isinstance(ended, EmbedctlError), ended
    return ended


def stamps(world: Small) -> list[tuple[str, int, int]]:
    paths = [*world.output.glob("part-*"), *world.folder.glob("out.parquet")]
    return sorted((path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in paths)


def asked(wire: Wire) -> list[str]:
    """Hashes of all texts that were sent."""
    return sorted(h for one in wire.truth() for h in one["text_hashes"])


def test_same_again_does_nothing(small: Small) -> None:
    """With nothing new there are no requests, and no file is touched."""
    receipt(small.run())
    before = stamps(small)
    small.wire.reset()
    again = receipt(small.run())

    assert small.wire.truth() == []
    assert stamps(small) == before
    assert (again.exit_code, again.vectors, again.reused, again.requests) == (0, 30, 30, 0)
    small.check_no_leftovers()


class FullAt(Disk):
    """Has no room for files that `refuses` names; takes names away and gives space back as ever."""

    def __init__(self, refuses: Callable[[Path], bool]) -> None:
        self._refuses = refuses

    def create(self, path: Path, *, mode: int = 0o600) -> int:
        self._check(path)
        return super().create(path, mode=mode)

    def link(self, source: Path, target: Path) -> bool:
        self._check(target)
        return super().link(source, target)

    def _check(self, path: Path) -> None:
        if self._refuses(path):
            raise StorageFailed(f"no space left to create {path}")


def test_a_run_that_ends_early_keeps_its_parts(batch: Small) -> None:
    """What stands in a part stays there when the run is closed: the next one buys what is missing and no more."""
    ended = receipt(batch.run(FullAt(lambda path: path.name == "part-000001.parquet")))
    kept = stamps(batch)

    assert ended.exit_code == 74
    assert [name for name, _, _ in kept] == ["part-000000.parquet"]
    receipt(batch.run())
    assert stamps(batch)[:1] == kept
    assert asked(batch.wire) == sorted(map(hash_of, TEXTS))
    batch.check_rows(TEXTS)


def test_a_registry_that_takes_no_more_stops_no_run(batch: Small) -> None:
    """The output is whole: that its entry cannot be closed is a warning, and the exit code is 0."""

    def at_the_end(path: Path) -> bool:
        record = batch.state / "run.json"
        ended = record.exists() and orjson.loads(record.read_bytes())["state"] == "complete"
        return ended and path.parent.name == "runs"

    observer = Kept()
    run = Run(batch.order(), observer, disk=FullAt(at_the_end), ingest=batch._take_in)
    done = run.execute(asyncio.run)

    assert (done.exit_code, done.error, done.vectors) == (0, None, 30)
    assert [
        note
        for note in observer.warned
        if note.startswith("`batch list` will call this run interrupted: no space left")
    ]
    batch.check_rows(TEXTS)
    batch.wire.reset()
    assert receipt(batch.run()).requests == 0


def test_published_slots_are_let_go(batch: Small) -> None:
    """However many requests may be in flight: memory holds the open slots, and none that stands in a part."""
    batch.fill(TEXTS, files=len(TEXTS))
    alive: list[int] = []

    class Counting:
        def notify(self, event: Event) -> None:
            if isinstance(event, AttemptEnded):
                until(lambda: open_ones() <= before + OPEN_SLICES + 1, seconds=10)  # a thread lets go a moment later
                alive.append(open_ones())

    def open_ones() -> int:
        return sum(type(one) is slices.Slice for one in gc.get_objects())

    gc.collect()
    before = open_ones()
    Run(batch.order(flags={"concurrency": 16}), Counting(), ingest=batch._take_in, segment_bytes=1).execute(asyncio.run)

    assert len(alive) == len(TEXTS)
    assert max(alive) - before <= OPEN_SLICES + 1


def test_touched_input_rewrites_nothing(batch: Small) -> None:
    """Files that were only touched are read, but no part is written again."""
    receipt(batch.run())
    before = stamps(batch)
    for path in (batch.folder / "in").iterdir():
        os.utime(path, ns=(1, 1))
    batch.wire.reset()
    again = receipt(batch.run())

    assert batch.wire.truth() == []
    assert stamps(batch) == before
    assert again.reused == 30
    batch.check_no_leftovers()


def test_only_new_texts_are_bought(small: Small) -> None:
    """Changed and added rows are sent, and nothing else; rows that are gone are gone; order is the input's."""
    receipt(small.run())
    small.wire.reset()
    changed = [*TEXTS[5:], *TEXTS[:2], sentence(50), sentence(51)]
    small.fill(changed)
    again = receipt(small.run())

    assert asked(small.wire) == sorted(map(hash_of, changed[-2:]))
    small.check_rows(changed)
    assert (again.rows, again.reused) == (29, 27)
    small.check_no_leftovers()


def test_one_percent_changed(tmp_path: Path, wire: Wire) -> None:
    """Of a thousand rows ten change: those ten texts are sent, untouched parts are not written again."""
    world = Small(tmp_path, wire)
    texts = [sentence(number) for number in range(1000)]
    world.fill(texts, files=10)
    receipt(world.run(flags={"batch_size": 100}))
    before = stamps(world)
    wire.reset()
    texts[300:310] = [sentence(number) for number in range(2000, 2010)]
    world.fill(texts, files=10)
    receipt(world.run(flags={"batch_size": 100}))

    assert asked(wire) == sorted(map(hash_of, texts[300:310]))
    assert sorted(set(before) - set(stamps(world))) == [before[3]]
    world.check_rows(texts)


def test_fewer_rows_leave_fewer_parts(batch: Small) -> None:
    """Parts that the new output does not have are removed with the swap."""
    receipt(batch.run())
    batch.fill(TEXTS[:10], files=1)
    receipt(batch.run())

    assert [path.name for path in sorted(batch.output.glob("part-*"))] == ["part-000000.parquet"]
    batch.check_rows(TEXTS[:10])


@pytest.mark.parametrize(
    ("about", "difference"),
    [
        ({"flags": {"dimensions": 16}}, "dimensions: 16"),
        ({"model": "text-embedding-3-large"}, "text-embedding-3-large"),
    ],
)
def test_other_space_is_refused(small: Small, about: dict, difference: str) -> None:
    """An output of another space is refused with what differs, and stays as it is."""
    receipt(small.run())
    before = stamps(small)
    small.wire.reset()
    refused = error(small.run(**about))

    assert isinstance(refused, OutputRefused)
    assert difference in refused.message
    assert small.wire.truth() == []
    assert stamps(small) == before


def test_other_space_of_interrupted_run_is_refused(small: Small) -> None:
    """What an interrupted run has bought is not thrown away for another model without --overwrite."""
    small.run(dies_after_requests(small, 4))
    refused = error(small.run(model="text-embedding-3-large"))

    assert isinstance(refused, OutputRefused)
    assert MODEL in refused.message or "space" in refused.message
    small.wire.reset()
    assert receipt(small.run(model="text-embedding-3-large", overwrite=True)).vectors == 30
    assert {one["model"] for one in small.wire.truth()} == {"text-embedding-3-large"}


def dies_after_requests(small: Small, answers: int) -> CrashingDisk:
    """A disk that dies when so many answers were written."""

    class Dying(CrashingDisk):
        seen = 0

        def write(self, fd, buffers, offset, path):  # type: ignore[no-untyped-def]
            self.seen += path.name.endswith(".answers")
            if self.seen > answers:
                self.at = self.count + 1
            return super().write(fd, buffers, offset, path)

    return Dying()


def test_overwrite_spools_before_it_deletes(small: Small) -> None:
    """--overwrite begins anew, but what an interrupted run spent is in the ledger."""
    small.run(dies_after_requests(small, 3))
    spent = len(small.wire.truth())
    receipt(small.run(model="text-embedding-3-large", overwrite=True))

    assert sum(map(len, small.books.values())) >= spent + 10
    small.check_bill()
    small.check_no_leftovers()


def test_overwrite_keeps_the_old_output_until_the_new_one_is_whole(batch: Small) -> None:
    """--overwrite that is interrupted leaves the old output as it was."""
    receipt(batch.run())
    before = stamps(batch)
    batch.run(dies_after_requests(batch, 5), model="text-embedding-3-large", overwrite=True)

    assert stamps(batch) == before
    batch.check_rows(TEXTS)


def test_bought_texts_survive_a_change_of_the_input(batch: Small) -> None:
    """An interrupted run whose input changes meanwhile: what its parts and its journal hold is not bought again."""
    receipt(batch.run())
    first = [sentence(number) for number in range(100, 130)]
    batch.fill(first)
    batch.run(dies_after_requests(batch, 7))
    safe, seen = batch.safe(), len(batch.wire.truth())
    second = [*first[:25], *(sentence(number) for number in range(200, 205))]
    batch.fill(second)
    receipt(batch.run())

    assert len(safe & set(map(hash_of, second))) >= 18
    assert not safe & {h for one in batch.wire.truth()[seen:] for h in one["text_hashes"]}
    batch.check_rows(second)
    batch.check_no_leftovers()


def test_changed_while_read(small: Small) -> None:
    """An input that changes while it is read ends the run; the next one embeds what it has become."""

    class Touching:
        def notify(self, event: Event) -> None:
            if isinstance(event, AttemptEnded):
                os.utime(small.folder / "in" / "0.parquet", ns=(7, 7))

    run = Run(small.order(), Touching(), ingest=small._take_in)
    ended = run.execute(asyncio.run)

    assert isinstance(ended.error, InputChanged)
    assert (ended.exit_code, small.wire.billed()) == (65, 120)
    small.wire.reset()
    receipt(small.run())
    assert small.wire.truth() == []
    small.check_rows(TEXTS)


def test_a_lost_part_is_made_again(batch: Small) -> None:
    """A part that somebody removed is bought again, the others are not."""
    receipt(batch.run())
    (batch.output / "part-000001.parquet").unlink()
    batch.wire.reset()
    receipt(batch.run())

    assert asked(batch.wire) == sorted(map(hash_of, TEXTS[10:20]))
    batch.check_rows(TEXTS)


def test_failed_rows_stay_failed(small: Small) -> None:
    """A refused text is not tried again, exit 3 stays; --retry-failed tries it, a changed text too."""
    small.wire.plan(poison=[TEXTS[4]])
    first = receipt(small.run())
    small.wire.reset()
    second = receipt(small.run())
    (small.folder / "in" / "0.parquet").touch()
    third = receipt(small.run())

    assert [(one.exit_code, one.failed, one.vectors) for one in (first, second, third)] == [(3, 1, 29)] * 3
    assert small.wire.truth() == []
    assert all(one.failures for one in (first, second, third))
    listed = orjson.loads(Path(str(third.failures)).read_bytes())
    assert (listed["id"], listed["reason"]) == (4, "text_refused")
    last = receipt(small.run(retry_failed=True))
    assert (last.exit_code, last.failed, last.failures) == (0, 0, None)
    assert asked(small.wire) == [hash_of(TEXTS[4])]
    small.check_rows(TEXTS)


def test_no_reuse_buys_again(small: Small) -> None:
    """--no-reuse takes nothing from the old output."""
    receipt(small.run())
    small.wire.reset()
    (small.folder / "in" / "0.parquet").touch()
    receipt(small.run(flags={"reuse": False}))

    assert len(asked(small.wire)) == 30


def test_nothing_is_left_of_a_run_that_could_not_begin(small: Small) -> None:
    """A wrong column leaves no folder behind."""
    refused = error(small.run(flags={"text_column": "nosuch"}))

    assert refused.exit_code in (2, 65)
    assert sorted(path.name for path in small.folder.iterdir()) == ["home", "in"]


def test_duplicates_are_bought_once_across_slots(small: Small) -> None:
    """A text that stands in several slots is sent once."""
    texts = [*TEXTS[:10], *TEXTS[5:10], *TEXTS[10:15], *TEXTS[:10]]
    small.fill(texts)
    first = receipt(small.run())

    assert asked(small.wire) == sorted(map(hash_of, TEXTS[:15]))
    assert first.duplicates == 15
    small.check_rows(texts)


def test_pieces_of_a_mean_are_texts_of_their_own(small: Small) -> None:
    """A text that was bought as a piece of a longer one is not bought again when it stands alone in a later slot."""
    long = " ".join(["alpha beta gamma delta."] * 2500)
    cut = splitter.pieces(long, 8191, tokens.splitter_source("tiktoken:cl100k_base", "tiktoken:cl100k_base"))
    small.fill([long, cut[0], cut[1]])
    done = receipt(small.run(flags={"on_too_long": "mean"}))

    assert asked(small.wire) == sorted(map(hash_of, cut))
    assert (done.vectors, done.duplicates) == (3, 2)


def test_duplicate_ids(tmp_path: Path, wire: Wire) -> None:
    """Duplicate ids are a warning with their number; with --unique-ids an error before anything is sent."""
    world = Small(tmp_path, wire)
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ["a", "b", "a", "a"], "text": TEXTS[:4]}), tmp_path / "in" / "0.parquet")
    refused = error(world.run(flags={"unique_ids": True}))

    assert isinstance(refused, InputInvalid)
    assert "2 rows" in refused.message
    assert "'a'" in refused.message
    assert wire.truth() == []
    observer = Kept()
    run = Run(world.order(), observer, ingest=world._take_in)
    assert run.execute(asyncio.run).vectors == 4
    assert any("2 rows" in line for line in observer.warned)


def test_workspaces_by_column(tmp_path: Path, wire: Wire) -> None:
    """Each row is paid by the workspace its column names, also when the column is not kept; none are mixed."""
    world = Small(tmp_path, wire)
    (tmp_path / "in").mkdir()
    who = ["acme", "zeta", None, "acme", "zeta", "acme"]
    pq.write_table(pa.table({"id": list(range(6)), "who": who, "text": TEXTS[:6]}), tmp_path / "in" / "0.parquet")
    flags = {"workspace_column": "who", "keep": "none", "workspace": "rest"}
    receipt(world.run(flags=flags))

    events = [event for file in world.books.values() for event in file]
    tokens: dict[str, int] = {}
    for event in events:
        tokens[event["workspace_id"]] = tokens.get(event["workspace_id"], 0) + event["tokens_total"]
    assert tokens == {"acme": 12, "zeta": 8, "rest": 4}
    assert "who" not in pq.read_schema(world.output / "part-000000.parquet").names
    unknown = error(world.run(flags={"workspace_column": "nobody"}, overwrite=True))
    assert "'nobody'" in unknown.message
    assert unknown.exit_code == 65


def test_old_leftovers_in_shared_folders_go(small: Small) -> None:
    """Unfinished files of dead runs are removed from spool and registry when nobody can be writing them any more."""
    old, fresh = uuid7(time.time() - 7200).hex, uuid7().hex
    for place in ("spool", "runs"):
        (small.folder / "home" / place).mkdir(parents=True)
        for name in (old, fresh):
            (small.folder / "home" / place / f".tmp-{name}").write_bytes(b"half")
    receipt(small.run())

    for place in ("spool", "runs"):
        assert [path.name for path in (small.folder / "home" / place).glob(".tmp-*")] == [f".tmp-{fresh}"]


BROKEN_RECORDS = [b"", b"x", b"[]", b"null", b"{}", b'{"state": "complete"}', b'{"counts": {"rows": 1}}']


@pytest.mark.parametrize("record", BROKEN_RECORDS)
def test_a_broken_run_record(batch: Small, wire: Wire, record: bytes) -> None:
    """A run record that somebody broke is made again: parts speak for themselves, and nothing is bought."""
    receipt(batch.run())
    before = len(asked(wire))
    (batch.state / "run.json").write_bytes(record)
    again = receipt(batch.run())

    assert (again.exit_code, again.vectors, again.requests) == (0, len(TEXTS), 0)
    assert len(asked(wire)) == before
    batch.check_rows(TEXTS)


def test_a_broken_failures_file(small: Small, wire: Wire) -> None:
    """Lines of a failures file that somebody broke say nothing, and stop nothing."""
    wire.plan(poison=[TEXTS[4]])
    assert receipt(small.run()).failed == 1
    path = small.output / "failures.jsonl" if small.kind == "folder" else small.folder / "out.parquet.failures.jsonl"
    refused = path.read_bytes()
    lines = [b'{"reason": "text_refused", "provider": "x", "message": "m", "text_hash": "zz"}', b"\xff", b"[1]", b'"x"']
    path.write_bytes(b"\n".join([*lines, b'{"text_hash": 5, "reason": "text_refused", "provider": "x"}', refused]))
    small.fill([*TEXTS, "one more"])
    again = receipt(small.run())

    assert (again.failed, again.vectors) == (1, len(TEXTS))
    assert asked(wire).count(hash_of(TEXTS[4])) > 0


def test_a_damaged_part(batch: Small, wire: Wire) -> None:
    """A part that is cut short is said, and its rows, no others, are embedded anew."""
    receipt(batch.run())
    before = len(asked(wire))
    part = batch.output / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:300])
    observer = Kept()
    run = Run(batch.order(), observer, ingest=batch._take_in, segment_bytes=1)
    again = run.execute(asyncio.run)

    assert again.exit_code == 0
    assert len(asked(wire)) == before + 10
    assert any("part-000001.parquet is damaged" in line for line in observer.warned)
    batch.check_rows(TEXTS)


@pytest.mark.parametrize("column", ["embedding_text_hash", "embedding.list.element", "embedding_model"])
def test_bit_rot(small: Small, column: str) -> None:
    """A flipped bit in what a rerun reads ends it with 74, the file and what to do; without it the run goes on."""
    receipt(small.run())
    path = small.output / "part-000000.parquet" if small.kind == "folder" else small.output
    meta = pq.read_metadata(path)
    found = [meta.row_group(0).column(i) for i in range(meta.num_columns)]
    chunk = next(one for one in found if one.path_in_schema == column)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 0xFF
    path.write_bytes(content)
    small.fill([*TEXTS, "one more"])
    damaged = small.run()
    problem = damaged.error if isinstance(damaged, Receipt) else error(damaged)

    assert problem is not None
    assert problem.exit_code == 74
    assert f"{path} cannot be read" in problem.message
    assert "vectors verify" in str(problem.hint)
    path.unlink()
    receipt(small.run())
    small.check_rows([*TEXTS, "one more"])


def test_an_output_of_another_version(small: Small, wire: Wire) -> None:
    """An output whose space says more than this version knows is refused, not bought again."""
    receipt(small.run())
    before = len(asked(wire))
    for path in small.output.glob("part-*") if small.kind == "folder" else [small.output]:
        table, said = pq.read_table(path), orjson.loads(pq.read_metadata(path).metadata[b"embedctl"])
        said["space"]["tilt"] = 3
        pq.write_table(table.replace_schema_metadata({b"embedctl": orjson.dumps(said)}), path)
    small.fill([*TEXTS, "one more"])
    refused = error(small.run())

    assert refused.exit_code == 73
    assert "its space says tilt" in refused.message
    assert len(asked(wire)) == before


@pytest.mark.parametrize("metadata", [b"not json", b"[1]", b'{"space": 1}', b'{"space": {}}'])
def test_metadata_that_says_nothing(small: Small, metadata: bytes) -> None:
    """Metadata that no version of ours wrote is no bug of ours: a file is not ours, a part is made again."""
    receipt(small.run())
    path = small.output / "part-000000.parquet" if small.kind == "folder" else small.output
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"embedctl": metadata}), path)
    small.fill([*TEXTS, "one more"])
    again = small.run()

    if small.kind == "file":
        assert error(again).exit_code == 73
    else:
        assert receipt(again).exit_code == 0
        small.check_rows([*TEXTS, "one more"])


LAYOUTS = [{"vector_type": "list"}, {"dtype": "float16"}, {"dtype": "int8", "vector_type": "list"}, {"dtype": "int8"}]


@pytest.mark.parametrize("flags", LAYOUTS)
def test_another_layout_of_the_same_rows(small: Small, wire: Wire, flags: dict[str, str]) -> None:
    """A rerun that asks for another type of vectors gets it, from what is there: nothing is bought."""
    receipt(small.run())
    before = len(asked(wire))
    again = receipt(small.run(flags=flags))
    path = small.output / "part-000000.parquet" if small.kind == "folder" else small.output
    kind = pq.read_schema(path).field("embedding").type

    assert str(kind.value_type) == {"float16": "halffloat", "int8": "int8"}.get(flags.get("dtype", ""), "float")
    assert pa.types.is_fixed_size_list(kind) == ("vector_type" not in flags)
    assert (again.vectors, len(asked(wire))) == (len(TEXTS), before)


def test_no_rows_at_all(batch: Small, wire: Wire) -> None:
    """An input of no rows is an output of no rows that a reader can open; once more is nothing to do."""
    receipt(batch.run())
    for path in (batch.folder / "in").glob("*.parquet"):
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    empty = receipt(batch.run())
    before = stamps(batch)
    again = receipt(batch.run())

    assert (empty.exit_code, empty.rows, again.rows) == (0, 0, 0)
    assert stamps(batch) == before
    table = pq.read_table(batch.output)
    assert (table.num_rows, "embedding" in table.column_names) == (0, True)
    batch.fill(TEXTS)
    assert receipt(batch.run()).vectors == len(TEXTS)
    batch.check_rows(TEXTS)

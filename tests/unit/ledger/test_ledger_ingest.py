"""From the spool into the database: exactly once, whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedctl.errors import ConfigurationInvalid, InvariantBroken, Locked, StorageFailed
from embedctl.ledger import database, loading, rating, schema, spool
from embedctl.ledger import ingest as steps
from embedctl.ledger.ingest import ingest, prune
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import uuid7
from tests.support.ledger_events import NOW, event, one, place, rows, take

COUNTS = "SELECT count(*), count(DISTINCT event_id) FROM usage_event"


def test_every_field_arrives(tmp_path: Path) -> None:
    """What a run wrote about an attempt is what the ledger holds, field by field."""
    paths = place(tmp_path)
    sent = event(
        job_id="nightly",
        run_id=uuid7(),
        purpose="query",
        attempt=3,
        fallback_from="a:b",
        response_model="m-2",
        provider_account="proj",
        provider_request_id="req",
        batch_id="batch",
        duration_ms=31,
        error_class="Throttled",
        tokens_cached=4,
        tokens_estimated=990,
        tokenizer_id="tiktoken:cl100k_base",
        input_count=96,
        content_bytes=123,
        tags={"team": 'a "b" \n'},
        reason="why",
        tool_version="9.9",
    )
    take(paths, sent, spool_id="run-1")
    names = [
        name
        for name in sent.__dataclass_fields__
        if name not in ("price_as", "cost_provider", "occurred_at", "quantity")
    ]
    (row,) = rows(paths, f"SELECT {', '.join(names)}, epoch_us(occurred_at), quantity, spool_id FROM usage_event")

    assert dict(zip(names, row, strict=False)) | {"tags": orjson.loads(row[names.index("tags")])} == {
        name: getattr(sent, name) for name in names
    }
    assert row[-3:] == (rating.microseconds(sent.occurred_at), 1000, "run-1")


def test_ingesting_again_adds_nothing(tmp_path: Path) -> None:
    """A second ingest adds nothing, nor does a spool file that comes back, nor its events under another name."""
    paths = place(tmp_path)
    events = [event(), event()]
    first = take(paths, *events, spool_id="a")
    again = take(paths)
    (paths.done / "a.spool").rename(paths.spool / "a.spool")
    back = take(paths)
    renamed = take(paths, *events, event(), spool_id="b")

    assert (first.events, again.events, back.events, renamed.events, renamed.repeated) == (2, 0, 0, 1, 2)
    assert rows(paths, COUNTS) == [(3, 3)]
    assert rows(paths, "SELECT spool_id FROM spool_offset ORDER BY 1") == [("a",), ("b",)]
    assert spool.pending(paths.spool) == []


def test_an_event_twice_in_one_batch_counts_once(tmp_path: Path) -> None:
    """The same event twice, in one file or in two taken in together, is one row."""
    paths = place(tmp_path)
    same = event()
    spool.publish(paths.spool, "a", [same, same])
    spool.publish(paths.spool, "b", [same])
    done = take(paths)

    assert (done.events, done.repeated) == (1, 2)


def test_of_one_event_told_twice_the_outcome_stays(tmp_path: Path) -> None:
    """When an event waits twice, as interrupted and with its outcome, the outcome is what the ledger keeps."""
    paths = place(tmp_path)
    for number in range(20):
        ended = event()
        lost = replace(ended, status="interrupted", billable="unknown", tokens_total=0, tokens_native=None)
        spool.publish(paths.spool, f"{number:02d}", [lost, ended] if number % 2 else [ended, lost])
    done = take(paths)

    assert (done.events, done.repeated) == (20, 20)
    assert rows(paths, "SELECT DISTINCT status, tokens_total FROM usage_event") == [("ok", 1000)]


def test_an_old_event_is_known_whatever_its_id(tmp_path: Path) -> None:
    """Replays are found by id alone: with random ids, years apart, after a clock jumped."""
    paths = place(tmp_path)
    old = [event(event_id=uuid7(now_s=year * 31_556_926.0)) for year in (1, 30, 60)]
    take(paths, *old)
    done = take(paths, *(replace(each, occurred_at=NOW) for each in old), event())

    assert (done.events, done.repeated) == (1, 3)


def test_a_file_is_published_once(tmp_path: Path) -> None:
    """A spool id is taken for good: while the file waits, and when it has been taken in."""
    paths = place(tmp_path)
    first = spool.publish(paths.spool, "run-0", [event()])
    second = spool.publish(paths.spool, "run-0", [event()])
    take(paths)

    assert (first, second, spool.publish(paths.spool, "run-0", [event()])) == (True, False, False)


def test_a_spool_id_is_a_file_name(tmp_path: Path) -> None:
    """A spool id can name nothing outside the spool."""
    with pytest.raises(InvariantBroken):
        spool.publish(tmp_path, "../x", [event()])


def test_nobody_else_may_read(tmp_path: Path) -> None:
    """Spool files and the database are readable by their owner alone."""
    paths = place(tmp_path)
    take(paths, event(), spool_id="a")

    assert [stat.S_IMODE(p.stat().st_mode) for p in (paths.database, paths.done / "a.spool", paths.lock)] == [0o600] * 3
    assert stat.S_IMODE(paths.spool.stat().st_mode) == 0o700


def test_bad_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    """Torn, foreign and bit-flipped lines are counted, and so is a line that is no event; the rest is kept."""
    paths = place(tmp_path)
    good = [spool.line(event()) for _ in range(5)]
    flipped = bytearray(spool.line(event()))
    flipped[40] ^= 1
    foreign = [b'{"event_id": 1}\n', b"deadbeef hello\n", b"\n", b"\xff\xfe\x00\n"]
    strangers = [b'{"hello":"world"}', b"{}", b'{"event_id":"no uuid"}', spool.line(event(status="odd"))[9:-1]]
    torn = spool.line(event())[:-20]
    paths.spool.mkdir()
    content = b"".join([*good[:2], bytes(flipped), *foreign, good[2], *map(checked, strangers), *good[3:], torn])
    (paths.spool / "mixed.spool").write_bytes(content)
    done = take(paths, event(), spool_id="whole")

    assert (done.events, done.bad_lines) == (6, 1 + 4 + 4 + 1)
    assert rows(paths, "SELECT spool_id, lines_done, lines_bad FROM spool_offset ORDER BY spool_id") == [
        ("mixed", 5, 10),
        ("whole", 1, 0),
    ]


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_passes(rubbish: bytes, position: int, bit: int) -> None:
    """A line with any one bit changed, or rubbish, is never taken for an event."""
    line = bytearray(spool.line(event()))
    line[position % (len(line) - 1)] ^= 1 << bit

    assert not any(map(spool._good, [*bytes(line).splitlines(), *rubbish.split(b"\n")]))


def test_an_unreadable_file_stops_nothing(tmp_path: Path) -> None:
    """A spool entry that cannot be read is named and left; the others are taken in."""
    paths = place(tmp_path)
    (paths.spool / "folder.spool").mkdir(parents=True)
    done = take(paths, event())

    assert done.events == 1
    assert [name.partition(":")[0] for name in done.unreadable] == ["folder.spool"]


def checked(body: bytes) -> bytes:
    """A line of the spool with the right checksum."""
    return b"%08x %s\n" % (zlib.crc32(body), body)


def test_long_strings_are_cut_and_cost_no_charge(tmp_path: Path) -> None:
    """Strings of megabytes, as older versions kept them of an answer, block nobody: cut, the event is taken in."""
    paths = place(tmp_path)
    long = [
        event(provider_request_id="x" * 5_000_000, response_model="é" * 3_000_000),
        event(tags={f"{number}": "y" * 100_000 for number in range(50)}),
        event(reason="\x01" * 1_000_000, tags={"z" * 1_000_000: "z"}),
    ]
    spool.publish(paths.spool, "long", long)
    spool.publish(paths.spool, "others", [event(workspace_id="other")])
    done = take(paths)

    assert (done.events, done.bad_lines, done.notes()) == (4, 0, [])
    assert one(paths, "SELECT sum(tokens_total)::BIGINT FROM usage_event") == 4000
    assert one(paths, "SELECT max(length(provider_request_id)) FROM usage_event") == 200
    assert one(paths, "SELECT max(length(tags)) FROM usage_event") < 5000


def test_a_line_that_never_ends_is_one_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a line longer than any that was ever written only a piece is in memory, and what follows it is read."""
    monkeypatch.setattr(spool, "_MOST_LINE", 100_000)
    paths = place(tmp_path)
    paths.spool.mkdir()
    lines = [spool.line(event()), b"a" * 1_000_001 + b"\n", spool.line(event()), b"b" * 300_000]
    (paths.spool / "a.spool").write_bytes(b"".join(lines))
    found = spool.read(paths.spool / "a.spool")

    assert (len(found.lines), found.bad, found.size_bytes) == (2, 2, sum(map(len, lines)))
    assert spool.pending_events(paths.spool) == 3


def test_an_amount_of_a_hundred_million_digits_is_short_in_the_spool() -> None:
    """An amount with an absurd exponent is written as it is, not digit by digit."""
    lines = [spool.line(event(cost_provider=Decimal(said))) for said in ("1e99999999", "1e-99999999", "1E+50")]

    assert max(map(len, lines)) < 1000
    assert b'"0.000000000000001"' in spool.line(event(cost_provider=Decimal("1e-15")))


def test_a_file_that_is_refused_as_a_whole_is_set_aside(tmp_path: Path) -> None:
    """A file larger than any of events is put aside, with a word then and later; the others are taken in."""
    paths = place(tmp_path)
    paths.spool.mkdir()
    with (paths.spool / "b.spool").open("wb") as sparse:
        sparse.truncate((1 << 30) + 1)
    spool.publish(paths.spool, "a", [event()])
    spool.publish(paths.spool, "c", [event()])
    done = take(paths)
    again = take(paths)

    assert (done.events, done.files, spool.pending(paths.spool)) == (2, 2, [])
    assert [name.partition(":")[0] for name in done.refused] == ["b.spool"]
    assert [path.name for path in spool.pending(paths.aside)] == ["b.spool"]
    for notes in (done.notes(), again.notes(), spool.aside_notes(paths.aside)):
        assert f"1 spool file that could not be taken in lies in {paths.aside}" in notes[-1]
    assert not spool.publish(paths.spool, "b", [event()])


def test_memory_that_is_short_blames_a_large_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for which memory is short is put aside, never in part; put back with more memory, it is taken in."""
    insert, short = loading.insert, [True]

    def with_little_memory(connection: duckdb.DuckDBPyConnection, now: datetime) -> int:
        if short[0] and connection.execute("SELECT 1 FROM batch WHERE spool_id = 'large'").fetchone():
            raise duckdb.OutOfMemoryException("failed to allocate data of size 32.0 MiB")
        return insert(connection, now)

    monkeypatch.setattr(loading, "insert", with_little_memory)
    monkeypatch.setattr(steps, "_LARGE_BYTES", 2000)
    paths = place(tmp_path)
    spool.publish(paths.spool, "large", [event() for _ in range(9)])
    spool.publish(paths.spool, "small", [event()])
    done = take(paths)
    short[0] = False
    (paths.aside / "large.spool").rename(paths.spool / "large.spool")
    again = take(paths)

    assert (done.events, done.bad_lines, len(done.refused)) == (1, 0, 1)
    assert (again.events, again.bad_lines, again.notes()) == (9, 0, [])


def test_memory_that_is_short_for_a_small_file_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short for a handful of events the ingest fails, and the spool stays as it is."""

    def without_memory(*_: object) -> int:
        raise duckdb.OutOfMemoryException("failed to allocate data of size 32.0 MiB")

    paths = place(tmp_path)
    spool.publish(paths.spool, "a", [event(), event()])
    with monkeypatch.context() as patch:
        patch.setattr(loading, "insert", without_memory)
        with pytest.raises(StorageFailed):
            take(paths)

    assert take(paths).events == 2


def test_a_rebuild_sets_aside_too(tmp_path: Path) -> None:
    """What the database does not take when it is rebuilt is put aside, and the rest is in it."""
    paths = place(tmp_path)
    take(paths, event(), spool_id="a")
    with (paths.done / "b.spool").open("wb") as sparse:
        sparse.truncate((1 << 30) + 1)
    done = ingest(paths, wait_s=1, now=NOW, rebuild=True)

    assert (done.events, [path.name for path in spool.pending(paths.aside)]) == (1, ["b.spool"])
    assert one(paths, "SELECT count(*) FROM usage_event") == 1


def test_a_line_that_duckdb_cannot_even_complain_about(tmp_path: Path) -> None:
    """A line of which DuckDB's complaint shows half a character is a bad line like any other."""
    paths = place(tmp_path)
    paths.spool.mkdir()
    odd = orjson.dumps(orjson.loads(spool.line(event())[9:]) | {"tokens_total": "é" * 50})
    (paths.spool / "a.spool").write_bytes(spool.line(event()) + checked(odd) + spool.line(event()))
    done = take(paths, event(), spool_id="b")

    assert (done.events, done.bad_lines) == (3, 1)


def test_a_line_that_costs_less_than_nothing(tmp_path: Path) -> None:
    """What only its price makes impossible is a bad line as well, also in a ledger that has no prices yet."""
    paths = place(tmp_path)
    paths.spool.mkdir()
    odd = orjson.dumps(orjson.loads(spool.line(event())[9:]) | {"quantity": -222_500})
    (paths.spool / "a.spool").write_bytes(spool.line(event()) + checked(odd) + spool.line(event()))
    done = take(paths, event(), spool_id="b")

    assert (done.events, done.bad_lines, done.refused) == (3, 1, ())


STRANGE = st.dictionaries(
    st.sampled_from([field for field in loading._COLUMNS if field != "event_id"]),
    st.none() | st.integers() | st.floats() | st.text(max_size=30) | st.lists(st.integers(), max_size=2),
    min_size=1,
    max_size=3,
)


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.lists(STRANGE, min_size=40, max_size=40))
def test_whatever_a_line_says_the_others_go_in(strange: list[dict[str, object]]) -> None:
    """A line with the right checksum and anything in any field is an event or a bad line; its neighbours are in."""
    with tempfile.TemporaryDirectory() as folder:
        paths = place(Path(folder))
        paths.spool.mkdir()
        lines = [spool.line(event()) for _ in range(3)]
        for fields in strange:
            said = orjson.loads(spool.line(event())[9:]) | fields
            lines.insert(1, checked(json.dumps(said).encode()))
        (paths.spool / "a.spool").write_bytes(b"".join(lines))
        done = take(paths, event(), spool_id="b")

        assert done.events + done.bad_lines == 4 + len(strange)
        assert done.events >= 4
        assert done.refused == done.unreadable == ()


def test_names_are_values(tmp_path: Path) -> None:
    """SQL in a name is a name."""
    paths = place(tmp_path)
    evil = "'; DROP TABLE usage_event; --"
    take(paths, event(workspace_id=evil, model=evil, job_id=evil), spool_id="a")

    assert rows(paths, "SELECT workspace_id, job_id FROM usage_event") == [(evil, evil)]


def test_the_file_opens_in_older_duckdb(tmp_path: Path) -> None:
    """The file has storage version 1.2, which DuckDB 1.4, 1.5 and 2 open."""
    paths = place(tmp_path)
    take(paths, event())
    with closing(duckdb.connect()) as connection:
        connection.execute(f"ATTACH '{paths.database}' AS l (READ_ONLY)")
        (tags,) = connection.execute("SELECT tags FROM duckdb_databases() WHERE database_name = 'l'").fetchone() or ()

    assert tags["storage_version"].startswith("v1.2.0")


def test_portions_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few lines are taken in at once, each event is in once, and each file's lines, good and bad, on record."""
    monkeypatch.setattr(loading, "PORTION", 3)
    paths = place(tmp_path)
    some = [event() for _ in range(8)]
    spool.publish(paths.spool, "a", [*some[:5], some[1]])
    spool.publish(paths.spool, "b", [some[0], *some[5:], some[7]])
    (paths.spool / "c.spool").write_bytes(spool.line(some[2]) + b"torn")
    done = ingest(paths, wait_s=1, now=NOW)
    offsets = rows(paths, "SELECT spool_id, lines_done, lines_bad FROM spool_offset ORDER BY 1")

    assert (done.events, done.repeated, done.bad_lines, done.files) == (8, 4, 1, 3)
    assert {row[0] for row in rows(paths, "SELECT event_id FROM usage_event")} == {one.event_id for one in some}
    assert offsets == [("a", 6, 0), ("b", 5, 0), ("c", 1, 1)]


def test_portions_of_long_lines_are_small() -> None:
    """Of ordinary lines two row groups are taken in at once, of long ones no more than memory holds."""
    short, long = b"x" * 600, b"y" * 60_000

    assert len(list(loading._portion(iter([short] * 300_000)))) == loading.PORTION
    assert sum(map(len, loading._portion(iter([long] * 3000)))) < 70_000_000


def test_no_index_and_no_key_is_in_the_file(tmp_path: Path) -> None:
    """The file has no index, no key and no unique column: identity is the ingest's, and checked by `usage doctor`."""
    paths = place(tmp_path)
    take(paths, event())

    assert rows(paths, "SELECT index_name FROM duckdb_indexes()") == []
    kinds = {row[0] for row in rows(paths, "SELECT DISTINCT constraint_type FROM duckdb_constraints()")}
    assert kinds == {"CHECK", "NOT NULL"}


def test_anyone_can_query_the_file(tmp_path: Path) -> None:
    """The database answers plain SQL without embedctl, by table and by view."""
    paths = place(tmp_path)
    take(paths, event(), event(tokens_estimated=500), event(model="x"))
    with closing(duckdb.connect(str(paths.database), read_only=True)) as connection:
        by_table = connection.execute(
            "SELECT workspace_id, model, sum(tokens_total) FROM usage_event GROUP BY ALL ORDER BY model"
        ).fetchall()
        daily = connection.execute(
            "SELECT day_utc, model, tokens, unpriced_tokens, cost FROM usage_daily ORDER BY model"
        )
        days = [(str(row[0]), *row[1:4], None if row[4] is None else float(row[4])) for row in daily.fetchall()]
        drift = connection.execute("SELECT model, pairs, weighted_drift FROM drift").fetchall()
        spaces = connection.execute("SELECT workspace_id, calls FROM usage_by_workspace ORDER BY calls").fetchall()

    assert by_table == [("acme", "m", 2000), ("acme", "x", 1000)]
    assert days == [("2026-11-15", "m", 2000, 0, 0.00004), ("2026-11-15", "x", 1000, 1000, None)]
    assert drift == [("m", 1, 1.0)]
    assert spaces == [("acme", 1), ("acme", 2)]


def test_a_busy_ledger_is_left_for_later(tmp_path: Path) -> None:
    """When another process holds the ledger for too long the ingest stops with 75 and the spool stays."""
    paths = place(tmp_path)
    take(paths, event())
    spool.publish(paths.spool, "late", [event()])
    with database.held(paths, shared=True, wait_s=0), pytest.raises(Locked) as caught:
        ingest(paths, wait_s=0.05, now=NOW)

    assert caught.value.exit_code == 75
    assert len(spool.pending(paths.spool)) == 1
    assert take(paths).events == 1


def test_another_program_in_the_file_is_named(tmp_path: Path) -> None:
    """When a foreign program has the file open, the message says which one, and nothing is lost."""
    paths = place(tmp_path)
    take(paths, event())
    spool.publish(paths.spool, "late", [event()])
    script = f"import duckdb,sys; c=duckdb.connect({str(paths.database)!r}); print('open',flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Locked, match=f"PID {other.pid}"):
            ingest(paths, wait_s=0, now=NOW)
        other.communicate()

    assert take(paths).events == 1


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A ledger of a newer version is not written to; the spool stays."""
    paths = place(tmp_path)
    take(paths, event())
    with closing(duckdb.connect(str(paths.database))) as connection:
        connection.execute("INSERT INTO schema_migration VALUES (999, 'future', '', now(), '99')")
    spool.publish(paths.spool, "late", [event()])
    with pytest.raises(ConfigurationInvalid, match="999"):
        ingest(paths, wait_s=1, now=NOW)

    assert len(spool.pending(paths.spool)) == 1


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    """A DuckDB file of something else gets no tables from us."""
    paths = place(tmp_path)
    with closing(duckdb.connect(str(paths.database))) as connection:
        connection.execute("CREATE TABLE sales (a INTEGER)")
    with pytest.raises(ConfigurationInvalid, match="sales"):
        take(paths, event())


def test_migrations_are_recorded(tmp_path: Path) -> None:
    """Each migration is recorded once with its checksum; a half-migrated file is completed."""
    paths = place(tmp_path)
    with closing(duckdb.connect(str(paths.database))) as connection:
        connection.execute(schema.migrations()[0].sql)
    take(paths, event())
    steps = schema.migrations()

    assert rows(paths, "SELECT version, checksum FROM schema_migration ORDER BY 1") == [
        (step.version, step.checksum) for step in steps
    ]
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))


def _damage_none(path: Path) -> None:
    path.write_bytes(b"this is no database" * 5000)


def _damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _damage_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for position in range(12288, len(content), 97):
        content[position] ^= 0x55
    path.write_bytes(bytes(content))


def _damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_file_that_never_was_a_ledger_stays(tmp_path: Path, rebuild: bool) -> None:
    """A ledger that is named and is another file is refused, for readers and writers: it is never set aside."""
    paths = LedgerPaths(tmp_path / "notes.txt", tmp_path / "notes.txt.spool", tmp_path / "prices.toml")
    paths.database.write_text("The harbour opens at seven.")

    with pytest.raises(ConfigurationInvalid, match="is another file, not a ledger"):
        ingest(paths, now=NOW, rebuild=rebuild)
    with pytest.raises(ConfigurationInvalid, match="is another file, not a ledger"), database.reader(paths, now=NOW):
        pass

    assert paths.database.read_text() == "The harbour opens at seven."


@pytest.mark.parametrize("damage", [_damage_none, _damage_half, _damage_bits, _damage_empty])
def test_a_damaged_ledger_is_set_aside_and_rebuilt(tmp_path: Path, damage: object) -> None:
    """A damaged database is renamed, said so, and rebuilt from the spool and what was taken in before."""
    paths = place(tmp_path)
    take(paths, event(), event())
    damage(paths.database)  # type: ignore[operator]
    done = take(paths, event())
    aside = list(tmp_path.glob("usage.duckdb.bad-*"))

    assert aside == ([done.rebuilt_from] if done.rebuilt_from else [])
    assert len(aside) == 1
    assert rows(paths, COUNTS) == [(3, 3)]
    assert not paths.rebuilding.exists()


def test_a_rebuild_can_be_asked_for(tmp_path: Path) -> None:
    """--rebuild makes the database anew, though it opens well."""
    paths = place(tmp_path)
    take(paths, event(), event())
    done = ingest(paths, wait_s=1, now=NOW, rebuild=True)

    assert (done.events, done.rebuilt_from is not None) == (2, True)


def test_old_spool_files_are_pruned(tmp_path: Path) -> None:
    """Files that were taken in long ago can be removed; waiting ones never are."""
    paths = place(tmp_path)
    take(paths, event(), spool_id="old")
    os.utime(paths.done / "old.spool", (0, 0))
    take(paths, event(), spool_id="new")
    spool.publish(paths.spool, "waiting", [event()])
    os.utime(paths.spool / "waiting.spool", (0, 0))
    removed = prune(paths, older_than=timedelta(days=1), now=NOW)

    assert removed == 1
    assert [path.name for path in spool.pending(paths.spool)] == ["waiting.spool"]


def test_new_prices_reach_the_next_events(tmp_path: Path) -> None:
    """A changed price file is taken over before the next events are rated; the price that left it stays on record."""
    paths = place(
        tmp_path, '[[price]]\nprovider="p"\nmodel="a"\nusd_per_million="1"\nvalid_from=2024-01-01\nsource="s"\n'
    )
    take(paths, event(provider="p", price_as="p", model="a"))
    text = paths.price_file.read_text()
    paths.price_file.write_text(text.replace('"1"', '"2"'))
    take(paths, event(provider="p", price_as="p", model="a"))
    query = "SELECT unit_price, price_id IN (SELECT price_id FROM price_superseded) FROM usage_event ORDER BY 1"

    assert rows(paths, query) == [(1, True), (2, False)]


def test_a_wrong_price_file_keeps_the_spool(tmp_path: Path) -> None:
    """With a broken price file nothing is rated wrongly: the ingest stops, the spool stays."""
    paths = place(tmp_path, "[[price]]\nprovider = 1")
    with pytest.raises(ConfigurationInvalid):
        take(paths, event())

    assert len(spool.pending(paths.spool)) == 1
    paths.price_file.write_text("")
    assert take(paths).events == 1


def _ingest_some(folder: str, files: int, seed: int) -> None:
    paths = LedgerPaths(Path(folder) / "usage.duckdb", Path(folder) / "spool", Path(folder) / "prices.toml")
    for index in range(files):
        spool.publish(paths.spool, f"{seed}-{index}", [event() for _ in range(5)])
        ingest(paths, wait_s=500, now=NOW)


def _twenty(folder: Path, ingests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty processes at once, each so many times: spool five events, ingest."""
    paths = place(folder)
    context = multiprocessing.get_context("forkserver")  # which has imported what is here once, for all of them
    context.set_forkserver_preload([__name__])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # it finds nothing else, and says nothing of that
    workers = [context.Process(target=_ingest_some, args=(str(folder), ingests, seed)) for seed in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)

    assert [worker.exitcode for worker in workers] == [0] * 20
    assert rows(paths, COUNTS) == [(100 * ingests, 100 * ingests)]
    assert spool.pending(paths.spool) == []


@pytest.mark.timeout(900)
def test_twenty_processes_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty processes that spool and ingest at once into one ledger lose and double nothing."""
    _twenty(tmp_path, 3, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_twenty_processes_lose_nothing_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, fifty times each."""
    _twenty(tmp_path, 50, monkeypatch)


KILLED = """
import sys
from pathlib import Path
from datetime import datetime, UTC
from embedctl.ledger.ingest import ingest
from embedctl.ledger.paths import LedgerPaths
folder = Path(sys.argv[1])
paths = LedgerPaths(folder / "usage.duckdb", folder / "spool", folder / "prices.toml")
print("go", flush=True)
while True:
    ingest(paths, wait_s=60, now=datetime.now(UTC))
    print("x", flush=True)
"""


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    """However often an ingest is killed at whatever moment, each event is in the ledger exactly once."""
    paths = place(tmp_path)
    chance = random.Random(7)
    sent = 0
    for turn in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as victim:
            assert victim.stdout is not None
            victim.stdout.readline()
            for index in range(6):
                spool.publish(paths.spool, f"{turn}-{index}", [event() for _ in range(50)])
                sent += 50
            time.sleep(chance.random() * 0.3)
            victim.send_signal(signal.SIGKILL)
    take(paths)

    assert rows(paths, COUNTS) == [(sent, sent)]
    assert one(paths, "SELECT sum(lines_done) FROM spool_offset") == sent

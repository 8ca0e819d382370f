"""A query as input: DuckDB reads in a child, rows come in the query's order; one statement that reads, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import InputInvalid, InputMissing, StorageFailed
from embedctl.inputs import ReadOptions, asked, open_query
from embedctl.inputs import query as queries


def opened(sql, *, folder=None, attach=None, **options):
    return open_query(asked(sql, attach or {}, folder=folder, attach_folder=folder), ReadOptions(**options))


def rows(sql, **about):
    """All rows as id, text and kept columns."""
    found = []
    for block in opened(sql, **about).blocks():
        kept = [{}] * len(block) if block.kept is None else block.kept.to_pylist()
        found += [
            {"id": row, "text": text, **each} for row, text, each in zip(block.ids, block.texts, kept, strict=True)
        ]
    return found


@pytest.fixture
def folder(tmp_path):
    """Two tables to join, one of them out of order, and a database; a secret lies outside."""
    inside = tmp_path / "inside"
    inside.mkdir()
    pq.write_table(pa.table({"id": [3, 1, 2], "title": ["c", "a", "b"]}), inside / "x.parquet")
    (inside / "y.csv").write_text("id,body\n1,A\n2,B\n3,C\n")
    with duckdb.connect(str(inside / "shop.duckdb")) as connection:
        connection.execute("create table notes as select 7 as id, 'note' as text")
    (tmp_path / "secret.csv").write_text("id,text\n1,secret\n")
    (inside / "link.csv").symlink_to(tmp_path / "secret.csv")
    (inside / "linked").symlink_to(tmp_path)
    return inside


def test_rows_come_in_the_order_of_the_query(folder):
    """A join of two files with an order of its own; ids keep their type, other columns travel along."""
    sql = "select x.id, title || body as text, title from 'x.parquet' x join 'y.csv' y using (id) order by x.id desc"

    assert rows(sql, folder=folder) == [
        {"id": 3, "text": "cC", "title": "c"},
        {"id": 2, "text": "bB", "title": "b"},
        {"id": 1, "text": "aA", "title": "a"},
    ]
    assert [row["id"] for row in rows("from 'x.parquet' select id, title as text", folder=folder)] == [3, 1, 2]


def test_a_database_is_read_only(folder):
    """`--attach NAME=PATH`: its tables are there under that name, and cannot be written."""
    attach = {"shop": "shop.duckdb"}

    assert rows("from shop.notes", folder=folder, attach=attach) == [{"id": 7, "text": "note"}]
    with pytest.raises(InputMissing, match=r"no such database: none\.duckdb"):
        opened("from shop.notes", folder=folder, attach={"shop": "none.duckdb"})
    with pytest.raises(InputInvalid):
        opened("with n as (insert into shop.notes values (8, 'x') returning *) from n", folder=folder, attach=attach)
    assert rows("from shop.notes", folder=folder, attach=attach) == [{"id": 7, "text": "note"}]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("select 1; select 2", "one statement, not 2"),
        ("", "one statement, not 0"),
        ("copy (select 1) to 'out.csv'", "COPY is no statement that only reads"),
        ("install httpfs", "is no statement that only reads"),
        ("load httpfs", "LOAD is no statement that only reads"),
        ("set threads = 1", "SET is no statement that only reads"),
        ("attach 'shop.duckdb'", "ATTACH is no statement that only reads"),
        ("pragma version", "PRAGMA is no statement that only reads"),
        ("create table t as select 1", "CREATE is no statement that only reads"),
        ("explain select 1", "EXPLAIN is no statement that only reads"),
        ("selec 1", "line 1: Parser Error"),
        ("select 1 as id,\n  nothing as text\nfrom 'x.parquet'", "line 2: Binder Error"),
        ("from 'none.parquet'", "IO Error: No files found"),
        ("from 'https://127.0.0.1:1/x.parquet'", "httpfs"),
        ("select 1 as n", "no column is the text"),
        ("select 'a' as text, row(1, '10:00:00+02'::timetz) as z", "column 'z' is"),
    ],
)  # fmt: skip
def test_what_does_not_only_read_is_refused(folder, monkeypatch, sql, said):
    """Anything but one SELECT or FROM, and what DuckDB refuses, ends with 65, one line, and the line of the query."""
    monkeypatch.chdir(folder)
    with pytest.raises(InputInvalid) as caught:
        opened(sql)

    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert not (folder / "out.csv").exists()


def test_an_error_on_the_way_ends_the_reading(folder):
    """What DuckDB finds in the middle ends with 65 after the rows before it, never as if it were the end."""
    source = opened(
        "select i as id, 't' as text,\n case when i = 90000 then 'x' else '1' end::int as n from range(100000) r(i)"
    )
    with pytest.raises(InputInvalid, match="the query, line 2: Conversion Error"):
        for _ in source.blocks():
            pass


@pytest.mark.parametrize(
    "sql",
    [
        "from '../secret.csv'",
        "from '{outside}/secret.csv'",
        "from 'link.csv'",
        "from 'linked/secret.csv'",
        "from 'linked/*.csv'",
        "select content as text from read_text('/etc/hostname')",
        "select file as text from glob('/etc/*')",
        "from read_csv('file://{outside}/secret.csv')",
        "from enable_logging('FileSystem', storage = 'file', storage_path = '{outside}/log')",
    ],
)
def test_a_job_files_query_stays_below_its_folder(folder, sql):
    """By no path, link, glob or function does it reach a file outside, whatever the current folder is."""
    with pytest.raises(InputInvalid):
        for _ in opened(sql.format(outside=folder.parent), folder=folder, text_column="text").blocks():
            pass
    assert not (folder.parent / "log").exists()


def test_a_job_files_database_stays_below_its_folder(folder):
    """Nor is one attached from outside, by a link or not."""
    (folder.parent / "other.duckdb").write_bytes((folder / "shop.duckdb").read_bytes())
    (folder / "link.duckdb").symlink_to(folder.parent / "other.duckdb")
    for path in ("../other.duckdb", str(folder.parent / "other.duckdb"), "link.duckdb"):
        with pytest.raises(InputInvalid, match="is outside of"):
            opened("from shop.notes", folder=folder, attach={"shop": path})


def test_a_users_own_query_reads_any_file(folder, monkeypatch):
    """Paths are relative to the current folder, as a shell has it."""
    monkeypatch.chdir(folder)

    assert rows("from '../secret.csv'")[0]["text"] == "secret"
    assert rows("from 'link.csv'")[0]["text"] == "secret"


def test_the_child_knows_no_keys_and_no_code_of_the_folder(folder, monkeypatch):
    """No key of the environment is in the child's, and a duckdb.py that lies in the folder is not run."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (folder / "duckdb.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(folder)
    (row,) = rows("select content as text from read_text('/proc/self/environ')")

    assert "PATH" in row["text"]
    assert "sk-secret" not in row["text"]


def test_types_that_arrow_has_none_for_are_exact(folder):
    """UUIDs stay UUIDs, HUGEINT is a decimal, times with a zone and bits are text; a number too long ends the query."""
    sql = """select '01890a5d-ac96-774b-bcce-b302099a8057'::uuid as id, 't' as text, 10::hugeint ** 30 as p,
        99999999999999999999999999999999999999::hugeint as h, '10:00:00+02'::time with time zone as z, '101'::bit as b,
        true as y, 1.10::decimal(20, 4) as d, null::uuid as u"""
    source = opened(sql)
    (block,) = source.blocks()
    kept = block.kept.to_pylist()[0]

    assert source.id_type == pa.uuid()
    assert block.ids == ["01890a5d-ac96-774b-bcce-b302099a8057"]
    assert block.kept.schema.field("h").type == pa.decimal128(38, 0)
    assert (kept["h"], kept["z"], kept["b"], kept["y"]) == (Decimal("9" * 38), "10:00:00+02", "101", True)
    assert (kept["d"], kept["u"]) == (Decimal("1.1000"), None)
    assert block.id_column.to_pylist() == [uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")]
    with pytest.raises(InputInvalid):
        list(opened("select 't' as text, 170141183460469231731687303715884105727::hugeint as h").blocks())


def test_reading_stops_with_its_reader():
    """Who stops reading leaves no process behind."""
    blocks = opened("select i as id, 't' as text from range(100000000) r(i)").blocks()
    assert len(next(blocks)) == 2048
    children = _children()
    blocks.close()

    assert len(children) == 1
    assert not os.path.exists(f"/proc/{children[0]}")


def test_a_child_that_dies_is_no_end(folder):
    """A process that is killed in the middle ends with 74, not as if its rows were all."""
    blocks = opened("select i as id, 't' as text from range(100000000) r(i)").blocks()
    next(blocks)
    os.kill(_children()[0], signal.SIGKILL)
    with pytest.raises(StorageFailed, match="the query's process ended with -9"):
        for _ in blocks:
            pass


def _children() -> list[int]:
    """Processes of queries that this one has started."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())]
    found = subprocess.run(command, capture_output=True, text=True)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "embedctl.inputs.query" in line]


def test_the_statement_that_is_read_is_the_one_that_was_asked():
    """Its fingerprint is its words and databases, for a resume; what it answers is found by reading."""
    source = opened("select 'a' as text", attach={})

    assert source.fingerprint() == {"files": [], "query": {"sql": "select 'a' as text", "attach": {}}}
    assert not source.is_known_unread
    assert source.label == queries.LABEL

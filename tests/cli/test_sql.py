"""`--sql`: a query instead of files, for `embed`, `batch run` and `vectors verify`; also in a JOB.toml."""

from __future__ import annotations

import json

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.running import embedctl, rows, user_settings

JOIN = (
    "select x.id, x.title || ' ' || y.body as text, y.lang from 'x.parquet' x join 'y.parquet' y using (id) order by id"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two tables to join, in the current folder."""
    place = tmp_path / "jobs"
    place.mkdir()
    pq.write_table(pa.table({"id": [2, 1, 3], "title": ["b", "a", "c"]}), place / "x.parquet")
    pq.write_table(
        pa.table({"id": [1, 2, 3], "body": ["A", "B", None], "lang": ["de", "en", "fr"]}), place / "y.parquet"
    )
    monkeypatch.chdir(place)
    return place


def test_the_rows_of_a_query_are_embedded(folder):
    """In its order, with its columns; a rerun asks again and buys nothing; verify asks the same query."""
    first = embedctl("embed", "--sql", JOIN, "-o", "o.parquet", "--json")
    again = embedctl("embed", "--sql", JOIN, "-o", "o.parquet", "--json")
    verified = embedctl("vectors", "verify", "o.parquet", "--sql", JOIN, "--json")
    other = embedctl("vectors", "verify", "o.parquet", "--sql", JOIN.replace("' '", "'-'"), "--json")

    assert (first.code, first.json["vectors"], first.json["skipped"]) == (0, 2, 1)
    assert [(row["id"], row["text"], row["lang"]) for row in rows("o.parquet")] == [(1, "a A", "de"), (2, "b B", "en")]
    assert (again.json["requests"], again.json["reused"]) == (0, 2)
    assert (verified.code, verified.json["rows_read"]) == (0, 3)
    assert other.code == 65


@pytest.mark.parametrize("kind", [("embed",), ("batch", "run")])
def test_a_query_whose_answer_changed_is_read_again(folder, kind):
    """A finished run is no reason to believe that the same query answers the same: new rows are found and bought."""
    sql = "select id, title as text from 'x.parquet' order by id"
    words = (*kind, "--sql", sql, "-o", "out", "--json")
    assert embedctl(*words).json["rows"] == 3
    pq.write_table(pa.table({"id": [1, 2, 4], "title": ["a", "new", "d"]}), "x.parquet")
    again = embedctl(*words)

    assert (again.code, again.json["vectors"], again.json["reused"]) == (0, 3, 1)
    found = rows(next((folder / "out").glob("part-*")) if kind[0] == "batch" else "out")
    assert [(row["id"], row["text"]) for row in found] == [(1, "a"), (2, "new"), (4, "d")]


def test_a_job_file_may_carry_a_query(folder, monkeypatch):
    """Its paths are relative to the file, and nothing outside of its folder is read."""
    (folder / "job.toml").write_text(f'sql = """{JOIN}"""\noutput = "out"\njob = "joined"\n')
    (folder / "bad.toml").write_text(
        'sql = "select content as text from read_text(\'/etc/hostname\')"\noutput = "bad"\n'
    )
    monkeypatch.chdir("/")
    done = embedctl("batch", "run", folder / "job.toml", "-o", folder / "out", "--json")
    bad = embedctl("batch", "run", folder / "bad.toml", "-o", folder / "bad")

    assert (done.code, done.json["vectors"]) == (0, 2)
    assert bad.code == 65
    assert "a job file's query reads below the folder of that file" in bad.err


def test_databases_are_attached_read_only(folder):
    """`--attach NAME=PATH`, or `attach = { NAME = PATH }`, relative to the job file."""
    with duckdb.connect("shop.duckdb") as connection:
        connection.execute("create table notes as select 7 as id, 'note' as text")
    (folder / "job.toml").write_text('sql = "from shop.notes"\nattach = { shop = "shop.duckdb" }\n')
    by_flag = embedctl("embed", "--sql", "from shop.notes", "--attach", "shop=shop.duckdb", "-o", "-", "-q")
    by_job = embedctl("batch", "run", "job.toml", "-o", "out", "--json")

    assert [row["text"] for row in by_flag.lines] == ["note"]
    assert by_job.json["vectors"] == 1
    assert embedctl("embed", "--sql", "from shop.notes", "--attach", "shop").code == 2
    assert embedctl("embed", "x.parquet", "--attach", "shop=shop.duckdb").code == 2
    assert embedctl("embed", "--sql", "from shop.notes", "--attach", "shop=none.duckdb").code == 66


def test_a_folders_settings_carry_no_query(folder):
    """Neither ./embedctl.toml nor the user's settings may: it belongs to one job."""
    (folder / "embedctl.toml").write_text("sql = \"from 'x.parquet'\"\n")
    project = embedctl("embed", "x.parquet")
    (folder / "embedctl.toml").unlink()
    user_settings("sql = \"from 'x.parquet'\"\n")
    own = embedctl("embed", "x.parquet", "--text-column", "title")

    assert (project.code, own.code) == (78, 78)
    assert "may not set sql: it would say which files are read" in project.err
    assert "sql belongs to one job" in own.err


@pytest.mark.parametrize(
    "words",
    [
        ["embed"],
        ["batch", "run", "-o", "out"],
        ["embed", "x.parquet", "--sql", "from 'x.parquet'"],
        ["batch", "run", "x.parquet", "--sql", "from 'x.parquet'", "-o", "out"],
        ["batch", "run", "both.toml", "-o", "out"],
        ["vectors", "verify", "o.parquet", "--input", "x.parquet", "--sql", "from 'x.parquet'"],
        ["vectors", "verify", "o.parquet", "--attach", "a=b"],
    ],
)
def test_files_and_a_query_contradict(folder, words):
    """One of them says what is embedded: both, or neither, end with 2."""
    (folder / "both.toml").write_text("sql = \"from 'x.parquet'\"\ninput = 'x.parquet'\n")
    embedctl("embed", "x.parquet", "--text-column", "title", "-o", "o.parquet", "-q")

    assert embedctl(*words).code == 2


def test_a_flag_is_stronger_than_the_job_file(folder):
    """INPUT or --sql on the command line stand instead of what the file says."""
    (folder / "sql.toml").write_text("sql = \"select 1 as id, 'job' as text\"\n")
    (folder / "input.toml").write_text("input = 'x.parquet'\n")
    (folder / "t.txt").write_text("named")
    query = embedctl("batch", "run", "input.toml", "--sql", "select 1 as id, 'flag' as text", "-o", "a", "--json")
    named = embedctl("batch", "run", "sql.toml", "t.txt", "-o", "b", "--json")

    assert query.code == named.code == 0
    assert [row["text"] for name in "ab" for row in rows(folder / name / "part-000000.parquet")] == ["flag", "named"]


def test_a_dry_run_asks_the_query(folder):
    """It counts the rows of the answer and sends nothing."""
    done = embedctl("embed", "--sql", JOIN, "--dry-run", "--json")

    assert (done.code, done.json["rows"], done.json["texts"], done.json["skipped"]) == (0, 3, 2, 1)
    assert not list(folder.glob("*.embeddings.parquet"))


def test_what_duckdb_refuses_is_one_line(folder):
    """With 65, the line of the query, and as JSON too."""
    plain = embedctl("embed", "--sql", "select id,\n  nothing as text\nfrom 'x.parquet'")
    machine = embedctl("embed", "--sql", "selec 1", "--json")

    assert plain.code == machine.code == 65
    assert plain.err.startswith("error: the query, line 2: Binder Error")
    assert json.loads(machine.out or machine.err)["exit_code"] == 65

"""People's files through the command line: what is read, what fails with its line, what is left out and said."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather
from pyarrow.parquet import encryption

from tests.support.running import Ran, embedctl, ledger, rows

EMBEDCTL = Path(sys.executable).with_name("embedctl")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def texts(path: str = "o.parquet") -> list[tuple[object, str]]:
    """Ids and texts of an output."""
    return [(row["id"], row["text"]) for row in rows(path)]


def failures(path: str = "o.parquet") -> list[tuple[object, str, str, bool]]:
    """What a failures file lists: id, reason, message, and whether the row was skipped."""
    lines = map(json.loads, Path(f"{path}.failures.jsonl").read_text().splitlines())
    return [(one["id"], one["reason"], one["message"], one.get("skipped", False)) for one in lines]


def embed(*words: str, stdin: str | bytes | None = None) -> Ran:
    """`embedctl embed WORDS -o o.parquet`."""
    return embedctl("embed", *words, "-o", "o.parquet", "--overwrite", stdin=stdin)


def test_a_quote_that_is_never_closed_ends_before_anything_is_sent() -> None:
    """499 rows behind an open quote: 65, the line where it begins, no output, no event in the ledger."""
    lines = ["id,title,text"] + [f"{n},title {n},some text of row {n}" for n in range(1000)]
    lines[501] = '500,title 500,"he said it is 5"" long'
    Path("a.csv").write_text("\n".join(lines) + "\n")
    done = embed("a.csv", "--text-column", "text")
    embedctl("usage", "ingest")

    assert done.code == 65
    assert "a.csv: line 502: the quote that begins a value there is never closed" in done.err
    assert not Path("o.parquet").exists()
    assert ledger("select count(*) from usage_event") == [(0,)]


BAD_ROWS = b'id,text\n1,one\n2,two,too many\n3,caf\xe9\n4,"four" or five\n5,"six\nseven"\n'


def test_a_row_that_cannot_be_read_fails_with_its_line() -> None:
    """Wrong counts, bytes that are no text and torn quotes fail their rows: exit 3, each with file and line."""
    Path("a.csv").write_bytes(BAD_ROWS)
    done = embed("a.csv")

    assert done.code == 3
    assert texts() == [("1", "one"), ("5", "six\nseven")]
    assert failures() == [
        ("a.csv#3", "bad_row", "a.csv: line 3: 3 values where 2 belong", False),
        ("3", "invalid_utf8",
         "a.csv: line 4: invalid UTF-8 at byte 6 (0xe9); --encoding says how it is written", False),
        ("4", "bad_row", "a.csv: line 5: a value goes on after its closing quote", False),
    ]  # fmt: skip


def test_a_file_of_which_no_row_can_be_read_is_not_a_matter_of_rows() -> None:
    """Where every row fails, as under a line of comment, the receipt asks about the header."""
    Path("a.csv").write_text("# from somewhere\nday,price\n1,2\n3,4\n")
    Path("b.csv").write_text("day,text\n1,one\n2,two,too much\n")
    none, some = embed("a.csv"), embed("b.csv")

    assert (none.code, some.code) == (3, 3)
    assert "failed: 3 bad_row: cannot be read (not one can: is the first line the header?" in none.err
    assert "failed: 1 bad_row: cannot be read (--on-bad-row skip leaves them out)" in some.err


def test_bad_rows_may_be_skipped() -> None:
    """--on-bad-row skip: exit 0, each such row on stderr without -v, counted as skipped, and listed."""
    Path("a.csv").write_bytes(BAD_ROWS)
    done = embed("a.csv", "--on-bad-row", "skip")
    receipt = embedctl("embed", "a.csv", "-o", "p.parquet", "--on-bad-row", "skip", "--json").json

    assert done.code == 0
    assert done.err.count("warning: skipped: row ") == 3
    assert "skipped: row a.csv#3: a.csv: line 3: 3 values where 2 belong\n" in done.err
    assert [one[3] for one in failures()] == [True] * 3
    assert (receipt["rows"], receipt["vectors"], receipt["failed"], receipt["skipped"]) == (5, 2, 0, 3)


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("[1]", "bad_row", "an object is needed, this is a list"),
        ('{"text": "x"}', "no_id", "no 'id'; --id-column chooses another field"),
        ('{"id": 9, "text": 5}', "bad_value", "'text' is a number, not text"),
    ],
)
def test_a_line_of_json_that_cannot_be_read_fails_alone(line: str, reason: str, message: str) -> None:
    """A line that is no object, has no id, or whose text is none: exit 3; the others are embedded."""
    Path("a.jsonl").write_text(f'{{"id": 1, "text": "one"}}\n{line}\n{{"id": 2, "text": "two"}}\n')

    assert embed("a.jsonl").code == 3
    assert texts() == [(1, "one"), (2, "two")]
    [found] = failures()
    assert found[1:] == (reason, f"a.jsonl: line 2: {message}", False)


def test_a_header_without_rows_is_nothing_to_do() -> None:
    """A table of a header alone: exit 0, no rows."""
    Path("a.csv").write_text("id,text\n")

    assert embed("a.csv").code == 0
    assert embedctl("batch", "run", "a.csv", "-o", "out", "--json").json["rows"] == 0


def test_a_table_may_come_through_a_pipe() -> None:
    """`cat x.csv | embedctl embed - --format csv`, and every dialect that is said."""
    assert embed("-", "--format", "csv", stdin="id,text\n1,one\n").code == 0
    assert texts() == [("1", "one")]
    assert embed("-", "--format", "csv", "--delimiter", ";", "--no-header", stdin="1;one, two\n").code == 0
    assert texts() == [(0, "one, two")]
    assert rows("o.parquet")[0]["column0"] == "1"
    assert embed("-", "--format", "excel", stdin="x").code == 2


def test_a_mixed_folder_names_what_it_leaves_out() -> None:
    """Other kinds and binary files are counted in the receipt, in words and in JSON, and listed with -v."""
    Path("docs").mkdir()
    Path("docs/a.txt").write_text("hello")
    Path("docs/page.html").write_text("<p>")
    Path("docs/b.txt").write_bytes(bytes(range(256)))
    plain, verbose = embed("docs"), embed("docs", "-v")
    receipt = embedctl("embed", "docs", "-o", "p.parquet", "--json", "--encoding", "latin-1").json

    assert plain.code == verbose.code == 0
    assert "2 files left out (1 binary, 1 of another kind); -v lists them\n" in plain.err
    assert "page.html" not in plain.err
    assert "left out: docs/page.html: other kind\n" in verbose.err
    assert "left out: docs/b.txt: b.txt is binary: a zero byte at offset 0\n" in verbose.err
    assert receipt["left_out"] == {"count": 2, "reasons": {"binary": 1, "other_kind": 1}}
    assert texts("p.parquet") == [("a.txt", "hello")]
    assert embed("docs/b.txt", "--encoding", "latin-1").code == 65


def test_one_bad_file_need_not_end_a_run() -> None:
    """A Latin-1 file among others: 65, or with --on-bad-file skip exit 0 and the file on stderr, without -v."""
    Path("docs").mkdir()
    for name, content in {"a": b"hello", "b": b"caf\xe9 du nord", "c": b"third"}.items():
        Path(f"docs/{name}.txt").write_bytes(content)
    ended, skipped = embed("docs"), embed("docs", "--on-bad-file", "skip")

    assert ended.code == 65
    assert skipped.code == 0
    assert "warning: left out: b.txt: line 1: invalid UTF-8 at byte 4 (0xe9)\n" in skipped.err
    assert "1 file left out (1 unreadable)" in skipped.err
    assert texts() == [("a.txt", "hello"), ("c.txt", "third")]
    again = embedctl("vectors", "verify", "o.parquet", "--input", "docs")
    assert again.code == 0, again.err + again.out


def test_dialects_and_bad_rows_are_keys_of_a_job_and_some_of_a_project() -> None:
    """JOB.toml has every option; a project's embedctl.toml may say what becomes of bad rows and files, not dialects."""
    Path("a.csv").write_text("1;one\n2\n")
    Path("job.toml").write_text(
        'input = "a.csv"\noutput = "out"\nformat = "csv"\ndelimiter = ";"\nheader = false\non_bad_row = "skip"\n'
        'on_bad_file = "skip"\ntext_column = "column1"\n'
    )
    done = embedctl("batch", "run", "job.toml", "--json")

    assert (done.code, done.json["vectors"], done.json["skipped"]) == (0, 1, 1)
    assert embedctl("vectors", "verify", "out", "--input", "a.csv").code == 0
    again = embedctl("batch", "run", "job.toml", "--json").json
    assert (again["vectors"], again["reused"], again["requests"]) == (1, 1, 0)
    Path("embedctl.toml").write_text('on_bad_row = "skip"\non_bad_file = "skip"\n')
    Path("b.csv").write_text("id,text\n1,a\n2\n")
    assert embed("b.csv").code == 0
    for key in ('delimiter = ";"', "header = true", 'format = "csv"'):
        Path("embedctl.toml").write_text(key)
        refused = embed("b.csv")
        assert refused.code == 78
        assert f"a project's file may not set {key.split()[0]}" in refused.err


def test_invisible_texts_are_blank() -> None:
    """Texts of nothing but zero-width or control characters are skipped as blank; they would all have one vector."""
    found = ["\u200b", "\ufeff\u2060", "\x00\x07", "\u00ad \u3164", "a\u200b", "\u0301", "."]
    Path("a.jsonl").write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(found)))

    assert embed("a.jsonl").code == 0
    assert [one[0] for one in texts()] == [4, 5, 6]
    assert [(one[0], one[1]) for one in failures()] == [(0, "blank"), (1, "blank"), (2, "blank"), (3, "blank")]


def test_folders_of_hive_are_columns_and_may_pay() -> None:
    """`tenant=acme/part.parquet` gives the column tenant, which may name the workspaces."""
    for tenant in ("acme", "beta"):
        Path(f"in/tenant={tenant}").mkdir(parents=True)
        pq.write_table(pa.table({"id": [tenant], "text": [f"of {tenant}"]}), f"in/tenant={tenant}/part.parquet")
    done = embed("in", "--workspace-column", "tenant")

    assert done.code == 0, done.err
    assert [row["tenant"] for row in rows("o.parquet")] == ["acme", "beta"]
    assert ledger("select workspace_id from usage_event order by all") == [("acme",), ("beta",)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "arrow", "csv.zst"])
def test_names_are_bytes_in_every_format(here: Path, suffix: str) -> None:
    """A name that is no UTF-8 works as input, as -o and as the current folder, in every format; it is shown escaped."""
    table = pa.table({"id": ["1", "2"], "text": ["one", "two"]})
    folder = Path(os.fsdecode(b"f-\xe9"))
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.") + suffix
    content = {
        "csv": b"id,text\n1,one\n2\n", "tsv": b"id\ttext\n1\tone\n2\n",
        "jsonl": b'{"id": "1", "text": "one"}\n[]\n', "json": b'[{"id": "1", "text": "one"}, []]',
    }  # fmt: skip
    if suffix == "parquet":
        pq.write_table(table, "plain")
        Path("plain").rename(folder / name)
    elif suffix == "arrow":
        with pa.OSFile(os.fsencode(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif suffix == "csv.zst":
        with pa.OSFile(os.fsencode(folder / name), "wb") as sink, pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(content["csv"])
    else:
        (folder / name).write_bytes(content[suffix])
    for inputs in (name, os.fsdecode(b"caf\xe9.*")):
        done = subprocess.run(
            [EMBEDCTL, "embed", inputs, "-o", os.fsdecode(b"o-\xe9.parquet"), "--overwrite"],
            cwd=folder, capture_output=True, check=False,
        )  # fmt: skip

        assert done.returncode == (0 if suffix in ("parquet", "arrow") else 3), done.stderr
        assert b"output: o-\\xe9.parquet" in done.stderr
        assert (folder / os.fsdecode(b"o-\xe9.parquet")).is_file()
    if suffix in content:
        [line] = (folder / os.fsdecode(b"o-\xe9.parquet.failures.jsonl")).read_text().splitlines()
        assert json.loads(line)["message"].startswith("caf\\xe9." + suffix)


class _Keys(encryption.KmsClient):
    """Who keeps keys, and does not hide them."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("footer", [True, False], ids=["readable footer", "hidden footer"])
def test_encrypted_parquet_is_refused(footer: bool) -> None:
    """65 and one line, also where the footer can be read: pyarrow would end the process at the first hidden column."""
    config = encryption.EncryptionConfiguration("f", column_keys={"k": ["secret"]}, plaintext_footer=footer)
    factory = encryption.CryptoFactory(lambda _: _Keys())
    hidden = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    content = pa.table({"text": ["one", "two"], "secret": [1, 2]})
    with pq.ParquetWriter("a.parquet", content.schema, encryption_properties=hidden) as writer:
        writer.write_table(content)
    done = subprocess.run([EMBEDCTL, "embed", "a.parquet", "--no-progress"], capture_output=True, text=True)

    assert done.returncode == 65
    assert done.stderr.startswith("error: a.parquet: ")
    assert "encrypted" in done.stderr


def test_categories_of_polars_are_texts() -> None:
    """Dictionaries whose places are unsigned numbers, with nulls, as Polars writes categories, are read."""
    words = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.uint32()), pa.array(["one", "two"]))
    feather.write_feather(pa.table({"text": words, "id": [1, 2, 3]}), "a.arrow")
    done = embed("a.arrow")

    assert (done.code, texts()) == (0, [(1, "two"), (3, "one")])
    assert failures() == [(2, "null", "the cell is empty", True)]


def test_columns_of_a_text_file_are_no_silent_wish() -> None:
    """A template or text column that a text file cannot have changes nothing, and that is said."""
    Path("a.txt").write_text("The harbour opens at seven.")
    done = embed("a.txt", "--template", "passage: {text}")

    assert done.code == 0
    assert "warning: text files have no columns: --template changes nothing" in done.err
    assert "warning" not in embed("a.txt").err

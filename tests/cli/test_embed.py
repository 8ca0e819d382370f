"""`embedctl embed`: every kind of input in, rows of the file and rows of the ledger out."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.outputs.parquet import matrix, read_metadata
from tests.support import places
from tests.support.running import Ran, embedctl, ledger, rows, user_settings

SAMPLES = places.SAMPLES
HELLO = {
    "chunk_index": 0,
    "embedding_model": "all-MiniLM-L6-v2",
    "embedding_provider": "onnx",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def row(row_id: str | int, text: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"id": row_id, **more, "text": text, "embedding_tokens": tokens, **HELLO}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def vectors(path: str | Path) -> np.ndarray:
    return matrix(pq.read_table(path).column("embedding"), 384)


def settled(ran: Ran, code: int = 0) -> str:
    """Everything on stderr, without what differs from run to run."""
    assert ran.code == code, ran.err
    return re.sub(r"in \d+\.\d s", "in N s", ran.err)


def test_one_file_becomes_vectors_a_receipt_and_usage(here: Path) -> None:
    """A text file without key, network or settings: its Parquet, a receipt on stderr, one row in the ledger."""
    Path("hello.txt").write_text("hello world")
    done = embedctl("embed", "hello.txt")

    assert settled(done) == (
        "1 row: 1 vector in N s\n"
        "1 request by onnx, 4 tokens, cost 0.00 USD, paid by default\n"
        "output: hello.embeddings.parquet (onnx:all-MiniLM-L6-v2, 384 dimensions)\n"
    )
    assert done.out == ""
    assert rows("hello.embeddings.parquet") == [row("hello.txt", "hello world", 4)]
    assert files(here) == {"hello.txt", "hello.embeddings.parquet"}
    assert ledger(
        "select workspace_id, provider, model, status, billable, tokens_total, usage_source, input_count, purpose, "
        "cost from usage_event"
    ) == [("default", "onnx", "all-MiniLM-L6-v2", "ok", "yes", 4, "native", 1, "ingest", 0)]


def test_the_receipt_for_programs_agrees_with_the_file_and_the_ledger() -> None:
    """--json prints one object on stdout, nothing on stderr; its numbers are those of output and ledger."""
    Path("a.txt").write_text("one\n\ntwo\none\n")
    done = embedctl("embed", "a.txt", "--split", "lines", "--json", "-w", "acme", "--tag", "team=search")
    receipt = done.json
    found = read_metadata(Path("a.embeddings.parquet")) or {}

    assert (done.code, done.err) == (0, "")
    assert list(receipt) == [
        "run_id",
        "job",
        "workspace",
        "model",
        "providers",
        "fallback_from",
        "dimensions",
        "dimension_policy",
        "space_id",
        "usage_source",
        "rows",
        "vectors",
        "reused",
        "duplicates",
        "failed",
        "skipped",
        "left_out",
        "requests",
        "attempts",
        "tokens",
        "tokens_estimated",
        "tokens_unknown",
        "cost",
        "cost_is_lower_bound",
        "cost_at_risk",
        "cost_saved",
        "currency",
        "seconds",
        "output",
        "failures",
        "failed_reasons",
        "exit_code",
        "retryable",
        "resume",
        "workspaces",
        "batch",
        "unfinished",
    ]
    assert receipt["unfinished"] is None
    counts = [receipt[name] for name in ("rows", "vectors", "duplicates", "failed", "skipped")]
    assert counts == [4, 3, 1, 0, 1]
    assert receipt["rows"] == len(rows("a.embeddings.parquet")) + receipt["failed"] + receipt["skipped"]
    assert (receipt["run_id"], receipt["space_id"]) == (found["run_id"], found["space_id"])
    assert ledger("select workspace_id, run_id::varchar, tokens_total, tags->>'$.team' from usage_event") == [
        ("acme", receipt["run_id"], receipt["tokens"], "search")
    ]


def test_quiet_says_nothing() -> None:
    """-q prints nothing when all went well."""
    Path("a.txt").write_text("hello")

    assert embedctl("embed", "a.txt", "-q") == Ran(0, "", "")


def test_several_files_are_one_output_in_order() -> None:
    """Files named together stand in embeddings.parquet, in the order of their names' sorting or as given."""
    Path("b.txt").write_text("bee")
    Path("a.txt").write_text("ant")
    done = embedctl("embed", "b.txt", "a.txt")

    assert done.code == 0
    assert {one["id"]: one["text"] for one in rows("embeddings.parquet")} == {"b.txt": "bee", "a.txt": "ant"}


def test_a_glob_and_a_folder_find_the_same_files() -> None:
    """'docs/**/*.md' and docs give the same rows; ids are paths below the input root."""
    Path("docs/deep").mkdir(parents=True)
    Path("docs/a.md").write_text("# A\n\ntext of a")
    Path("docs/deep/b.md").write_text("# B\n\ntext of b")
    by_glob = embedctl("embed", "docs/**/*.md", "-o", "glob.parquet")
    by_folder = embedctl("embed", "docs", "-o", "folder.parquet")

    assert (by_glob.code, by_folder.code) == (0, 0)
    assert [one["text"] for one in rows("glob.parquet")] == [one["text"] for one in rows("folder.parquet")]
    assert [one["id"] for one in rows("folder.parquet")] == ["a.md", "deep/b.md"]


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        (["a.txt"], "a.embeddings.parquet"),
        (["docs"], "docs.embeddings.parquet"),
        (["docs/c.tar.txt"], "c.tar.embeddings.parquet"),
        (["z.txt.gz"], "z.embeddings.parquet"),
        (["*.txt"], "embeddings.parquet"),
        (["a.txt", "docs"], "embeddings.parquet"),
        (["-"], "embeddings.parquet"),
    ],
)
def test_an_output_without_a_name_gets_one(here: Path, inputs: list[str], name: str) -> None:
    """STEM.embeddings.parquet for one input, embeddings.parquet for several, a glob or stdin; in the current folder."""
    Path("docs").mkdir()
    Path("docs/c.tar.txt").write_text("see")
    Path("a.txt").write_text("ant")
    Path("z.txt.gz").write_bytes(gzip.compress(b"zed"))
    before = files(here)
    done = embedctl("embed", *inputs, "-q", stdin="from stdin")

    assert done.code == 0, done.err
    assert files(here) - before == {name}


def test_stdin_is_a_document() -> None:
    """- reads text from stdin."""
    done = embedctl("embed", "-", "-o", "out.parquet", "-q", stdin="hello from a pipe")

    assert done.code == 0
    assert [one["text"] for one in rows("out.parquet")] == ["hello from a pipe"]


@pytest.mark.parametrize(
    ("split", "texts"),
    [
        ("document", ["first line\nsecond line\n\nnew paragraph\n"]),
        ("lines", ["first line", "second line", "new paragraph"]),
        ("paragraphs", ["first line\nsecond line", "new paragraph"]),
    ],
)
def test_a_text_file_is_a_document_lines_or_paragraphs(split: str, texts: list[str]) -> None:
    """--split says what a row of a text file is; a byte order mark and CRLF are no part of the text."""
    Path("a.txt").write_bytes(b"\xef\xbb\xbffirst line\nsecond line\n\nnew paragraph\n")
    done = embedctl("embed", "a.txt", "--split", split, "-o", "out.parquet", "-q")

    assert done.code == 0
    assert [one["text"] for one in rows("out.parquet")] == texts


def test_a_long_document_is_chunked_and_a_short_one_is_not() -> None:
    """--chunk-size in the model's tokens: chunks are numbered from 0, fit, and overlap as asked."""
    Path("long.txt").write_text(" ".join(f"word{i}" for i in range(100)))
    Path("short.txt").write_text("short")
    done = embedctl(
        "embed", "long.txt", "short.txt", "--chunk-size", 50, "--chunk-overlap", 10, "-o", "o.parquet", "-q"
    )
    found = rows("o.parquet")
    long = [one for one in found if one["id"] == "long.txt"]

    assert done.code == 0
    assert [one["chunk_index"] for one in long] == list(range(len(long)))
    assert len(long) > 3
    assert max(one["embedding_tokens"] for one in found) <= 52
    assert long[0]["text"].split()[-1] in long[1]["text"].split()
    assert [one["text"] for one in found if one["id"] == "short.txt"] == ["short"]


def test_documents_are_cut_to_what_the_model_takes() -> None:
    """Without any flag no chunk of a long document is over the model's 256 tokens, and none is lost."""
    shutil.copy(SAMPLES / "handbook.md", "handbook.md")
    done = embedctl("embed", "handbook.md", "--json")
    found = rows("handbook.embeddings.parquet")

    assert done.code == 0
    assert max(one["embedding_tokens"] for one in found) <= 256
    assert len(found) == done.json["vectors"] > 10
    assert (done.json["rows"], done.json["failed"]) == (1, 0)


CSV = 'sku,name,body,price\nA1,Lamp,"A lamp, with\na shade",12.5\nA2,Chair,,40\nA3,Desk,A desk,99\n'


def test_a_csv_needs_its_columns_named_when_they_are_not_clear() -> None:
    """--text-column and --id-column choose; other columns travel along as they are written."""
    Path("p.csv").write_text(CSV)
    done = embedctl("embed", "p.csv", "--text-column", "body", "--id-column", "sku")

    assert done.code == 0
    assert [(one["id"], one["name"], one["price"], one["text"]) for one in rows("p.embeddings.parquet")] == [
        ("A1", "Lamp", "12.5", "A lamp, with\na shade"),
        ("A3", "Desk", "99", "A desk"),
    ]
    assert [
        json.loads(line)["id"] for line in Path("p.embeddings.parquet.failures.jsonl").read_text().splitlines()
    ] == ["A2"]


@pytest.mark.parametrize(
    ("keep", "columns"),
    [("all", ["name", "price"]), ("none", []), ("price", ["price"]), ("price,name", ["name", "price"])],
)
def test_keep_says_which_columns_travel(keep: str, columns: list[str]) -> None:
    """--keep all, none or names; none leaves the text out too."""
    Path("p.csv").write_text(CSV)
    done = embedctl(
        "embed", "p.csv", "--text-column", "body", "--id-column", "sku", "--keep", keep, "-q", "-o", "o.parquet"
    )
    names = pq.read_schema("o.parquet").names

    assert done.code == 0
    assert set(names) - {"text"} == {"id", "chunk_index", *columns} | {n for n in names if n.startswith("embedding")}
    assert ("text" in names) == (keep != "none")


def test_json_lines_are_rows() -> None:
    """Each line of a .jsonl file is a row; `text` and `id` are found."""
    shutil.copy(SAMPLES / "faq.jsonl", "faq.jsonl")
    done = embedctl("embed", "faq.jsonl", "--json")
    source = [json.loads(line) for line in Path("faq.jsonl").read_text("utf-8").splitlines()]

    assert done.code == 0
    assert [one["text"] for one in rows("faq.embeddings.parquet")] == [one["text"] for one in source]


def test_a_parquet_table_is_accounted_for_row_by_row() -> None:
    """Of the sample tickets: rows in = rows with a vector + failures, and each failure has its reason."""
    shutil.copy(SAMPLES / "tickets.parquet", "tickets.parquet")
    done = embedctl("embed", "tickets.parquet", "--json")
    source = pq.read_table("tickets.parquet").to_pylist()
    found = pq.read_table("tickets.embeddings.parquet").to_pylist()
    failed = [json.loads(line) for line in Path("tickets.embeddings.parquet.failures.jsonl").read_text().splitlines()]

    assert done.code == 3
    assert {one["id"] for one in source} == {one["id"] for one in found} | {one["id"] for one in failed}
    assert len(source) == len(found) + len(failed) == done.json["rows"]
    assert {one["reason"] for one in failed} == {"blank", "null", "too_long"}
    assert (done.json["failed"], done.json["skipped"]) == (
        sum("skipped" not in one for one in failed),
        sum("skipped" in one for one in failed),
    )
    by_id = {one["id"]: one for one in source}
    assert all(one["text"] == by_id[one["id"]]["text"] for one in found)
    assert all(one["product"] == by_id[one["id"]]["product"] for one in found)


def test_a_vector_belongs_to_its_text() -> None:
    """Vectors of a shuffled table are those of the texts alone, and duplicates share theirs."""
    shutil.copy(SAMPLES / "tickets.parquet", "tickets.parquet")
    embedctl("embed", "tickets.parquet", "-q")
    found, matrix_of = rows("tickets.embeddings.parquet"), vectors("tickets.embeddings.parquet")
    some = [0, 17, 40, len(found) - 1]
    Path("some.jsonl").write_text("".join(json.dumps({"id": i, "text": found[i]["text"]}) + "\n" for i in some))
    embedctl("embed", "some.jsonl", "-q")

    assert ((vectors("some.embeddings.parquet") * matrix_of[some]).sum(axis=1) > 0.9999).all()
    by_text: dict[str, int] = {}
    for place, one in enumerate(found):
        first = by_text.setdefault(one["text"], place)
        np.testing.assert_array_equal(matrix_of[place], matrix_of[first])
    assert len(by_text) < len(found)


def test_the_hash_is_of_the_text_that_was_sent() -> None:
    """embedding_text_hash is blake2b-128 of the exact text."""
    Path("a.txt").write_text("héllo")
    embedctl("embed", "a.txt", "-q")
    digest = pq.read_table("a.embeddings.parquet").column("embedding_text_hash").to_pylist()

    assert digest == [hashlib.blake2b("héllo".encode(), digest_size=16).digest()]


def test_json_lines_on_stdout() -> None:
    """-o - prints one object per vector with the names of the columns, the receipt stays on stderr."""
    Path("a.txt").write_text("one\ntwo\n")
    done = embedctl("embed", "a.txt", "--split", "lines", "-o", "-")
    first, second = done.lines

    assert done.code == 0
    assert "2 rows: 2 vectors" in done.err
    assert list(first) == [
        "id", "chunk_index", "text", "embedding", "embedding_model", "embedding_provider", "embedding_tokens",
        "embedding_operation_id", "embedding_text_hash",
    ]  # fmt: skip
    assert (first["text"], second["text"]) == ("one", "two")
    np.testing.assert_allclose(np.linalg.norm(first["embedding"]), 1, atol=1e-5)


def test_times_of_nanoseconds_on_stdout(here: Path) -> None:
    """`-o -` prints times that Python has no type for in full."""
    times = pa.array([1_000_000_001, None, 2_000_000_000], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"], "at": times}), "in.parquet")
    done = embedctl("embed", "in.parquet", "-o", "-")

    assert done.code == 0, done.err
    assert [line["at"] for line in done.lines] == [
        "1970-01-01T00:00:01.000000001",
        None,
        "1970-01-01T00:00:02.000000000",
    ]


def test_vectors_on_stdout_may_be_base64(here: Path) -> None:
    """--vectors base64 prints little-endian float32; nothing is left in the folder."""
    Path("a.txt").write_text("one")
    plain = embedctl("embed", "a.txt", "-o", "-", "-q").lines[0]
    packed = embedctl("embed", "a.txt", "-o", "-", "-q", "--vectors", "base64").lines[0]

    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(packed["embedding"]), "<f4"), plain["embedding"], atol=1e-6
    )
    assert files(here) == {"a.txt"}


def test_a_column_of_token_arrays_is_decoded_for_a_model_that_takes_text() -> None:
    """Arrays of the model's own tokens give the vectors of the text they stand for."""
    arrays = pa.array([[101, 7592, 2088, 102], [2204, 2851], []], pa.list_(pa.int32()))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "tokens": arrays}), "t.parquet")
    Path("a.jsonl").write_text('{"id": 1, "text": "hello world"}\n{"id": 2, "text": "good morning"}\n')
    done = embedctl("embed", "t.parquet", "--text-column", "tokens", "--json")
    embedctl("embed", "a.jsonl", "-q")

    assert done.code == 0, done.out
    assert (done.json["vectors"], done.json["skipped"]) == (2, 1)
    np.testing.assert_allclose(vectors("t.embeddings.parquet"), vectors("a.embeddings.parquet"), atol=1e-3)


@pytest.mark.parametrize("vector_type", ["fixed", "list"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_form_of_vectors_is_chosen(dtype: str, vector_type: str) -> None:
    """--dtype and --vector-type decide the Parquet type, and the direction stays."""
    Path("a.txt").write_text("hello world")
    done = embedctl("embed", "a.txt", "--dtype", dtype, "--vector-type", vector_type, "-q", "-o", f"{dtype}.parquet")
    embedctl("embed", "a.txt", "-q", "-o", "plain.parquet")
    kind = pq.read_schema(f"{dtype}.parquet").field("embedding").type
    found, plain = vectors(f"{dtype}.parquet")[0], vectors("plain.parquet")[0]

    assert done.code == 0
    assert str(kind.value_type) == {"float32": "float", "float16": "halffloat", "int8": "int8"}[dtype]
    assert pa.types.is_fixed_size_list(kind) == (vector_type == "fixed")
    assert float(found @ plain) / float(np.linalg.norm(found)) > 0.9999


def test_a_more_precise_rerun_does_not_take_less_precise_vectors() -> None:
    """After --dtype int8 a float32 run embeds again: its vectors have unit length, not that of small integers."""
    Path("a.txt").write_text("hello world")
    embedctl("embed", "a.txt", "--dtype", "int8", "-q")
    done = embedctl("embed", "a.txt", "--json")

    assert (done.code, done.json["reused"]) == (0, 0)
    np.testing.assert_allclose(np.linalg.norm(vectors("a.embeddings.parquet"), axis=1), 1, atol=1e-5)


def test_a_rerun_buys_nothing_and_a_changed_text_only_itself() -> None:
    """The same command again reuses all; with one line changed it embeds one; the ledger has no third attempt."""
    Path("a.txt").write_text("one\ntwo\nthree\n")
    words = ("embed", "a.txt", "--split", "lines", "--json")
    first, second = embedctl(*words), embedctl(*words)
    Path("a.txt").write_text("one\nTWO!\nthree\n")
    third = embedctl(*words)

    assert (first.json["vectors"], second.json["requests"], second.json["reused"]) == (3, 0, 3)
    assert (third.json["requests"], third.json["reused"], third.json["vectors"]) == (1, 2, 3)
    assert ledger("select input_count from usage_event order by event_id") == [(3,), (1,)]
    assert [one["text"] for one in rows("a.embeddings.parquet")] == ["one", "TWO!", "three"]


def test_an_output_of_another_kind_is_replaced_only_when_asked() -> None:
    """--overwrite replaces what is there, and embeds everything anew."""
    Path("a.txt").write_text("hello")
    Path("out.parquet").write_text("somebody's own")
    refused = embedctl("embed", "a.txt", "-o", "out.parquet")
    kept = Path("out.parquet").read_text()
    done = embedctl("embed", "a.txt", "-o", "out.parquet", "--overwrite", "-q")

    assert (refused.code, kept, done.code) == (73, "somebody's own", 0)
    assert len(rows("out.parquet")) == 1


def test_the_settings_of_a_project_are_used() -> None:
    """./embedctl.toml sets the workspace, one that the user's settings list; a flag is stronger."""
    user_settings("[workspaces.project]")
    Path("embedctl.toml").write_text('workspace = "project"')
    Path("a.txt").write_text("hello")
    embedctl("embed", "a.txt", "-q")
    embedctl("embed", "a.txt", "-q", "-w", "flag", "-o", "b.parquet")

    assert ledger("select workspace_id from usage_event order by event_id") == [("project",), ("flag",)]


def test_a_workspace_column_splits_the_bill() -> None:
    """--workspace-column: every row is paid by the workspace it names."""
    Path("t.jsonl").write_text(
        '{"id": 1, "text": "one", "team": "acme"}\n{"id": 2, "text": "two", "team": "beta"}\n'
        '{"id": 3, "text": "three", "team": null}\n'
    )
    done = embedctl("embed", "t.jsonl", "--text-column", "text", "--workspace-column", "team")

    assert done.code == 0, done.err
    assert "paid in USD by acme 0.00, beta 0.00, default 0.00" in done.err
    assert "paid by default" not in done.err
    assert ledger("select workspace_id, sum(input_count) from usage_event group by all order by all") == [
        ("acme", 1),
        ("beta", 1),
        ("default", 1),
    ]


@pytest.mark.parametrize(
    ("policy", "code", "vectors_made"),
    [("fail", 3, 1), ("skip", 0, 1), ("truncate", 0, 2), ("chunk", 0, 3), ("mean", 0, 2)],
)
def test_a_row_over_the_limit_is_treated_as_asked(policy: str, code: int, vectors_made: int) -> None:
    """--on-too-long: fail and skip leave it out, truncate and mean give one vector, chunk several."""
    long = "word " * 300
    Path("t.jsonl").write_text(json.dumps({"id": 1, "text": "ok"}) + "\n" + json.dumps({"id": 2, "text": long}) + "\n")
    done = embedctl("embed", "t.jsonl", "--on-too-long", policy, "--json")

    assert done.code == code
    assert done.json["vectors"] == len(rows("t.embeddings.parquet")) == vectors_made
    np.testing.assert_allclose(np.linalg.norm(vectors("t.embeddings.parquet"), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("handbook.md", []),
        ("notes.txt", ["--split", "lines"]),
        ("faq.jsonl", []),
        ("products.csv", ["--text-column", "description", "--id-column", "sku"]),
        ("tickets.parquet", ["--on-too-long", "chunk"]),
    ],
)
def test_each_sample_works_as_its_readme_says(name: str, flags: list[str]) -> None:
    """Every file of sample_data is embedded with the flags its README names."""
    shutil.copy(SAMPLES / name, name)
    done = embedctl("embed", name, *flags, "--json")
    receipt = done.json

    assert done.code == 0
    assert receipt["failed"] == 0
    assert receipt["vectors"] > 3


def test_the_whole_sample_folder_says_why_it_is_not_one_run(here: Path) -> None:
    """Text and tables do not mix: the error names one of each and how to choose."""
    shutil.copytree(SAMPLES, "sample_data")
    before = files(here)
    done = embedctl("embed", "sample_data")

    assert done == Ran(
        65,
        "",
        "error: text and tables do not mix: README.md is text, faq.jsonl is jsonl\n"
        "hint: one run for each; a glob such as 'folder/**/*.md', or --format, chooses\n",
    )
    assert files(here) == before

"""Search by meaning: exact, in every number type, through the file's own space, and paid for in the open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.errors import InputInvalid
from embedctl.vectors import files, search
from tests.support import places
from tests.support.running import embedctl
from tests.support.vector_files import SPACE, folder, put, rows, vector
from tests.support.wire import client

FAQ = places.SAMPLES / "faq.jsonl"


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_row_of_a_text_is_its_nearest(tmp_path: Path, dtype: Any) -> None:
    """A row's own vector finds that row first, with a cosine of one, in every number type and over several parts."""
    path = folder(tmp_path / "out", [rows(300, start) for start in (0, 300, 600)])
    for number, start in enumerate((0, 300, 600)):
        put(path / f"part-{number:06d}.parquet", rows(300, start), dtype=dtype)
    stored = files.open_stored(path)
    for row in (0, 299, 300, 611, 899):
        hit = search.nearest(stored, vector(f"text number {row} about nothing"), 3)[0]

        assert (hit.row, hit.id, hit.text) == (row, f"row-{row}", f"text number {row} about nothing")
        assert hit.score == pytest.approx(1.0, abs=2e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(1, 60))
def test_search_is_exact(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, k: int) -> None:
    """The rows found are those of a full comparison, best first; of equal ones the first in the file."""
    made = rows(count)
    made.vectors = np.random.default_rng(seed).integers(-1, 2, made.vectors.shape).astype(np.float32)
    made.vectors[:, 0] = 1
    stored = files.open_stored(put(tmp_path_factory.mktemp("search") / "out.parquet", made))
    query = made.vectors[seed % count]
    lengths = np.linalg.norm(made.vectors, axis=1) * np.linalg.norm(query)
    cosines = np.round((made.vectors @ query) / lengths, 6)
    expected = np.lexsort((np.arange(count), -cosines))[:k]
    found = search.nearest(stored, query, k)

    assert [round(hit.score, 6) for hit in found] == pytest.approx(cosines[expected].tolist(), abs=2e-6)
    assert len({hit.row for hit in found}) == min(k, count)


def test_a_vector_that_is_none_is_never_found(tmp_path: Path) -> None:
    """Zeros, NaN and infinity are passed over; they do not come first."""
    made = rows(5)
    made.vectors[0], made.vectors[1, 0], made.vectors[2, 0] = 0, np.nan, np.inf
    stored = files.open_stored(put(tmp_path / "out.parquet", made))
    found = search.nearest(stored, made.vectors[4], 5)

    assert [hit.row for hit in found] == [4, 3]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """A search over a file that cannot be read whole says so: what is nearest may be in what is lost."""
    path = put(tmp_path / "out.parquet", rows(20))
    content = bytearray(path.read_bytes())
    content[content.index(rows(20).vectors[9].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputInvalid, match="CRC") as refused:
        search.nearest(files.open_stored(path), vector("x"), 1)

    assert "verify" in str(refused.value.hint)


def test_search_finds_the_meaning_offline(tmp_path: Path, clean_environment: Path) -> None:
    """With the bundled model a question finds its answer; the call is in the ledger, with purpose query."""
    output = tmp_path / "faq.parquet"
    assert run("embed", str(FAQ), "-o", str(output), "-q")[0] == 0
    words = "How long do you keep my invoices?"
    code, out, err = run("vectors", "search", str(output), words, "-k", "2", "-w", "shop", "--json")
    results = json.loads(out)["results"]

    assert (code, err) == (0, "")
    assert [list(one) for one in results] == [["id", "chunk_index", "score", "text"]] * 2
    assert "invoices for ten years" in results[0]["text"]
    assert results[0]["score"] > results[1]["score"] > 0
    with duckdb.connect(str(clean_environment / "usage.duckdb"), read_only=True) as ledger:
        events = ledger.execute("SELECT purpose, workspace_id, count(*) FROM usage_event GROUP BY ALL ORDER BY 1")

        assert events.fetchall() == [("ingest", "default", 1), ("query", "shop", 1)]
    assert not list((clean_environment / "journal").glob("*"))
    assert not list((clean_environment / "spool").glob("*.spool"))


def test_what_is_found_is_shown_for_people(tmp_path: Path) -> None:
    """Without --json: score, id, chunk and heading, then the text's best lines, or all; csv has the text as it is."""
    output = tmp_path / "faq.parquet"
    run("embed", str(FAQ), "-o", str(output), "-q")
    words = "How long do you keep my invoices?"
    shown = run("search", str(output), words, "-k", "1", "--width", "60")[1].splitlines()
    full = run("vectors", "search", str(output), words, "-k", "1", "--full")[1]
    csv = run("vectors", "search", str(output), words, "-k", "1", "--format", "csv")[1].splitlines()

    assert shown[0].split()[1:4] == [csv[1].split(",")[1], "chunk", "0"]
    assert 1 < len(shown) <= 7
    assert all(line.startswith("  ") and len(line) <= 64 for line in shown[1:])
    assert "invoices for ten years" in " ".join(" ".join(shown).split())
    assert "invoices for ten years" in " ".join(full.split())
    assert "…" not in full
    assert csv[0] == "score,id,chunk_index,text"


def test_words_before_the_file_are_noticed(tmp_path: Path) -> None:
    """Whoever says what to look for before where is told which comes first; an output that is missing is missing."""
    (tmp_path / "a.parquet").touch()

    turned = embedctl("vectors", "search", "no such words", str(tmp_path / "a.parquet"))
    missing = embedctl("vectors", "search", str(tmp_path / "b.parquet"), "words " * 1000)

    assert (turned.code, missing.code) == (66, 66)
    assert "FILE comes first, then the words" in turned.err
    assert "FILE comes first" not in missing.err


def test_another_space_is_refused(tmp_path: Path) -> None:
    """A model whose vectors cannot be compared with the file's is refused before anything is sent."""
    output = put(tmp_path / "out.parquet", rows(5))
    narrow = put(tmp_path / "narrow.parquet", rows(5, space=replace(SPACE, model="openai/text-embedding-3-small")))
    code, out, err = run("vectors", "search", str(output), "words", "-m", "onnx:all-MiniLM-L6-v2", "--json")

    assert (code, json.loads(out)["error"], err) == (2, "usage", "")
    assert "another space" in json.loads(out)["message"]
    assert run("vectors", "search", str(narrow), "words", "-m", "openai:text-embedding-3-small")[0] == 2
    assert run("vectors", "search", str(output), "words")[0] == 2  # nobody is called "elsewhere"
    assert run("vectors", "search", str(output), " ")[0] == 2


def test_a_question_is_asked_the_way_the_model_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents and questions of one model have their own input types: the file says document, the query says query."""
    with client.started() as wire:
        wire.plan(dimensions=1024)
        monkeypatch.setenv("VOYAGE_API_KEY", "pa-test")
        config = tmp_path / "config.toml"
        config.write_text(f'[providers.voyage]\nbase_url = "{wire.base_url("voyage")}"\n')
        flags = ("--config", str(config))
        output = tmp_path / "faq.parquet"
        code, _, err = run("embed", str(FAQ), "-o", str(output), "-m", "voyage:voyage-3.5", "-q", *flags)
        assert code == 0, err
        found = run("vectors", "search", str(output), "What is it?", "--json", *flags)
        sample = run("vectors", "verify", str(output), "-i", str(FAQ), "--sample", "5", "--json", *flags)
        truth = wire.truth()

    assert (found[0], sample[0]) == (0, 0), (found, sample)
    assert [request["input_type"] for request in truth] == ["document", "query", "document"]
    assert json.loads(found[1])["tokens"] == truth[1]["tokens_billed"]
    assert json.loads(sample[1])["sampled"] == 5
    assert json.loads(sample[1])["tokens"] == truth[2]["tokens_billed"]


def test_a_sample_finds_shifted_rows(tmp_path: Path) -> None:
    """Vectors that all moved by one row are right in every other respect: embedding some texts again finds it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    output = tmp_path / "faq.parquet"
    run("embed", str(FAQ), "-o", str(output), "-q")
    assert run("vectors", "verify", str(output), "--sample", "4", "--json")[0] == 0
    table = pq.read_table(output)
    vectors = table["embedding"].combine_chunks()
    moved = pa.concat_arrays([vectors.slice(1), vectors.slice(0, 1)])
    table = table.set_column(table.schema.get_field_index("embedding"), table.schema.field("embedding"), moved)
    facts = pq.read_metadata(output).metadata[b"embedctl"]
    pq.write_table(table.replace_schema_metadata({"embedctl": facts}), output, write_page_checksum=True)
    blind = run("vectors", "verify", str(output), "-i", str(FAQ), "--json")
    code, out, _ = run("vectors", "verify", str(output), "--sample", "4", "--json")

    assert blind[0] == 0
    assert code == 65
    assert [one["check"] for one in json.loads(out)["findings"]] == ["other_vector"] * 4
    assert json.loads(out)["ok"] is False


@pytest.mark.parametrize(("cosine", "code"), [(0.9985, 0), (0.99, 65)])
def test_other_arithmetic_is_no_other_vector(tmp_path: Path, cosine: float, code: int) -> None:
    """What an earlier version's arithmetic made of the bundled model is noted, and right; less alike is wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    output = tmp_path / "faq.parquet"
    run("embed", str(FAQ), "-o", str(output), "-q")
    table = pq.read_table(output)
    made = np.stack(table["embedding"].to_numpy()).astype(np.float64)
    aside = np.random.default_rng(7).standard_normal(made.shape)
    aside -= (aside * made).sum(axis=1, keepdims=True) * made
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    turned = (cosine * made + np.sqrt(1 - cosine**2) * aside).astype(np.float32)
    field = table.schema.field("embedding")
    column = pa.FixedSizeListArray.from_arrays(pa.array(turned.ravel()), turned.shape[1]).cast(field.type)
    table = table.set_column(table.schema.get_field_index("embedding"), field, column)
    facts = pq.read_metadata(output).metadata[b"embedctl"]
    pq.write_table(table.replace_schema_metadata({"embedctl": facts}), output, write_page_checksum=True)
    ended, out, _ = run("vectors", "verify", str(output), "--sample", "4", "--json")

    assert ended == code
    assert [(one["check"], one["wrong"]) for one in json.loads(out)["findings"]] == [("other_vector", code != 0)] * 4

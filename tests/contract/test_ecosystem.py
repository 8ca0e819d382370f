"""Outputs open in what people use next, with the vectors as arrays. The libraries are the extra `ecosystem`."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from embedctl.backends import local
from embedctl.evaluation import bm25, retrieval
from embedctl.evaluation.queries import Question
from embedctl.outputs.parquet import plain
from tests.support import static_models
from tests.support.running import embedctl
from tests.support.stores import StoreServer, make_bucket

WIDTH = 384
TEXTS = ["the cell is charged", "parcels leave at noon", "les colis partent à midi"]


def library(name: str) -> ModuleType:
    return pytest.importorskip(name, reason=f"{name} is not installed (extra `ecosystem`)")


@pytest.fixture(params=["fixed", "list"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three lines, embedded for real; vectors as fixed-size and as plain lists."""
    source = tmp_path / "lines.txt"
    source.write_text("\n".join(TEXTS) + "\n", "utf-8")
    target = tmp_path / "lines.parquet"
    done = embedctl("embed", source, "--split", "lines", "-o", target, "--vector-type", request.param, "-q")
    assert done.code == 0, done.err
    return target


def vectors(path: Path) -> NDArray[np.float32]:
    flat = pq.read_table(path).column("embedding").combine_chunks().flatten()
    return np.asarray(flat).reshape(-1, WIDTH)


def test_duckdb_sees_arrays_of_floats(output: Path) -> None:
    """DuckDB reads the vectors as lists of FLOAT, and its cosine of a row with itself is 1."""
    duckdb = library("duckdb")
    found = duckdb.sql(
        f"select text, embedding, list_cosine_similarity(embedding, embedding) from '{output}' order by id"
    ).fetchall()

    assert [row[0] for row in found] == TEXTS
    assert np.allclose(np.array([row[1] for row in found], np.float32), vectors(output))
    assert all(abs(row[2] - 1) < 1e-5 for row in found)


def test_polars_sees_a_matrix(output: Path) -> None:
    """Polars reads the vectors as an Array or List column that turns into a float32 matrix."""
    polars = library("polars")
    frame = polars.read_parquet(output)
    found = np.array(frame["embedding"].to_list(), np.float32)

    assert frame["text"].to_list() == TEXTS
    assert np.array_equal(found, vectors(output))


def test_pandas_sees_arrays(output: Path) -> None:
    """A vector that pandas reads is a NumPy array of float32."""
    pandas = library("pandas")
    frame = pandas.read_parquet(output)

    assert list(frame["text"]) == TEXTS
    assert frame["embedding"][0].dtype == np.float32
    assert np.array_equal(np.stack(frame["embedding"]), vectors(output))


def test_datasets_sees_a_feature_of_floats(output: Path, tmp_path: Path) -> None:
    """Hugging Face datasets loads the file offline, the vectors as a sequence of float32."""
    datasets = library("datasets")
    found = datasets.Dataset.from_parquet(str(output), cache_dir=str(tmp_path / "cache")).with_format("numpy")

    assert list(found["text"]) == TEXTS
    assert np.array_equal(np.stack(list(found["embedding"])), vectors(output))


def test_lancedb_searches_them(tmp_path: Path) -> None:
    """LanceDB takes the table as it is, and the nearest row of a row's own vector is that row."""
    lancedb = library("lancedb")
    source = tmp_path / "lines.txt"
    source.write_text("\n".join(TEXTS) + "\n", "utf-8")
    output = tmp_path / "lines.parquet"
    assert embedctl("embed", source, "--split", "lines", "-o", output, "-q").code == 0
    plain = pq.read_table(output, columns=["id", "text", "embedding"])
    table = lancedb.connect(tmp_path / "lance").create_table("lines", plain)
    nearest = table.search(vectors(output)[1], vector_column_name="embedding").limit(1).to_list()

    assert nearest[0]["text"] == TEXTS[1]


# ── README's shelf ───────────────────────────────────────────────────────────────────────────────────────────────────

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"<!-- reader: ([\w-]+) -->\n```(?:python|sh)\n(.*?)```", re.DOTALL)
SHELF: dict[str, str] = dict(SNIPPET.findall((ROOT / "README.md").read_text("utf-8")))
NOT_RUN = {"pyspark", "psycopg"}  # a JVM, a server
CHUNKS, TICKETS = 23, 118
"""Vectors of README's two outputs."""


def of_matrix(vectors: Any, count: int) -> bool:
    return vectors.shape == (count, WIDTH) and vectors.dtype == np.float32


CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "duckdb": lambda left: True,
    "polars": lambda left: of_matrix(left["vectors"], TICKETS),
    "pandas": lambda left: of_matrix(left["vectors"], CHUNKS),
    "datasets": lambda left: of_matrix(left["vectors"], TICKETS),
    "lancedb": lambda left: left["nearest"][0]["chunk_index"] == 0,
    "qdrant_client": lambda left: left["nearest"][0].payload["chunk_index"] == 0,
    "chromadb": lambda left: left["nearest"]["ids"][0][0] == "handbook.md#0",
    "deltalake": lambda left: len(left["pq"].read_table("delta")) == CHUNKS,
    "pyiceberg": lambda left: len(left["catalog"].load_table("docs.handbook").scan().to_arrow()) == CHUNKS,
}
"""What must be true of the names that a snippet leaves."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """README's two outputs."""
    folder = tmp_path_factory.mktemp("shelf")
    data = ROOT / "sample_data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDCTL_HOME", str(folder / "home"))
        assert embedctl("embed", data / "handbook.md", "-o", folder / "handbook.parquet", "-q").code == 0
        words = ["batch", "run", data / "tickets.parquet", "-o", folder / "tickets", "--on-too-long", "chunk", "-q"]
        assert embedctl(*words).code == 0
    return folder


def test_the_shelf_is_whole() -> None:
    """Every snippet is run, or said not to be."""
    assert set(SHELF) == {*CHECKS, *NOT_RUN, "embedding-atlas"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKS)
def test_a_snippet_runs(name: str, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snippet of README reads the output as it is, and finds in it what is there."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (extra `ecosystem`)")
    for given in ("handbook.parquet", "tickets"):
        (tmp_path / given).symlink_to(outputs / given)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "False")
    left: dict[str, Any] = {}

    exec(compile(SHELF[name], f"README: {name}", "exec"), left)

    assert CHECKS[name](left)


@pytest.mark.parametrize("name", sorted(NOT_RUN))
def test_a_snippet_that_cannot_run_here_is_python(name: str) -> None:
    """It parses, and imports what it is a snippet for."""
    imported = {
        alias.name if isinstance(node, ast.Import) else (node.module or "")
        for node in ast.walk(ast.parse(SHELF[name]))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }

    assert any(module.partition(".")[0] == name for module in imported)


def test_embedding_atlas_knows_its_options() -> None:
    """The command has the options that README gives it."""
    if importlib.util.find_spec("embedding_atlas") is None:
        pytest.skip("embedding_atlas is not installed: it brings gigabytes")
    program = Path(sys.executable).with_name("embedding-atlas")

    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, timeout=120).stdout

    assert {flag for flag in SHELF["embedding-atlas"].split() if flag.startswith("--")} <= set(told.split())


def test_the_ledgers_least_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger has the storage version of DuckDB 1.2, as README says: whatever writes it, 1.2 reads it.

    Source: https://duckdb.org/docs/stable/internals/storage, bytes 12 to 19 of a database file: 65 is that of 1.2.
    """
    monkeypatch.setenv("EMBEDCTL_HOME", str(tmp_path / "home"))
    (tmp_path / "a.txt").write_text("one")
    assert embedctl("embed", tmp_path / "a.txt", "-o", tmp_path / "a.parquet", "-q").code == 0

    head = (tmp_path / "home" / "usage.duckdb").read_bytes()[:20]

    assert head[8:12] == b"DUCK"
    assert int.from_bytes(head[12:20], "little") <= 65


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("how", ["float32", "float64", "int8", "mapped"])
@pytest.mark.parametrize("normalize", [True, False])
def test_static_models_agree_with_model2vec(tmp_path: Path, kind: str, how: str, normalize: bool) -> None:
    """A folder that model2vec saves gives the vectors that model2vec gives, to float32 rounding."""
    model2vec = library("model2vec")
    tokenizer = static_models.tokenizer(kind)
    count = tokenizer.get_vocab_size()
    rows = static_models.table(count)
    quantised = (
        {"weights": np.linspace(0.1, 2, count, dtype=np.float32), "token_mapping": np.arange(count) % 3}
        if how == "mapped"
        else {}
    )
    rows = rows if how == "mapped" else (rows * 20).astype(how)
    saved = model2vec.StaticModel(rows, tokenizer, normalize=normalize, **quantised)
    saved.save_pretrained(tmp_path)
    texts = ["the cell is charged", "parcels leave at noon", "les colis partent à midi, some words", "noon " * 300]

    found = local.load("static", tmp_path, None).embed(texts)[0]
    theirs = model2vec.StaticModel.from_pretrained(tmp_path).encode(texts, max_length=None)

    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=2e-6 * np.abs(theirs).max())
    assert local.protocol_of(tmp_path) == "static"


# ── readers of an output on a store ──────────────────────────────────────────────────────────────────────────────────

STORE_SNIPPET = re.compile(r"<!-- store reader: (\w+) -->\n```python\n(.*?)```", re.DOTALL)
ON_STORE: dict[str, str] = dict(STORE_SNIPPET.findall((ROOT / "README.md").read_text("utf-8")))


@pytest.fixture(scope="module")
def vectors_on_store(outputs: Path, s3: StoreServer) -> StoreServer:
    """An output with an object beside it that is none of its parts, at the address that README shows."""
    make_bucket(s3.port, "vectors")
    store = s3.open("s3://vectors/docs")
    for path in sorted((outputs / "tickets").glob("part-*.parquet")):
        store.put_if_absent(path.name, path)
    store.put_if_absent("_embedctl/inputs.parquet", b"")
    return s3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["polars", "pandas", "duckdb"])
def test_a_reader_opens_an_output_on_a_store(
    name: str, vectors_on_store: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each snippet of README reads all parts where they are, and nothing else."""
    library(name)
    library("pandas")
    for variable, value in vectors_on_store.environment.items():
        monkeypatch.setenv(variable, value)
    assert set(ON_STORE) == {"polars", "pandas", "duckdb"}
    left: dict[str, Any] = {}

    exec(compile(ON_STORE[name], f"README: {name} on a store", "exec"), left)

    assert len(left["found"]) == TICKETS
    assert np.array(next(iter(left["found"]["embedding"])), np.float32).shape == (WIDTH,)


# ── what `models compare` computes, computed by others ───────────────────────────────────────────────────────────────


def ranking(queries: int = 60, items: int = 40) -> tuple[NDArray[np.float32], list[Question]]:
    """Scores without equals, and one to three targets for each query."""
    draw = np.random.default_rng(11)
    scores = draw.permuted(np.tile(np.arange(items, dtype=np.float32), (queries, 1)), axis=1)
    return scores, [
        Question(str(n), tuple(draw.choice(items, 1 + n % 3, replace=False).tolist())) for n in range(queries)
    ]


def test_figures_are_those_of_trec_eval() -> None:
    """Recall@1, Recall@10 and MRR are, query by query, what trec_eval says of the same ranking."""
    trec_eval = library("pytrec_eval")
    scores, queries = ranking()
    found = retrieval.quality(lambda first, last: scores[first:last], queries).each
    wanted = {query.text: {str(target): 1 for target in query.targets} for query in queries}
    run = {query.text: dict(zip(map(str, range(40)), row.tolist(), strict=True))
           for query, row in zip(queries, scores, strict=True)}  # fmt: skip
    told = trec_eval.RelevanceEvaluator(wanted, {"recall.1,10", "recip_rank"}).evaluate(run)

    for name, theirs in (("recall_at_1", "recall_1"), ("recall_at_10", "recall_10"), ("mrr", "recip_rank")):
        assert found[name] == pytest.approx([told[query.text][theirs] for query in queries])


def test_intervals_are_those_of_scipy() -> None:
    """The 95 % interval of a mean is SciPy's percentile bootstrap, as near as two draws are."""
    stats = library("scipy.stats")
    scores, queries = ranking()
    found = retrieval.quality(lambda first, last: scores[first:last], queries)
    told = stats.bootstrap(
        (found.each["mrr"],), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(1)
    ).confidence_interval

    assert found.interval("mrr", retrieval.resamples(60, 0)) == pytest.approx((told.low, told.high), abs=0.01)


def test_keyword_search_scores_as_bm25s() -> None:
    """Every text has for every query the score that bm25s gives it, in Lucene's variant."""
    bm25s = library("bm25s")
    draw = np.random.default_rng(3)
    texts = [draw.choice(list("abcdefghijklmnop"), 3 + n % 20).tolist() for n in range(80)]
    queries = [draw.choice(list("abcdefghijklmnopq"), 3, replace=False).tolist() for _ in range(20)]
    theirs = bm25s.BM25(method="lucene", k1=bm25.K1, b=bm25.B)
    theirs.index(texts, show_progress=False)

    assert bm25.KeywordIndex(texts).scores(queries) == pytest.approx(
        np.array([theirs.get_scores(query) for query in queries]), abs=1e-4
    )


def test_times_print_alike_where_pandas_is_installed() -> None:
    """Times of nanoseconds are those of Python, or text: pandas, for which pyarrow looks, changes neither."""
    library("pandas")
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.time64("ns"), pa.duration("ns")):
        told = plain(pa.array([1_000_000_001, None], kind))

        assert (type(told[0]), told[1]) == (str, None)
        assert type(plain(pa.array([1_000_000_000], kind))[0]).__module__ == "datetime"
    assert plain(pa.array([1_000_000_001], pa.timestamp("ns"))) == ["1970-01-01T00:00:01.000000001"]

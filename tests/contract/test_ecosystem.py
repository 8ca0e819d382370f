"""Outputs open in what people use next, with the vectors as arrays. The libraries are the extra `ecosystem`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.support.running import embedctl

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

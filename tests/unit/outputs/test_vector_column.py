"""The column of vectors that is written beside Arrow: whoever reads Parquet reads it as if Arrow had."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.outputs import parquet as output_parquet
from embedctl.outputs import thrift, vector_column
from embedctl.outputs.parquet import Embeddings, Layout

KEPT = pa.schema(
    [
        ("words", pa.list_(pa.string())),
        ("place", pa.struct([("x", pa.float64()), ("tags", pa.list_(pa.int8()))])),
        ("price", pa.float64()),
    ]
)


def whole_file(rows: int, dimensions: int, pieces: list[int], *, row_group: int, vector_type: Any = "fixed") -> bytes:
    """A file of ours: vectors in pieces, columns of several leaves before them."""
    rng = np.random.default_rng(rows * 7 + dimensions)
    vectors = rng.normal(size=(rows, dimensions)).astype(np.float32)
    layout = Layout(
        columns=pa.schema([("id", pa.int64()), ("chunk_index", pa.int32()), *KEPT]),
        dimensions=dimensions,
        vector_type=vector_type,
    )
    columns = [
        pa.array(range(rows), pa.int64()),
        pa.array([0] * rows, pa.int32()),
        pa.array([["a", None][: i % 3] if i % 4 else None for i in range(rows)], KEPT.field("words").type),
        pa.array([{"x": i / 3, "tags": [1] * (i % 2)} for i in range(rows)], KEPT.field("place").type),
        pa.array([i / 2 if i % 5 else None for i in range(rows)], pa.float64()),
    ]
    borders = sorted({0, rows, *(piece % (rows + 1) for piece in pieces)})
    embeddings = Embeddings(
        vectors=[vectors[start:stop] for start, stop in pairwise(borders)],
        bought=np.zeros(rows, np.int32),
        purchases=[("small", "openai", "op-1")],
        tokens=np.ones(rows, np.int32),
        hashes=rng.bytes(16 * rows),
    )
    sink = io.BytesIO()
    with output_parquet.writer(sink, layout) as writer:
        table = output_parquet.table(pa.table(columns, schema=layout.columns), embeddings, layout)
        writer.write_table(table, row_group_size=row_group)
        writer.add_key_value_metadata({"embedctl": "{}"})
    return sink.getvalue()


def by_arrow(file: bytes, row_group: int) -> bytes:
    """The same table, written by Arrow alone."""
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(file)), sink, row_group_size=row_group, compression="none")
    return sink.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    dimensions=st.integers(1, 300),
    pieces=st.lists(st.integers(1, 39), max_size=4),
    row_group=st.integers(1, 50),
    page_bytes=st.integers(1, 4096),
)
def test_it_reads_as_arrows(rows: int, dimensions: int, pieces: list[int], row_group: int, page_bytes: int) -> None:
    """Whatever the width, the pieces, the pages and the row groups: Arrow reads every vector and every row."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vector_column, "PAGE_BYTES", page_bytes)
        file = whole_file(rows, dimensions, pieces, row_group=row_group)
    vectors = np.random.default_rng(rows * 7 + dimensions).normal(size=(rows, dimensions)).astype(np.float32)
    table = pq.read_table(io.BytesIO(file), page_checksum_verification=True)

    np.testing.assert_array_equal(output_parquet.matrix(table.column("embedding"), dimensions), vectors)
    assert table.column("id").to_pylist() == list(range(rows))
    assert table.column("place").to_pylist()[-1] == {"x": (rows - 1) / 3, "tags": [1] * ((rows - 1) % 2)}
    found, arrows = (pq.read_metadata(io.BytesIO(one)) for one in (file, by_arrow(file, row_group)))
    assert found.schema.equals(arrows.schema)
    assert found.num_rows == rows
    for at in range(found.num_row_groups):
        group = found.row_group(at)
        sizes = [group.column(number).total_compressed_size for number in range(group.num_columns)]
        assert group.column(group.num_columns - 6).num_values == group.num_rows * dimensions
        assert [group.num_rows, sum(sizes)] == [arrows.row_group(at).num_rows, _of_group(file, at)]


def _of_group(file: bytes, at: int) -> int:
    """What the footer says of the size of a row group."""
    footer = thrift.fields_of(file[-8 - int.from_bytes(file[-8:-4], "little") : -8])
    group = thrift.fields_of(thrift.elements_of(next(f.content for f in footer if f.number == 4))[at])
    return thrift.number_of(next(field.content for field in group if field.number == 6))


@pytest.mark.parametrize("vector_type", ["fixed", "list"])
def test_duckdb_reads_it(tmp_path: Any, vector_type: str) -> None:
    """DuckDB takes rows from the middle of many pages and row groups, by filter, and their vectors are right."""
    path = tmp_path / "a.parquet"
    path.write_bytes(whole_file(3000, 257, [5, 77, 1500], row_group=1024, vector_type=vector_type))
    vectors = np.random.default_rng(3000 * 7 + 257).normal(size=(3000, 257)).astype(np.float32)
    with duckdb.connect() as connection:
        found = connection.execute(
            "select id, embedding from read_parquet(?) where id in (0, 1022, 1024, 2999) order by id", [str(path)]
        ).fetchall()
        total = connection.execute(
            "select sum(list_sum(embedding)), count(embedding) from read_parquet(?)", [str(path)]
        ).fetchone()

    assert [row for row, _ in found] == [0, 1022, 1024, 2999]
    np.testing.assert_array_equal([vector for _, vector in found], vectors[[0, 1022, 1024, 2999]])
    assert total is not None
    assert total[1] == 3000
    assert total[0] == pytest.approx(float(vectors.astype(np.float64).sum()), rel=1e-4, abs=1e-2)


@settings(max_examples=60, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300))
def test_numbers_and_bytes_are_read_as_they_were_written(number: int, content: bytes) -> None:
    """What a field is given, it says."""
    assert thrift.number_of(thrift.signed(number)) == number
    assert thrift.binary_of(thrift.binary(content)) == content


@pytest.mark.parametrize("columns", [1, 14, 15, 40])
def test_a_footer_is_put_together_as_it_was(columns: int) -> None:
    """Taking apart what Arrow wrote and putting it together again gives its bytes."""
    sink = io.BytesIO()
    table = pa.table({f"c{at}": pa.array([at, None], pa.int32()) for at in range(columns)})
    pq.write_table(table, sink, row_group_size=1, write_page_index=True, sorting_columns=[pq.SortingColumn(0)])
    file = sink.getvalue()
    footer = file[-8 - int.from_bytes(file[-8:-4], "little") : -8]

    fields = thrift.fields_of(footer)
    assert thrift.struct(fields) == footer
    schema = next(field for field in fields if field.number == 2)
    assert thrift.listed(thrift.STRUCT, thrift.elements_of(schema.content)) == schema.content

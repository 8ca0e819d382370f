"""The Parquet output: its columns, its metadata, and that what is read is what was written."""

from __future__ import annotations

import datetime as dt
import gc
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from embedctl import __version__, storage
from embedctl.errors import StorageFailed
from embedctl.inputs.block import Block
from embedctl.outputs import parquet as output_parquet
from embedctl.outputs.parquet import Embeddings, Layout, Part
from embedctl.records import Space, text_hash

SPACE = Space(model="openai/text-embedding-3-small", dimensions=4, normalized=True, input_type="document")


def layout(**changes: Any) -> Layout:
    columns = output_parquet.row_columns(pa.string(), pa.schema([("price", pa.float64())]), text=True)
    return Layout(**{"columns": columns, "dimensions": 4, **changes})


def unit(count: int, dimensions: int = 4, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def embeddings(vectors: NDArray[np.float32]) -> Embeddings:
    """Vectors bought in turn by two operations; every third was counted by nobody."""
    count = len(vectors)
    return Embeddings(
        vectors=[vectors],
        bought=np.arange(count, dtype=np.int32) % 2,
        purchases=[("small", "openai", "op-1"), ("small", "eu", "op-2")],
        tokens=np.array([-1 if i % 3 == 2 else i + 1 for i in range(count)], np.int32),
        hashes=b"".join(text_hash(f"text {i}") for i in range(count)),
    )


def rows(count: int, look: Layout) -> pa.RecordBatch:
    kept = pa.record_batch({"price": pa.array([i / 2 for i in range(count)])})
    block = Block(0, [f"id {i}" for i in range(count)], [f"text {i}" for i in range(count)], kept=kept)
    every = list(range(count))
    return output_parquet.row_batch(block, every, [0] * count, [f"text {i}" for i in every], look.columns)


def put(path: Path, table: pa.Table, look: Layout, facts: bytes = b"{}") -> Path:
    """The table as the outputs write it."""
    with path.open("wb") as sink:
        parquet = output_parquet.writer(sink, look)
        parquet.write_table(table, row_group_size=output_parquet.ROW_GROUP_ROWS)
        parquet.add_key_value_metadata({output_parquet.METADATA_KEY.decode(): facts.decode()})
        parquet.close()
    return path


def written(path: Path, look: Layout, vectors: NDArray[np.float32]) -> Path:
    table = output_parquet.table(rows(len(vectors), look), embeddings(vectors), look)
    facts = output_parquet.metadata(SPACE, run_id="run-1", source={"files": []}, rows=len(vectors))
    return put(path, table, look, facts)


def test_the_columns_are_those_of_the_contract_in_their_order(tmp_path: Path) -> None:
    """id, chunk_index, kept columns, text, then the embedding columns, each of its type; the vector is never null."""
    schema = pq.read_schema(written(tmp_path / "a.parquet", layout(), unit(3)))
    words = pa.dictionary(pa.int32(), pa.string())

    assert [(field.name, field.type) for field in schema] == [
        ("id", pa.string()),
        ("chunk_index", pa.int32()),
        ("price", pa.float64()),
        ("text", pa.string()),
        ("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), 4)),
        ("embedding_model", words),
        ("embedding_provider", words),
        ("embedding_tokens", pa.int32()),
        ("embedding_operation_id", words),
        ("embedding_text_hash", pa.binary(16)),
    ]
    assert not schema.field("embedding").nullable


def test_own_columns_are_all_columns_of_the_contract() -> None:
    """The names an input column may not have are exactly ours."""
    assert set(layout().schema.names) - {"price"} == set(output_parquet.OWN_COLUMNS)


def test_the_metadata_say_what_the_vectors_are(tmp_path: Path) -> None:
    """The key `embedctl` holds version, run, all fields of the space, its id, the input and the rows."""
    path = written(tmp_path / "a.parquet", layout(), unit(3))
    found = orjson.loads(pq.read_metadata(path).metadata[b"embedctl"])

    assert found == {
        "version": __version__,
        "run_id": "run-1",
        "space": {
            "model": "openai/text-embedding-3-small",
            "dimensions": 4,
            "revision": None,
            "dimension_policy": "native",
            "normalized": True,
            "input_type": "document",
            "prefix": "",
            "truncation": "none",
        },
        "space_id": SPACE.space_id,
        "input": {"files": []},
        "rows": 3,
    }
    assert output_parquet.read_metadata(path) == found


def test_a_file_that_is_not_ours_has_no_metadata(tmp_path: Path) -> None:
    """Foreign Parquet, files that are none, and files that are not there are all answered with None."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")

    assert [output_parquet.read_metadata(tmp_path / name) for name in ("foreign.parquet", "text.parquet", "none")] == [
        None
    ] * 3


def test_every_column_reads_as_it_was_written(tmp_path: Path) -> None:
    """Ids, kept columns, vectors, who made them, tokens (null where nobody counted) and hashes come back."""
    vectors = unit(5)
    table = pq.read_table(written(tmp_path / "a.parquet", layout(), vectors))

    np.testing.assert_array_equal(output_parquet.matrix(table.column("embedding"), 4), vectors)
    assert table.drop_columns(["embedding"]).to_pylist()[2] == {
        "id": "id 2",
        "chunk_index": 0,
        "price": 1.0,
        "text": "text 2",
        "embedding_model": "small",
        "embedding_provider": "openai",
        "embedding_tokens": None,
        "embedding_operation_id": "op-1",
        "embedding_text_hash": text_hash("text 2"),
    }


KEPT: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, None, False]),
    "int64": (pa.int64(), [2**62, None, -1]),
    "uint8": (pa.uint8(), [255, None, 0]),
    "float64": (pa.float64(), [0.1, None, -0.0]),
    "decimal": (pa.decimal128(12, 3), [Decimal("1.234"), None, Decimal("-0.001")]),
    "date": (pa.date32(), [dt.date(2026, 11, 21), None, dt.date(1969, 1, 1)]),
    "timestamp": (pa.timestamp("us", "UTC"), [dt.datetime(2026, 11, 21, 12, 0, 0, 1, dt.UTC), None, None]),
    "string": (pa.string(), ["é日本", None, ""]),
    "binary": (pa.binary(), [b"\x00\xff", None, b""]),
    "list": (pa.list_(pa.int32()), [[1, None], None, []]),
    "struct": (pa.struct([("a", pa.int32())]), [{"a": 1}, None, {"a": None}]),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_column_of_any_type_travels_unchanged(tmp_path: Path, name: str) -> None:
    """Values, nulls and the type of a kept column are in the output as in the input."""
    kind, values = KEPT[name]
    columns = output_parquet.row_columns(pa.int64(), pa.schema([("kept", kind)]), text=False)
    look = Layout(columns=columns, dimensions=4)
    kept = pa.record_batch({"kept": pa.array(values, kind)})
    batch = output_parquet.row_batch(
        Block(0, [7, 8, 9], ["a", "b", "c"], kept=kept), [0, 1, 2], [0, 0, 0], None, columns
    )
    found = pq.read_table(put(tmp_path / "a.parquet", output_parquet.table(batch, embeddings(unit(3)), look), look))

    assert found.column("kept").to_pylist() == values
    assert found.schema.field("kept").type == kind
    assert found.column("id").to_pylist() == [7, 8, 9]


def test_a_row_stands_once_per_chunk() -> None:
    """A row with three chunks and one without any give three lines, each with the kept values of its row."""
    columns = output_parquet.row_columns(pa.string(), pa.schema([("n", pa.int64())]), text=True)
    block = Block(0, ["a", "b"], ["x y z", ""], kept=pa.record_batch({"n": pa.array([1, 2])}))
    batch = output_parquet.row_batch(block, [0, 0, 0], [0, 1, 2], ["x", "y", "z"], columns)

    assert batch.to_pydict() == {
        "id": ["a"] * 3,
        "chunk_index": [0, 1, 2],
        "n": [1, 1, 1],
        "text": ["x", "y", "z"],
    }


VECTORS = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(0.125, 1, width=32) | st.floats(-1, -0.125, width=32) | st.sampled_from([2**-20, -(2**-20)]),
)


def cosines(these: NDArray[Any], those: NDArray[Any]) -> NDArray[np.float64]:
    a, b = these.astype(np.float64), those.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_quantising_twice_changes_nothing(vectors: NDArray[np.float32]) -> None:
    """What float16 and int8 keep of a vector, they keep again: a rerun does not wear vectors down."""
    for dtype in ("float32", "float16", "int8"):
        once = output_parquet.quantised(vectors, dtype)

        np.testing.assert_array_equal(output_parquet.quantised(once.astype(np.float32), dtype), once)


def test_int8_keeps_directions() -> None:
    """The cosine between a vector and its int8 form is above 0.9999 at a width of 384, and its peak is ±127."""
    vectors = unit(200, 384)
    small = output_parquet.quantised(vectors, "int8")

    assert small.dtype == np.int8
    assert set(np.abs(small.astype(int)).max(axis=1)) == {127}
    assert cosines(small, vectors).min() > 0.9999


def test_float16_keeps_values() -> None:
    """A float16 vector differs from its float32 one by less than a part in a thousand."""
    vectors = unit(200, 384)

    np.testing.assert_allclose(output_parquet.quantised(vectors, "float16").astype(np.float32), vectors, atol=1e-3)


@pytest.mark.parametrize("vector_type", ["fixed", "list"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_each_form_of_vector_reads_back(tmp_path: Path, dtype: Any, vector_type: Any) -> None:
    """Every --dtype in every --vector-type has its Arrow type, and its values are the quantised ones."""
    vectors = unit(6)
    look = layout(dtype=dtype, vector_type=vector_type)
    found = pq.read_table(written(tmp_path / "a.parquet", look, vectors)).column("embedding")
    element = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}[dtype]

    assert found.type == pa.list_(pa.field("element", element, nullable=False), 4 if vector_type == "fixed" else -1)
    expected = output_parquet.quantised(vectors, dtype).astype(np.float32)
    np.testing.assert_array_equal(output_parquet.matrix(found, 4), expected)


def column(path: Path, name: str, group: int = 0) -> Any:
    """Parquet's own words on the chunk of a column."""
    file = pq.ParquetFile(path).metadata.row_group(group)
    return next(file.column(i) for i in range(file.num_columns) if file.column(i).path_in_schema.startswith(name))


def test_vectors_are_plain_and_everything_else_is_compressed(tmp_path: Path) -> None:
    """Vectors stand in the file as they are, without dictionary or compression; other columns are zstd."""
    path = written(tmp_path / "a.parquet", layout(), unit(50))
    vectors = column(path, "embedding.list")

    assert vectors.compression == "UNCOMPRESSED"
    assert not {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(vectors.encodings)
    assert {column(path, name).compression for name in ("id", "text", "price", "embedding_text_hash")} == {"ZSTD"}
    assert not vectors.is_stats_set


def test_int8_takes_a_quarter_of_the_room(tmp_path: Path) -> None:
    """An int8 output is less than a third of the float32 one."""
    vectors = unit(400, 384)
    sizes = {}
    for dtype in ("float32", "int8"):
        look = layout(dimensions=384, dtype=dtype)
        sizes[dtype] = column(written(tmp_path / dtype, look, vectors), "embedding.list").total_compressed_size

    assert sizes["int8"] < sizes["float32"] / 3


def test_a_flipped_bit_in_a_vector_is_noticed(tmp_path: Path) -> None:
    """Pages carry checksums: a reader that asks for them refuses a damaged vector."""
    vectors = unit(50)
    path = written(tmp_path / "a.parquet", layout(), vectors)
    content = bytearray(path.read_bytes())
    at = content.index(vectors[7].tobytes())
    content[at] ^= 1
    path.write_bytes(content)

    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)
    with pytest.raises(StorageFailed, match=r"a\.parquet cannot be read: .* CRC"):
        Part(path, 4).take(np.array([7]))


def test_row_groups_hold_sixteen_thousand_rows(tmp_path: Path) -> None:
    """40,000 rows make row groups of 16,384, 16,384 and the rest."""
    metadata = pq.read_metadata(written(tmp_path / "a.parquet", layout(), unit(40_000)))

    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [16_384, 16_384, 7_232]


def test_duckdb_reads_vectors_as_arrays(tmp_path: Path) -> None:
    """DuckDB opens the file, compares the vectors as FLOAT[4] and groups by who made them."""
    vectors = unit(4)
    path = written(tmp_path / "a.parquet", layout(), vectors)
    with duckdb.connect() as connection:
        found = connection.execute(
            "select id, array_cosine_similarity(embedding::FLOAT[4], ?::FLOAT[4]) from read_parquet(?) order by id",
            [vectors[2].tolist(), str(path)],
        ).fetchall()
        kind = connection.execute("select typeof(embedding) from read_parquet(?)", [str(path)]).fetchone()
        makers = connection.execute(
            "select embedding_provider, count(*) from read_parquet(?) group by all order by all", [str(path)]
        ).fetchall()

    assert kind == ("FLOAT[]",)
    np.testing.assert_allclose([cosine for _, cosine in found], cosines(vectors, vectors[2][None, :]), atol=1e-6)
    assert makers == [("eu", 2), ("openai", 2)]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Part, NDArray[np.float32]]:
    """A part of three row groups."""
    vectors = unit(700)
    look = layout()
    path = tmp_path_factory.mktemp("part") / "part-000000.parquet"
    table = output_parquet.table(rows(700, look), embeddings(vectors), look)
    with path.open("wb") as sink:
        parquet = output_parquet.writer(sink, look)
        parquet.write_table(table, row_group_size=300)
        parquet.close()
    return Part(path, 4), vectors


@settings(max_examples=60, deadline=None)
@given(targets=st.lists(st.integers(0, 699), max_size=40))
def test_a_part_gives_any_rows_in_any_order(part: tuple[Part, NDArray[np.float32]], targets: list[int]) -> None:
    """Rows taken from a part, repeated and in any order, are the table's: vectors, purchases and tokens."""
    one, vectors = part
    found, purchases, tokens = one.take(np.array(targets, np.int64))

    np.testing.assert_array_equal(found, vectors[targets])
    assert purchases == [("small", "eu" if i % 2 else "openai", f"op-{i % 2 + 1}") for i in targets]
    assert tokens.tolist() == [-1 if i % 3 == 2 else i + 1 for i in targets]


def test_a_part_tells_its_hashes_in_order(part: tuple[Part, NDArray[np.float32]]) -> None:
    """The hashes of all rows come one after the other, 16 bytes each."""
    assert b"".join(part[0].hashes()) == b"".join(text_hash(f"text {i}") for i in range(700))


def test_a_file_that_is_dropped_writes_nothing_more(tmp_path: Path) -> None:
    """What an abandoned writer still holds, a footer too, reaches no file that got its descriptor's number."""
    look = layout()
    growing = storage.AtomicFile(storage.DISK, tmp_path)
    parquet = output_parquet.writer(growing.file, look)
    parquet.write_table(output_parquet.table(rows(2, look), embeddings(unit(2)), look))
    growing.drop()
    victim = tmp_path / "victim"
    with victim.open("w+b") as file:
        file.write(b"." * 100)
        file.flush()
        del parquet, growing
        gc.collect()

        assert victim.read_bytes() == b"." * 100
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_equal_words_stand_in_a_dictionary_once() -> None:
    """Two operations of one provider share the provider's word."""
    look = layout()
    one = Embeddings(
        vectors=[unit(2)],
        bought=np.array([0, 1], np.int32),
        purchases=[("small", "openai", "op-1"), ("small", "openai", "op-2")],
        tokens=np.array([1, 2], np.int32),
        hashes=bytes(32),
    )
    table = output_parquet.table(rows(2, look), one, look)

    assert table.column("embedding_provider").chunk(0).dictionary.to_pylist() == ["openai"]
    assert table.column("embedding_operation_id").to_pylist() == ["op-1", "op-2"]

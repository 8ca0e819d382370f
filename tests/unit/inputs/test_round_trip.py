"""Every type in every format, written by others: kept values and ids come out as they went in, or their row fails."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from embedctl.errors import InputInvalid
from embedctl.inputs import ReadOptions, Source, asked, open_input, open_query
from embedctl.inputs.row_ids import can_be_id
from embedctl.outputs import parquet
from tests.support.arrow_types import COLUMNS, UNWRITABLE
from tests.support.running import embedctl

try:
    import polars
except ImportError:
    polars = None

DIMENSIONS = 2


def output(source: Source) -> tuple[pa.Table, dict[int, str]]:
    """What embedctl's reader and writer make of an input, as a fresh reader sees it; and the rows that fail."""
    columns = parquet.row_columns(source.id_type, source.schema_kept, text=True)
    batches, failed = [], {}
    for block in source.blocks():
        failed |= {block.first_row + at: reason for at, reason in block.reasons.items()}
        good = [at for at in range(len(block)) if at not in block.reasons]
        for some in (good[:1], good[1:]):  # one by one, and together
            if some:
                texts = [str(block.texts[at]) for at in some]
                batches.append(parquet.row_batch(block, some, [0] * len(some), texts, columns))
    rows = parquet.joined(batches).combine_chunks()
    layout = parquet.Layout(columns=columns, dimensions=DIMENSIONS)
    embeddings = parquet.Embeddings(
        vectors=[np.ones((len(rows), DIMENSIONS), np.float32)],
        bought=np.zeros(len(rows), np.int32),
        purchases=[("m", "p", "o")],
        tokens=np.full(len(rows), -1, np.int32),
        hashes=bytes(16 * len(rows)),
    )
    sink = io.BytesIO()
    with parquet.writer(sink, layout) as writer:
        writer.write_table(parquet.table(rows, embeddings, layout))
    return pq.read_table(io.BytesIO(sink.getvalue())), failed


def shown(column: pa.ChunkedArray) -> str:
    """All values of a column, whatever type of its kind they have."""
    whole = column.combine_chunks()
    if isinstance(whole.type, pa.UuidType):
        whole = pa.array([value and str(value) for value in whole.to_pylist()])
    whole = whole.storage if isinstance(whole, pa.ExtensionArray) else whole
    whole = whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole
    try:
        return str(whole.to_pylist()) if pa.types.is_nested(whole.type) else str(whole)
    except ValueError:  # nanoseconds
        return str(whole)


def by_pyarrow(folder: Path, name: str, column: pa.Array) -> Iterator[tuple[str, Path]]:
    """Parquet as pyarrow writes it, with and without its own schema, and as Spark and Impala had it."""
    rows = pa.table({"id": range(len(column)), "text": ["t"] * len(column), "k": column})
    for how, options in (
        ("default", {}),
        ("plain", {"use_dictionary": False, "store_schema": False, "data_page_version": "2.0"}),
        ("old", {"version": "1.0", "use_deprecated_int96_timestamps": True}),
    ):
        path = folder / f"{name}-{how}.parquet"
        pq.write_table(rows, path, **options)
        yield f"pyarrow {how}", path


def by_duckdb(folder: Path, name: str, column: pa.Array) -> Iterator[tuple[str, Path]]:
    """Parquet as DuckDB writes it."""
    path = folder / f"{name}-duckdb.parquet"
    rows = pa.table({"id": range(len(column)), "text": ["t"] * len(column), "k": column})
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        connection.execute(f"copy (from rows) to '{path}' (format parquet)")
    yield "duckdb", path


def by_polars(folder: Path, name: str, column: pa.Array) -> Iterator[tuple[str, Path]]:
    """Parquet as Polars writes it."""
    path = folder / f"{name}-polars.parquet"
    polars.from_arrow(pa.table({"id": range(len(column)), "text": ["t"] * len(column), "k": column})).write_parquet(
        path
    )
    yield "polars", path


WRITERS: list[Callable[[Path, str, pa.Array], Iterator[tuple[str, Path]]]] = [by_pyarrow, by_duckdb]
if polars is not None:
    WRITERS.append(by_polars)


def written(folder: Path, name: str, column: pa.Array) -> Iterator[tuple[str, Path]]:
    """A column in Parquet, by everybody who knows its type."""
    for write in WRITERS:
        try:
            yield from write(folder, name, column)
        except (pa.ArrowException, duckdb.Error, OSError, ValueError, TypeError, RuntimeError):
            continue
        except BaseException as error:
            if "panic" not in type(error).__name__.lower():
                raise


def test_every_type_of_parquet(tmp_path, capsys):
    """Whoever wrote the Parquet: each kept value is what pyarrow reads of the file, each id too, and no row fails."""
    seen: dict[str, int] = {}
    refused: list[tuple[str, str]] = []
    for number, (name, column) in enumerate(COLUMNS.items()):
        for how, path in written(tmp_path, str(number), column):
            try:
                after, failed = output(open_input([str(path)], ReadOptions()))
            except InputInvalid:
                with pytest.raises(pa.ArrowInvalid):  # arrow cannot stream it: nobody is told another value
                    list(pq.ParquetFile(path).iter_batches(4))
                refused.append((name, how))
                continue
            before = pq.read_table(path, coerce_int96_timestamp_unit="us" if "old" in how and "[s" in name else None)
            assert shown(after["k"]) == shown(before["k"]), (name, how)
            assert failed == {}
            seen[how] = seen.get(how, 0) + 1
    with capsys.disabled():
        print("\nkept values equal, types by writer of Parquet:", seen, "refused:", refused)

    assert seen["pyarrow default"] == len(COLUMNS)


def test_every_type_of_id(tmp_path, capsys):
    """Each type that can be an id, by whoever writes it: the id column is what pyarrow reads of the file."""
    seen = 0
    for number, (name, column) in enumerate(COLUMNS.items()):
        if not can_be_id(column.type):
            continue
        for how, path in written(tmp_path, f"id{number}", pa.concat_arrays([column.slice(0, 1), column.slice(2)])):
            before = pq.read_table(path)["k"]
            if not can_be_id(before.type):
                continue
            source = open_input([str(path)], ReadOptions(id_column="k", keep="none"))
            if "old" in how and "timestamp" in name:
                continue  # of pyarrow 21 on, compared above
            after, failed = output(source)
            assert shown(after["id"]) == shown(before), (name, how)
            assert failed == {}
            seen += 1
    with capsys.disabled():
        print(f"\nids equal: {seen} types x writers")


def test_every_type_of_a_query(tmp_path, capsys):
    """What DuckDB reads of Parquet arrives as DuckDB itself gives it to Arrow."""
    path = tmp_path / "all.parquet"
    columns = {f"k{number}": column for number, column in enumerate(COLUMNS.values())}
    pq.write_table(pa.table({"id": range(4), "text": ["t"] * 4, **columns}), path)
    sql = f"from '{path}' order by id"
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        relation = connection.sql(sql)
        before = pa.Table.from_batches((getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch)(100))
    after, failed = output(open_query(asked(sql, {}, folder=None, attach_folder=None), ReadOptions()))
    assert failed == {}
    for name, column in columns.items():
        assert shown(after[name]) == shown(before[name]), str(column.type)
    with capsys.disabled():
        print(f"\nkept values equal through --sql: {len(columns)} types")


def test_what_parquet_does_not_hold_is_named():
    """The other Arrow types are refused by name, before anything is written."""
    for column in UNWRITABLE.values():
        with pytest.raises(InputInvalid, match="which Parquet does not hold"):
            parquet.row_columns(pa.int64(), pa.schema([("k", column.type)]), text=True)


def json_reading(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with every number as it was written."""
    text = path.read_text("utf-8")

    def loads(one: str) -> Any:
        return json.loads(one, parse_float=Decimal, parse_constant=float)

    return loads(text) if text.startswith("[") else [loads(line) for line in text.splitlines()]


def is_same(out: Any, value: Any) -> bool:
    """Whether a value of the output is the one that stood in JSON: itself, or, where types mix, its JSON text."""
    if value is None or out is None:
        return value is out
    if isinstance(out, str) and not isinstance(value, str):
        return is_same(json.loads(out, parse_float=Decimal, parse_constant=float), value)
    if isinstance(out, bool) or isinstance(value, bool | str):
        return type(out) is type(value) and out == value
    if isinstance(value, list):
        return len(out) == len(value) and all(map(is_same, out, value))
    if isinstance(value, dict):
        return out.keys() == value.keys() and all(is_same(out[key], value[key]) for key in value)
    if isinstance(value, float) and math.isnan(value):
        return math.isnan(float(out))
    if isinstance(value, float) and math.isinf(value):
        return float(out) == value
    return Decimal(value) in ({Decimal(out), Decimal(repr(out))} if isinstance(out, float) else {Decimal(out)})


def check_json(path: Path) -> int:
    """How many values came out as they stood in the file."""
    objects = json_reading(path)
    source = open_input([str(path)], ReadOptions(text_column="text"))
    after, failed = output(source)
    rows = after.to_pylist()
    assert len(rows) + len(failed) == len(objects)
    good = [one for at, one in enumerate(objects) if at not in failed]
    for row, one in zip(rows, good, strict=True):
        for name, value in one.items():
            assert name == "text" or is_same(row[name], value), (path.name, name, row[name], value)
    return sum(map(len, good))


def test_every_type_in_json_of_duckdb(tmp_path, capsys):
    """What DuckDB writes as JSON Lines of every type that it knows, decimals and HUGEINT with all digits."""
    seen = 0
    for number, column in enumerate(COLUMNS.values()):
        path = tmp_path / f"{number}.jsonl"
        rows = pa.table({"id": range(4), "text": ["t"] * 4, "k": column})
        with duckdb.connect() as connection:
            try:
                connection.register("rows", rows)
                connection.execute(f"copy (from rows) to '{path}' (format json)")
                json_reading(path)
            except (duckdb.Error, json.JSONDecodeError, pa.ArrowException, RuntimeError):
                continue  # a type that DuckDB does not know, or NaN, of which it makes no JSON
        check_json(path)
        seen += 1
    wide = tmp_path / "wide.jsonl"
    with duckdb.connect() as connection:
        connection.execute(
            "copy (select i as id, 't' as text, (9::hugeint * 10 ** 30)::hugeint + i as h, "
            f"(i / 7)::decimal(38, 30) as d from range(20) r(i)) to '{wide}' (format json)"
        )
    check_json(wide)
    with capsys.disabled():
        print(f"\nvalues of JSON by DuckDB equal: {seen + 2} types")


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**66), 2**66),
        st.floats(),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.sampled_from(["2026-01-01", "NaN", "1", "true", "null", ""]),
    ),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.sampled_from("abc"), one, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.lists(st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=3), is_array=st.booleans())
def test_any_json_of_python(tmp_path, columns, is_array):
    """Whatever Python's json writes, as lines or as an array: every value comes out, or its row fails."""
    count = max(map(len, columns))
    objects = [
        {"text": "t", **{f"k{n}": values[at] for n, values in enumerate(columns) if at < len(values)}}
        for at in range(count)
    ]
    path = tmp_path / ("a.json" if is_array else "a.jsonl")
    path.write_text(json.dumps(objects) if is_array else "".join(json.dumps(one) + "\n" for one in objects))

    check_json(path)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    ending=st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_any_csv_of_python(tmp_path, rows, quoting, ending):
    """Whatever Python's csv writes: every cell comes out as it was, in kept columns and as ids."""
    # without quotes a lone CR is no part of a cell to anybody but Python
    assume(quoting == csv.QUOTE_ALL or not any("\r" in cell for row in rows for cell in row))
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=quoting, lineterminator=ending)
        writer.writerow(["id", "text", "k", "l"])
        writer.writerows([[row[0], "t", row[1], row[2]] for row in rows])
    after, failed = output(open_input([str(path)], ReadOptions()))

    assert failed == {}
    assert after.select(["id", "k", "l"]).to_pylist() == [{"id": a, "k": b, "l": c} for a, b, c in rows]


def test_csv_of_others_is_kept_cell_by_cell(tmp_path, capsys):
    """Of every type that pyarrow and DuckDB write as CSV, the cells come out as the words that stand there."""
    seen: dict[str, int] = {}
    for number, column in enumerate(COLUMNS.values()):
        rows = pa.table({"id": range(4), "text": ["t"] * 4, "k": column})
        for how in ("pyarrow", "duckdb"):
            path = tmp_path / f"{number}-{how}.csv"
            try:
                if how == "pyarrow":
                    arrow_csv.write_csv(rows, path)
                else:
                    with duckdb.connect() as connection:
                        connection.register("rows", rows)
                        connection.execute(f"copy (from rows) to '{path}' (format csv, header)")
                with path.open(newline="", encoding="utf-8") as file:
                    cells = [row["k"] for row in csv.DictReader(file)]
            except (pa.ArrowException, duckdb.Error, UnicodeDecodeError, RuntimeError):
                continue
            after, failed = output(open_input([str(path)], ReadOptions()))
            assert failed == {}
            assert after["k"].to_pylist() == cells, (str(column.type), how)
            seen[how] = seen.get(how, 0) + 1
    with capsys.disabled():
        print("\ncells of CSV equal, types by writer:", seen)


def test_all_types_through_the_command(tmp_path):
    """One table of all columns, embedded, rerun and verified by the commands: the output holds them all, unchanged."""
    columns = {f"k{number}": column for number, column in enumerate(COLUMNS.values())}
    path, out = tmp_path / "all.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"id": range(4), "text": ["one", "two", None, "three"], **columns}), path)
    made = embedctl("embed", path, "-o", out, "--json")
    again = embedctl("embed", path, "-o", out, "--json")
    lines = embedctl("embed", path, "-o", "-", "-q")
    before, after = pq.read_table(path), pq.read_table(out)
    before = pa.concat_tables([before.slice(0, 2), before.slice(3)])

    assert (made.code, made.json["vectors"], made.json["skipped"]) == (0, 3, 1)
    assert again.json["requests"] == 0
    assert embedctl("vectors", "verify", out, "--input", path).code == 0
    assert len(lines.lines) == 3
    for name in columns:
        assert shown(after[name]) == shown(before[name]), name

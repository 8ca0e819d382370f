"""What travels along comes out as it went in, or its row fails; Parquet is read as those who wrote it meant it."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import InputInvalid
from embedctl.inputs import ReadOptions, open_input
from embedctl.inputs.row_ids import printed
from embedctl.outputs.parquet import plain, row_columns
from tests.support.running import embedctl


def opened(path, **options):
    return open_input([str(path)], ReadOptions(**options))


def written(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_text_without_its_annotation_is_read(tmp_path, kind):
    """Bytes that Impala, Hive and old Spark write for text are text where they are valid UTF-8; else the row fails."""
    columns = {"id": [1, 2, 3, 4], "text": pa.array(["ü".encode(), b"\xff", None, b""], kind), "raw": [b"\xff"] * 4}
    path = written(tmp_path / "a.parquet", columns)
    (block,) = opened(path).blocks()
    (named,) = opened(path, text_column="raw", keep="none").blocks()

    assert block.texts == ["ü", None, None, ""]
    assert block.reasons == {1: "invalid_utf8", 2: "null"}
    assert block.kept.to_pydict() == {"raw": [b"\xff"] * 4}
    assert named.reasons == dict.fromkeys(range(4), "invalid_utf8")


def test_a_row_whose_kept_text_is_no_utf8_fails_alone(tmp_path):
    """Invalid UTF-8 in a kept column, however deep, or in an id fails that row and no other."""
    bad = pa.array([b"ok", b"\xff", b"ok", b"ok"]).view(pa.string())
    words = pa.array([b"a", b"b", b"\xfe", b"c"]).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 4, 4], pa.int32()), words)
    ids = pa.array([b"a", b"b", b"c", b"d\xfd"]).view(pa.string())
    path = written(tmp_path / "a.parquet", {"id": ids, "text": ["t"] * 4, "s": bad, "l": lists})
    (block,) = opened(path).blocks()
    done = embedctl("embed", path, "-o", tmp_path / "o.parquet", "--json")

    assert block.reasons == {1: "invalid_utf8", 2: "invalid_utf8", 3: "invalid_utf8"}
    assert block.ids == ["a", "b", "c", "d\\xfd"]
    assert block.kept.column("s").to_pylist() == ["ok", None, "ok", "ok"]
    assert block.kept.column("l").to_pylist() == [["a"], ["b"], None, []]
    assert (done.code, done.json["vectors"], done.json["failed"]) == (3, 1, 3)


def test_old_timestamps_do_not_wrap(tmp_path):
    """INT96 times beyond 2262 (Spark's 9999-12-31) come as microseconds, finer ones as nanoseconds, all unchanged."""
    far, near = dt.datetime(9999, 12, 31, tzinfo=dt.UTC), dt.datetime(2020, 1, 1, 0, 0, 0, 5, dt.UTC)
    kinds = {}
    for name, values, unit in (("far", [far, near, None], "us"), ("fine", [1, 2, None], "ns")):
        times = pa.array(values, pa.timestamp(unit))
        deep = pa.array([[{"t": one, "u": None}] for one in times.to_pylist()] if unit == "us" else [[], [], []],
                        pa.list_(pa.struct([("t", pa.timestamp(unit)), ("u", pa.timestamp(unit))])))  # fmt: skip
        path = written(
            tmp_path / f"{name}.parquet",
            {"text": ["a"] * 3, "t": times, "deep": deep},
            use_deprecated_int96_timestamps=True,
        )
        (block,) = opened(path).blocks()
        kinds[name] = str(block.kept.column("t").type)
        assert block.kept.column("t").equals(times)

    assert kinds == {"far": "timestamp[us]", "fine": "timestamp[ns]"}


def test_what_parquet_does_not_hold_is_said_first():
    """A kept column of a type that no Parquet file can hold ends with 65 and its name, before anything is paid."""
    runs = pa.run_end_encoded(pa.int32(), pa.int8())
    for kind in (pa.month_day_nano_interval(), pa.struct([]), pa.decimal128(5, -2), runs):
        with pytest.raises(InputInvalid, match=r"column 'k' is .*, which Parquet does not hold"):
            row_columns(pa.int64(), pa.schema([("k", kind)]), text=True)


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (pa.array([1.5, float("nan"), float("inf"), None]), [1.5, "NaN", "Infinity", None]),
        (pa.array([[float("-inf")], None], pa.list_(pa.float32())), [["-Infinity"], None]),
        (pa.array([[1], None, []], pa.list_(pa.timestamp("ns"))), [["1970-01-01T00:00:00.000000001"], None, []]),
        (
            pa.array(
                [{"t": 1, "m": [("k", None)]}, None],
                pa.struct([("t", pa.timestamp("ns")), ("m", pa.map_(pa.string(), pa.int8()))]),
            ),
            [{"t": "1970-01-01T00:00:00.000000001", "m": [["k", None]]}, None],
        ),
        (pa.array([2**40], pa.timestamp("s")), ["<value out of range: 1099511627776>"]),
        (pa.array([[1, 2], None], pa.list_view(pa.int8())), [[1, 2], None]),
    ],
)
def test_json_says_every_value(column, shown):
    """In JSON lines no value is lost: NaN, infinities and times beyond Python's are words, also within lists."""
    assert plain(column) == shown
    assert plain(pa.chunked_array([column, column])) == shown * 2
    assert plain(column.slice(1)) == shown[1:]


def test_printed_ids_need_no_copy():
    """Chunks of an id column read one after the other."""
    assert printed(pa.chunked_array([pa.array([1]), pa.array([2])])) == [1, 2]

"""Folders of parts: columns of Hive's folders, types that differ, columns that some parts lack."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.errors import EmbedctlError, InputInvalid, WrongUsage
from embedctl.inputs import ReadOptions, open_input
from embedctl.inputs.widening import wider


def part(folder: Path, name: str, **columns) -> None:
    """A Parquet part."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)


def read(*paths: Path, **options) -> tuple[list[dict], dict[int, str], pa.Schema]:
    """Rows as dicts, messages of those that fail, and the schema of what is kept."""
    source = open_input([str(path) for path in paths], ReadOptions(**options))
    rows: list[dict] = []
    messages: dict[int, str] = {}
    for block in source.blocks():
        assert {at for at, value in enumerate(block.texts) if value is None} == set(block.reasons)
        assert block.kept is None or block.kept.schema == source.schema_kept
        messages |= {block.first_row + at: what for at, what in block.messages.items()}
        kept = [{}] * len(block) if block.kept is None else block.kept.to_pylist()
        rows += [{"id": i, "text": t, **k} for i, t, k in zip(block.ids, block.texts, kept, strict=True)]
    return rows, messages, source.schema_kept


def refused(*paths: Path, **options) -> EmbedctlError:
    """The error that reading ends with."""
    with pytest.raises(EmbedctlError) as caught:
        read(*paths, **options)
    return caught.value


# Hive


def test_folders_of_hive_give_columns(tmp_path):
    """`lang=de/month=01/part.parquet` gives the columns lang and month, as they are written, in every table format."""
    part(tmp_path, "lang=de/month=01/a.parquet", id=[1], text=["x"])
    part(tmp_path, "lang=__HIVE_DEFAULT_PARTITION__/month=02/a.parquet", id=[2], text=["y"])
    (tmp_path / "lang=a%2Fb c").mkdir()
    (tmp_path / "lang=a%2Fb c/b.csv").write_text("id,text\n3,z\n")
    rows, messages, schema = read(tmp_path)

    assert messages == {}
    assert sorted(rows, key=lambda row: row["id"]) == [
        {"id": "1", "text": "x", "lang": "de", "month": "01"},
        {"id": "2", "text": "y", "lang": None, "month": "02"},
        {"id": "3", "text": "z", "lang": "a/b c", "month": None},
    ]
    assert schema == pa.schema([("lang", pa.string()), ("month", pa.string())])


def test_hives_columns_are_kept_as_others_are(tmp_path):
    """--keep chooses them, a glob and a named file give them too, and a column of the file itself comes first."""
    part(tmp_path, "lang=de/a.parquet", id=[1], text=["x"], n=[5])

    for path in (tmp_path, tmp_path / "**/*.parquet", tmp_path / "lang=de", tmp_path / "lang=de/a.parquet"):
        assert read(path)[0] == [{"id": 1, "text": "x", "n": 5, "lang": "de"}]
    assert read(tmp_path, keep="none")[0] == [{"id": 1, "text": "x"}]
    assert read(tmp_path, keep=("lang",))[0] == [{"id": 1, "text": "x", "lang": "de"}]
    part(tmp_path, "lang=de/a.parquet", id=[1], text=["x"], lang=["inside"])
    assert read(tmp_path)[0] == [{"id": 1, "text": "x", "lang": "inside"}]
    part(tmp_path / "other", "text=5/a.parquet", body=["x"])
    assert isinstance(refused(tmp_path / "other"), WrongUsage)


# Parts


def test_parts_whose_types_differ_are_widened(tmp_path):
    """Each column gets the type that holds what all parts hold; a part without values or the column is null there."""
    part(tmp_path, "a.parquet", id=[1], text=["x"], n=pa.array([1], pa.int8()), m=pa.array([None]), d=[1])
    part(tmp_path, "b.parquet", id=[2], text=["y"], n=pa.array([2], pa.int64()), m=["m"], d=[1.5], extra=[True])
    part(tmp_path, "c.parquet", id=[3], text=pa.array([None]), n=["three"], m=["n"])
    rows, messages, schema = read(tmp_path)

    assert rows == [
        {"id": 1, "text": "x", "n": "1", "m": None, "d": 1.0, "extra": None},
        {"id": 2, "text": "y", "n": "2", "m": "m", "d": 1.5, "extra": True},
        {"id": 3, "text": None, "n": "three", "m": "n", "d": None, "extra": None},
    ]
    assert messages == {}
    assert schema == pa.schema([("n", pa.string()), ("m", pa.string()), ("d", pa.float64()), ("extra", pa.bool_())])


def test_a_value_that_the_wider_type_does_not_hold_fails_its_row(tmp_path):
    """An integer that no float holds, beside a part of floats, fails its row; it is never rounded."""
    part(tmp_path, "a.parquet", id=[1, 2, 3], text=["a", "b", "c"], n=[1, 2**53 + 1, 3])
    part(tmp_path, "b.parquet", id=[4], text=["d"], n=[0.5])
    rows, messages, _ = read(tmp_path)

    assert [(row["text"], row["n"]) for row in rows] == [("a", 1.0), (None, None), ("c", 3.0), ("d", 0.5)]
    assert messages == {1: "a.parquet: row 1: 'n' does not fit double, which it has with the other files"}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([1, 2]), pa.array(["a"]), ["1", "2", "a"]),
        (pa.array([1], pa.int32()), pa.array([2], pa.int64()), [1, 2]),
        (pa.array([1], pa.uint64()), pa.array([-1], pa.int64()), ["1", "-1"]),
        (pa.array([datetime.date(2026, 1, 2)]), pa.array(["x"]), ["2026-01-02", "x"]),
    ],
)
def test_ids_are_widened_too(tmp_path, one, other, expected):
    """Ids of differing types get the type that holds all of them."""
    part(tmp_path, "a.parquet", id=one, text=["t"] * len(one))
    part(tmp_path, "b.parquet", id=other, text=["t"] * len(other))
    rows, messages, _ = read(tmp_path)

    assert [row["id"] for row in rows] == expected
    assert messages == {}


def test_tables_of_several_formats_are_one(tmp_path):
    """CSV, JSON and Parquet in one folder are one table: numbers beside CSV's text are text, as they print."""
    part(tmp_path, "a.parquet", id=[1], text=["p"], n=[7])
    (tmp_path / "b.csv").write_text("id,text,n\n007,c,08\n")
    (tmp_path / "c.jsonl").write_text('{"id": 3, "text": "j", "n": {"a": 1}}\n')
    rows, messages, _ = read(tmp_path)

    assert messages == {}
    assert [tuple(row.values()) for row in rows] == [("1", "p", "7"), ("007", "c", "08"), ("3", "j", '{"a":1}')]


def test_types_without_a_common_one_say_so(tmp_path):
    """A column that is a list here and a number there ends with 65 before any work."""
    part(tmp_path, "a.parquet", text=["a"], n=[[1]])
    part(tmp_path, "b.parquet", text=["b"], n=[1])
    problem = refused(tmp_path)

    assert isinstance(problem, InputInvalid)
    assert problem.message == "the tables differ: column 'n' is int64 in b.parquet, list<element: int64> in a.parquet"
    assert len(read(tmp_path, keep="none")[0]) == 2


FIRST = datetime.datetime(1900, 1, 1)  # noqa: DTZ001 - times without zone are meant
VALUES = {
    pa.int8(): st.integers(-128, 127),
    pa.uint8(): st.integers(0, 255),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.decimal128(9, 3): st.decimals(-999999, 999999, places=3),
    pa.decimal128(38, 0): st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    pa.bool_(): st.booleans(),
    pa.date32(): st.dates(),
    pa.timestamp("s"): st.datetimes(FIRST).map(lambda one: one.replace(microsecond=0)),
    pa.timestamp("us"): st.datetimes(FIRST),
    pa.time32("s"): st.times().map(lambda one: one.replace(microsecond=0)),
    pa.binary(): st.binary(max_size=4),
    pa.binary(2): st.binary(min_size=2, max_size=2),
    pa.list_(pa.int32()): st.lists(st.integers(0, 9), max_size=2),
    pa.null(): st.none(),
}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_value_changes_when_types_are_widened(data):
    """Whatever two types: the values of both come out equal, or as they print, or their row fails."""
    kinds = [data.draw(st.sampled_from(list(VALUES))) for _ in range(2)]
    kind = wider(*kinds)
    assert kind == wider(*reversed(kinds))
    if kind is None:
        assert any(pa.types.is_nested(one) for one in kinds)
        return
    for one in kinds:
        value = pa.array([data.draw(VALUES[one])], one)
        try:
            found = value.cast(kind)
        except pa.ArrowInvalid:
            assert pa.types.is_floating(kind) or pa.types.is_timestamp(kind) or pa.types.is_string(kind)
            continue
        before, after = value[0].as_py(), found[0].as_py()
        if pa.types.is_string(kind) and not pa.types.is_string(one):
            assert (after is None) == (before is None)
            assert (
                after is None
                or pa.types.is_binary(one)
                or pa.types.is_fixed_size_binary(one)
                or _reads(after, one, value)
            )
        elif (
            isinstance(before, datetime.date) and isinstance(after, datetime.datetime) and type(before) is datetime.date
        ):
            assert after == datetime.datetime.combine(before, datetime.time())
        else:
            assert after == before


def _reads(text: str, kind: pa.DataType, value: pa.Array) -> bool:
    """Whether a printed value is, or is read again as, what it was."""
    if text == str(value[0].as_py()):
        return True
    return pa.array([text]).cast(kind).equals(value)

"""Row ids of every type that prints exactly: they keep their type, and read the same wherever they are written."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import InputInvalid
from embedctl.inputs import ReadOptions, open_input
from embedctl.inputs.row_ids import can_be_id, printed, stands_for_itself

U = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
DAY = dt.date(2026, 2, 28)
NOON = dt.datetime(2026, 2, 28, 12, 0, 0, 123456, dt.UTC)

IDS = [
    (pa.array(["a", "ü"]), ["a", "ü"]),
    (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
    (pa.array(["a", "a"]).dictionary_encode(), ["a", "a"]),
    (pa.array([7, -1], pa.int8()), [7, -1]),
    (pa.array([7, 2**64 - 1], pa.uint64()), [7, 2**64 - 1]),
    (pa.array([1.5, float("nan")], pa.float64()), [1.5, "nan"]),
    (pa.array([0.1, 2], pa.float32()), [0.10000000149011612, 2.0]),
    (pa.array([Decimal("1.10"), Decimal("-10000000000000000000000.00")], pa.decimal128(38, 2)),
     ["1.10", "-10000000000000000000000.00"]),
    (pa.array([Decimal("0.000000000000"), Decimal(5)], pa.decimal256(60, 12)), ["0.000000000000", "5.000000000000"]),
    (pa.array([DAY, DAY], pa.date32()), ["2026-02-28", "2026-02-28"]),
    (pa.array([2**31 - 1], pa.int32()).view(pa.date32()), ["<value out of range: 2147483647>"]),
    (pa.array([NOON], pa.timestamp("us")), ["2026-02-28T12:00:00.123456"]),
    (pa.array([NOON], pa.timestamp("us", "Europe/Berlin")), ["2026-02-28T12:00:00.123456Z"]),
    (pa.array([1], pa.timestamp("ns")), ["1970-01-01T00:00:00.000000001"]),
    (pa.array([NOON.time()], pa.time64("us")), ["12:00:00.123456"]),
    (pa.array([b"\x00\xff", b""]), ["00ff", ""]),
    (pa.array([U.bytes], pa.binary(16)), [U.hex]),
    (pa.array([U.bytes], pa.uuid()), [str(U)]),
]  # fmt: skip


@pytest.mark.parametrize(("column", "words"), IDS, ids=lambda value: str(getattr(value, "type", "")))
def test_an_id_keeps_its_type_and_reads_exactly(tmp_path, column, words):
    """Parquet gives the column as it is, and the words it reads as; other columns need no copy of themselves."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": column, "text": ["x"] * len(column)}), path)
    source = open_input([str(path)], ReadOptions())
    (block,) = source.blocks()
    kept = pa.array(block.ids, source.id_type) if block.id_column is None else block.id_column

    assert printed(column) == words
    assert list(block.ids) == words
    assert printed(kept) == words
    assert kept.type == source.id_type
    assert (block.id_column is None) == stands_for_itself(source.id_type)


@pytest.mark.parametrize(
    "kind", [pa.bool_(), pa.list_(pa.int8()), pa.duration("s"), pa.null(), pa.struct([("a", pa.int8())])]
)
def test_what_names_no_row_is_no_id(tmp_path, kind):
    """True and false, lists and the like are no ids: asked for by name they end with 65 and say what an id may be."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"k": pa.nulls(1, kind), "text": ["x"]}), path)
    with pytest.raises(InputInvalid) as caught:
        open_input([str(path)], ReadOptions(id_column="k"))

    assert not can_be_id(kind)
    assert "an id is text, a number, a date or time, a UUID or bytes" in caught.value.message


def test_json_ids_are_as_they_were_written(tmp_path):
    """Floats stay floats, integers beyond 64 bits and mixtures become the text of their digits."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1.5, "text": "a"}\n{"id": 2, "text": "b"}\n{"id": NaN, "text": "c"}\n')
    source = open_input([str(path)], ReadOptions())
    (block,) = source.blocks()
    assert block.ids == [1.5, 2.0, "nan"]
    assert str(source.id_type) == "double"

    path.write_text('{"id": 123456789012345678901234567890, "text": "a"}\n{"id": 1, "text": "b"}\n')
    (block,) = open_input([str(path)], ReadOptions()).blocks()
    assert block.ids == ["123456789012345678901234567890", "1"]

"""A column of every Arrow type, with nulls and the values at its edges."""

from __future__ import annotations

import math
import uuid
from decimal import Decimal as D

import pyarrow as pa

_TEXTS = ["a", None, "", "ü€ \n\t\"'"]
_BYTES = [b"\xff\x00", None, b"", b"x"]
_TIMES = [0, None, -1, 2**40]


def _numbers() -> dict[str, pa.Array]:
    found = {"bool": pa.array([True, None, False, True])}
    for bits in (8, 16, 32, 64):
        edge = 1 << (bits - 1)
        found[f"int{bits}"] = pa.array([-edge, None, edge - 1, 0], f"int{bits}")
        found[f"uint{bits}"] = pa.array([0, None, 2 * edge - 1, 1], f"uint{bits}")
    for name in ("float16", "float32", "float64"):
        found[name] = pa.array([1.5, None, -math.inf, math.nan], getattr(pa, name)())
    for kind in (pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(38, 2), pa.decimal256(76, 2)):
        edge = D("9" * (kind.precision - 2) + ".99") if kind.precision < 28 else D(10) ** 25
        found[str(kind)] = pa.array([D("1.23"), None, -edge, D(0)], kind)
    return found


def _times() -> dict[str, pa.Array]:
    found = {
        "date32": pa.array([0, None, -1, 20000], pa.int32()).view(pa.date32()),
        "date64": pa.array([0, None, 86_400_000, -86_400_000], pa.int64()).view(pa.date64()),
        "time32[s]": pa.array([0, None, 1, 86_399], pa.time32("s")),
        "time32[ms]": pa.array([0, None, 1, 86_399_999], pa.time32("ms")),
        "time64[us]": pa.array([0, None, 1, 86_399_999_999], pa.time64("us")),
        "time64[ns]": pa.array([0, None, 1, 86_399_999_999_999], pa.time64("ns")),
    }
    for unit in ("s", "ms", "us", "ns"):
        found[f"timestamp[{unit}]"] = pa.array(_TIMES, pa.timestamp(unit))
        found[f"timestamp[{unit}, zone]"] = pa.array(_TIMES, pa.timestamp(unit, "America/New_York"))
        found[f"duration[{unit}]"] = pa.array(_TIMES, pa.duration(unit))
    return found


def _nested() -> dict[str, pa.Array]:
    struct = pa.struct([("a", pa.int64()), ("b", pa.string())])
    lists = [[1, None], None, [], [3]]
    words = pa.array(["a", None, "b"]).dictionary_encode()
    return {
        "list": pa.array(lists, pa.list_(pa.int32())),
        "large_list": pa.array([["a", None], None, [], ["b"]], pa.large_list(pa.string())),
        "fixed_size_list": pa.array([[1, 2], None, [3, 4], [5, None]], pa.list_(pa.int8(), 2)),
        "list_view": pa.array(lists, pa.list_view(pa.int32())),
        "large_list_view": pa.array(lists, pa.large_list_view(pa.int64())),
        "list<string_view>": pa.array([["a", None], None, [], ["b"]], pa.list_(pa.string_view())),
        "list<dictionary>": pa.ListArray.from_arrays(pa.array([0, 2, 2, 3, 3], pa.int32()), words),
        "list<dictionary, uint32>": pa.ListArray.from_arrays([0, 2, 2, 3, 4], _indexed(pa.uint32())),
        "list<timestamp[ns]>": pa.array([[1], None, [], [2]], pa.list_(pa.timestamp("ns"))),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 2, "b": ""}], struct),
        "map": pa.array([[("k", 1)], None, [], [("a", None), ("b", 2)]], pa.map_(pa.string(), pa.int64())),
        "deep": pa.array(
            [[{"m": [("k", [1.5])]}], None, [], [None]],
            pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.list_(pa.float64())))])),
        ),
    }


def _indexed(kind: pa.DataType) -> pa.DictionaryArray:
    """As Polars has categories: places of words as unsigned numbers."""
    return pa.DictionaryArray.from_arrays(pa.array([1, None, 0, 1], kind), pa.array(["a", "b"]))


def _others() -> dict[str, pa.Array]:
    ids = [uuid.UUID(int=1).bytes, None, uuid.UUID(int=2).bytes, uuid.UUID(int=2**128 - 1).bytes]
    tensor = pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.float32(), 2))
    return {
        "null": pa.nulls(4),
        "string": pa.array(_TEXTS),
        "large_string": pa.array(_TEXTS, pa.large_string()),
        "string_view": pa.array(_TEXTS, pa.string_view()),
        "binary": pa.array(_BYTES),
        "large_binary": pa.array(_BYTES, pa.large_binary()),
        "binary_view": pa.array(_BYTES, pa.binary_view()),
        "fixed_size_binary": pa.array([b"abc", None, b"\xff\xff\xff", b"\0\0\0"], pa.binary(3)),
        "dictionary<string>": pa.array(_TEXTS).dictionary_encode(),
        "dictionary<int16>": pa.array([5, None, 6, 5], pa.int16()).dictionary_encode(),
        "dictionary<decimal>": pa.array([D("1.1"), None, D(2), D(2)], pa.decimal128(9, 1)).dictionary_encode(),
        **{f"dictionary<string, {kind}>": _indexed(kind) for kind in (pa.int8(), pa.uint8(), pa.uint32(), pa.uint64())},
        "uuid": pa.array(ids, pa.uuid()),
        "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', None, "null", "[]"])),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0, 1], pa.int8())),
        "tensor": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), tensor),
        "opaque": pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "t", "v"), pa.array(_BYTES)),
    }


COLUMNS: dict[str, pa.Array] = {**_numbers(), **_times(), **_others(), **_nested()}
"""Four rows each, the second null."""

UNWRITABLE: dict[str, pa.Array] = {
    "interval": pa.array([(1, 2, 3), None, (0, 0, 0), (-1, 2, 3)], pa.month_day_nano_interval()),
    "run_end_encoded": pa.RunEndEncodedArray.from_arrays([2, 4], ["a", "b"]),
    "sparse_union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0, 1], pa.int8()), [pa.array([1, 2, 3, 4]), pa.array(["a", "b", "c", "d"])]
    ),
    "decimal of negative scale": pa.array([D(100), None, D(-900), D(0)], pa.decimal128(5, -2)),
}
"""What no Parquet file holds."""

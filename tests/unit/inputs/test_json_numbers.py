"""Numbers of JSON come out as they were written, or the line that holds them is named."""

from __future__ import annotations

import json
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.inputs import ReadOptions, json_lines, json_numbers, open_input


def kept(path, *written: str) -> tuple[str, list]:
    """The type and values of a field that travels along, written as these JSON texts."""
    path.write_text("".join(f'{{"text": "t", "n": {text}}}\n' for text in written))
    source = open_input([str(path)], ReadOptions())
    return str(source.schema_kept.field("n").type), [
        value for block in source.blocks() for value in block.kept.column("n").to_pylist()
    ]


@pytest.mark.parametrize(
    ("written", "kind", "values"),
    [
        (["1", "2.5"], "double", [1.0, 2.5]),
        (["9007199254740993", "2.5"], "string", ["9007199254740993", "2.5"]),
        (["18446744073709551615", "0"], "uint64", [2**64 - 1, 0]),
        (["18446744073709551616", "1"], "string", ["18446744073709551616", "1"]),
        (["-9223372036854775809", "1"], "string", ["-9223372036854775809", "1"]),
        (["3.14159265358979323846", "1"], "string", ["3.14159265358979323846", "1"]),
        (["80659724889.741296666667", "1.5"], "string", ["80659724889.741296666667", "1.5"]),  # its float has 15
        (["100000000000000000001", "1.5"], "string", ["100000000000000000001", "1.5"]),
        (["0.30000000000000004", "1e22", "1.10"], "double", [0.30000000000000004, 1e22, 1.1]),
        (['{"a": [12345678901234567890123, NaN]}', "1"], "string", ['{"a":[12345678901234567890123,NaN]}', "1"]),
        (['"12345678901234567890123"', "12345678901234567890123"], "string", ["12345678901234567890123"] * 2),
        (["Infinity", "1", "-Infinity"], "double", [float("inf"), 1.0, float("-inf")]),
    ],
)
def test_a_number_comes_out_as_it_was_written(tmp_path, written, kind, values):
    """A column type that holds every number exactly, else the text of its digits; Python's NaN and infinities too."""
    assert kept(tmp_path / "a.jsonl", *written) == (kind, values)
    array = "[" + ",".join(f'{{"text": "t", "n": {text}}}' for text in written) + "]"
    (tmp_path / "a.json").write_text(array)
    (block,) = open_input([str(tmp_path / "a.json")], ReadOptions()).blocks()
    assert block.kept.column("n").to_pylist() == values


def test_nan_is_nan(tmp_path):
    """NaN beside numbers is a float's NaN."""
    kind, values = kept(tmp_path / "a.jsonl", "NaN", "1")

    assert kind == "double"
    assert values[0] != values[0]


def messages(path):
    """Ordinal → what is said of a row that cannot be read."""
    blocks = open_input([str(path)], ReadOptions()).blocks()
    return {block.first_row + at: what for block in blocks for at, what in block.messages.items()}


def test_a_number_beyond_every_float_is_named(tmp_path):
    """1e400 would become infinity: its row fails with its line."""
    (tmp_path / "a.jsonl").write_text('{"text": "t", "n": 1}\n{"text": "t", "n": 1e400}\n')

    assert messages(tmp_path / "a.jsonl")[1].startswith("a.jsonl: line 2: not JSON: number is infinity")


def test_a_number_that_comes_late_and_fits_no_more_is_named(tmp_path, monkeypatch):
    """Beyond what is looked at, a row with a number that the column cannot hold exactly fails with its line."""
    monkeypatch.setattr(json_lines, "SCAN_BYTES", 0)
    monkeypatch.setattr(json_lines, "SCAN_BYTES_PER_FILE", 0)
    monkeypatch.setattr(json_lines, "TAIL_BYTES", 1000)
    for early, late in (("1.5", "9007199254740993"), ("1", "18446744073709551616"), ("1.5", "true"), ("1", "NaN")):
        path = tmp_path / "a.jsonl"
        first = "".join(f'{{"text": "t", "n": {early}}}\n' for _ in range(5000))
        path.write_text(f"{first * 10}" + f'{{"text": "t", "n": {late}}}\n{first}')

        assert messages(path)[50_000].startswith("a.jsonl: line 50001: 'n' is ")


LONG = st.decimals(-(10**12), 10**12, allow_nan=False, places=12)
"""Many have a float of few digits."""


@given(st.one_of(st.integers(), st.decimals(allow_nan=False, allow_infinity=False), LONG, st.floats()))
def test_no_number_changes(number):
    """Whatever number json or a decimal writes, reading gives that number, or its digits."""
    text = json.dumps(number) if not isinstance(number, Decimal) else format(number, "f")
    line = f'{{"n": {text}}}'.encode()
    if text[-1] in "Ny" or "e+" in text:
        found = json_numbers.loads(line)[0]["n"]
    else:
        (found,) = json_numbers.as_written([orjson.loads(line)["n"]], [line], "n")

    if isinstance(found, json_numbers.Number):
        assert found.text == text
    else:
        assert Decimal(text) in (Decimal(found), Decimal(repr(found)))

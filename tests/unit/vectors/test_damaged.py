"""What a damaged or hostile output says of itself is checked where it is read: it is refused, or looked at, no more."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedctl.errors import InputInvalid
from embedctl.outputs.parquet import METADATA_KEY
from embedctl.vectors import about, files, search, verify
from embedctl.vectors.findings import Findings
from tests.support.vector_files import put, rows, vector


@cache
def whole() -> bytes:
    """A right output."""
    with tempfile.TemporaryDirectory() as folder:
        return put(Path(folder) / "a.parquet", rows(5), options={"model": "test/model"}).read_bytes()


@cache
def facts() -> str:
    """What it says of itself."""
    return pq.read_metadata(io.BytesIO(whole())).metadata[METADATA_KEY].decode()


def places(told: Any, behind: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in it."""
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for name, value in items:
        yield (*behind, name)
        yield from places(value, (*behind, name))


def saying(place: tuple[Any, ...], value: Any) -> bytes:
    """The output with something else in one place."""
    told = json.loads(facts())
    at = told
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    sink = io.BytesIO()
    table = pq.read_table(io.BytesIO(whole()))
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(told)})
    return sink.getvalue()


def looked_at(content: bytes) -> Findings | None:
    """What a verification says after all other looks at it; None where it was refused."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        path.write_bytes(content)
        try:
            stored = files.open_stored(path)
            verify.verify(stored, findings, folder=Path(folder))
            json.dumps(about.about(stored).as_dict())
            search.nearest(stored, vector("x", stored.space.dimensions), 3)
        except InputInvalid:
            return None if not len(list(findings)) else findings
    return findings


STRANGE = st.sampled_from([None, 0, -1, 1.5, True, "x", "\x1b[2J", [], {}, {"a": 1}, [1], 10**18])


@settings(max_examples=100)
@given(place=st.sampled_from(sorted(places(json.loads(facts())), key=str)), value=STRANGE)
@example(place=("counts", "read"), value="x")
@example(place=("rows",), value=None)
@example(place=("space", "prefix"), value=None)
@example(place=("space", "dimensions"), value="x")
def test_whatever_it_says_of_itself(place: tuple[Any, ...], value: Any) -> None:
    """Each thing that its metadata tells may be anything."""
    looked_at(saying(place, value))


@settings(max_examples=150)
@given(at=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_a_flipped_bit_of_its_footer(at: float, bit: int) -> None:
    """It is refused, found wrong, or does no harm; the process lives."""
    content = bytearray(whole())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[len(content) - footer + int(at * footer)] ^= 1 << bit

    looked_at(bytes(content))


@pytest.mark.parametrize(("place", "check"), [(("counts", "read"), "row_count"), (("rows",), "row_count")])
def test_numbers_that_are_none_are_found(place: tuple[Any, ...], check: str) -> None:
    """A count that is no number is wrong, not unknown."""
    found = looked_at(saying(place, "many"))

    assert found is not None
    assert check in [one.check for one in found]


def test_a_column_that_one_schema_lacks() -> None:
    """A name that differs between Parquet's schema and Arrow's is no column of an output."""
    content = whole()
    at = content.index(b"embedding_tokens")
    assert content.count(b"embedding_tokens") > 1

    assert looked_at(content[:at] + b"Embedding_tokens" + content[at + 16 :]) is None


def test_a_row_without_a_column_is_named(tmp_path: Path) -> None:
    """A search that finds a row whose text is in no column says which one is missing."""
    table = pq.read_table(io.BytesIO(whole())).drop_columns(["chunk_index"])
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema(table.schema)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY.decode(): facts()})

    with pytest.raises(InputInvalid, match="has no column chunk_index"):
        search.nearest(files.open_stored(tmp_path / "a.parquet"), vector("x"), 3)

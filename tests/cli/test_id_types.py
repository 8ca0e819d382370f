"""Ids of any type that prints exactly, through every command that writes, reads or compares them."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.running import embedctl

TEXTS = ["one", "two", None, "one"]
IDS = {
    "uuid": (
        pa.array([uuid.UUID(int=number).bytes for number in range(4)], pa.uuid()),
        [str(uuid.UUID(int=number)) for number in range(4)],
    ),
    "decimal": (
        pa.array([Decimal(n) / 10 for n in range(4)], pa.decimal128(30, 3)),
        ["0.000", "0.100", "0.200", "0.300"],
    ),
    "float": (pa.array([0.5, 1.5, 2.5, 1e22]), [0.5, 1.5, 2.5, 1e22]),
    "time": (
        pa.array([dt.datetime(2026, 1, day, tzinfo=dt.UTC) for day in (1, 2, 3, 4)], pa.timestamp("ms", "Asia/Tokyo")),
        [f"2026-01-0{day}T00:00:00.000Z" for day in (1, 2, 3, 4)],
    ),
    "bytes": (pa.array([b"\0", b"\xff", b"", b"a"]), ["00", "ff", "", "61"]),
    "uint64": (pa.array([2**64 - 1, 2**63, 1, 0], pa.uint64()), [2**64 - 1, 2**63, 1, 0]),
}


@pytest.fixture(params=IDS)
def made(tmp_path, request):
    """An input with ids of one type, and the output of a batch over it."""
    ids, words = IDS[request.param]
    pq.write_table(pa.table({"id": ids, "text": TEXTS}), tmp_path / "in.parquet")
    assert embedctl("batch", "run", tmp_path / "in.parquet", "-o", tmp_path / "out", "--job", "j", "-q").code == 0
    return tmp_path, ids, words


def test_an_id_keeps_its_type_in_the_output(made):
    """The output's id column is the input's, and the failures file names the row as the id reads."""
    folder, ids, words = made
    (part,) = (folder / "out").glob("part-*")
    found = pq.read_table(part)["id"].combine_chunks()
    (failure,) = map(json.loads, (folder / "out/failures.jsonl").read_text().splitlines())

    assert found.type == ids.type
    assert found.equals(ids.take(pa.array([0, 1, 3])))
    assert failure["id"] == words[2]


def test_every_command_says_an_id_alike(made):
    """Verify compares it with the input, search and `-o -` and `batch status --id` print it, a rerun buys nothing."""
    folder, _, words = made
    source, out = folder / "in.parquet", folder / "out"
    again = embedctl("batch", "run", source, "-o", out, "--job", "j", "--json").json
    verified = embedctl("vectors", "verify", out, "--input", source, "--json")
    hits = embedctl("vectors", "search", out, "two", "-k", "1", "--json").json["results"]
    printed = [row["id"] for row in embedctl("embed", source, "-o", "-", "-q").lines]
    status = embedctl("batch", "status", "j", "--id", words[0], "--json").json
    skipped = embedctl("batch", "status", "j", "--id", words[2], "--json").json

    assert (again["requests"], again["reused"]) == (0, 3)
    assert verified.code == 0, verified.out
    assert verified.json["rows_read"] == 4
    assert hits[0]["id"] == words[1]
    assert printed == [words[0], words[1], words[3]]
    assert (status["state"], status["chunks"][0]["id"]) == ("embedded", words[0])
    assert skipped["state"] == "skipped"


def test_a_duplicate_id_of_any_type_is_seen(made, tmp_path):
    """`--unique-ids` ends with 65 and names the id; verify sees a row that the input does not have."""
    folder, ids, words = made
    twice = pa.table({"id": ids.take(pa.array([0, 1, 0])), "text": ["a", "b", "c"]})
    pq.write_table(twice, tmp_path / "twice.parquet")
    refused = embedctl("embed", tmp_path / "twice.parquet", "-o", tmp_path / "x.parquet", "--unique-ids")
    fewer = pa.table({"id": ids.take(pa.array([0, 2, 3])), "text": [TEXTS[at] for at in (0, 2, 3)]})
    pq.write_table(fewer, tmp_path / "fewer.parquet")
    verified = embedctl("vectors", "verify", folder / "out", "--input", tmp_path / "fewer.parquet", "--json")

    assert refused.code == 65
    assert repr(words[0]) in refused.err
    assert verified.code == 65
    assert f"id {words[1]!r} (chunk 0) is not in the input" in verified.out


def test_ids_in_a_table_have_no_separators(tmp_path):
    """A long integer id is printed as it is, so that it can be copied."""
    pq.write_table(pa.table({"id": [1234567], "text": ["one"]}), tmp_path / "a.parquet")
    embedctl("embed", tmp_path / "a.parquet", "-o", tmp_path / "o.parquet", "-q")

    assert "1234567" in embedctl("vectors", "search", tmp_path / "o.parquet", "one").out

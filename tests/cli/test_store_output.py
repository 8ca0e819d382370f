"""`batch run -o` with an address: what it makes, who reads it, and every refusal in one line."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.running import embedctl
from tests.support.stores import StoreServer

TEXTS = [f"a lamp of kind {number}" for number in range(6)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, s3: StoreServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input of two row groups, and the variables by which the store is reached."""
    monkeypatch.chdir(tmp_path)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    pq.write_table(pa.table({"id": range(6), "text": TEXTS}), "in.parquet", row_group_size=3)
    return tmp_path


def test_a_job_from_its_command_to_its_readers(s3: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards become parts that readers find by their pattern, in order; another home takes in what was spent."""
    url = s3.new()
    ran = embedctl("batch", "run", "in.parquet", "-o", url, "--shard-rows", "3", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["vectors"], ran.json["output"], ran.json["failures"]) == (6, url, None)

    from obstore.fsspec import FsspecStore

    files = FsspecStore("s3", **s3.options)
    assert pq.read_table(url.removeprefix("s3://"), filesystem=files).column("text").to_pylist() == TEXTS  # as pandas
    with duckdb.connect() as connection:
        connection.register_filesystem(files)
        parts = [f"{url}/part-0000{number}-000000.parquet" for number in range(2)]
        found = connection.execute("SELECT text FROM read_parquet(?) ORDER BY id", [parts]).fetchall()
    assert [text for (text,) in found] == TEXTS

    monkeypatch.setenv("EMBEDCTL_HOME", "elsewhere")
    taken = embedctl("usage", "ingest", "--from", url, "--json")
    again = embedctl("usage", "ingest", "--from", url, "--json")
    assert (taken.json["events"], again.json["events"]) == (2, 0)
    assert embedctl("batch", "finish", url, "--json").json == {"output": url, "rows": 6, "vectors": 6, "parts": 2}


def test_a_store_that_overwrites(overwriting: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with the way out: one worker that shares with nobody."""
    for name, value in overwriting.environment.items():
        monkeypatch.setenv(name, value)
    url = overwriting.new()
    refused = embedctl("batch", "run", "in.parquet", "-o", url)
    alone = embedctl("batch", "run", "in.parquet", "-o", url, "--no-share", "--json")

    assert refused.code == 73
    assert "does not refuse to overwrite" in refused.err
    assert "--no-share" in refused.err
    assert (alone.code, alone.json["vectors"]) == (0, 6)


@pytest.mark.parametrize("alone", [[], ["--no-share"]])
def test_a_store_that_knows_no_conditions(
    alone: list[str], faulty_s3: tuple[StoreServer, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers 501 to every put that must not overwrite: refused before anything is made, also for one worker."""
    server, proxy = faulty_s3
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    proxy.faults = ["not implemented"] * 20
    url = server.new()
    refused = embedctl("batch", "run", "in.parquet", "-o", url, *alone)

    assert refused.code == 73
    assert "cannot create without overwriting" in refused.err
    assert list(server.open(url).list()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-", "-o", "s3://bucket/x"), 2),
        (("in.parquet", "-o", "s3://bucket/x", "--cache"), 2),
        (("in.parquet", "-o", "s3://bucket/x", "--unique-ids", "--shard-rows", "3"), 2),
        (("in.parquet", "-o", "s3://bucket/x", "--shard", "2/2"), 2),
        (("in.parquet", "-o", "s3://bucket/x", "--shard", "auto"), 78),
        (("in.parquet", "-o", "out", "--shard", "0/2"), 2),
        (("in.parquet", "-o", "hf://datasets/org/name"), 2),
        (("in.parquet", "-o", "https://bucket/x"), 2),
        (("in.parquet", "-o", "s3://no-such-bucket/x"), 73),
    ],
)
def test_what_is_refused(words: tuple[str, ...], code: int) -> None:
    """One line that says what, with the right code; nothing is made on this machine."""
    before = set(Path().iterdir())
    ran = embedctl("batch", "run", *words, stdin="text")

    assert ran.code == code, ran.err
    assert ran.err.startswith("error: ")
    assert set(Path().iterdir()) == before


def test_another_job_is_named(s3: StoreServer) -> None:
    """A prefix that holds another job's plan: 73, and what differs; rows that changed are no other job."""
    url = s3.new()
    assert embedctl("batch", "run", "in.parquet", "-o", url).code == 0
    other = embedctl("batch", "run", "in.parquet", "-o", url, "--dtype", "float16")
    pq.write_table(pa.table({"id": range(5), "text": TEXTS[:5]}), "in.parquet")
    changed = embedctl("batch", "run", "in.parquet", "-o", url, "--json")

    assert other.code == 73
    assert "dtype is float32 there, float16 here" in other.err
    assert (changed.code, changed.json["vectors"], changed.json["reused"], changed.json["requests"]) == (0, 5, 5, 0)
    assert embedctl("vectors", "verify", url).code == 0

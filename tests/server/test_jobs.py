"""The service's own jobs: texts, JSON Lines, Parquet and files of the server's in; vectors, failures and a bill out."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.serving import MODEL, Reply, Serving, serving
from tests.support.wire.client import Wire, expected

JOBS = "/api/v1/embeddings/jobs"
LINES = "application/jsonl"
PARQUET = "application/vnd.apache.parquet"
SETTINGS = """
[serve]
grace_s = 0
media = "{folder}/media/{{workspace}}/{{media_id}}.*"
[serve.jobs]
again_s = 0.2
upload_bytes = 100000
sources = {{ shared = "{folder}/shared" }}
"""


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("g")
    with serving(folder, wire, settings=SETTINGS.format(folder=folder)) as found:
        yield found


@pytest.fixture(scope="module")
def key(server: Serving) -> str:
    return server.key()


def ask(server: Serving, method: str, path: str, key: str, body: Any = None, **more: Any) -> Reply:
    return server.ask(method, path, body, Authorization=f"Bearer {key}", **more)


def ended(server: Serving, key: str, job: str, path: str = JOBS, *, seconds: float = 90) -> dict[str, Any]:
    """A job once it has ended."""
    end = time.monotonic() + seconds
    while (found := ask(server, "GET", f"{path}/{job}", key).json)["status"] in ("queued", "processing"):
        assert time.monotonic() < end, (found, server.log()[-5:])
        time.sleep(0.1)
    return dict(found)


def accounted(server: Serving, key: str, job: str) -> dict[str, Any]:
    """The same, once the ledger has been asked what it came to."""
    found = ended(server, key, job)
    end = time.monotonic() + 60
    while (found := ask(server, "GET", f"{JOBS}/{job}", key).json)["cost_usd"] is None:
        assert time.monotonic() < end, server.log()[-5:]
        time.sleep(0.1)
    return dict(found)


def texts(*words: str) -> list[dict[str, Any]]:
    return [{"id": f"row-{n}", "text": word} for n, word in enumerate(words)]


def test_texts_become_vectors_as_parquet_and_as_json_lines(server: Serving, key: str, wire: Wire) -> None:
    """A job of texts ends with every row's vector, its tokens and its cost; both forms hold the same bits."""
    wire.reset()
    words = ["the first of a job", "the second of a job", "the first of a job"]
    made = ask(server, "POST", JOBS, key, {"model": MODEL, "texts": texts(*words)})
    job = made.json["id"]
    found = accounted(server, key, job)
    parquet = ask(server, "GET", f"{JOBS}/{job}/result", key)
    lines = ask(server, "GET", f"{JOBS}/{job}/result?format=jsonl", key)
    packed = ask(server, "GET", f"{JOBS}/{job}/result?format=jsonl&encoding_format=base64", key)

    assert (made.status, made.headers["location"]) == (202, f"{JOBS}/{job}")
    assert (found["status"], found["embedding_count"], found["rows"], found["failed_rows"]) == ("completed", 3, 3, 0)
    assert (found["tokens"], found["at_risk_usd"]) == (wire.billed(), "0.00")
    assert float(found["cost_usd"]) == pytest.approx(wire.billed() * 0.02e-6)
    table = pq.read_table(io.BytesIO(parquet.body))
    vectors = np.stack(table.column("embedding").to_numpy(zero_copy_only=False))
    assert table.column("id").to_pylist() == ["row-0", "row-1", "row-2"]
    assert vectors.astype(np.float32).tobytes() == expected(words, MODEL).tobytes()
    rows = [json.loads(line) for line in lines.body.splitlines()]
    assert [row["text"] for row in rows] == words
    assert np.array([row["embedding"] for row in rows], np.float32).tobytes() == vectors.astype(np.float32).tobytes()
    assert len(packed.body.splitlines()) == 3
    part = ask(server, "GET", f"{JOBS}/{job}/result", key, Range="bytes=0-3")
    assert (part.status, part.body) == (206, b"PAR1")

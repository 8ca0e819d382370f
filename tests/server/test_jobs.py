"""The service's own jobs: texts, JSON Lines, Parquet and files of the server's in; vectors, failures and a bill out."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.storage.locks import is_held
from tests.support.serving import MODEL, Reply, Serving, serving, until
from tests.support.wire.client import Wire, expected

JOBS = "/api/v1/embeddings/jobs"
LINES = "application/jsonl"
PARQUET = "application/vnd.apache.parquet"
SETTINGS = """
[providers.openai]
batch = true
batch_poll_s = 0.05
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
    others = {"VOYAGE_API_KEY": "pa-of-another-provider", "SINGLE_USER_API_KEY": "the-admin-s-own-key"}
    with serving(folder, wire, settings=SETTINGS.format(folder=folder), **others) as found:
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


def parquet(words: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(words))), "text": words, "language": ["en"] * len(words)}), sink)
    return sink.getvalue()


def test_bodies_of_lines_and_of_parquet_and_files_of_the_server_s(server: Serving, key: str, wire: Wire) -> None:
    """Three ways in; columns travel along, and the same content is the same job, whoever of the workspace asks."""
    wire.reset()
    shared = server.folder / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "more.jsonl").write_text('{"id": 1, "text": "a file of the server\'s"}\n')
    lines = b'{"id": "a", "text": "one of lines", "language": "en"}\n\n{"id": "b", "text": "two of lines"}\n'
    path = f"{JOBS}?model={MODEL}"
    made = [
        ask(server, "POST", path, key, raw=lines, Content_Type=LINES),
        ask(server, "POST", path, key, raw=parquet(["one of parquet"]), Content_Type=PARQUET),
        ask(server, "POST", JOBS, key, {"model": MODEL, "source": "shared/more.jsonl"}),
    ]
    jobs = [one.json["id"] for one in made]
    found = [ended(server, key, job) for job in jobs]
    again = ask(server, "POST", path, server.key(), raw=lines, Content_Type=LINES)
    rows = ask(server, "GET", f"{JOBS}/{jobs[0]}/result?format=jsonl", key).body.splitlines()

    assert [one["status"] for one in found] == ["completed"] * 3
    assert [one["embedding_count"] for one in found] == [2, 1, 1]
    assert [json.loads(row)["language"] for row in rows] == ["en", None]
    assert (again.status, again.json["id"]) == (200, jobs[0])
    assert wire.bought("one of lines") == {"standard": 1, "batch": 0}


def test_an_idempotency_key_names_one_job(server: Serving, key: str) -> None:
    """Repeated with it, a request makes no second job; with another body it is refused; without it content decides."""
    body = {"model": MODEL, "texts": texts("asked for twice")}
    first = ask(server, "POST", JOBS, key, body, Idempotency_Key="a-key-of-mine")
    again = ask(server, "POST", JOBS, key, body, Idempotency_Key="a-key-of-mine")
    other = ask(server, "POST", JOBS, key, {**body, "dimensions": 256}, Idempotency_Key="a-key-of-mine")
    without = ask(server, "POST", JOBS, key, body)
    ended(server, key, first.json["id"])

    assert again.json["id"] == without.json["id"] == first.json["id"]
    assert (other.status, other.code) == (400, "idempotency_mismatch")


def test_a_dry_run_says_what_it_would_take_and_leaves_nothing(server: Serving, key: str, wire: Wire) -> None:
    """Rows, tokens and cost, as `batch run --dry-run` has them; no job, nothing sent."""
    wire.reset()
    before = len(list((server.home / "jobs").iterdir()))
    said = ask(server, "POST", JOBS, key, {"model": MODEL, "texts": texts("a dry run"), "dry_run": True})

    assert (said.status, said.json["rows"], said.json["dry_run"]) == (200, 1, True)
    assert float(said.json["cost"]) > 0
    assert wire.truth() == []
    assert len(list((server.home / "jobs").iterdir())) == before


def test_a_job_through_the_provider_s_batch_api(server: Serving, key: str, wire: Wire) -> None:
    """`mode` travels: the job waits for the provider's batch in turns, and is paid at its price."""
    wire.reset()
    body = {"model": MODEL, "mode": "batch", "texts": texts("bought in a batch", "and another")}
    found = accounted(server, key, ask(server, "POST", JOBS, key, body).json["id"])

    assert found["status"] == "completed"
    assert wire.bought("bought in a batch") == {"standard": 0, "batch": 1}
    assert float(found["cost_usd"]) == pytest.approx(wire.billed() * 0.01e-6)


def test_rows_that_fail_are_listed_and_tried_again(server: Serving, key: str, wire: Wire) -> None:
    """A row that its provider refuses fails alone; `retry` tries it again, and buys nothing else."""
    wire.reset()
    wire.plan(poison=["REFUSED, for now"])
    body = {"model": MODEL, "texts": texts("a good text", "REFUSED, for now", "  ")}
    job = ask(server, "POST", JOBS, key, body).json["id"]
    found = ended(server, key, job)
    failed = ask(server, "GET", f"{JOBS}/{job}/failures", key)
    wire.plan()
    retried = ask(server, "POST", f"{JOBS}/{job}/retry", key)
    again = ended(server, key, job)

    assert (found["status"], found["failed_rows"], found["skipped_rows"]) == ("completed", 1, 1)
    assert {json.loads(line)["id"]: json.loads(line)["reason"] for line in failed.body.splitlines()} == {
        "row-1": "text_refused",
        "row-2": "blank",
    }
    assert retried.status == 202
    assert (again["status"], again["failed_rows"], again["embedding_count"]) == ("completed", 0, 2)
    assert wire.bought("a good text") == {"standard": 1, "batch": 0}


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────

ONE = [{"id": "a", "text": "one"}]
BODIES: dict[str, tuple[Any, int, str]] = {
    "no texts": ({"model": MODEL}, 400, "invalid_input_type"),
    "texts and source": ({"model": MODEL, "texts": ONE, "source": "shared/a"}, 400, "invalid_input_type"),
    "empty": ({"model": MODEL, "texts": []}, 400, "empty_input"),
    "strings": ({"model": MODEL, "texts": ["one"]}, 400, "invalid_input_type"),
    "an id twice": ({"model": MODEL, "texts": ONE * 2}, 400, "invalid_input_type"),
    "an unknown field": ({"model": MODEL, "texts": ONE, "colour": "blue"}, 400, "unknown_parameter"),
    "an unknown model": ({"model": "no-such-model", "texts": ONE}, 404, "model_not_found"),
    "an unknown provider": ({"model": f"nowhere:{MODEL}", "texts": ONE}, 400, "unknown_provider"),
    "dimensions": ({"model": MODEL, "texts": ONE, "dimensions": 99_999}, 400, "invalid_dimensions"),
    "a mode": ({"model": MODEL, "texts": ONE, "mode": "fast"}, 400, "invalid_job"),
    "an amount": ({"model": MODEL, "texts": ONE, "max_cost_usd": "1e99"}, 400, "invalid_job"),
    "a priority": ({"model": MODEL, "texts": ONE, "priority": 101}, 400, "invalid_job"),
    "overlap": ({"model": MODEL, "texts": ONE, "chunk_size": 10, "chunk_overlap": 10}, 400, "invalid_job"),
    "no such source": ({"model": MODEL, "source": "shared/nothing.jsonl"}, 400, "invalid_file"),
    "a source elsewhere": ({"model": MODEL, "source": "shared/../state/keys.toml"}, 400, "invalid_file"),
    "an absolute source": ({"model": MODEL, "source": "/etc/passwd"}, 400, "invalid_file"),
    "a source that is a link": ({"model": MODEL, "source": "shared/link.jsonl"}, 400, "invalid_file"),
}
UPLOADS: dict[str, tuple[bytes, str, int, str]] = {
    "text": (b"neither lines\nnor parquet", LINES, 400, "invalid_json"),
    "torn": (b'{"id": 1, "text": "whole"}\n{"id": 2, "te', LINES, 400, "invalid_json"),
    "an array": (b"[1, 2]\n", LINES, 400, "invalid_json"),
    "nothing": (b"", LINES, 400, "empty_input"),
    "blank": (b"\n\n", LINES, 400, "empty_input"),
    "no parquet": (b"PAR1 is how it begins, and no more", PARQUET, 400, "invalid_file"),
    "another type": (b"id,text\n1,one\n", "text/csv", 415, "unsupported_media_type"),
    "too large": (b'{"id": 1, "text": "' + b"x" * 100_000 + b'"}\n', LINES, 413, "body_too_large"),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_body_that_is_none(server: Serving, key: str, what: str) -> None:
    """Each has its status and code, and no job is made."""
    shared = server.folder / "shared"
    shared.mkdir(exist_ok=True)
    if not (shared / "link.jsonl").is_symlink():
        (shared / "link.jsonl").symlink_to(server.home / "keys.toml")
    body, status, code = BODIES[what]
    before = sorted((server.home / "jobs").iterdir())
    found = ask(server, "POST", JOBS, key, body)

    assert (found.status, found.code) == (status, code), found
    assert sorted((server.home / "jobs").iterdir()) == before


@pytest.mark.parametrize("what", UPLOADS)
def test_an_upload_that_is_none(server: Serving, key: str, what: str) -> None:
    """The same of bodies that go to the disk: nothing of them stays there."""
    content, kind, status, code = UPLOADS[what]
    before = sorted((server.home / "jobs").iterdir())
    found = ask(server, "POST", f"{JOBS}?model={MODEL}", key, raw=content, Content_Type=kind)

    assert (found.status, found.code) == (status, code), found
    assert sorted((server.home / "jobs").iterdir()) == before
    if what == "torn":
        assert "line 2" in found.json["error"]["message"]


def test_jobs_that_are_not_there_and_those_of_others(server: Serving, key: str) -> None:
    """An unknown id, an id that is a path, another workspace's job: 404 for all of them, with every verb."""
    mine = ask(server, "POST", JOBS, key, {"model": MODEL, "texts": texts("mine alone")}).json["id"]
    other = server.key(workspace="other")
    ended(server, key, mine)

    for job in ("job_" + "0" * 24, "job_nothing", "..", "..%2f..%2fkeys.toml", "%2e%2e%2fjobs"):
        assert ask(server, "GET", f"{JOBS}/{job}", key).status == 404, job
        assert ask(server, "GET", f"{JOBS}/{job}/result", key).status == 404, job
    for method, path in (
        ("GET", ""), ("GET", "/result"), ("GET", "/failures"), ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", ""),
    ):  # fmt: skip
        assert ask(server, method, f"{JOBS}/{mine}{path}", other).code == "job_not_found"
    assert mine not in {one["id"] for one in ask(server, "GET", JOBS, other).json["data"]}
    assert ask(server, "GET", f"{JOBS}?limit=1000", key).code == "invalid_job"
    assert ask(server, "GET", f"{JOBS}/{mine}/result?format=csv", key).code == "invalid_parameter"
    assert ask(server, "GET", f"{JOBS}/{mine}/result?format=jsonl&encoding_format=hex", key).code == "invalid_parameter"
    assert ask(server, "GET", f"{JOBS}?status=completed&limit=1", key).json["pagination"]["count"] == 1


@pytest.mark.parametrize(
    ("path", "code", "known"),
    [
        (f"{JOBS}?status=evil", "invalid_parameter", "queued, processing, completed, failed, cancelled"),
        ("/api/v1/media/embeddings/jobs?status=evil", "invalid_parameter", "queued, processing, completed"),
        (f"{JOBS}?stat=completed", "unknown_parameter", "stat"),
        ("/v1/files?purpose=evil", "invalid_parameter", "batch, batch_output"),
        ("/api/v1/files?order=evil", "invalid_parameter", "asc, desc"),
        ("/api/v1/embeddings/models?provider=evil", "unknown_provider", "openai"),
    ],
)
def test_a_filter_that_nobody_knows_is_no_empty_list(
    server: Serving, key: str, path: str, code: str, known: str
) -> None:
    """A list is filtered by values that are known: any other is 400, and those that are known are named."""
    found = ask(server, "GET", path, key)

    assert (found.status, found.code) == (400, code), found
    assert known in json.dumps(found.json)


# ── media ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_media_item_is_embedded_once(server: Serving, key: str, wire: Wire) -> None:
    """Accepted with a job; the same item again is the same job, changed content another; status and deletion follow."""
    wire.reset()
    folder = server.folder / "media" / "acme"
    folder.mkdir(parents=True)
    (folder / "123.txt").write_text("The text of a media item.")
    (folder / "124.md").write_text("# Another one\n\nWith some words.")
    (server.folder / "media" / "secret.txt").write_text("not of this workspace")
    path = "/api/v1/media"
    body = {"embedding_model": MODEL, "embedding_provider": "openai", "chunk_size": 1000, "chunk_overlap": 200}
    first = ask(server, "POST", f"{path}/123/embeddings", key, body)
    again = ask(server, "POST", f"{path}/123/embeddings", key, body)
    found = ended(server, key, first.json["job_id"], f"{path}/embeddings/jobs")
    both = ask(server, "POST", f"{path}/embeddings/batch", key, {**body, "media_ids": [123, "124", 125]})
    for job in both.json["job_ids"]:
        ended(server, key, job, f"{path}/embeddings/jobs")
    status = ask(server, "GET", f"{path}/123/embeddings/status", key).json
    search = {"query": "The text of a media item.", "top_k": 1}
    nearest = ask(server, "POST", f"{path}/embeddings/search", key, search).json
    foreign = ask(server, "POST", f"{path}/embeddings/search", server.key(workspace="other"), search).json
    gone = ask(server, "DELETE", f"{path}/123/embeddings", key)
    after = ask(server, "GET", f"{path}/123/embeddings/status", key).json

    assert first.status == 202
    assert first.json["job_id"].startswith("mej_")
    assert {"media_id": 123, "status": "accepted"}.items() <= first.json.items()
    assert again.json["job_id"] == first.json["job_id"] == both.json["job_ids"][0]
    assert (found["media_id"], found["status"], found["embedding_count"]) == (123, "completed", 1)
    assert (both.status, both.json["status"], both.json["submitted"]) == (202, "partial", 2)
    assert both.json["failure_reasons"] == {"125": "media_not_found"}
    assert (status["has_embeddings"], status["embedding_count"], status["embedding_model"]) == (True, 1, MODEL)
    assert nearest["count"] == 1
    assert nearest["results"][0]["metadata"]["media_id"] == "123"
    assert nearest["results"][0]["document"] == "The text of a media item."
    assert nearest["results"][0]["distance"] == pytest.approx(0.0, abs=1e-6)
    assert foreign == {"results": [], "count": 0}
    assert gone.json["status"] == "success"
    assert not after["has_embeddings"]
    assert wire.bought("The text of a media item.") == {"standard": 2, "batch": 0}  # once as a query


@pytest.mark.parametrize("media_id", ["..", "a.b", "..%2fsecret", "%2e%2e%2fsecret", "a*", "-x", "a" * 200, "nothing"])
def test_a_media_id_that_is_none(server: Serving, key: str, media_id: str) -> None:
    """Separators, dots, patterns and what is not there: there is no such item."""
    for method, path in (("POST", ""), ("GET", "/status"), ("DELETE", "")):
        found = ask(server, method, f"/api/v1/media/{media_id}/embeddings{path}", key)

        assert (found.status, found.code in ("media_not_found", "not_found")) == (404, True), (method, found)


# ── money, and who may see what ──────────────────────────────────────────────────────────────────────────────────────


def test_a_job_above_its_key_s_budget_does_not_begin(server: Serving, wire: Wire) -> None:
    """402 by estimate, with what is left; nothing is sent, and the job is not there."""
    wire.reset()
    poor = server.key("--budget", "0.00001/day", workspace="poor")
    found = ask(
        server, "POST", JOBS, poor, {"model": MODEL, "texts": texts(*[f"{n} {'word ' * 400}" for n in range(20)])}
    )

    assert (found.status, found.code) == (402, "budget_exceeded")
    assert found.json["error"]["budget"]["limit_usd"] == "0.00001"
    assert wire.truth() == []
    assert ask(server, "GET", JOBS, poor).json["data"] == []


def test_a_job_s_calls_are_its_key_s_and_within_its_budget(server: Serving, wire: Wire) -> None:
    """They stand in the ledger with workspace, key and job; what they cost is gone for the key's other calls."""
    wire.reset()
    rich = server.key("--budget", "0.00002/day", workspace="rich")
    body = {"model": MODEL, "texts": texts(*[f"{n} " + "word " * 190 for n in range(4)])}
    job = ask(server, "POST", JOBS, rich, body).json
    found = accounted(server, rich, job["id"])
    refused = server.embed("word " * 400, key=rich)

    assert found["status"] == "completed"
    assert job["estimate_usd"] is not None
    assert float(found["cost_usd"]) == pytest.approx(wire.billed() * 0.02e-6)
    assert (refused.status, refused.code) == (402, "budget_exceeded")
    paid_by = "SELECT DISTINCT workspace_id, json_extract_string(tags, '$.key') FROM usage_event"
    assert server.ledger(f"{paid_by} WHERE job_id = '{job['id']}'") == [("rich", rich.split("_")[1])]


def test_what_a_child_is_told_is_nobody_s_secret(server: Serving, key: str, wire: Wire) -> None:
    """No key stands among its arguments; its environment has its provider's key and no other; files are 0600."""
    wire.reset()
    wire.plan(hold_after=0)
    job = ask(server, "POST", JOBS, key, {"model": MODEL, "texts": texts("one that takes a while")}).json["id"]
    folder = server.home / "jobs" / job
    lock = folder / "out" / "_embedctl" / "lock"
    until(lambda: lock.exists() and lock.read_bytes().endswith(b"}"))
    process = Path("/proc") / str(json.loads(lock.read_bytes())["pid"])
    arguments, seen = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
    wire.plan()
    ended(server, key, job)

    assert b"--no-progress" in arguments
    assert b"sk-provider" not in arguments
    assert key.encode() not in arguments + seen
    assert b"one that takes" not in arguments
    assert b"OPENAI_API_KEY=sk-provider" in seen
    assert b"pa-of-another" not in seen
    assert b"the-admin-s" not in seen
    assert (server.home / "jobs").stat().st_mode & 0o077 == 0
    modes = {path.name: path.stat().st_mode & 0o077 for path in folder.iterdir() if path.is_file()}
    assert set(modes.values()) == {0}, modes


def test_so_many_jobs_are_worked_on_at_once(server: Serving, key: str, wire: Wire) -> None:
    """Two, and the others wait: never more processes than the settings say. What has not ended has no result: 409."""
    wire.reset()
    wire.plan(hold_after=0)
    bodies = [{"model": MODEL, "texts": texts(f"number {n} of many"), "priority": n} for n in range(3)]
    jobs = [ask(server, "POST", JOBS, key, body).json["id"] for body in bodies]
    seen: list[tuple[int, int]] = []
    unfinished: list[Reply] = []
    while (states := [ask(server, "GET", f"{JOBS}/{job}", key).json["status"] for job in jobs]) != ["completed"] * 3:
        assert "failed" not in states
        living = [is_held(server.home / "jobs" / job / "child.lock") for job in jobs]
        if not seen:
            unfinished = [
                ask(server, "GET", f"{JOBS}/{jobs[0]}/result", key),
                ask(server, "GET", f"{JOBS}/{jobs[0]}/failures", key),
                ask(server, "POST", f"{JOBS}/{jobs[0]}/retry", key),
                ask(server, "DELETE", f"{JOBS}/{jobs[0]}", key),
            ]
        seen.append((states.count("processing"), sum(living)))
        if seen[-1] == (2, 2):
            wire.plan()  # those who work get their answers, and the third begins
        time.sleep(0.1)

    assert (2, 2) in seen
    assert max(processes for _, processes in seen) == 2  # states are read one after the other
    assert {(one.status, one.code) for one in unfinished} == {(409, "not_finished")}

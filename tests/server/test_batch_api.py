"""OpenAI's Batch API over the service's jobs: the official SDK's example, shapes of lines, what is wrong with files."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.serving import (
    MODEL,
    Reply,
    Serving,
    environment,
    make_key,
    serving,
    started,
    until,
    write_settings,
)
from tests.support.wire.client import Wire, expected

VOYAGE = "voyage-4"
SETTINGS = """
[providers.voyage]
base_url = "{voyage}"
[serve]
grace_s = 0
[serve.jobs]
again_s = 0.2
mode = "online"
upload_bytes = 200000
workspace_bytes = 1048576
"""
BOUNDARY = "a-boundary-of-a-form"


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("g")
    keys = {"VOYAGE_API_KEY": "pa-0123456789abcdef"}
    with serving(folder, wire, settings=SETTINGS.format(voyage=wire.base_url("voyage")), **keys) as found:
        yield found


@pytest.fixture(scope="module")
def key(server: Serving) -> str:
    return server.key()


def line(custom_id: str, inputs: Any, *, model: str = MODEL, **more: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": model, "input": inputs, **more},
    }


def lines(*found: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in found)


def ask(server: Serving, method: str, path: str, key: str, body: Any = None, **more: Any) -> Reply:
    return server.ask(method, path, body, Authorization=f"Bearer {key}", **more)


def upload(server: Serving, key: str, content: bytes, *, name: str = "input.jsonl", purpose: str = "batch") -> Reply:
    """POST /v1/files, as a form."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'.encode(),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode(),
        content,
        f"\r\n--{BOUNDARY}--\r\n".encode(),
    ]
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return server.ask("POST", "/v1/files", raw=b"".join(parts), Authorization=f"Bearer {key}", Content_Type=kind)


def create(server: Serving, key: str, file_id: str, **more: Any) -> Reply:
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **more}
    return ask(server, "POST", "/v1/batches", key, body)


def ended(server: Serving, key: str, batch_id: str) -> dict[str, Any]:
    """A batch once it has ended."""
    end = time.monotonic() + 90
    while True:
        found = ask(server, "GET", f"/v1/batches/{batch_id}", key).json
        if found["status"] in ("completed", "failed", "expired", "cancelled"):
            return dict(found)
        assert time.monotonic() < end, (found, server.log()[-5:])
        time.sleep(0.1)


def done(server: Serving, key: str, content: bytes) -> dict[str, Any]:
    """The batch of a file, ended."""
    file = upload(server, key, content)
    assert file.status == 200, file
    return ended(server, key, create(server, key, file.json["id"]).json["id"])


def content(server: Serving, key: str, file_id: str | None) -> dict[str, dict[str, Any]]:
    """custom_id → line of a file that a batch has made."""
    if file_id is None:
        return {}
    found = ask(server, "GET", f"/v1/files/{file_id}/content", key)
    assert found.status == 200, found
    rows = [json.loads(one) for one in found.body.splitlines()]
    return {row["custom_id"]: row for row in rows}


@pytest.mark.parametrize("model", [MODEL, f"voyage:{VOYAGE}"])
def test_the_official_sdk_s_example(server: Serving, key: str, wire: Wire, model: str, tmp_path: Path) -> None:
    """Upload, create, retrieve, content: as OpenAI's guide has it, for two providers; only base_url is another."""
    openai = pytest.importorskip("openai", reason="openai is not installed (extra `clients`)")
    wire.reset()
    path = tmp_path / "batchinput.jsonl"
    words = [f"first for {model}", f"second for {model}"]
    path.write_bytes(lines(*(line(f"request-{n}", word, model=model) for n, word in enumerate(words, 1))))
    client = openai.OpenAI(api_key=key, base_url=f"{server.base}/v1")

    with path.open("rb") as file:
        batch_input_file = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(
        input_file_id=batch_input_file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        metadata={"description": "nightly eval job"},
    )
    end = time.monotonic() + 90
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < end, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id, (batch, server.log()[-6:])
    found = [json.loads(one) for one in client.files.content(batch.output_file_id).text.splitlines()]

    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (2, 2, 0)
    assert batch.metadata == {"description": "nightly eval job"}
    assert [one["custom_id"] for one in found] == ["request-1", "request-2"]
    bodies = [one["response"]["body"] for one in found]
    name = model.rpartition(":")[2]
    vectors = np.array([one["data"][0]["embedding"] for one in bodies], np.float32)
    assert vectors.tobytes() == expected(words, name).tobytes()
    assert all(one["usage"]["total_tokens"] > 0 for one in bodies)
    assert client.batches.list(limit=1).data[0].id == batch.id
    assert client.files.retrieve(batch_input_file.id).filename == "batchinput.jsonl"
    assert {one.id for one in client.files.list(purpose="batch")} >= {batch_input_file.id}
    assert client.files.delete(batch_input_file.id).deleted


def test_every_line_is_answered_in_its_own_form(server: Serving, key: str, wire: Wire) -> None:
    """A text, several texts, base64: in order, under its custom_id, with its own usage; what is wrong fails alone."""
    wire.reset()
    long = "word " * 9000
    found = done(
        server,
        key,
        lines(
            line("one", "a text of a batch"),
            line("several", ["first of several", "second of several"]),
            line("packed", "a text in base64", encoding_format="base64"),
            line("empty", ""),
            line("unknown", "a text", colour="blue"),
            line("long", ["short enough", long]),
            line("blank", "   "),
        ),
    )
    good, bad = content(server, key, found["output_file_id"]), content(server, key, found["error_file_id"])

    assert found["status"] == "completed"
    assert found["request_counts"] == {"total": 7, "completed": 3, "failed": 4}
    assert list(good) == ["one", "several", "packed"]
    body = good["several"]["response"]["body"]
    assert [one["index"] for one in body["data"]] == [0, 1]
    vectors = np.array([one["embedding"] for one in body["data"]], np.float32)
    assert vectors.tobytes() == expected(["first of several", "second of several"], MODEL).tobytes()
    packed = good["packed"]["response"]["body"]["data"][0]["embedding"]
    assert base64.b64decode(packed) == expected(["a text in base64"], MODEL).tobytes()
    assert good["one"]["response"]["body"]["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert good["one"].keys() == {"id", "custom_id", "response", "error"}
    codes = {name: one["response"]["body"]["error"]["code"] for name, one in bad.items()}
    assert codes == {
        "empty": "empty_input",
        "unknown": "unknown_parameter",
        "long": "input_too_long",
        "blank": "empty_input",
    }
    assert all(one["response"]["status_code"] == 400 and one["error"] is None for one in bad.values())
    assert wire.bought("short enough") == {"standard": 1, "batch": 0}


def test_token_arrays(server: Serving, key: str, wire: Wire) -> None:
    """They go to the provider as they are, and count as many tokens as they have."""
    wire.reset()
    found = done(server, key, lines(line("one", [[9906, 1917], [9906]]), line("two", [1917, 9906, 1917])))
    good = content(server, key, found["output_file_id"])

    assert found["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert good["one"]["response"]["body"]["usage"]["total_tokens"] == 3
    assert good["two"]["response"]["body"]["usage"]["total_tokens"] == 3
    assert len(good["one"]["response"]["body"]["data"]) == 2
    assert wire.billed() == 6


WRONG = {
    "invalid_json_line": b'{"custom_id": "a", "met\n',
    "duplicate_custom_id": lines(line("a", "one"), line("a", "two")),
    "model_mismatch": lines(line("a", "one"), line("b", "two", model="text-embedding-3-large")),
    "url_mismatch": lines({**line("a", "one"), "url": "/v1/chat/completions"}),
    "invalid_method": lines({**line("a", "one"), "method": "GET"}),
    "missing_required_parameter": lines({**line("a", "one"), "custom_id": None}),
    "empty_file": b"\n\n",
    "model_not_found": lines(line("a", "one", model="no-such-model")),
    "unknown_provider": lines(line("a", "one", model="nowhere:text-embedding-3-small")),
}


@pytest.mark.parametrize("code", WRONG)
def test_what_is_wrong_with_a_file_fails_the_batch(server: Serving, key: str, wire: Wire, code: str) -> None:
    """As at OpenAI's: the batch is made, and fails with a code and a line; nothing is sent."""
    wire.reset()
    found = done(server, key, WRONG[code])

    assert (found["status"], found["output_file_id"], found["error_file_id"]) == ("failed", None, None)
    assert [one["code"] for one in found["errors"]["data"]] == [code]
    assert wire.truth() == []


def test_lines_that_differ_in_what_makes_a_space_are_refused(server: Serving, key: str) -> None:
    """One file has one model, one width and one kind of input; the error says which of them differs."""
    width = done(server, key, lines(line("a", "one"), line("b", "two", dimensions=256)))
    kind = done(server, key, lines(line("a", "one"), line("b", [1, 2])))

    assert "dimensions" in width["errors"]["data"][0]["message"]
    assert "token arrays" in kind["errors"]["data"][0]["message"]


def test_a_cancelled_batch_answers_every_line_and_is_gone_on_with(server: Serving, key: str, wire: Wire) -> None:
    """What was bought stands in the output file, the rest in the error file.

    The same file submitted again goes on, and buys nothing twice.
    """
    wire.reset()
    wire.plan(hold_after=0)
    words = [f"text {n} of a batch that is cancelled" for n in range(24)]
    file = upload(server, key, lines(*(line(f"n{n}", [word]) for n, word in enumerate(words))))
    batch = create(server, key, file.json["id"])
    until(lambda: wire.held() > 0)
    said = ask(server, "POST", f"/v1/batches/{batch.json['id']}/cancel", key)
    wire.plan(latency_s=2)  # by whose end the job has long heard of it
    found = ended(server, key, batch.json["id"])
    bad, good = (content(server, key, found[f"{name}_file_id"]) for name in ("error", "output"))
    bought = {f"n{n}" for n, word in enumerate(words) if wire.bought(word)["standard"]}
    wire.plan()
    again = create(server, key, file.json["id"])
    finished = ended(server, key, batch.json["id"])

    assert said.json["status"] in ("cancelling", "cancelled")
    assert found["status"] == "cancelled"
    assert {one["error"]["code"] for one in bad.values()} <= {"batch_cancelled"}
    assert bought
    assert good.keys() == bought
    assert found["request_counts"] == {"total": 24, "completed": len(good), "failed": len(bad)}
    for name, one in good.items():
        body = one["response"]["body"]
        vector = np.array(body["data"][0]["embedding"], np.float32)
        assert np.array_equal(vector, expected([words[int(name[1:])]], MODEL)[0])
        assert body["usage"]["total_tokens"] > 0
    assert again.json["id"] == batch.json["id"]
    assert (finished["status"], finished["request_counts"]["completed"]) == ("completed", 24)
    assert all(wire.bought(word) == {"standard": 1, "batch": 0} for word in words)


def test_a_batch_ends_with_its_window(wire: Wire, tmp_path: Path) -> None:
    """After 24 hours a batch is expired, with what was done by then in its output file; it can be gone on with."""
    wire.reset()
    wire.plan(hold_after=0)
    words = [f"text {n} of a batch that expires" for n in range(6)]
    write_settings(tmp_path, SETTINGS.format(voyage=wire.base_url("voyage")))
    env = environment(tmp_path, wire)
    key = make_key(tmp_path, env)
    with started(tmp_path, env) as server:
        file = upload(server, key, lines(*(line(f"n{n}", word) for n, word in enumerate(words))))
        batch = create(server, key, file.json["id"]).json
        until(lambda: wire.held() > 0)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in (server.home / "jobs" / batch["id"] / "log").read_text())
        wire.plan()
        server.process.wait(120)
    record = tmp_path / "state" / "jobs" / batch["id"] / "job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "created_at": time.time() - 86_401}))
    wire.plan()
    with started(tmp_path, env) as server:
        found = ended(server, key, batch["id"])
        good = content(server, key, found["output_file_id"])
        again = create(server, key, file.json["id"]).json
        finished = ended(server, key, batch["id"])
        server.stop()

    assert (found["status"], found["expired_at"] is None, found["cancelled_at"]) == ("expired", False, None)
    assert len(good) == sum(wire.bought(word)["standard"] for word in words)
    assert (again["id"], finished["status"]) == (batch["id"], "completed")
    assert again["expires_at"] > time.time() + 86_000


def test_files_of_others_are_not_there(server: Serving, key: str) -> None:
    """Files and batches belong to a workspace; another one is told the same as of what was never there."""
    other = server.key(workspace="other")
    file = upload(server, key, WRONG["empty_file"]).json["id"]
    batch = create(server, key, file).json["id"]
    ended(server, key, batch)

    for path in (f"/v1/files/{file}", f"/v1/files/{file}/content", f"/v1/batches/{batch}"):
        foreign, missing = ask(server, "GET", path, other), ask(server, "GET", path.replace("-", "-0", 1), other)
        assert foreign.status == missing.status == 404
    assert create(server, other, file).code == "file_not_found"
    assert ask(server, "POST", f"/v1/batches/{batch}/cancel", other).code == "job_not_found"
    assert ask(server, "DELETE", f"/v1/files/{file}", other).code == "file_not_found"
    assert ask(server, "GET", "/v1/files", other).json["data"] == []
    assert ask(server, "GET", "/v1/batches", other).json["data"] == []


def test_what_is_no_upload(server: Serving, key: str) -> None:
    """Another purpose, another suffix, no form, a form without an end, more than fits: each has its code."""
    form = {"Authorization": f"Bearer {key}", "Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}
    found = {
        "purpose": upload(server, key, b"{}", purpose="assistants"),
        "suffix": upload(server, key, b"{}", name="input.json"),
        "large": upload(server, key, b"x" * 200_001),
        "no form": ask(server, "POST", "/v1/files", key, {"purpose": "batch"}),
        "torn": server.ask("POST", "/v1/files", raw=f"--{BOUNDARY}\r\nContent-Dis".encode(), **form),
        "other": server.ask("POST", "/v1/files", raw=b"this is no form at all", **form),
    }

    assert {name: one.status for name, one in found.items()} == {
        "purpose": 400, "suffix": 400, "large": 413, "no form": 415, "torn": 400, "other": 400,
    }  # fmt: skip
    assert not list((server.home / "jobs").glob("upload-*"))


def test_what_is_no_batch(server: Serving, key: str) -> None:
    """A file that is not there, another endpoint or window, metadata that is none."""
    file = upload(server, key, lines(line("a", "one"))).json["id"]

    assert create(server, key, "file-" + "0" * 24).code == "file_not_found"
    assert create(server, key, "../../etc/passwd").code == "file_not_found"
    assert create(server, key, file, endpoint="/v1/chat/completions").status == 400
    assert create(server, key, file, completion_window="1h").status == 400
    assert create(server, key, file, metadata={"a": 1}).status == 400
    assert create(server, key, file, colour="blue").code == "unknown_parameter"
    assert ask(server, "GET", "/v1/batches/batch_nothing", key).code == "job_not_found"


def test_a_workspace_has_so_much_room(server: Serving) -> None:
    """Beyond it nothing new is taken, until something is deleted; others are not concerned."""
    full, other = server.key(workspace="full"), server.key(workspace="empty")
    files = [upload(server, full, b"x" * 199_999).json["id"] for _ in range(6)]
    refused = upload(server, full, b"x")
    beside = upload(server, other, b"x")
    ask(server, "DELETE", f"/v1/files/{files[0]}", full)
    after = upload(server, full, b"x")

    assert (refused.status, refused.code) == (413, "body_too_large")
    assert beside.status == after.status == 200

"""How each provider's Batch API asks, answers and refuses. Source: facts as in embedctl/providers (batch_apis.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import orjson

from tests.support.wire import dialects
from tests.support.wire.batches import Batch, Invalid, Upload
from tests.support.wire.dialects import Asked, Bad, Reply, Work, fields


@dataclass
class Draft:
    """What a create asks for."""

    file_id: str
    model: str
    mark: str | None
    metadata: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class BatchDialect:
    """One provider's Batch API on the server's side.

    Attributes:
        routes: (method, pattern of the path without its query, what it is).
        read: A request line to its id and what it asks; the job's model and settings go into it.
        filters: Whether a list with such a query shows a batch; None: it shows all.
        keeps_output: An expired batch has an output.
        errors_in_output: Lines that were refused stand in the output, there is no error file.
        own_file_names: An upload chooses its id.
    """

    name: str
    routes: Sequence[tuple[str, re.Pattern[str], str]]
    file_id: str
    batch_id: str
    upload: Callable[[dict[str, str], bytes], tuple[str, bytes]]
    file: Callable[[Upload], Any]
    draft: Callable[[dict[str, Any], re.Match[str]], Draft]
    state: Callable[[Batch], Any]
    page: Callable[[str, list[Any], dict[str, str], int | None], Any]
    read: Callable[[dict[str, Any], Draft], tuple[str, Asked]]
    done: Callable[[str, Work, dict[str, Any]], Any]
    refused: Callable[[str, int, Any], Any]
    left: Callable[[str, str], Any]
    refuse: Callable[[str, dict[str, Any]], Reply]
    key_header: str = "authorization"
    one_model_in_lines: bool = False
    cancelled: Callable[[Batch], Any] | None = None
    deleted: Callable[[Upload], Any] = lambda upload: {"id": upload.id, "object": "file", "deleted": True}
    uploaded: Callable[[Any], Any] = lambda said: said
    filters: Callable[[Batch, dict[str, str]], bool] | None = None
    keeps_output: bool = True
    errors_in_output: bool = False
    own_file_names: bool = False
    output_id: str | None = None


def query(path: str) -> dict[str, str]:
    """The last value of each parameter."""
    return {name: values[-1] for name, values in parse_qs(path.partition("?")[2], keep_blank_values=True).items()}


def multipart(headers: dict[str, str], body: bytes) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a multipart body: their headers and content."""
    if not (found := re.search(r'boundary="?([^";]+)"?', headers.get("content-type", ""))):
        raise Bad("no boundary")
    pieces = (b"\r\n" + body).split(b"\r\n--" + found[1].encode())
    if not pieces[-1].startswith(b"--"):
        raise Bad("the form has no end")
    parts = []
    for piece in pieces[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        lines = [line.partition(":") for line in head.decode().split("\r\n")]
        parts.append(({name.strip().lower(): value.strip() for name, _, value in lines}, content))
    return parts


def form_upload(headers: dict[str, str], body: bytes) -> tuple[str, bytes]:
    """OpenAI's form: purpose and file."""
    found = {}
    for about, content in multipart(headers, body):
        said = dict(re.findall(r'(\w+)="([^"]*)"', about.get("content-disposition", "")))
        found[said.get("name", "")] = (said.get("filename", ""), content)
    if found.get("purpose", ("", b""))[1] != b"batch":
        raise Bad("purpose must be batch")
    if "file" not in found:
        raise Bad("file is missing")
    if not found["file"][0].endswith(".jsonl"):
        raise Bad("Invalid file format for Batch API. Must be .jsonl")
    return found["file"]


def _routes(base: str, batches: str) -> list[tuple[str, re.Pattern[str], str]]:
    table = [
        ("POST", "/files", "upload"),
        ("GET", "/files", "files"),
        ("GET", r"/files/(?P<id>[^/]+)", "file"),
        ("GET", r"/files/(?P<id>[^/]+)/content", "content"),
        ("DELETE", r"/files/(?P<id>[^/]+)", "delete"),
        ("POST", f"/{batches}", "create"),
        ("GET", f"/{batches}", "list"),
        ("GET", rf"/{batches}/(?P<id>[^/]+)", "status"),
        ("POST", rf"/{batches}/(?P<id>[^/]+)/cancel", "cancel"),
    ]
    return [(method, re.compile(base + path), what) for method, path, what in table]


def rfc3339(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


def file_ids(batch: Batch) -> dict[str, Any]:
    """As they are said: null, or "" where it is so planned."""
    nothing = "" if batch.behaviour.get("empty_ids") else None
    link = batch.behaviour.get("link")
    return {
        "output_file_id": (link or batch.output.id) if batch.output else nothing,
        "error_file_id": batch.error.id if batch.error else nothing,
    }


def word(batch: Batch, usual: Sequence[str], cancelling: str, ends: dict[str, str]) -> str:
    """The status in a dialect's own words."""
    if batch.ended:
        return ends.get(batch.status, batch.status)
    if batch.status == "cancelling":
        return cancelling
    words = batch.behaviour.get("words") or usual
    return words[min(max(batch.polls - 1, 0), len(words) - 1)]


# --- OpenAI, and who speaks it ---------------------------------------------------------------------------------


def openai_file(upload: Upload) -> Any:
    return {
        "id": upload.id,
        "object": "file",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at),
        "expires_at": int(upload.created_at) + 2_592_000,
        "filename": upload.name,
        "purpose": upload.purpose,
        "status": "processed",
    }


def openai_draft(body: dict[str, Any], match: re.Match[str]) -> Draft:
    fields(body, "input_file_id endpoint completion_window metadata output_expires_after", "input_file_id endpoint")
    if body.get("completion_window") != "24h":
        raise Bad("completion_window must be 24h")
    if body["endpoint"] != "/v1/embeddings":
        raise Bad("endpoint is not supported")
    metadata = checked_metadata(body.get("metadata", {}))
    return Draft(body["input_file_id"], "", metadata.get("embedctl_batch"), metadata)


def checked_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or len(metadata) > 16:
        raise Bad("metadata must be an object of at most 16 pairs")
    for name, value in metadata.items():
        if not isinstance(value, str) or len(name) > 64 or len(value) > 512:
            raise Bad("metadata holds strings of at most 512 characters")
    return metadata


def openai_read(said: dict[str, Any], draft: Draft) -> tuple[str, Asked]:
    if (
        not isinstance(said, dict)
        or not isinstance(said.get("custom_id"), str)
        or not isinstance(said.get("body"), dict)
    ):
        raise Invalid("invalid_json_line")
    if said.get("method") != "POST" or said.get("url") != "/v1/embeddings":
        raise Invalid("url_mismatch")
    return said["custom_id"], dialects.openai_read(None, {}, said["body"])  # type: ignore[arg-type]


def openai_state(batch: Batch) -> Any:
    end = int(batch.ended_at) if batch.ended_at else None
    status = word(batch, ("validating", "in_progress", "in_progress", "finalizing"), "cancelling", {})
    usage = sum(line.tokens for line in batch.lines if line.outcome == "done")
    counts = batch.counts()
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/embeddings",
        "model": batch.model or None,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.file_id,
        "completion_window": "24h",
        "status": status,
        **file_ids(batch),
        "created_at": int(batch.created_at),
        "in_progress_at": int(batch.created_at),
        "expires_at": int(batch.created_at) + 86_400,
        "finalizing_at": end,
        **{f"{name}_at": end if batch.status == name else None for name in ("completed", "failed", "expired")},
        "cancelling_at": None,
        "cancelled_at": end if batch.status == "cancelled" else None,
        "request_counts": {**counts, "total": 0 if batch.status == "failed" else counts["total"]},
        "usage": {
            "input_tokens": usage,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage,
        },
        "metadata": batch.metadata or None,
    }


def openai_page(kind: str, entries: list[Any], asked: dict[str, str], size: int | None) -> Any:
    """`after` an id; `limit` within 1 to 100."""
    ids = [one["id"] for one in entries]
    start = ids.index(asked["after"]) + 1 if asked.get("after") in ids else 0
    wanted = size or int(asked.get("limit", 20))
    some = entries[start : start + wanted]
    return {
        "object": "list",
        "data": some,
        "first_id": some[0]["id"] if some else None,
        "last_id": some[-1]["id"] if some else None,
        "has_more": start + wanted < len(entries),
    }


def openai_done(line_id: str, work: Work, behaviour: dict[str, Any]) -> Any:
    body = dialects.listed(work)
    return {
        "id": f"batch_req_{work.request_id}",
        "custom_id": line_id,
        "response": body
        if "bare" in behaviour.get("output", ())
        else {"status_code": 200, "request_id": work.request_id, "body": body},
        "error": None,
    }


def openai_refused(line_id: str, status: int, body: Any) -> Any:
    response = {"status_code": status, "request_id": f"req-{line_id}", "body": body}
    return {"id": f"batch_req_{line_id}", "custom_id": line_id, "response": response, "error": None}


LEFT = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request could not be executed because the batch was cancelled."),
}


def openai_left(line_id: str, status: str) -> Any:
    code, message = LEFT.get(status, LEFT["expired"])
    error = {"code": code, "message": message}
    return {"id": f"batch_req_{line_id}", "custom_id": line_id, "response": None, "error": error}


def openai_refuse(kind: str, more: dict[str, Any]) -> Reply:
    """What is refused at a create, and everything that is refused online."""
    said = {
        "enqueued": (
            "token_limit_exceeded",
            "Enqueued token limit reached for m in organization o. Limit: 5,000 enqueued tokens. "
            "Please try again once some in_progress batches have been completed.",
        ),
        "unseen": ("invalid_request", "The file file-x does not exist or your project has no access to it."),
        "no_batch": ("not_found", "No batch found with that id."),
        "no_file": ("not_found", "No such File object."),
        "ended": ("conflict", "Cannot cancel a batch with status 'completed'."),
    }
    if kind not in said:
        return dialects.openai_refuse(kind, more)
    code, message = said[kind]
    status = {"enqueued": 400, "unseen": 400, "ended": 409}.get(kind, 404)
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return more.get("status", status), {}, {"error": error}


OPENAI = BatchDialect(
    name="openai",
    routes=_routes(r"(?:/p/(?:openai|gateway))?/v1", "batches"),
    file_id="file-{hex}",
    batch_id="batch_{hex}",
    upload=form_upload,
    file=openai_file,
    draft=openai_draft,
    state=openai_state,
    page=openai_page,
    read=openai_read,
    done=openai_done,
    refused=openai_refused,
    left=openai_left,
    refuse=openai_refuse,
    one_model_in_lines=True,
)

BATCH_DIALECTS: list[BatchDialect] = [OPENAI]


def line_of(raw: bytes, number: int) -> dict[str, Any]:
    """A line of an upload, parsed."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Invalid("invalid_json_line", number) from None

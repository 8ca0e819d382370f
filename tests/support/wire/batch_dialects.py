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
    routes=_routes(r"(?:(?:/p/(?:openai|gateway))?/v1|/p/deepinfra/v1/openai)", "batches"),
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

# --- Mistral ---------------------------------------------------------------------------------------------------


def mistral_file(upload: Upload) -> Any:
    return {
        "id": upload.id,
        "object": "file",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at),
        "filename": upload.name,
        "purpose": "batch",
        "sample_type": "batch_request" if upload.purpose == "batch" else "batch_result",
        "source": "upload",
        "num_lines": None,
        "signature": None,
        "expires_at": None,
    }


def mistral_draft(body: dict[str, Any], match: re.Match[str]) -> Draft:
    fields(body, "input_files endpoint model metadata timeout_hours agent_id", "input_files endpoint model")
    if body["endpoint"] != "/v1/embeddings" or not 0 < body.get("timeout_hours", 24) < 168:
        raise Bad("endpoint or timeout_hours is not supported")
    metadata = checked_metadata(body.get("metadata", {}))
    settings = {"timeout_hours": body.get("timeout_hours")}
    return Draft(body["input_files"][0], body["model"], metadata.get("embedctl_batch"), metadata, settings)


def mistral_read(said: dict[str, Any], draft: Draft) -> tuple[str, Asked]:
    fields(said, "custom_id body", "custom_id body")
    return said["custom_id"], dialects.mistral_read(None, {}, {"model": draft.model, **said["body"]})  # type: ignore[arg-type]


MISTRAL_ENDS = {"completed": "SUCCESS", "failed": "FAILED", "expired": "TIMEOUT_EXCEEDED", "cancelled": "CANCELLED"}


def mistral_state(batch: Batch) -> Any:
    counts, ids = batch.counts(), file_ids(batch)
    return {
        "id": batch.id,
        "object": "batch",
        "input_files": [batch.file_id],
        "endpoint": "/v1/embeddings",
        "model": batch.model,
        "agent_id": None,
        "metadata": batch.metadata or None,
        "errors": [{"message": f"{one['code']}: {one['message']}", "count": 1} for one in batch.errors],
        "status": word(batch, ("QUEUED", "RUNNING"), "CANCELLATION_REQUESTED", MISTRAL_ENDS),
        "output_file": ids["output_file_id"],
        "error_file": ids["error_file_id"],
        "created_at": int(batch.created_at),
        "started_at": int(batch.created_at),
        "completed_at": int(batch.ended_at) if batch.ended_at else None,
        "total_requests": counts["total"],
        "completed_requests": counts["completed"] + counts["failed"],
        "succeeded_requests": counts["completed"],
        "failed_requests": counts["failed"],
        "outputs": None,
    }


def mistral_page(kind: str, entries: list[Any], asked: dict[str, str], size: int | None) -> Any:
    """`page` from 0, `page_size`; no data at all where there is nothing."""
    wanted = size or int(asked.get("page_size", 100))
    start = int(asked.get("page", 0)) * wanted
    some = entries[start : start + wanted]
    return {"object": "list", "total": len(entries), "data": some if entries else None}


def mistral_filter(batch: Batch, asked: dict[str, str]) -> bool:
    """What is no parameter of the list is a pair of metadata."""
    known = {"page", "page_size", "model", "agent_id", "created_after", "created_by_me", "status", "order_by"}
    return all(batch.metadata.get(name) == value for name, value in asked.items() if name not in known)


def mistral_done(line_id: str, work: Work, behaviour: dict[str, Any]) -> Any:
    body = dialects.mistral_write(work)
    response = body if "bare" in behaviour.get("output", ()) else {"status_code": 200, "body": body}
    return {"id": work.request_id, "custom_id": line_id, "response": response, "error": None}


def mistral_refuse(kind: str, more: dict[str, Any]) -> Reply:
    said = {
        "enqueued": (429, "Too many enqueued requests for this workspace."),
        "unseen": (404, "File not found."),
        "no_batch": (404, "Batch job not found."),
        "no_file": (404, "No file matches the given query."),
        "ended": (400, "Batch job cannot be cancelled."),
    }
    if kind not in said:
        return dialects.mistral_refuse(kind, more)
    status, message = said[kind]
    return more.get("status", status), {}, {"detail": message}


MISTRAL = BatchDialect(
    name="mistral",
    routes=_routes(r"/p/mistral/v1", "batch/jobs"),
    file_id="{hex}",
    batch_id="{hex}",
    upload=form_upload,
    file=mistral_file,
    draft=mistral_draft,
    state=mistral_state,
    page=mistral_page,
    read=mistral_read,
    done=mistral_done,
    refused=openai_refused,
    left=openai_left,
    refuse=mistral_refuse,
    filters=mistral_filter,
)


# --- Voyage ----------------------------------------------------------------------------------------------------


def voyage_draft(body: dict[str, Any], match: re.Match[str]) -> Draft:
    fields(
        body,
        "input_file_id endpoint completion_window metadata request_params",
        "input_file_id endpoint completion_window request_params",
    )
    if body["completion_window"] != "12h" or body["endpoint"] != "/v1/embeddings":
        raise Bad("completion_window must be 12h")
    settings = body["request_params"]
    fields(settings, "model input_type output_dimension output_dtype truncation", "model")
    metadata = checked_metadata(body.get("metadata", {}))
    return Draft(body["input_file_id"], settings["model"], metadata.get("embedctl_batch"), metadata, settings)


def voyage_read(said: dict[str, Any], draft: Draft) -> tuple[str, Asked]:
    fields(said, "custom_id body", "custom_id body")
    fields(said["body"], "input", "input")
    if len(said["body"]["input"]) > 1000:
        raise Bad("at most 1000 inputs in a line")
    return said["custom_id"], dialects.voyage_read(None, {}, {**draft.settings, **said["body"]})  # type: ignore[arg-type]


def voyage_state(batch: Batch) -> Any:
    counts = batch.counts()
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/embeddings",
        "errors": batch.errors or None,
        "input_file_id": batch.file_id,
        "completion_window": "12h",
        "request_params": batch.settings,
        "status": word(batch, ("validating", "in_progress", "finalizing"), "cancelling", {"expired": "completed"}),
        **file_ids(batch),
        "created_at": rfc3339(batch.created_at),
        "expected_completion_at": rfc3339(batch.created_at + 43_200),
        "completed_at": rfc3339(batch.ended_at) if batch.ended_at else None,
        "request_counts": counts,
        "metadata": batch.metadata,
    }


def voyage_file(upload: Upload) -> Any:
    return {**openai_file(upload), "created_at": rfc3339(upload.created_at), "expires_at": None}


def voyage_done(line_id: str, work: Work, behaviour: dict[str, Any]) -> Any:
    body = dialects.voyage_write(work)
    response = body if "bare" in behaviour.get("output", ()) else {"status_code": 200, "body": body}
    return {"batch_id": work.request_id, "custom_id": line_id, "response": response, "error": None}


def voyage_refuse(kind: str, more: dict[str, Any]) -> Reply:
    said = {
        "enqueued": (429, "You have reached the limit of batch jobs in flight. Please wait for 30 minutes."),
        "unseen": (404, "File file-x not found."),
        "no_batch": (404, "Batch not found."),
        "no_file": (404, "File not found."),
        "ended": (400, "Batch is not in a state that can be cancelled."),
    }
    if kind not in said:
        return dialects.voyage_refuse(kind, more)
    status, message = said[kind]
    words = f"{message} Enqueued limit reached." if kind == "enqueued" and more.get("status") == 400 else message
    return more.get("status", status), {}, {"detail": words}


VOYAGE = BatchDialect(
    name="voyage",
    routes=_routes(r"/p/voyage/v1", "batches"),
    file_id="file-{hex}",
    batch_id="batch-{hex}",
    upload=form_upload,
    file=voyage_file,
    draft=voyage_draft,
    state=voyage_state,
    page=openai_page,
    read=voyage_read,
    done=voyage_done,
    refused=openai_refused,
    left=openai_left,
    refuse=voyage_refuse,
)


# --- Gemini ----------------------------------------------------------------------------------------------------


def google_upload(headers: dict[str, str], body: bytes) -> tuple[str, bytes]:
    """Metadata and content; the file may choose its name."""
    (_, about), (_, content) = multipart(headers, body)
    said = orjson.loads(about)["file"]
    fields(said, "name displayName mimeType", "")
    name = said["name"].removeprefix("files/")
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", name):
        raise Bad("file.name must be at most 40 lower-case letters, digits and dashes")
    return name, content


def google_file(upload: Upload) -> Any:
    return {
        "name": f"files/{upload.id}",
        "displayName": upload.name,
        "mimeType": "application/jsonl",
        "sizeBytes": str(upload.bytes),
        "createTime": rfc3339(upload.created_at),
        "updateTime": rfc3339(upload.created_at),
        "expirationTime": rfc3339(upload.created_at + 172_800),
        "state": "ACTIVE",
        "source": "UPLOADED" if upload.purpose == "batch" else "GENERATED",
    }


def google_draft(body: dict[str, Any], match: re.Match[str]) -> Draft:
    fields(body, "batch", "batch")
    fields(body["batch"], "displayName inputConfig priority", "displayName inputConfig")
    config = body["batch"]["inputConfig"]
    name = config.get("fileName") or config.get("file_name")  # google-genai 3.6.1 writes the second
    if not name:
        raise Bad("only file input is spoken here")
    return Draft(name.removeprefix("files/"), match["model"], body["batch"]["displayName"])


def google_read(said: dict[str, Any], draft: Draft) -> tuple[str, Asked]:
    fields(said, "key request", "key request")
    one = said["request"]
    fields(one, "model content taskType title outputDimensionality", "content")
    text = "".join(part["text"] for part in one["content"]["parts"])
    return said["key"], Asked(draft.model, [text], one.get("outputDimensionality"), input_type=one.get("taskType"))


GOOGLE_ENDS = {name: f"BATCH_STATE_{name.upper()}" for name in ("failed", "expired", "cancelled")}


def google_state(batch: Batch) -> Any:
    counts = batch.counts()
    ids = file_ids(batch)
    ends = {**GOOGLE_ENDS, "completed": "BATCH_STATE_SUCCEEDED"}
    about: dict[str, Any] = {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch",
        "model": f"models/{batch.model}",
        "displayName": batch.mark,
        "inputConfig": {"fileName": f"files/{batch.file_id}"},
        "createTime": rfc3339(batch.created_at),
        "updateTime": rfc3339(batch.ended_at or batch.created_at),
        "batchStats": {
            "requestCount": str(counts["total"]),
            "successfulRequestCount": str(counts["completed"]),
            "failedRequestCount": str(counts["failed"]),
        },
        "state": word(batch, ("BATCH_STATE_PENDING", "BATCH_STATE_RUNNING"), "BATCH_STATE_RUNNING", ends),
        "name": f"batches/{batch.id}",
    }
    said: dict[str, Any] = {"name": f"batches/{batch.id}", "metadata": about}
    if batch.ended_at:
        about["endTime"] = rfc3339(batch.ended_at)
        said["done"] = True
    if batch.output:
        about["output"] = {"responsesFile": f"files/{ids['output_file_id']}"}
        said["response"] = {"responsesFile": f"files/{ids['output_file_id']}"}
    if batch.errors:
        said["error"] = {"code": 9, "message": f"{batch.errors[0]['code']}: {batch.errors[0]['message']}"}
    return said


def google_page(kind: str, entries: list[Any], asked: dict[str, str], size: int | None) -> Any:
    wanted = size or int(asked.get("pageSize", 10))
    start = int(asked.get("pageToken") or 0)
    some = entries[start : start + wanted]
    said: dict[str, Any] = {"operations" if kind == "batches" else "files": some} if some else {}
    if start + wanted < len(entries):
        said["nextPageToken"] = str(start + wanted)
    return said


def google_done(line_id: str, work: Work, behaviour: dict[str, Any]) -> Any:
    response: dict[str, Any] = {"embedding": {"values": work.rows[0]}}
    if work.usage is not None:
        response["tokenCount"] = str(work.usage) if len(line_id) % 2 else work.usage
    return {"key": line_id, "response": response}


def google_refused(line_id: str, status: int, body: Any) -> Any:
    code = {400: 3, 404: 5, 403: 7, 429: 8, 500: 13, 503: 14}.get(status, status)
    return {"key": line_id, "error": {"code": code, "message": body["error"]["message"]}}


def google_left(line_id: str, status: str) -> Any:
    return {"key": line_id, "error": {"code": 1, "message": f"The batch was {status}."}}


def google_refuse(kind: str, more: dict[str, Any]) -> Reply:
    said = {
        "enqueued": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
        "unseen": (400, "FAILED_PRECONDITION", "File files/x does not exist or is not active."),
        "no_batch": (404, "NOT_FOUND", "Requested entity was not found."),
        "no_file": (403, "PERMISSION_DENIED", "You do not have permission to access the File x or it may not exist."),
        "ended": (400, "FAILED_PRECONDITION", "The batch is not running."),
        "file_exists": (409, "ALREADY_EXISTS", "Requested entity already exists"),
    }
    if kind not in said:
        return dialects.google_refuse(kind, more)
    status, name, message = said[kind]
    code = more.get("status", status)
    if kind == "enqueued" and code == 400:
        message += " Enqueued tokens."
    return code, {}, {"error": {"code": code, "message": message, "status": name}}


_GOOGLE = r"/p/google/{}v1(?:beta)?/{}"
GOOGLE = BatchDialect(
    name="google",
    routes=[
        (method, re.compile(_GOOGLE.format(*path)), what)
        for method, path, what in (
            ("POST", ("upload/", "files"), "upload"),
            ("GET", ("", "files"), "files"),
            ("GET", ("", r"files/(?P<id>[^/:]+)"), "file"),
            ("DELETE", ("", r"files/(?P<id>[^/:]+)"), "delete"),
            ("GET", ("(?:download/)?", r"files/(?P<id>[^/:]+):download"), "content"),
            ("POST", ("", r"models/(?P<model>[^/:]+):asyncBatchEmbedContent"), "create"),
            ("GET", ("", "batches"), "list"),
            ("GET", ("", r"batches/(?P<id>[^/:]+)"), "status"),
            ("POST", ("", r"batches/(?P<id>[^/:]+):cancel"), "cancel"),
        )
    ],
    file_id="",
    batch_id="{hex}",
    output_id="batch-{hex}-{number}",
    upload=google_upload,
    file=google_file,
    draft=google_draft,
    state=google_state,
    page=google_page,
    read=google_read,
    done=google_done,
    refused=google_refused,
    left=google_left,
    refuse=google_refuse,
    key_header="x-goog-api-key",
    cancelled=lambda batch: {},
    deleted=lambda upload: {},
    keeps_output=False,
    errors_in_output=True,
    own_file_names=True,
    uploaded=lambda said: {"file": said},
)

BATCH_DIALECTS: list[BatchDialect] = [OPENAI, MISTRAL, VOYAGE, GOOGLE]


def line_of(raw: bytes, number: int) -> dict[str, Any]:
    """A line of an upload, parsed."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Invalid("invalid_json_line", number) from None

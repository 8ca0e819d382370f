"""Mistral /embeddings: the OpenAI dialect with `output_dimension`. Over-length is refused, never cut.

With a Batch API: /files and /batch/jobs, the model in the job. Its list can filter by metadata in a form that no
source shows; a filter that matched nothing would look like a batch that was never made, so the list is walked.

Source: mistralai 3.7.0 and its public docs @222f4ba (facts/providers.md 7; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedctl.providers import _batch, _foreign, _http, _listed, _openai_batch
from embedctl.providers._batch import (
    BatchCapabilities,
    BatchFile,
    BatchPhase,
    BatchState,
    LineResult,
    Listing,
    ResultFile,
)
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=512, tokens=16_384)
KEY_VARIABLES = ("MISTRAL_API_KEY",)
BASE_URL = "https://api.mistral.ai/v1"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False
BATCH = BatchCapabilities(
    max_inputs=100_000,
    max_lines=100_000,
    max_bytes=512_000_000,
    inputs_per_line=512,
    tokens_per_line=16_384,
    partial_results=False,
    finds="walk",
    window_s=24 * 3600.0,
    results_kept_s=24 * 3600.0,
    files_kept_s=30 * 86_400.0,
    unverified=("inputs_per_line", "tokens_per_line", "partial_results", "results_kept_s"),
)
"""Source: mistralai 3.7.0 `client/models/*batch*`, platform-docs-public @222f4ba (facts/batch_apis.md 4; 2026-11-25).

Where its pages disagree the smaller number stands here. What is there of a cancelled or timed-out job is read.
"""

PHASES: Mapping[str, BatchPhase] = {
    "SUCCESS": "ended_done",
    "FAILED": "ended_failed",
    "TIMEOUT_EXCEEDED": "ended_expired",
    "CANCELLED": "ended_cancelled",
}
"""Ends; every other word is waiting."""

_PAGE = 100
_NOTHING: Mapping[str, Any] = {}


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings."""
    body: dict[str, Any] = {
        "model": model,
        "input": texts,
        "encoding_format": "base64" if options.base64 else "float",
    }
    if options.dimensions is not None:
        body["output_dimension"] = options.dimensions
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.post(place, f"{_http.base(place, BASE_URL)}/embeddings", body, secret)


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer."""
    return _listed.answer("mistral", status, headers, body, request)


def batch_line(
    place: Provider,
    model: str,
    line_id: str,
    texts: Sequence[str] | Sequence[Sequence[int]],
    options: RequestOptions,
) -> bytes:
    """The body of `request` without the model, which stands in the job."""
    body: dict[str, Any] = {"input": texts, "encoding_format": "base64" if options.base64 else "float"}
    if options.dimensions is not None:
        body["output_dimension"] = options.dimensions
    return _openai_batch.packed(place, {"custom_id": line_id, "body": body})


def batch_upload(place: Provider, mark: str, content: bytes) -> HttpRequest:
    """POST {base}/files."""
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    parts = _openai_batch.upload_parts(mark, content)
    return _http.multipart(place, f"{base}/files", parts, "form-data", secret)


def batch_files(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/files."""
    return _page(place, "files?purpose=batch", cursor)


def batch_create(place: Provider, model: str, file_id: str, mark: str, options: RequestOptions) -> HttpRequest:
    """POST {base}/batch/jobs; the mark in its metadata."""
    said = {
        "input_files": [file_id],
        "endpoint": "/v1/embeddings",
        "model": model,
        "timeout_hours": 24,
        "metadata": {_openai_batch.MARK: mark},
    }
    return _post(place, "batch/jobs", said)


def batch_status(place: Provider, batch_id: str) -> HttpRequest:
    """GET {base}/batch/jobs/{id}."""
    return _get(place, f"batch/jobs/{_batch.segment(batch_id)}")


def batch_list(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/batch/jobs, newest first."""
    return _page(place, "batch/jobs?order_by=-created", cursor)


def batch_results(place: Provider, model: str, state: BatchState) -> tuple[ResultFile, ...]:
    """GET {base}/files/{id}/content of both files; they are promised for a day."""
    return _openai_batch.results(state, lambda file_id: _get(place, f"files/{_batch.segment(file_id)}/content", "*/*"))


def batch_result(line: bytes, request: HttpRequest) -> LineResult:
    """Read a line of either file."""
    return _openai_batch.result("mistral", line, request)


def batch_cancel(place: Provider, batch_id: str) -> HttpRequest:
    """POST {base}/batch/jobs/{id}/cancel."""
    return _post(place, f"batch/jobs/{_batch.segment(batch_id)}/cancel", {})


def batch_delete(place: Provider, file_id: str) -> HttpRequest:
    """DELETE {base}/files/{id}."""
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.get(place, f"{base}/files/{_batch.segment(file_id)}", secret, method="DELETE")


def batch_state(said: Any) -> BatchState | None:
    """Read a job."""
    if not isinstance(said, dict) or (job_id := _batch.remote_id(said.get("id"))) is None:
        return None
    status = said["status"] if isinstance(said.get("status"), str) else ""
    files = said.get("input_files")
    return BatchState(
        id=job_id,
        mark=_batch.mark_of(_openai_batch.fields_of(said.get("metadata")).get(_openai_batch.MARK)),
        status=status,
        state=PHASES.get(status.upper(), "waiting"),
        lines_done=_batch.counted(said.get("succeeded_requests")),
        lines_failed=_batch.counted(said.get("failed_requests")),
        lines_total=_batch.counted(said.get("total_requests")),
        created_at=_batch.moment(said.get("created_at")),
        ended_at=_batch.moment(said.get("completed_at")),
        input_id=_batch.remote_id(files[0]) if isinstance(files, list) and files else None,
        output_id=_batch.remote_id(said.get("output_file")),
        error_id=_batch.remote_id(said.get("error_file")),
        errors=_openai_batch.complaints(said.get("errors")),
    )


def batch_file(said: Any) -> BatchFile | None:
    """Read a file object."""
    return _openai_batch.file(said)


def batch_page(said: Any, request: HttpRequest) -> Listing | None:
    """Read `{"data": […], "total"}`: it ends when all were seen, whatever a page holds; without a total, when empty."""
    if not isinstance(said, dict):
        return None
    entries = [] if said.get("data") is None and said.get("total") == 0 else said.get("data")
    if not isinstance(entries, list):
        return None
    seen, total = request.reading.get("seen", 0) + len(entries), _foreign.whole(said.get("total"))
    if entries and (total is None or seen < total):
        return Listing(entries, f"{request.reading.get('page', 0) + 1}-{seen}")
    return Listing(entries, complete=total is None or seen >= total)


def _page(place: Provider, path: str, cursor: str | None) -> HttpRequest:
    number, _, seen = (cursor or "0-0").partition("-")
    reading = {"page": int(number), "seen": int(seen)}
    return _get(place, f"{path}&page={reading['page']}&page_size={_PAGE}", reading=reading)


def _get(
    place: Provider, path: str, accept: str = "application/json", reading: Mapping[str, Any] = _NOTHING
) -> HttpRequest:
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.get(place, f"{base}/{path}", secret, headers={"accept": accept}, reading=reading)


def _post(place: Provider, path: str, said: Mapping[str, Any]) -> HttpRequest:
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.post(place, f"{base}/{path}", said, secret)

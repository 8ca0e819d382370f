"""Voyage AI /embeddings.

With a Batch API: OpenAI's, with the parameters in the job and not in its lines, and times as RFC 3339.
Vectors come as floats there: whether a job takes `encoding_format` is written nowhere.

Keys that begin with `al-` (MongoDB Atlas) work only at ai.mongodb.com, so that they go there by themselves.

Source: voyageai 0.5.0, docs.voyageai.com/reference/embeddings-api (facts/providers.md 5; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedctl.providers import _batch, _http, _listed, _openai_batch
from embedctl.providers._batch import BatchCapabilities, BatchFile, BatchState, LineResult, Listing, ResultFile
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, Secret, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=1000, tokens=120_000)
KEY_VARIABLES = ("VOYAGE_API_KEY", "VOYAGE_AI_API_KEY", "VOYAGE_AI_TOKEN")
BASE_URL = "https://api.voyageai.com/v1"
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False

ATLAS_BASE_URL = "https://ai.mongodb.com/v1"

BATCH = BatchCapabilities(
    max_inputs=100_000,
    max_lines=100_000,
    max_bytes=100_000_000,
    inputs_per_line=1000,
    tokens_per_line=120_000,
    max_tokens_enqueued=1_000_000_000,
    max_batches=100,
    partial_results=True,
    finds="walk",
    window_s=12 * 3600.0,
    results_kept_s=30 * 86_400.0,
    files_kept_s=30 * 86_400.0,
    unverified=("max_bytes",),
)
"""Source: docs.voyageai.com/docs/batch-inference and its reference (facts/batch_apis.md 5; 2026-11-25).

At the end of its window a batch is `completed`; what was not done stands in the error file.
"""

_PAGE = 100


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings; `truncation: false`, because the default cuts silently and bills the cut."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    base = _http.base(place, BASE_URL)
    if _is_of_atlas(secret) and base == BASE_URL:
        base = ATLAS_BASE_URL
    body: dict[str, Any] = {"model": model, "input": texts, "truncation": False}
    if options.input_type is not None and (word := input_type_word(place, model, options.input_type)):
        body["input_type"] = word
    if options.dimensions is not None:
        body["output_dimension"] = options.dimensions
    if options.base64:
        body["encoding_format"] = "base64"  # "float" is no value here: floats come when it is left out
    return _http.post(place, f"{base}/embeddings", body, secret)


def _is_of_atlas(secret: Secret | None) -> bool:
    return secret is not None and secret.reveal().startswith("al-")


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The value of `input_type`, which knows documents and queries."""
    return input_type if input_type in ("document", "query") else ""


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the OpenAI dialect's answer; usage is `total_tokens` alone."""
    return _listed.answer("voyage", status, headers, body, request)


def batch_refused(place: Provider) -> str | None:
    """Why this place's key buys no batches."""
    if _is_of_atlas(_http.key(place, KEY_VARIABLES, BASE_URL)):
        return "keys of MongoDB Atlas are not known to buy batches"
    return None


def batch_line(
    place: Provider,
    model: str,
    line_id: str,
    texts: Sequence[str] | Sequence[Sequence[int]],
    options: RequestOptions,
) -> bytes:
    """The texts with an id; everything else stands in the job."""
    return _openai_batch.packed(place, {"custom_id": line_id, "body": {"input": texts}})


def batch_upload(place: Provider, mark: str, content: bytes) -> HttpRequest:
    """POST {base}/files."""
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    parts = _openai_batch.upload_parts(mark, content)
    return _http.multipart(place, f"{base}/files", parts, "form-data", secret)


def batch_files(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/files, newest first."""
    return _get(place, f"files?{_openai_batch.list_query(cursor, _PAGE, ('purpose=batch', 'order=desc'))}")


def batch_create(place: Provider, model: str, file_id: str, mark: str, options: RequestOptions) -> HttpRequest:
    """POST {base}/batches; `truncation: false` as in `request`: a server that refuses it sells nothing."""
    parameters: dict[str, Any] = {"model": model, "truncation": False}
    if options.input_type is not None and (word := input_type_word(place, model, options.input_type)):
        parameters["input_type"] = word
    if options.dimensions is not None:
        parameters["output_dimension"] = options.dimensions
    said = {
        "input_file_id": file_id,
        "endpoint": "/v1/embeddings",
        "completion_window": "12h",
        "request_params": parameters,
        "metadata": {_openai_batch.MARK: mark},
    }
    return _post(place, "batches", said)


def batch_status(place: Provider, batch_id: str) -> HttpRequest:
    """GET {base}/batches/{id}."""
    return _get(place, f"batches/{_batch.segment(batch_id)}")


def batch_list(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/batches: all of the project, in an order that nobody promises."""
    return _get(place, f"batches?{_openai_batch.list_query(cursor, _PAGE)}")


def batch_results(place: Provider, model: str, state: BatchState) -> tuple[ResultFile, ...]:
    """GET {base}/files/{id}/content of both files."""
    return _openai_batch.results(state, lambda file_id: _get(place, f"files/{_batch.segment(file_id)}/content", "*/*"))


def batch_result(line: bytes, request: HttpRequest) -> LineResult:
    """Read a line of either file."""
    return _openai_batch.result("voyage", line, request)


def batch_cancel(place: Provider, batch_id: str) -> HttpRequest:
    """POST {base}/batches/{id}/cancel; one that is finalizing is not cancelled any more."""
    return _post(place, f"batches/{_batch.segment(batch_id)}/cancel", {})


def batch_delete(place: Provider, file_id: str) -> HttpRequest:
    """DELETE {base}/files/{id}: what is kept is charged by size and month."""
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.get(place, f"{base}/files/{_batch.segment(file_id)}", secret, method="DELETE")


def batch_state(said: Any) -> BatchState | None:
    """Read a batch object."""
    return _openai_batch.state(said)


def batch_file(said: Any) -> BatchFile | None:
    """Read a file object."""
    return _openai_batch.file(said)


def batch_page(said: Any, request: HttpRequest) -> Listing | None:
    """Read a list."""
    return _openai_batch.page(said)


def _get(place: Provider, path: str, accept: str = "application/json") -> HttpRequest:
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.get(place, f"{base}/{path}", secret, headers={"accept": accept})


def _post(place: Provider, path: str, said: Mapping[str, Any]) -> HttpRequest:
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.post(place, f"{base}/{path}", said, secret)

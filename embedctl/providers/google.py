"""Gemini API, models/…:batchEmbedContents.

One entry of `requests` per text: several parts in one entry become one vector, without an error.
With a Batch API: models/…:asyncBatchEmbedContent over an uploaded file, one text per line, joined by its key: what is
said of the order of results is not kept. Answers are floats; an expired batch has none.
The API has no switch against truncation; texts are measured before they are sent. Option of the place:
`api_version` ("v1beta", as documented; google-genai 3.4.0 itself uses "v1").

Source: google-genai 3.4.0, generative_service.proto @f8291d2 (facts/providers.md 6; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from embedctl.errors import InvariantBroken, ProviderError
from embedctl.providers import _batch, _errors, _foreign, _http, _openai_batch, _vectors
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
from embedctl.records import InputType, Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIMITS = Limits(items=100, bytes=4_000_000)
KEY_VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
BASE_URL = "https://generativelanguage.googleapis.com"
BASE_URL_VARIABLES = ("GEMINI_API_BASE",)
TAKES_TOKENS = False
BATCH = BatchCapabilities(
    max_inputs=50_000,
    max_lines=50_000,
    max_bytes=2_000_000_000,
    inputs_per_line=1,
    max_tokens_enqueued=500_000,
    max_batches=100,
    partial_results=False,
    finds="walk",
    window_s=48 * 3600.0,
    results_kept_s=48 * 3600.0,
    files_kept_s=48 * 3600.0,
    unverified=("max_inputs", "max_lines", "results_kept_s"),
)
"""Source: ai.google.dev/gemini-api/docs/batch-api, google-genai 3.6.1 (facts/batch_apis.md 6; 2026-11-25).

Enqueued tokens are those of gemini-embedding-001 in tier 1, which behave like a bucket that fills up again in 10 to 15
minutes. How many lines a file may have is written nowhere; that results are kept longer than uploads, neither.
"""

PHASES: Mapping[str, BatchPhase] = {
    "SUCCEEDED": "ended_done",
    "PARTIALLY_SUCCEEDED": "ended_done",
    "FAILED": "ended_failed",
    "EXPIRED": "ended_expired",
    "CANCELLED": "ended_cancelled",
}
"""Ends, after `BATCH_STATE_` or `JOB_STATE_`; every other word is waiting."""

_RPC_STATUS = {3: 400, 4: 504, 5: 404, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 13: 500, 14: 503, 16: 401}
"""Source: google.rpc.Code and its HTTP mapping."""

_PAGE = 100
_MOST_TOKEN = 4096  # characters of a page's token
_NOTHING: Mapping[str, Any] = {}

INPUT_TYPES: Mapping[InputType, str] = {
    "document": "RETRIEVAL_DOCUMENT",
    "query": "RETRIEVAL_QUERY",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
}
UNIT_ONLY_AT = {"gemini-embedding-001": 3072}
"""Models whose narrower vectors do not have length 1, and their full width."""


class _Embedding(msgspec.Struct, gc=False):
    values: msgspec.Raw = msgspec.Raw()


class _GoogleBody(msgspec.Struct, rename="camel", gc=False):
    embeddings: tuple[_Embedding, ...] = ()
    usage_metadata: Any = None


class _BatchLine(msgspec.Struct, gc=False):
    key: Any = None
    response: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    status: msgspec.Raw = msgspec.Raw()


class _One(msgspec.Struct, rename="camel", gc=False):
    embedding: _Embedding | None = None
    token_count: Any = None
    usage_metadata: Any = None


_BODY = msgspec.json.Decoder(_GoogleBody)
_LINE = msgspec.json.Decoder(_BatchLine)
_ONE = msgspec.json.Decoder(_One)


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/v1beta/models/{model}:batchEmbedContents; the key in a header, never in the URL."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    model = model.removeprefix("models/")
    shared = {"model": f"models/{model}", **_shared(place, model, options)}
    body = {"requests": [{**shared, "content": {"parts": [{"text": text}]}} for text in texts]}
    url = f"{_http.base(place, BASE_URL)}/{_version(place)}/models/{_http.segment(model)}:batchEmbedContents"
    reading = {"unit_only_at": UNIT_ONLY_AT.get(model)}
    return _http.post(place, url, body, secret, auth="x-goog-api-key", reading=reading)


def _version(place: Provider) -> str:
    return _http.segment(str(place.options.get("api_version") or "v1beta"))


def _shared(place: Provider, model: str, options: RequestOptions) -> dict[str, Any]:
    """What every text of a request or a batch is asked with."""
    shared: dict[str, Any] = {}
    if options.input_type is not None and (word := input_type_word(place, model, options.input_type)):
        shared["taskType"] = word
    if options.dimensions is not None:
        shared["outputDimensionality"] = options.dimensions
    return shared


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The value of `taskType`; gemini-embedding-2 is told in the text alone."""
    return "" if model.startswith("gemini-embedding-2") else INPUT_TYPES[input_type]


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read `embeddings[].values`, scaled to length 1 where the API leaves that to the client."""
    if status != 200:
        raise _errors.refusal("google", status, headers, body, request)
    found = _foreign.decoded(_BODY, body)
    usage = found.usage_metadata if isinstance(found.usage_metadata, dict) else {}
    tokens = _foreign.whole(usage.get("promptTokenCount"))
    with _vectors.billed(tokens):
        vectors = _vectors.rows([one.values for one in found.embeddings], "embeddings[{}].values")
    return WireAnswer(vectors=_scaled(vectors, request), tokens=tokens, embedding_id=_http.request_id(headers))


def _scaled(vectors: NDArray[np.float32], request: HttpRequest) -> NDArray[np.float32]:
    full = request.reading.get("unit_only_at")
    return _vectors.unit(vectors) if full is not None and vectors.shape[1] < full else vectors


def batch_line(
    place: Provider,
    model: str,
    line_id: str,
    texts: Sequence[str] | Sequence[Sequence[int]],
    options: RequestOptions,
) -> bytes:
    """One text with its key."""
    if len(texts) != 1:
        raise InvariantBroken("a line of a Gemini batch holds one text")
    asked = {**_shared(place, model.removeprefix("models/"), options), "content": {"parts": [{"text": texts[0]}]}}
    return _openai_batch.packed(place, {"key": line_id, "request": asked})


def batch_upload(place: Provider, mark: str, content: bytes) -> HttpRequest:
    """POST {base}/upload/v1beta/files; the mark is the file's own name, so that a second one is a 409."""
    about = {"file": {"name": f"files/{mark}", "displayName": mark}}
    parts = [
        ("Content-Type: application/json; charset=UTF-8", orjson.dumps(about)),
        ("Content-Type: application/jsonl", content),
    ]
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    url = f"{base}/upload/{_version(place)}/files?uploadType=multipart"
    sent = {"x-goog-upload-protocol": "multipart"}
    return _http.multipart(place, url, parts, "related", secret, auth="x-goog-api-key", headers=sent)


def batch_files(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/v1beta/files."""
    return _page(place, "files", cursor)


def batch_create(place: Provider, model: str, file_id: str, mark: str, options: RequestOptions) -> HttpRequest:
    """POST {base}/v1beta/models/{model}:asyncBatchEmbedContent; calling it twice makes two batches."""
    said = {"batch": {"displayName": mark, "inputConfig": {"fileName": f"files/{_batch.segment(file_id)}"}}}
    return _post(place, f"models/{_http.segment(model.removeprefix('models/'))}:asyncBatchEmbedContent", said)


def batch_status(place: Provider, batch_id: str) -> HttpRequest:
    """GET {base}/v1beta/batches/{id}."""
    return _get(place, f"{_version(place)}/batches/{_batch.segment(batch_id)}")


def batch_list(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/v1beta/batches: all of them; how they could be filtered is written nowhere."""
    return _page(place, "batches", cursor)


def batch_results(place: Provider, model: str, state: BatchState) -> tuple[ResultFile, ...]:
    """GET {base}/download/v1beta/files/{id}:download; their ids are too long for files.get (js-genai#1227)."""
    reading = {"unit_only_at": UNIT_ONLY_AT.get(model.removeprefix("models/"))}

    def download(file_id: str) -> HttpRequest:
        path = f"download/{_version(place)}/files/{_batch.segment(file_id)}:download?alt=media"
        return _get(place, path, accept="*/*", reading=reading)

    return _openai_batch.results(state, download)


def batch_result(line: bytes, request: HttpRequest) -> LineResult:
    """Read `{"key", "response": {"embedding": {"values"}, "tokenCount"}}`, or `error` in its place."""
    found = _foreign.decoded(_LINE, line)
    if (line_id := _batch.line_id_of(found.key)) is None:
        raise _foreign.unusable("a line of a result without a readable key", line)
    if not _openai_batch.present(found.response):
        said = found.error if _openai_batch.present(found.error) else found.status
        return _openai_batch.refused(line_id, _line_error(bytes(said), request))

    def read(body: bytes) -> WireAnswer:
        one = _foreign.decoded(_ONE, body)
        usage = one.usage_metadata if isinstance(one.usage_metadata, dict) else {}
        tokens = _batch.counted(one.token_count if one.token_count is not None else usage.get("promptTokenCount"))
        with _vectors.billed(tokens):
            if one.embedding is None:
                raise _foreign.unusable("a line of a result without an embedding", body)
            vectors = _vectors.rows([one.embedding.values], "response.embedding.values")
        return WireAnswer(vectors=_scaled(vectors, request), tokens=tokens)

    return _openai_batch.answered(line_id, read, bytes(found.response))


def _line_error(raw: bytes, request: HttpRequest) -> ProviderError:
    """What a `google.rpc.Status` means; its code is that of an RPC, or an HTTP status."""
    code = _foreign.whole(_openai_batch.fields_of(_foreign.anything(raw)).get("code"), most=599)
    status = 500 if code is None else code if code >= 300 else _RPC_STATUS.get(code, 500)
    return _errors.refusal("google", status, {}, b'{"error":' + (raw or b"{}") + b"}", request)


def batch_cancel(place: Provider, batch_id: str) -> HttpRequest:
    """POST {base}/v1beta/batches/{id}:cancel: best effort, the answer is empty. Deleting one would not end it."""
    return _post(place, f"batches/{_batch.segment(batch_id)}:cancel", {})


def batch_delete(place: Provider, file_id: str) -> HttpRequest:
    """DELETE {base}/v1beta/files/{id}."""
    url = f"{_http.base(place, BASE_URL)}/{_version(place)}/files/{_batch.segment(file_id)}"
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    return _http.get(place, url, secret, auth="x-goog-api-key", method="DELETE")


def batch_state(said: Any) -> BatchState | None:
    """Read an operation: the batch stands in its `metadata`, or right there; counts are strings."""
    if not isinstance(said, dict) or (batch_id := _batch.remote_id(said.get("name"), "batches/")) is None:
        return None
    about = {**said, **_openai_batch.fields_of(said.get("metadata"))}
    status = about["state"] if isinstance(about.get("state"), str) else ""
    word = status.upper().removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")
    stats = _openai_batch.fields_of(about.get("batchStats"))
    output = {**_openai_batch.fields_of(said.get("response")), **_openai_batch.fields_of(about.get("output"))}
    error = said.get("error")
    return BatchState(
        id=batch_id,
        mark=_batch.mark_of(about.get("displayName")),
        status=status,
        state=PHASES.get(word, "ended_failed" if error and said.get("done") is True else "waiting"),
        lines_done=_batch.counted(stats.get("successfulRequestCount")),
        lines_failed=_batch.counted(stats.get("failedRequestCount")),
        lines_total=_batch.counted(stats.get("requestCount")),
        created_at=_batch.moment(about.get("createTime")),
        ended_at=_batch.moment(about.get("endTime")),
        input_id=_batch.remote_id(_openai_batch.fields_of(about.get("inputConfig")).get("fileName"), "files/"),
        output_id=_batch.remote_id(output.get("responsesFile"), "files/"),
        errors=_openai_batch.complaints(error),
    )


def batch_file(said: Any) -> BatchFile | None:
    """Read a file, alone or as `{"file": …}`."""
    said = said["file"] if isinstance(said, dict) and "file" in said else said
    if not isinstance(said, dict) or (file_id := _batch.remote_id(said.get("name"), "files/")) is None:
        return None
    return BatchFile(
        id=file_id,
        mark=_batch.mark_of(said.get("displayName")) or _batch.mark_of(file_id),
        bytes=_batch.counted(said.get("sizeBytes")),
        ready=said.get("state") in (None, "ACTIVE"),
        created_at=_batch.moment(said.get("createTime")),
        expires_at=_batch.moment(said.get("expirationTime")),
    )


def batch_page(said: Any, request: HttpRequest) -> Listing | None:
    """Read `{"operations" or "files": […], "nextPageToken"}`; an empty list is an empty object."""
    name = request.reading.get("entries", "")
    if not isinstance(said, dict) or set(said) - {name, "nextPageToken"}:
        return None  # another shape is no empty list
    entries, token = said.get(name, []), said.get("nextPageToken") or None
    if not isinstance(entries, list) or not isinstance(token, str | None):
        return None
    fits = token is None or len(token) <= _MOST_TOKEN
    return Listing(entries, token if fits else None, complete=fits)


def _page(place: Provider, path: str, cursor: str | None) -> HttpRequest:
    more = f"&pageToken={_http.segment(cursor)}" if cursor else ""
    reading = {"entries": "operations" if path == "batches" else path}
    return _get(place, f"{_version(place)}/{path}?pageSize={_PAGE}{more}", reading=reading)


def _get(
    place: Provider, path: str, accept: str = "application/json", reading: Mapping[str, Any] = _NOTHING
) -> HttpRequest:
    secret, base = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    headers = {"accept": accept}
    return _http.get(place, f"{base}/{path}", secret, auth="x-goog-api-key", headers=headers, reading=reading)


def _post(place: Provider, path: str, said: Mapping[str, Any]) -> HttpRequest:
    url = f"{_http.base(place, BASE_URL)}/{_version(place)}/{path}"
    return _http.post(place, url, said, _http.key(place, KEY_VARIABLES, BASE_URL), auth="x-goog-api-key")

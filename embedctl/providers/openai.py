"""OpenAI's /embeddings, and every server that speaks it: vLLM, llama.cpp, LM Studio, Together, Fireworks, …

With a Batch API: /files and /batches, where the place has them (`batch_api`). A line's body is that of `request`.

Options of the place: `encoding_format = false` and `normalize = true` for servers whose schema asks for it,
`organization`, `project`; `input_type_field`, where a gateway takes the input type of the model behind it.

Source: openai-openapi @f85dbe2 and openai-python 3.54.0 (facts/providers.md 1, 2, 12, 14; 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from embedctl.providers import _batch, _http, _listed, _openai_batch
from embedctl.providers._batch import BatchCapabilities, BatchFile, BatchState, LineResult, Listing, ResultFile
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import Limits

LIMITS = Limits(items=2048, tokens=300_000)
KEY_VARIABLES = ("OPENAI_API_KEY",)
BASE_URL = "https://api.openai.com/v1"
BASE_URL_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
TAKES_TOKENS = True
BATCH = BatchCapabilities(
    max_inputs=50_000,
    max_lines=50_000,
    max_bytes=200_000_000,
    inputs_per_line=2048,
    tokens_per_line=300_000,
    max_tokens_enqueued=3_000_000,
    takes_tokens=True,
    partial_results=True,
    finds="walk",
    window_s=24 * 3600.0,
    results_kept_s=30 * 86_400.0,
    files_kept_s=30 * 86_400.0,
    unverified=("takes_tokens", "inputs_per_line"),
)
"""Source: developers.openai.com/api/docs/guides/batch, openai 3.57.0 (facts/batch_apis.md 2; 2026-11-25).

A line's body is said to be that of the endpoint, from which arrays and their bounds follow; tier 1 is the lowest paid.
"""

_BATCH_ENDPOINT = "/v1/embeddings"
_PAGE = 100


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST {base}/embeddings. The server never truncates; one that does has no switch for it."""
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    url = f"{_http.base(place, BASE_URL)}/embeddings"
    return _http.post(place, url, body(place, model, texts, options), secret, headers=_account(place))


def _account(place: Provider) -> dict[str, str]:
    return {
        header: str(place.options[name])
        for name, header in (("organization", "openai-organization"), ("project", "openai-project"))
        if place.options.get(name)
    }


def body(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> dict[str, Any]:
    """The dialect's body; nothing is sent that was not asked for, since strict servers refuse it."""
    found: dict[str, Any] = {"model": model, "input": texts}
    if place.options.get("encoding_format", True) is not False:
        found["encoding_format"] = "base64" if options.base64 else "float"
    if options.dimensions is not None:
        found["dimensions"] = options.dimensions
    if options.user is not None:
        found["user"] = options.user
    if place.options.get("normalize"):
        found["normalize"] = True
    return {**options.fields, **found}


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Read the dialect's answer; floats and base64 whatever was asked."""
    return _listed.answer("openai", status, headers, body, request)


def batch_refused(place: Provider) -> str | None:
    """Why a server that is known by its address sells no batches that could be found again.

    Source: openrouter.ai/docs/batch-quickstart (facts/batch_apis.md 9; 2026-11-25).
    """
    host = urlsplit(_http.base(place, BASE_URL)).hostname or ""
    if host == "openrouter.ai" or host.endswith(".openrouter.ai"):
        return "a batch of OpenRouter carries no mark: one whose answer is lost could not be found again"
    return None


def batch_line(
    place: Provider,
    model: str,
    line_id: str,
    texts: Sequence[str] | Sequence[Sequence[int]],
    options: RequestOptions,
) -> bytes:
    """One request with its id, method and path."""
    said = {"custom_id": line_id, "method": "POST", "url": _BATCH_ENDPOINT, "body": body(place, model, texts, options)}
    return _openai_batch.packed(place, said)


def batch_upload(place: Provider, mark: str, content: bytes) -> HttpRequest:
    """POST {base}/files."""
    secret, url = _http.key(place, KEY_VARIABLES, BASE_URL), f"{_http.base(place, BASE_URL)}/files"
    parts = _openai_batch.upload_parts(mark, content)
    return _http.multipart(place, url, parts, "form-data", secret, headers=_account(place))


def batch_files(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/files, newest first."""
    return _get(place, f"files?{_openai_batch.list_query(cursor, _PAGE, ('purpose=batch', 'order=desc'))}")


def batch_create(place: Provider, model: str, file_id: str, mark: str, options: RequestOptions) -> HttpRequest:
    """POST {base}/batches; the mark in its metadata."""
    said = {
        "input_file_id": file_id,
        "endpoint": _BATCH_ENDPOINT,
        "completion_window": "24h",
        "metadata": {_openai_batch.MARK: mark},
    }
    return _post(place, "batches", said)


def batch_status(place: Provider, batch_id: str) -> HttpRequest:
    """GET {base}/batches/{id}."""
    return _get(place, f"batches/{_batch.segment(batch_id)}")


def batch_list(place: Provider, mark: str, cursor: str | None) -> HttpRequest:
    """GET {base}/batches: all of them, in an order that nobody promises."""
    return _get(place, f"batches?{_openai_batch.list_query(cursor, _PAGE)}")


def batch_results(place: Provider, model: str, state: BatchState) -> tuple[ResultFile, ...]:
    """GET {base}/files/{id}/content of both files."""
    return _openai_batch.results(state, lambda file_id: _get(place, f"files/{_batch.segment(file_id)}/content", "*/*"))


def batch_result(line: bytes, request: HttpRequest) -> LineResult:
    """Read a line of either file."""
    return _openai_batch.result("openai", line, request)


def batch_cancel(place: Provider, batch_id: str) -> HttpRequest:
    """POST {base}/batches/{id}/cancel: `cancelling` for up to ten minutes."""
    return _post(place, f"batches/{_batch.segment(batch_id)}/cancel", {})


def batch_delete(place: Provider, file_id: str) -> HttpRequest:
    """DELETE {base}/files/{id}; batches cannot be deleted."""
    secret, url = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    url = f"{url}/files/{_batch.segment(file_id)}"
    return _http.get(place, url, secret, headers=_account(place), method="DELETE")


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
    secret, url = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.get(place, f"{url}/{path}", secret, headers={"accept": accept, **_account(place)})


def _post(place: Provider, path: str, said: Mapping[str, Any]) -> HttpRequest:
    secret, url = _http.key(place, KEY_VARIABLES, BASE_URL), _http.base(place, BASE_URL)
    return _http.post(place, f"{url}/{path}", said, secret, headers=_account(place))

"""OpenAI's /files and /batches, for all who speak them: what is sent, and how it is read. Pure.

Source: openai 3.57.0 `types/batch*.py`, `types/file_*.py`; openai-openapi @f85dbe2; reports of what servers really
answer, each by its number in facts/batch_apis.md, 12 (2026-11-25).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import orjson

from embedctl.errors import (
    AnswerUnusable,
    KeyRejected,
    ProviderError,
    QuotaExhausted,
    RedirectRefused,
    RequestRefused,
    ServerFailed,
    TextRefused,
    Throttled,
)
from embedctl.providers import _batch, _errors, _foreign, _listed
from embedctl.providers._batch import BatchFile, BatchPhase, BatchState, LineResult, Listing, ResultFile
from embedctl.providers._contract import HttpRequest, Provider, WireAnswer

SUFFIX = ".jsonl"
"""OpenAI takes no other file name."""

MARK = "embedctl_batch"
"""The mark's name in a batch's metadata."""

PHASES: Mapping[str, BatchPhase] = {
    "completed": "ended_done",
    "failed": "ended_failed",
    "expired": "ended_expired",
    "cancelled": "ended_cancelled",
    "canceled": "ended_cancelled",
}
"""Ends; every other word is waiting."""

PASSING = (Throttled, ServerFailed, QuotaExhausted, KeyRejected, RedirectRefused)
"""Refusals of a line that are not about its texts."""

_NOT_EXECUTED = re.compile(r"expired|cancel|timed?.?out|internal|server.?error|unavailable|rate.?limit", re.I)
_MOST_ERRORS = 100


class _Response(msgspec.Struct, gc=False):
    status_code: Any = None
    request_id: Any = None
    body: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct, gc=False):
    custom_id: Any = None
    response: _Response | None = None
    error: msgspec.Raw = msgspec.Raw()


class _OddLine(msgspec.Struct, gc=False):
    custom_id: Any = None
    response: msgspec.Raw = msgspec.Raw()


_LINE = msgspec.json.Decoder(_Line)
_ODD_LINE = msgspec.json.Decoder(_OddLine)


def packed(place: Provider, said: Mapping[str, Any]) -> bytes:
    """One line of a file.

    Raises:
        TextRefused: A text is not Unicode (a lone surrogate).
    """
    try:
        return orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        if "surrogates" not in str(error):
            raise
        raise TextRefused("a text holds a lone surrogate: it is no Unicode", provider=place.name) from error


def upload_parts(mark: str, content: bytes) -> list[tuple[str, bytes]]:
    """The form of POST /files."""
    return [
        ('Content-Disposition: form-data; name="purpose"', b"batch"),
        (
            f'Content-Disposition: form-data; name="file"; filename="{mark}{SUFFIX}"\r\n'
            "Content-Type: application/jsonl",
            content,
        ),
    ]


def state(said: Any) -> BatchState | None:
    """A batch object, of Voyage too; ids of files may be null, missing or empty (17)."""
    if not isinstance(said, dict) or (batch_id := _batch.remote_id(said.get("id"))) is None:
        return None
    status = said["status"] if isinstance(said.get("status"), str) else ""
    counts = fields_of(said.get("request_counts"))
    usage = fields_of(said.get("usage"))
    metadata = fields_of(said.get("metadata"))
    ends = [_batch.moment(said.get(f"{word}_at")) for word in ("completed", "failed", "expired", "cancelled")]
    total = _batch.counted(usage.get("total_tokens"))
    return BatchState(
        id=batch_id,
        mark=_batch.mark_of(metadata.get(MARK)),
        status=status,
        state=PHASES.get(status.lower(), "waiting"),
        lines_done=_batch.counted(counts.get("completed")),
        lines_failed=_batch.counted(counts.get("failed")),
        lines_total=_batch.counted(counts.get("total")),
        tokens=total if total is not None else _batch.counted(usage.get("input_tokens")),
        created_at=_batch.moment(said.get("created_at")),
        expires_at=_batch.moment(said.get("expires_at") or said.get("expected_completion_at")),
        ended_at=next((one for one in ends if one is not None), None),
        input_id=_batch.remote_id(said.get("input_file_id")),
        output_id=_batch.remote_id(said.get("output_file_id")),
        error_id=_batch.remote_id(said.get("error_file_id")),
        errors=complaints(said.get("errors")),
    )


def file(said: Any) -> BatchFile | None:
    """A file object; its name is its mark."""
    if not isinstance(said, dict) or (file_id := _batch.remote_id(said.get("id"))) is None:
        return None
    name = said.get("filename")
    marked = isinstance(name, str) and name.endswith(SUFFIX)
    return BatchFile(
        id=file_id,
        mark=_batch.mark_of(str(name).removesuffix(SUFFIX)) if marked else None,
        bytes=_batch.counted(said.get("bytes")),
        created_at=_batch.moment(said.get("created_at")),
        expires_at=_batch.moment(said.get("expires_at")),
    )


def page(said: Any) -> Listing | None:
    """`{"data": […], "has_more", "last_id"}`; without a word of more, the next page is asked for until one is empty."""
    if not isinstance(said, dict) or not isinstance(said.get("data"), list):
        return None
    entries = said["data"]
    if said.get("has_more") is False or (not entries and said.get("has_more") is None):
        return Listing(entries)
    last = said.get("last_id") or (entries[-1].get("id") if entries and isinstance(entries[-1], dict) else None)
    cursor = _batch.remote_id(last)
    return Listing(entries, cursor, complete=cursor is not None)


def results(state: BatchState, get: Callable[[str], HttpRequest]) -> tuple[ResultFile, ...]:
    """Both files of a batch, those that it names."""
    named: tuple[tuple[Literal["output", "error"], str | None], ...] = (
        ("output", state.output_id),
        ("error", state.error_id),
    )
    return tuple(ResultFile(kind=kind, file_id=one, request=get(one)) for kind, one in named if one)


def complaints(said: Any) -> tuple[str, ...]:
    """`errors` of a batch as sentences, whatever holds them."""
    listed = said.get("data") if isinstance(said, dict) and "data" in said else said
    if listed is None:
        return ()
    return tuple(_complaint(one) for one in (listed if isinstance(listed, list) else [listed])[:_MOST_ERRORS])


def _complaint(one: Any) -> str:
    if not isinstance(one, dict):
        return _foreign.shown(one)
    where = f"line {_foreign.shown(one['line'])}" if one.get("line") is not None else None
    parts = [one.get("code"), where, one.get("message"), one.get("count")]
    return ": ".join(_foreign.shown(part) for part in parts if part) or _foreign.shown(one)


def result(protocol: str, line: bytes, request: HttpRequest) -> LineResult:
    """`{"custom_id", "response": {"status_code", "body"}, "error"}`; the body may stand right under `response` (18).

    Raises:
        AnswerUnusable: It is no such line: unreadable.
    """
    try:
        found = _foreign.decoded(_LINE, line)
    except AnswerUnusable as odd:  # its `response` may be no object, and its id be readable all the same
        line_id = _named(_foreign.decoded(_ODD_LINE, line).custom_id, line)
        return LineResult(line_id=line_id, kind="unreadable", error=odd)
    line_id = _named(found.custom_id, line)
    if found.response is None:
        return not_executed(protocol, line_id, bytes(found.error), request)
    response, status = found.response, _foreign.whole(found.response.status_code, most=999)
    if present(response.body):
        body = bytes(response.body)
    else:
        body = bytes(_foreign.decoded(_ODD_LINE, line).response)
        status = 200 if status is None and present(response.data) else status
    if status == 200:
        headers = {"x-request-id": response.request_id} if isinstance(response.request_id, str) else {}
        return answered(line_id, lambda said: _listed.answer(protocol, 200, headers, said, request), body)
    if status is None or not 300 <= status <= 599:
        error = _foreign.unusable(f"a line of a result with the status {_foreign.shown(response.status_code)}")
        return LineResult(line_id=line_id, kind="unreadable", error=error)
    return refused(line_id, _errors.refusal(protocol, status, {}, body, request))


def _named(said: Any, line: bytes) -> str:
    if (line_id := _batch.line_id_of(said)) is None:
        raise _foreign.unusable("a line of a result without a readable custom_id", line)
    return line_id


def answered(
    line_id: str,
    read: Callable[[bytes], WireAnswer],
    body: bytes,
) -> LineResult:
    """A 200: vectors, or something that cannot be used and was bought all the same."""
    try:
        answer = read(body)
    except AnswerUnusable as error:
        return LineResult(line_id=line_id, kind="unusable", error=error, tokens=error.tokens_native)
    return LineResult(line_id=line_id, kind="answered", answer=answer, tokens=answer.tokens)


def refused(line_id: str, error: ProviderError) -> LineResult:
    """A refusal: of its texts, or for a passing reason."""
    return LineResult(line_id=line_id, kind="cut_off" if isinstance(error, PASSING) else "refused", error=error)


def not_executed(protocol: str, line_id: str, said: bytes, request: HttpRequest) -> LineResult:
    """No answer but an error: cut off, unless its words are surely about a text."""
    error = _errors.refusal(protocol, 400, {}, said or b"{}", request)
    words = f"{error.provider_code or ''} {error.message}"
    if isinstance(error, RequestRefused) or _NOT_EXECUTED.search(words):
        message = error.message.removeprefix("HTTP 400: ").replace("HTTP 400 without a word", "not executed")
        error = ServerFailed(message, provider_code=error.provider_code)
    return refused(line_id, error)


def present(raw: msgspec.Raw) -> bool:
    """Whether a field is there, and not null."""
    return len(memoryview(raw)) > 0 and bytes(memoryview(raw)[:4]) != b"null"


def fields_of(said: Any) -> Mapping[str, Any]:
    """An object's fields; none, where it is no object."""
    return said if isinstance(said, dict) else {}


def list_query(cursor: str | None, size: int, more: Sequence[str] = ()) -> str:
    """`?limit=…&after=…`."""
    return "&".join([*more, f"limit={size}", *([f"after={_batch.segment(cursor)}"] if cursor else [])])

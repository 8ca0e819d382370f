"""The way in for what a Batch API answers: like `_entry`, in bounds and cleaned, or an error of our tree. Pure.

`protocol` is the name of its module ("openai"), `request` the one that was sent; names of headers are in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, TypeVar, cast
from urllib.parse import SplitResult, urljoin, urlsplit

import numpy as np

from embedctl.errors import AnswerUnusable, EmbedctlError, ProviderError, ServerFailed
from embedctl.providers import _entry, _errors, _foreign
from embedctl.providers._batch import (
    MOST_LINE_BYTES,
    BatchFile,
    BatchPage,
    BatchProtocol,
    BatchState,
    CreateOutcome,
    FilePage,
    LineResult,
    Listing,
)
from embedctl.providers._contract import HttpRequest
from embedctl.providers._registry import protocol as module_of

MOST_ERRORS = 10

_ENQUEUED = re.compile(r"token_limit_exceeded|\benqueued\b|too_many_tasks", re.I)
_ENQUEUED_BY_STATUS = frozenset({"voyage", "google"})  # their 429 at create says nothing else (batch_apis.md 5, 6)
_FILE_UNSEEN = re.compile(
    r"input_no_permissions|file_not_found|no such file"
    r"|\bfiles?\b.{0,120}(?:not found|does ?n[o']t exist|(?:no|not have) (?:access|permission)|not (?:yet )?active)",
    re.I | re.S,
)
_NOT_THERE = frozenset({404, 410})
_MOVED = frozenset({301, 302, 303, 307, 308})
_MOST_LOCATION = 4096  # characters

T = TypeVar("T")


def uploaded(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> BatchFile:
    """The file that an upload made.

    Raises:
        ProviderError: Refused, or no word of a file: it may be there, `batch_files` shows it.
    """
    said = _said(protocol, status, headers, body, request)
    return _whole(_read(_module(protocol).batch_file, said, request), "file", body, request)


def files(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> FilePage:
    """A page of uploads.

    Raises:
        ProviderError: The list cannot be had: nothing is proven.
    """
    listing = _listing(protocol, status, headers, body, request)
    module = _module(protocol)
    read = [_read(module.batch_file, one, request) for one in listing.entries]
    kept = tuple(one for one in read if one is not None)
    return FilePage(files=kept, cursor=listing.cursor, complete=listing.complete and len(kept) == len(read))


def created(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> CreateOutcome:
    """What the answer to a create means; never raises."""
    if 200 <= status < 300:
        try:
            batch = _whole(_state(protocol, _foreign.loaded(body), request), "batch", body, request)
        except AnswerUnusable as odd:
            odd.message = _foreign.clean(odd.message, request)
            return CreateOutcome(kind="unknown", error=odd)
        return CreateOutcome(kind="accepted", batch=batch)
    error = _errors.refusal(protocol, status, headers, body, request)
    if not 400 <= status < 500 or isinstance(error, ServerFailed):
        return CreateOutcome(kind="unknown", error=error)
    words = f"{error.provider_code or ''} {error.message}"
    enqueued = status in (400, 429) and _ENQUEUED.search(words) is not None
    return CreateOutcome(
        kind="rejected",
        error=error,
        enqueued_refused=enqueued or (status == 429 and protocol in _ENQUEUED_BY_STATUS),
        file_unseen=not enqueued and status in (400, 403, 404) and _FILE_UNSEEN.search(words) is not None,
    )


def state(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> BatchState:
    """How a batch stands.

    Raises:
        ProviderError: No word of it.
    """
    said = _said(protocol, status, headers, body, request)
    return _whole(_state(protocol, said, request), "batch", body, request)


def page(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> BatchPage:
    """A page of batches.

    Raises:
        ProviderError: The list cannot be had: nothing is proven, nothing may be made.
    """
    listing = _listing(protocol, status, headers, body, request)
    read = [_state(protocol, one, request) for one in listing.entries]
    kept = tuple(one for one in read if one is not None)
    return BatchPage(batches=kept, cursor=listing.cursor, complete=listing.complete and len(kept) == len(read))


def cancelled(
    protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest
) -> BatchState | None:
    """What became of a cancel: how the batch stands now, None where that must be asked for.

    Raises:
        ProviderError: Refused; a batch that has ended is refused, too, so ask for its state.
    """
    if not 200 <= status < 300:
        raise _errors.refusal(protocol, status, headers, body, request)
    said = _foreign.anything(body) if body.strip() else None
    return _state(protocol, said, request)


def deleted(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> None:
    """A file is gone, now or since before.

    Raises:
        ProviderError: It is not.
    """
    if not 200 <= status < 300 and not not_there(protocol, status):
        raise _errors.refusal(protocol, status, headers, body, request)


def not_there(protocol: str, status: int) -> bool:
    """Whether an answer says that a file is not there: not yet, or not any more. Gemini says 403 for both."""
    return status in _NOT_THERE or (protocol == "google" and status == 403)


def moved(status: int, headers: Mapping[str, str], request: HttpRequest) -> HttpRequest | None:
    """Where a result's content is instead, to be asked for once, without the key; None where that is nowhere to go.

    Voyage's content may stand behind a signed link. Only over https, or at the very host that was asked, never at
    an address of a private network that was not. Its lines are read with the request that was sent first: it knows
    the key that must not be repeated.

    Source: docs.voyageai.com/docs/batch-inference (facts/providers.md 5; 2026-11-25).
    """
    location = headers.get("location", "")
    if status not in _MOVED or request.method != "GET" or not 0 < len(location) <= _MOST_LOCATION:
        return None
    if not (location.isascii() and location.isprintable()) or " " in location:
        return None
    try:
        url = urljoin(request.url, location)
        asked, parts = urlsplit(request.url), urlsplit(url)
        same = (asked.scheme, asked.hostname, asked.port) == (parts.scheme, parts.hostname, parts.port)
    except ValueError:
        return None
    if parts.username is not None or not parts.hostname or not (same or (parts.scheme == "https" and _public(parts))):
        return None
    return HttpRequest(url=url, method="GET", headers={"accept": "*/*"}, reading=request.reading)


def _public(parts: SplitResult) -> bool:
    try:
        return ip_address(parts.hostname or "").is_global
    except ValueError:  # a name
        return parts.hostname != "localhost" and "." in (parts.hostname or "")


def refused(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> ProviderError:
    """The error that an answer other than a 200 to a result's GET is; not raised here."""
    return _errors.refusal(protocol, status, headers, body, request)


def line(protocol: str, content: bytes, request: HttpRequest) -> LineResult:
    """What one line of a result says; never raises.

    Args:
        content: Of at most MOST_LINE_BYTES; a longer one is unreadable.
    """
    if len(content) > MOST_LINE_BYTES:
        return _unreadable(f"a line of {len(content)} bytes")
    try:
        with np.errstate(all="ignore"):  # as in _entry.read
            found = _module(protocol).batch_result(content, request)
    except AnswerUnusable as error:
        return _unreadable(_foreign.clean(error.message, request))
    except Exception as error:  # as in _entry.read
        return _unreadable(f"the line cannot be read ({type(error).__name__})")
    if found.error is not None:
        found.error.message = _foreign.clean(found.error.message, request)
    return replace(found, answer=_entry.cleaned(found.answer, request)) if found.answer is not None else found


def _unreadable(why: str) -> LineResult:
    return LineResult(line_id=None, kind="unreadable", error=_foreign.unusable(why))


def _module(protocol: str) -> BatchProtocol:
    return cast("BatchProtocol", module_of(protocol))


def _said(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> Any:
    """The JSON of an answer that is none of a refusal; 201 and 202 are as good as 200 here."""
    if not 200 <= status < 300:
        raise _errors.refusal(protocol, status, headers, body, request)
    try:
        return _foreign.loaded(body)
    except AnswerUnusable as error:
        error.message = _foreign.clean(error.message, request)
        raise


def _listing(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> Listing:
    said = _said(protocol, status, headers, body, request)
    found = _read(lambda value: _module(protocol).batch_page(value, request), said, request)
    return _whole(found, "list", body, request)


def _state(protocol: str, said: Any, request: HttpRequest) -> BatchState | None:
    found = _read(_module(protocol).batch_state, said, request)
    if found is None:
        return None
    words = " ".join(found.errors)
    kept_s = _module(protocol).BATCH.results_kept_s
    failed = found.state == "ended_failed"
    enqueued = failed and _ENQUEUED.search(words) is not None
    return replace(
        found,
        status=_foreign.label(found.status, request) or "",
        results_until=None if found.ended_at is None else found.ended_at + kept_s,
        errors=tuple(_foreign.clean(one, request) for one in found.errors[:MOST_ERRORS]),
        enqueued_refused=enqueued,
        file_unseen=failed and not enqueued and _FILE_UNSEEN.search(words) is not None,
    )


def _read(reader: Callable[[Any], T | None], said: Any, request: HttpRequest) -> T | None:
    """What a protocol's reader makes of JSON that may be anything."""
    try:
        return reader(said)
    except EmbedctlError:
        raise
    except Exception:  # as in _entry.read
        return None


def _whole(found: T | None, what: str, body: bytes, request: HttpRequest) -> T:
    if found is None:
        error = _foreign.unusable(f"the answer is no {what}", body)
        error.message = _foreign.clean(error.message, request)
        raise error
    return found

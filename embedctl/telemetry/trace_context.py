"""Whose trace an operation belongs to, where whoever asks for it says so (`traceparent`). Pure.

Source: https://www.w3.org/TR/trace-context/ (2026-11-26). `tracestate` is a text of somebody else's, and is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar

from embedctl.dataclass import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_LONGEST = 512
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A span in another process.

    Attributes:
        trace_id: 32 hexadecimal digits; `span_id`: 16.
        sampled: It is recorded there.
    """

    trace_id: str
    span_id: str
    sampled: bool


PARENT: ContextVar[TraceParent | None] = ContextVar("parent", default=None)
"""Of all that the current task begins, and the tasks that it begins."""


def parsed(headers: Sequence[str]) -> TraceParent | None:
    """What a request's `traceparent` says; None of none, of several, and of what is not as the standard has it."""
    found = _TRACEPARENT.fullmatch(headers[0]) if len(headers) == 1 and len(headers[0]) <= _LONGEST else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))

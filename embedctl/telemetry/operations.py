"""From events to operations: what was tried for a request, from its first attempt to its end. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import field
from datetime import timedelta

from embedctl.dataclass import dataclass
from embedctl.records import AttemptEnded, Event, OperationBegan, OperationEnded, UsageSource
from embedctl.telemetry.trace_context import PARENT, TraceParent

MOST_ATTEMPTS = 64
"""Of one operation that are kept, the last ones: refusals for the rate are not counted by --retries."""

NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class OperationSpan:
    """A request seen across its attempts and fallbacks.

    Attributes:
        attempts: The last ones; `attempts_made`: how many there were.
        tokens: Billed, of all attempts; `source`: fallback when one of these counts was made here.
        billed: The same, by who was asked.
        error: What ended it; None when there was an answer.
        began_ns, ended_ns: Unix time, from the first attempt on.
        parent: Who asked for it, in another process.
    """

    attempts: list[AttemptEnded] = field(default_factory=list)
    attempts_made: int = 0
    under_way: int = 0
    tokens: int = 0
    source: UsageSource = "native"
    billed: dict[tuple[str, str], tuple[AttemptEnded, int]] = field(default_factory=dict)
    error: str | None = None
    answered: bool = False
    began_ns: int = 0
    ended_ns: int = 0
    parent: TraceParent | None = None

    @property
    def last(self) -> AttemptEnded:
        """The attempt that decided: who answered, or failed at last."""
        return self.attempts[-1]

    def add(self, attempt: AttemptEnded) -> None:
        """One more has ended."""
        event = attempt.event
        self.attempts_made += 1
        self.began_ns = self.began_ns or span_of(attempt)[0]
        self.began_ns = min(self.began_ns, span_of(attempt)[0])
        if len(self.attempts) >= MOST_ATTEMPTS:
            del self.attempts[0]
        self.attempts.append(attempt)
        self.answered |= event.status == "ok"
        if event.billable == "yes":
            self.tokens += event.tokens_total
            self.source = "fallback" if event.usage_source == "fallback" else self.source
            key = (event.provider, event.model)
            self.billed[key] = (attempt, self.billed.get(key, (attempt, 0))[1] + event.tokens_total)


def span_of(attempt: AttemptEnded) -> tuple[int, int]:
    """When an attempt began and ended, in nanoseconds of Unix time."""
    end = attempt.event.occurred_at
    begin = end - timedelta(milliseconds=attempt.event.duration_ms or 0)
    return round(begin.timestamp() * 1_000_000) * 1000, round(end.timestamp() * 1_000_000) * 1000


class Operations:
    """Puts attempts together, and hands an operation on when it is over.

    Args:
        over: Told of each that had an attempt; it must not block.
        now_ns: Unix time.
    """

    def __init__(self, over: Callable[[OperationSpan], None], now_ns: Callable[[], int] = time.time_ns) -> None:
        self._over = over
        self._now_ns = now_ns
        self._open: dict[str, OperationSpan] = {}

    def notify(self, event: Event) -> None:
        """As an observer."""
        match event:
            case OperationBegan(operation_id):
                self._open.setdefault(operation_id, OperationSpan(parent=PARENT.get())).under_way += 1
            case AttemptEnded(usage):
                if (operation := self._open.get(usage.operation_id)) is not None:
                    operation.add(event)
            case OperationEnded(operation_id, error):
                self._ended(operation_id, error)
            case _:
                pass

    def _ended(self, operation_id: str, error: str | None) -> None:
        operation = self._open.get(operation_id)
        if operation is None:
            return  # it began before anybody looked
        operation.under_way -= 1
        operation.error = operation.error or error
        if operation.under_way:
            return
        del self._open[operation_id]
        if not operation.attempts:
            return  # nothing was ever tried
        if operation.error is None and not operation.answered:  # each text has a reason instead of a vector
            last = operation.last.event
            operation.error = last.error_class or last.status
        operation.ended_ns = max(self._now_ns(), operation.began_ns)
        self._over(operation)

"""JSON lines on stderr, written by a thread: a full pipe holds no request up. They hold no text, no vector and no key.

Nor what a provider says in words: it may quote the text that it refuses.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any, TextIO

import orjson

from embedctl.records import (
    BudgetLow,
    Event,
    FellBack,
    GaveUp,
    LimitLearned,
    Paced,
    Waiting,
    Warned,
    format_usd,
    utc_now,
)

LONGEST = 128
"""Characters of a string that a client sent."""

_MOST_WAITING = 10_000
_TOGETHER_S = 0.02
"""What comes meanwhile is written at once: each time that the thread wakes up, requests wait for it."""


def shown(text: str, longest: int = LONGEST) -> str:
    """A foreign string for a log: cut, and without anything that could forge a line or steer a terminal."""
    if len(text) <= longest and text.isprintable():
        return text
    return "".join(one if one.isprintable() else "?" for one in text[:longest])


class AccessLog:
    """Takes lines; what comes faster than it can be written is dropped and counted.

    Args:
        file: Where lines go; None: stderr.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def say(self, event: str, **fields: Any) -> None:
        """One line; fields that are None are left out."""
        line: dict[str, Any] = {"time": utc_now().isoformat(timespec="milliseconds"), "event": event}
        line |= {name: value for name, value in fields.items() if value is not None}
        if self._lines.qsize() >= _MOST_WAITING:
            self._dropped += 1
            return
        self._lines.put(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE))

    def bug(self, error: BaseException, request_id: str = "") -> None:
        """An exception that none should be: where it was, without values: those can be keys or texts."""
        places = [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_tb(error.__traceback__)]
        self.say("bug", id=request_id or None, kind=type(error).__name__, places=places[-12:])

    def notify(self, event: Event) -> None:
        """What the call point tells."""
        match event:
            case Waiting(endpoint, _, seconds):
                self.say("waiting", endpoint=endpoint, seconds=round(seconds, 3))
            case Paced(endpoint, per_second, unit):
                held = None if per_second is None else round(per_second, 3)
                self.say("paced", endpoint=endpoint, per_second=held, unit=unit)
            case GaveUp(endpoint, _):
                self.say("gave_up", endpoint=endpoint)
            case FellBack(endpoint, instead_of):
                self.say("fell_back", endpoint=endpoint, instead_of=instead_of)
            case LimitLearned(endpoint, limits):
                self.say(
                    "limit_learned", endpoint=endpoint, items=limits.items, tokens=limits.tokens, bytes=limits.bytes
                )
            case BudgetLow(name, spent, amount):
                self.say("budget_low", budget=name, spent=format_usd(spent), amount=format_usd(amount))
            case Warned(concern, subject, detail, count):
                self.say("warned", concern=concern, subject=subject, detail=shown(detail, 300), count=count or None)
            case _:
                pass

    def close(self) -> None:
        """Write what waits, for a moment at most."""
        if self._dropped:
            self.say("log_dropped", lines=self._dropped)
        self._closing.set()
        self._lines.put(None)
        self._thread.join(timeout=2)

    def _write(self) -> None:
        line = self._lines.get()
        while line is not None:
            lines = [line]
            with suppress(queue.Empty):  # all that waits, in one write
                while (line := self._lines.get_nowait()) is not None:
                    lines.append(line)
            with suppress(OSError, ValueError):  # nobody reads it any more
                self._file.buffer.write(b"".join(lines))
                self._file.flush()
            if line is not None:
                self._closing.wait(_TOGETHER_S)
                line = self._lines.get()


class ForLibraries(logging.Handler):
    """What libraries log, as lines of the same kind."""

    def __init__(self, log: AccessLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line, without the traceback's values."""
        self._log.say("library", name=record.name, level=record.levelname, message=shown(record.getMessage(), 300))


def take_libraries(log: AccessLog) -> None:
    """Their warnings go here; nothing of theirs is printed otherwise."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [ForLibraries(log)] if name in ("uvicorn", "asyncio") else []
        logger.propagate = name not in ("uvicorn", "asyncio")
        logger.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").propagate = False

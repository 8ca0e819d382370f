"""Batches on the wire server: files, batches, lines, the bill, and what goes wrong with them.

They live as long as the server, whatever becomes of its client, until POST /_reset. `batch` in a plan (plan.py) is

    {"upload": [...], "create": [...], "list": [...],     one per call, in order; then ok
     "each": {...}, "batches": [{...}, ...],              how a batch behaves; the ones made next, in order, over `each`
     "enqueued_limit": 5000, "enqueued_how": "failed",    tokens in flight; or 400, 429: refused at create
     "order": "newest|oldest", "page": 2}                 of lists

upload  ok lost (made, connection reset) lost_before (not made) cut (a part of it is kept, reset) {"status": 500}
create  ok lost late {"fault": "late", "seconds": 1} lost_before odd (made, a 200 that cannot be read) twice (two with
        one mark, the answer lost) enqueued {"fault": "enqueued", "status": 429} rate unseen (its file is not found yet)
        {"status": 503} {"status": 503, "made": true}
list    ok lost cut {"status": 500}
behaviour of a batch:
    polls 0         so many status answers say that it is not over; seconds 0.0 likewise
    words []        what they say, instead of the usual
    ends            completed expired failed cancelled; of expired and cancelled share 0.5 of the lines are done
    bill_lost       done lines of an expired batch that delivers nothing (Gemini) are billed all the same
    code            of a failed batch ("token_limit_exceeded", "input_no_permissions", …)
    left            error_file (lines that were not done stand there), absent
    fails 0.0       share of the lines that answer a 500
    lag_s 0.0       it is not in lists for so long; lag_lists 0: in so many answers
    output []       shuffled duplicated truncated unparsable empty_ids usage_missing unknown_id bare (body right under
                    response) nan null other_width long_line
    missing 0       so many reads of the content are a 404; late 0: hold half of the lines; gone: a 404 for ever
    redirect        the content stands behind a link that needs no key; or the link itself
    counts 0        request_counts are off by so many
    cancel          cancelled completed refused; cancel_polls 0: so many status answers say that it is being cancelled
    empty_ids       ids of files that are not there are "" instead of null
    link            output ids as they are said, instead of the true ones ("../../secret", a URL)
    state           more fields of its object, over the true ones

GET /_batches says what was uploaded and made; GET /_invoice how often each text was billed, online and in batches.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.support.wire.dialects import Asked

OPEN = "open"


class Invalid(Exception):
    """A file that makes its batch fail: the code, and the line."""


@dataclass
class Upload:
    """A file at the provider."""

    id: str
    name: str
    path: Path
    bytes: int
    created_at: float
    purpose: str = "batch"
    deleted: bool = False
    reads: int = 0
    dialect: str = ""
    behaviour: dict[str, Any] = field(default_factory=dict)

    def content(self) -> bytes:
        return self.path.read_bytes()


@dataclass
class Line:
    """A request line, and what became of it: done, refused, broken, left."""

    id: str
    asked: Asked
    tokens: int
    outcome: str = "left"


@dataclass
class Batch:
    """A batch, of whatever dialect.

    Attributes:
        status: `open`, `cancelling`, or the end: completed, expired, failed, cancelled.
    """

    id: str
    dialect: str
    file_id: str
    model: str
    mark: str | None
    metadata: dict[str, str]
    settings: dict[str, Any]
    key: str
    created_at: float
    behaviour: dict[str, Any]
    tokens: int = 0
    status: str = OPEN
    polls: int = 0
    cancel_polls: int = 0
    lists: int = 0
    ended_at: float | None = None
    lines: list[Line] = field(default_factory=list)
    output: Upload | None = None
    error: Upload | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.status not in (OPEN, "cancelling")

    def counts(self) -> dict[str, int]:
        """Lines in all, done, not done."""
        done = sum(line.outcome == "done" for line in self.lines)
        failed = sum(line.outcome in ("refused", "broken") for line in self.lines) if self.ended else 0
        if self.ended and self.behaviour.get("left") != "absent":
            failed = len(self.lines) - done
        off = self.behaviour.get("counts", 0)
        return {"total": len(self.lines), "completed": done + off, "failed": failed}


class Register:
    """Every file and every batch, and the order of things that go wrong."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="wire-batches-", ignore_cleanup_errors=True)
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        for file in Path(self._folder.name).iterdir():
            file.unlink()
        self.uploads: dict[str, Upload] = {}
        self.batches: dict[str, Batch] = {}
        self._numbers = itertools.count(1)
        self.set_plan({})

    def close(self) -> None:
        self._folder.cleanup()

    def set_plan(self, plan: dict[str, Any]) -> None:
        """What goes wrong from now on; what was made stays as it is."""
        self.plan = plan
        self._steps = {name: list(plan.get(name, ())) for name in ("upload", "create", "list", "batches")}

    def step(self, call: str) -> dict[str, Any]:
        """The fault of the next call of this kind."""
        if not self._steps[call]:
            return {"fault": "ok"}
        step = self._steps[call].pop(0)
        return {"fault": step} if isinstance(step, str) else {"fault": "status" if "status" in step else "ok", **step}

    def next_behaviour(self) -> dict[str, Any]:
        """Of the next batch that is made."""
        own = self._steps["batches"].pop(0) if self._steps["batches"] else {}
        return {**self.plan.get("each", {}), **own}

    def new_id(self, form: str) -> str:
        """An id in a dialect's form, never the same twice."""
        number = next(self._numbers)
        return form.format(number=number, hex=random.Random(number).randbytes(16).hex())

    def store(self, file_id: str, name: str, pieces: Iterable[bytes], purpose: str = "batch") -> Upload:
        """A file out of pieces."""
        path, size = Path(self._folder.name) / f"{len(self.uploads)}", 0
        with path.open("wb") as file:
            for piece in pieces:
                size += file.write(piece)
        self.uploads[file_id] = Upload(file_id, name, path, size, time.time(), purpose)
        return self.uploads[file_id]

    def delete(self, upload: Upload) -> None:
        upload.deleted = True
        upload.path.unlink(missing_ok=True)

    def in_flight(self, dialect: str, model: str) -> int:
        """Tokens of the batches of a model that are not over."""
        return sum(
            one.tokens
            for one in self.batches.values()
            if not one.ended and one.dialect == dialect and one.model == model
        )

    def listed(self, dialect: str) -> list[Batch]:
        """The batches that a list shows now; each answer of a list counts."""
        shown = []
        for one in self.batches.values():
            if one.dialect != dialect:
                continue
            one.lists += 1
            late = time.time() < one.created_at + one.behaviour.get("lag_s", 0)
            if not late and one.lists > one.behaviour.get("lag_lists", 0):
                shown.append(one)
        return shown if self.plan.get("order") == "oldest" else shown[::-1]

    def truth(self) -> dict[str, Any]:
        """What was made, for a test to look at."""
        return {
            "uploads": [
                {"id": one.id, "name": one.name, "bytes": one.bytes, "deleted": one.deleted, "purpose": one.purpose}
                for one in self.uploads.values()
            ],
            "batches": [
                {
                    "id": one.id,
                    "dialect": one.dialect,
                    "model": one.model,
                    "mark": one.mark,
                    "metadata": one.metadata,
                    "settings": one.settings,
                    "file_id": one.file_id,
                    "status": one.status,
                    "polls": one.polls,
                    "tokens": one.tokens,
                    "lines": [
                        {"id": line.id, "outcome": line.outcome, "inputs": len(line.asked.texts)} for line in one.lines
                    ],
                }
                for one in self.batches.values()
            ],
        }


def spoilt(lines: Iterator[bytes], faults: list[str], seed: str) -> Iterator[bytes]:
    """The lines of an output as the faults make them."""
    chance = random.Random(seed)
    if "shuffled" in faults:
        kept = list(lines)
        chance.shuffle(kept)
        lines = iter(kept)
    for number, line in enumerate(lines):
        if number == 0 and "unknown_id" in faults:
            yield _with_id(line, "nobody-asked-this")
        if number == 0 and "empty_ids" in faults:
            yield _with_id(line, "")
            continue
        if number == 1 and "unparsable" in faults:
            yield b'{"custom_id": \x00 oops\n'
            continue
        if number == 1 and "long_line" in faults:
            yield b'{"pad":"' + b"x" * 70_000_000 + b'"}\n'
        yield line
        if number == 0 and "duplicated" in faults:
            yield line


def cut(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Without the second half of the last line."""
    before = None
    for line in lines:
        if before is not None:
            yield before
        before = line
    if before is not None:
        yield before[: len(before) // 2]


def _with_id(line: bytes, said: str) -> bytes:
    value = orjson.loads(line)
    value["key" if "key" in value else "custom_id"] = said
    return orjson.dumps(value) + b"\n"

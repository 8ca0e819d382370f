"""What a journal says after its process is gone: every attempt once, every answer that was kept, nothing torn.

Only what the home itself has made is believed; what cannot be read counts as spent, as far as anything says how much.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID

from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.journal import frames
from embedctl.journal.frames import FileKind, Frame, Gap, Keyed, Scan
from embedctl.journal.old_frames import OldScan
from embedctl.journal.segments import ANSWERS, INTENTS, OLD_ANSWERS, OLD_INTENTS
from embedctl.journal.trust import Trust
from embedctl.records import JOURNAL_DAMAGED, UsageEvent, VectorRef
from embedctl.storage import locks, paths_in

ELSEWHERE_S = 60.0
"""A segment that another machine has written within so many seconds may be a living run's: locks do not tell."""


@dataclass(frozen=True, slots=True)
class RecoveredAnswer:
    """An answer as it was kept.

    Attributes:
        hashes: One 16-byte text hash per vector, in the order of the vectors.
        event: What it cost; its operation, provider and model.
        tokens_each: Tokens per text where the provider or the local tokenizer said.
        extra: What the run put beside it.
        file: Name of the file that holds it.
        checksum: Of its vectors.
    """

    hashes: bytes
    place: VectorRef
    file: str
    checksum: int
    event: UsageEvent
    tokens_each: tuple[int, ...] | None
    extra: Mapping[str, Any] | None

    @property
    def operation_id(self) -> str:
        """The operation that bought it."""
        return self.event.operation_id

    @property
    def provider(self) -> str:
        """Who answered."""
        return self.event.provider

    @property
    def model(self) -> str:
        """Which model was asked."""
        return self.event.model


@dataclass(frozen=True, slots=True)
class RecoveredSegment:
    """One segment that this home has made.

    Attributes:
        names: Of its files, intents first.
        events: One per intent or answer, those without an end are `interrupted`; and one for attempts that cannot be
            read, where there are any. The same list at every reading.
        lost_bytes: That cannot be read.
    """

    segment_id: str
    names: tuple[str, str]
    events: tuple[UsageEvent, ...]
    answers: tuple[RecoveredAnswer, ...]
    lost_bytes: int = 0

    @property
    def vectors(self) -> int:
        """How many vectors it holds."""
        return sum(answer.place.count for answer in self.answers)

    @property
    def interrupted(self) -> int:
        """How many attempts have no known end."""
        return sum(event.status == "interrupted" for event in self.events)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A whole journal, oldest segment first (to the millisecond).

    Attributes:
        remains: Answers files whose segment was being removed: spooled and published, of no more use.
        foreign: Files that this home has not made.
        living: Segments that another process is writing.
    """

    folder: Path
    segments: tuple[RecoveredSegment, ...] = ()
    remains: tuple[Path, ...] = ()
    foreign: tuple[Path, ...] = ()
    living: tuple[str, ...] = ()

    @property
    def events(self) -> Iterator[UsageEvent]:
        """Every attempt, once."""
        return (event for segment in self.segments for event in segment.events)

    @property
    def answers(self) -> Iterator[RecoveredAnswer]:
        """Every answer, oldest first."""
        return (answer for segment in self.segments for answer in segment.answers)

    @property
    def interrupted(self) -> int:
        """How many attempts have no known end."""
        return sum(segment.interrupted for segment in self.segments)

    @property
    def lost_bytes(self) -> int:
        """How much cannot be read."""
        return sum(segment.lost_bytes for segment in self.segments)


@dataclass(slots=True)
class _File:
    """What one file of a segment holds."""

    path: Path
    frames: list[Frame] = field(default_factory=list)
    gaps: Sequence[Gap] = ()
    intents: int = 0
    tokens: int = 0
    valid: int = 0
    content: int = 0
    living: bool = False
    newer: bool = False


def recover(folder: Path, trust: Trust, *, fenced: bool = False) -> Recovered:
    """Read the journal in `folder`, changing nothing; an empty one where there is none.

    Every frame is verified here, once. Only under the lock of the output it belongs to.

    Args:
        fenced: Whoever wrote it can add nothing any more, on whatever machine: it is a copy.

    Raises:
        OutputRefused, StorageFailed: The folder, or a file in it, may not be opened. What the files hold never raises.
    """
    names = {path.name for path in paths_in(folder)}
    segments: list[RecoveredSegment] = []
    remains: list[Path] = []
    foreign: list[Path] = []
    living: list[str] = []
    for suffixes in ((INTENTS, ANSWERS), (OLD_INTENTS, OLD_ANSWERS)):
        found = {name.removesuffix(suffix) for suffix in suffixes for name in names if name.endswith(suffix)}
        believed = bool(found) and (suffixes[0] == INTENTS or trust.is_registered(folder.parent))
        for segment_id in sorted(found):
            paths = [folder / f"{segment_id}{suffix}" for suffix in suffixes]
            there = [path for path in paths if path.name in names]
            if not believed:
                foreign += there
                continue
            files = [
                _read(path, segment_id, kind, trust, fenced=fenced) for path, kind in zip(paths, _KINDS, strict=True)
            ]
            if fenced:  # what an answer counts and the intents do not hold was not on its way yet: nothing was sent
                files[1].intents = files[1].tokens = 0
            if any(one.living for one in files):
                living.append(segment_id)
            elif any(one.newer for one in files):
                continue
            elif not any(one.valid for one in files) and any(one.content for one in files):
                foreign += there
            elif paths[0].name not in names:
                remains.append(paths[1])
            else:
                segments.append(_segment(segment_id, *files))
    return Recovered(folder, tuple(segments), tuple(remains), tuple(sorted(foreign)), tuple(living))


def recover_copy(path: Path, segment_id: str, trust: Trust) -> RecoveredSegment | None:
    """What the copy of a segment in the home says; None when a living process writes it, or it is none of this home.

    Raises:
        StorageFailed: It may not be opened.
    """
    copy = _read(path, segment_id, "attempts", trust)
    if copy.living or copy.newer or (copy.content and not copy.valid):
        return None
    return _segment(segment_id, copy, _File(path))


def interrupted(intent: UsageEvent) -> UsageEvent:
    """What is known of an attempt whose end is not: perhaps billed, for the tokens that were estimated.

    A vector from the cache that was not kept in time cost nothing and saved nothing.
    """
    if intent.entry_kind == "cache_hit":
        return dataclasses.replace(intent, status="interrupted", input_count=0, tokens_estimated=None)
    estimated, tokenizer_id = intent.tokens_estimated, intent.tokenizer_id
    if estimated is None:
        estimated, tokenizer_id = -(-(intent.content_bytes or 0) // 4), "bytes/4"
    return dataclasses.replace(
        intent,
        status="interrupted",
        billable="unknown",
        error_class="interrupted",
        tokens_total=0,
        quantity=None,
        tokens_native=None,
        tokens_cached=None,
        tokens_estimated=estimated,
        tokenizer_id=tokenizer_id,
        usage_source="fallback",
        cost_provider=None,
    )


_KINDS: tuple[FileKind, FileKind] = ("intents", "answers")


def _segment(segment_id: str, intents: _File, answered: _File) -> RecoveredSegment:
    begun: dict[UUID, UsageEvent] = {}
    ended: dict[UUID, UsageEvent] = {}
    answers: list[RecoveredAnswer] = []
    for frame in intents.frames:
        known = begun if frame.kind == "intent" else ended
        known.setdefault(frame.event.event_id, frame.event)
    for frame in answered.frames:
        if frame.kind == "answer" and frame.event.event_id not in ended:
            ended[frame.event.event_id] = frame.event
            place = VectorRef(segment_id, frame.vectors_at, frame.count, frame.dimensions)
            answers.append(
                RecoveredAnswer(
                    frame.hashes,
                    place,
                    answered.path.name,
                    frame.checksum,
                    frame.event,
                    frame.tokens_each,
                    frame.extra,
                )
            )
    events = [ended.pop(event_id) if event_id in ended else interrupted(event) for event_id, event in begun.items()]
    events += ended.values()
    lost = _lost(segment_id, intents, answered, events, ended=len(ended))
    return RecoveredSegment(
        segment_id,
        (intents.path.name, answered.path.name),
        (*events, *lost),
        tuple(answers),
        sum(gap.bytes for one in (intents, answered) for gap in one.gaps),
    )


def _lost(
    segment_id: str, intents: _File, answered: _File, events: Sequence[UsageEvent], *, ended: int
) -> Iterator[UsageEvent]:
    """An event for intents that cannot be read, perhaps billed, unless the ends of all of them are known.

    How many, and for how many tokens, frames say that came after them. Behind the last one nothing does: as many as
    have room there, each for twice as much as the largest that is known.

    Args:
        ended: Attempts whose end is known, and whose intent is not.
    """
    begun = [frame.event for frame in intents.frames if frame.kind == "intent"]
    number = max(intents.intents, answered.intents) - len(begun)
    tokens = max(intents.tokens, answered.tokens) - sum(map(frames.tokens_at_risk, begun))
    size = sum(gap.bytes for gap in intents.gaps)
    if behind := sum(gap.bytes for gap in intents.gaps if gap.last):
        each = max(1, intents.content // max(1, len(intents.frames)))
        most = max(1, behind // each)
        number = max(number, most)
        tokens = max(tokens, 2 * most * max(map(frames.tokens_at_risk, events), default=0))
    if number <= ended or not events:
        return
    mark = blake2b(f"lost {segment_id}".encode(), digest_size=10).hexdigest()
    like = interrupted(events[0])
    yield dataclasses.replace(
        like,
        entry_kind="usage",
        event_id=UUID(segment_id[:12] + "7" + mark[:3] + "8" + mark[3:18]) if _is_hex(segment_id) else like.event_id,
        operation_id=f"lost-{mark}",
        operation_kind="request",
        attempt=1,
        fallback_from=None,
        provider_request_id=None,
        billable="unknown",
        error_class=JOURNAL_DAMAGED,
        tokens_total=0,
        tokens_estimated=tokens,
        input_count=number,
        content_bytes=size,
        tokenizer_id=like.tokenizer_id or "bytes/4",
        usage_source="fallback",
        reason=f"{size} bytes of a journal cannot be read: up to {number} attempts",
    )


def _is_hex(segment_id: str) -> bool:
    return len(segment_id) == 32 and not segment_id.strip("0123456789abcdef")


def _read(path: Path, segment_id: str, kind: FileKind, trust: Trust, *, fenced: bool = False) -> _File:
    found = _File(path)
    with _opened(path) as fd:
        if fd is None:
            return found
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            found.content = 1
            return found
        found.content = frames.bytes_until_zeros(fd, 0)
        if not fenced and (locks.is_marked_living(fd) or _is_written_elsewhere(fd)):
            found.living = True
            return found
        is_old = path.name.endswith((OLD_INTENTS, OLD_ANSWERS))
        scan = OldScan(fd, segment_id) if is_old else Scan(fd, Keyed(trust.secret, segment_id, kind))
        found.frames = list(scan)
        found.valid, found.gaps = scan.valid, scan.gaps
        found.intents, found.tokens = scan.intents, scan.tokens
        found.newer = bool(scan.unknown_kinds)
        torn = isinstance(scan, OldScan) or (scan.torn == found.content and found.content < _HEAD_BYTES)
        if not found.valid and torn:
            found.content, found.gaps = 0, ()  # the first write was torn: nothing was sent for it
    return found


_HEAD_BYTES = 512
"""More than a file's head takes."""


def _is_written_elsewhere(fd: int) -> bool:
    """Whether another machine has written the file just now: its locks are not seen here on every share."""
    head = frames.read_head(fd)
    if head is None or head.host in ("", socket.gethostname()):
        return False
    return time.time() - os.fstat(fd).st_mtime < ELSEWHERE_S


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A file for reading; None where there is none: the process ended between creating the one and the other."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    except OSError as refusal:
        raise StorageFailed(f"cannot read {path}: {refusal.strerror}") from refusal
    try:
        yield fd
    finally:
        os.close(fd)

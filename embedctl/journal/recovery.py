"""What a journal says after its process is gone: every attempt once, every answer that was kept, nothing torn."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from embedctl.errors import StorageFailed
from embedctl.journal.frames import Frame, Scan
from embedctl.journal.segments import ANSWERS, INTENTS, VectorRef
from embedctl.records import UsageEvent


@dataclass(frozen=True, slots=True)
class RecoveredAnswer:
    """An answer as it was kept.

    Attributes:
        hashes: One 16-byte text hash per vector, in the order of the vectors.
        event: What it cost; its operation, provider and model.
        tokens_each: Tokens per text where the provider or the local tokenizer said.
        extra: What the run put beside it.
    """

    hashes: bytes
    place: VectorRef
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
    """One segment, read up to the first torn frame of each of its files.

    Attributes:
        events: One per intent or answer; those without an end are `interrupted`. The same list at every reading.
        torn: How many of the two files end in a torn frame.
    """

    segment_id: str
    events: tuple[UsageEvent, ...]
    answers: tuple[RecoveredAnswer, ...]
    torn: int

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
    """

    folder: Path
    segments: tuple[RecoveredSegment, ...] = ()
    remains: tuple[Path, ...] = ()

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
    def torn(self) -> int:
        """How many files end in a torn frame."""
        return sum(segment.torn for segment in self.segments)


def recover(folder: Path) -> Recovered:
    """Read the journal in `folder`, changing nothing; an empty one where there is none.

    Every frame's checksum is verified here, once. Only under the lock of the output it belongs to.

    Raises:
        StorageFailed: A file may not be opened. What the files hold never raises.
    """
    if not folder.is_dir():
        return Recovered(folder)
    names = {path.name for path in folder.iterdir()}
    ids = sorted(name.removesuffix(INTENTS) for name in names if name.endswith(INTENTS))
    remains = sorted(
        folder / name for name in names if name.endswith(ANSWERS) and name.removesuffix(ANSWERS) + INTENTS not in names
    )
    return Recovered(folder, tuple(_segment(folder, segment_id) for segment_id in ids), tuple(remains))


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


def _segment(folder: Path, segment_id: str) -> RecoveredSegment:
    begun: dict[UUID, UsageEvent] = {}
    ended: dict[UUID, UsageEvent] = {}
    answers: list[RecoveredAnswer] = []
    intents, intents_torn = _frames(folder / f"{segment_id}{INTENTS}", segment_id)
    answered, answers_torn = _frames(folder / f"{segment_id}{ANSWERS}", segment_id)
    for frame in intents:
        known = begun if frame.kind == "intent" else ended
        known.setdefault(frame.event.event_id, frame.event)
    for frame in answered:
        if frame.kind == "answer" and frame.event.event_id not in ended:
            ended[frame.event.event_id] = frame.event
            place = VectorRef(segment_id, frame.vectors_at, frame.count, frame.dimensions)
            answers.append(RecoveredAnswer(frame.hashes, place, frame.event, frame.tokens_each, frame.extra))
    events = [ended.pop(event_id) if event_id in ended else interrupted(event) for event_id, event in begun.items()]
    return RecoveredSegment(segment_id, (*events, *ended.values()), tuple(answers), intents_torn + answers_torn)


def _frames(path: Path, segment_id: str) -> tuple[list[Frame], bool]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return [], False  # the process ended between creating the one file and the other
    except OSError as refusal:
        raise StorageFailed(f"cannot read {path}: {refusal.strerror}") from refusal
    try:
        scan = Scan(fd, segment_id)
        return list(scan), scan.torn
    finally:
        os.close(fd)

"""One segment of a journal: intents and outcomes in one file, answers in another.

Two files, because an intent is synced before its request is sent, and must not wait for megabytes of vectors.
"""

from __future__ import annotations

import mmap
import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.journal import frames, old_frames
from embedctl.journal.frames import Begun, Draft, FileKind, Keyed, Placed, Step
from embedctl.records import UsageEvent, VectorRef, uuid7
from embedctl.storage import Buffer, Disk, locks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INTENTS = f".v{frames.FORMAT}.intents"
ANSWERS = f".v{frames.FORMAT}.answers"
COPY = f".v{frames.FORMAT}.attempts"
"""In the home: intents and outcomes of a segment, also of what was answered. See `copies.py`."""

OLD_INTENTS = f".v{old_frames.FORMAT}.intents"
OLD_ANSWERS = f".v{old_frames.FORMAT}.answers"

_INTENTS_STEP = 64 << 10
_ANSWERS_STEP = 1 << 20
_INTENT_BYTES = 4096
"""Room kept for an intent and its outcome; both are about 700 bytes."""


class Log:
    """One append-only file of frames. A write that fails leaves the end where it was: the next one goes over it."""

    def __init__(self, disk: Disk, path: Path, keyed: Keyed, begun: Begun, step: int) -> None:
        self.path = path
        self.end = 0
        self.dirty = False
        self._disk = disk
        self._keyed = keyed
        self._step = step
        self._reserved = 0
        self._can_reserve = True
        self._begun = begun
        self._letting_go = threading.Lock()
        self._fd: int | None = disk.create(path)
        locks.mark_living(self._fd)

    def append(self, drafts: Sequence[Draft]) -> list[Placed]:
        """Put frames at the end in one write; the first write begins with the file's head.

        Raises:
            StorageFailed: Nothing was added.
        """
        buffers: list[Buffer] = [] if self.end else [self._keyed.head()]
        placed: list[Placed] = []
        end, intents, tokens = self.end + sum(map(len, buffers)), self._begun.intents, self._begun.tokens
        for made in drafts:
            if made.kind == "intent":
                intents, tokens = intents + 1, tokens + frames.tokens_at_risk(made.event)
            one = self._keyed.placed(made, end, intents, tokens)
            buffers += one.buffers
            placed.append(one)
            end += one.size
        self._disk.write(self._open_fd, buffers, self.end, self.path)
        self.end, self.dirty = end, True
        self._begun.intents, self._begun.tokens = intents, tokens
        return placed

    def append_step(self, step: Step, batch: bytes, hashes: bytes) -> None:
        """Put a step of a batch at the end; as `append`."""
        head = [] if self.end else [self._keyed.head()]
        end = self.end + sum(map(len, head))
        placed = self._keyed.placed_step(step, batch, hashes, end)
        self._disk.write(self._open_fd, [*head, *placed.buffers], self.end, self.path)
        self.end, self.dirty = end + placed.size, True

    def reserve(self, more_bytes: int) -> None:
        """Make sure that `more_bytes` can still be written on a full disk, where the file system can promise it."""
        needed = self.end + more_bytes
        if needed > self._reserved and self._can_reserve:
            wanted = -(-needed // self._step) * self._step
            self._can_reserve = self._disk.reserve(self._open_fd, wanted, self.path)
            self._reserved = wanted

    def sync(self, *, alone: bool = True) -> None:
        """What was appended before the call is on the disk when it returns.

        Args:
            alone: No other thread syncs it: one that began may not have ended.
        """
        if self.dirty or not alone:
            self.dirty = False  # first, so that what is appended meanwhile is synced the next time
            self._disk.sync(self._open_fd, self.path)

    def trim(self) -> None:
        """Give back what was reserved and not used."""
        if self._reserved > self.end:
            self._disk.truncate(self._open_fd, self.end, self.path)
            self._reserved = self.end

    def close(self) -> None:
        """Give the descriptor back; views of what was written stay valid."""
        with self._letting_go:
            fd, self._fd = self._fd, None
            if fd is not None:
                self._disk.close(fd)

    def unmark(self) -> None:
        """Nothing more is written here: others may take what it holds for a dead run's."""
        with self._letting_go:
            if self._fd is not None:
                locks.unmark(self._fd)

    @property
    def _open_fd(self) -> int:
        if self._fd is None:
            raise StorageFailed(f"{self.path} is closed")
        return self._fd


@dataclass(slots=True, kw_only=True)
class Segment:
    """A segment of this process, or one taken over from a dead one (without logs: nothing is ever added to it).

    Attributes:
        syncing: Groups of intents that are on their way to the disk, in another thread.
        in_flight: Intents without outcome or answer, and the bytes each may still bring.
        events: What the spool will get, one per attempt.
        vectors: Vectors answered here, of which `released` are no longer needed.
        names: Of its files, intents first.
        copy: What its attempts cost, once more, in the home.
    """

    segment_id: str
    folder: Path
    names: tuple[str, str]
    intents: Log | None = None
    answers: Log | None = None
    copy: Log | None = None
    opened_at: float = 0.0
    sealed: bool = False
    spooling: bool = False
    spooled: bool = False
    removing: bool = False
    syncing: int = 0
    in_flight: dict[UUID, tuple[UsageEvent, int]] = field(default_factory=dict)
    events: list[UsageEvent] = field(default_factory=list)
    vectors: int = 0
    released: int = 0
    expected_bytes: int = 0

    @classmethod
    def create(cls, disk: Disk, folder: Path, secret: bytes, opened_at: float, copies: Path | None = None) -> Segment:
        """A new pair of files, durable under a name that was never used before.

        Args:
            copies: Where its copy goes; None: there is none.
        """
        segment_id, begun = uuid7().hex, Begun()

        def log(kind: FileKind, suffix: str, step: int) -> Log:
            return Log(disk, folder / f"{segment_id}{suffix}", Keyed(secret, segment_id, kind), begun, step)

        with ExitStack() as made:
            intents = log("intents", INTENTS, _INTENTS_STEP)
            made.callback(intents.close)
            answers = log("answers", ANSWERS, _ANSWERS_STEP)
            made.callback(answers.close)
            disk.sync_folder(folder)
            copy = None
            if copies is not None:
                keyed = Keyed(secret, segment_id, "attempts")
                copy = Log(disk, copies / f"{segment_id}{COPY}", keyed, Begun(), _INTENTS_STEP)
            made.pop_all()
        return cls(
            segment_id=segment_id,
            folder=folder,
            names=(intents.path.name, answers.path.name),
            intents=intents,
            answers=answers,
            copy=copy,
            opened_at=opened_at,
        )

    @property
    def idle(self) -> bool:
        """Whether nothing can be added any more."""
        return self.sealed and not self.in_flight and not self.syncing

    @property
    def logs(self) -> tuple[Log, ...]:
        """Its own open files; not the copy."""
        return tuple(log for log in (self.intents, self.answers) if log is not None)

    @property
    def dirty(self) -> bool:
        """Whether something of it is not on the disk yet."""
        return any(log.dirty for log in self.logs)

    @property
    def written_bytes(self) -> int:
        """Its size when everything in flight has come."""
        return sum(log.end for log in self.logs) + self.expected_bytes

    def expect(self, event: UsageEvent, answer_bytes: int) -> None:
        """Keep room for what `event` may bring."""
        self.in_flight[event.event_id] = (event, answer_bytes)
        self.expected_bytes += answer_bytes

    def reserve(self) -> None:
        """Keep room on the disk for the outcome or answer of every request in flight."""
        if self.intents is not None and self.answers is not None:
            self.intents.reserve(len(self.in_flight) * _INTENT_BYTES)
            self.answers.reserve(self.expected_bytes)

    def forget(self, event_id: UUID) -> None:
        """The attempt was never made: its intent could not be written."""
        _, answer_bytes = self.in_flight.pop(event_id)
        self.expected_bytes -= answer_bytes

    def arrived(self, event: UsageEvent) -> None:
        """The attempt has ended; its event is final."""
        self.forget(event.event_id)
        self.events.append(event)

    def sync(self) -> None:
        """Everything added so far is on the disk when this returns."""
        for log in self.logs:
            log.sync()

    def begin(self, drafts: Sequence[Draft]) -> None:
        """Write intents down: first in the home, so that nothing is sent that only this folder knows of.

        Raises:
            StorageFailed: None of them may be sent.
        """
        if self.copy is not None:
            self.copy.append(drafts)
        if self.intents is not None:
            self.intents.append(drafts)

    def sync_intents(self) -> None:
        """What began is on the disk when this returns.

        Raises:
            StorageFailed: It may not be: none of it may be sent.
        """
        if self.intents is not None:
            self.intents.sync(alone=False)

    def copy_ends(self, drafts: Sequence[Draft]) -> None:
        """Say in the home how attempts have ended, without what they brought.

        Raises:
            StorageFailed: It is not said: should this folder vanish, they count as perhaps billed.
        """
        if self.copy is not None:
            self.copy.append([one if one.vectors is None else frames.draft("outcome", one.event) for one in drafts])

    def drop_copy(self, disk: Disk) -> None:
        """Its events are in the spool: the home needs no copy of them."""
        if self.copy is not None:
            disk.unlink(self.copy.path)

    def unmark(self) -> None:
        """Nothing more is written: others may take what it holds for a dead run's."""
        for log in (*self.logs, self.copy):
            if log is not None:
                log.unmark()

    def remove(self, disk: Disk) -> None:
        """Remove both files, intents first: answers alone are then the rest of a removal, and nothing else."""
        intents, answers = self.names
        disk.unlink(self.folder / intents)
        disk.sync_folder(self.folder)
        disk.unlink(self.folder / answers)
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        for log in (*self.logs, self.copy):
            if log is not None:
                log.close()


class _AnswersIndex:
    """The answers of one file, in order: where their vectors are, and which of them were checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mapped: mmap.mmap | None = None
        self._starts = array("Q")
        self._sizes = array("Q")
        self._checksums = array("I")
        self._checked = bytearray()

    def add(self, start: int, size: int, checksum: int) -> None:
        self._sizes.append(size)
        self._checksums.append(checksum)
        self._checked.append(0)
        self._starts.append(start)  # last: who looks it up finds all of it

    def check(self, mapped: mmap.mmap, offset: int, end: int) -> None:
        """Raise StorageFailed unless the answer with these bytes is what was written; once an answer."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0 or end > self._starts[at] + self._sizes[at]:
            raise StorageFailed(f"{self.path} holds no vectors at {offset}")
        if self._checked[at]:
            return
        start, stop = self._starts[at], self._starts[at] + self._sizes[at]
        if mapped.size() < stop or frames.vectors_checksum(memoryview(mapped)[start:stop]) != self._checksums[at]:
            raise StorageFailed(
                f"{self.path} was changed after it was written: vectors at {start} are not what was bought",
                hint="look at the disk, then run the same command again: these vectors are bought anew",
            )
        self._checked[at] = 1


class Views:
    """Vectors in answers files as arrays, mapped and not copied; each answer is checked when it is first read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answered: dict[str, _AnswersIndex] = {}

    def expect(self, segment: str, name: str, start: int, size: int, checksum: int) -> None:
        """Vectors are there.

        Args:
            name: Of the file.
            start: Byte at which they begin.
            size: In bytes.
        """
        if segment not in self._answered:
            self._answered[segment] = _AnswersIndex(self._folder / name)
        self._answered[segment].add(start, size, checksum)

    def read(self, place: VectorRef) -> NDArray[np.float32]:
        """float32, shape (n, D), read-only; stays valid when the file is removed.

        Raises:
            StorageFailed: The file is gone, shorter than that, or was changed after it was written.
        """
        import numpy as np

        answered = self._answered.get(place.segment)
        if answered is None:
            raise StorageFailed(f"segment {place.segment} of {self._folder} is gone")
        count = place.count * place.dimensions
        end = place.offset + count * 4
        mapped = answered.mapped
        if mapped is None or len(mapped) < end:
            answered.mapped = mapped = _mapped(answered.path, end)
        answered.check(mapped, place.offset, end)
        return np.frombuffer(mapped, "<f4", count, place.offset).reshape(place.count, place.dimensions)

    def release_pages(self) -> None:
        """Give pages back that were read: they stay in the system's cache, but are no longer this process's memory."""
        if (advice := getattr(mmap, "MADV_DONTNEED", None)) is not None:
            for answered in list(self._answered.values()):
                if answered.mapped is not None:
                    answered.mapped.madvise(advice)

    def forget(self, segment: str) -> None:
        """Let go of a segment's memory once the last array of it is gone."""
        self._answered.pop(segment, None)


def _mapped(path: Path, end: int) -> mmap.mmap:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            # Length 0: all there is. A length asked for first may be gone when what was reserved is given back.
            mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except (OSError, ValueError) as refusal:
        raise StorageFailed(f"cannot read {path}: {refusal}") from refusal
    if len(mapped) < end:
        raise StorageFailed(
            f"{path} is shorter than what was written to it",
            hint="look at the disk, then run the same command again: these vectors are bought anew",
        )
    return mapped

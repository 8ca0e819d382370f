"""What a run has of batches at its provider, durably: each step is on the disk before the next call is made.

    planned ─▶ upload ─▶ uploaded ─▶ creating ─▶ create ─▶ submitted ─▶ poll, read ─▶ collected ─▶ delete ─▶ cleaned

From `creating` on money is at risk, until `collected`; `dropped` are batches that were surely never made. One file a
run, beside its segments and once more in the home, so that a folder which is gone still tells what it has under way.
Nothing is ever added to the file of a dead process: whoever goes on writes down first, in a file of its own, what is
still under way, and then removes the old one. The frames are those of `frames.py`, kind by step; `Batch` is their JSON.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import field, fields, replace
from decimal import Decimal
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from embedctl.dataclass import dataclass
from embedctl.errors import Locked, StorageFailed
from embedctl.journal import frames
from embedctl.journal.frames import Begun, Keyed, Scan, Step
from embedctl.journal.segments import Log
from embedctl.journal.trust import Trust
from embedctl.records import TEXT_HASH_BYTES, decoder, uuid7
from embedctl.storage import DISK, Disk, locks, paths_in

BATCHES = f".v{frames.FORMAT}.batches"

MARK_PREFIX = "ec-"

DAY_S = 86_400.0
KEPT_DAYS = 30
"""Results are kept so long where their provider does not say."""

_FILE_STEP = 64 << 10


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One line of a batch: texts of one workspace that are answered together.

    Attributes:
        tokens: Of all its texts, counted here before they were sent.
        characters: 0 of token arrays.
        workspace: Its number in `Batch.workspaces`.
    """

    texts: int
    tokens: int
    content_bytes: int
    characters: int
    workspace: int = 0


@dataclass(slots=True, kw_only=True)
class Batch:
    """One batch, from its plan to its end.

    Attributes:
        mark: Names it everywhere: its file at the provider, the batch, its line ids, its events.
        step: How far it is.
        output: What its vectors are for. `folder`: that output's state folder.
        options: Of the run, those that its space hangs on; and `key`, the service's key through which it is paid.
        planned_at: Unix seconds. `since` of the first batch that its texts were in; deadlines count from there.
            `created_at`: when it was about to be made. `unanswered_at`: when that had no answer; 0: it had one.
        account: Fingerprint of the key; only with it the batch is to be found.
        tokens: Of all lines, `risk` of those of each workspace, as `tokenizer_id` counts. `unit_price` is USD per
            million, at the batch's price; None: nobody knows.
        lines: In the order of their ids; only frames with text hashes hold them.
        hashes: Of all texts, in the order of the lines; not part of the JSON.
        file_id, batch_id: At the provider. `twin`: of two batches with one mark, the one that is not wanted.
        status: The provider's word for how it stands.
        lines_done: As the provider says; `answered`, `refused` as they were collected.
        refused: Numbers of lines that the provider declined, or answered unusably: no batch for these again.
        results_until: Unix seconds; likewise `expires_at`.
    """

    mark: str
    step: Step = "planned"
    provider: str
    model: str
    space_id: str | None = None
    account: str = ""
    price_as: str | None = None
    unit_price: Decimal | None = None
    folder: str = ""
    output: str = ""
    ledger: str = ""
    run_id: UUID | None = None
    job_id: str | None = None
    purpose: str = "ingest"
    options: dict[str, Any] = field(default_factory=dict)
    workspaces: list[str] = field(default_factory=list)
    planned_at: float = 0.0
    since: float = 0.0
    created_at: float = 0.0
    unanswered_at: float = 0.0
    content_bytes: int = 0
    texts: int = 0
    tokens: int = 0
    tokenizer_id: str | None = None
    lines_total: int = 0
    lines: list[Line] = field(default_factory=list)
    risk: dict[str, int] = field(default_factory=dict)
    file_id: str | None = None
    batch_id: str | None = None
    twin: bool = False
    status: str = ""
    cancelling: bool = False
    lines_done: int | None = None
    expires_at: float | None = None
    results_until: float | None = None
    result_ids: list[str] = field(default_factory=list)
    answered: int = 0
    refused: list[int] = field(default_factory=list)
    hashes: bytes = b""
    _firsts: list[int] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        """Whether money is at risk: it is made, or may be, and not collected."""
        return self.step in ("creating", "submitted")

    @property
    def lost_at(self) -> float:
        """When its results are gone at the latest, in Unix seconds."""
        return self.results_until or (self.expires_at or self.planned_at + DAY_S) + KEPT_DAYS * DAY_S

    @property
    def key(self) -> str:
        """Tells a twin from the batch that is wanted."""
        return f"{self.mark}/{self.batch_id}" if self.twin else self.mark

    def cost_at_risk(self, workspace: str | None = None) -> Decimal | None:
        """USD that it comes to at most, of one workspace's lines or (None) of all; None when nobody knows."""
        if self.unit_price is None:
            return None
        tokens = self.tokens if workspace is None else self.risk.get(workspace, 0)
        return self.unit_price * tokens / 1_000_000

    def line_id(self, number: int) -> str:
        """How a line is called at the provider."""
        return f"l-{number}"

    def line_number(self, line_id: str) -> int | None:
        """The line that is called so; None: none is."""
        digits = line_id.removeprefix("l-")
        number = int(digits) if digits.isdecimal() and len(digits) < 10 and line_id != digits else -1
        return number if 0 <= number < len(self.lines) and self.line_id(number) == line_id else None

    def event_id(self, number: int) -> UUID:
        """The same for a line whoever collects it, and however often."""
        digest = blake2b(f"{self.provider}/{self.batch_id}/{number}".encode(), digest_size=10).hexdigest()
        stamp = self.mark.removeprefix(MARK_PREFIX)[:12]
        return UUID(f"{stamp}7{digest[:3]}8{digest[3:18]}")

    def operation_id(self, number: int) -> str:
        """Of a line."""
        return blake2b(f"{self.mark}/{number}".encode(), digest_size=10).hexdigest()

    def hashes_of(self, number: int) -> bytes:
        """Text hashes of a line."""
        if len(self._firsts) != len(self.lines):
            self._firsts = [0, *accumulate(line.texts for line in self.lines)][:-1]
        first = self._firsts[number]
        return self.hashes[first * TEXT_HASH_BYTES : (first + self.lines[number].texts) * TEXT_HASH_BYTES]

    @property
    def payers(self) -> list[str]:
        """The workspace of each text."""
        return [self.workspaces[line.workspace] for line in self.lines for _ in range(line.texts)]

    @property
    def refused_hashes(self) -> bytes:
        """Of the lines that the provider declined."""
        return b"".join(self.hashes_of(number) for number in self.refused if number < len(self.lines))


def new_mark() -> str:
    """A mark that nobody ever had; begins with the time, as all ids here do."""
    return MARK_PREFIX + uuid7().hex


_ENCODER = msgspec.json.Encoder()
_DECODER = decoder(Batch)
_WITHOUT = ("lines",)
_NEVER = ("hashes", "_firsts")


def _encoded(batch: Batch, *, whole: bool) -> bytes:
    said: dict[str, Any] = {
        one.name: getattr(batch, one.name)
        for one in fields(Batch)
        if one.name not in _NEVER and (whole or one.name not in _WITHOUT)
    }
    return _ENCODER.encode(said)


class BatchLog:
    """The file of one run. For one thread at a time; made when there is first something to write.

    Args:
        copies: The folder of the home where it stands once more.
    """

    def __init__(self, folder: Path, copies: Path, *, secret: bytes, disk: Disk = DISK) -> None:
        self._folders = (folder, copies)
        self._secret = secret
        self._disk = disk
        self._logs: list[Log] = []
        self._keyed: Keyed | None = None
        self._told: set[str] = set()

    def put(self, batch: Batch, *, sync: bool = True) -> None:
        """Write down how far a batch is; on the disk when this returns, unless nothing hangs on it.

        Raises:
            StorageFailed, OutputRefused: The next step must not be taken.
        """
        if self._keyed is None:
            self._create()
        keyed = self._keyed
        assert keyed is not None  # noqa: S101 - just made
        whole = batch.key not in self._told
        content = _encoded(batch, whole=whole)
        for log in self._logs:
            log.append_step(batch.step, content, batch.hashes if whole else b"")
            if sync:
                log.sync()
        self._told.add(batch.key)

    def _create(self) -> None:
        """Both files, the folder's first: an empty one in the home is known as this output's by its name alone."""
        segment = uuid7().hex
        self._keyed = Keyed(self._secret, segment, "batches")
        for folder in self._folders:
            self._disk.make_folder(folder)
            log = Log(self._disk, folder / f"{segment}{BATCHES}", self._keyed, Begun(), _FILE_STEP)
            self._logs.insert(0, log)  # written to in the home first: nothing is made that only this folder knows of
            self._disk.sync_folder(folder)

    @property
    def names(self) -> set[str]:
        """Of its files: what is not to be removed with those of dead runs."""
        return {log.path.name for log in self._logs}

    def close(self) -> None:
        """Nothing more is written."""
        for log in self._logs:
            log.unmark()
            log.close()

    def remove(self) -> None:
        """Nothing of what it says is needed any more."""
        self.close()
        for log in self._logs:
            self._disk.unlink(log.path)
        self._logs, self._keyed, self._told = [], None, set()


@dataclass(frozen=True, slots=True)
class Found:
    """Batches that files of dead processes tell of.

    Attributes:
        batches: By key, in the order in which they were planned; those that are over for good included.
        paths: Of the files, the copies in the home included; each copy before what tells whose it is.
    """

    batches: dict[str, Batch] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()

    @property
    def pending(self) -> list[Batch]:
        """Those that are at risk."""
        return [one for one in self.batches.values() if one.pending]

    @property
    def unfinished(self) -> bool:
        """Whether something is left to do with their provider."""
        return any(one.pending or one.step == "collected" for one in self.batches.values())


def take_over(folder: Path, copies: Path, trust: Trust, *, without: Iterable[str] = ()) -> Found:
    """What dead runs of an output have under way. Only under the lock of that output.

    Args:
        without: Names of files that are this process's own.

    Raises:
        Locked: A living process writes one of them.
        StorageFailed: A file may not be opened.
    """
    skipped = set(without)
    names = {path.name for path in _files(folder)} - skipped
    state = str(folder.parent.absolute())
    found: dict[str, Batch] = {}
    paths: list[Path] = []
    for name in sorted(names | ({path.name for path in _files(copies)} - skipped)):
        variants = [_read(place / name, trust, refuse_living=name in names) for place in (folder, copies)]
        said = max(variants, key=len)
        if name not in names and not any(one.folder == state for one in said):
            continue  # another output's
        paths += [place / name for place in (copies, folder) if (place / name).exists()]
        _merge(found, said)
    return Found(found, tuple(paths))


def known(copies: Path, trust: Trust) -> list[tuple[Path, list[Batch], bool]]:
    """What all runs of this home have of batches: file, its batches, and whether a living process writes it."""
    told = []
    for path in _files(copies):
        found: dict[str, Batch] = {}
        _merge(found, _read(path, trust))
        told.append((path, [*found.values()], locks.is_held(path)))
    return told


def _merge(found: dict[str, Batch], said: Sequence[Batch]) -> None:
    """Later words replace earlier ones; lines and hashes are told once."""
    for batch in said:
        before = found.get(batch.key)
        if not batch.hashes and before is not None:
            batch = replace(batch, lines=before.lines, hashes=before.hashes)
        found[batch.key] = batch


def _files(folder: Path) -> list[Path]:
    return paths_in(folder, f"*{BATCHES}")


def _read(path: Path, trust: Trust, *, refuse_living: bool = False) -> list[Batch]:
    """Every step that a file tells of, in order; nothing where there is no such file, or it is not this home's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    except OSError as refusal:
        raise StorageFailed(f"cannot read {path}: {refusal.strerror}") from refusal
    try:
        if refuse_living and locks.is_marked_living(fd):
            raise Locked(f"another process writes {path}", hint="wait for it to end, or run again later")
        scan = Scan(fd, Keyed(trust.secret, path.name.removesuffix(BATCHES), "batches"))
        for _ in scan:
            pass
        steps = scan.steps
    finally:
        os.close(fd)
    told = []
    for one in steps:
        try:
            batch = _DECODER.decode(one.batch)
        except msgspec.MsgspecError as problem:
            raise StorageFailed(
                f"{path} says of a batch what this version does not understand",
                hint="a later version wrote it: go on with that one",
            ) from problem
        batch.hashes = one.hashes
        told.append(batch)
    return told

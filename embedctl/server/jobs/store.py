"""Jobs and files on the disk: a folder for each below one root, `job.json` or `file.json` in it, replaced whole.

ROOT/JOB/    job.json  input.…  out/  receipt-N.json  log  what is made of the result
ROOT/FILE/   file.json  content
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError
from embedctl.server.refusals import Refused

_T = TypeVar("_T")

State = Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]
Kind = Literal["job", "media", "batch"]

OPEN: frozenset[State] = frozenset({"queued", "running", "waiting"})
"""States of a job that has not ended."""

_PREFIX: dict[str, str] = {"job": "job_", "media": "mej_", "batch": "batch_", "file": "file-"}
_ID = re.compile(r"(?:job_|mej_|batch_|file-)[0-9a-f]{24}\Z")
_RECORD_BYTES = 4 << 20
UPLOAD = "upload-"
RECORD, FILE, CONTENT = "job.json", "file.json", "content"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, as its file has it. Times in Unix seconds, money as decimal strings.

    Attributes:
        key: Id of the key that pays; "" where the server takes everybody.
        model, provider: What it is embedded with.
        inputs: Files that are read.
        flags: What `batch run` is told beside who pays and where things are.
        fingerprint: Equal for what would be the same job.
        priority: Larger goes first.
        tries: Children that were started; `deaths`: of these, those that a signal ended unasked.
        again_at: When a waiting job is looked at again; `waits` counts how often in a row it was.
        cancel: It is to end.
        error: {code, message}; what ended it.
        counts: Of the last receipt: rows, vectors, failed, skipped.
        estimate_usd: What was thought beforehand that it costs.
        tokens, cost_usd, at_risk_usd: Of all its children, as the ledger has it; None while nobody has asked.
        accounted: The ledger was asked after its end.
        batch: What OpenAI's Batch API shows beside that.
    """

    id: str
    kind: Kind
    workspace: str
    key: str
    model: str
    provider: str
    created_at: float
    updated_at: float
    state: State = "queued"
    inputs: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    fingerprint: str = ""
    idempotency_key: str | None = None
    media_id: str | None = None
    priority: int = 50
    tries: int = 0
    deaths: int = 0
    waits: int = 0
    again_at: float | None = None
    cancel: bool = False
    expired: bool = False
    retry_failed: bool = False
    started_at: float | None = None
    finished_at: float | None = None
    error: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    run_id: str | None = None
    estimate_usd: str | None = None
    tokens: int | None = None
    cost_usd: str | None = None
    at_risk_usd: str | None = None
    accounted: bool = False
    batch: dict[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state in OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that was uploaded, or that a batch made.

    Attributes:
        job: Whose folder holds it as `name`; None: its own folder does.
    """

    id: str
    workspace: str
    filename: str
    bytes: int
    purpose: str
    created_at: float
    expires_at: float
    job: str | None = None
    name: str = CONTENT


def new_id(kind: str) -> str:
    """Of a job of this kind, or of a file: nobody guesses it."""
    return _PREFIX[kind] + secrets.token_hex(12)


class JobStore:
    """All jobs and files; those in memory are as the disk has them. Used from the loop and from threads.

    Args:
        root: Nothing outside of it is made, served or removed.
    """

    def __init__(self, root: Path, *, keep_s: float, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._keep_s = keep_s
        self.clock = clock
        self._jobs: dict[str, Job] = {}
        self._files: dict[str, StoredFile] = {}
        self._open: set[str] = set()
        self._unaccounted: set[str] = set()
        self._lock = threading.RLock()

    def open(self) -> None:
        """Read all that is there. What is no job or file of ours is passed over.

        Raises:
            OutputRefused: The root is a link, or another user's.
        """
        storage.check_own_folder(self.root)
        storage.DISK.make_folder(self.root)
        with os.scandir(self.root) as entries:
            found = [(one.name, one.path, one.is_dir(follow_symlinks=False)) for one in entries]
        for name, path, is_folder in found:
            if not is_folder and name.startswith(UPLOAD):  # of a server that was killed
                with suppress(OSError):
                    Path(path).unlink()
        names = [name for name, _, is_folder in found if is_folder and _ID.match(name)]
        for name in names:
            if (job := _loaded(self.root / name / RECORD, Job)) is not None and job.id == name:
                self._take(job)
            elif (file := _loaded(self.root / name / FILE, StoredFile)) is not None and file.id == name:
                self._files[name] = file

    def upload(self) -> Path:
        """Where a body goes while it comes."""
        return self.root / f"{UPLOAD}{secrets.token_hex(12)}"

    def folder(self, name: str) -> Path:
        """Of a job or file.

        Raises:
            Refused: That is no id, so that no path can be made of it.
        """
        if not _ID.match(name):
            raise Refused("job_not_found", "there is no such job")
        return self.root / name

    # jobs

    def add(self, job: Job) -> None:
        """A new one; its folder may be there with its input."""
        storage.DISK.make_folder(self.folder(job.id))
        self.put(job)

    def put(self, job: Job) -> Job:
        """As it is now, on the disk and here."""
        with self._lock:
            job = replace(job, updated_at=self.clock())
            storage.replace(storage.DISK, self.folder(job.id) / RECORD, orjson.dumps(asdict(job)))
            self._take(job)
            return job

    def _take(self, job: Job) -> None:
        self._jobs[job.id] = job
        for names, holds in ((self._open, job.is_open), (self._unaccounted, not job.is_open and not job.accounted)):
            (names.add if holds else names.discard)(job.id)

    def change(self, job_id: str, **changes: Any) -> Job:
        """The job with these fields changed."""
        with self._lock:
            return self.put(replace(self._jobs[job_id], **changes))

    def job(self, job_id: str) -> Job | None:
        """The one with this id."""
        return self._jobs.get(job_id)

    def jobs(self, workspace: str | None = None, kinds: frozenset[str] | None = None) -> list[Job]:
        """Newest first; of one workspace, or of all."""
        with self._lock:
            found = [
                one
                for one in self._jobs.values()
                if workspace in (None, one.workspace) and (kinds is None or one.kind in kinds)
            ]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    def open_jobs(self) -> list[Job]:
        """Those that have not ended."""
        with self._lock:
            return [self._jobs[name] for name in self._open]

    def unaccounted(self) -> list[str]:
        """Those that have ended, and nobody has asked yet what they came to."""
        with self._lock:
            return [*self._unaccounted]

    def same(self, workspace: str, fingerprint: str, idempotency_key: str | None) -> Job | None:
        """The newest job that a request means which was made before.

        Raises:
            Refused: Its idempotency key was that of another request.
        """
        for one in self.jobs(workspace):
            if idempotency_key is not None:
                if one.idempotency_key == idempotency_key:
                    if one.fingerprint != fingerprint:
                        raise Refused("idempotency_mismatch", "this Idempotency-Key belongs to another request")
                    return one
            elif one.fingerprint == fingerprint:
                return one
        return None

    # files

    def add_file(self, file: StoredFile) -> StoredFile:
        """One whose content is there."""
        storage.DISK.make_folder(self.folder(file.id))
        storage.replace(storage.DISK, self.folder(file.id) / FILE, orjson.dumps(asdict(file)))
        self._files[file.id] = file
        return file

    def file(self, workspace: str | None, file_id: str) -> StoredFile:
        """The one with this id.

        Args:
            workspace: Whose it must be; None: anybody's.

        Raises:
            Refused: There is none, or it is somebody else's: told alike.
        """
        found = self._files.get(file_id)
        if found is None or workspace not in (None, found.workspace):
            raise Refused("file_not_found", "there is no such file")
        return found

    def files(self, workspace: str | None) -> list[StoredFile]:
        """Newest first."""
        found = [one for one in list(self._files.values()) if workspace in (None, one.workspace)]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    def content(self, file: StoredFile) -> Path:
        """Where a file's bytes are."""
        return self.folder(file.job or file.id) / Path(file.name).name

    # what it takes, and what goes

    def used_bytes(self, workspace: str) -> int:
        """What all jobs and files of a workspace take. Takes its time."""
        names = {one.id for one in self.jobs(workspace)} | {one.id for one in self.files(workspace)}
        return sum(_size(self.root / name) for name in names)

    def remove(self, name: str) -> None:
        """A job or a file, with all that is in its folder."""
        with self._lock:
            self._jobs.pop(name, None)
            self._open.discard(name)
            self._unaccounted.discard(name)
            self._files.pop(name, None)
        with suppress(EmbedctlError):
            storage.remove_tree(storage.DISK, self.folder(name))

    def expire(self) -> int:
        """Remove what has been there for as long as it may; how many went."""
        before = self.clock() - self._keep_s
        old = [one.id for one in self.jobs() if not one.is_open and (one.finished_at or one.updated_at) < before]
        old += [one.id for one in self.files(None) if one.expires_at < self.clock() and not self._is_read(one)]
        for name in old:
            self.remove(name)
        return len(old)

    def _is_read(self, file: StoredFile) -> bool:
        return any(one.is_open and one.batch.get("input_file_id") == file.id for one in self.jobs(file.workspace))


def _loaded(path: Path, kind: type[_T]) -> _T | None:
    """A record; None where there is none, or nothing sensible."""
    try:
        found = orjson.loads(storage.read_small(path, max_bytes=_RECORD_BYTES, follow=False))
        known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
        return kind(**{name: value for name, value in found.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _size(folder: Path) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it goes meanwhile
                total += Path(base, name).lstat().st_size
    return total

"""A journal's files on their way to a store: nothing is sent before its intent is there.

Two lanes that do not wait for each other. Intents go as entries of the shard's log, before their requests are sent;
answers go as they are written, a few objects at a time, none of which waits for the one before; what counts as there
has nothing missing before it. The files themselves stay on this disk, which may vanish: parts are made from them.
Nothing is synced here, for the store is what lasts; where it is a folder of the same disk, the file of answers is
itself the object, and nothing is written twice.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import field
from pathlib import Path

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, EmbedctlError, StorageFailed
from embedctl.journal import frames
from embedctl.journal.segments import ANSWERS, INTENTS
from embedctl.journal.shard_log import Entry, ShardLog
from embedctl.records import VectorRef
from embedctl.storage import Buffer, Disk

MOST_AT_ONCE = 8 << 20
"""Bytes of one object with answers."""

UPLOADS = 4
"""Objects with answers that are on their way at the same time."""

_LINGER_S = 0.02
"""How long an answer waits for others that go with it, while few are on their way."""

GATHER_S = 0.05
"""How long an intent waits for others that go with it, while enough are ready."""

_END_S = 30.0
"""How long what is on its way is waited for at the end."""

_READERS = 8


@dataclass(slots=True, eq=False)
class _Shipped:
    """A file of the journal.

    Attributes:
        is_held: It is itself the object on the store.
        end: Bytes that are written, of which those up to `taken` are on their way, and up to `shipped` on the store.
        arrived: Objects that are on the store, from where to where, behind one that is not.
    """

    path: Path
    segment: str
    fd: int
    is_held: bool = False
    end: int = 0
    taken: int = 0
    shipped: int = 0
    arrived: dict[int, int] = field(default_factory=dict)

    def arrive(self, start: int, end: int) -> None:
        """An object is there."""
        self.arrived[start] = end
        while self.shipped in self.arrived:
            self.shipped = self.arrived.pop(self.shipped)


class ShippingDisk(Disk):
    """A disk whose journal files are on a store when they are synced. To be closed."""

    def __init__(self, log: ShardLog) -> None:
        self._log = log
        self._files: dict[str, _Shipped] = {}
        self._intents = threading.Lock()
        self._answers = threading.Condition()
        self._due: deque[_Shipped] = deque()
        self._urgent = threading.Event()
        self._failure: BaseException | None = None
        self._closed = False
        self._told: Callable[[], object] = lambda: None
        self._taking = threading.Lock()
        self._uploaders = [
            threading.Thread(target=self._upload, name=f"journal-uploader-{number}", daemon=True)
            for number in range(UPLOADS)
        ]
        for uploader in self._uploaders:
            uploader.start()

    # the disk

    def create(self, path: Path, *, mode: int = 0o600) -> int:
        """A new file; one of a journal is shipped from now on."""
        fd = super().create(path, mode=mode)
        for suffix in (INTENTS, ANSWERS):
            if path.name.endswith(suffix):
                reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                segment = path.name.removesuffix(suffix)
                is_held = suffix == ANSWERS and self._log.store.hold(self._piece_name(segment, 0), path)
                self._files[path.name] = _Shipped(path, segment, reading, is_held)
        return fd

    def _piece_name(self, segment: str, start: int) -> str:
        return f"{self._log.folder}answers/{segment}.{start}"

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int, path: Path) -> int:
        """Write here; answers are on their way when this returns."""
        count = super().write(fd, buffers, offset, path)
        file = self._files.get(path.name)
        if file is not None:
            with self._answers:
                file.end = max(file.end, offset + count)
                if path.name.endswith(ANSWERS) and file not in self._due:
                    self._due.append(file)
                    self._answers.notify_all()
        return count

    def sync(self, fd: int, path: Path) -> None:
        """What was written before the call is on the store when it returns.

        Raises:
            ShardLost: Another worker has the shard.
            StoreUnreachable: Nobody knows.
        """
        file = self._files.get(path.name)
        if file is None:
            return
        if path.name.endswith(INTENTS):
            self._ship_intents(file)
        else:
            self._wait_for(file, file.end)

    def sync_folder(self, folder: Path) -> None:
        """Nothing: names here need not last."""

    def unlink(self, path: Path, *, folder_fd: int | None = None) -> None:
        """Remove a file here; what is on the store stays."""
        super().unlink(path, folder_fd=folder_fd)
        file = self._files.pop(path.name, None)
        if file is not None:
            with self._answers:
                if file in self._due:
                    self._due.remove(file)
                os.close(file.fd)
                file.fd = -1

    # lanes

    def _ship_intents(self, file: _Shipped) -> None:
        with self._intents:
            end = file.end
            if end > file.shipped:
                body = os.pread(file.fd, end - file.shipped, file.shipped)
                self._log.append({"segment": file.segment, "offset": file.shipped}, body)
                file.shipped = end

    def _upload(self) -> None:
        try:
            while True:
                with self._taking:
                    taken = self._next_piece()
                    if taken is None:
                        return
                    file, start, end, piece = taken
                    if isinstance(piece, int):  # what is synced meanwhile would be synced once more
                        self._sync_held(file, piece)
                if not isinstance(piece, int):
                    self._log.put_beside(self._piece_name(file.segment, start), piece)
                del taken, piece  # unmapped
                with self._answers:
                    file.arrive(start, end)
                    self._answers.notify_all()
                self._told()
        except BaseException as error:  # whoever waits must learn of it, whatever it is
            self._fail(error)

    def _sync_held(self, file: _Shipped, fd: int) -> None:
        self._log.check()
        try:
            super().sync(fd, file.path)
        finally:
            os.close(fd)

    def _next_piece(self) -> tuple[_Shipped, int, int, memoryview | int] | None:
        """From where to where a file is due, and these bytes, or a descriptor of its own for one that is held."""
        with self._answers:
            while not self._is_due():
                self._answers.wait()
        if not self._closed:
            self._urgent.wait(_LINGER_S)
            self._urgent.clear()
        with self._answers:
            while True:
                while not self._is_due():
                    self._answers.wait()
                if not self._due or self._failure is not None:
                    return None
                file = self._due[0]
                if file.taken >= file.end or file.fd < 0:
                    self._due.popleft()
                    continue
                start = file.taken
                if file.is_held:
                    file.taken = file.end
                    return file, start, file.end, os.dup(file.fd)
                file.taken = min(file.end, start + MOST_AT_ONCE)
                return file, start, file.taken, _mapped(file.fd, start, file.taken)

    def _is_due(self) -> bool:
        return bool(self._due) or self._closed or self._failure is not None

    def _wait_for(self, file: _Shipped, end: int) -> None:
        with self._answers:
            while file.shipped < end and file.fd >= 0:
                self.check()
                self._urgent.set()
                self._answers.wait()

    def _fail(self, error: BaseException) -> None:
        with self._answers:
            self._failure = error
            self._answers.notify_all()
        self._told()

    def check(self) -> None:
        """Raise why answers get to the store no more, when they do not."""
        if isinstance(self._failure, EmbedctlError):
            raise type(self._failure)(self._failure.message, hint=self._failure.hint)
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StorageFailed("the journal's way to the store is closed")

    # for the journal

    @property
    def is_silent(self) -> bool:
        """Whether what was announced may have been given to another worker meanwhile: `hold` finds out."""
        return self._log.is_silent

    def hold(self) -> None:
        """See `ShardLog.hold`."""
        self._log.hold()

    def tell(self, told: Callable[[], object]) -> None:
        """Call `told`, in a thread, whenever more of the answers is on the store, or will never be."""
        self._told = told

    @property
    def has_failed(self) -> bool:
        """Whether answers get to the store no more."""
        return self._failure is not None or self._closed

    def has(self, segment: str, end: int) -> bool:
        """Whether a segment's answers up to the byte `end` are on the store, or nobody waits for them any more."""
        file = self._files.get(f"{segment}{ANSWERS}")
        return file is None or file.shipped >= end or self.has_failed

    def hurry(self) -> None:
        """Answers wait for no others that might go with them."""
        self._urgent.set()

    def end(self) -> None:
        """Nothing more is shipped."""
        with self._answers:
            self._closed = True
            self._due.clear()
            self._answers.notify_all()
        self._urgent.set()
        until = time.monotonic() + _END_S
        for uploader in self._uploaders:
            uploader.join(max(0.0, until - time.monotonic()))
        for file in self._files.values():
            with suppress(OSError):
                os.close(file.fd)
        self._files.clear()


class ShippingTurnstile:
    """Lets requests go whose intents are on the store, while the shard is this worker's. For one event loop.

    What a dead worker loses is what was sent and is not on the store: never more than both limits together. Only their
    sum stops a request: where answers come all at once, a limit of its own for them would stop every request meanwhile.

    Args:
        most_sent: Requests in flight.
        most_unshipped: Answers on their way to the store while so many requests are in flight.
        proceed: Raises when nothing more may be sent.
    """

    def __init__(
        self, disk: ShippingDisk, *, most_sent: int, most_unshipped: int, proceed: Callable[[], object]
    ) -> None:
        self._disk = disk
        self.stock = max(1, most_sent // 2)
        self.gather_s = GATHER_S
        self._most_sent = most_sent
        self._most_unshipped = most_unshipped
        self._proceed = proceed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sent = 0
        self._unshipped: deque[tuple[str, int]] = deque()
        disk.tell(self._tell)

    async def enter(self) -> None:
        """Returns when the request may be sent; raises why not."""
        while True:
            self._proceed()
            self._disk.check()
            if self._disk.is_silent:  # it slept: what it announced before is another worker's by now
                await asyncio.to_thread(self._disk.hold)
                continue
            if self._room() > 0:
                self._sent += 1
                return
            turn = self._loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                with suppress(ValueError):
                    self._waiting.remove(turn)
                self._wake()  # it may have been woken in the same moment: another one goes
                raise

    def leave(self, ref: VectorRef | None = None) -> None:
        """A request is over; where its answer is, if it brought one."""
        self._sent -= 1
        if ref is not None:
            self._unshipped.append((ref.segment, ref.offset + ref.count * ref.dimensions * 4))
            if 2 * self._left() >= self._most_unshipped:
                self._disk.hurry()
        self._wake()

    def _room(self) -> int:
        return min(self._most_sent, self._most_sent + self._most_unshipped - self._left()) - self._sent

    def _wake(self) -> None:
        """As many as may go, the first first; all of them when nothing may be sent any more: each is told why."""
        count = len(self._waiting) if self._disk.has_failed else self._room()
        while self._waiting and count > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                count -= 1

    def _left(self) -> int:
        while self._unshipped and self._disk.has(*self._unshipped[0]):  # they get there in this order, nearly
            self._unshipped.popleft()
        return len(self._unshipped)

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._wake)


@dataclass(slots=True)
class Fetched:
    """What earlier workers have left of a shard.

    Attributes:
        parts: What their logs say of parts, in order.
        answers_bytes: How much was fetched.
    """

    parts: list[Entry] = field(default_factory=list)
    answers_bytes: int = 0


def fetch(log: ShardLog, into: Path) -> Fetched:
    """Make the journal's files of earlier workers anew, as they were shipped, byte by byte.

    The shard is ours: nothing is added to what is fetched, but what an earlier worker still has on its way, and that is
    lost: its intents say so.

    Raises:
        StorageFailed: An entry is missing.
        ConfigurationInvalid: A later version wrote it.
    """
    found = Fetched()
    into.mkdir(0o700, parents=True, exist_ok=True)
    for entry in log.entries():
        if "part" in entry.about:
            found.parts.append(entry)
        if int(entry.about.get("format", 0)) > frames.FORMAT:
            raise ConfigurationInvalid(
                f"{log.store.url}: embedctl {entry.about.get('version')} writes a journal that this one cannot read",
                hint="upgrade embedctl",
            )
        if "segment" in entry.about and entry.body:
            _put(into / f"{_segment(entry.about['segment'])}{INTENTS}", int(entry.about["offset"]), entry.body)
    folder = f"{log.folder}answers/"
    pieces: dict[str, list[int]] = {}
    for name in log.patience.with_(lambda: log.store.list(folder)):
        segment, _, digits = name.removeprefix(folder).rpartition(".")
        if digits.isdecimal():
            pieces.setdefault(_segment(segment), []).append(int(digits))
    with ThreadPoolExecutor(_READERS) as readers:
        for segment, offsets in pieces.items():
            end = 0
            offsets.sort()
            names = [f"{folder}{segment}.{offset}" for offset in offsets]
            read = readers.map(lambda one: log.patience.with_(lambda: log.store.read(one)), names)
            for offset, content in zip(offsets, read, strict=True):
                if offset == end:  # behind a hole nothing can be told from what was never whole
                    _put(into / f"{segment}{ANSWERS}", offset, content)
                    end += len(content)
            found.answers_bytes += end
    return found


def _mapped(fd: int, start: int, end: int) -> memoryview:
    """Bytes of a file, none of which are copied."""
    before = start % mmap.ALLOCATIONGRANULARITY
    pages = mmap.mmap(fd, end - start + before, offset=start - before, access=mmap.ACCESS_READ)
    return memoryview(pages)[before:]


def _segment(name: object) -> str:
    """A segment's id, before it becomes part of a path.

    Raises:
        StorageFailed: It is none.
    """
    if not isinstance(name, str) or len(name) != 32 or name.strip("0123456789abcdef"):
        raise StorageFailed(f"a log names a segment {str(name)[:40]!r}, which is none")
    return name


def _put(path: Path, offset: int, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        at = 0
        while at < len(content):
            at += os.pwrite(fd, content[at:], offset + at)
    except OSError as refusal:
        raise StorageFailed(f"cannot write {path}: {refusal.strerror}") from refusal
    finally:
        os.close(fd)

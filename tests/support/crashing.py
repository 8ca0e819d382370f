"""Disks that die, with or without the power, or refuse: from any durable operation on."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from embedctl.errors import OutputRefused, StorageFailed
from embedctl.storage import Buffer, Disk


def each_kind(trace: Sequence[str], turn: int = 0, turns: int = 1) -> list[int]:
    """Where to die when all operations are too many: the last one of each kind, numbered from 1.

    Args:
        trace: Operations of a run that lived; a kind is a verb and a name without what is counted or random in it.
        turn: Which part of the kinds, of so many `turns`: tests that take turns do them all.
    """
    last = {re.sub(r"[0-9a-f]{8,}|[0-9]", "", name): number for number, name in enumerate(trace, 1)}
    return sorted(last.values())[turn::turns]


def wait_for_end(threads: Iterable[threading.Thread]) -> None:
    """Until threads have ended, ten seconds each; those that are about to be started are waited for too."""
    for thread in threads:
        end = time.monotonic() + 10
        while thread in threading.enumerate() and time.monotonic() < end:
            with suppress(RuntimeError):  # not started yet
                thread.join(1)


class Crashed(BaseException):
    """The process is dead; nothing after this happened."""


@dataclass
class Written:
    """A file, where it ends, and up to where it is on the disk."""

    path: Path
    inode: int
    end: int = 0
    synced: int = 0


class CrashingDisk(Disk):
    """Works until durable operation number `at`, and then never again.

    Attributes:
        torn: The operation it dies in is half done, when it is a write.
        lacks: Bytes of a torn write that are not done; None: a third of them or six, in turn.
        counts: Which operations are numbered, by what `trace` says of them.
        graveyard: A folder beside the tested one. When given, `lose_power` loses, keeps, tears or zeroes what was
            not synced, as `seed` decides.
    """

    def __init__(
        self,
        at: int | None = None,
        *,
        torn: bool = False,
        lacks: int | None = None,
        counts: Callable[[str], bool] = lambda operation: True,
        graveyard: Path | None = None,
        seed: int = 0,
    ) -> None:
        self.at = at
        self.torn = torn
        self.lacks = lacks
        self.counts = counts
        self.count = 0
        self.dead = False
        self.trace: list[str] = []
        self.graveyard = graveyard
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._graves = itertools.count()
        self._undo: dict[Path, list[Callable[[], None]]] = {}
        self._open: dict[int, Written] = {}
        self._written: list[Written] = []

    @contextmanager
    def _operation(self, name: str, path: Path, half: Callable[[], object] = lambda: None) -> Iterator[None]:
        with self._lock:
            if self.dead:
                raise Crashed
            self.trace.append(f"{name} {path.name}")
            if self.counts(self.trace[-1]):
                self.count += 1
                if self.count == self.at:
                    self.dead = True
                    if self.torn:
                        half()
                    raise Crashed
            yield

    # the operations

    def create(self, path: Path, *, mode: int = 0o600) -> int:
        with self._operation("create", path):
            fd = super().create(path, mode=mode)
            self._later(path.parent, lambda: path.unlink(missing_ok=True))
            self._open[fd] = Written(path, os.fstat(fd).st_ino)
            self._written.append(self._open[fd])
            return fd

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int, path: Path) -> int:
        whole = b"".join(bytes(buffer) for buffer in buffers)

        def half() -> None:
            lacks = self.lacks or (len(whole) - len(whole) * 2 // 3 if self.count % 2 else 6)
            super(CrashingDisk, self).write(fd, [whole[: max(len(whole) - lacks, 0)]], offset, path)

        with self._operation("write", path, half):
            self._open[fd].end = offset + len(whole)
            return super().write(fd, [whole], offset, path)

    def reserve(self, fd: int, end: int, path: Path) -> bool:
        with self._operation("reserve", path):
            return super().reserve(fd, end, path)

    def truncate(self, fd: int, size: int, path: Path) -> None:
        with self._operation("truncate", path):
            super().truncate(fd, size, path)

    def sync(self, fd: int, path: Path) -> None:
        with self._operation("sync", path):
            self._open[fd].synced = self._open[fd].end

    def sync_folder(self, folder: Path) -> None:
        with self._operation("sync_folder", folder):
            self._undo.pop(folder, None)

    def link(self, source: Path, target: Path) -> bool:
        with self._operation("link", target):
            linked = super().link(source, target)
            if linked:
                self._later(target.parent, lambda: target.unlink(missing_ok=True))
            return linked

    def hard_link(self, source: Path, target: Path) -> bool:
        with self._operation("also", target):
            linked = super().hard_link(source, target)
            if linked:
                self._later(target.parent, lambda: target.unlink(missing_ok=True))
            return linked

    def remove_folder(self, folder: Path, *, folder_fd: int | None = None) -> None:
        with self._operation("remove_folder", folder):
            super().remove_folder(folder, folder_fd=folder_fd)

    def rename(self, source: Path, target: Path) -> None:
        with self._operation("rename", target):
            before = self._buried(target)

            def undo() -> None:  # in one step: file systems with a journal lose both names' change, or none
                os.link(target, source)
                target.unlink()
                if before is not None:
                    os.link(before, target)

            super().rename(source, target)
            self._later(target.parent, undo)

    def unlink(self, path: Path, *, folder_fd: int | None = None) -> None:
        with self._operation("unlink", path):
            before = self._buried(path)
            super().unlink(path, folder_fd=folder_fd)
            if before is not None:
                self._later(path.parent, lambda: os.link(before, path))

    def make_folder(self, folder: Path, *, mode: int = 0o700) -> None:
        if not folder.is_dir():
            super().make_folder(folder, mode=mode)

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        super().close(fd)

    def bury(self, others: Collection[threading.Thread] = ()) -> None:
        """The process is gone: its threads end, and the system closes what it held open.

        Args:
            others: Threads that are not its own.
        """
        while mine := [one for one in threading.enumerate() if one.name.startswith("journal-") and one not in others]:
            wait_for_end(mine)
        for fd in list(self._open):
            with suppress(OSError):
                self.close(fd)

    # the power

    def _later(self, folder: Path, undo: Callable[[], None]) -> None:
        if self.graveyard is not None:
            self._undo.setdefault(folder, []).append(undo)

    def _buried(self, path: Path) -> Path | None:
        if self.graveyard is None or not path.exists():
            return None
        grave = self.graveyard / f"{id(self)}-{self.at}-{next(self._graves)}"
        os.link(path, grave)
        return grave

    def lose_power(self) -> None:
        """What was not synced is gone, or some of it. To be called when nobody uses the files any more."""
        if self.graveyard is None:
            return
        for file in self._written:
            with suppress(OSError):
                if file.end > file.synced and file.path.stat().st_ino == file.inode:
                    self._lose_tail(file)
        for undos in self._undo.values():
            for undo in reversed(undos):
                if self._random.random() < 0.6:
                    with suppress(OSError):
                        undo()

    def _lose_tail(self, file: Written) -> None:
        fate = self._random.choice(["none", "torn", "zeros", "kept"])
        if fate == "kept":
            return
        os.truncate(file.path, file.synced if fate != "torn" else self._random.randrange(file.synced, file.end))
        if fate == "zeros":
            os.truncate(file.path, file.end)


class RefusingDisk(Disk):
    """From durable operation number `at` on it is full, or read-only.

    Full, it takes names away and gives space back, but takes nothing more; of a write it may take the first half.
    """

    def __init__(self, at: int, *, read_only: bool = False, torn: bool = False) -> None:
        self.at = at
        self.read_only = read_only
        self.torn = torn
        self.count = 0
        self.refused = 0
        self.trace = ["nothing"]
        self._lock = threading.Lock()

    def _refuse(self, path: Path, doing: str) -> None:
        with self._lock:
            self.count += 1
            if self.count < self.at:
                return
            self.refused += 1
            self.trace.append(f"{doing} {path.name}")
        why = os.strerror(errno.EROFS if self.read_only else errno.ENOSPC)
        kind = OutputRefused if self.read_only and doing == "create" else StorageFailed
        raise kind(f"cannot {doing} {path}: {why}")

    def _refuse_to_remove(self, path: Path) -> None:
        if self.read_only:
            self._refuse(path, "remove")

    def create(self, path: Path, *, mode: int = 0o600) -> int:
        self._refuse(path, "create")
        return super().create(path, mode=mode)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int, path: Path) -> int:
        whole = b"".join(bytes(buffer) for buffer in buffers)
        try:
            self._refuse(path, "write")
        except StorageFailed:
            if self.torn:
                super().write(fd, [whole[: len(whole) // 2]], offset, path)
            raise
        return super().write(fd, [whole], offset, path)

    def reserve(self, fd: int, end: int, path: Path) -> bool:
        self._refuse(path, "reserve space in")
        return super().reserve(fd, end, path)

    def sync(self, fd: int, path: Path) -> None:
        self._refuse(path, "sync")
        super().sync(fd, path)

    def link(self, source: Path, target: Path) -> bool:
        self._refuse(target, "create")
        return super().link(source, target)

    def hard_link(self, source: Path, target: Path) -> bool:
        self._refuse(target, "create")
        return super().hard_link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._refuse(target, "replace")
        super().rename(source, target)

    def make_folder(self, folder: Path, *, mode: int = 0o700) -> None:
        if not folder.is_dir():
            self._refuse(folder, "create")
        super().make_folder(folder, mode=mode)

    def unlink(self, path: Path, *, folder_fd: int | None = None) -> None:
        self._refuse_to_remove(path)
        super().unlink(path, folder_fd=folder_fd)

    def truncate(self, fd: int, size: int, path: Path) -> None:
        self._refuse_to_remove(path)
        super().truncate(fd, size, path)

"""Durable files: whole or not at all, never over another. Through one seam, the disk."""

from __future__ import annotations

import fnmatch
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from embedctl.errors import EmbedctlError, OutputRefused
from embedctl.records import uuid7
from embedctl.storage.disk import DISK as DISK
from embedctl.storage.disk import Buffer as Buffer
from embedctl.storage.disk import Disk as Disk
from embedctl.storage.disk import not_own

TEMPORARY_PREFIX = ".tmp-"
"""Names that start so are ours and unfinished; nobody else's are ever removed."""

LEFTOVER_S = 3600.0
"""Unfinished files in a folder that processes share are removed when they are older than any write takes."""

Content = bytes | memoryview | Callable[[BinaryIO], None]
"""A file's bytes, or what writes them into a file opened for it."""


def publish(disk: Disk, path: Path, content: Content, *, mode: int = 0o600) -> bool:
    """Put a whole file at `path` unless something is there; whether it was put.

    Also when it was not put, what is there is durable when this returns: a crash may have come before its folder
    was synced.

    Raises:
        StorageFailed: The disk refused; nothing is at `path`, and the temporary file is gone if at all possible.
    """
    return _filled(disk, path, content, mode).put(path)


def replace(disk: Disk, path: Path, content: Content, *, mode: int = 0o600, for_all: bool = False) -> None:
    """Put a whole file at `path`, in one step in place of what is there.

    Args:
        for_all: Its mode is `mode` whatever the umask is: another program is to read it.
    """
    growing = _filled(disk, path, content, mode)
    if for_all:
        growing.set_mode(mode)
    growing.put(path, over=True)


def paths_in(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds under names that fit a pattern, in order; nothing where there is none, also when another
    process removes it meanwhile: `Path.glob` and `Path.iterdir` raise then.

    Raises:
        OutputRefused: It may not be looked into.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names alone
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as refusal:
        raise OutputRefused(
            f"cannot look into {folder}: {os.strerror(refusal.errno or 0)}", hint="whose is it, and what is its mode?"
        ) from refusal
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def remove_leftovers(disk: Disk, folder: Path, *, older_than_s: float = 0) -> int:
    """Remove the unfinished files a dead process left in `folder`; how many.

    Args:
        older_than_s: 0 only under the folder's lock; where others may be writing, longer than they take.
    """
    before = uuid7(time.time() - older_than_s).hex if older_than_s else "g"
    leftovers = paths_in(folder, f"{TEMPORARY_PREFIX}*")
    leftovers = [path for path in leftovers if path.name.removeprefix(TEMPORARY_PREFIX) < before]
    for path in leftovers:
        if _is_folder(path):
            remove_tree(disk, path)
        else:
            disk.unlink(path)
    return len(leftovers)


@contextmanager
def private_folder(disk: Disk, beside: Path) -> Iterator[Path]:
    """A folder that nobody else writes to, beside a path that a library is to make a file for; gone at the end.

    A library follows what stands at the name that it is given: in here nothing does, and nobody can guess its name.

    Raises:
        OutputRefused: It cannot be made.
    """
    folder = beside.parent / f"{TEMPORARY_PREFIX}{uuid7().hex}"
    disk.make_new_folder(folder)
    try:
        yield folder
    finally:
        with _quiet():
            remove_tree(disk, folder)


def remove_tree(disk: Disk, folder: Path, *, keep: Callable[[str], bool] = lambda name: False) -> None:
    """Remove a folder of ours with all that is in it; a crash leaves the rest for the next one who does it.

    No symbolic link is followed, neither at `folder` nor below it, also when one appears meanwhile.

    Args:
        keep: Names in `folder` that stay, and `folder` with them.

    Raises:
        OutputRefused: `folder`, or a folder in it, is a link or another user's; what it leads to is untouched.
    """
    fd = disk.open_own_folder(folder)
    if fd is not None:
        try:
            _empty(disk, folder, fd, keep)
        finally:
            disk.close(fd)
        disk.remove_folder(folder)


def _empty(disk: Disk, folder: Path, fd: int, keep: Callable[[str], bool] = lambda name: False) -> None:
    for name in sorted(os.listdir(fd)):
        if keep(name):
            continue
        if _is_folder(name, fd):
            below = disk.open_own_folder(folder / name, folder_fd=fd)
            if below is not None:
                try:
                    _empty(disk, folder / name, below)
                finally:
                    disk.close(below)
            disk.remove_folder(folder / name, folder_fd=fd)
        else:
            disk.unlink(folder / name, folder_fd=fd)


def _is_folder(path: Path | str, folder_fd: int | None = None) -> bool:
    """Whether it is one, and no link to one; False for what another process has removed meanwhile."""
    try:
        return stat.S_ISDIR(os.lstat(path, dir_fd=folder_fd).st_mode)
    except FileNotFoundError:
        return False


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it is gone by now."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def set_aside(disk: Disk, path: Path) -> Path:
    """Give a file of ours that says nothing sensible another name, under which nobody looks for it; that name."""
    aside = path.with_name(f"{path.name}.bad-{uuid7().hex}")
    disk.rename(path, aside)
    disk.sync_folder(path.parent)
    return aside


def check_own(folder: Path) -> None:
    """Refuse a state folder that is not ours, or holds what is not ours; one that is not there is fine.

    Raises:
        OutputRefused: It, or anything in it, is a symbolic link, another user's, or neither folder nor file.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    except OSError as refusal:
        raise not_own(folder, "not readable") from refusal
    if stat.S_ISLNK(found.st_mode):
        raise not_own(folder, "a symbolic link")
    if found.st_uid != os.geteuid():
        raise not_own(folder, "another user's")
    if stat.S_ISDIR(found.st_mode):
        for path in paths_in(folder):
            check_own(path)
    elif not stat.S_ISREG(found.st_mode):
        raise not_own(folder, "a pipe or device")


def check_own_folder(folder: Path) -> None:
    """As `check_own`, for a folder alone, whatever is in it.

    Raises:
        OutputRefused: As there.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    except OSError as refusal:
        raise not_own(folder, "not readable") from refusal
    if not stat.S_ISDIR(found.st_mode):
        raise not_own(folder, "a symbolic link or no folder")
    if found.st_uid != os.geteuid():
        raise not_own(folder, "another user's")


class AtomicFile:
    """A file that grows under a temporary name, until it gets its name whole, or is dropped."""

    def __init__(self, disk: Disk, folder: Path, *, mode: int = 0o600) -> None:
        self._disk = disk
        self._path = folder / f"{TEMPORARY_PREFIX}{uuid7().hex}"
        self._fd = disk.create(self._path, mode=mode)
        self._sink = _Sink(disk, self._fd, self._path)
        self.file = cast("BinaryIO", io.BufferedWriter(cast("io.RawIOBase", self._sink), 1 << 20))

    def set_mode(self, mode: int) -> None:
        """Its mode, whatever the umask is."""
        os.fchmod(self._fd, mode)

    def put(self, path: Path, *, over: bool = False) -> bool:
        """Give the file its name; False, and nothing is changed, when something is there and `over` is not set.

        Raises:
            StorageFailed: The disk refused; nothing of it is at `path`.
        """
        renamed = False
        try:
            if not self.file.closed:
                self.file.flush()
            self._disk.sync(self._fd, self._path)
            self._close()
            if over:
                self._disk.rename(self._path, path)
                renamed = True
            put = renamed or self._disk.link(self._path, path)
            self._disk.sync_folder(path.parent)
        finally:
            if not renamed:
                self.drop()
        return put

    def drop(self) -> None:
        """Let go of what has no name yet. After an error: what a crash leaves is for `remove_leftovers`."""
        self._close()
        with _quiet():
            self._disk.unlink(self._path)

    def _close(self) -> None:
        self._sink.cut()
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1


def _filled(disk: Disk, path: Path, content: Content, mode: int) -> AtomicFile:
    """A file that holds `content`, on its way to `path`."""
    growing = AtomicFile(disk, path.parent, mode=mode)
    try:
        if callable(content):
            content(growing.file)
        else:
            growing.file.write(content)
    except Exception:
        growing.drop()
        raise
    return growing


class _Sink(io.RawIOBase):
    """A file object whose writes go through the seam."""

    def __init__(self, disk: Disk, fd: int, path: Path) -> None:
        self._disk = disk
        self._fd = fd
        self._path = path
        self._end = 0
        self._cut = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._end

    def cut(self) -> None:
        """From now on nothing is written: a buffer is flushed, and a Parquet footer written, by the garbage collector
        too, when the descriptor's number may be another file's already.
        """
        self._cut = True

    def write(self, buffer: Buffer) -> int:  # type: ignore[override]
        if self._cut:
            return memoryview(buffer).nbytes
        count = self._disk.write(self._fd, [buffer], self._end, self._path)
        self._end += count
        return count


@contextmanager
def _quiet() -> Iterator[None]:
    """For tidying up after an error: the error is what the user must see."""
    with suppress(EmbedctlError):
        yield

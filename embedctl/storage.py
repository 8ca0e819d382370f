"""The one seam through which durable files are made: whole or not at all, never over another."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from embedctl.errors import EmbedctlError, OutputRefused, StorageFailed
from embedctl.records import uuid7

TEMPORARY_PREFIX = ".tmp-"
"""Names that start so are ours and unfinished; nobody else's are ever removed."""

Buffer = bytes | bytearray | memoryview

_BUFFERS_PER_WRITE = 512  # IOV_MAX is 1024 on Linux and macOS, 16 where POSIX is taken at its word
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST,
)  # fmt: skip
_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCL = 4  # sys/stdio.h of macOS
_AT_FDCWD = -100


class Disk:
    """Durable operations on the real disk. A test replaces it to stop at any of them.

    Every method raises StorageFailed for what the disk refuses (OutputRefused where a name may not be created),
    with the path in the message. Nothing is ever retried after a failed sync: the page may be gone.
    """

    def create(self, path: Path, *, mode: int = 0o600) -> int:
        """A new file, open for reading and writing; never an existing one, never through a symbolic link.

        Raises:
            FileExistsError: Something has that name.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _told(path, "create"):
            return os.open(path, flags, mode)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int, path: Path) -> int:
        """Write all buffers one after the other from `offset` on, without copying them; the bytes written."""
        written = 0
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        with _told(path, "write"):
            while pending:
                count = os.pwritev(fd, pending[:_BUFFERS_PER_WRITE], offset + written)
                written += count
                pending = _after(pending, count)
        return written

    def reserve(self, fd: int, end: int, path: Path) -> bool:
        """Make sure that bytes up to `end` can be written whatever else fills the disk; False where unsupported."""
        allocate = getattr(os, "posix_fallocate", None)
        if allocate is None:
            return False
        try:
            allocate(fd, 0, end)
        except OSError as refusal:
            if refusal.errno in _UNSUPPORTED:
                return False
            raise _failure(refusal, path, "reserve space in") from refusal
        return True

    def truncate(self, fd: int, size: int, path: Path) -> None:
        """Give back what was reserved behind `size`."""
        with _told(path, "shorten"):
            os.ftruncate(fd, size)

    def sync(self, fd: int, path: Path) -> None:
        """The file's bytes are on the disk when this returns."""
        with _told(path, "sync"):
            if sys.platform == "darwin":
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there leaves it in the drive's cache
            else:
                os.fdatasync(fd)

    def sync_folder(self, folder: Path) -> None:
        """The folder's names are on the disk when this returns."""
        with _told(folder, "sync"):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def link(self, source: Path, target: Path) -> bool:
        """Give `source` a second name, which nothing has yet; False, and nothing done, where something has.

        Where hard links are missing (exFAT, some network and FUSE mounts) `source` is renamed instead, in one step
        that refuses an existing target where the system has one.
        """
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as refusal:
            if refusal.errno in _UNSUPPORTED:
                return self.rename_new(source, target)
            raise _failure(refusal, target, "create") from refusal
        return True

    def also(self, source: Path, target: Path) -> bool:
        """Give `source` a second name; False, and nothing done, where links are missing or something has that name."""
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as refusal:
            if refusal.errno in _UNSUPPORTED:
                return False
            raise _failure(refusal, target, "create") from refusal
        return True

    def rename_new(self, source: Path, target: Path) -> bool:
        """Rename, but never over an existing name: False where there is one."""
        with _told(target, "create"):
            try:
                return _rename_exclusively(source, target)
            except FileExistsError:
                return False
            except OSError as refusal:
                if refusal.errno not in _UNSUPPORTED:
                    raise
            # No such call here: the output's lock keeps every other embedctl out between the two.
            if os.path.lexists(target):
                return False
            source.rename(target)
            return True

    def rename(self, source: Path, target: Path) -> None:
        """Rename, over an existing file if there is one."""
        with _told(target, "replace"):
            source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already is as good."""
        with _told(path, "remove"):
            path.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        """Remove an empty folder; one that is gone, or not empty, stays as it is."""
        with suppress(OSError):
            folder.rmdir()

    def make_folder(self, folder: Path, *, mode: int = 0o700) -> None:
        """The folder and what is missing above it; an existing one stays as it is."""
        if os.path.isdir(folder):  # noqa: PTH112 - False for a name that cannot be, too
            return
        if folder.parent != folder:
            self.make_folder(folder.parent, mode=mode)
        with _told(folder, "create"):
            try:
                folder.mkdir(mode, exist_ok=True)
            except FileExistsError as taken:  # by something that is no folder
                raise OutputRefused(f"{folder} is not a folder", hint="choose a place below a folder") from taken
        self.sync_folder(folder.parent)

    def close(self, fd: int) -> None:
        """Give the descriptor back."""
        with suppress(OSError):
            os.close(fd)


DISK = Disk()
"""The real one; it has no state."""

Content = bytes | Callable[[BinaryIO], None]
"""A file's bytes, or what writes them into a file opened for it."""


def publish(disk: Disk, path: Path, content: Content, *, mode: int = 0o600) -> bool:
    """Put a whole file at `path` unless something is there; whether it was put.

    Also when it was not put, what is there is durable when this returns: a crash may have come before its folder
    was synced.

    Raises:
        StorageFailed: The disk refused; nothing is at `path`, and the temporary file is gone if at all possible.
    """
    temporary = _written(disk, path, content, mode)
    try:
        put = disk.link(temporary, path)
        disk.sync_folder(path.parent)
    finally:
        # Only for errors of the disk: a crash leaves the name to `remove_leftovers`.
        with _quiet():
            disk.unlink(temporary)
    return put


def replace(disk: Disk, path: Path, content: Content, *, mode: int = 0o600) -> None:
    """Put a whole file at `path`, in one step in place of what is there."""
    temporary = _written(disk, path, content, mode)
    try:
        disk.rename(temporary, path)
    except EmbedctlError:
        with _quiet():
            disk.unlink(temporary)
        raise
    disk.sync_folder(path.parent)


def remove_leftovers(disk: Disk, folder: Path, *, older_than_s: float = 0) -> int:
    """Remove the unfinished files a dead process left in `folder`; how many.

    Args:
        older_than_s: 0 only under the folder's lock; where others may be writing, longer than they take.
    """
    if not folder.is_dir():
        return 0
    before = uuid7(time.time() - older_than_s).hex if older_than_s else "g"
    leftovers = [path for path in sorted(folder.iterdir()) if path.name.startswith(TEMPORARY_PREFIX)]
    leftovers = [path for path in leftovers if path.name.removeprefix(TEMPORARY_PREFIX) < before]
    for path in leftovers:
        disk.unlink(path)
    return len(leftovers)


def remove_tree(disk: Disk, folder: Path) -> None:
    """Remove a folder of ours with all that is in it; a crash leaves the rest for the next one who does it."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(disk, path)
        else:
            disk.unlink(path)
    disk.remove_folder(folder)


class Unfinished:
    """A file that grows under a temporary name, until it gets its name whole, or is dropped."""

    def __init__(self, disk: Disk, folder: Path, *, mode: int = 0o600) -> None:
        self._disk = disk
        self._path = folder / f"{TEMPORARY_PREFIX}{uuid7().hex}"
        self._fd = disk.create(self._path, mode=mode)
        self._sink = _Sink(disk, self._fd, self._path)
        self.file = cast("BinaryIO", io.BufferedWriter(cast("io.RawIOBase", self._sink), 1 << 20))

    def put(self, path: Path, *, over: bool = False) -> bool:
        """Give the file its name; False, and nothing is changed, when something is there and `over` is not set.

        Raises:
            StorageFailed: The disk refused; nothing of it is at `path`.
        """
        try:
            if not self.file.closed:
                self.file.flush()
            self._disk.sync(self._fd, self._path)
            if over:
                self._disk.rename(self._path, path)
            put = over or self._disk.link(self._path, path)
            self._disk.sync_folder(path.parent)
        finally:
            self.drop()
        return put

    def drop(self) -> None:
        """Let go of what has no name yet."""
        self._sink.cut()
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
        with _quiet():
            self._disk.unlink(self._path)


def _written(disk: Disk, path: Path, content: Content, mode: int) -> Path:
    """A temporary file beside `path` that holds `content`, synced and closed."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid7().hex}")
    fd = disk.create(temporary, mode=mode)
    sink = _Sink(disk, fd, temporary)
    try:
        if callable(content):
            buffered = io.BufferedWriter(cast("io.RawIOBase", sink), 1 << 20)
            content(cast("BinaryIO", buffered))
            if not buffered.closed:
                buffered.flush()
        else:
            disk.write(fd, [content], 0, temporary)
        disk.sync(fd, temporary)
    except Exception:
        with _quiet():
            disk.unlink(temporary)
        raise
    finally:
        sink.cut()
        disk.close(fd)
    return temporary


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


def _after(buffers: list[memoryview], written: int) -> list[memoryview]:
    """What is left of `buffers` once `written` bytes of them are out."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [buffer[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


def _rename_exclusively(source: Path, target: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(source), os.fsencode(target)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE)
    elif hasattr(libc, "renamex_np"):
        done = libc.renamex_np(old, new, _RENAME_EXCL)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(target))
    return True


@contextmanager
def _told(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as refusal:
        raise _failure(refusal, path, doing) from refusal


@contextmanager
def _quiet() -> Iterator[None]:
    """For tidying up after an error: the error is what the user must see."""
    with suppress(EmbedctlError):
        yield


def _failure(refusal: OSError, path: Path, doing: str) -> EmbedctlError:
    if refusal.errno in _NO_SPACE:
        return StorageFailed(
            f"no space left to {doing} {path}",
            hint="free some space and run the same command again: nothing that was answered is lost",
        )
    if doing == "create" and refusal.errno in _FORBIDDEN:
        return OutputRefused(f"cannot create {path}: {refusal.strerror}", hint="choose a place you may write to")
    return StorageFailed(
        f"cannot {doing} {path}: {refusal.strerror or refusal}",
        hint="look at the disk, then run the same command again: nothing that was answered is lost",
    )

"""The disk: every durable operation of ours, each one a place where a test may stop. Foreign errors become ours."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from embedctl.errors import EmbedctlError, OutputRefused, StorageFailed

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

    def hard_link(self, source: Path, target: Path) -> bool:
        """Give `source` a second name; False, and nothing done, where links are missing, the target's disk is another,
        or something has that name.
        """
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as refusal:
            if refusal.errno in (*_UNSUPPORTED, errno.EXDEV):
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

    def unlink(self, path: Path, *, folder_fd: int | None = None) -> None:
        """Remove a file; one that is gone already is as good.

        Args:
            folder_fd: The open folder it stands in, whatever its path leads to by now.
        """
        with _told(path, "remove"), suppress(FileNotFoundError):
            os.unlink(path if folder_fd is None else path.name, dir_fd=folder_fd)

    def remove_folder(self, folder: Path, *, folder_fd: int | None = None) -> None:
        """Remove an empty folder; one that is gone, or not empty, stays as it is.

        Args:
            folder_fd: The open folder it stands in, whatever its path leads to by now.
        """
        with suppress(OSError):
            os.rmdir(folder if folder_fd is None else folder.name, dir_fd=folder_fd)

    def open_own_folder(self, folder: Path, *, folder_fd: int | None = None) -> int | None:
        """Open a folder that this process may empty; None where there is none.

        Args:
            folder_fd: The open folder it stands in, whatever its path leads to by now.

        Raises:
            OutputRefused: The name is a symbolic link, no folder, or another user's.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(folder if folder_fd is None else folder.name, flags, dir_fd=folder_fd)
        except FileNotFoundError:
            return None
        except OSError as refusal:
            if refusal.errno in (errno.ELOOP, errno.ENOTDIR):
                raise not_own(folder, "a symbolic link or no folder") from refusal
            raise _failure(refusal, folder, "open") from refusal
        if os.fstat(fd).st_uid != os.geteuid():
            os.close(fd)
            raise not_own(folder, "another user's")
        return fd

    def make_new_folder(self, folder: Path) -> None:
        """A folder for this user alone, under a name that nothing has."""
        with _told(folder, "create"):
            try:
                folder.mkdir(0o700)
            except FileExistsError as taken:
                raise OutputRefused(f"{folder} is there already", hint="run the same command again") from taken

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


def not_own(path: Path, what: str) -> OutputRefused:
    """The error for a name where our own state should stand and something else does."""
    return OutputRefused(
        f"{path} is {what}, not a folder or file of this user's",
        hint="remove it, or choose another place: embedctl keeps its state in folders of its own",
    )


DISK = Disk()
"""The real one; it has no state."""


def _after(buffers: list[memoryview], written: int) -> list[memoryview]:
    """What is left of `buffers` once `written` bytes of them are out."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [buffer[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


def _rename_exclusively(source: Path, target: Path) -> bool:
    import ctypes  # a hundredth of a second of each start otherwise

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


def _failure(refusal: OSError, path: Path, doing: str) -> EmbedctlError:
    if refusal.errno in _NO_SPACE:
        return StorageFailed(
            f"no space left to {doing} {path}",
            hint="free some space and run the same command again: nothing that was answered is lost",
        )
    if doing == "create" and refusal.errno in _FORBIDDEN:
        hint = "choose a place you may write to; EMBEDCTL_HOME names embedctl's own"
        return OutputRefused(f"cannot create {path}: {refusal.strerror}", hint=hint)
    return StorageFailed(
        f"cannot {doing} {path}: {refusal.strerror or refusal}",
        hint="look at the disk, then run the same command again: nothing that was answered is lost",
    )

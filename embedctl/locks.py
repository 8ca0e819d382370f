"""Locks that die with their process: `flock` on a file that says who holds it. Files are never deleted here."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import orjson

from embedctl.errors import Locked, OutputRefused, StorageFailed
from embedctl.records import utc_now

GLANCE_S = 0.05
"""Seconds a refusal is tried again at least: `is_held` of another process holds a lock for an instant."""

_POLL_S = 0.02


class Lock:
    """A lock this process holds until `release`, the end of a `with`, or its own end."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    def release(self) -> None:
        """Let others have it; the file stays."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def hold(
    path: Path,
    *,
    command: str = "",
    wait_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lock:
    """Take the lock at `path`, whose folder exists.

    Args:
        command: What the holder runs, for the message another process gets; no secrets.
        wait_s: How long to wait for a process that holds it.

    Raises:
        Locked: A living process holds it; the message says which.
        OutputRefused: The file cannot be made.
        StorageFailed: The file system has no locks.
    """
    deadline = clock() + max(wait_s, GLANCE_S)
    while True:
        fd = _open(path)
        try:
            if _take(fd, path, fcntl.LOCK_EX):
                if _is_at(fd, path):
                    _sign(fd, command)
                    lock, fd = Lock(path, fd), -1
                    return lock
                continue  # its folder was removed by the one who held it: the name is another file now
            if clock() >= deadline:
                raise Locked(
                    f"already running: {_holder(fd)} holds {path}",
                    hint="wait for it to end, or run again later; the lock of a dead process is free by itself",
                )
        finally:
            if fd >= 0:
                os.close(fd)
        sleep(_POLL_S)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`; False where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _take(fd, path, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as refusal:
        raise OutputRefused(
            f"cannot create the lock {path}: {refusal.strerror}", hint="choose a place you may write to"
        ) from refusal


def _take(fd: int, path: Path, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as refusal:
        raise StorageFailed(
            f"cannot lock {path}: {refusal.strerror}",
            hint="this file system has no locks: put the output on a local disk",
        ) from refusal
    return True


def _is_at(fd: int, path: Path) -> bool:
    ours = os.fstat(fd)
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


def _sign(fd: int, command: str) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": utc_now().isoformat(timespec="seconds"),
        "command": command,
    }
    with suppress(OSError):  # a full disk: the lock holds all the same, only nobody learns whose it is
        os.ftruncate(fd, 0)
        os.pwrite(fd, orjson.dumps(holder), 0)


def _holder(fd: int) -> str:
    """Who holds it, as a person would say it."""
    try:
        holder = orjson.loads(os.pread(fd, 65536, 0))
        command = f", {holder['command']!r}" if holder["command"] else ""
        return f"process {holder['pid']} on {holder['host']} (since {holder['started']}{command})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

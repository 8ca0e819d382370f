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

from embedctl.errors import EmbedctlError, Locked, OutputRefused, StorageFailed
from embedctl.records import printable, utc_now
from embedctl.storage import files

GLANCE_S = 0.05
"""Seconds a refusal is tried again at least: `is_held` of another process holds a lock for an instant."""

RECOVERY = "recovery of a dead run"
RECOVERY_S = 10.0
"""Any command recovers dead runs; who is to continue one waits for that: it is done in a moment."""

_POLL_S = 0.02
_INSTANT_S = 0.001
_MOST_GLANCES = 100  # of others who look whether somebody holds a file just made


class Lock:
    """A lock this process holds until `release`, the end of a `with`, or its own end."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    @property
    def is_ours(self) -> bool:
        """Whether the lock at its path is still this one: a file that was removed locks nobody out.

        Where nothing is in its place, nobody was here meanwhile: it is taken anew.
        """
        if self._fd is None:
            return False
        if _is_at(self._fd, self.path):
            return True
        if os.path.lexists(self.path):
            return False
        try:
            anew = hold(self.path)
        except EmbedctlError:
            return False
        mine, (self._fd, anew._fd) = self._fd, (anew._fd, None)
        os.close(mine)
        return True

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
        wait_s: How long to wait for a process that holds it; a recovery is waited for by all but another one.

    Raises:
        Locked: A living process holds it; the message says which.
        OutputRefused: The file cannot be made.
        StorageFailed: The file system has no locks.
    """
    started = clock()
    patience_s = max(wait_s, GLANCE_S)
    while True:
        fd = _open(path)
        try:
            if _take(fd, path, fcntl.LOCK_EX):
                if _is_at(fd, path):
                    _sign(fd, command)
                    lock, fd = Lock(path, fd), -1
                    return lock
                continue  # its folder was removed by the one who held it: the name is another file now
            recovered = command != RECOVERY and _signature(fd).get("command") == RECOVERY
            if clock() - started >= (max(patience_s, RECOVERY_S) if recovered else patience_s):
                raise Locked(
                    f"already running: {_holder(fd)} holds {path}",
                    hint="wait for it to end, or run again later; the lock of a dead process is free by itself",
                )
        finally:
            if fd >= 0:
                os.close(fd)
        sleep(_POLL_S)


def hold_folder(folder: Path, name: str, *, make: Callable[[Path], None], command: str = "") -> Lock:
    """Make a folder of our state and take the lock `name` in it, though one who is done may remove it under our feet.

    Raises:
        OutputRefused: The folder, or something in it, is a link or another user's (`storage.check_own`).
        Locked, OutputRefused, StorageFailed: As `hold`.
    """
    while True:
        files.check_own(folder)
        make(folder)
        try:
            return hold(folder / name, command=command)
        except OutputRefused:
            if folder.is_dir():
                raise


def take(
    fd: int,
    path: Path,
    *,
    wait_s: float,
    shared: bool = False,
    poll_s: float = _INSTANT_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Lock an open file; closing it, or `give_back`, lets go of it.

    Args:
        shared: Beside others who take it so.
        poll_s: How often to look again; the default is for files that everybody holds for an instant only.

    Raises:
        Locked: Somebody held it all the while; such a file, then, was stopped in that instant.
        StorageFailed: The file system has no locks.
    """
    deadline = clock() + wait_s
    while not _take(fd, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
        if clock() >= deadline:
            raise Locked(f"{path} is held for too long", hint="look for a stopped embedctl process (`kill -CONT`)")
        sleep(poll_s)


def give_back(fd: int) -> None:
    """Let go of a lock that `take` took."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def mark_living(fd: int) -> None:
    """Show that a living process writes this file, until it is closed; where there are no locks, nobody sees it."""
    for _ in range(_MOST_GLANCES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_INSTANT_S)
        except OSError:
            return
        else:
            return


def unmark(fd: int) -> None:
    """Take `mark_living` back."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def is_marked_living(fd: int) -> bool:
    """Whether another process, or another part of this one, writes this file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`; False where there is no such file."""
    return _look(path, lambda fd: not _take(fd, path, fcntl.LOCK_SH))


def is_abandoned(path: Path) -> bool:
    """Whether a process has held the lock at `path` and none does now; False for a file that somebody has just made,
    and not locked yet: a lock is signed by who holds it.
    """
    return _look(path, lambda fd: bool(_signature(fd)) and _take(fd, path, fcntl.LOCK_SH))


def _look(path: Path, asked: Callable[[int], bool]) -> bool:
    """What is asked of an open lock file; False where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return asked(fd)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
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
            hint="this file system has no locks: choose a place on a local disk",
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
        "command": printable(command),
    }
    with suppress(OSError):  # a full disk: the lock holds all the same, only nobody learns whose it is
        os.ftruncate(fd, 0)
        os.pwrite(fd, orjson.dumps(holder), 0)


def _holder(fd: int) -> str:
    """Who holds it, as a person would say it."""
    holder = _signature(fd)
    try:
        command = f", {holder['command']!r}" if holder["command"] else ""
        return f"process {holder['pid']} on {holder['host']} (since {holder['started']}{command})"
    except KeyError:
        return "another process"


def _signature(fd: int) -> dict[str, object]:
    """What `_sign` wrote; empty when nothing of the kind can be read."""
    try:
        found = orjson.loads(os.pread(fd, 65536, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

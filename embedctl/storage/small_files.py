"""Small files that steer embedctl: settings, keys, prices, what is remembered. One function opens them all.

What stands at such a name is not always what one would put there: a pipe that nobody writes to would be read for ever,
a device has no end, a file of gigabytes does not fit, a link leads elsewhere, another user may have written it.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path

from embedctl.dataclass import dataclass

SEALED_MOUNTS = ("/run/secrets/", "/var/run/secrets/", "/run/credentials/")
"""Where Docker, Podman, Kubernetes and systemd put secrets."""

_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file that was read whole, and what was so of that very file.

    Attributes:
        mode: Permission bits.
        owner: User id.
        sealed: It lies on a read-only mount, or where secrets are mounted: its reader can change nothing about it.
    """

    content: bytes
    mode: int
    owner: int
    sealed: bool


def read_small(path: Path, *, max_bytes: int, follow: bool = True) -> bytes:
    """A file's content, at once or not at all: nothing waits here, and no more than `max_bytes` is read.

    Args:
        follow: Whether the name may be a symbolic link: a user's own file is often one, embedctl's own state never.

    Raises:
        OSError: It cannot be read, is no file, or larger; `strerror` says so in words.
    """
    return open_small(path, max_bytes=max_bytes, follow=follow).content


def open_small(path: Path, *, max_bytes: int, follow: bool = True) -> SmallFile:
    """As `read_small`, with what decides whether the content is to be believed.

    Raises:
        OSError: As there.
    """
    _check_kind(path, path.stat(follow_symlinks=follow))  # before it is opened: opening a device does things
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        status = os.fstat(fd)
        _check_kind(path, status)  # it may be another by now
        content = bytearray()
        while piece := os.read(fd, min(_PIECE, max_bytes + 1 - len(content))):
            content += piece
            if len(content) > max_bytes:
                raise OSError(errno.EFBIG, f"it is larger than {max_bytes >> 10} KiB", os.fspath(path))
        sealed = os.path.realpath(path).startswith(SEALED_MOUNTS) or _is_read_only(fd)
        return SmallFile(bytes(content), stat.S_IMODE(status.st_mode), status.st_uid, sealed)
    finally:
        os.close(fd)


def exposure_to_others(path: Path, mode: int, owner: int) -> tuple[str, str] | None:
    """Why what stands at `path` may not be its user's word, and the command that mends it; None when all is well.

    Its owner must be this user, or root, and nobody else may change it; who may read it does not matter.
    """
    name = shlex.quote(os.fsencode(path).decode("utf-8", "backslashreplace"))
    if owner not in (os.geteuid(), 0):
        return f"belongs to another user (id {owner})", f"chown {os.geteuid()} {name}"
    if mode & 0o022:
        return "can be changed by other users", f"chmod go-w {name}"
    return None


def _check_kind(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link", os.fspath(path))
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or device, not a file", os.fspath(path))


def _is_read_only(fd: int) -> bool:
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)

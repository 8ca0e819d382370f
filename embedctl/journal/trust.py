"""What of what lies in a state folder is evidence: journals carry a secret of the home that made them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.storage import DISK, Disk

SECRET_FILE = "journal.key"  # noqa: S105 - a file's name
SECRET_BYTES = 32


def _unregistered(state: Path) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom this home believes.

    Attributes:
        secret: The home's own; whoever does not know it cannot make a frame.
        is_registered: Whether `runs/` names a state folder as that of a run that has not finished: what an older
            version, whose journals carry no secret, left there is this home's own.
        spools: Ledger that the registry or the settings name → its spool; a file can name no other.
    """

    secret: bytes
    is_registered: Callable[[Path], bool] = _unregistered
    spools: Callable[[], Mapping[str, Path]] = field(default=dict)


def seal(secret: bytes, scope: str, content: bytes) -> str:
    """Shows that this home wrote `content`; of no use for another scope."""
    key = hashlib.blake2b(f"embedctl {scope}".encode(), key=secret, digest_size=32).digest()
    return hashlib.blake2b(content, key=key, digest_size=16).hexdigest()


def home_secret(home: Path, disk: Disk = DISK, *, make: bool = True) -> bytes:
    """The secret of a home, made when there is none; never shown, and of no use to anybody who reads a journal.

    Args:
        make: Otherwise one that is forgotten: nothing was made here that could be believed.

    Raises:
        StorageFailed: It cannot be read or made, or is none.
    """
    path = home / SECRET_FILE
    if not os.path.lexists(path):
        if not make:
            return secrets.token_bytes(SECRET_BYTES)
        disk.make_folder(home)
        storage.publish(disk, path, secrets.token_bytes(SECRET_BYTES))
    try:
        found = storage.open_small(path, max_bytes=SECRET_BYTES, follow=False)
    except OSError as refusal:
        raise _unusable(path, refusal.strerror or str(refusal)) from refusal
    if found.owner != os.geteuid():
        raise _unusable(path, "it is another user's")
    if len(found.content) != SECRET_BYTES:
        raise _unusable(path, f"it has {len(found.content)} bytes in place of {SECRET_BYTES}")
    return found.content


def _unusable(path: Path, why: str) -> StorageFailed:
    return StorageFailed(
        f"{path} cannot be used: {why}",
        hint="remove it: a new one is made, and what killed runs left before is set aside and bought again",
    )

"""The `space.lock` of an output, and what a home knows of its model's canaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.errors import InputInvalid, InputMissing, OutputRefused
from embedctl.outputs import OUTPUT_MODE, lock_of
from embedctl.routing import canaries, space_lock
from embedctl.routing.canaries import HostRecord
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.space_lock import SpaceLock
from embedctl.storage import DISK
from embedctl.vectors.files import Stored


def own_lock(stored: Stored) -> SpaceLock | None:
    """The lock that the output was given by its runs; None when it has none, or is another user's, who keeps it closed.

    Raises:
        InputInvalid: It is damaged, or of another space than the vectors.
    """
    if isinstance(stored.path, str):  # an address: an output on a store has none
        return None
    path = lock_of(stored.path, is_folder=stored.is_folder)
    try:
        path.lstat()
        lock = space_lock.read(path)
    except (FileNotFoundError, PermissionError, InputMissing):
        return None
    if differences := lock.space.differences(stored.space):
        raise InputInvalid(f"{path} is not of {stored.path}: {'; '.join(differences)}", hint="remove it")
    return lock


def made_lock(stored: Stored, endpoint: Endpoint | None, home: Path) -> SpaceLock:
    """What can be said of an output whose runs wrote no lock.

    Args:
        endpoint: Who makes vectors like its own; None where nobody does here.
        home: Where canaries are kept.
    """
    if endpoint is None:
        prefixes = {stored.space.input_type or "document": stored.space.prefix} if stored.space.prefix else {}
        return SpaceLock(space=stored.space, prefixes=prefixes)
    known = [one for one in canaries.every(home) if one.space_id == stored.space.space_id]
    first = min((one.first for one in known), key=lambda one: one.at, default=None)
    return SpaceLock.of(endpoint, stored.space, canaries=first, hosts=tuple(one.first.host for one in known))


def write(lock: SpaceLock, path: Path) -> None:
    """Put a lock at a path, over another one of the same space.

    Raises:
        OutputRefused: Something else is there.
    """
    there: str | None = lock.space.space_id
    try:
        there = space_lock.read(path).space.space_id
    except InputMissing:
        pass
    except InputInvalid:
        there = None
    if there != lock.space.space_id:
        what = "is no space.lock" if there is None else "is the lock of another space"
        raise OutputRefused(f"{path} exists, and {what}", hint="choose another -o, or remove it")
    storage.replace(DISK, path, lock.encoded(), mode=OUTPUT_MODE)


def history(space_id: str, home: Path) -> list[HostRecord]:
    """What this home has seen of the hosts of a space.

    Raises:
        InputMissing: Nothing.
    """
    found = [one for one in canaries.every(home) if one.space_id == space_id]
    if not found:
        raise InputMissing(
            f"no canaries of space {space_id} are kept here",
            hint='they are from the first run of a model over the network on, unless canary = "off"',
        )
    return found


def as_dict(record: HostRecord) -> dict[str, Any]:
    """For JSON."""
    return {
        "host": record.first.host,
        "first": {"at": record.first.at, "version": record.first.version},
        "last": {"at": record.last.at, "version": record.last.version},
        "history": [
            {"at": one.at, "version": one.version, "cosine": one.cosine, "verdict": one.verdict}
            for one in record.sightings
        ],
    }

"""Files whose names a user typed: over another only when told to, never through a link, whole or not at all."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedctl.errors import OutputRefused, WrongUsage
from embedctl.records import uuid7
from embedctl.storage.disk import DISK
from embedctl.storage.files import Content, publish, remove_tree, replace

# fmt: off
_SAID_BY_NAMES = {
    ".csv": ("csv", "focus"), ".tsv": (), ".parquet": ("parquet",), ".json": ("json", "cloudevents"),
    ".jsonl": ("cloudevents",), ".ndjson": ("cloudevents",), ".md": ("md",), ".html": ("html",), ".htm": ("html",),
    ".xlsx": (), ".arrow": (), ".feather": (), ".npy": (), ".npz": (), ".sqlite": (), ".duckdb": (), ".pdf": (),
}
# fmt: on


def check_format(place: Path, form: str) -> None:
    """Refuse to put one format under a name that says another: who opens it by its name cannot read it.

    Args:
        form: What will be written ("parquet", "csv", "focus", "table", …).

    Raises:
        WrongUsage: The name says another format.
    """
    suffix = place.suffix.lower()
    forms = _SAID_BY_NAMES.get(suffix)
    if forms is None or form in forms:
        return
    own = next((known for known, of in _SAID_BY_NAMES.items() if form in of), ".txt")
    raise WrongUsage(f"{place.name} would hold {form}, which its name does not say", hint=f"name it *{own}")


_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def check_local(place: Path) -> None:
    """Refuse a URL where something is to be written: as a path it would be a folder that is called "s3:".

    Raises:
        WrongUsage: It is one.
    """
    if url := _URL.match(str(place)):
        raise WrongUsage(
            f"{str(place).replace(':/', '://', 1)} is an address: nothing is written to {url[0]}/",
            hint="name a file or folder of this machine, and copy it there",
        )


def check_free(place: Path, *, overwrite: bool) -> None:
    """Refuse a name that cannot be written to, before any work is done for it.

    Args:
        overwrite: What is there is replaced: a file, or a link itself, never what it leads to.

    Raises:
        OutputRefused: Something is there, or nothing that a file may take the place of, or its folder is missing.
    """
    check_local(place)
    try:
        found = place.lstat()
        if stat.S_ISLNK(found.st_mode) and place.exists():
            found = place.stat()
    except FileNotFoundError:
        if not place.parent.is_dir():
            raise OutputRefused(f"no such folder: {place.parent}", hint="make it, or name another") from None
        return
    except (OSError, ValueError) as refusal:
        raise _impossible(place, refusal) from None
    if stat.S_ISDIR(found.st_mode):
        raise OutputRefused(f"{place} is a folder", hint="name a file")
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
        raise OutputRefused(f"{place} is a device or pipe", hint="name a file")
    if not overwrite:
        raise _taken(place)


def write(place: Path, content: Content, *, overwrite: bool, mode: int = 0o600) -> None:
    """Put a whole file at `place`.

    Raises:
        OutputRefused: As `check_free`, also for what appeared meanwhile.
        StorageFailed: The disk refused; what was there is as it was.
    """
    check_free(place, overwrite=overwrite)
    try:
        if overwrite:
            replace(DISK, place, content, mode=mode)
            return
        put = publish(DISK, place, content, mode=mode)
    except OutputRefused as refusal:  # names the unfinished file
        raise _impossible(place, refusal.__cause__) from refusal
    if not put:
        raise _taken(place)


@contextmanager
def filled(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """The path, in a folder that nobody else may enter, at which a library makes the file for `place`.

    Raises:
        OutputRefused, StorageFailed: As `write`.
    """
    check_free(place, overwrite=overwrite)
    folder = place.parent / f".embedctl-{uuid7().hex}"
    try:
        folder.mkdir(0o700)
    except OSError as refusal:
        raise _impossible(place, refusal) from refusal
    try:
        made = folder / "unfinished"
        yield made
        made.chmod(0o600)
        fd = os.open(made, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            DISK.sync(fd, place)
        finally:
            os.close(fd)
        if overwrite:
            DISK.rename(made, place)
        elif not DISK.link(made, place):
            raise _taken(place)
        DISK.sync_folder(place.parent)
    finally:
        remove_tree(DISK, folder)


def _taken(place: Path) -> OutputRefused:
    return OutputRefused(f"{place} exists", hint="name another, or --overwrite replaces it")


def _impossible(place: Path, refusal: object) -> OutputRefused:
    why = refusal.strerror if isinstance(refusal, OSError) else str(refusal)
    return OutputRefused(f"{place} cannot be created: {why}", hint="choose a place you may write to")

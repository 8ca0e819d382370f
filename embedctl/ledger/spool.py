"""Usage events on their way to the ledger: one immutable file per journal segment, each line with its checksum."""

from __future__ import annotations

import errno
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken
from embedctl.records import UsageEvent, from_json
from embedctl.storage.store import LocalStore

SUFFIX = ".spool"
LINE_BYTES = 64 << 10
"""An event's, with room to spare: no string of one that is made here has more than 200 characters, no tag either."""

_MOST_LINE = 64 << 20  # bytes of a line that are read at all: an older version kept an answer's strings whole
_CHARACTERS = 200
_TAGS = 20
_MOST_DIGITS = 40  # of an amount that is written out
_BLOCK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
_DEFAULTS = tuple((field.name, field.default) for field in fields(UsageEvent))


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One spool file as read.

    Attributes:
        lines: The JSON of each good line, in file order, none longer than LINE_BYTES.
        bad: Lines dropped: torn, without or with a wrong checksum.
        size_bytes: Of the whole file.
    """

    path: Path
    lines: tuple[bytes, ...]
    bad: int
    size_bytes: int

    @property
    def spool_id(self) -> str:
        """What `spool_offset` and each event call this file."""
        return spool_id(self.path)


def spool_id(path: Path) -> str:
    """The id that a spool file's name is."""
    return path.name.removesuffix(SUFFIX)


def line(event: UsageEvent) -> bytes:
    """CRC-32 of the JSON as eight hex digits, a space, the JSON of all that is not default, a newline."""
    filled = {name: value for name, default in _DEFAULTS if (value := getattr(event, name)) != default}
    if not event.tags:
        del filled["tags"]
    body = orjson.dumps(filled, default=_text)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def publish(folder: Path, spool_id: str, events: Iterable[UsageEvent], *, disk: storage.Disk = storage.DISK) -> bool:
    """Put all `events` into the spool as one file, whole or not at all.

    Returns:
        False when a file of this name exists, or has been taken in or set aside before; nothing is written then.

    Raises:
        StorageFailed: The disk refused.
        OutputRefused: The folder may not be written to.
    """
    if not _NAME.fullmatch(spool_id):
        raise InvariantBroken(f"not a spool id: {spool_id!r}")
    name = spool_id + SUFFIX
    if any((folder / there / name).exists() for there in ("done", "aside")):
        return False
    storage.check_own_folder(folder)
    return LocalStore(folder, disk).put_if_absent(name, content(events))


def content(events: Iterable[UsageEvent]) -> bytes:
    """A spool file's."""
    return b"".join(map(line, events))


def copy(folder: Path, spool_id: str, content: bytes, *, disk: storage.Disk = storage.DISK) -> bool:
    """Put a spool file that another machine has made into the spool; its lines are checked when they are taken in.

    Returns, Raises: As `publish`.
    """
    if not _NAME.fullmatch(spool_id):
        raise InvariantBroken(f"not a spool id: {spool_id!r}")
    if is_known(folder, spool_id):
        return False
    storage.check_own_folder(folder)
    disk.make_folder(folder)
    return LocalStore(folder, disk).put_if_absent(spool_id + SUFFIX, content)


def events(content: bytes) -> Iterator[UsageEvent]:
    """The events of a spool file's content whose checksum is right, in order."""
    for text in content.splitlines():
        body = _good(text)
        if body is not None:
            with suppress(ValueError):
                yield from_json(body, UsageEvent)


def is_id(text: str) -> bool:
    """Whether a spool file may be called so."""
    return _NAME.fullmatch(text) is not None


def is_known(folder: Path, spool_id: str) -> bool:
    """Whether a file of this name waits, or has been taken in or set aside."""
    name = spool_id + SUFFIX
    return any((place / name).exists() for place in (folder, folder / "done", folder / "aside"))


def pending(folder: Path) -> list[Path]:
    """Spool files that wait, oldest name first.

    Raises:
        OutputRefused: The folder is a symbolic link, another user's, or may not be looked into.
    """
    storage.check_own_folder(folder)
    return [path for path in storage.paths_in(folder, f"*{SUFFIX}") if not path.name.startswith(".")]


def bad_lines_note(count: int) -> str:
    """What a reader should know of lines that were no events."""
    return f"{count:,} spool lines were damaged or foreign and are not counted"


def aside_notes(folder: Path) -> list[str]:
    """What a reader should know of spool files that were set aside in `folder`; nothing when there are none."""
    files = pending(folder)
    if not files:
        return []
    many = (
        "1 spool file that could not be taken in lies"
        if len(files) == 1
        else (f"{len(files):,} spool files that could not be taken in lie")
    )
    return [f"{many} in {folder}: what was spent by it is in no report (back in {folder.parent}, it is tried again)"]


def pending_events(folder: Path) -> int:
    """Lines that wait in the spool, good or bad."""
    return sum(map(_lines_in, (path for path in pending(folder) if path.is_file() and not path.is_symlink())))


def _lines_in(path: Path) -> int:
    with _opened(path) as file:
        return sum(block.count(b"\n") for block in iter(partial(file.read, _BLOCK), b""))


def read(path: Path) -> SpoolFile:
    """Every line whose checksum is right; the others are counted.

    Of a line that is longer than an event the strings are cut: a long one must not cost the charge that it is part of.

    Raises:
        FileNotFoundError: Another process has taken it in meanwhile.
        OSError: It is no file, or none that a run would leave.
    """
    good: list[bytes] = []
    bad = size = 0
    with _opened(path) as file:
        for text in _lines(file):
            size += len(text)
            body = _good(text[:-1]) if text[-1:] == b"\n" else None
            if body is None:
                bad += 1
            else:
                good.append(body)
        size = file.tell()
    return SpoolFile(path, tuple(good), bad, size)


def _opened(path: Path) -> BinaryIO:
    """A spool file, never through a link; a pipe in its place keeps nobody waiting.

    Raises:
        FileNotFoundError: Another process has taken it in meanwhile.
        OSError: It is no file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return os.fdopen(fd, "rb")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """A file's lines with their ends; of one that is longer than any event ever was, a piece without an end."""
    while text := file.readline(_MOST_LINE):
        yield text
        while text[-1:] != b"\n" and len(text) == _MOST_LINE:
            text = file.readline(_MOST_LINE)


def _good(text: bytes) -> bytes | None:
    """The JSON of a line; None when its checksum is wrong, or it is no event however its strings are cut."""
    body = text[9:]
    if text[:9] != b"%08x " % zlib.crc32(body) or body[:1] != b"{" or body[-1:] != b"}":
        return None
    return body if len(body) <= LINE_BYTES else _shortened(body)


def _shortened(body: bytes) -> bytes | None:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    kept = {name: _short(said[name]) for name, _ in _DEFAULTS if name in said}
    body = orjson.dumps(kept)
    return body if len(body) <= LINE_BYTES else None


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_CHARACTERS]
    if isinstance(value, dict):
        return {name[:_CHARACTERS]: str(tag)[:_CHARACTERS] for name, tag in [*value.items()][:_TAGS]}
    return None if isinstance(value, list) else value


def _text(value: Any) -> str:
    if not isinstance(value, Decimal):
        return str(value)
    _, digits, exponent = value.as_tuple()
    short = isinstance(exponent, int) and abs(exponent) < _MOST_DIGITS and len(digits) < _MOST_DIGITS
    return format(value, "f") if short else str(value)  # an exponent in eight digits is a hundred million zeros

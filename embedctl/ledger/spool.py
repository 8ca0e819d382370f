"""Usage events on their way to the ledger: one immutable file per journal segment, each line with its checksum."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from embedctl import storage
from embedctl.errors import InvariantBroken
from embedctl.records import UsageEvent

SUFFIX = ".spool"
MOST_BYTES = 1 << 30
"""Of a spool file; a segment's events take a fraction of it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
_DEFAULTS = tuple((field.name, field.default) for field in fields(UsageEvent))


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One spool file as read.

    Attributes:
        lines: The JSON of each good line, in file order.
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
        False when a file of this name exists or has been taken in before; nothing is written then.

    Raises:
        StorageFailed: The disk refused.
        OutputRefused: The folder may not be written to.
    """
    if not _NAME.fullmatch(spool_id):
        raise InvariantBroken(f"not a spool id: {spool_id!r}")
    place = folder / (spool_id + SUFFIX)
    if (folder / "done" / place.name).exists():
        return False
    storage.check_own_folder(folder)
    disk.make_folder(folder)
    return storage.publish(disk, place, b"".join(map(line, events)))


def pending(folder: Path) -> list[Path]:
    """Spool files that wait, oldest name first.

    Raises:
        OutputRefused: The folder is a symbolic link, or another user's.
    """
    storage.check_own_folder(folder)
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if name.endswith(SUFFIX) and not name.startswith(".")]


def pending_events(folder: Path) -> int:
    """Lines that wait in the spool, good or bad."""
    return sum(_content(path).count(b"\n") for path in pending(folder) if path.is_file() and not path.is_symlink())


def read(path: Path) -> SpoolFile:
    """Every line whose checksum is right; the others are counted.

    Raises:
        FileNotFoundError: Another process has taken it in meanwhile.
        OSError: It is no file, or none that a run would leave.
    """
    content = _content(path)
    lines = content.split(b"\n")
    torn = lines.pop() != b""
    good = tuple(_good(lines))
    return SpoolFile(path, good, len(lines) - len(good) + torn, len(content))


def _content(path: Path) -> bytes:
    return storage.read_small(path, max_bytes=MOST_BYTES, follow=False)


def _good(lines: Iterable[bytes]) -> Iterator[bytes]:
    crc32 = zlib.crc32
    for text in lines:
        body = text[9:]
        if text[:9] == b"%08x " % crc32(body) and body[:1] == b"{" and body[-1:] == b"}":
            yield body


def _text(value: Any) -> str:
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value)

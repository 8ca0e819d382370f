"""Where finished objects go, under a name, whole and never over another: parts, spool files, logs, manifests.

A local folder is one; an object store with conditional puts is another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, InputChanged, OutputRefused
from embedctl.records import uuid7
from embedctl.storage.disk import DISK, Buffer, Disk
from embedctl.storage.files import TEMPORARY_PREFIX, Content, publish

OURS = "_embedctl/"
"""What begins so is no part of an output that others read."""

PROBES = f"{OURS}probe/"
"""Where the trial puts its object."""

AT_ONCE = 16
"""Calls under way at the same time, of those that need not wait for each other."""

_COPY_BYTES = 1 << 20

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store says of an object.

    Attributes:
        name: Relative to the store; parts are parted by "/".
        size: In bytes.
        etag: Opaque; another one when the object is another. None where the store has none.
    """

    name: str
    size: int
    etag: str | None


class Store(Protocol):
    """Objects by name. Once put, an object never changes. Calls block, bounded in time, and may come from any thread.

    Every method raises StoreDenied (77) for credentials that are missing or rejected, StoreUnreachable (75) when the
    store cannot be reached, is overloaded or does not answer in time, StorageFailed (74) when it is full.
    """

    @property
    def url(self) -> str:
        """What to call it in words for people."""

    def put_if_absent(self, name: str, content: Content | Path, *, write_id: str | None = None) -> bool:
        """Put a whole object unless something has that name; whether it is there and mine.

        Either way, what has the name is durable when this returns. An answer that was lost is found out by the id that
        is kept with the object, so a call that raised may be repeated with the same id.

        Args:
            content: A path: the file's bytes, which must not change meanwhile; they are never all in memory at once.
            write_id: Who puts: what is there under the same id counts as put now. By default a new one for each call.

        Raises:
            OutputRefused: There is no such bucket, or it cannot refuse to overwrite.
            StoreUnreachable: Nobody knows whether it arrived.
        """

    def hold(self, name: str, path: Path) -> bool:
        """Give a growing file of this machine that name too; False, and nothing done, where that cannot be.

        The only object that changes: what is written to the file, and synced, stands durably under the name.
        """

    def read(self, name: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: There is none.
        """

    def read_range(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive); fewer where the object ends before.

        Args:
            etag: What it must still be.

        Raises:
            FileNotFoundError: There is none.
            InputChanged: It is another object than `etag` says.
        """

    def view(self, name: str, start: int, end: int, *, etag: str | None = None) -> Buffer:
        """As `read_range`, in memory that is not copied: half the processor time of reading a large object."""

    def stat(self, name: str) -> StoredObject | None:
        """What there is under that name; None: nothing."""

    def list(self, prefix: str = "") -> Sequence[str]:
        """Names that begin so, also in folders below, in order; not those of unfinished objects."""

    def objects(self, prefix: str = "", *, odd: Callable[[str], object] | None = None) -> Iterator[StoredObject]:
        """As `list`, as they come: in no order that may be relied on, and without `odd` never all in memory at once.

        Args:
            odd: Told how names begin that are left out, for they cannot be read: with an empty part, "." or "..".
                Beside them, in the same folder, what begins with a character before "/" may be missing, too.

        Raises:
            InputInvalid: A name cannot be read.
        """

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone already is as good."""

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove many objects, some at a time: each takes its time on the way."""


def check_refuses(store: Store) -> None:
    """The trial: an object is created twice, and the second time must be refused. Once a run, before anything is sent.

    Raises:
        OutputRefused: The store overwrites: two workers would both own a shard.
    """
    name = f"{PROBES}{uuid7()}"
    store.put_if_absent(name, b"embedctl asks whether this can be created twice\n")
    try:
        overwrites = store.put_if_absent(name, b"it can\n")
    except EmbedctlError:
        with suppress(EmbedctlError):
            store.remove(name)
        raise
    if not overwrites:
        store.remove(name)
        return
    with suppress(EmbedctlError):
        store.remove(name)
    raise OutputRefused(
        f"{store.url} does not refuse to overwrite (If-None-Match): two workers would both own a shard",
        hint="use a store, or a version of its server, that does; or --no-share for one worker without claims",
    )


def at_once(calls: Iterable[Callable[[], _Result]]) -> list[_Result]:
    """What calls give that need not wait for each other: each takes its time on the way.

    Raises:
        EmbedctlError: As the first one in their order that failed.
    """
    with ThreadPoolExecutor(AT_ONCE, "store") as threads:
        return [one.result() for one in [threads.submit(call) for call in calls]]


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder as a store. It, and folders below it, are made when the first object is put.

    Attributes:
        mode: Of the files, before umask.
    """

    folder: Path
    disk: Disk = DISK
    mode: int = 0o600

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.folder)

    def put_if_absent(self, name: str, content: Content | Path, *, write_id: str | None = None) -> bool:
        """Put a whole file unless something has that name; whether it was put. No answer of a disk is lost."""
        path = self.folder / name
        self.disk.make_folder(path.parent)
        return publish(self.disk, path, _copied(content) if isinstance(content, Path) else content, mode=self.mode)

    def hold(self, name: str, path: Path) -> bool:
        """Whatever has a name here never changes."""
        return False

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.folder / name).read_bytes()

    def read_range(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """A part of a file."""
        with (self.folder / name).open("rb") as file:
            if etag is not None and _etag(os.fstat(file.fileno())) != etag:
                raise InputChanged(f"{self.folder / name} changed while it was read")
            file.seek(start)
            return file.read(max(0, end - start))

    def view(self, name: str, start: int, end: int, *, etag: str | None = None) -> Buffer:
        """A part of a file."""
        return self.read_range(name, start, end, etag=etag)

    def stat(self, name: str) -> StoredObject | None:
        """Size and identity of a file."""
        try:
            seen = (self.folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return StoredObject(name, seen.st_size, _etag(seen))

    def list(self, prefix: str = "") -> Sequence[str]:
        """Names of files that begin so, in order."""
        return sorted(found.name for found in self.objects(prefix))

    def objects(self, prefix: str = "", *, odd: Callable[[str], object] | None = None) -> Iterator[StoredObject]:
        """Files whose names begin so."""
        for folder, folders, names in os.walk(self.folder / prefix.rpartition("/")[0]):
            folders[:] = [one for one in folders if not one.startswith(TEMPORARY_PREFIX)]
            for name in names:
                path = (Path(folder) / name).relative_to(self.folder).as_posix()
                if path.startswith(prefix) and not name.startswith(TEMPORARY_PREFIX) and (found := self.stat(path)):
                    yield found

    def remove(self, name: str) -> None:
        """Remove a file; folders stay."""
        path = self.folder / name
        self.disk.unlink(path)
        if path.parent.is_dir():
            self.disk.sync_folder(path.parent)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove files, one after the other."""
        for name in names:
            self.remove(name)


@dataclass(frozen=True, slots=True)
class OutputFolder(LocalStore):
    """A folder as the store of a job's output: parts are as open as umask says, what is ours in it is not."""

    def put_if_absent(self, name: str, content: Content | Path, *, write_id: str | None = None) -> bool:
        """Put a whole file unless something has that name; whether it was put."""
        path, is_ours = self._place(name), name.startswith(OURS)
        if not isinstance(content, Path):
            return publish(self.disk, path, content, mode=0o600 if is_ours else 0o666)
        if not is_ours and self._linked(content, path):
            return True
        return publish(self.disk, path, _copied(content), mode=0o600 if is_ours else 0o666)

    def hold(self, name: str, path: Path) -> bool:
        """A second name for the file: its bytes are written once."""
        place = self._place(name)
        if not self.disk.hard_link(path, place):
            return False
        self.disk.sync_folder(place.parent)
        return True

    def _place(self, name: str) -> Path:
        """The path of that name, whose folder is there."""
        path = self.folder / name
        self.disk.make_folder(self.folder, mode=0o777)
        self.disk.make_folder(path.parent, mode=0o700 if name.startswith(OURS) else 0o777)
        return path

    def _linked(self, source: Path, path: Path) -> bool:
        """Whether a whole file, as open as umask says, has got that name too."""
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.disk.sync(fd, source)
        finally:
            self.disk.close(fd)
        if not self.disk.hard_link(source, path):
            return False
        self.disk.sync_folder(path.parent)
        return True


def _etag(seen: os.stat_result) -> str:
    return f"{seen.st_ino:x}-{seen.st_size:x}-{seen.st_mtime_ns:x}"


def _copied(source: Path) -> Content:
    def copy(into: object) -> None:
        with source.open("rb") as file:
            while piece := file.read(_COPY_BYTES):
                into.write(piece)  # type: ignore[attr-defined]

    return copy

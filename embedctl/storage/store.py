"""Where finished objects go, under a name, whole and never over another: parts, spool files, manifests.

A local folder is one; an object store with conditional puts is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from embedctl.storage.disk import DISK, Disk
from embedctl.storage.files import TEMPORARY_PREFIX, Content, publish


class Store(Protocol):
    """Objects by name. Once put, an object never changes."""

    def put_if_absent(self, name: str, content: Content) -> bool:
        """Put a whole object unless something has that name; whether it was put.

        Either way, what has the name is durable when this returns.
        """

    def read(self, name: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: There is none.
        """

    def list(self, prefix: str = "") -> Sequence[str]:
        """Names that begin so, in order; not those of unfinished objects."""

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone already is as good."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder as a store. It is made when the first object is put.

    Attributes:
        mode: Of the files, before umask.
    """

    folder: Path
    disk: Disk = DISK
    mode: int = 0o600

    def put_if_absent(self, name: str, content: Content) -> bool:
        """Put a whole file unless something has that name; whether it was put."""
        self.disk.make_folder(self.folder)
        return publish(self.disk, self.folder / name, content, mode=self.mode)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.folder / name).read_bytes()

    def list(self, prefix: str = "") -> Sequence[str]:
        """Names of files that begin so, in order."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_file())
        return sorted(one for one in names if one.startswith(prefix) and not one.startswith(TEMPORARY_PREFIX))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.disk.unlink(self.folder / name)
        self.disk.sync_folder(self.folder)

"""An object of a store as a file that is read: from its beginning to its end, or here and there."""

from __future__ import annotations

import io

from embedctl.errors import InputChanged
from embedctl.storage.disk import Buffer
from embedctl.storage.store import Store

READ_AHEAD = 8 << 20
"""Bytes of one request of who reads on: with a mebibyte at a time a table of 145 MiB took 16 s instead of 1.2."""


class StoreFile(io.RawIOBase):
    """A file of bytes that are fetched when they are read.

    Args:
        url: What messages call it.
        size: As it was listed; nothing behind it is read.
        etag: As it was listed; what is another object now is not read.
        ahead: Bytes that are fetched at least; 0 where the reader buffers by itself.

    Raises:
        InputChanged: While reading: the object is gone, or another.
        StoreDenied, StoreUnreachable: While reading.
    """

    def __init__(
        self, store: Store, name: str, size: int, etag: str | None, *, url: str, ahead: int = READ_AHEAD
    ) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._etag = etag
        self._url = url
        self._ahead = ahead
        self._at = 0
        self._fetched: Buffer = b""
        self._fetched_at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on from elsewhere; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """As many bytes as that, fewer only at the end; all that are left when negative."""
        return bytes(self.view(size))

    def view(self, size: int | None = -1) -> Buffer:
        """As `read`, in memory that may be shared with what was read before."""
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        start = self._at - self._fetched_at
        if not (start >= 0 and end <= self._fetched_at + len(self._fetched)):
            if end - self._at >= self._ahead:
                content = self._fetch(self._at, end)
                self._at = end
                return content
            self._fetched = self._fetch(self._at, min(self._size, self._at + self._ahead))
            self._fetched_at, start = self._at, 0
        content = memoryview(self._fetched)[start : start + end - self._at]
        self._at = end
        return content

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader hands a memoryview
        """Fill a buffer."""
        content = self.view(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _fetch(self, start: int, end: int) -> Buffer:
        try:
            content = self._store.view(self._name, start, end, etag=self._etag)
        except FileNotFoundError:
            raise InputChanged(f"{self._url} vanished while it was read") from None
        if len(content) != end - start:
            raise InputChanged(f"{self._url} changed while it was read: it is shorter than it was listed")
        return content


class ViewedFile(StoreFile):
    """As `StoreFile`, for who takes any memory for bytes, as Arrow does."""

    def read(self, size: int | None = -1) -> Buffer:  # type: ignore[override]
        """As many bytes as that, uncopied."""
        return self.view(size)

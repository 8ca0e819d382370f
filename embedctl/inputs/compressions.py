"""Step 1, compressed text: gzip, zstd, bzip2 and xz, told apart by their first bytes. Of zstd, the door is arrow's."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

SUFFIXES: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_MAGIC: Mapping[str, bytes] = {
    "gzip": b"\x1f\x8b\x08",  # the third byte is the one method that there is (RFC 1952)
    "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # after "BZh" and a digit; the second is of an empty file
XZ_MEMORY_BYTES = 256 << 20
"""A header of some bytes may ask for gigabytes; `xz -9` asks for 65 MiB."""

CORRUPT = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
"""What Python's decompressors raise; see `is_corrupt` for the others."""


class Reader(Protocol):
    """What is decompressed, as it is read."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""


def split_name(name: str) -> tuple[str, str | None]:
    """A file's name without the suffix of a compression, and which one that is."""
    lower = name.lower()
    for suffix, compression in SUFFIXES.items():
        if lower.endswith(suffix):
            return name[: -len(suffix)], compression
    return name, None


def of(head: bytes) -> str | None:
    """The compression that a file's first bytes tell of."""
    for name, magic in _MAGIC.items():
        if head.startswith(magic) and (name != "bzip2" or head[4:10] in _BZIP2_BLOCKS):
            return name
    return None


def opened(raw: BinaryIO, compression: str) -> Reader:
    """A reader of what a file holds; what is corrupt raises one of CORRUPT, or an OSError that `is_corrupt` knows."""
    return _READERS[compression](raw)


def is_corrupt(error: OSError) -> bool:
    """Whether a decompressor complains, rather than the disk: such an error has no number."""
    return error.errno is None


class _Xz:
    """Streams of xz, one after the other, in bounded memory."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._stream: lzma.LZMADecompressor | None = None
        self._unread = b""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""
        while True:
            if self._stream is None or self._stream.eof:
                rest = (self._stream.unused_data if self._stream else b"").lstrip(b"\0")  # streams are padded
                rest = rest or self._raw.read(io.DEFAULT_BUFFER_SIZE).lstrip(b"\0")
                if not rest:
                    return b""
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
                self._unread = rest
            fed = self._unread
            if not fed and self._stream.needs_input:
                fed = self._raw.read(io.DEFAULT_BUFFER_SIZE)
                if not fed:
                    raise EOFError("it ends before its end marker")
            self._unread = b""
            if found := self._stream.decompress(fed, size):
                return found


_READERS: Mapping[str, Callable[[BinaryIO], Reader]] = {
    "gzip": lambda raw: cast("Reader", gzip.GzipFile(fileobj=raw)),
    "zstd": lambda raw: cast("Reader", pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")),
    "bzip2": lambda raw: cast("Reader", bz2.BZ2File(raw)),
    "xz": _Xz,
}

"""Frames of format 1, which older versions wrote: read, and never written again.

    length u32 | checksum u32 | json length u32 | json | text hashes (n × 16) | vectors (n × D × float32)

The checksum is a CRC that starts from the segment's id: anybody can make it. Such a journal is evidence only where the
home itself says that a run of its own left it (`trust.Trust.is_registered`).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

from embedctl.journal import frames
from embedctl.journal.frames import Frame, Gap

FORMAT = 1

_HEAD = struct.Struct("<III")
_LEAST = 2  # an empty JSON object: a frame of zeros has length 0 and is none


class OldScan:
    """As `frames.Scan`, up to the first frame that does not check: what follows it is lost."""

    def __init__(self, fd: int, segment: str) -> None:
        self._fd = fd
        self._seed = zlib.crc32(segment.encode(), zlib.crc32(b"embedctl journal"))
        self.valid = 0
        self.unknown_kinds = 0
        self.intents = self.tokens = 0
        self.gaps: list[Gap] = []

    def __iter__(self) -> Iterator[Frame]:
        end = 0
        while (found := self._frame(end)) is not None:
            frame, size = found
            end += size
            self.valid += 1
            yield frame
        if lost := frames.bytes_until_zeros(self._fd, end):
            self.gaps.append(Gap(end, lost, last=True))

    def _frame(self, offset: int) -> tuple[Frame, int] | None:
        head = frames.pread(self._fd, offset, _HEAD.size)
        if len(head) < _HEAD.size:
            return None
        length, expected, json_length = _HEAD.unpack(head)
        body = offset + _HEAD.size
        if json_length < _LEAST or length < json_length or body + length > os.fstat(self._fd).st_size:
            return None
        content = frames.pread(self._fd, body, length)
        if zlib.crc32(content, zlib.crc32(struct.pack("<II", length, json_length), self._seed)) != expected:
            return None
        read = frames.decoded(content[:json_length], content[json_length:], body + json_length)
        return None if read is None or read.kind not in frames.KINDS else (read, _HEAD.size + length)

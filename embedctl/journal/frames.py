"""What stands in a journal file: frames, each whole or not there at all. Pure, but for reading a file.

    length u32 | checksum u32 | json length u32 | json | text hashes (n × 16) | vectors (n × D × float32)

All little-endian; `length` counts what follows the three numbers. The checksum covers everything but itself and
starts from the segment's own id: bytes of another segment, of zeros, or of an older file on the same blocks never
pass. The JSON is padded so that vectors stand at a multiple of 64 bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import orjson

from embedctl.errors import InvariantBroken
from embedctl.records import TEXT_HASH_BYTES, UsageEvent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedctl.storage import Buffer

Kind = Literal["intent", "outcome", "answer"]

FORMAT = 1
"""Part of every file name: a journal of another format is left alone, not taken for a broken one."""

_HEAD = struct.Struct("<III")
_LEAST = 2  # an empty JSON object: a frame of zeros has length 0 and is none
_MOST = (1 << 32) - 1
_ALIGNMENT = 64
_FLOAT_BYTES = 4
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Draft:
    """A frame before it has a place.

    Attributes:
        vectors: float32, shape (n, D), C order; None for frames without.
    """

    kind: Kind
    event: UsageEvent
    json: bytes
    hashes: bytes = b""
    vectors: NDArray[np.float32] | None = None

    @property
    def most_bytes(self) -> int:
        """What it takes at most, wherever it is put."""
        vectors = 0 if self.vectors is None else self.vectors.nbytes
        return _HEAD.size + len(self.json) + _ALIGNMENT + len(self.hashes) + vectors


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as read back.

    Attributes:
        vectors_at: Where its vectors begin in the file, in bytes.
    """

    kind: Kind
    event: UsageEvent
    hashes: bytes = b""
    vectors_at: int = 0
    dimensions: int = 0
    tokens_each: tuple[int, ...] | None = None
    extra: Mapping[str, Any] | None = None

    @property
    def count(self) -> int:
        """How many vectors it holds."""
        return len(self.hashes) // TEXT_HASH_BYTES


def draft(kind: Kind, event: UsageEvent) -> Draft:
    """An intent or an outcome."""
    return Draft(kind, event, orjson.dumps({"kind": kind, "event": event}, default=str))


def draft_answer(
    event: UsageEvent,
    hashes: bytes,
    vectors: NDArray[np.float32],
    tokens_each: Sequence[int] | None,
    extra: Mapping[str, Any] | None,
) -> Draft:
    """Vectors and the usage they cost, as one frame.

    Raises:
        InvariantBroken: Hashes, vectors and token counts do not belong together, or are not float32 in C order.
    """
    if vectors.ndim != 2 or vectors.dtype != "<f4" or not vectors.flags.c_contiguous or not vectors.size:
        raise InvariantBroken(f"a journal takes float32 (n, D) in C order, not {vectors.dtype} {vectors.shape}")
    count, dimensions = vectors.shape
    if len(hashes) != count * TEXT_HASH_BYTES or (tokens_each is not None and len(tokens_each) != count):
        raise InvariantBroken(f"{count} vectors came with {len(hashes) // TEXT_HASH_BYTES} text hashes")
    about = {
        "kind": "answer",
        "event": event,
        "count": count,
        "dimensions": dimensions,
        "tokens_each": None if tokens_each is None else tuple(map(int, tokens_each)),
        "extra": extra,
    }
    made = Draft("answer", event, orjson.dumps(about, default=str), hashes, vectors)
    if made.most_bytes > _MOST:
        raise InvariantBroken(f"an answer of {vectors.nbytes} bytes is too large for the journal")
    return made


def seed(segment: str) -> int:
    """Where a segment's checksums start."""
    # CRC-32, not CRC-32C: 600 MB cost 0.14 s with zlib and 0.04 s with a library that would be one more dependency.
    return zlib.crc32(segment.encode(), zlib.crc32(b"embedctl journal"))


def placed(made: Draft, offset: int, start: int) -> tuple[list[Buffer], int, int]:
    """The buffers of a frame that will stand at `offset` of a file whose checksums start at `start`.

    Returns:
        The buffers (the vectors' own memory, not a copy), their bytes in all, and where the vectors will begin.
    """
    json = made.json
    tail: list[Buffer] = []
    hashes_at = offset + _HEAD.size + len(json)
    if made.vectors is not None:
        padding = -(hashes_at + len(made.hashes)) % _ALIGNMENT
        json, hashes_at = json + b" " * padding, hashes_at + padding
        tail = [made.hashes, made.vectors.data.cast("B")]
    length = len(json) + sum(len(buffer) for buffer in tail)
    checksum = zlib.crc32(json, zlib.crc32(struct.pack("<II", length, len(json)), start))
    for buffer in tail:
        checksum = zlib.crc32(buffer, checksum)
    head = _HEAD.pack(length, checksum, len(json))
    return [head + json, *tail], _HEAD.size + length, hashes_at + len(made.hashes)


class _Wire(msgspec.Struct):
    """A frame's JSON."""

    kind: Kind
    event: UsageEvent
    count: int = 0
    dimensions: int = 0
    tokens_each: tuple[int, ...] | None = None
    extra: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_Wire)


class Scan:
    """The valid frames of a file from its start on, up to the first that is not.

    After the iteration `end` is where the valid frames end, and `torn` says whether anything but zeros follows.
    Never raises for what the file holds.
    """

    def __init__(self, fd: int, segment: str) -> None:
        self._fd = fd
        self._seed = seed(segment)
        self.end = 0
        self.torn = False

    def __iter__(self) -> Iterator[Frame]:
        while (found := self._frame(self.end)) is not None:
            frame, size = found
            self.end += size
            yield frame
        self.torn = self._something_after(self.end)

    def _frame(self, offset: int) -> tuple[Frame, int] | None:
        head = self._bytes(offset, _HEAD.size)
        if len(head) < _HEAD.size:
            return None
        length, expected, json_length = _HEAD.unpack(head)
        body = offset + _HEAD.size
        if json_length < _LEAST or length < json_length or body + length > os.fstat(self._fd).st_size:
            return None
        checksum = zlib.crc32(struct.pack("<II", length, json_length), self._seed)
        for at in range(body, body + length, _READ_AT_ONCE):
            checksum = zlib.crc32(self._bytes(at, min(_READ_AT_ONCE, body + length - at)), checksum)
        if checksum != expected:
            return None
        frame = self._read(body, json_length, length)
        return None if frame is None else (frame, _HEAD.size + length)

    def _read(self, body: int, json_length: int, length: int) -> Frame | None:
        try:
            wire = _DECODER.decode(self._bytes(body, json_length))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        hashes_at = body + json_length
        vectors_at = hashes_at + wire.count * TEXT_HASH_BYTES
        if length != vectors_at - body + wire.count * wire.dimensions * _FLOAT_BYTES:
            return None
        return Frame(
            kind=wire.kind,
            event=wire.event,
            hashes=self._bytes(hashes_at, vectors_at - hashes_at),
            vectors_at=vectors_at,
            dimensions=wire.dimensions,
            tokens_each=wire.tokens_each,
            extra=wire.extra,
        )

    def _bytes(self, offset: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, count, offset)
        except OSError:
            return b""  # a bad block ends the journal as a torn frame does

    def _something_after(self, offset: int) -> bool:
        while piece := self._bytes(offset, _READ_AT_ONCE):
            if piece.strip(b"\0"):
                return True
            offset += len(piece)
        return False

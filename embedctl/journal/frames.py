"""What stands in a journal file: frames, each whole or not there at all. Pure, but for reading a file.

    "EMB2" | length u32 | json length u32 | vectors' checksum u32 | intents u32 | tokens u64 | mac 16 bytes
    | json | text hashes (n × 16) | vectors (n × D × float32)

All little-endian. `length` counts what follows the mac. `intents` and `tokens` are sums over all intents of the segment
so far, this frame's included: whoever reads on after a damaged stretch knows how many are missing, and for how many
tokens at most. The JSON is padded so that vectors stand at a multiple of 64 bytes.

**A frame is evidence only of the home that made it.** The mac is blake2b, keyed by a key of the file, which is made of
the home's secret (`trust.py`), the segment's id and the file's kind; it covers the frame's place in its file and
everything but the vectors. So nobody who does not know the secret can make a frame, and no frame counts in another
segment, in the other file, at another place, or from an older file on the same blocks. Vectors are covered by a
checksum, which the mac covers: a keyed hash of them would cost more CPU than all the rest of the journal, and whoever
may write here may change the vectors of a published part as well. Money, texts and tokens are under the mac alone.

**Kinds.** The first frame of each file is its `head`: `{"format": 2, "segment", "file": "intents" | "answers" |
"attempts" | "batches", "secret": "home", "key", "host"}`. `intent`, `outcome` and `answer` carry an event. What a run
has of batches at its provider stands in a file of its own (`batches.py`), in frames that have a member `batch` in place
of `event`: `planned`, `uploaded`, `creating`, `submitted`, `collected`, `cleaned` and `dropped`; the first of a batch
holds its text hashes. To come, without another format:

- heads of shards on an object store say `"secret": "job"` (it stands in the job's plan), `"shard"` and `"generation"`.

A version that meets a kind which it does not know leaves that segment alone: it is neither spooled nor removed.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken
from embedctl.records import TEXT_HASH_BYTES, UsageEvent, decoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedctl.storage import Buffer

Kind = Literal["intent", "outcome", "answer"]
FileKind = Literal["intents", "answers", "attempts", "batches"]
"""`attempts` is the copy of a segment that stands in the home, without vectors and text hashes."""

Step = Literal["planned", "uploaded", "creating", "submitted", "collected", "cleaned", "dropped"]
"""How far a batch at a provider is, see `batches.py`."""

FORMAT = 2
"""Part of every file name: a journal of a later format is left alone, not taken for a broken one."""

KINDS = ("intent", "outcome", "answer")
STEPS = ("planned", "uploaded", "creating", "submitted", "collected", "cleaned", "dropped")

ENTRY_KINDS = ("usage", "cache_hit")
"""What a journal may say; corrections, credits and the like are entered by hand, never found in a folder."""

MAC_BYTES = 16
MAGIC = b"EMB2"

_HEAD = struct.Struct("<4sIIIIQ16s")
_COVERED = struct.Struct("<QIIIIQ")  # offset, length, json length, checksum, intents, tokens
_LEAST = 2  # an empty JSON object
_MOST = (1 << 32) - 1
_MOST_JSON = 64 << 20
_MOST_TOKENS = (1 << 64) - 1
_ALIGNMENT = 64
_FLOAT_BYTES = 4
_READ_AT_ONCE = 1 << 20
_MOST_TRIES = 10_000
"""Frames that do not check before the rest of a file is given up: a file of nothing but beginnings takes no hours."""

_ROW = 512
"""Words of 8 bytes that are summed together, see `vectors_checksum`."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A frame before it has a place.

    Attributes:
        vectors: float32, shape (n, D), C order; None for frames without.
        alone: It is an answer that no intent announced, see `draft_collected`.
    """

    kind: Kind
    event: UsageEvent
    json: bytes
    hashes: bytes = b""
    vectors: NDArray[np.float32] | None = None
    alone: bool = False

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
        checksum: Of the vectors.
    """

    kind: str
    event: UsageEvent
    hashes: bytes = b""
    vectors_at: int = 0
    dimensions: int = 0
    checksum: int = 0
    tokens_each: tuple[int, ...] | None = None
    extra: Mapping[str, Any] | None = None

    @property
    def count(self) -> int:
        """How many vectors it holds."""
        return len(self.hashes) // TEXT_HASH_BYTES


@dataclass(frozen=True, slots=True)
class BatchFrame:
    """A step of a batch, as read back.

    Attributes:
        batch: The JSON of its state from then on.
        hashes: Of its texts, where the frame holds them.
    """

    step: str
    batch: bytes
    hashes: bytes = b""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of a file that cannot be read.

    Attributes:
        last: No frame follows it.
    """

    offset: int
    bytes: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """A frame that has its place.

    Attributes:
        buffers: Its bytes; the vectors' own memory, not a copy.
        vectors_at: Where they will begin, in bytes of the file.
        checksum: Of the vectors.
    """

    buffers: list[Buffer]
    size: int
    vectors_at: int
    checksum: int


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


def draft_collected(
    event: UsageEvent,
    hashes: bytes = b"",
    vectors: NDArray[np.float32] | None = None,
    tokens_each: Sequence[int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Draft:
    """What a line of a batch came to: no intent announced it, its batch did."""
    made = draft("outcome", event) if vectors is None else draft_answer(event, hashes, vectors, tokens_each, extra)
    return replace(made, alone=True)


@dataclass(slots=True)
class Begun:
    """The intents of a segment so far, and the tokens that they are for."""

    intents: int = 0
    tokens: int = 0


def tokens_at_risk(event: UsageEvent) -> int:
    """Tokens that an attempt is billed for at most, when no more is known of it than that it began."""
    if event.entry_kind != "usage":
        return 0
    return -(-(event.content_bytes or 0) // 4) if event.tokens_estimated is None else event.tokens_estimated


def vectors_checksum(vectors: Buffer) -> int:
    """A checksum of vectors, as they lie in memory or in a file.

    The CRC of sums of 8-byte words, along rows of 4 KiB and across them: whatever changes less than four bits, a whole
    sector, or the order of blocks, changes it, and it takes a tenth of the time that a CRC of all bytes takes.
    """
    whole = len(vectors) // (_ROW * 8) * _ROW * 8
    rest = memoryview(vectors)[whole:]
    if not whole:
        return zlib.crc32(rest)
    import numpy as np  # only where there are vectors: reports read journals, too

    words = np.frombuffer(vectors, "<u8", whole // 8).reshape(-1, _ROW)
    return zlib.crc32(rest, zlib.crc32(words.sum(axis=0), zlib.crc32(words.sum(axis=1))))


class Keyed:
    """The checks of one file's frames.

    Args:
        secret: Of the home or job that makes the file.
    """

    def __init__(self, secret: bytes, segment: str, file: FileKind) -> None:
        self.segment = segment
        self.file = file
        self.fingerprint = fingerprint(secret)
        scope = f"embedctl journal {FORMAT} {file} {segment}"
        key = hashlib.blake2b(scope.encode(), key=secret, digest_size=32).digest()
        self._keyed = hashlib.blake2b(key=key, digest_size=MAC_BYTES)

    def mac(self, covered: bytes, json: bytes, hashes: bytes) -> bytes:
        """Over the place and the numbers of a frame, its JSON and its text hashes."""
        made = self._keyed.copy()
        made.update(covered)
        made.update(json)
        made.update(hashes)
        return made.digest()

    def head(self) -> bytes:
        """The first frame of the file."""
        about = {
            "kind": "head",
            "format": FORMAT,
            "segment": self.segment,
            "file": self.file,
            "secret": "home",
            "key": self.fingerprint,
            "host": socket.gethostname(),
        }
        return b"".join(self._framed(orjson.dumps(about), b"", None, 0, 0, 0).buffers)

    def placed_step(self, step: Step, batch: bytes, hashes: bytes, offset: int) -> Placed:
        """A step of a batch, at `offset`.

        Args:
            batch: JSON.
        """
        count = len(hashes) // TEXT_HASH_BYTES
        json = b'{"kind":"%s","count":%d,"batch":%s}' % (step.encode(), count, batch)
        return self._framed(json, hashes, None, offset, 0, 0)

    def placed(self, made: Draft, offset: int, intents: int, tokens: int) -> Placed:
        """A frame that will stand at `offset`.

        Args:
            intents: In the segment so far, this one included; likewise `tokens`, which they are for.
        """
        vectors = None if made.vectors is None else made.vectors.data.cast("B")
        return self._framed(made.json, made.hashes, vectors, offset, intents, tokens)

    def _framed(
        self, json: bytes, hashes: bytes, vectors: memoryview | None, offset: int, intents: int, tokens: int
    ) -> Placed:
        checksum, tail = 0, []
        if vectors is not None:
            json += b" " * (-(offset + _HEAD.size + len(json) + len(hashes)) % _ALIGNMENT)
            checksum, tail = vectors_checksum(vectors), [vectors]
        length = len(json) + len(hashes) + sum(map(len, tail))
        numbers = (length, len(json), checksum, intents & _MOST, min(tokens, _MOST_TOKENS))
        mac = self.mac(_COVERED.pack(offset, *numbers), json, hashes)
        head = _HEAD.pack(MAGIC, *numbers, mac)
        return Placed(
            [head + json + hashes, *tail], _HEAD.size + length, offset + _HEAD.size + len(json) + len(hashes), checksum
        )


def fingerprint(secret: bytes) -> str:
    """What may be told of a secret: whose a file is, to one who has it."""
    return hashlib.blake2b(b"embedctl fingerprint", key=secret, digest_size=8).hexdigest()


class _Wire(msgspec.Struct):
    """A frame's JSON."""

    kind: str
    event: UsageEvent | None = None
    batch: msgspec.Raw = msgspec.Raw()
    count: int = 0
    dimensions: int = 0
    tokens_each: tuple[int, ...] | None = None
    extra: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What the first frame of a file says, whether it checks or not.

    Attributes:
        key: Fingerprint of the secret that the file is made with.
    """

    key: str = ""
    host: str = ""
    kind: str = ""


_DECODER = decoder(_Wire)
_HEAD_DECODER = decoder(Head)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decoded(json: bytes, rest: bytes | None, hashes_at: int, *, checksum: int | None = None) -> Frame | None:
    """A frame's content; None when its parts do not belong together, or say what no journal of ours says.

    Args:
        rest: Hashes, and vectors when `checksum` is None.
        hashes_at: Where the hashes begin in the file.
    """
    try:
        wire = _DECODER.decode(json)
    except _UNREADABLE:
        return None
    event = wire.event
    if event is None or event.entry_kind not in ENTRY_KINDS or wire.count < 0 or wire.dimensions < 0:
        return None
    hashed = wire.count * TEXT_HASH_BYTES
    rest = rest or b""
    if checksum is None:
        if len(rest) != hashed + wire.count * wire.dimensions * _FLOAT_BYTES:
            return None
        checksum = vectors_checksum(rest[hashed:])
    return Frame(
        kind=wire.kind,
        event=event,
        hashes=rest[:hashed],
        vectors_at=hashes_at + hashed,
        dimensions=wire.dimensions,
        checksum=checksum,
        tokens_each=wire.tokens_each,
        extra=wire.extra,
    )


def pread(fd: int, offset: int, count: int) -> bytes:
    """What stands there; nothing where a block is bad."""
    try:
        return os.pread(fd, count, offset)
    except OSError:
        return b""


def bytes_until_zeros(fd: int, offset: int) -> int:
    """How many bytes follow, without the zeros at the end: space that was kept and not written."""
    end = offset
    for at in range(offset, os.fstat(fd).st_size, _READ_AT_ONCE):
        if piece := pread(fd, at, _READ_AT_ONCE).rstrip(b"\0"):
            end = at + len(piece)
    return end - offset


class Scan:
    """The frames of a file that check, in order; what lies between them is passed over and told.

    Never raises for what the file holds.

    Attributes:
        valid: Frames that check, so far, the head included.
        gaps: Stretches that cannot be read, once the iteration is over.
        unknown_kinds: Frames of a later version's kinds.
        steps: Frames of batches.
        torn: Bytes at the end of a frame that was not written to its end when the process died.
        intents: Of the segment, by the last frame; likewise `tokens`.
    """

    def __init__(self, fd: int, keyed: Keyed) -> None:
        self._fd = fd
        self._keyed = keyed
        self._size = os.fstat(fd).st_size
        self._tries = 0
        self.valid = 0
        self.unknown_kinds = 0
        self.steps: list[BatchFrame] = []
        self.torn = 0
        self.intents = self.tokens = 0
        self.gaps: list[Gap] = []

    def __iter__(self) -> Iterator[Frame]:
        end = 0
        while True:
            at = end
            found = self._checked(at)
            while found is None:
                at = self._next_begin(at + 1)
                if at < 0:
                    self._note_rest(end)
                    return
                found = self._checked(at)
            wire, size, self.intents, self.tokens = found
            if at > end:
                self.gaps.append(Gap(end, at - end))
            end = at + size
            self.valid += 1
            if isinstance(wire, Frame):
                yield wire
            elif isinstance(wire, BatchFrame):
                self.steps.append(wire)
            elif wire != "head":
                self.unknown_kinds += 1

    def _next_begin(self, start: int) -> int:
        """Where the next frame may begin; -1 when none does, or too many did not check."""
        while start < self._size and self._tries < _MOST_TRIES:
            piece = pread(self._fd, start, _READ_AT_ONCE)
            if (at := piece.find(MAGIC)) >= 0:
                return start + at
            if len(piece) < _READ_AT_ONCE:
                return -1
            start += len(piece) - len(MAGIC) + 1
        return -1

    def _note_rest(self, end: int) -> None:
        rest = bytes_until_zeros(self._fd, end)
        if not rest:
            return
        head = pread(self._fd, end, _HEAD.size)
        begins = head.startswith(MAGIC) or MAGIC.startswith(head[:4])
        promised = _HEAD.unpack(head)[1] + _HEAD.size if begins and len(head) == _HEAD.size else _MOST
        if begins and rest < promised:
            self.torn = rest
        else:
            self.gaps.append(Gap(end, rest, last=True))

    def _checked(self, offset: int) -> tuple[Frame | BatchFrame | str, int, int, int] | None:
        """The frame at `offset`, or the kind of one without an event; its size and its sums."""
        head = pread(self._fd, offset, _HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(MAGIC):
            return None
        self._tries += 1
        _, length, json_length, checksum, intents, tokens, mac = _HEAD.unpack(head)
        body = offset + _HEAD.size
        if not _LEAST <= json_length <= min(length, _MOST_JSON) or body + length > self._size:
            return None
        json = pread(self._fd, body, json_length)
        try:
            wire = _DECODER.decode(json)
        except _UNREADABLE:
            return None
        hashed = max(0, wire.count) * TEXT_HASH_BYTES
        vectors_length = length - json_length - hashed
        if vectors_length != max(0, wire.count) * max(0, wire.dimensions) * _FLOAT_BYTES and wire.event is not None:
            return None
        if vectors_length < 0:
            return None
        hashes = pread(self._fd, body + json_length, hashed)
        covered = _COVERED.pack(offset, length, json_length, checksum, intents, tokens)
        if self._keyed.mac(covered, json, hashes) != mac:
            return None
        if wire.event is not None and vectors_length:
            vectors = pread(self._fd, body + json_length + hashed, vectors_length)
            if len(vectors) != vectors_length or vectors_checksum(vectors) != checksum:
                return None
        self._tries -= 1
        size = _HEAD.size + length
        if wire.kind in STEPS and len(memoryview(wire.batch)) and self._keyed.file == "batches":
            return BatchFrame(wire.kind, bytes(wire.batch), hashes), size, intents, tokens
        if wire.event is None or wire.kind not in KINDS:
            return wire.kind, size, intents, tokens
        frame = decoded(json, hashes, body + json_length, checksum=checksum)
        return None if frame is None else (frame, size, intents, tokens)


def read_head(fd: int) -> Head | None:
    """What the file says of itself, believed or not; None when it does not begin with a head."""
    start = pread(fd, 0, _HEAD.size)
    if len(start) < _HEAD.size or not start.startswith(MAGIC):
        return None
    json_length = min(_HEAD.unpack(start)[2], 1 << 16)
    try:
        found = _HEAD_DECODER.decode(pread(fd, _HEAD.size, json_length))
    except _UNREADABLE:
        return None
    return found if found.kind == "head" else None

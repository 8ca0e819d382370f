"""Steps 2 and 3 together: a block of rows → wanted vectors in a slot, and requests for those that nobody has. Pure.

Every row leaves a trace: a wanted vector, or a failure with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedctl.errors import WrongUsage
from embedctl.known import PLACE, Known
from embedctl.options import Options, checked_name
from embedctl.plan import Packed, Packer
from embedctl.records import TEXT_HASH_BYTES, text_hash, tokens_hash
from embedctl.slots import Failure, Mean, Refusal, Slot, Where
from embedctl.tokens import Counter

Found = tuple[NDArray[np.void], NDArray[np.bool_]]
"""Places (known.PLACE) of n hashes, and which of them were found."""


class Rows(Protocol):
    """A block of rows, as read.py gives it."""

    first_row: int
    ids: Sequence[str | int]
    texts: Sequence[str | None]
    tokens: Sequence[Sequence[int] | None] | None
    kept: Any
    reasons: Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What the model wants of texts, and what is done with those it does not take.

    Attributes:
        prefix: Put before every text.
        max_tokens: Of one text, special tokens included; None where unknown.
        count_all: Tokens of every text are wanted (local models), not only of those near the limit.
        takes_tokens: Token arrays go out as they are.
        chunked: Text and id of its row → its chunks, when rows are chunked.
        pieces: Text → pieces within the limit, for `chunk` and `mean`.
        shortened: Text → its beginning within the limit, for `truncate`.
    """

    prefix: str
    max_tokens: int | None
    counter: Counter
    count_all: bool
    takes_tokens: bool
    chunked: Callable[[str, str | int], list[str]] | None
    pieces: Callable[[str], list[str]]
    shortened: Callable[[str], str]


@dataclass(slots=True)
class _Candidate:
    """A chunk that may be embedded: where it comes from, what is sent, and how long it is."""

    position: int
    chunk_index: int
    text: str | Sequence[int]
    content_bytes: int
    digest: bytes
    tokens: int | None = None
    pieces: list[_Candidate] | None = None


SPECIAL_TOKENS = 16
"""More than any model puts around a text; near the limit, texts are counted."""

JOURNAL_FILES = 1 << 31
"""File numbers of `known` from here on are segments of the journal; below, parts."""

REASON_WORDS = {
    "blank": "the text is empty or white space only",
    "null": "the cell is empty",
    "too_large": "the row is larger than --max-row-bytes",
    "invalid_utf8": "the text is not valid UTF-8",
    "invalid_unicode": "the text holds a lone surrogate",
    "invalid_tokens": "the row is no array of token numbers",
}


class Intake:
    """Turns blocks into slots and requests.

    Args:
        known: Texts whose vectors exist already: row of a part, or (files from JOURNAL_FILES on) byte of a segment.
        seen: Texts of this run: offset is the ordinal of the first that wanted it.
        failed_before: Texts that an earlier run could not embed, and will not be tried again.
        columns: Makes the record batch of some rows: (block, positions, chunk indexes, texts).
    """

    def __init__(
        self,
        *,
        options: Options,
        wording: Wording,
        packer: Packer,
        known: Known,
        seen: Known,
        columns: Callable[[Rows, list[int], list[int], list[str] | None], Any],
        failed_before: Mapping[bytes, Refusal],
    ) -> None:
        self._options = options
        self._wording = wording
        self._packer = packer
        self._known = known
        self._seen = seen
        self._columns = columns
        self._failed_before = failed_before
        self._ordinal = 0
        self.reused = 0
        self.duplicates = 0

    def slot(self, number: int, first_row: int) -> Slot:
        """A new slot that begins where the last one ended."""
        return Slot(number=number, first_row=first_row, first_wanted=self._ordinal)

    def take(self, block: Rows, slot: Slot) -> Iterator[Packed]:
        """Add a block's rows to the slot; the requests that became full."""
        slot.rows_read += len(block.ids)
        candidates = self._lengths(list(self._candidates(block, slot)), block, slot)
        wanted = [piece for one in candidates for piece in (one.pieces or [one])]
        sent = b"".join(one.digest for one in wanted)
        known, seen = self._known.look_up(sent), self._seen.look_up(sent)
        fresh = _Fresh()
        cursor = 0
        for one in candidates:
            count = len(one.pieces or (one,))
            mean = self._known.look_up(one.digest) if one.pieces else None
            if mean is not None and mean[1][0]:
                slot.rows.append(self._have(slot, mean[0][0]))
            else:
                for at in range(cursor, cursor + count):
                    yield from self._want(slot, wanted[at], at, known, seen, fresh, block)
                slot.rows.append(-1 if one.pieces else slot.wanted - 1)
                if one.pieces:
                    weights = tuple(piece.tokens or 1 for piece in one.pieces)
                    slot.means[len(slot.rows) - 1] = Mean(slot.wanted - count, slot.wanted, weights)
            cursor += count
            slot.row_hashes.append(one.digest)
            slot.row_of.append(block.first_row + one.position)
            slot.content_bytes += one.content_bytes
        fresh.remember(self._seen)
        if candidates:
            texts = None if block.tokens is not None else [str(one.text) for one in candidates]
            positions, indexes = [one.position for one in candidates], [one.chunk_index for one in candidates]
            slot.batches.append(self._columns(block, positions, indexes, texts))

    def close(self, slot: Slot) -> Iterator[Packed]:
        """The slot takes no more rows: the requests that were not full."""
        yield from self._packer.rest()
        slot.last_request = self._packer.packed - 1

    def _candidates(self, block: Rows, slot: Slot) -> Iterator[_Candidate]:
        """Chunks of all rows that have text; failures for the others."""
        if block.tokens is not None:
            yield from self._arrays(block, slot)
            return
        chunked = self._wording.chunked
        for position, text in enumerate(block.texts):
            if text is None:
                self._fail(slot, block, position, block.reasons.get(position, "null"))
            elif not text or text.isspace():
                self._fail(slot, block, position, "blank")
            else:
                for index, chunk in enumerate(chunked(text, block.ids[position]) if chunked else (text,)):
                    yield self._candidate(position, index, chunk)

    def _arrays(self, block: Rows, slot: Slot) -> Iterator[_Candidate]:
        """Token arrays: as they are where the protocol takes them, else as the text they stand for."""
        for position, array in enumerate(block.tokens or ()):
            if array is None:
                self._fail(slot, block, position, block.reasons.get(position, "null"))
            elif not len(array):
                self._fail(slot, block, position, "blank")
            elif self._wording.takes_tokens and not self._wording.prefix:
                yield _Candidate(position, 0, array, 4 * len(array), tokens_hash(array), len(array))
            else:
                yield from self._decoded(position, array, block, slot)

    def _decoded(self, position: int, array: Sequence[int], block: Rows, slot: Slot) -> Iterator[_Candidate]:
        """The text that a token array stands for."""
        try:
            text = self._wording.counter.decode(array)
        except LookupError:
            self._fail(slot, block, position, "invalid_tokens")
            return
        if not text or text.isspace():
            self._fail(slot, block, position, "blank")
            return
        one = self._candidate(position, 0, text)
        if not self._wording.count_all:
            one.tokens = len(array)
        yield one

    def _candidate(self, position: int, index: int, text: str) -> _Candidate:
        wire = self._wording.prefix + text
        return _Candidate(position, index, text, len(wire.encode("utf-8", "surrogatepass")), text_hash(wire))

    def _lengths(self, candidates: list[_Candidate], block: Rows, slot: Slot) -> list[_Candidate]:
        """Count where it is needed, and do with texts over the limit what `--on-too-long` says."""
        limit, wording = self._wording.max_tokens, self._wording
        open_ones = [one for one in candidates if one.tokens is None]
        if not wording.count_all:  # a token is at least one byte: most texts need no counting
            least = 0 if limit is None else limit - SPECIAL_TOKENS
            open_ones = [one for one in open_ones if limit is not None and one.content_bytes > least]
        for one, tokens in zip(
            open_ones, wording.counter.count([wording.prefix + str(one.text) for one in open_ones]), strict=True
        ):
            one.tokens = tokens
        if limit is None or all(one.tokens is None or one.tokens <= limit for one in candidates):
            return candidates
        fitting = [
            kept
            for one in candidates
            for kept in (self._too_long(one, limit, block, slot) if (one.tokens or 0) > limit else (one,))
        ]
        return _renumbered(fitting) if self._options.on_too_long == "chunk" else fitting

    def _too_long(self, one: _Candidate, limit: int, block: Rows, slot: Slot) -> list[_Candidate]:
        policy = self._options.on_too_long
        if policy in ("fail", "skip") or not isinstance(one.text, str):
            message = f"{one.tokens} tokens, the model takes {limit} (counted by {self._wording.counter.tokenizer_id})"
            slot.failures.append(
                Failure(
                    row=block.first_row + one.position,
                    id=block.ids[one.position],
                    chunk_index=one.chunk_index,
                    reason="too_long",
                    message=message,
                    skipped=policy == "skip",
                    tokens=one.tokens,
                    max_tokens=limit,
                    text_hash=one.digest.hex(),
                )
            )
            return []
        if policy == "truncate":
            pieces = [self._candidate(one.position, one.chunk_index, self._wording.shortened(one.text))]
        else:
            texts = self._wording.pieces(one.text)
            pieces = [self._candidate(one.position, one.chunk_index + i, text) for i, text in enumerate(texts)]
        for piece, tokens in zip(
            pieces, self._wording.counter.count([self._wording.prefix + str(p.text) for p in pieces]), strict=True
        ):
            piece.tokens = tokens
        if policy == "mean":
            one.pieces = pieces
            return [one]
        return pieces

    def _want(
        self, slot: Slot, one: _Candidate, at: int, known: Found, seen: Found, fresh: _Fresh, block: Rows
    ) -> Iterator[Packed]:
        """One wanted vector: taken from where it is, or asked for."""
        if known[1][at]:
            self._have(slot, known[0][at])
            return
        twin = int(seen[0]["row"][at]) if seen[1][at] else fresh.ordinals.get(one.digest)
        if twin is not None:
            slot.want(Where.TWIN, 0, twin)
            self._ordinal += 1
            self.duplicates += 1
            return
        if one.digest in self._failed_before:
            slot.refused(slot.want(), self._failed_before[one.digest])
            self._ordinal += 1
            return
        ordinal = self._ordinal
        fresh.ordinals[one.digest] = ordinal
        slot.want()
        self._ordinal += 1
        text = one.text if not isinstance(one.text, str) else self._wording.prefix + one.text
        full = self._packer.add(
            text,
            one.digest,
            ordinal,
            content_bytes=one.content_bytes,
            tokens=one.tokens,
            workspace=self._workspace(block, one.position),
        )
        if full:
            yield full

    def _have(self, slot: Slot, place: np.void) -> int:
        self.reused += 1
        self._ordinal += 1
        file = int(place["file"])
        where = Where.PART if file < JOURNAL_FILES else Where.JOURNAL
        return slot.want(where, file % JOURNAL_FILES, int(place["row"]))

    def _workspace(self, block: Rows, position: int) -> str:
        column = self._options.workspace_column
        if column is None:
            return self._options.workspace
        name = block.kept.column(column)[position].as_py()
        if name is None:
            return self._options.workspace
        try:
            return checked_name(str(name), "workspace")
        except WrongUsage as wrong:
            raise WrongUsage(f"row {block.ids[position]!r}: {wrong.message}", hint=wrong.hint) from None

    def _fail(self, slot: Slot, block: Rows, position: int, reason: str) -> None:
        slot.failures.append(
            Failure(
                row=block.first_row + position,
                id=block.ids[position],
                chunk_index=0,
                reason=reason,
                message=REASON_WORDS[reason],
                skipped=reason in ("blank", "null") and self._options.on_blank == "skip",
            )
        )


def _renumbered(candidates: list[_Candidate]) -> list[_Candidate]:
    """The chunks of each row numbered from 0 again: some have become several."""
    for _, chunks in groupby(candidates, key=lambda one: one.position):
        for index, one in enumerate(chunks):
            one.chunk_index = index
    return candidates


class _Fresh:
    """Texts of one block that nobody wanted before: added to the index together, when the block is done."""

    def __init__(self) -> None:
        self.ordinals: dict[bytes, int] = {}

    def remember(self, index: Known) -> None:
        """Put them into the index."""
        if self.ordinals:
            places = np.zeros(len(self.ordinals), PLACE)
            places["row"] = np.fromiter(self.ordinals.values(), np.uint64, len(self.ordinals))
            index.add(b"".join(self.ordinals), places)


assert TEXT_HASH_BYTES == 16  # noqa: S101 - hashes are joined and cut by this width everywhere

"""Step 3: candidates → targets in a slice, and requests for those that nobody has. Pure.

Every row leaves a trace: a target, or a failure with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from embedctl.inputs.block import Block, pieces
from embedctl.planning.chunks import Chunk, Chunks, RowBlock, TextRules
from embedctl.planning.packer import PackedRequest, Packer
from embedctl.planning.slice import Mean, Slice, VectorSource
from embedctl.records import TEXT_HASH_BYTES, Refusal
from embedctl.settings.options import Options
from embedctl.storage.hash_index import LOCATION, HashIndex

Found = tuple[NDArray[np.void], NDArray[np.bool_]]
"""Places (known.PLACE) of n hashes, and which of them were found."""

JOURNAL_FILES = 1 << 31
"""File numbers of `known` from here on are segments of the journal; below, parts."""

_KNOWN, _NEW, _ONE = 0, 1, 2  # what is done with a candidate: its vector is there, it is bought, it is looked at alone

CHUNKED_AT_ONCE = 1 << 17
"""Characters, about: cutting them takes a moment, and what they have become can be sent while others are cut."""


class Planner:
    """Turns blocks into slices and requests.

    Args:
        known: Texts whose vectors exist already: row of a part, or (files from JOURNAL_FILES on) byte of a segment.
        seen: Texts of this run: offset is the ordinal of the first that wanted it.
        failed_before: Texts that an earlier run could not embed, and will not be tried again.
        denied: Workspace that a row may name → why it may not use the model: such a row fails.
        tenants: Workspaces whose texts may fail for want of money: nobody else's vector is taken from them, or waits
            for theirs.
        columns: Makes the record batch of some rows: (block, positions, chunk indexes, texts).
        cut: See `Chunks`.
        own_files: Files of `known` that this run itself has made, in batches.

    Attributes:
        reused: Targets that are known, but for `own`, those from `own_files`.
        planned: Rows, and the targets that they have become; `texts` may be ahead of it.
    """

    def __init__(
        self,
        *,
        options: Options,
        wording: TextRules,
        packer: Packer,
        known: HashIndex,
        seen: HashIndex,
        columns: Callable[[RowBlock, list[int], list[int], list[str] | None], Any],
        failed_before: Mapping[bytes, Refusal],
        denied: Mapping[str, str] = MappingProxyType({}),
        tenants: frozenset[str] = frozenset(),
        cut: Callable[[int, str, int], None] = lambda rows, name, characters: None,
        own_files: Collection[int] = (),
    ) -> None:
        self._own_files = np.array(sorted(own_files), np.int64)
        self._candidates = Chunks(options, wording, denied, cut)
        self._is_chunking = wording.chunked is not None
        self._prefix = wording.prefix
        self._packer = packer
        self._known = known
        self._seen = seen
        self._columns = columns
        self._failed_before = failed_before
        self._tenants = tenants
        self._ordinal = 0
        self.reused = self.own = 0
        self.duplicates = 0
        self.refused = self.asked = 0
        self.planned = (0, 0)

    @property
    def texts(self) -> int:
        """Targets so far, those that are known included."""
        return self._ordinal

    @property
    def reuses(self) -> bool:
        """Whether there are vectors that need not be asked for."""
        return len(self._known) > 0

    def open_slice(self, number: int, first_row: int) -> Slice:
        """A new slice that begins where the last one ended."""
        return Slice(number=number, first_row=first_row, first_target=self._ordinal)

    def take(self, block: RowBlock, slice_: Slice) -> Iterator[PackedRequest]:
        """Add a block's rows to the slice, a part at a time where they are chunked; the requests that became full."""
        digests: list[bytes] = []
        for part in self._parts(block):
            failed_before = len(slice_.failures)
            chunks = self._candidates.of(part, slice_)
            slice_.failed_bytes += sum(len(str(one.id)) for one in slice_.failures[failed_before:])
            if chunks:
                yield from self._take(part, chunks, slice_)
            digests += [one.digest for one in chunks]
            self.planned = (self.planned[0] + len(part.ids), self._ordinal)
        slice_.read(block.ids, digests)

    def see(self, block: RowBlock, slice_: Slice) -> None:
        """Only compare a block's rows: the slice is published already."""
        slice_.read(block.ids, [one.digest for part in self._parts(block) for one in self._candidates.of(part, slice_)])

    def _parts(self, block: RowBlock) -> Iterator[RowBlock]:
        """The block, in parts where cutting all of it would take long."""
        characters = sum(map(len, filter(None, block.texts))) if self._is_chunking else 0
        if characters <= CHUNKED_AT_ONCE:
            yield block
        else:
            rows = max(1, len(block.ids) * CHUNKED_AT_ONCE // characters)
            yield from cast("Iterator[RowBlock]", pieces(cast("Block", block), rows))

    def _take(self, block: RowBlock, chunks: Sequence[Chunk], slice_: Slice) -> Iterator[PackedRequest]:
        fresh = _Fresh()
        if any(one.pieces for one in chunks):
            yield from self._take_pieces(chunks, slice_, fresh)
        else:
            yield from self._take_plain(chunks, slice_, fresh)
        fresh.remember(self._seen)
        slice_.row_hashes += [one.digest for one in chunks]
        slice_.row_of += [block.first_row + one.position for one in chunks]
        slice_.content_bytes += sum(one.content_bytes for one in chunks)
        texts = None if block.tokens is not None else [str(one.text) for one in chunks]
        positions, indexes = [one.position for one in chunks], [one.chunk_index for one in chunks]
        batch = self._columns(block, positions, indexes, texts)
        slice_.column_bytes += batch.nbytes
        slice_.batches.append(batch)

    def close(self, slice_: Slice) -> Iterator[PackedRequest]:
        """The slice takes no more rows: the requests that were not full."""
        yield from self._packer.rest()

    def _take_plain(self, candidates: Sequence[Chunk], slice_: Slice, fresh: _Fresh) -> Iterator[PackedRequest]:
        """Each candidate gets a vector of its own; those that are known, or new, are taken together."""
        sent = b"".join([one.digest for one in candidates])
        places, is_known = self._known.look_up(sent)
        seen = self._seen.look_up(self._keys(candidates, sent)) if not is_known.all() else (places, is_known)
        first = slice_.targets
        kinds = np.where(is_known, _KNOWN, self._kinds(candidates, seen[1]))
        borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(candidates)]
        for start, stop in pairwise(borders):
            if kinds[start] == _KNOWN:
                self._have(slice_, places[start:stop])
            elif kinds[start] == _NEW:
                yield from self._want_all(slice_, candidates[start:stop], fresh)
            else:
                for at in range(start, stop):
                    if full := self._want(slice_, candidates[at], at, seen, fresh):
                        yield full
        slice_.rows += range(first, slice_.targets)

    def _kinds(self, candidates: Sequence[Chunk], is_seen: NDArray[np.bool_]) -> NDArray[np.int8]:
        """_NEW for each text that nobody wanted before, _ONE for what must be looked at more closely."""
        kinds = np.full(len(candidates), _NEW, np.int8)
        if self._tenants or not self._candidates.one_pays:
            kinds[:] = _ONE
            return kinds
        kinds[is_seen] = _ONE
        digests = [one.digest for one in candidates]
        first = dict(zip(reversed(digests), range(len(digests) - 1, -1, -1), strict=True))
        if len(first) < len(digests):
            kinds[[at for at, digest in enumerate(digests) if first[digest] != at]] = _ONE
        if self._failed_before:
            kinds[[at for at, digest in enumerate(digests) if digest in self._failed_before]] = _ONE
        return kinds

    def _want_all(self, slice_: Slice, chunks: Sequence[Chunk], fresh: _Fresh) -> Iterator[PackedRequest]:
        """Texts that nobody wanted before, one after the other; as `_want`."""
        first, count, prefix = self._ordinal, len(chunks), self._prefix
        digests = [one.digest for one in chunks]
        self._ordinal += count
        self.asked += count
        slice_.add_targets(count)
        fresh.ordinals.update(zip(digests, range(first, first + count), strict=True))
        texts = [prefix + one.text if prefix and isinstance(one.text, str) else one.text for one in chunks]
        yield from self._packer.add_all(
            texts,  # type: ignore[arg-type]  # all of one kind
            digests,
            first,
            content_bytes=[one.content_bytes for one in chunks],
            tokens=[one.tokens for one in chunks],
            workspace=self._candidates.payer(chunks[0].position),
        )

    def _take_pieces(self, candidates: Sequence[Chunk], slice_: Slice, fresh: _Fresh) -> Iterator[PackedRequest]:
        """Some candidates get the mean of several vectors, unless that is known itself."""
        targets = [piece for one in candidates for piece in (one.pieces or [one])]
        sent = b"".join(one.digest for one in targets)
        known, seen = self._known.look_up(sent), self._seen.look_up(self._keys(targets, sent))
        cursor = 0
        for one in candidates:
            count = len(one.pieces or (one,))
            mean = self._known.look_up(one.digest) if one.pieces else None
            if mean is not None and mean[1][0]:
                self._have(slice_, mean[0])
                slice_.rows.append(slice_.targets - 1)
            else:
                for at in range(cursor, cursor + count):
                    if known[1][at]:
                        self._have(slice_, known[0][at : at + 1])
                    elif full := self._want(slice_, targets[at], at, seen, fresh):
                        yield full
                slice_.rows.append(-1 if one.pieces else slice_.targets - 1)
                if one.pieces:
                    weights = tuple(piece.tokens or 1 for piece in one.pieces)
                    slice_.means[len(slice_.rows) - 1] = Mean(slice_.targets - count, slice_.targets, weights)
            cursor += count

    def _want(self, slice_: Slice, one: Chunk, at: int, seen: Found, fresh: _Fresh) -> PackedRequest | None:
        """One target that is not known: asked for, unless its text was wanted before, or has failed.

        Returns:
            The request that became full.
        """
        ordinal = self._ordinal
        self._ordinal += 1
        key = self._key(one)
        twin = int(seen[0]["row"][at]) if seen[1][at] else fresh.ordinals.get(key)
        if twin is not None:
            slice_.add_target(VectorSource.DUPLICATE, 0, twin)
            self.duplicates += 1
            return None
        place = slice_.add_target()
        if one.digest in self._failed_before:
            slice_.refused(place, self._failed_before[one.digest])
            self.refused += 1
            return None
        fresh.ordinals[key] = ordinal
        self.asked += 1
        return self._packer.add(
            one.text if not isinstance(one.text, str) else self._prefix + one.text,
            one.digest,
            ordinal,
            content_bytes=one.content_bytes,
            tokens=one.tokens,
            workspace=self._candidates.payer(one.position),
        )

    def _key(self, one: Chunk) -> bytes:
        """What is equal for texts of which one is bought for all."""
        if not self._tenants or (payer := self._candidates.payer(one.position)) not in self._tenants:
            return one.digest
        return blake2b(one.digest + payer.encode(), digest_size=TEXT_HASH_BYTES).digest()

    def keys_of(self, digests: bytes, payers: Sequence[str]) -> bytes:
        """What `seen` knows texts by that these workspaces pay for."""
        each = [digests[at : at + TEXT_HASH_BYTES] for at in range(0, len(digests), TEXT_HASH_BYTES)]
        if not self._tenants:
            return digests
        return b"".join(
            blake2b(digest + payer.encode(), digest_size=TEXT_HASH_BYTES).digest() if payer in self._tenants else digest
            for digest, payer in zip(each, payers, strict=True)
        )

    def _keys(self, chunks: Sequence[Chunk], digests: bytes) -> bytes:
        return b"".join(map(self._key, chunks)) if self._tenants else digests

    def _have(self, slice_: Slice, places: NDArray[np.void]) -> None:
        """Wanted vectors that are known, one after the other."""
        if not len(places):
            return
        own = np.isin(places["file"].astype(np.int64), self._own_files).sum() if len(self._own_files) else 0
        self.own += int(own)
        self.reused += len(places) - int(own)
        self._ordinal += len(places)
        files = places["file"]
        where = np.where(files < JOURNAL_FILES, np.uint8(VectorSource.PART), np.uint8(VectorSource.JOURNAL))
        slice_.add_known(where, files % JOURNAL_FILES, places["row"])


class _Fresh:
    """Texts of one block that nobody wanted before: added to the index together, when the block is done."""

    def __init__(self) -> None:
        self.ordinals: dict[bytes, int] = {}

    def remember(self, index: HashIndex) -> None:
        """Put them into the index."""
        if self.ordinals:
            places = np.zeros(len(self.ordinals), LOCATION)
            places["row"] = np.fromiter(self.ordinals.values(), np.uint64, len(self.ordinals))
            index.add(b"".join(self.ordinals), places)


assert TEXT_HASH_BYTES == 16  # noqa: S101 - hashes are joined and cut by this width everywhere

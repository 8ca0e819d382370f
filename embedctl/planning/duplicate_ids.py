"""Whether row ids of a table stand for one row each: an index of their hashes, in bounded memory."""

from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from embedctl.errors import InputInvalid
from embedctl.inputs import Source
from embedctl.records import Observer, Warned
from embedctl.storage.hash_index import LOCATION, HashIndex

_IN_MEMORY = 1 << 15
_MOST = (1 << 64) - 1


class DuplicateIds:
    """Counts duplicate ids of an input; nothing to do where ids are made here, and so unique.

    Args:
        folder: Where the index goes when it is large; exists.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self._made_here = source.columns is None or source.columns.id is None
        self._index = HashIndex(folder, in_memory=_IN_MEMORY)
        self.duplicates = 0
        self.first: Any = None

    def __enter__(self) -> DuplicateIds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._index.close()

    def see(self, block: Any) -> None:
        """Take the ids of a block of rows."""
        if self._made_here or not len(block):
            return
        hashes = _hashes(block.ids)
        _, found = self._index.look_up(hashes)
        _, firsts = np.unique(hashes.view("V16").reshape(-1), return_index=True)
        fresh = np.zeros(len(hashes), bool)
        fresh[firsts] = True
        fresh &= ~found
        twice = int((~fresh).sum())
        if twice and self.first is None:
            self.first = block.ids[int(np.flatnonzero(~fresh)[0])]
        self.duplicates += twice
        self._index.add(hashes[fresh], np.zeros(int(fresh.sum()), LOCATION))

    def refuse(self) -> None:
        """Raise InputInvalid when an id stood twice."""
        if self.duplicates:
            raise InputInvalid(
                f"{self.duplicates:,} rows have an id that another row has, the first is {self.first!r}",
                hint="make ids unique, or leave --unique-ids out",
            )

    def warn(self, observer: Observer) -> None:
        """Say so when an id stood twice."""
        if self.duplicates:
            observer.notify(Warned("duplicate_ids", repr(self.first), count=self.duplicates))


def _hashes(ids: Any) -> Any:
    """uint8, shape (n, 16)."""
    kinds = set(map(type, ids))
    if kinds == {int}:
        numbers = np.zeros((len(ids), 2), np.uint64)
        numbers[:, 0] = np.fromiter((one & _MOST for one in ids), np.uint64, len(ids))
        return numbers.view(np.uint8)
    joined = b"".join(
        (one & _MOST).to_bytes(16, sys.byteorder)  # among integers, the name of a line that is too long
        if type(one) is int
        else blake2b(str(one).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for one in ids
    )
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)

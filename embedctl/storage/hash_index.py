"""Which texts have a vector already, and where: an index from text hashes to places, in bounded memory.

New entries stand in memory; when they are too many they become a sorted run on the disk, and two runs of one size
become one of twice the size, so that n entries are written log2(n) times and looked for in log2(n) runs. The files
have no names: they are gone with the process, and the index is rebuilt from parts and journal.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken, StorageFailed
from embedctl.records import TEXT_HASH_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOCATION = np.dtype([("file", "<u4"), ("row", "<u8")])
"""Where a vector is: a file's number, and a row or a byte in it; both mean what the caller means by them."""

_HASH = np.dtype([("key", "<u8"), ("tail", "<u8")])
_REST = np.dtype([("tail", "<u8"), ("row", "<u8"), ("file", "<u4")])
_MERGED_AT_ONCE = 1 << 16
_RELAX_ENTRIES = 1 << 22
"""From so many entries on, pages the look-ups touched are given back now and then."""
_RELAX_EVERY = 1 << 13
_LARGE = 5
"""Level from which on a run is larger than what a few look-ups touch."""


@dataclass(slots=True)
class _SortedRun:
    """Entries sorted by the first half of their hash; entries of one half stand in the order they were added."""

    level: int
    keys: NDArray[np.uint64]
    rest: NDArray[np.void]
    maps: tuple[mmap.mmap, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def release_pages(self) -> None:
        """Give touched pages back: they stay in the system's cache, but are no longer this process's memory."""
        if (advice := getattr(mmap, "MADV_DONTNEED", None)) is not None:
            for mapped in self.maps:
                mapped.madvise(advice)


class HashIndex:
    """An index in `folder`. The first place added for a hash stays. Not for several threads at once.

    Args:
        folder: Where the runs go; exists.
        in_memory: Entries kept in memory before they go to the disk; about 250 bytes each.
    """

    def __init__(self, folder: Path, *, in_memory: int = 1 << 17) -> None:
        self._folder = folder
        self._in_memory = in_memory
        self._recent: dict[bytes, int] = {}
        self._places = np.empty(in_memory, LOCATION)
        self._runs: list[_SortedRun] = []
        self._looked_up = 0

    def __len__(self) -> int:
        """Entries; a hash added again in a later run counts twice until the runs are merged."""
        return len(self._recent) + sum(map(len, self._runs))

    def __enter__(self) -> HashIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, hashes: bytes | NDArray[np.uint8], places: NDArray[np.void]) -> None:
        """Remember where the vectors of these texts are; those known already stay where they are.

        Args:
            hashes: n text hashes of 16 bytes, one after the other, or uint8 (n, 16).
            places: LOCATION, shape (n,).

        Raises:
            StorageFailed: The disk refused.
        """
        texts = _texts(hashes)
        if len(texts) != len(places):
            raise InvariantBroken(f"{len(texts)} text hashes with {len(places)} places")
        recent, done = self._recent, 0
        while done < len(texts):
            start, free = len(recent), self._in_memory - len(recent)
            new: list[int] = []
            for index, text in enumerate(texts[done : done + free], done):
                if text not in recent:
                    recent[text] = start + len(new)
                    new.append(index)
            self._places[start : len(recent)] = places[new]
            done += free
            if len(recent) >= self._in_memory:
                self._spill()

    def look_up(self, hashes: bytes | NDArray[np.uint8]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Where the vectors of these texts are.

        Returns:
            places: LOCATION, shape (n,); zeros where not found.
            found: bool, shape (n,).
        """
        wanted = _hashes(hashes)
        places = np.zeros(len(wanted), LOCATION)
        found = np.zeros(len(wanted), np.bool_)
        if self._runs and len(wanted):
            self._look_in_runs(wanted, places, found)
        if self._recent:
            get = self._recent.get
            recent = np.fromiter((get(text, -1) for text in _texts(hashes)), np.int64, len(wanted))
            new = (recent >= 0) & ~found
            places[new] = self._places[recent[new]]
            found |= new
        return places, found

    def close(self) -> None:
        """Let go of memory and files."""
        self._runs.clear()
        self._recent.clear()

    def _look_in_runs(self, wanted: NDArray[np.void], places: NDArray[np.void], found: NDArray[np.bool_]) -> None:
        order = np.argsort(wanted["key"])
        keys, tails = wanted["key"][order], wanted["tail"][order]
        for run in self._runs:  # oldest first: the first place stays
            hits, at = _find(run, keys, tails)
            hits_in = order[hits]
            new = ~found[hits_in]
            rest = run.rest[at[new]]
            places["file"][hits_in[new]] = rest["file"]
            places["row"][hits_in[new]] = rest["row"]
            found[hits_in] = True
        self._looked_up += len(wanted)
        if self._looked_up >= _RELAX_EVERY:
            self._looked_up = 0
            self._relax()

    def _relax(self) -> None:
        if len(self) >= _RELAX_ENTRIES:
            for run in self._runs:
                run.release_pages()

    def _spill(self) -> None:
        wanted = _hashes(b"".join(self._recent))
        order = np.argsort(wanted["key"], kind="stable")
        places = self._places[: len(wanted)]
        rest = np.empty(len(wanted), _REST)
        rest["tail"], rest["row"], rest["file"] = wanted["tail"], places["row"], places["file"]
        with _Files(self._folder) as files:
            files.write(wanted["key"][order], rest[order])
            self._runs.append(files.run(0))
        self._recent.clear()
        while len(self._runs) > 1 and self._runs[-1].level == self._runs[-2].level:
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(self._merged(older, newer))

    def _merged(self, older: _SortedRun, newer: _SortedRun) -> _SortedRun:
        """Both as one, in pieces: memory holds some hundred thousand entries at a time, whatever the runs hold."""
        with _Files(self._folder) as files:
            old_at = new_at = 0
            while old_at < len(older) or new_at < len(newer):
                old_to, new_to = _piece(older.keys, old_at, newer.keys, new_at)
                keys = np.concatenate([older.keys[old_at:old_to], newer.keys[new_at:new_to]])
                rest = np.concatenate([older.rest[old_at:old_to], newer.rest[new_at:new_to]])
                order = np.argsort(keys, kind="stable")
                keys, rest = keys[order], rest[order]
                first = np.ones(len(keys), np.bool_)
                first[1:] = (keys[1:] != keys[:-1]) | (rest["tail"][1:] != rest["tail"][:-1])
                files.write(keys[first], rest[first])
                old_at, new_at = old_to, new_to
                older.release_pages()
                newer.release_pages()
            return files.run(older.level + 1)


class _Files:
    """Two nameless files: the sorted keys, and what belongs to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._files: list[BinaryIO] = []

    def __enter__(self) -> _Files:
        try:
            for _ in range(2):
                self._files.append(cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder, buffering=0)))
        except OSError as refusal:
            self.__exit__()
            raise StorageFailed(f"cannot create the index in {self._folder}: {refusal.strerror}") from refusal
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def write(self, keys: NDArray[np.uint64], rest: NDArray[np.void]) -> None:
        try:
            for file, array in zip(self._files, (keys, rest), strict=True):
                left = memoryview(np.ascontiguousarray(array).view(np.uint8).data)
                while left:
                    left = left[file.write(left) :]
        except OSError as refusal:
            raise StorageFailed(
                f"cannot write the index in {self._folder}: {refusal.strerror}",
                hint="free some space and run the same command again: nothing that was answered is lost",
            ) from refusal
        self._count += len(keys)

    def run(self, level: int) -> _SortedRun:
        maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in self._files]
        if level >= _LARGE and (advice := getattr(mmap, "MADV_RANDOM", None)) is not None:
            for mapped in maps:
                mapped.madvise(advice)  # one page a look-up, not the sixteen around it
        keys = np.frombuffer(maps[0], "<u8", self._count)
        return _SortedRun(level, keys, np.frombuffer(maps[1], _REST, self._count), tuple(maps))


def _find(
    run: _SortedRun, keys: NDArray[np.uint64], tails: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which of the sorted `keys` are in the run with the right tail, and where."""
    asked = np.arange(len(keys))
    at = np.searchsorted(run.keys, keys)
    hits, places = [], []
    while len(asked):
        inside = at < len(run)
        asked, at = asked[inside], at[inside]
        same = run.keys[at] == keys[asked]
        asked, at = asked[same], at[same]
        right = run.rest["tail"][at] == tails[asked]
        hits.append(asked[right])
        places.append(at[right])
        asked, at = asked[~right], at[~right] + 1  # half a hash in common: look at the next one
    return np.concatenate(hits), np.concatenate(places)


def _piece(old: NDArray[np.uint64], old_at: int, new: NDArray[np.uint64], new_at: int) -> tuple[int, int]:
    """Where the next piece of a merge ends in both: all of one key is in one piece."""
    last = [
        keys[at + _MERGED_AT_ONCE - 1]
        for keys, at in ((old, old_at), (new, new_at))
        if at + _MERGED_AT_ONCE <= len(keys)
    ]
    if not last:
        return len(old), len(new)
    border = min(last)
    return tuple(int(np.searchsorted(keys, border, "right")) for keys in (old, new))  # type: ignore[return-value]


def _hashes(hashes: bytes | NDArray[np.uint8]) -> Any:
    if isinstance(hashes, bytes | bytearray | memoryview):
        return np.frombuffer(hashes, _HASH)
    return np.ascontiguousarray(hashes, np.uint8).reshape(-1).view(_HASH)


def _texts(hashes: bytes | NDArray[np.uint8]) -> list[bytes]:
    raw = np.frombuffer(hashes, np.uint8) if isinstance(hashes, bytes | bytearray | memoryview) else hashes
    return cast("list[bytes]", np.ascontiguousarray(raw).reshape(-1).view(f"V{TEXT_HASH_BYTES}").tolist())

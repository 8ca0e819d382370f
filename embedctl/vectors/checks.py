"""Every row of an output, once, in bounded memory: numbers, ids, texts and vectors that belong together."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.errors import InputInvalid
from embedctl.records import text_hash
from embedctl.storage.hash_index import LOCATION, HashIndex
from embedctl.vectors.files import RowBatch, Stored
from embedctl.vectors.findings import Findings
from embedctl.vectors.sample import SAME_COSINE, Sample, cosine

_IN_MEMORY = 1 << 16
_LOOKED_AT = 1000

Alike = Callable[[str, str], bool]
"""Whether two different texts are the same to the model."""


class Firsts:
    """For each key the row in which it was seen first, and a mark of that row. In bounded memory."""

    def __init__(self, folder: Path) -> None:
        self._known = HashIndex(folder, in_memory=_IN_MEMORY)

    def close(self) -> None:
        """Let go of memory and files."""
        self._known.close()

    def seen(
        self, keys: bytes, marks: NDArray[np.uint32], rows: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Add the keys of some rows (16 bytes each); for each the row that had its key first, and that row's mark."""
        places = np.zeros(len(rows), LOCATION)
        places["file"], places["row"] = marks, rows
        self._known.add(keys, places)
        found, _ = self._known.look_up(keys)
        return found["row"], found["file"]

    def find(self, keys: bytes) -> tuple[NDArray[np.bool_], NDArray[np.uint32]]:
        """Whether each key was seen, and the mark of the row that had it first."""
        found, there = self._known.look_up(keys)
        return there, found["file"]


class RowWalk:
    """The walk over all rows, and what it leaves behind for comparisons with the input.

    Args:
        folder: For indexes on the disk; they have no names and are gone with the process.
        alike: Whether two texts are the same to the model.
        sample: Takes some rows aside for another look.

    Attributes:
        ids: (id, chunk_index) → first row; its mark is of the text hash.
        texts: Text hash → first row; its mark is of the vector.
        count: Rows that could be read.
    """

    def __init__(
        self, stored: Stored, findings: Findings, folder: Path, alike: Alike, sample: Sample | None = None
    ) -> None:
        self._stored = stored
        self._sample = sample
        self._findings = findings
        self._alike = alike
        self._looked_at = 0
        self.count = 0
        with ExitStack() as stack:
            self.ids = Firsts(folder)
            stack.callback(self.ids.close)
            self.texts = Firsts(folder)
            stack.callback(self.texts.close)
            self._vectors = Firsts(folder)
            stack.callback(self._vectors.close)
            self._stack = stack.pop_all()

    def __enter__(self) -> RowWalk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def check(self) -> None:
        """Walk over everything that can be read."""
        columns = ["id", "chunk_index", "embedding", "embedding_text_hash"]
        if self._stored.has_text:
            columns.append("text")

        def broken(where: str, what: str) -> None:
            self._findings.add("unreadable", where, what)

        for batch in self._stored.batches(columns, broken=broken):
            self.count += len(batch)
            self._check(batch)

    def _check(self, batch: RowBatch) -> None:
        rows = np.arange(batch.first_row, batch.first_row + len(batch), dtype=np.uint64)
        hashes = batch.hashes()
        hash_marks = marks(hashes)
        ids = batch.values("id")
        self._check_ids(keys(ids, batch.values("chunk_index")), hash_marks, rows, ids)
        texts = batch.values("text") if self._stored.has_text else None
        if texts is not None:
            self._check_hashes(texts, hashes, rows)
        vectors = batch.vectors(self._stored.space.dimensions)
        if vectors is None:
            self._findings.add("width", self._where(batch.first_row), "a vector near here is missing, or not as wide")
            return
        if self._sample is not None and texts is not None:
            self._sample.take(batch.first_row, texts, vectors)
        good = self._check_numbers(vectors, rows)
        digests = b"".join(blake2b(vector, digest_size=16).digest() for vector in np.ascontiguousarray(vectors))
        self._check_texts(hashes, marks(digests), rows)
        folds = hash_marks if texts is None else np.array([fold_mark(text or "") for text in texts], np.uint32)
        self._check_vectors(digests, folds, rows, good, has_text=texts is not None)

    def _check_ids(
        self, found: bytes, hash_marks: NDArray[np.uint32], rows: NDArray[np.uint64], ids: list[Any]
    ) -> None:
        firsts, _ = self.ids.seen(found, hash_marks, rows)
        for at in np.flatnonzero(firsts != rows):
            first = self._where(int(firsts[at]))
            message = f"id {ids[at]!r} stands in {first} already"
            self._findings.add("repeated_id", self._where(int(rows[at])), message)

    def _check_hashes(self, texts: list[str | None], hashes: bytes, rows: NDArray[np.uint64]) -> None:
        prefix = self._stored.space.prefix
        for at, text in enumerate(texts):
            if text is None or text_hash(prefix + text) != hashes[at * 16 : at * 16 + 16]:
                self._findings.add("text_hash", self._where(int(rows[at])), "the vector was made of another text")

    def _check_numbers(self, vectors: NDArray[Any], rows: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows have a vector that is one."""
        numbers = vectors.astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", numbers, numbers, dtype=np.float64)
        finite = np.isfinite(squares)
        for row in rows[~finite]:
            self._findings.add("not_finite", self._where(int(row)), "the vector holds NaN or infinity")
        zero = squares == 0
        for row in rows[zero]:
            self._findings.add("zero_norm", self._where(int(row)), "the vector is all zeros")
        good: NDArray[np.bool_] = finite & ~zero
        return good

    def _check_texts(self, hashes: bytes, vector_marks: NDArray[np.uint32], rows: NDArray[np.uint64]) -> None:
        firsts, first_marks = self.texts.seen(hashes, vector_marks, rows)
        for at in np.flatnonzero(first_marks != vector_marks):
            row, first = int(rows[at]), int(firsts[at])
            cosine = self._cosine(row, first) if self._findings.room("same_text") else 0.0
            if cosine < SAME_COSINE:
                message = f"has the text of {self._where(first)}, but another vector (cosine {cosine:.4f})"
                self._findings.add("same_text", self._where(row), message)

    def _check_vectors(
        self,
        digests: bytes,
        folds: NDArray[np.uint32],
        rows: NDArray[np.uint64],
        good: NDArray[np.bool_],
        *,
        has_text: bool,
    ) -> None:
        kept = np.frombuffer(digests, "V16")[good].tobytes()
        folds, rows = folds[good], rows[good]
        firsts, first_folds = self._vectors.seen(kept, folds, rows)
        for at in np.flatnonzero(first_folds != folds):
            row, first = int(rows[at]), int(firsts[at])
            if not has_text:
                message = f"has the vector of {self._where(first)}, which has another text"
                self._findings.add("same_vector", self._where(row), message, wrong=False)
            elif not self._are_alike(row, first):
                message = f"has the vector of {self._where(first)}, whose text is another"
                self._findings.add("same_vector", self._where(row), message)

    def _are_alike(self, row: int, first: int) -> bool:
        self._looked_at += 1
        if self._looked_at > _LOOKED_AT:
            return False
        try:
            one, other = (str(self._stored.take(each, ["text"])["text"]) for each in (row, first))
        except InputInvalid:
            return False  # said so elsewhere
        return self._alike(one, other)

    def _cosine(self, row: int, other: int) -> float:
        try:
            one, two = (np.asarray(self._stored.take(each, ["embedding"])["embedding"]) for each in (row, other))
        except InputInvalid:
            return 1.0  # said so elsewhere
        return cosine(one, two)

    def _where(self, row: int) -> str:
        return self._stored.place(row)


def keys(ids: list[Any], chunk_indexes: list[int]) -> bytes:
    """16 bytes for each (id, chunk_index); ids are the same when they read the same."""
    return b"".join(
        blake2b(f"{chunk}\0{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for name, chunk in zip(ids, chunk_indexes, strict=True)
    )


def marks(hashes: bytes) -> NDArray[np.uint32]:
    """The first four bytes of each hash of 16."""
    return np.frombuffer(hashes, "<u4")[::4]


def fold_mark(text: str) -> int:
    """Four bytes that are equal for texts that many models cannot tell apart: case, accents, spaces, punctuation."""
    if text.isascii():
        folded = text.lower().encode().translate(None, _NOT_WORDS)
    else:
        folded = "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text.casefold()))).encode()
    return int.from_bytes(blake2b(folded, digest_size=4).digest(), "little")


_NOT_WORDS = bytes(code for code in range(128) if not chr(code).isalnum())

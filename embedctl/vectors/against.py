"""An output against its input: every row has its vector, made of its text, or stands in the failures file."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedctl import inputs
from embedctl.dataclass import dataclass
from embedctl.planning import packer
from embedctl.planning.planner import Planner
from embedctl.planning.text_rules import text_rules
from embedctl.records import Failure, Limits, is_blank
from embedctl.routing.endpoint import Endpoint
from embedctl.settings.options import Options
from embedctl.storage.hash_index import HashIndex
from embedctl.vectors import agreement
from embedctl.vectors.checks import Firsts, RowWalk, keys, marks
from embedctl.vectors.files import Stored
from embedctl.vectors.findings import Findings

_SHAPED_ALIKE = ("chunk_size", "chunk_overlap", "on_too_long", "on_blank", "on_bad_row", "on_bad_file", *inputs.ALIKE)


def options_of(stored: Stored) -> dict[str, Any] | None:
    """Options that decide what rows an input has, as the output was made with them; None when it does not say."""
    said = stored.options
    return None if said is None else {name: said[name] for name in _SHAPED_ALIKE if said.get(name) is not None}


def read_options(options: Options, spool: Path) -> inputs.ReadOptions:
    """How the input is read: its own columns are enough."""
    alike = {name: getattr(options, name) for name in inputs.ALIKE}
    return inputs.ReadOptions(keep="none", spool=spool, on_bad_file=options.on_bad_file, **alike)


@dataclass(slots=True)
class _Wanted:
    """Rows that an input asks for: (id, chunk_index) and the hash of the text sent; and those it has no text for."""

    ids: list[Any] = field(default_factory=list)
    chunk_indexes: list[int] = field(default_factory=list)
    hashes: bytes = b""
    failures: list[Failure] = field(default_factory=list)


class Against:
    """Compares an input with the rows that were walked over.

    Args:
        endpoint: Whose wording the texts were sent in; None when it cannot be known: then only ids are compared.
        folder: For indexes on the disk.
    """

    def __init__(
        self,
        stored: Stored,
        rows: RowWalk,
        findings: Findings,
        *,
        source: inputs.Source,
        options: Options,
        endpoint: Endpoint | None,
        folder: Path,
    ) -> None:
        self._stored, self._rows, self._findings = stored, rows, findings
        self._source, self._options, self._offer, self._folder = source, options, endpoint, folder
        self._label = source.label
        self.rows_read = 0
        self._matched = 0
        self._asked = 0
        self._repeated = 0

    def check(self) -> None:
        """Read all of the input.

        Raises:
            InputInvalid: It cannot be read.
        """
        with ExitStack() as stack:
            lost, wanted = Firsts(self._folder), Firsts(self._folder)
            stack.callback(lost.close)
            stack.callback(wanted.close)
            self._index_failures(lost)
            intake = self._intake(stack) if self._offer else None
            for block in self._source.blocks():
                self.rows_read += len(block)
                asked = self._exactly(block, intake) if intake else _by_id(block)
                self._check_rows(asked, lost, wanted)
                self._check_failures(asked.failures, lost)
            if self._matched != self._rows.count or self._offer is None:
                self._find_extra(wanted)
        if self._repeated and self._repeated == self._findings.count("repeated_id"):
            self._findings.excuse("repeated_id")  # the input's own ids repeat

    def _index_failures(self, lost: Firsts) -> None:
        batch: list[tuple[Any, int]] = []
        for failure in agreement.failures(self._stored, self._findings):
            batch.append((failure.get("id"), int(failure.get("chunk_index") or 0)))
            if len(batch) == 1 << 14:
                _add(lost, batch)
                batch = []
        _add(lost, batch)

    def _intake(self, stack: ExitStack) -> tuple[Planner, _Wanted]:
        """Steps 2 and 3 as a run takes them; what it would write down is caught, what it would send is dropped."""
        assert self._offer is not None  # noqa: S101 - the caller looks
        known, seen = (stack.enter_context(HashIndex(self._folder)) for _ in range(2))
        caught = _Wanted()

        def catch(block: Any, positions: list[int], chunk_indexes: list[int], texts: list[str] | None) -> Any:
            caught.ids = [block.ids[position] for position in positions]
            caught.chunk_indexes = chunk_indexes
            return pa.record_batch({})

        intake = Planner(
            options=self._options,
            wording=text_rules(self._offer, self._options, self._source),
            packer=packer.Packer(Limits(items=4096)),
            known=known,
            seen=seen,
            columns=catch,
            failed_before={},
        )
        return intake, caught

    def _exactly(self, block: Any, intake: tuple[Planner, _Wanted]) -> _Wanted:
        steps, caught = intake
        caught.ids, caught.chunk_indexes = [], []
        slice_ = steps.open_slice(0, block.first_row)
        for _ in steps.take(block, slice_):
            pass
        for _ in steps.close(slice_):
            pass
        return _Wanted(caught.ids, caught.chunk_indexes, b"".join(slice_.row_hashes), slice_.failures)

    def _check_rows(self, asked: _Wanted, lost: Firsts, wanted: Firsts) -> None:
        if not asked.ids:
            return
        found = keys(asked.ids, asked.chunk_indexes)
        numbers = np.arange(self._asked, self._asked + len(asked.ids), dtype=np.uint64)
        firsts, _ = wanted.seen(found, np.zeros(len(numbers), np.uint32), numbers)
        self._repeated += int((firsts != numbers).sum())
        self._asked += len(numbers)
        there, hash_marks = self._rows.ids.find(found)
        right = there.copy()
        if asked.hashes:
            known_texts, _ = self._rows.texts.find(asked.hashes)
            repeats = firsts != numbers
            same = hash_marks == marks(asked.hashes)
            right &= same | (known_texts & (repeats | bool(self._findings.count("repeated_id"))))
        failed, _ = lost.find(found)
        self._matched += int(right.sum())
        for at in np.flatnonzero(~right & ~failed):
            where = f"{self._label} row {asked.ids[at]!r}"
            chunk = f" (chunk {asked.chunk_indexes[at]})" if asked.chunk_indexes[at] else ""
            if there[at]:
                self._findings.add("input_changed", where, f"the output's vector{chunk} was made of another text")
            else:
                message = f"has no vector{chunk}, and the failures file does not list it"
                self._findings.add("input_missing", where, message)

    def _check_failures(self, failures: list[Failure], lost: Firsts) -> None:
        if not failures:
            return
        listed, _ = lost.find(keys([one.id for one in failures], [one.chunk_index for one in failures]))
        for at in np.flatnonzero(~listed):
            where = f"{self._label} row {failures[at].id!r}"
            message = f"cannot be embedded ({failures[at].reason}), and the failures file does not list it"
            self._findings.add("input_missing", where, message)

    def _find_extra(self, wanted: Firsts) -> None:
        before = self._findings.count("input_extra")
        for batch in self._stored.batches(["id", "chunk_index"], broken=lambda where, what: None):
            ids, indexes = batch.values("id"), batch.values("chunk_index")
            if self._offer is None:
                indexes = [0] * len(indexes)
            there, _ = wanted.find(keys(ids, indexes))
            for at in np.flatnonzero(~there):
                message = f"id {ids[at]!r} (chunk {indexes[at]}) is not in the input"
                self._findings.add("input_extra", self._stored.place(batch.first_row + int(at)), message)
        wrong = sum(self._findings.count(check) for check in ("input_missing", "input_changed"))
        if self._offer and self._findings.count("input_extra") == before and not wrong:
            message = f"{self._matched:,} rows of the input have a vector, the output holds {self._rows.count:,}"
            self._findings.add("row_count", str(self._stored.path), message)


def _by_id(block: Any) -> _Wanted:
    """Without the text rules: each row that has text, as its first chunk."""
    asked = _Wanted()
    values = block.tokens if block.tokens is not None else block.texts
    for name, value in zip(block.ids, values, strict=True):
        if value is None or not len(value) or (isinstance(value, str) and is_blank(value)):
            asked.failures.append(Failure(row=0, id=name, chunk_index=0, reason="no text", message=""))
        else:
            asked.ids.append(name)
            asked.chunk_indexes.append(0)
    return asked


def _add(index: Firsts, batch: list[tuple[Any, int]]) -> None:
    if batch:
        zeros: NDArray[np.uint32] = np.zeros(len(batch), np.uint32)
        index.seen(keys([one[0] for one in batch], [one[1] for one in batch]), zeros, zeros.astype(np.uint64))

"""One shard of an output on a store: each slice becomes a part, which is announced in the shard's log before.

    part in scratch ─▶ failures of the slice ─▶ log entry {"part"} ─▶ part-NNNNN-NNNNNN.parquet

A part that is there already, made of the same rows by an earlier holder of the shard, is as good as one's own.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken, OutputRefused, StorageFailed
from embedctl.journal.shard_log import Entry, ShardLog
from embedctl.outputs import failures
from embedctl.outputs.folder import parquet_content
from embedctl.outputs.output import Facts, Finished, Record, lines, row_counts
from embedctl.outputs.parquet import Layout
from embedctl.outputs.parts import PublishedPart
from embedctl.outputs.scratch import ScratchOutput
from embedctl.records import RowCounts, Space, uuid7

FAILURES_FOLDER = "failures/"
PARTS = "part-*.parquet"

_WRITTEN_AT_ONCE = 1 << 20


def part_name(shard: str, number: int) -> str:
    """The name of a part; sorted, they are in the order of the input."""
    return f"part-{shard}-{number:06d}.parquet"


def failures_name(shard: str) -> str:
    """The object that lists a shard's failures."""
    return f"{FAILURES_FOLDER}{shard}.jsonl"


@dataclass
class StoreOutput(ScratchOutput):
    """An output on a store, as far as one worker has it on this machine: its scratch, which may vanish.

    What is there already, and what its vectors were made with, is told by plan, space, `done` and logs.
    """

    keeps_journal: bool = False
    resumable: bool = True
    replacing: bool = False
    failures: Path | None = None

    def put(self, finished: Finished) -> Path | None:
        """Slices are put by shards.

        Raises:
            InvariantBroken: Always.
        """
        raise InvariantBroken("a slice was put into no shard")

    def tidy(self) -> None:
        """Nothing: scratch is removed as a whole."""


@dataclass(kw_only=True)
class ShardOutput(StoreOutput):
    """Where the slices of one shard go.

    Attributes:
        fix_space: Called before the first part: the job's vectors are of this space from then on.
        parts: Published ones, by slice number.
        reasons: Rows that failed, by reason.
    """

    log: ShardLog
    fix_space: Callable[[Space], None] = lambda space: None
    parts: dict[int, PublishedPart] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    _without_part: list[bytes] = field(default_factory=list)

    def take_over(self, announced: Iterable[Entry]) -> None:
        """Take the parts that earlier holders have published, as their log entries say."""
        by_number: dict[int, list[PublishedPart]] = {}
        for entry in announced:
            part = _part(entry.about)
            if part is not None:
                by_number.setdefault(part.number, []).append(part)
        number = 0
        while number in by_number:
            there = self._published(by_number[number])
            if there is None:
                return
            self.parts[number] = there
            number += 1

    def _published(self, announced: list[PublishedPart]) -> PublishedPart | None:
        """Which of these parts of one slice is on the store; None: none is."""
        name = announced[0].name
        found = self.log.patience.with_(lambda: self.log.store.stat(name))
        if found is None:
            return None
        fits = [part for part in announced if part.bytes == found.size]
        if len(fits) > 1:
            digest = hashlib.sha256(self.log.patience.with_(lambda: self.log.store.read(name))).hexdigest()
            fits = [part for part in fits if part.sha256 == digest]
        if not fits:
            raise OutputRefused(
                f"{self.log.store.url}/{name} is not what was announced for it", hint="was it changed by others?"
            )
        return fits[0]

    def put(self, finished: Finished) -> Path | None:
        """Publish the slice; its local copy, which later rows with the same text are read from.

        Raises:
            ShardLost: Another worker has the shard.
            InvariantBroken: A part of other rows is there already.
        """
        failed = b"".join(lines(finished.failed))
        if finished.layout is None:
            self._without_part.append(failed)
            return None
        name = part_name(self.log.shard, finished.number)
        path = self.state / name
        facts: dict[str, Any] = {}

        def told(rows: int) -> bytes:
            facts.update(orjson.loads(finished.facts(rows)), part_id=uuid7().hex)
            return orjson.dumps(facts)

        with _HashedFile(path) as file:
            parquet_content(finished.tables, finished.layout, told)(file)
        self.fix_space(Space(**facts["space"]))
        part = PublishedPart(
            name=name,
            number=finished.number,
            id=facts["part_id"],
            rows=facts["rows"],
            bytes=path.stat().st_size,
            sha256=file.sha256.hexdigest(),
            counts=RowCounts(**facts["counts"]),
            rows_hash=facts.get("rows_hash"),
            failures=f"{self.log.folder}failed/{finished.number:06d}-{facts['part_id']}.jsonl" if failed else None,
        )
        if part.failures is not None:
            self.log.put_beside(part.failures, failed)
        self.log.append({"part": part.number, **asdict(part)})
        if not self.log.put(name, path):
            part = self._as_good(part)
        self.parts[part.number] = part
        return path

    def _as_good(self, mine: PublishedPart) -> PublishedPart:
        """The part that is there in place of mine.

        Raises:
            InvariantBroken: It is of other rows, or nobody has announced it.
        """
        self.log.check()
        entries = self.log.entries()
        announced = [part for entry in entries if (part := _part(entry.about)) and part.number == mine.number]
        found = self._published([part for part in announced if part.id != mine.id] or [mine])
        if found is None or found.id == mine.id or found.rows_hash != mine.rows_hash:
            raise InvariantBroken(
                f"{self.log.store.url}/{mine.name} is there already, and holds other rows than those of its slice"
            )
        return found

    def finish(self, layout: Layout | None, facts: Facts, record: Callable[[], Record]) -> None:
        """Put all failures into one object. A shard without rows leaves an empty part."""
        if layout is not None and not self.parts and not self._without_part:
            self.put(Finished(number=0, tables=iter(()), layout=layout, facts=facts, failed=()))
        listed = [self.log.patience.with_(lambda n=part.failures: self.log.store.read(n))  # type: ignore[misc]
                  for part in self._in_order() if part.failures is not None]  # fmt: skip
        content = b"".join([*listed, *self._without_part])
        if content:
            self._put_failures(content)

    def _put_failures(self, content: bytes) -> None:
        name = failures_name(self.log.shard)
        path = self.state / "failures.jsonl"
        path.write_bytes(content)
        self.reasons, self.failures = failures.reasons(path), path
        if self.log.put(name, content) or self.log.patience.with_(lambda: self.log.store.read(name)) == content:
            return
        # Of an earlier holder, who died before anything named it: nobody relies on it.
        self.log.check()
        self.log.patience.with_(lambda: self.log.store.remove(name))
        self.log.put_new(name, content)

    def _in_order(self) -> list[PublishedPart]:
        return [self.parts[number] for number in sorted(self.parts)]

    @property
    def published(self) -> tuple[PublishedPart, ...]:
        """Its parts in order."""
        return tuple(self._in_order())

    def part_count(self) -> int:
        """Parts published so far."""
        return len(self.parts)


def _part(about: Mapping[str, Any]) -> PublishedPart | None:
    """The part that a log entry announces; None: it announces none.

    Raises:
        StorageFailed: It is not what embedctl writes.
    """
    if "part" not in about:
        return None
    counts = row_counts(about.get("counts"))
    with suppress(KeyError, TypeError, ValueError):
        fields = {name: about[name] for name in ("name", "number", "id", "rows", "bytes", "sha256")}
        if counts is not None:
            return PublishedPart(
                **fields, counts=counts, rows_hash=about.get("rows_hash"), failures=about.get("failures")
            )
    raise StorageFailed("an entry of a shard's log announces a part as no version of embedctl does")


class _HashedFile(io.BufferedWriter):
    """A new file that is written from its beginning to its end, and hashed meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"), _WRITTEN_AT_ONCE)
        self.sha256 = hashlib.sha256()

    def write(self, buffer: Any) -> int:
        """Write, and hash what is written."""
        self.sha256.update(buffer)
        return super().write(buffer)

"""`batch run -o DIR`: a folder of parts, each of them whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import OutputRefused
from embedctl.inputs.files import STDIN
from embedctl.journal import Trust
from embedctl.journal.trust import seal
from embedctl.outputs import failures, parquet
from embedctl.outputs.output import (
    OUTPUT_MODE,
    Existing,
    Facts,
    Finished,
    OutputRequest,
    Record,
    check_space,
    has_begun,
    journal_of,
    lines,
    nothing_left,
    peeked,
    row_counts,
)
from embedctl.outputs.parquet import Layout, Part
from embedctl.records import RowCounts, Space, Warned, uuid7
from embedctl.routing.space_lock import NAME as LOCK_NAME
from embedctl.storage import Disk
from embedctl.storage.store import LocalStore

STATE_FOLDER = "_embedctl"
PART_PATTERN = "part-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"
FAILURES = "failures.jsonl"
RECORD = "run.json"


_MOST_STATE_BYTES = 1 << 24
_MOST_PARTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Commit:
    """What decides that a new output takes the place of the one that is there.

    Attributes:
        parts: How many it has, numbered from 0.
        failures: Whether it has a failures file.
    """

    parts: int
    failures: bool
    record: Record

    def encoded(self, secret: bytes) -> bytes:
        """As a file, sealed by the home that decided it."""
        content: dict[str, Any] = {"parts": self.parts, "failures": self.failures, "record": self.record}
        text = orjson.dumps(content, default=str)
        return orjson.dumps({**orjson.loads(text), "seal": seal(secret, "commit", text)})

    @classmethod
    def decoded(cls, content: bytes, trust: Trust, state: Path) -> Commit | None:
        """From a file; None unless this home wrote it: an older version, without a seal, where `runs/` says so."""
        try:
            found = orjson.loads(content)
            mark = found.pop("seal", None)
            decided = cls(found["parts"], found["failures"], found["record"])
        except (orjson.JSONDecodeError, RecursionError, AttributeError, TypeError, KeyError):
            return None
        is_ours = mark == seal(trust.secret, "commit", orjson.dumps(found)) if mark else trust.is_registered(state)
        if not is_ours or not isinstance(decided.record, dict) or not isinstance(decided.failures, bool):
            return None
        return decided if type(decided.parts) is int and 0 <= decided.parts <= _MOST_PARTS else None


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:06d}.parquet"


@dataclass
class FolderOutput:
    """`batch run -o DIR`: one part per slice.

    Parts go to `into`: the folder itself, or `_embedctl/next` while an existing output is replaced. What an
    interrupted run has put there, and the next one cannot go on with, waits in `_embedctl/kept`: it was paid for.
    """

    folder: Path
    trust: Trust
    disk: Disk = storage.DISK
    keeps_journal: bool = False
    resumable: bool = True
    replacing: bool = False

    @property
    def state(self) -> Path:
        """Journal, lock, run record."""
        return self.folder / STATE_FOLDER

    @property
    def next(self) -> Path:
        """The output that will replace the one that is there."""
        return self.state / "next"

    @property
    def kept(self) -> Path:
        """Parts that belong to no output, and hold vectors that were paid for."""
        return self.state / "kept"

    @property
    def into(self) -> Path:
        """Where new parts are put."""
        return self.next if self.replacing else self.folder

    @property
    def failed(self) -> Path:
        """The failures of each slice of this run."""
        return self.state / "failed"

    @property
    def _commit(self) -> Path:
        return self.state / "commit.json"

    @property
    def failures_path(self) -> Path:
        """DIR/failures.jsonl, whether it is there or not."""
        return self.folder / FAILURES

    @property
    def failures(self) -> Path | None:
        """DIR/failures.jsonl, when a row failed or was skipped."""
        return self.failures_path if self.failures_path.is_file() else None

    def parts(self, folder: Path | None = None) -> list[Path]:
        """Parts in a folder (the output as it stands), in order."""
        return parts_of(folder or self.folder)

    def put(self, finished: Finished) -> Path | None:
        """Publish the slice as a part, its failures first; one that is there already gets a second name."""
        self.disk.make_folder(self.into)
        if finished.failed:
            self.disk.make_folder(self.failed)
            storage.replace(self.disk, self.failed / f"{finished.number:06d}.jsonl", b"".join(lines(finished.failed)))
        if finished.layout is None:
            return None
        path = self.into / part_name(finished.number)
        if self.replacing and finished.same_as is not None and self.disk.hard_link(finished.same_as.path, path):
            self.disk.sync_folder(self.into)
            return path
        content = parquet_content(finished.tables, finished.layout, finished.facts)
        if not LocalStore(self.into, self.disk, OUTPUT_MODE).put_if_absent(path.name, content):
            raise OutputRefused(f"another process created {path} during this run", hint="run the same command again")
        return path

    def finish(self, layout: Layout | None, facts: Facts, record: Callable[[], Record]) -> None:
        """Put all failures into one file, and swap the new parts in. An input without rows leaves an empty part."""
        if layout is not None and not self.parts(self.into):
            self.put(Finished(number=0, tables=iter(()), layout=layout, facts=facts, failed=()))
        listed = storage.paths_in(self.failed, "*.jsonl")
        target = self.next / FAILURES if self.replacing else self.failures_path
        if listed:
            self.disk.make_folder(target.parent)
            storage.replace(self.disk, target, _joined(listed), mode=OUTPUT_MODE)
        else:
            self.disk.unlink(target)
        if self.replacing:
            count = len(self.parts(self.next))
            commit = Commit(count, bool(listed), record())
            storage.publish(self.disk, self._commit, commit.encoded(self.trust.secret))
            self._swap(commit)
        else:
            self.record(record())

    def roll_forward(self, notes: list[Warned]) -> None:
        """Finish a swap whose commit record is there; doing it again changes nothing.

        Args:
            notes: Gets a word when what is there is no commit record of ours: the run is gone on with instead.
        """
        if not os.path.lexists(self._commit):
            return
        commit = self._decided()
        if commit is None:
            notes.append(Warned("set_aside", str(storage.set_aside(self.disk, self._commit))))
        else:
            self._swap(commit)

    def _decided(self) -> Commit | None:
        """The commit record, when this home wrote it, and all its parts are there."""
        try:
            content = storage.read_small(self._commit, max_bytes=_MOST_STATE_BYTES, follow=False)
            found = Commit.decoded(content, self.trust, self.state)
        except OSError:
            return None
        there = {path.name for place in (self.folder, self.next) for path in self.parts(place)}
        return found if found is not None and {*map(part_name, range(found.parts))} <= there else None

    def _swap(self, commit: Commit) -> None:
        names = {part_name(number) for number in range(commit.parts)}
        for path in [*self.parts(self.next), self.next / FAILURES]:
            if path.name in names or (path.name == FAILURES and path.is_file()):
                self.disk.rename(path, self.folder / path.name)
        for part in self.parts():
            if part.name not in names:
                self.disk.unlink(part)
        if not commit.failures:
            self.disk.unlink(self.failures_path)
        self.disk.sync_folder(self.folder)
        storage.remove_tree(self.disk, self.next)
        self.record(commit.record)
        self.disk.unlink(self._commit)
        self.disk.sync_folder(self.state)
        self.replacing = False

    def keep_aside(self) -> None:
        """An interrupted run that is not continued: what it bought for `next` stays known, under names of its own."""
        parts = self.parts(self.next)
        if parts:
            self.disk.make_folder(self.kept)
        for part in parts:
            self.disk.rename(part, self.kept / f"{uuid7().hex}.parquet")
        if parts:
            self.disk.sync_folder(self.kept)
        storage.remove_tree(self.disk, self.next)
        storage.remove_tree(self.disk, self.failed)

    def record(self, record: Record) -> None:
        """`_embedctl/run.json`."""
        content = orjson.dumps(record, option=orjson.OPT_INDENT_2, default=str)
        storage.replace(self.disk, self.state / RECORD, content)

    def tidy(self) -> None:
        """Remove the slices' failures, which stand in one file now, and what was kept aside."""
        storage.remove_tree(self.disk, self.failed)
        storage.remove_tree(self.disk, self.kept)
        storage.remove_tree(self.disk, self.next)
        self.disk.unlink(self.state / STDIN)

    @property
    def lock_path(self) -> Path:
        """`_embedctl/space.lock`: whoever reads all files of the folder finds parts alone."""
        return lock_of(self.folder, is_folder=True)

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder

    def own_files(self) -> tuple[Path, ...]:
        """Its parts."""
        return tuple(self.parts())

    def check_input(self, path: Path, label: str) -> None:
        """Nothing: inputs in an output folder are left out, and parts are never one."""

    def part_count(self) -> int:
        """Parts published so far."""
        return len(self.parts(self.into))

    def holds_more_than_state(self) -> bool:
        """Whether anything but our own state stands in the folder: without that, it would be nobody's."""
        return any(path != self.state for path in storage.paths_in(self.folder))

    def existing(self, request: OutputRequest) -> Existing:
        """What is there, under its lock.

        Raises:
            OutputRefused: Something that is not ours, or vectors of another space.
        """
        for folder in (self.folder, self.state, self.next, self.failed):
            storage.remove_leftovers(self.disk, folder)
        there = Existing()
        self.roll_forward(there.notes)
        record = _record(self)
        if record is None:
            there.notes.append(Warned("set_aside", str(storage.set_aside(self.disk, self.state / RECORD))))
            record = {"replacing": False}
        parts = self.parts()
        same = (
            not request.anew
            and record.get("binding") == request.binding
            and record.get("overwrite", False) == request.overwrite
        )
        continued = same and record.get("state") == "running" and _is_whole(self, replacing=bool(record["replacing"]))
        there.recovered = journal_of(self.state, self.trust, there.notes, self.disk)
        found, vectors = None, 0
        for path in parts:  # one at a time: a part of an older version names every file of the input
            part = parquet.read_metadata(path)
            if part is None:
                there.damaged.append(path)
                continue
            found = found or part
            vectors += part["rows"] if isinstance(part.get("rows"), int) else 0
        if parts and not request.overwrite and (found is not None or "space_id" not in record):
            check_space(found, request.space, self.folder)
        if found is not None and not (request.overwrite and request.space != Space(**found["space"])):
            there.space = Space(**found["space"])
        if not request.retry_failed:
            there.failed = failures.of([self.failures_path, *storage.paths_in(self.failed, "*.jsonl")])
        complete = same and record.get("state") == "complete" and len(parts) == record.get("parts")
        if complete and not there.damaged and (not request.overwrite or has_begun(there.recovered)):
            counts = row_counts(record.get("counts"))
            if counts is not None and counts.vectors == vectors:
                there.finished = nothing_left(counts, request, self.failures_path)
        if there.finished is not None:
            return there
        self.replacing = bool(record["replacing"]) if continued else bool(parts)
        if continued:
            for number, counts, rows_hash in _done(self):
                there.done[number] = counts
                if rows_hash is not None:
                    there.rows_hashes[number] = rows_hash
        else:
            self.keep_aside()
        there.parts = list(_sources(self, request, there, parts))
        return there

    def peek(self, request: OutputRequest) -> Existing:
        """What is there, for one who changes nothing."""
        bought = [*storage.paths_in(self.kept, "*.parquet"), *self.parts(self.next)]
        return peeked(self.state, self.trust, self.parts(), bought, self.failures_path, request)

    def close(self) -> None:
        """Nothing is left open."""


def _joined(paths: Sequence[Path]) -> Callable[[BinaryIO], None]:
    def content(file: BinaryIO) -> None:
        for path in paths:
            file.write(path.read_bytes())

    return content


def parquet_content(tables: Iterator[Any], layout: Layout, facts: Facts) -> Callable[[BinaryIO], None]:
    """Writes a part."""

    def content(file: BinaryIO) -> None:
        rows = 0
        part = parquet.writer(file, layout)
        for table in tables:
            part.write_table(table, row_group_size=parquet.ROW_GROUP_ROWS)
            rows += len(table)
        part.add_key_value_metadata({parquet.METADATA_KEY.decode(): facts(rows).decode()})
        part.close()

    return content


def lock_of(output: Path, *, is_folder: bool) -> Path:
    """Where the `space.lock` of an output is."""
    return output / STATE_FOLDER / LOCK_NAME if is_folder else output.with_name(f"{output.name}.{LOCK_NAME}")


def parts_of(folder: Path) -> list[Path]:
    """The parts of an output folder, in order. Whoever reads an output asks here which files it is."""
    return storage.paths_in(folder, PART_PATTERN)


def _is_whole(output: FolderOutput, *, replacing: bool) -> bool:
    """Whether the parts of the run to be continued are numbered from 0 without a gap."""
    names = [path.name for path in output.parts(output.next if replacing else output.folder)]
    return names == [part_name(number) for number in range(len(names))]


def _sources(output: FolderOutput, request: OutputRequest, there: Existing, parts: list[Path]) -> Iterator[Part]:
    """Every part whose vectors may be taken: those that this run replaces, and what unfinished runs have bought."""
    space = there.space or request.space
    old = parts if output.replacing else []
    bought = [*storage.paths_in(output.kept, "*.parquet"), *(output.into / part_name(number) for number in there.done)]
    for path in [*(old if request.reuse and not request.overwrite else []), *bought]:
        found = parquet.read_metadata(path)
        if found is None or (space is not None and found["space_id"] != space.space_id):
            continue
        if not parquet.is_precise(path, request.dtype):
            continue
        there.space = there.space or Space(**found["space"])
        yield Part(path, found["space"]["dimensions"])


def _record(output: FolderOutput) -> dict[str, Any] | None:
    """The last run's record; None when somebody broke it: parts and journal speak for themselves."""
    nothing: dict[str, Any] = {"replacing": False}
    if not os.path.lexists(output.state / RECORD):
        return nothing
    try:
        found = orjson.loads(storage.read_small(output.state / RECORD, max_bytes=_MOST_STATE_BYTES, follow=False))
    except (OSError, orjson.JSONDecodeError, RecursionError):
        return None
    if not isinstance(found, dict) or row_counts(found.get("counts")) is None:
        return None
    return nothing | found


def _done(output: FolderOutput) -> Iterator[tuple[int, RowCounts, str | None]]:
    """Slots that are published, from 0 to the first that is not, and the hash of the rows that were read for each."""
    for number in range(len(output.parts(output.into))):
        found = parquet.read_metadata(output.into / part_name(number))
        counts = row_counts(found.get("counts")) if found else None
        if found is None or counts is None:
            raise OutputRefused(
                f"{output.into / part_name(number)} is damaged", hint="remove it, then run the same command again"
            )
        rows_hash = found.get("rows_hash")
        yield number, counts, rows_hash if isinstance(rows_hash, str) else None

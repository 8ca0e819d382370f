"""`batch run -o DIR`: a folder of parts, each of them whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from embedctl import storage
from embedctl.errors import OutputRefused
from embedctl.inputs.files import STDIN
from embedctl.journal import recover
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
    lines,
    nothing_left,
    peeked,
)
from embedctl.outputs.parquet import Layout, Part
from embedctl.records import RowCounts, Space, uuid7
from embedctl.storage import Disk

STATE_FOLDER = "_embedctl"
PART_PATTERN = "part-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"
FAILURES = "failures.jsonl"
RECORD = "run.json"


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:06d}.parquet"


@dataclass
class FolderOutput:
    """`batch run -o DIR`: one part per slot.

    Parts go to `into`: the folder itself, or `_embedctl/next` while an existing output is replaced. What an
    interrupted run has put there, and the next one cannot go on with, waits in `_embedctl/kept`: it was paid for.
    """

    folder: Path
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
        """The failures of each slot of this run."""
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
        """Publish the slot as a part, its failures first; one that is there already gets a second name."""
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
        if not storage.publish(
            self.disk, path, _parquet(finished.tables, finished.layout, finished.facts), mode=OUTPUT_MODE
        ):
            raise OutputRefused(f"{path} appeared while it was made", hint="run the same command again")
        return path

    def finish(self, layout: Layout | None, facts: Facts, record: Callable[[], Record]) -> None:
        """Put all failures into one file, and swap the new parts in. An input without rows leaves an empty part."""
        if layout is not None and not self.parts(self.into):
            self.put(Finished(number=0, tables=iter(()), layout=layout, facts=facts, failed=()))
        listed = sorted(self.failed.glob("*.jsonl"))
        target = self.next / FAILURES if self.replacing else self.failures_path
        if listed:
            self.disk.make_folder(target.parent)
            storage.replace(self.disk, target, _joined(listed), mode=OUTPUT_MODE)
        else:
            self.disk.unlink(target)
        if self.replacing:
            count = len(self.parts(self.next))
            commit = {"parts": count, "failures": bool(listed), "record": record()}
            storage.publish(self.disk, self._commit, orjson.dumps(commit, default=str))
            self.roll_forward()
        else:
            self.record(record())

    def roll_forward(self) -> None:
        """Finish a swap whose commit record is there; doing it again changes nothing."""
        if not self._commit.is_file():
            return
        commit = orjson.loads(self._commit.read_bytes())
        for name in [*map(part_name, range(commit["parts"])), FAILURES]:
            if (self.next / name).is_file():
                self.disk.rename(self.next / name, self.folder / name)
        for part in self.parts()[commit["parts"] :]:
            self.disk.unlink(part)
        if not commit["failures"]:
            self.disk.unlink(self.failures_path)
        self.disk.sync_folder(self.folder)
        storage.remove_tree(self.disk, self.next)
        self.record(commit["record"])
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
        """Remove the slots' failures, which stand in one file now, and what was kept aside."""
        storage.remove_tree(self.disk, self.failed)
        storage.remove_tree(self.disk, self.kept)
        storage.remove_tree(self.disk, self.next)
        self.disk.unlink(self.state / STDIN)

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
        return any(path != self.state for path in self.folder.iterdir())

    def existing(self, request: OutputRequest) -> Existing:
        """What is there, under its lock.

        Raises:
            OutputRefused: Something that is not ours, or vectors of another space.
        """
        for folder in (self.folder, self.state, self.next, self.failed):
            storage.remove_leftovers(self.disk, folder)
        self.roll_forward()
        record = _record(self)
        parts = self.parts()
        same = record.get("binding") == request.binding and record.get("overwrite", False) == request.overwrite
        continued = same and record.get("state") == "running" and _is_whole(self, replacing=bool(record["replacing"]))
        there = Existing(recovered=recover(self.state / "journal"))
        metadata = [parquet.read_metadata(path) for path in parts]
        there.damaged = [path for path, found in zip(parts, metadata, strict=True) if found is None]
        found = next(filter(None, metadata), None)
        if parts and not request.overwrite and (found is not None or "space_id" not in record):
            check_space(found, request.space, self.folder)
        if found is not None and not (request.overwrite and request.space != Space(**found["space"])):
            there.space = Space(**found["space"])
        if not request.retry_failed:
            there.failed = failures.of([self.failures_path, *sorted(self.failed.glob("*.jsonl"))])
        complete = same and record.get("state") == "complete" and len(parts) == record.get("parts")
        if complete and not there.damaged and (not request.overwrite or has_begun(there.recovered)):
            there.finished = nothing_left(RowCounts(**record["counts"]), request)
        if there.finished is not None:
            return there
        self.replacing = bool(record["replacing"]) if continued else bool(parts)
        if continued:
            there.done = dict(_done(self))
        else:
            self.keep_aside()
        there.parts = list(_sources(self, request, there, parts))
        return there

    def peek(self, request: OutputRequest) -> Existing:
        """What is there, for one who changes nothing."""
        bought = [*sorted(self.kept.glob("*.parquet")), *self.parts(self.next)]
        return peeked(self.state, self.parts(), bought, self.failures_path, request)

    def close(self) -> None:
        """Nothing is left open."""


def _joined(paths: Sequence[Path]) -> Callable[[BinaryIO], None]:
    def content(file: BinaryIO) -> None:
        for path in paths:
            file.write(path.read_bytes())

    return content


def _parquet(tables: Iterator[Any], layout: Layout, facts: Facts) -> Callable[[BinaryIO], None]:
    def content(file: BinaryIO) -> None:
        rows = 0
        part = parquet.writer(file, layout)
        for table in tables:
            part.write_table(table, row_group_size=parquet.ROW_GROUP_ROWS)
            rows += len(table)
        part.add_key_value_metadata({parquet.METADATA_KEY.decode(): facts(rows).decode()})
        part.close()

    return content


def parts_of(folder: Path) -> list[Path]:
    """The parts of an output folder, in order. Whoever reads an output asks here which files it is."""
    return sorted(folder.glob(PART_PATTERN))


def _is_whole(output: FolderOutput, *, replacing: bool) -> bool:
    """Whether the parts of the run to be continued are numbered from 0 without a gap."""
    names = [path.name for path in output.parts(output.next if replacing else output.folder)]
    return names == [part_name(number) for number in range(len(names))]


def _sources(output: FolderOutput, request: OutputRequest, there: Existing, parts: list[Path]) -> Iterator[Part]:
    """Every part whose vectors may be taken: those that this run replaces, and what unfinished runs have bought."""
    space = there.space or request.space
    old = parts if output.replacing else []
    bought = [*sorted(output.kept.glob("*.parquet")), *(output.into / part_name(number) for number in there.done)]
    for path in [*(old if request.reuse and not request.overwrite else []), *bought]:
        found = parquet.read_metadata(path)
        if found is None or (space is not None and found["space_id"] != space.space_id):
            continue
        if not parquet.is_precise(path, request.dtype):
            continue
        there.space = there.space or Space(**found["space"])
        yield Part(path, found["space"]["dimensions"])


def _record(output: FolderOutput) -> dict[str, Any]:
    """The last run's record. One that somebody broke is as good as none: parts and journal speak for themselves."""
    try:
        found = orjson.loads((output.state / RECORD).read_bytes())
        return {"replacing": False, **found, "counts": asdict(RowCounts(**found["counts"]))}
    except (OSError, orjson.JSONDecodeError, TypeError, KeyError):
        return {"replacing": False}


def _done(output: FolderOutput) -> Iterator[tuple[int, RowCounts]]:
    """Slots that are published, from 0 to the first that is not."""
    for number in range(len(output.parts(output.into))):
        found = parquet.read_metadata(output.into / part_name(number))
        if found is None or "counts" not in found:
            raise OutputRefused(
                f"{output.into / part_name(number)} is damaged", hint="remove it, then run the same command again"
            )
        yield number, RowCounts(**found["counts"])

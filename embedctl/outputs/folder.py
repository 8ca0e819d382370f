"""Where a run's rows end up. Whole or not at all: everything durable goes through the disk's `publish` and `replace`.

`batch` writes a folder of parts (here), `embed` one file (file.py) or JSON lines (stream.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson

from embedctl import storage
from embedctl.errors import OutputRefused
from embedctl.inputs.files import STDIN
from embedctl.outputs import parquet
from embedctl.outputs.parquet import Layout, Part
from embedctl.records import Failure, Space, uuid7
from embedctl.storage import Disk

STATE_FOLDER = "_embedctl"
PART_PATTERN = "part-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"
FAILURES = "failures.jsonl"
RECORD = "run.json"

OUTPUT_MODE = 0o666
"""Outputs are the user's, as open as umask says; all other files are for the owner alone."""

Facts = Callable[[int], bytes]
"""Rows of the file → its metadata, see parquet.metadata."""


Record = Mapping[str, Any]
"""What a run binds, for the next one: `_embedctl/run.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A complete slot, ready to be written.

    Attributes:
        layout: None when no row had text, and nobody knows how wide a vector would be.
        same_as: An older part with exactly these rows.
    """

    number: int
    tables: Iterator[Any]
    layout: Layout | None
    facts: Facts
    failed: Sequence[Failure]
    same_as: Part | None = None


class Output(Protocol):
    """What the pipeline writes to.

    Attributes:
        keeps_journal: Vectors stay in the journal until `finish`: slots that are put are no parts.
    """

    keeps_journal: bool

    @property
    def state(self) -> Path:
        """Folder of journal, lock and run record."""

    def put(self, finished: Finished) -> Path | None:
        """Take a complete slot; the part it became, where it became one."""

    def finish(self, layout: Layout | None, facts: Facts, record: Record) -> None:
        """Everything was put: make the output what its name says, and keep the record that says so."""

    def record(self, record: Record) -> None:
        """Keep what the run binds, for the next one; where the output itself does not say it."""

    def tidy(self) -> None:
        """The run is done and its record written: remove what only served it."""

    def close(self) -> None:
        """Let go of what is unfinished."""

    @property
    def failures(self) -> Path | None:
        """The failures file, None when there is none."""


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
        return sorted((folder or self.folder).glob(PART_PATTERN))

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

    def finish(self, layout: Layout | None, facts: Facts, record: Record) -> None:
        """Put all failures into one file, and swap the new parts in."""
        listed = sorted(self.failed.glob("*.jsonl"))
        target = self.next / FAILURES if self.replacing else self.failures_path
        if listed:
            self.disk.make_folder(target.parent)
            storage.replace(self.disk, target, _joined(listed), mode=OUTPUT_MODE)
        else:
            self.disk.unlink(target)
        if self.replacing:
            count = len(self.parts(self.next))
            commit = {"parts": count, "failures": bool(listed), "record": record}
            storage.publish(self.disk, self._commit, orjson.dumps(commit, default=str))
            self.roll_forward()
        else:
            self.record(record)

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

    def close(self) -> None:
        """Nothing is left open."""


def lines(failures: Iterable[Failure]) -> Iterator[bytes]:
    """The lines of a failures file."""
    for failure in failures:
        yield orjson.dumps(failure.as_dict(), option=orjson.OPT_APPEND_NEWLINE, default=str)


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


def check_space(found: dict[str, Any] | None, space: Space | None, where: Path) -> None:
    """Refuse an output that is not ours, or holds another space.

    Args:
        found: What embedctl wrote about it (parquet.read_metadata), None when it did not.
        space: The one that would be written; None while it is not known.

    Raises:
        OutputRefused: --overwrite replaces it.
    """
    if found is None:
        raise OutputRefused(f"{where} exists and is not embedctl's", hint="choose another -o, or --overwrite it")
    old = Space(**found["space"])
    if space is not None and old.space_id != space.space_id:
        differences = "; ".join(space.differences(old))
        raise OutputRefused(
            f"{where} holds vectors of another space ({differences})", hint="choose another -o, or --overwrite it"
        )

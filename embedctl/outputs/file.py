"""`embed -o FILE`: one file, written under a temporary name and put in place when it is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import OutputRefused
from embedctl.journal import Trust
from embedctl.journal.rescue import FOREIGN_PREFIX
from embedctl.outputs import failures, parquet
from embedctl.outputs.folder import lock_of
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
from embedctl.records import Space
from embedctl.storage import Disk


@dataclass
class FileOutput:
    """One Parquet file beside its failures; vectors stay in the journal until it is there."""

    path: Path
    trust: Trust
    disk: Disk = storage.DISK
    keeps_journal: bool = True
    resumable: bool = True
    replacing: bool = False
    _writer: Any = None
    _rows: int = 0
    _growing: storage.AtomicFile | None = None
    _failed: storage.AtomicFile | None = None

    @property
    def state(self) -> Path:
        """`.FILE.embedctl/` beside the output, removed when it is done."""
        return self.path.parent / f".{self.path.name}.embedctl"

    def put(self, finished: Finished) -> Path | None:
        """Append the slice's rows to the unfinished file."""
        if finished.layout is not None:
            self._open(finished.layout)
        for table in finished.tables:
            self._writer.write_table(table, row_group_size=parquet.ROW_GROUP_ROWS)
            self._rows += len(table)
        if finished.failed:
            self._failed = self._failed or storage.AtomicFile(self.disk, self.state, mode=OUTPUT_MODE)
            self._failed.file.writelines(lines(finished.failed))
        return None

    def _open(self, layout: Layout) -> storage.AtomicFile:
        if self._growing is None:
            self._growing = storage.AtomicFile(self.disk, self.state, mode=OUTPUT_MODE)
            self._writer = parquet.writer(self._growing.file, layout)
        return self._growing

    def finish(self, layout: Layout | None, facts: Facts, record: Callable[[], Record]) -> None:
        """Put the failures, then the file; without a layout (no row had text) there is no file.

        Until the state folder is removed the run counts as unfinished, so a crash between the two is no harm.
        """
        if self._failed is not None:
            self._failed.put(self.failures_path, over=True)
        if layout is not None:
            growing = self._open(layout)
            self._writer.add_key_value_metadata({parquet.METADATA_KEY.decode(): facts(self._rows).decode()})
            self._writer.close()
            if not growing.put(self.path, over=self.replacing):
                raise OutputRefused(f"another process created {self.path} during this run", hint="choose another -o")
        if self._failed is None:
            self.disk.unlink(self.failures_path)

    def record(self, record: Record) -> None:
        """Nothing: the file's own metadata says it."""

    def tidy(self) -> None:
        """Remove the state folder; journals of others that were set aside stay."""
        storage.remove_tree(self.disk, self.state, keep=lambda name: name.startswith(FOREIGN_PREFIX))

    @property
    def lock_path(self) -> Path:
        """FILE.space.lock."""
        return lock_of(self.path, is_folder=False)

    @property
    def place(self) -> Path:
        """The file."""
        return self.path

    def own_files(self) -> tuple[Path, ...]:
        """The file, when embedctl wrote it."""
        return () if parquet.read_metadata(self.path) is None else (self.path,)

    def check_input(self, path: Path, label: str) -> None:
        """Raise OutputRefused when the input is the file that would be replaced."""
        if self.path.exists() and path.samefile(self.path):
            raise OutputRefused(f"{label} is an input: the output would replace it", hint="choose another -o")

    def part_count(self) -> int:
        """No parts: one file."""
        return 0

    def holds_more_than_state(self) -> bool:
        """It has no folder of its own."""
        return False

    def existing(self, request: OutputRequest) -> Existing:
        """What is there, under its lock.

        Raises:
            OutputRefused: A file that is not ours, or one of another space.
        """
        storage.remove_leftovers(self.disk, self.state)
        there = Existing()
        there.recovered = journal_of(self.state, self.trust, there.notes, self.disk)
        if not self.path.exists():
            return there
        self.replacing = True
        if request.overwrite:
            return there
        found = parquet.read_metadata(self.path)
        check_space(found, request.space, self.path)
        assert found is not None  # noqa: S101 - check_space refuses it
        there.space = Space(**found["space"])
        if found.get("binding") == request.binding and not has_begun(there.recovered):
            there.finished = nothing_left(row_counts(found.get("counts")), request, self.failures_path)
        if request.reuse and parquet.is_precise(self.path, request.dtype):
            there.parts.append(Part(self.path, there.space.dimensions))
        there.failed = {} if request.retry_failed else failures.of([self.failures_path])
        return there

    def peek(self, request: OutputRequest) -> Existing:
        """What is there, for one who changes nothing."""
        return peeked(
            self.state, self.trust, [self.path] if self.path.exists() else [], [], self.failures_path, request
        )

    def close(self) -> None:
        """Let go of what is unfinished."""
        for growing in (self._growing, self._failed):
            if growing is not None:
                growing.drop()
        self._growing = self._failed = self._writer = None  # the run may begin it anew
        self._rows = 0

    @property
    def failures_path(self) -> Path:
        """FILE.failures.jsonl, whether it is there or not."""
        return self.path.with_name(self.path.name + ".failures.jsonl")

    @property
    def failures(self) -> Path | None:
        """FILE.failures.jsonl, when a row failed or was skipped."""
        return self.failures_path if self.failures_path.is_file() else None

"""Where a run's rows end up: a folder of parts, one file, or a stream of JSON lines. Whole or not at all.

A slot that is complete is handed over; `finish` makes the output what its name says. Everything durable goes through
`storage.publish` and `storage.replace`.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import orjson

from embedctl import storage, write
from embedctl.errors import OutputRefused
from embedctl.records import Space
from embedctl.slots import Failure
from embedctl.write import Layout

STATE_FOLDER = "_embedctl"
PART_PATTERN = "part-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"

OUTPUT_MODE = 0o666
"""Outputs are the user's, as open as umask says; all other files are for the owner alone."""

Facts = Callable[[int], bytes]
"""Rows of the file → its metadata, see write.metadata."""


class Output(Protocol):
    """What the pipeline writes to.

    Attributes:
        keeps_journal: Vectors stay in the journal until `finish`: handed-over slots are no parts.
    """

    keeps_journal: bool

    @property
    def state(self) -> Path:
        """Folder of journal, lock and run record."""

    def put(
        self, number: int, tables: Iterator[Any], layout: Layout | None, facts: Facts, failed: Sequence[Failure]
    ) -> Path | None:
        """Take a complete slot; the part it became, where it became one.

        Args:
            layout: None when no row had text, and nobody knows how wide a vector would be.
        """

    def finish(self, layout: Layout | None, facts: Facts) -> None:
        """Everything was handed over."""

    @property
    def failures(self) -> Path | None:
        """The failures file, None when no row failed or was skipped."""


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:06d}.parquet"


@dataclass
class FolderOutput:
    """`batch run -o DIR`: one part per slot.

    Parts go to `into`: the folder itself, or `_embedctl/next` while an existing output is replaced.
    """

    folder: Path
    keeps_journal: bool = False
    replacing: bool = False
    _has_failures: bool = False

    @property
    def state(self) -> Path:
        """Journal, lock, run record."""
        return self.folder / STATE_FOLDER

    @property
    def into(self) -> Path:
        """Where new parts are put."""
        return self.state / "next" if self.replacing else self.folder

    @property
    def _failed(self) -> Path:
        return self.state / ("next-failed" if self.replacing else "failed")

    def parts(self) -> list[Path]:
        """Published parts of the output as it stands, in order."""
        return sorted(self.folder.glob(PART_PATTERN))

    def done(self, number: int) -> Path | None:
        """The part of a slot that is published already."""
        path = self.into / part_name(number)
        return path if path.is_file() else None

    def put(
        self, number: int, tables: Iterator[Any], layout: Layout | None, facts: Facts, failed: Sequence[Failure]
    ) -> Path | None:
        """Publish the slot as a part, its failures first."""
        storage.DISK.make_folder(self.into)
        if failed:
            storage.DISK.make_folder(self._failed)
            storage.replace(storage.DISK, self._failed / f"{number:06d}.jsonl", b"".join(_lines(failed)))
        if layout is None:
            return None
        path = self.into / part_name(number)
        _publish_parquet(path, tables, layout, facts)
        return path

    def finish(self, layout: Layout | None, facts: Facts) -> None:
        """Swap the new parts in, and put all failures into one file."""
        if self.replacing:
            self.swap()
        lines = [path.read_bytes() for path in sorted((self.state / "failed").glob("*.jsonl"))]
        self._has_failures = bool(lines)
        target = self.folder / "failures.jsonl"
        if lines:
            storage.replace(storage.DISK, target, b"".join(lines), mode=OUTPUT_MODE)
        else:
            target.unlink(missing_ok=True)

    def swap(self) -> None:
        """Replace the old parts by those in `next`; a commit record makes a crash in the middle roll forward."""
        commit = self.state / "commit.json"
        if not commit.is_file():
            count = len(list(self.into.glob(PART_PATTERN)))
            storage.publish(storage.DISK, commit, orjson.dumps({"parts": count}))
        self.roll_forward()

    def roll_forward(self) -> None:
        """Finish a swap whose commit record is there; doing it again changes nothing."""
        commit = self.state / "commit.json"
        if not commit.is_file():
            return
        count = int(orjson.loads(commit.read_bytes())["parts"])
        new = self.state / "next"
        for number in range(count):
            part = new / part_name(number)
            if part.is_file():
                storage.DISK.rename(part, self.folder / part_name(number))
        for part in self.parts()[count:]:
            storage.DISK.unlink(part)
        if (self.state / "next-failed").is_dir() or (self.state / "failed").is_dir():
            shutil.rmtree(self.state / "failed", ignore_errors=True)
            if (self.state / "next-failed").is_dir():
                storage.DISK.rename(self.state / "next-failed", self.state / "failed")
        shutil.rmtree(new, ignore_errors=True)
        storage.DISK.sync_folder(self.folder)
        storage.DISK.unlink(commit)
        self.replacing = False

    @property
    def failures(self) -> Path | None:
        """DIR/failures.jsonl, when a row failed or was skipped."""
        return self.folder / "failures.jsonl" if self._has_failures else None


@dataclass
class FileOutput:
    """`embed -o FILE`: one file, written to a temporary name and linked when it is whole."""

    path: Path
    keeps_journal: bool = True
    replacing: bool = False
    _writer: Any = None
    _rows: int = 0
    _has_failures: bool = False
    _growing: storage.Unfinished | None = None
    _failed: storage.Unfinished | None = None

    @property
    def state(self) -> Path:
        """`.FILE.embedctl/` beside the output, removed when it is done."""
        return self.path.parent / f".{self.path.name}.embedctl"

    def put(
        self, number: int, tables: Iterator[Any], layout: Layout | None, facts: Facts, failed: Sequence[Failure]
    ) -> Path | None:
        """Append the slot's rows to the unfinished file."""
        if layout is not None:
            self._open(layout)
        for table in tables:
            self._writer.write_table(table, row_group_size=write.ROW_GROUP_ROWS)
            self._rows += len(table)
        if failed:
            self._failed = self._failed or storage.Unfinished(storage.DISK, self.state, mode=OUTPUT_MODE)
            self._failed.file.writelines(_lines(failed))
        return None

    def _open(self, layout: Layout) -> storage.Unfinished:
        if self._growing is None:
            self._growing = storage.Unfinished(storage.DISK, self.state, mode=OUTPUT_MODE)
            self._writer = write.writer(self._growing.file, layout)
        return self._growing

    def finish(self, layout: Layout | None, facts: Facts) -> None:
        """Close the file and give it its name; without a layout (no row had text) there is nothing to name."""
        if layout is not None:
            growing = self._open(layout)
            self._writer.add_key_value_metadata({write.METADATA_KEY.decode(): facts(self._rows).decode()})
            self._writer.close()
            if not growing.put(self.path, over=self.replacing):
                raise OutputRefused(f"{self.path} appeared while it was made", hint="choose another -o")
        self._has_failures = self._failed is not None
        if self._failed is not None:
            self._failed.put(self.failures_path, over=True)
        else:
            self.failures_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of what is unfinished."""
        for growing in (self._growing, self._failed):
            if growing is not None:
                growing.drop()

    @property
    def failures_path(self) -> Path:
        """FILE.failures.jsonl, whether it is there or not."""
        return self.path.with_name(self.path.name + ".failures.jsonl")

    @property
    def failures(self) -> Path | None:
        """FILE.failures.jsonl, when a row failed or was skipped."""
        return self.failures_path if self._has_failures else None


@dataclass
class StreamOutput:
    """`embed -o -`: one JSON object per vector on stdout; failures on stderr in words."""

    state: Path
    stream: BinaryIO
    vectors: Literal["float", "base64"] = "float"
    keeps_journal: bool = True
    told: Callable[[str], None] = field(default=lambda line: None)
    failures: Path | None = None

    def put(
        self, number: int, tables: Iterator[Any], layout: Layout | None, facts: Facts, failed: Sequence[Failure]
    ) -> Path | None:
        """Print the slot's rows."""
        for table in tables:
            for line in json_lines(table, layout.dimensions if layout else 0, self.vectors):
                self.stream.write(line)
        self.stream.flush()
        for failure in failed:
            self.told(f"{'skipped' if failure.skipped else 'failed'}: row {failure.id}: {failure.message}")
        return None

    def finish(self, layout: Layout | None, facts: Facts) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is left open."""


def json_lines(table: Any, dimensions: int, vectors: str) -> Iterator[bytes]:
    """One JSON object per row, with the column names of the Parquet output."""
    matrix = write.matrix(table.column("embedding"), dimensions)
    hashes = table.column("embedding_text_hash").to_pylist()
    others = table.drop_columns(["embedding", "embedding_text_hash"]).to_pylist()
    names = table.column_names
    for row, vector, digest in zip(others, matrix, hashes, strict=True):
        shown: Any = base64.b64encode(vector.tobytes()).decode() if vectors == "base64" else vector
        whole = {**row, "embedding": shown, "embedding_text_hash": digest.hex()}
        ordered = {name: whole[name] for name in names}
        yield orjson.dumps(ordered, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE, default=_plain)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


def _lines(failures: Iterable[Failure]) -> Iterator[bytes]:
    for failure in failures:
        yield orjson.dumps(failure.as_dict(), option=orjson.OPT_APPEND_NEWLINE, default=str)


def _publish_parquet(path: Path, tables: Iterator[Any], layout: Layout, facts: Facts) -> None:
    def content(file: BinaryIO) -> None:
        counted = _Counted(tables)
        parquet = write.writer(file, layout)
        for table in counted:
            parquet.write_table(table, row_group_size=write.ROW_GROUP_ROWS)
        parquet.add_key_value_metadata({write.METADATA_KEY.decode(): facts(counted.rows).decode()})
        parquet.close()

    storage.publish(storage.DISK, path, content, mode=OUTPUT_MODE)


class _Counted:
    """Tables, and how many rows went by."""

    def __init__(self, tables: Iterator[Any]) -> None:
        self._tables = tables
        self.rows = 0

    def __iter__(self) -> Iterator[Any]:
        for table in self._tables:
            self.rows += len(table)
            yield table


def check_space(found: dict[str, Any] | None, space: Space | None, where: Path) -> None:
    """Refuse an output that is not ours, or holds another space.

    Args:
        found: What embedctl wrote about it (write.read_metadata), None when it did not.
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

"""What a run writes to. An output answers for itself: what is there already, which files are its own, what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import Locked, OutputRefused
from embedctl.journal import Recovered, Trust, recover
from embedctl.journal.rescue import JOURNAL, lost, set_aside
from embedctl.outputs import failures, parquet
from embedctl.outputs.parquet import Dtype, Layout, Part
from embedctl.records import Failure, Refusal, RowCounts, Space, Warned
from embedctl.storage import Disk

OUTPUT_MODE = 0o666
"""Outputs are the user's, as open as umask says; all other files are for the owner alone."""


Facts = Callable[[int], bytes]
"""Rows of the file → its metadata, see parquet.metadata."""


Record = Mapping[str, Any]
"""What a run binds, for the next one: `_embedctl/run.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A complete slice, ready to be written.

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
        keeps_journal: Vectors stay in the journal until `finish`: slices that are put are no parts.
        resumable: A later run goes on with what this one leaves; else nobody comes back to its vectors.
        replacing: An output is there, which stays whole until `finish`.
    """

    keeps_journal: bool
    resumable: bool
    replacing: bool

    @property
    def state(self) -> Path:
        """Folder of journal, lock and run record."""

    @property
    def place(self) -> Path:
        """Where a person finds it."""

    @property
    def lock_path(self) -> Path | None:
        """Where its `space.lock` is, whether it is there or not; None for one that nobody comes back to."""

    def own_files(self) -> tuple[Path, ...]:
        """What is there of it, as far as embedctl wrote it: no input of a run that writes it again."""

    def check_input(self, path: Path, label: str) -> None:
        """Raise OutputRefused when the output would replace an input."""

    def existing(self, request: OutputRequest) -> Existing:
        """What is there, under its lock; leftovers of dead runs are put in order.

        Raises:
            OutputRefused: Something that is not ours, or vectors of another space.
        """

    def peek(self, request: OutputRequest) -> Existing:
        """What is there, for one who changes nothing.

        Raises:
            OutputRefused: As `existing`.
        """

    def part_count(self) -> int:
        """Parts that the run has published so far."""

    def holds_more_than_state(self) -> bool:
        """Whether its folder, if it has one of its own, holds anything but our state."""

    def put(self, finished: Finished) -> Path | None:
        """Take a complete slice; the part it became, where it became one."""

    def finish(self, layout: Layout | None, facts: Facts, record: Callable[[], Record]) -> None:
        """Everything was put: make the output what its name says, and keep the record that says so.

        Args:
            record: Made when the last part stands.
        """

    def record(self, record: Record) -> None:
        """Keep what the run binds, for the next one; where the output itself does not say it."""

    def tidy(self) -> None:
        """The run is done and its record written: remove what only served it."""

    def close(self) -> None:
        """Let go of what is unfinished."""

    @property
    def failures(self) -> Path | None:
        """The failures file, None when there is none."""


def lines(failures: Iterable[Failure]) -> Iterator[bytes]:
    """The lines of a failures file."""
    for failure in failures:
        yield orjson.dumps(failure.as_dict(), option=orjson.OPT_APPEND_NEWLINE, default=str)


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


@dataclass(slots=True)
class Existing:
    """What a run finds when it begins.

    Attributes:
        space: Of the vectors that are there; None when there are none.
        finished: Counts of a finished run with the same binding: nothing is left to do.
        parts: Parts whose vectors may be taken, numbered as `known` does.
        done: Slots of the interrupted run that is continued.
        failed: Texts a provider refused.
        damaged: Parts that cannot be read: their rows are embedded anew.
        rows_hashes: Of the slices in `done`, where it is known: equal when the same rows are read again.
        notes: What was found and is not as it should be.
    """

    space: Space | None = None
    finished: RowCounts | None = None
    parts: list[Part] = field(default_factory=list)
    done: dict[int, RowCounts] = field(default_factory=dict)
    recovered: Recovered | None = None
    failed: dict[bytes, Refusal] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)
    rows_hashes: dict[int, str] = field(default_factory=dict)
    notes: list[Warned] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """What a run wants of an output.

    Attributes:
        space: None while it is not known.
        binding: Equal for runs of the same input, as it lies there, with the same options that shape the output.
        reuse: Whether vectors of the output as it stands may be taken.
        retry_failed: Whether rows that failed are tried again.
        dtype: Of the vectors to be written; less precise ones are not taken.
        anew: An interrupted run is not gone on with: its parts hold other rows than the input does now.
        rereads: The binding does not say that the rows are the same: a finished run is read through again.
    """

    space: Space | None
    binding: str
    overwrite: bool = False
    reuse: bool = True
    retry_failed: bool = False
    dtype: Dtype = "float32"
    anew: bool = False
    rereads: bool = False


def is_count(value: object) -> TypeGuard[int]:
    """Whether something that a file tells is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def row_counts(found: object) -> RowCounts | None:
    """Counts that a file tells; None when they are none, or do not add up."""
    if not isinstance(found, dict) or not found.keys() <= {one.name for one in fields(RowCounts)}:
        return None
    if not all(map(is_count, found.values())):
        return None
    counts = RowCounts(**found)
    adds_up = counts.read == counts.embedded + counts.failed + counts.skipped and counts.vectors >= counts.embedded
    return counts if adds_up else None


def journal_of(state: Path, trust: Trust, notes: list[Warned], disk: Disk) -> Recovered:
    """The journal of a state folder whose lock is held; what is not this home's is set aside.

    Args:
        notes: Gets what there is to say about it.

    Raises:
        Locked: Another process writes it all the same.
    """
    recovered = recover(state / JOURNAL, trust)
    if recovered.living:
        raise Locked(
            f"another process writes {recovered.folder}, though it does not hold {state / 'lock'}",
            hint="wait for it to end, or run again later: was the lock removed, or is the output shared by machines?",
        )
    if folder := set_aside(state, recovered, disk):
        notes.append(Warned("foreign_journal", str(folder), count=len(recovered.foreign)))
    if recovered.lost_bytes:
        notes.append(lost(recovered.folder, recovered.lost_bytes))
    return recovered


def nothing_left(counts: RowCounts | None, request: OutputRequest, failures_path: Path) -> RowCounts | None:
    """The counts of a finished run, unless failed rows of it are to be tried again, or its input to be read again."""
    if counts is None or request.rereads:
        return None
    again = counts.failed and (request.retry_failed or failures.any_passing(failures_path))
    return None if again else counts


def has_begun(recovered: Recovered | None) -> bool:
    """Whether an unfinished run left its journal: its output may be half in place."""
    return recovered is not None and bool(recovered.segments or recovered.remains)


def peeked(
    state: Path,
    trust: Trust,
    paths: Sequence[Path],
    bought: Sequence[Path],
    failures_path: Path,
    request: OutputRequest,
) -> Existing:
    """What is there, for one who changes nothing.

    Args:
        paths: Parts of the output as it stands.
        bought: Parts that unfinished runs have paid for.

    Raises:
        OutputRefused: Something that is not ours, or vectors of another space.
    """
    there = Existing(recovered=recover(state / JOURNAL, trust))
    if paths and not request.overwrite:
        check_space(parquet.read_metadata(paths[0]), request.space, paths[0])
    for path in [*(paths if request.reuse and not request.overwrite else ()), *bought]:
        found = parquet.read_metadata(path)
        if found is not None and (request.space is None or found["space_id"] == request.space.space_id):
            there.space = there.space or Space(**found["space"])
            there.parts.append(Part(path, there.space.dimensions))
    there.space = there.space or request.space
    if not request.retry_failed:
        there.failed = failures.of([failures_path])
    return there

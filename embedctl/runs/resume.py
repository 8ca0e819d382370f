"""What an output already holds: parts of ours, an interrupted run's journal, vectors that need not be bought again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from embedctl import storage
from embedctl.errors import OutputRefused
from embedctl.journal import Recovered, recover
from embedctl.outputs import RECORD, FolderOutput, Output, check_space, failures, parquet, part_name
from embedctl.outputs.assemble import Purchase, Purchases, tokens_array
from embedctl.outputs.file import FileOutput
from embedctl.outputs.parquet import Part
from embedctl.planning.planner import JOURNAL_FILES
from embedctl.records import Refusal, RowCounts, Space
from embedctl.runs.pipeline import Segments
from embedctl.storage.hash_index import LOCATION, HashIndex


def binding(source: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What must be equal for a run to be the same run: the input as it lies there, and all that shapes the output."""
    text = orjson.dumps({"input": source, "options": options}, option=orjson.OPT_SORT_KEYS, default=str)
    return blake2b(text, digest_size=16).hexdigest()


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
    """

    space: Space | None = None
    finished: RowCounts | None = None
    parts: list[Part] = field(default_factory=list)
    done: dict[int, RowCounts] = field(default_factory=dict)
    recovered: Recovered | None = None
    failed: dict[bytes, Refusal] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """What a run wants of an output.

    Attributes:
        space: None while it is not known.
        binding: See `binding`.
        reuse: Whether vectors of the output as it stands may be taken.
        retry_failed: Whether rows that failed are tried again.
        dtype: Of the vectors to be written; less precise ones are not taken.
    """

    space: Space | None
    binding: str
    overwrite: bool = False
    reuse: bool = True
    retry_failed: bool = False
    dtype: parquet.Dtype = "float32"


def own_files(output: Output) -> tuple[Path, ...]:
    """What is there of the output, as far as embedctl wrote it: no input of a run that writes it again."""
    if isinstance(output, FolderOutput):
        return tuple(output.parts())
    if isinstance(output, FileOutput) and parquet.read_metadata(output.path) is not None:
        return (output.path,)
    return ()


def of_file(output: FileOutput, asked: OutputRequest) -> Existing:
    """What is at an `embed -o FILE`, under its lock.

    Raises:
        OutputRefused: A file that is not ours, or one of another space.
    """
    storage.remove_leftovers(output.disk, output.state)
    before = Existing(recovered=recover(output.state / "journal"))
    if not output.path.exists():
        return before
    output.replacing = True
    if asked.overwrite:
        return before
    found = parquet.read_metadata(output.path)
    check_space(found, asked.space, output.path)
    assert found is not None  # noqa: S101 - check_space refuses it
    before.space = Space(**found["space"])
    if found.get("binding") == asked.binding and not _begun(before.recovered):
        before.finished = _nothing_left(RowCounts(**found["counts"]), asked)
    if asked.reuse and parquet.is_precise(output.path, asked.dtype):
        before.parts.append(Part(output.path, before.space.dimensions))
    before.failed = {} if asked.retry_failed else failures.of([output.failures_path])
    return before


def _nothing_left(counts: RowCounts, asked: OutputRequest) -> RowCounts | None:
    """The counts of a finished run, unless its failed rows are to be tried again."""
    return None if asked.retry_failed and counts.failed else counts


def _begun(recovered: Recovered | None) -> bool:
    """Whether an unfinished run left its journal: its output may be half in place."""
    return recovered is not None and bool(recovered.segments or recovered.remains)


def of_folder(output: FolderOutput, asked: OutputRequest) -> Existing:
    """What is at a `batch run -o DIR`, under its lock.

    Raises:
        OutputRefused: Something that is not ours, or of another space.
    """
    for folder in (output.folder, output.state, output.next, output.failed):
        storage.remove_leftovers(output.disk, folder)
    output.roll_forward()
    record = _record(output)
    parts = output.parts()
    same = record.get("binding") == asked.binding and record.get("overwrite", False) == asked.overwrite
    continued = same and record.get("state") == "running" and _is_whole(output, replacing=bool(record["replacing"]))
    before = Existing(recovered=recover(output.state / "journal"))
    told = [parquet.read_metadata(path) for path in parts]
    before.damaged = [path for path, found in zip(parts, told, strict=True) if found is None]
    found = next(filter(None, told), None)
    if parts and not asked.overwrite and (found is not None or "space_id" not in record):
        check_space(found, asked.space, output.folder)
    if found is not None and not (asked.overwrite and asked.space != Space(**found["space"])):
        before.space = Space(**found["space"])
    if not asked.retry_failed:
        before.failed = failures.of([output.failures_path, *sorted(output.failed.glob("*.jsonl"))])
    complete = same and record.get("state") == "complete" and len(parts) == record.get("parts")
    if complete and not before.damaged and (not asked.overwrite or _begun(before.recovered)):
        before.finished = _nothing_left(RowCounts(**record["counts"]), asked)
    if before.finished is not None:
        return before
    output.replacing = bool(record["replacing"]) if continued else bool(parts)
    if continued:
        before.done = dict(_done(output))
    else:
        output.keep_aside()
    before.parts = list(_sources(output, asked, before, parts))
    return before


def peek(output: FileOutput | FolderOutput, asked: OutputRequest) -> Existing:
    """What is there, for one who changes nothing; see `of_file` and `of_folder`.

    Raises:
        OutputRefused: Something that is not ours, or of another space.
    """
    before = Existing(recovered=recover(output.state / "journal"))
    if isinstance(output, FileOutput):
        paths = [output.path] if output.path.exists() else []
        bought: list[Path] = []
    else:
        paths = output.parts()
        bought = [*sorted(output.kept.glob("*.parquet")), *output.parts(output.next)]
    if paths and not asked.overwrite:
        check_space(parquet.read_metadata(paths[0]), asked.space, paths[0])
    for path in [*(paths if asked.reuse and not asked.overwrite else []), *bought]:
        found = parquet.read_metadata(path)
        if found is not None and (asked.space is None or found["space_id"] == asked.space.space_id):
            before.space = before.space or Space(**found["space"])
            before.parts.append(Part(path, before.space.dimensions))
    before.space = before.space or asked.space
    if not asked.retry_failed:
        before.failed = failures.of([output.failures_path])
    return before


def _is_whole(output: FolderOutput, *, replacing: bool) -> bool:
    """Whether the parts of the run to be continued are numbered from 0 without a gap."""
    names = [path.name for path in output.parts(output.next if replacing else output.folder)]
    return names == [part_name(number) for number in range(len(names))]


def _sources(output: FolderOutput, asked: OutputRequest, before: Existing, parts: list[Path]) -> Iterator[Part]:
    """Every part whose vectors may be taken: those that this run replaces, and what unfinished runs have bought."""
    space = before.space or asked.space
    old = parts if output.replacing else []
    bought = [*sorted(output.kept.glob("*.parquet")), *(output.into / part_name(number) for number in before.done)]
    for path in [*(old if asked.reuse and not asked.overwrite else []), *bought]:
        found = parquet.read_metadata(path)
        if found is None or (space is not None and found["space_id"] != space.space_id):
            continue
        if not parquet.is_precise(path, asked.dtype):
            continue
        before.space = before.space or Space(**found["space"])
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


def space_of_journal(
    before: Existing, candidates: Sequence[Callable[[int], Space | None]], where: Path, *, overwrite: bool = False
) -> Space | None:
    """The space that an interrupted run's answers have; None when there are none.

    Args:
        candidates: For each offer of the chain: width → its space.
        overwrite: Answers of other spaces do not matter.

    Raises:
        OutputRefused: None of the chain has that space: the model or an option was changed.
    """
    for answer in before.recovered.answers if before.recovered else ():
        space_id = (answer.extra or {}).get("space_id")
        if space_id is None:
            continue
        for candidate in candidates:
            space = candidate(answer.place.dimensions)
            if space is not None and space.space_id == space_id:
                return space
        if not overwrite:
            raise OutputRefused(
                f"an interrupted run for {where} holds vectors of {answer.provider}:{answer.model} "
                f"({answer.place.dimensions} dimensions), which is another space than the one asked for now",
                hint="run it with the options it began with, choose another -o, or begin anew with --overwrite",
            )
    return None


def index(before: Existing, space_id: str | None, known: HashIndex, segments: Segments, purchases: Purchases) -> None:
    """Fill `known` with everything that has a vector of this space: parts first, then the recovered journal."""
    for number, part in enumerate(before.parts):
        row = 0
        for hashes in part.hashes():
            count = len(hashes) // 16
            places = np.zeros(count, LOCATION)
            places["file"] = number
            places["row"] = np.arange(row, row + count, dtype=np.uint64)
            known.add(hashes, places)
            row += count
    for answer in before.recovered.answers if before.recovered else ():
        width = answer.place.dimensions
        if space_id is None or (answer.extra or {}).get("space_id") != space_id:
            continue
        file = segments.number(answer.place.segment)
        bought = Purchase(
            answer.place.offset,
            answer.place.count,
            answer.model,
            answer.provider,
            answer.operation_id,
            tokens_array(answer.tokens_each),
        )
        purchases.add(file, bought)
        places = np.zeros(answer.place.count, LOCATION)
        places["file"] = JOURNAL_FILES + file
        end = answer.place.offset + answer.place.count * width * 4
        places["row"] = np.arange(answer.place.offset, end, width * 4, dtype=np.uint64)
        known.add(answer.hashes, places)

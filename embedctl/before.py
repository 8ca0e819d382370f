"""What an output already holds: parts of ours, an interrupted run's journal, vectors that need not be bought again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from embedctl import storage, write
from embedctl.assemble import Purchase, Purchases
from embedctl.errors import OutputRefused
from embedctl.intake import JOURNAL_FILES
from embedctl.journal import Recovered, recover
from embedctl.known import PLACE, Known
from embedctl.output import FileOutput, FolderOutput, check_space, part_name
from embedctl.pipeline import Segments
from embedctl.receipt import Rows
from embedctl.records import Space
from embedctl.slots import Refusal
from embedctl.write import Part

LASTING = ("text_refused", "unusable_vector", "provider_failed", "too_long")
"""Reasons found by a provider: such a row stays failed until its text changes, or --retry-failed."""


def binding(source: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What must be equal for a run to be the same run: the input as it lies there, and all that shapes the output."""
    text = orjson.dumps({"input": source, "options": options}, option=orjson.OPT_SORT_KEYS, default=str)
    return blake2b(text, digest_size=16).hexdigest()


@dataclass(slots=True)
class Before:
    """What a run finds when it begins.

    Attributes:
        space: Of the vectors that are there; None when there are none.
        finished: Counts of a finished run with the same binding: nothing is left to do.
        parts: Parts whose vectors may be taken, numbered as `known` does.
        done: Slots of the interrupted run that is continued.
        failed: Texts a provider refused.
    """

    space: Space | None = None
    finished: Rows | None = None
    parts: list[Part] = field(default_factory=list)
    done: dict[int, Rows] = field(default_factory=dict)
    recovered: Recovered | None = None
    failed: dict[bytes, Refusal] = field(default_factory=dict)


def of_file(output: FileOutput, space: Space | None, bound: str, *, overwrite: bool, reuse: bool) -> Before:
    """What is at an `embed -o FILE`.

    Raises:
        OutputRefused: A folder, a file that is not ours, or one of another space.
    """
    if output.path.is_dir():
        raise OutputRefused(f"{output.path} is a folder", hint="-o names a file; `batch run` writes folders")
    found = write.read_metadata(output.path) if output.path.exists() else None
    before = Before(recovered=recover(output.state / "journal"))
    if output.path.exists():
        output.replacing = True
        if overwrite:
            return before
        check_space(found, space, output.path)
    if found is not None:
        before.space = Space(**found["space"])
        if found.get("binding") == bound:
            before.finished = Rows(**found["counts"])
        if reuse:
            before.parts.append(Part(output.path, before.space.dimensions))
        before.failed = _failed(output.failures_path)
    return before


def of_folder(output: FolderOutput, space: Space | None, bound: str, *, overwrite: bool, reuse: bool) -> Before:
    """What is at a `batch run -o DIR`, under its lock.

    Raises:
        OutputRefused: Something that is not ours, or of another space.
    """
    output.roll_forward()
    if overwrite:
        for path in [*output.parts(), *output.state.glob("*.json")]:
            storage.DISK.unlink(path)
        for folder in ("next", "failed", "next-failed"):
            for path in sorted((output.state / folder).glob("*")):
                storage.DISK.unlink(path)
        return Before(recovered=recover(output.state / "journal"))
    record = _record(output)
    parts = output.parts()
    before = Before(recovered=recover(output.state / "journal"))
    found = write.read_metadata(parts[0]) if parts else None
    if parts:
        check_space(found, space, output.folder)
    if found is not None:
        before.space = Space(**found["space"])
    same = record.get("binding") == bound
    if same and record.get("state") == "complete" and len(parts) == record.get("parts"):
        before.finished = Rows(**record["counts"])
    continued = same and record.get("state") == "running"
    output.replacing = bool(parts) and not (continued and not record.get("replacing"))
    if output.replacing and not continued:
        for folder in ("next", "next-failed"):
            for path in sorted((output.state / folder).glob("*")):
                storage.DISK.unlink(path)
    if continued:
        before.done = dict(_done(output))
    if before.space is not None and reuse:
        fresh = [output.into / part_name(number) for number in before.done] if output.replacing else []
        before.parts = [Part(path, before.space.dimensions) for path in [*parts, *fresh]]
    before.failed = _failed(output.folder / "failures.jsonl")
    return before


def write_record(state: Path, record: Mapping[str, Any]) -> None:
    """What the run binds, for the next one."""
    storage.replace(storage.DISK, state / "run.json", orjson.dumps(record, option=orjson.OPT_INDENT_2, default=str))


def _record(output: FolderOutput) -> dict[str, Any]:
    path = output.state / "run.json"
    try:
        return dict(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (orjson.JSONDecodeError, TypeError) as problem:
        raise OutputRefused(f"{path} cannot be read: {problem}", hint="--overwrite begins anew") from None


def _done(output: FolderOutput) -> Iterator[tuple[int, Rows]]:
    """Slots that are published, from 0 to the first that is not."""
    number = 0
    while (path := output.into / part_name(number)).is_file():
        found = write.read_metadata(path)
        if found is None or "counts" not in found:
            return
        yield number, Rows(**found["counts"])
        number += 1


def _failed(path: Path) -> dict[bytes, Refusal]:
    """Texts of a failures file that a provider refused."""
    found: dict[bytes, Refusal] = {}
    if not path.is_file():
        return found
    for line in path.read_bytes().splitlines():
        try:
            failure = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if failure.get("text_hash") and failure.get("reason") in LASTING and failure.get("provider"):
            found[bytes.fromhex(failure["text_hash"])] = Refusal(
                reason=failure["reason"],
                message=failure["message"],
                provider=failure["provider"],
                attempts=failure.get("attempts", 0),
                tokens=failure.get("tokens"),
                max_tokens=failure.get("max_tokens"),
            )
    return found


def space_of_journal(before: Before, candidates: Sequence[Callable[[int], Space | None]], where: Path) -> Space | None:
    """The space that an interrupted run's answers have; None when there are none.

    Args:
        candidates: For each offer of the chain: width → its space.

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
        raise OutputRefused(
            f"an interrupted run for {where} holds vectors of {answer.provider}:{answer.model} "
            f"({answer.place.dimensions} dimensions), which is another space than the one asked for now",
            hint="run it with the options it began with, choose another -o, or begin anew with --overwrite",
        )
    return None


def index(before: Before, space_id: str | None, known: Known, segments: Segments, purchases: Purchases) -> None:
    """Fill `known` with everything that has a vector of this space: parts first, then the recovered journal."""
    for number, part in enumerate(before.parts):
        row = 0
        for hashes in part.hashes():
            count = len(hashes) // 16
            places = np.zeros(count, PLACE)
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
            answer.tokens_each,
        )
        purchases.add(file, bought)
        places = np.zeros(answer.place.count, PLACE)
        places["file"] = JOURNAL_FILES + file
        end = answer.place.offset + answer.place.count * width * 4
        places["row"] = np.arange(answer.place.offset, end, width * 4, dtype=np.uint64)
        known.add(answer.hashes, places)

"""Whether the parts of an output, its record and its failures file tell the same story."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from embedctl.errors import InputInvalid
from embedctl.outputs.output import is_count
from embedctl.vectors.files import PartFile, Stored, counts_in
from embedctl.vectors.findings import Findings

_NUMBER = re.compile(r"part-(\d{6})\.parquet\Z")


def check(stored: Stored, findings: Findings) -> None:
    """Parts against each other, against what was written about them, and against the run's record."""
    for part in stored.parts:
        _check_part(part, stored, findings)
    if stored.is_folder:
        _check_record(stored, findings)
    else:
        _check_counts(stored.facts, stored, findings, str(stored.path))


def _check_part(part: PartFile, stored: Stored, findings: Findings) -> None:
    name = part.path.name
    if part.problem is not None:
        findings.add("unreadable", name, f"cannot be read: {part.problem}")
        return
    if part.facts is None or part.space is None:
        findings.add("not_ours", name, "is Parquet, but not written by embedctl")
        return
    if part.facts.get("space_id") != part.space.space_id:
        findings.add("space_id", name, "its space_id is not that of the space it names")
    if part.space.space_id != stored.space.space_id:
        differences = "; ".join(part.space.differences(stored.space))
        findings.add("mixed_spaces", name, f"is of another space than {stored.readable[0].path.name}: {differences}")
    if (written := part.facts.get("rows")) != part.rows:
        told = f"{written:,} were written" if is_count(written) else "and does not say how many were written"
        findings.add("row_count", name, f"holds {part.rows:,} rows, {told}")


def _check_record(stored: Stored, findings: Findings) -> None:
    numbers = [int(found[1]) for part in stored.parts if (found := _NUMBER.search(part.path.name))]
    gaps = sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers))
    record = stored.record
    if record is None:
        findings.add("not_checked", str(stored.path), "there is no run record: counts cannot be compared", wrong=False)
        _add_gaps(gaps, findings)
        return
    if record.get("state") != "complete":
        replacing = bool(record.get("replacing"))
        words = "a run that will replace it has not ended" if replacing else "its run has not ended: parts are missing"
        findings.add("unfinished", str(stored.path), f"{words}; run it again", wrong=not replacing)
        _add_gaps(gaps, findings)
        return
    promised = record.get("names")
    if isinstance(promised, dict) and all(map(is_count, promised.values())):  # on a store: name → bytes
        _check_names(promised, stored, findings)
    elif record.get("parts") != len(numbers):
        _add_gaps(gaps, findings)
        findings.add(
            "part_missing", str(stored.path), f"{len(numbers)} parts are there, {record.get('parts')} were made"
        )
    if record.get("space_id") not in (None, stored.space.space_id):
        findings.add("mixed_spaces", str(stored.path), "the run's record names another space than the parts")
    _check_counts(record, stored, findings, str(stored.path))


def _check_names(promised: dict[str, int], stored: Stored, findings: Findings) -> None:
    """The parts that a manifest names, against those that are there."""
    sizes = {part.path.name: part.size_bytes for part in stored.parts}
    for name, size in promised.items():
        if name not in sizes:
            findings.add("part_missing", name, "is not there")
        elif sizes[name] != size:
            findings.add("part_missing", name, f"is another: it has {sizes[name]:,} bytes, {size:,} were written")
    for name in sizes.keys() - promised.keys():
        findings.add("not_ours", name, "is in no manifest")


def _add_gaps(gaps: list[int], findings: Findings) -> None:
    for number in gaps:
        findings.add("part_missing", f"part-{number:06d}.parquet", "is not there")


def _check_counts(told: Mapping[str, Any], stored: Stored, findings: Findings, where: str) -> None:
    counts = counts_in(told)
    if not counts:
        if told.get("counts"):
            findings.add("row_count", where, "what it says of its rows cannot be read")
        else:
            findings.add("not_checked", where, "it does not say how many rows there were", wrong=False)
        return
    if counts["read"] != counts["embedded"] + counts["failed"] + counts["skipped"]:
        findings.add("row_count", where, f"{counts['read']:,} rows were read, but not all are accounted for: {counts}")
    if counts["vectors"] != stored.rows:
        findings.add("row_count", where, f"holds {stored.rows:,} vectors, {counts['vectors']:,} were made")
    lost = counts["failed"] + counts["skipped"]
    listed = sum(1 for _ in failures(stored, findings))
    if listed < lost or (listed and not lost):
        findings.add("failures", stored.beside.failures_name, f"lists {listed:,} rows, {lost:,} have no vector")


def failures(stored: Stored, findings: Findings | None = None) -> Iterator[dict[str, Any]]:
    """The objects of the failures file; none when there is no file.

    Args:
        findings: Told of lines that cannot be read; without it they are an error.

    Raises:
        InputInvalid: A line cannot be read.
    """
    for number, line in enumerate(stored.beside.failure_lines(), 1):
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            where = f"{stored.beside.failures_name} line {number}"
            if findings is None:
                raise InputInvalid(f"{where} cannot be read: {problem}") from None
            findings.add("failures", where, f"cannot be read: {problem}")
            continue
        if isinstance(found, dict):
            yield found

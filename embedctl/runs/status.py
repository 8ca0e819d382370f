"""What `batch list`, `status` and `failures` say about runs: from the registry, and from their outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from embedctl.errors import InputMissing, StorageFailed
from embedctl.journal.batches import Batch, known
from embedctl.journal.shard_log import SHARDS
from embedctl.outputs import FAILURES, STATE_FOLDER, parts_of
from embedctl.outputs.failures import MOST_LINE
from embedctl.outputs.parquet import Part
from embedctl.outputs.shard import FAILURES_FOLDER, PARTS
from embedctl.runs.registry import OPEN, RunEntry, RunRegistry, home_trust, named
from embedctl.settings import Paths
from embedctl.storage import paths_in

COMMANDS = ("batch run", "embed")
"""What embeds inputs; searches, tests and the like are registered for their spending alone."""


def listed(runs: RunRegistry, states: Sequence[str] = ()) -> list[RunEntry]:
    """All runs that embed inputs, newest first; only those in these states when any is named."""
    return [run for run in runs.all() if run.command in COMMANDS and (not states or run.state in states)]


def row(run: RunEntry) -> dict[str, Any]:
    """A run as a table shows it."""
    return {
        "job": run.job_id or None,
        "run_id": str(run.run_id),
        "state": run.state,
        "rows": run.counts.get("rows"),
        "failed": run.counts.get("failed"),
        "cost": None if run.cost_usd is None else Decimal(run.cost_usd),
        "started_at": run.started_at,
        "output": run.output,
    }


def status(run: RunEntry, now: datetime) -> dict[str, Any]:
    """All there is to say about a run."""
    end = run.finished_at or (now if run.state in OPEN else run.updated_at)
    seconds = max((end - run.started_at).total_seconds(), 0.001)
    rows, total = run.counts.get("rows", 0), run.counts.get("rows_total")
    tokens = run.counts.get("tokens", 0)
    return {
        **row(run),
        "model": run.model,
        "workspace": run.workspace_id,
        "workspace_column": run.workspace_column,
        "updated_at": run.updated_at,
        "finished_at": run.finished_at,
        "seconds": round(seconds, 1),
        "progress": round(rows / total, 4) if total else None,
        "rows_per_second": round(rows / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "counts": dict(run.counts),
        "exit_code": run.exit_code,
        "last_error": run.last_error,
    }


def remote_batches(paths: Paths, run: RunEntry) -> list[dict[str, Any]]:
    """What a run has under way at its provider, as it was when somebody last looked."""
    trust = home_trust(paths, make=False)
    folder = str(run.folder.absolute())
    found = [one for _, batches, _ in known(paths.batches, trust) for one in batches]
    return [batch_row(one) for one in found if one.pending and one.folder == folder]


def batch_row(one: Batch) -> dict[str, Any]:
    """A batch as a table shows it."""

    def moment(seconds: float | None) -> datetime | None:
        return None if not seconds else datetime.fromtimestamp(seconds, UTC)

    return {
        "provider": one.provider,
        "model": one.model,
        "batch_id": one.batch_id,
        "mark": one.mark,
        "step": one.step,
        "status": one.status or None,
        "lines_done": one.lines_done,
        "lines": one.lines_total,
        "texts": one.texts,
        "tokens": one.tokens,
        "cost_at_risk": one.cost_at_risk(),
        "planned_at": moment(one.planned_at),
        "expires_at": moment(one.expires_at),
        "results_until": moment(one.results_until),
        "output": one.output,
    }


def whereabouts(run: RunEntry, row_id: str) -> dict[str, Any]:
    """What became of one row: embedded, failed, skipped; waiting while the run has not ended, else absent."""
    folder = Path(run.output)
    unfinished = paths_in(folder / STATE_FOLDER / "failed", "*.jsonl")
    unfinished += paths_in(folder / FAILURES_FOLDER, "*.jsonl")
    for shard in paths_in(folder / SHARDS):
        unfinished += paths_in(shard / "failed", "*.jsonl")
    for failure in failures([*unfinished, failures_file(folder)]):
        if str(failure["id"]) == row_id:
            return {"id": row_id, "state": "skipped" if failure.get("skipped") else "failed", "failure": failure}
    for path in _parts(folder):
        try:
            chunks = Part(path, 0).rows_of(row_id)
        except StorageFailed:
            if path.exists():
                raise
            continue  # the run has just ended: it stands in the output
        if chunks:
            return {"id": row_id, "state": "embedded", "part": path.name, "chunks": chunks}
    return {"id": row_id, "state": "waiting" if run.state in (*OPEN, "interrupted") else "absent"}


def _parts(output: Path) -> Iterator[Path]:
    """All parts, those of an unfinished run first: they become the output's."""
    if output.is_file():
        yield output
    yield from parts_of(output / STATE_FOLDER / "next")
    yield from paths_in(output, PARTS)


def failures_file(output: Path) -> Path:
    """Where the failures of an output are listed, if it has any; the file itself where it is one."""
    if output.is_dir():
        return output / FAILURES
    return output if output.name.endswith(".jsonl") else output.with_name(f"{output.name}.{FAILURES}")


def run_of(runs: RunRegistry, name: str) -> RunEntry | Path:
    """The run that a name means: a job's, a run's id, or an output, which may have been written elsewhere.

    Raises:
        InputMissing: There is none, and nothing that is called so.
    """
    entries = runs.all()
    try:
        return named(entries, name)
    except InputMissing:
        if not name:
            raise
        path = Path(name)
        place = path.parent if path.name == FAILURES else Path(str(path).removesuffix(f".{FAILURES}"))
        written = (run for run in entries if os.path.realpath(run.output) == os.path.realpath(place))
        if (run := next(written, None)) is not None:
            return run
        if not path.exists():
            raise
        return path


def is_output(place: Path) -> bool:
    """Whether embedctl wrote it, whole or not; of a file its footer says so."""
    if place.is_dir():
        return (place / STATE_FOLDER).is_dir() or bool(parts_of(place))
    from embedctl.outputs import parquet

    return parquet.read_metadata(place) is not None


def failures(paths: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    """Every failure listed in these files, those that are there; lines that somebody broke say nothing."""
    for path in paths:
        if path.is_file():
            with suppress(FileNotFoundError), path.open("rb") as file:  # a run that ends puts them into one
                for line in iter(partial(file.readline, MOST_LINE), b""):
                    with suppress(orjson.JSONDecodeError, RecursionError):
                        failure = orjson.loads(line)
                        if isinstance(failure, dict) and "id" in failure:
                            yield failure

"""What a run binds, and leaves behind for the next one: in the output's metadata, and in `_embedctl/run.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields
from typing import Any
from uuid import UUID

from embedctl import inputs
from embedctl.dataclass import dataclass
from embedctl.errors import InputChanged, OutputRefused
from embedctl.outputs import Output, OutputRequest, parquet
from embedctl.records import RowCounts, Space, utc_now
from embedctl.routing.endpoint import Endpoint
from embedctl.runs import resume
from embedctl.runs.job import JobRequest
from embedctl.settings.options import Options

_SHAPING = frozenset(
    "text_column id_column keep split encoding chunk_size chunk_overlap input_type dimensions dimension_policy "  # noqa: SIM905
    "on_too_long on_blank vector_type dtype max_row_bytes model provider".split()
)
"""Options that decide what stands in the output."""

_SHAPING_WHEN_SET = frozenset({"template", "format", "delimiter", "header", "on_bad_row", "on_bad_file"})
"""Likewise, but left out while they are as they always were: outputs of before them are gone on with."""


@dataclass(slots=True)
class RunRecord:
    """A run's terms, and how far it came.

    Attributes:
        space: Of its vectors; None while it is not known.
        rows: What became of rows so far.
        begun_at: When the oldest of the output's vectors was made, in Unix seconds.
        binding: Of the input as it is and all that shapes the output; `terms` of the latter alone.
    """

    job: JobRequest
    run_id: UUID
    space: Space | None = None
    rows: RowCounts = field(default_factory=RowCounts)
    begun_at: float = 0.0
    binding: str = ""
    terms: str = ""
    _seen_at_start: dict[str, Any] = field(default_factory=dict)

    def bind(self, source: inputs.Source, first: Endpoint, denied: Sequence[str]) -> OutputRequest:
        """What is wanted of the output; the input is bound as it is now.

        Args:
            denied: Workspaces whose rows fail.
        """
        options, space = self.job.settings.options, first.space()
        shaping = {**self._shaping(), "space": space.space_id if space else first.id}
        if denied:
            shaping["barred"] = sorted(denied)
        self._seen_at_start = source.fingerprint()
        self.binding = resume.binding(self._seen_at_start, shaping)
        self.terms = resume.digest(shaping)
        return OutputRequest(
            space=space,
            binding=self.binding,
            overwrite=self.job.overwrite,
            reuse=options.reuse,
            retry_failed=self.job.retry_failed,
            dtype=options.dtype,
            rereads=not source.is_known_unread,
        )

    def check_unchanged(self, source: inputs.Source, numbers: Sequence[int] | None = None) -> None:
        """Raise InputChanged when a file is not what it was at the start.

        Args:
            numbers: Of the files that `source` is of the whole input; None: it is all of it.
        """
        before = self._seen_at_start
        if numbers is not None:
            before = {**before, "files": [before["files"][number] for number in numbers]}
        if source.fingerprint() != before:
            raise InputChanged("the input changed while it was read", hint="run the same command again")

    def facts(self, space: Space | None, written: int, counts: RowCounts, rows_hash: str | None) -> bytes:
        """The metadata of a part or file.

        Args:
            written: Rows in it.
            counts: What became of the rows that were read for it.
            rows_hash: Of those rows, for a run that goes on from here; None for a whole file.
        """
        if space is None:
            raise OutputRefused("no vector was made, so nobody knows how wide one is")
        extra: dict[str, Any] = {"binding": self.binding, "counts": asdict(counts), "options": self._shaping()}
        if self.begun_at:
            extra["begun_at"] = self.begun_at
        if rows_hash is not None:
            extra["rows_hash"] = rows_hash
        return parquet.metadata(space, run_id=str(self.run_id), source=self.input, rows=written, extra=extra)

    @property
    def files(self) -> Sequence[Mapping[str, Any]]:
        """The input's files as they were bound: name, size, and what changes with their content."""
        found: Sequence[Mapping[str, Any]] = self._seen_at_start.get("files", [])
        return found

    @property
    def input(self) -> dict[str, Any]:
        """What a part says of the input: a digest, however many files it has. Their names would stand in each part."""
        return {"digest": resume.digest(self._seen_at_start), "count": len(self.files)}

    def as_dict(self, output: Output, state: str) -> dict[str, Any]:
        """The content of run.json."""
        return {
            "run_id": str(self.run_id),
            "job": self.job.job,
            "state": state,
            "binding": self.binding,
            "overwrite": self.job.overwrite,
            "replacing": output.replacing,
            "parts": output.part_count(),
            "space": self.space.as_dict() if self.space else None,
            "space_id": self.space.space_id if self.space else None,
            "options": self._shaping(),
            "counts": asdict(self.rows),
            "at": utc_now(),
        }

    @property
    def shaping(self) -> dict[str, Any]:
        """Options that decide what stands in the output."""
        return self._shaping()

    def _shaping(self) -> dict[str, Any]:
        """Options that decide what stands in the output; `vectors verify` and `vectors search` read them."""
        options = self.job.settings.options
        said = {one.name: getattr(options, one.name) for one in fields(Options)}
        asked = {one.name for one in fields(Options) if said[one.name] != one.default and one.name in _SHAPING_WHEN_SET}
        return {name: value for name, value in said.items() if name in _SHAPING or name in asked}

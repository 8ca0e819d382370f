"""Outputs made for tests: right ones, whose vectors are derived from their texts, and what can be done to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedctl.outputs import parquet as output_parquet
from embedctl.records import Space, text_hash

WIDTH = 16
SPACE = Space(model="test/model", dimensions=WIDTH, normalized=True, prefix="passage: ")


def vector(text: str, width: int = WIDTH) -> np.ndarray:
    """A vector of length 1 that only this text has."""
    seed = int.from_bytes(text_hash(text)[:8], "little")
    found = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    return found / np.linalg.norm(found)


@dataclass
class Rows:
    """The rows of one part, still free to be spoilt."""

    ids: list[Any]
    texts: list[str]
    vectors: np.ndarray
    chunk_indexes: list[int] = field(default_factory=list)
    hashes: bytes = b""
    space: Space = SPACE
    written: int | None = None
    space_id: str | None = None

    def __post_init__(self) -> None:
        self.chunk_indexes = self.chunk_indexes or [0] * len(self.ids)
        self.hashes = self.hashes or b"".join(text_hash(self.space.prefix + text) for text in self.texts)


def rows(count: int, start: int = 0, space: Space = SPACE) -> Rows:
    """Rows `row-START…` with texts of their own."""
    texts = [f"text number {number} about nothing" for number in range(start, start + count)]
    vectors = np.stack([vector(text, space.dimensions) for text in texts])
    return Rows([f"row-{number}" for number in range(start, start + count)], texts, vectors, space=space)


def put(
    path: Path,
    made: Rows,
    *,
    text: bool = True,
    dtype: output_parquet.Dtype = "float32",
    vector_type: output_parquet.VectorType = "fixed",
    options: dict[str, Any] | None = None,
) -> Path:
    """Write one Parquet file as a run does."""
    columns = output_parquet.row_columns(pa.string(), pa.schema([]), text=text)
    layout = output_parquet.Layout(
        columns=columns, dimensions=made.vectors.shape[1], dtype=dtype, vector_type=vector_type
    )
    arrays: list[Any] = [pa.array(made.ids, pa.string()), pa.array(made.chunk_indexes, pa.int32())]
    if text:
        arrays.append(pa.array(made.texts, pa.string()))
    count = len(made.ids)
    table = output_parquet.table(
        pa.RecordBatch.from_arrays(arrays, schema=columns),
        output_parquet.Embeddings(
            vectors=[made.vectors],
            bought=np.zeros(count, np.int32),
            purchases=[("model", "elsewhere", "operation-1")],
            tokens=np.full(count, 5, np.int32),
            hashes=made.hashes,
        ),
        layout,
    )
    counts = {"read": count, "embedded": count, "failed": 0, "skipped": 0, "vectors": count}
    facts = json.loads(
        output_parquet.metadata(
            made.space,
            run_id="01a1feab-0dc6-7feb-8f7e-50f66183c948",
            source={"files": []},
            rows=count if made.written is None else made.written,
            extra={"counts": counts, **({"options": options} if options else {})},
        )
    )
    facts["space_id"] = made.space_id or facts["space_id"]
    with path.open("wb") as sink, output_parquet.writer(sink, layout) as parquet:
        parquet.write_table(table, row_group_size=output_parquet.ROW_GROUP_ROWS)
        parquet.add_key_value_metadata({output_parquet.METADATA_KEY.decode(): json.dumps(facts)})
    return path


def folder(path: Path, parts: Sequence[Rows], **record: Any) -> Path:
    """Write a folder as `batch run` does: parts and the run's record."""
    state = path / "_embedctl"
    state.mkdir(parents=True)
    for number, part in enumerate(parts):
        put(path / f"part-{number:06d}.parquet", part)
    total = sum(len(part.ids) for part in parts)
    counts = {"read": total, "embedded": total, "failed": 0, "skipped": 0, "vectors": total}
    said = {"state": "complete", "parts": len(parts), "replacing": False, "space_id": SPACE.space_id, "counts": counts}
    (state / "run.json").write_text(json.dumps({**said, **record}))
    return path


def another(space: Space = SPACE) -> Space:
    """A space of another model with the same width."""
    return replace(space, model="test/another")

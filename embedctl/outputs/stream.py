"""`embed -o -`: one JSON object per vector on stdout; failures in words on stderr."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.inputs.row_ids import printed
from embedctl.outputs import parquet
from embedctl.outputs.output import Finished
from embedctl.outputs.scratch import ScratchOutput
from embedctl.records import UNOBSERVED, Observer, RowFailed
from embedctl.storage import Disk


@dataclass
class StreamOutput(ScratchOutput):
    """JSON lines; `state` is a folder of this run alone."""

    stream: BinaryIO
    vectors: Literal["float", "base64"] = "float"
    disk: Disk = storage.DISK
    keeps_journal: bool = True
    resumable: bool = False
    replacing: bool = False
    observer: Observer = UNOBSERVED
    failures: Path | None = None

    def put(self, finished: Finished) -> Path | None:
        """Print the slice's rows."""
        try:
            for table in finished.tables:
                for line in json_lines(table, finished.layout.dimensions if finished.layout else 0, self.vectors):
                    self.stream.write(line)
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as refusal:
            raise StorageFailed(f"cannot write to stdout: {refusal.strerror}") from refusal
        for failure in finished.failed:
            self.observer.notify(RowFailed(failure))
        return None

    def tidy(self) -> None:
        """Remove the state folder."""
        storage.remove_tree(self.disk, self.state)


def json_lines(table: Any, dimensions: int, vectors: str) -> Iterator[bytes]:
    """One JSON object per row, with the column names of the Parquet output."""
    matrix = parquet.matrix(table.column("embedding"), dimensions)
    hashes = table.column("embedding_text_hash").to_pylist()
    names = table.column_names
    others = [name for name in names if name not in ("embedding", "embedding_text_hash")]
    columns = (printed(table.column(name)) if name == "id" else parquet.plain(table.column(name)) for name in others)
    values = zip(*columns, strict=True)
    for row, vector, digest in zip(values, matrix, hashes, strict=True):
        shown: Any = base64.b64encode(vector.tobytes()).decode() if vectors == "base64" else vector
        whole = {**dict(zip(others, row, strict=True)), "embedding": shown, "embedding_text_hash": digest.hex()}
        ordered = {name: whole[name] for name in names}
        yield orjson.dumps(ordered, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE, default=_plain)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)

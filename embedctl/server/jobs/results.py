"""What is made of a job's vectors: one Parquet file, or JSON Lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pybase64

from embedctl.server.jobs.children import OUTPUT, Form, result_name


@contextmanager
def made(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole."""
    growing = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb", 1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        growing.replace(path)
    except BaseException:
        with suppress(OSError):
            growing.unlink()
        raise


def make(folder: Path, form: Form) -> None:
    """The result of the job in `folder`, under `result_name(form)`.

    Raises:
        StorageFailed: A part is damaged.
        OSError: The disk refuses.
    """
    from embedctl.outputs import parquet, parts_of

    parts = parts_of(folder / OUTPUT)
    with made(folder / result_name(form)) as file:
        if form == "parquet" and len(parts) == 1:
            with parts[0].open("rb") as part:
                while piece := part.read(1 << 20):
                    file.write(piece)
        elif form == "parquet":
            parquet.concatenate(parts, file)
        else:
            for part_path in parts:
                for columns, vectors in parquet.embedded_rows(part_path):
                    names = list(columns)
                    for vector, *values in zip(vectors, *columns.values(), strict=True):
                        row = dict(zip(names, values, strict=True))
                        file.write(_line(row, vector, base64=form == "base64"))


def _line(row: dict[str, Any], vector: Any, *, base64: bool) -> bytes:
    written: Any = pybase64.b64encode_as_string(vector.astype("<f4").tobytes()) if base64 else vector
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    return orjson.dumps({**row, "embedding": written}, default=_as_text, option=options)


def _as_text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)

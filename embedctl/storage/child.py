"""A Python of our own beside this one, for SQL of people: without keys, and without code of the current folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import orjson

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OPENBLAS_CORETYPE")
"""What the child knows of the environment: no keys, and nothing that says where code is loaded from but libraries."""


def command(module: str) -> list[str]:
    """What starts `main()` of a module of ours."""
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main()"
    # -I: neither the current folder nor PYTHON… variables say what is imported; -S: nor .pth files again
    return [sys.executable, "-I", "-S", "-c", code, orjson.dumps(_import_path()).decode()]


def environment() -> dict[str, str]:
    """The child's."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


@contextmanager
def answering() -> Iterator[BinaryIO]:
    """In the child: where its answer goes. What libraries print meanwhile, as DuckDB its progress, is no part of it."""
    out = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield out
    finally:
        with suppress(BrokenPipeError):  # nobody waits for it any more
            out.close()


def _import_path() -> list[str]:
    """Where this process imports from, but for names that mean something else in another folder."""
    return [entry for entry in sys.path if Path(entry).is_absolute()]

"""How a process takes memory: settings of glibc's malloc, of Arrow and of OpenBLAS, and of Python's own collector.

Answers of 2 MB come and go by the hundred. By default malloc and Arrow's allocator return each to the kernel, which
clears the pages anew for the next one; OpenBLAS keeps threads that wait by turning. Together 9 % of the CPU of 100k
texts (2026-11-21).
"""

from __future__ import annotations

import gc
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT_BYTES = 128 << 20
_LARGE_BYTES = 32 << 20


def collect_seldom() -> None:
    """Rows and requests come by the hundred thousand and hold no cycles: looking through them was 5 % of a run."""
    gc.set_threshold(100_000, 20, 100)


def collect_no_more() -> None:
    """The process is about to end: the interpreter would look for cycles in all there is, 0.1 s for nothing."""
    gc.freeze()


class _NoPandas:
    """A finder that knows of no pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("embedctl uses no pandas", name=name)


def leave_pandas_out() -> None:
    """Where pandas is installed pyarrow imports it with its first array, 0.5 s of CPU and 35 MB for nothing.

    For processes that are embedctl's alone.
    """
    sys.meta_path.insert(0, _NoPandas)


def keep_memory() -> None:
    """From now on up to 128 MiB that are freed stay with this process, in one heap for all threads.

    To be called before numpy and pyarrow are imported; what the environment says of them stays. C libraries other
    than glibc have no such call, and nothing is done.
    """
    import ctypes  # not for --help

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_ARENA_MAX, 1)

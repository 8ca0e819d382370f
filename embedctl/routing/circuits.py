"""Circuits of running jobs, for `providers list` and `doctor`: one small file per run that had something to say.

A breaker's state is never taken over by another run (facts/faults.md 3.7): a stale "open" would block a server that is
well again. The file lives as long as the lock its process holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from embedctl.errors import EmbedctlError
from embedctl.routing.breaker import Snapshot, State
from embedctl.storage import DISK, locks, paths_in, read_small, replace
from embedctl.storage.locks import Lock

MAX_BYTES = 1 << 20
"""Of a file: thousands of circuits."""


class Circuits:
    """One run's file. Nothing is written while all is well; a folder that cannot be written to is no failure."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._file = folder / f"{name}.json"
        self._lock: Lock | None = None
        self._said: list[tuple[object, ...]] = []
        self._resets: dict[str, int] = {}
        self._began_ns = time.time_ns()

    def is_news(self, snapshots: Sequence[Snapshot]) -> bool:
        """Whether they stand otherwise than when this was last asked."""
        unhealthy = [one for one in snapshots if one.state is not State.CLOSED]
        kinds: list[tuple[object, ...]] = [(one.provider, one.model, one.state, one.openings) for one in unhealthy]
        before, self._said = self._said, kinds
        return kinds != before

    def publish(self, snapshots: Sequence[Snapshot]) -> None:
        """Write down how they stand."""
        unhealthy = [_encoded(one) for one in snapshots if one.state is not State.CLOSED]
        with suppress(EmbedctlError, OSError):
            if self._lock is None:
                DISK.make_folder(self._folder)
                self._lock = locks.hold(self._file.with_suffix(".lock"), command="circuits of a run")
            replace(DISK, self._file, orjson.dumps(unhealthy, option=orjson.OPT_INDENT_2))

    def asked_to_close(self, provider: str) -> bool:
        """Whether somebody asked for a provider's circuits to be closed since this was last asked."""
        try:
            at = (self._folder / f"{provider}.reset").stat().st_mtime_ns
        except OSError:
            return False
        before, self._resets[provider] = self._resets.get(provider, self._began_ns), at
        return at > before

    def close(self) -> None:
        """The run is over."""
        if self._lock is not None:
            for path in (self._file, self._file.with_suffix(".lock")):
                path.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def sweep(folder: Path) -> int:
    """Remove what runs left that were killed; how many of them."""
    gone = 0
    for name in sorted({path.stem for path in paths_in(folder) if path.suffix in (".json", ".lock")}):
        file = folder / f"{name}.json"
        if locks.is_held(file.with_suffix(".lock")):
            continue
        with suppress(EmbedctlError), locks.hold(file.with_suffix(".lock"), command=locks.RECOVERY):
            for path in (file, file.with_suffix(".lock")):
                DISK.unlink(path)
            gone += 1
    return gone


def ask_to_close(folder: Path, provider: str) -> None:
    """Ask running jobs to close a provider's circuits: they look while they wait.

    Raises:
        OutputRefused, StorageFailed: The folder cannot be made, or written to.
    """
    DISK.make_folder(folder)
    replace(DISK, folder / f"{provider}.reset", b"")


def running(folder: Path) -> list[dict[str, Any]]:
    """Circuits that are not closed, of runs that live: provider, model, state, failures, results, reason, run."""
    found: list[dict[str, Any]] = []
    for file in paths_in(folder, "*.json"):
        if not locks.is_held(file.with_suffix(".lock")):
            continue
        with suppress(OSError, orjson.JSONDecodeError, TypeError):
            told = orjson.loads(read_small(file, max_bytes=MAX_BYTES, follow=False))
            found += [{"reason": None, **one, "run": file.stem} for one in told if _is_circuit(one)]
    return found


def _is_circuit(one: Any) -> bool:
    """Whether it is what `publish` writes."""
    states = [state.value for state in State if state is not State.CLOSED]
    return isinstance(one, dict) and one.get("state") in states and {"provider", "model"} <= one.keys()


_OF_A_CLOCK = ("failed_at", "changed_at", "probing", "stay_s", "put_off")
"""What means nothing to other processes, whose clocks began elsewhere."""


def _encoded(snapshot: Snapshot) -> dict[str, Any]:
    told = {name: value for name, value in asdict(snapshot).items() if name not in _OF_A_CLOCK}
    return {**told, "state": snapshot.state.value}

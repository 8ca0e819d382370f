"""embedctl in processes that are forked from one that has imported it, for tests of several at once."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT, Zygote

_LOCK = threading.Lock()


@functools.cache
def _zygote() -> Zygote:
    """This process's, for as long as it lives."""
    command = [sys.executable, "-m", "tests.support.zygote"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(process.stdout.close)
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    return Zygote(process)


class Forked:
    """A command that runs, with the methods of `subprocess.Popen` that tests of a server use.

    Attributes:
        returncode: None while it runs; negative for a signal.
    """

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str],
        words: tuple[object, ...],
        *,
        out: Path,
        err: Path,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self._out = out
        out.touch()
        order = {
            "args": [str(word) for word in words],
            "cwd": str(folder),
            "env": dict(env),
            "constants": dict(constants or {}),
            "run": {},
        }
        with _LOCK:
            self.pid = _zygote().ask({**order, "out": str(out), "err": str(err)})
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with _LOCK:  # it is told once
            if self.returncode is None:
                told = _zygote().ask({"poll": self.pid})
                self.returncode = None if told == RUNS else told
            return self.returncode

    def wait(self, timeout: float = 600) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def first_line(self) -> str:
        """Of its stdout; less when it ends before."""
        while not (said := self._out.read_text()).endswith("\n") and self.poll() is None:
            time.sleep(0.005)
        return said


RUNS = 1 << 20
"""The zygote's answer for a process that has not ended."""


def run(folder: Path, env: Mapping[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """A command, ended."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        code = Forked(folder, env, words, out=out, err=err).wait()
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

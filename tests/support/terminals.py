"""embedctl on a terminal: a pseudo-terminal as its stderr, and what a person sees there."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.places import ROOT

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE_S = 120
"""After that a test has failed: nothing here is about time."""


class Terminal:
    """A command whose stderr is a terminal, or a pipe.

    Attributes:
        raw: All that it wrote.
    """

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen
        self.raw = ""

    def wait_for(self, pattern: str) -> None:
        """Read until a person has seen this."""
        while not re.search(pattern, self.seen):
            if not self._read():
                raise AssertionError(f"it ended without {pattern!r}: {self.seen[:2000]}")

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    @property
    def seen(self) -> str:
        """Without what moves the cursor and colours."""
        return _CONTROL.sub("", self.raw)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], PATIENCE_S)
        assert ready, f"nothing comes any more: {self.seen}"
        try:
            some = os.read(self._screen, 1 << 16)
        except OSError:  # Linux says so when nobody has the other side open
            return False
        self.raw += some.decode("utf-8", "replace")
        return bool(some)


@contextmanager
def run_on(
    words: Sequence[object], folder: Path, environment: Mapping[str, str], *, tty: bool = True, width: int = 100
) -> Iterator[Terminal]:
    """The command, begun."""
    ours, theirs = os.openpty() if tty else os.pipe()
    if tty:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "embedctl", *map(str, words)],
        cwd=folder,
        env={"TERM": "xterm-256color", **environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        os.close(ours)

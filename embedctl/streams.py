"""The standard streams: what is said beside the result stops nothing, a result that cannot be written is an error."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from embedctl.errors import StorageFailed


def aside(text: str) -> None:
    """Text on stderr. One that takes no more (a log on a full disk) stops nothing that was going well."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def out(text: str) -> None:
    """Text on stdout.

    Raises:
        StorageFailed: It takes no more.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        raise
    except OSError as refusal:
        raise StorageFailed(f"cannot write to stdout: {refusal.strerror}") from refusal


def stand_in_for_closed() -> None:
    """A stream that was closed (`2>&-`) leads nowhere, else the next file that is opened would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def let_go() -> None:
    """The end: what a stream does not take is dropped, else the interpreter would fail with it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _silence(stream)


def _silence(stream: TextIO) -> None:
    """What is left in its buffer goes nowhere, and so does all that comes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

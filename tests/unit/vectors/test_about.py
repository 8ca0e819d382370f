"""What can be said of an output, whoever wrote it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedctl.vectors import about, files
from tests.support.vector_files import folder, rows

NOBODY = 65534


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that every user of the machine may look into."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")
def test_an_output_of_another_user_is_described(open_to_all: Path) -> None:
    """Its parts may be read, its state may not: what stands there is left out, and nothing is called damaged."""
    output = folder(open_to_all / "out", [rows(3), rows(2, start=3)])
    about.about(files.open_stored(output))  # libraries are loaded by who may read them
    (output / "_embedctl" / "space.lock").write_text("for its owner")
    (output / "_embedctl").chmod(0o700)
    os.seteuid(NOBODY)
    try:
        found = about.about(files.open_stored(output))
    finally:
        os.seteuid(0)

    assert (found.rows, found.parts, found.lock) == (5, 2, None)

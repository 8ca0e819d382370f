"""A Python of our own beside this one: its answer is what it says, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from embedctl.inputs import ReadOptions, asked, open_query
from embedctl.ledger import query
from embedctl.storage import child
from tests.support.ledger_events import event, place, take

NOISY = """
import os
from embedctl.storage import child

def main():
    with child.answering() as out:
        print("1 % of two minutes", flush=True)
        os.write(1, b"2 %")
        out.write(b"the answer")
"""


def test_what_libraries_print_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to stdout while a child works is not in its answer, whoever writes it."""
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    told = subprocess.run(child.command("noisy"), capture_output=True, check=True, env=child.environment(), cwd="/")

    assert told.stdout == b"the answer"


DRAWS = "SELECT 1 AS id, current_setting('enable_progress_bar')::VARCHAR AS text"


def test_no_query_draws_a_bar(tmp_path: Path) -> None:
    """DuckDB takes a child for a notebook, where queries of more than two seconds draw a bar: not here."""
    paths = place(tmp_path)
    take(paths, event())
    rows = open_query(asked(DRAWS, {}, folder=None, attach_folder=None), ReadOptions())

    assert query.ask(paths, DRAWS).rows == [[1, "false"]]
    assert [text for block in rows.blocks() for text in block.texts] == ["false"]

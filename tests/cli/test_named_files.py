"""Every command that writes a file under a name that was typed: `-o`, `--html`, `--save`, `backup`, `config init`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.ledger_events import event, place, take
from tests.support.running import embedctl
from tests.support.vector_files import put, rows

COMMANDS = {
    "report": ("usage", "report", "-o"),
    "report as json": ("usage", "daily", "--format", "json", "-o"),
    "report as csv": ("usage", "report", "--format", "csv", "-o"),
    "report as md": ("usage", "report", "--format", "md", "-o"),
    "report as parquet": ("usage", "report", "--format", "parquet", "-o"),
    "report as focus": ("usage", "report", "--format", "focus", "-o"),
    "report as page": ("usage", "report", "--html"),
    "export focus": ("usage", "export", "-o"),
    "export parquet": ("usage", "export", "--format", "parquet", "-o"),
    "export cloudevents": ("usage", "export", "--format", "cloudevents", "-o"),
    "backup": ("usage", "backup"),
    "estimate": ("usage", "estimate", "in.txt", "--save"),
    "map": ("vectors", "map", "in.parquet", "-o"),
    "settings": ("config", "init", "--config"),
}


@pytest.fixture
def here(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs, and a ledger that knows a call."""
    monkeypatch.chdir(tmp_path)
    take(place(clean_environment), event())
    Path("in.txt").write_text("one\ntwo\nthree\n")
    put(Path("in.parquet"), rows(9))
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_file_is_replaced_only_when_told_to(here: Path, words: tuple[str, ...]) -> None:
    """A file that exists is left, with 73, a hint, and nothing beside it; --overwrite replaces it whole."""
    Path("made.html").write_text("mine")
    before = sorted(os.listdir())
    refused = embedctl(*words, "made.html")

    assert refused.code == 73
    if "json" in words:
        assert (refused.json["message"], refused.err) == ("made.html exists", "")
    else:
        assert (refused.out, refused.err) == (
            "",
            "error: made.html exists\nhint: name another, or --overwrite replaces it\n",
        )
    assert Path("made.html").read_text() == "mine"
    assert embedctl(*words, "made.html", "--overwrite").code == 0
    assert Path("made.html").read_bytes() != b"mine"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("target", ["theirs", "nowhere"])
def test_no_file_is_written_through_a_link(here: Path, words: tuple[str, ...], target: str) -> None:
    """A link counts as a file that exists, wherever it leads; --overwrite replaces the link, never its target."""
    Path("theirs").write_text("theirs")
    Path("made.html").symlink_to(target)
    refused = embedctl(*words, "made.html")

    assert (refused.code, Path("made.html").is_symlink()) == (73, True)
    assert embedctl(*words, "made.html", "--overwrite").code == 0
    assert not Path("made.html").is_symlink()
    assert Path("theirs").read_text() == "theirs"
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_what_is_no_file_is_not_replaced(here: Path, words: tuple[str, ...]) -> None:
    """A folder and a pipe are refused, also with --overwrite, and without waiting for who reads the pipe."""
    Path("folder.html").mkdir()
    os.mkfifo("pipe.html")
    Path("link.html").symlink_to("pipe.html")

    for name in ("folder.html", "pipe.html", "link.html"):
        assert embedctl(*words, name, "--overwrite").code == 73
    assert Path("pipe.html").is_fifo()

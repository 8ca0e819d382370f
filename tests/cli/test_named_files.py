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


SUFFIXES = {
    "report": "txt",
    "report as focus": "csv",
    "export focus": "csv",
    "export cloudevents": "jsonl",
    "embed": "parquet",
}


def called(name: str, words: tuple[str, ...]) -> str:
    """A name that says what the command writes."""
    kind = next(kind for kind, one in OUTPUTS.items() if one == words)
    suffix = SUFFIXES.get(kind, kind.rpartition(" ")[2])
    return f"{name}.{suffix if suffix in ('txt', 'json', 'csv', 'md', 'parquet', 'jsonl') else 'html'}"


@pytest.fixture
def here(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs, and a ledger that knows a call."""
    monkeypatch.chdir(tmp_path)
    take(place(clean_environment), event())
    Path("in.txt").write_text("one\ntwo\nthree\n")
    put(Path("in.parquet"), rows(9))
    return tmp_path


OUTPUTS = {**COMMANDS, "embed": ("embed", "in.txt", "-o"), "batch run": ("batch", "run", "in.txt", "-o")}


@pytest.mark.parametrize("words", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("scheme", ["s3", "https"])
def test_an_address_is_no_path(here: Path, scheme: str, words: tuple[str, ...]) -> None:
    """What is to be written to a URL is refused with 2, and no folder is made that is called "s3:".

    But what `batch run` writes to a store: without credentials here, that is 77.
    """
    on_a_store = scheme == "s3" and words[:2] == ("batch", "run")
    before = sorted(os.listdir())
    refused = embedctl(*words, f"{scheme}://bucket/{called('made', words)}")

    said = "no credentials were found" if on_a_store else f"nothing is written to {scheme}://"
    assert (refused.code, said in refused.err + refused.out) == (77 if on_a_store else 2, True), refused
    assert sorted(os.listdir()) == before


def test_state_is_at_no_address(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a ledger, nor the home."""
    for environment, flags in (({}, ["--ledger", "s3://b/l.duckdb"]), ({"EMBEDCTL_HOME": "s3://b"}, [])):
        before = sorted(os.listdir())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        refused = embedctl("usage", "report", *flags)

        assert (refused.code, "nothing is written to s3://" in refused.err) == (2, True), refused.err
        assert sorted(os.listdir()) == before


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_file_is_replaced_only_when_told_to(here: Path, words: tuple[str, ...]) -> None:
    """A file that exists is left, with 73, a hint, and nothing beside it; --overwrite replaces it whole."""
    made = called("made", words)
    Path(made).write_text("mine")
    before = sorted(os.listdir())
    refused = embedctl(*words, made)

    assert refused.code == 73
    if "json" in words:
        assert (refused.json["message"], refused.err) == (f"{made} exists", "")
    else:
        assert (refused.out, refused.err) == (
            "",
            f"error: {made} exists\nhint: name another, or --overwrite replaces it\n",
        )
    assert Path(made).read_text() == "mine"
    assert embedctl(*words, made, "--overwrite").code == 0
    assert Path(made).read_bytes() != b"mine"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("target", ["theirs", "nowhere"])
def test_no_file_is_written_through_a_link(here: Path, words: tuple[str, ...], target: str) -> None:
    """A link counts as a file that exists, wherever it leads; --overwrite replaces the link, never its target."""
    Path("theirs").write_text("theirs")
    made = Path(called("made", words))
    made.symlink_to(target)
    refused = embedctl(*words, str(made))

    assert (refused.code, made.is_symlink()) == (73, True)
    assert embedctl(*words, str(made), "--overwrite").code == 0
    assert not made.is_symlink()
    assert Path("theirs").read_text() == "theirs"
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_what_is_no_file_is_not_replaced(here: Path, words: tuple[str, ...]) -> None:
    """A folder and a pipe are refused, also with --overwrite, and without waiting for who reads the pipe."""
    folder, pipe, link = (Path(called(name, words)) for name in ("folder", "pipe", "link"))
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(pipe)

    for place_ in (folder, pipe, link):
        assert embedctl(*words, str(place_), "--overwrite").code == 73
    assert pipe.is_fifo()

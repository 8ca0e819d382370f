"""Folders and globs: what they find, and that no link in them leads anywhere else."""

from __future__ import annotations

import glob
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedctl.errors import InputMissing
from embedctl.inputs import ReadOptions, open_input
from tests.support.running import embedctl, rows


def found(*inputs: str | Path) -> list[str]:
    return [file.label for file in open_input([str(one) for one in inputs], ReadOptions()).files]


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloned folder with links into somebody's files, and within itself."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.md").write_text("secret")
    (outside / "deep" / "deeper.md").write_text("deeper secret")
    folder = tmp_path / "clone" / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("a")
    (folder / "sub" / "b.md").write_text("b")
    (folder / "link.md").symlink_to(outside / "secret.md")
    (folder / "relative.md").symlink_to("../../outside/secret.md")
    (folder / "linked").symlink_to(outside)
    (folder / "sub" / "up.md").symlink_to("../a.md")
    (folder / "sub" / "round").symlink_to("..")
    (folder / "sub" / "itself.md").symlink_to("itself.md")
    (folder / "sub" / "nowhere.md").symlink_to("nothing.md")
    (folder / "loop").symlink_to(".")
    (folder / "again").symlink_to(".")
    monkeypatch.chdir(folder.parent)
    return folder


PATTERNS = [
    "docs/*.md", "docs/**/*.md", "docs/**", "docs/*/*.md", "docs/**/deep/*.md", "**/*.md", "*/*.md", "docs/l*/s*.md",
    "docs/[l]inked/deep/d*.md", "docs/**/secret.md", "docs/*/secret.md", "docs/s*/../../../outside/*.md",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_leads_out(docs: Path, pattern: str) -> None:
    """Whatever a pattern matches, a link out of its root is left out, and links that lead in circles end."""
    try:
        source = open_input([pattern], ReadOptions())
    except InputMissing:
        return

    assert {Path(file.path).read_text() for file in source.files} <= {"a", "b"}


def test_a_glob_and_its_folder_find_the_same(docs: Path) -> None:
    """'docs/**/*.md' finds what docs does, in the same order or not, and both say what they leave out."""
    by_glob = open_input(["docs/**/*.md"], ReadOptions())
    by_folder = open_input(["docs"], ReadOptions())

    assert sorted(file.label for file in by_glob.files) == sorted(file.label for file in by_folder.files)
    assert found("docs") == ["a.md", "sub/b.md"]
    for source in (by_glob, by_folder):
        (line,) = source.warnings
        assert line.startswith("left out: 3 links that lead out of the folder (docs/")
        assert {word for word in ("link.md", "linked", "relative.md") if f"docs/{word}" in line} == {
            "link.md",
            "linked",
            "relative.md",
        }


def test_a_link_that_is_named_is_the_users_word(docs: Path) -> None:
    """A link on the command line is followed, as a file, a folder, or the root of a pattern."""
    assert found("docs/link.md") == ["link.md"]
    assert found("docs/linked") == ["secret.md", "deep/deeper.md"]
    assert found("docs/linked/*.md") == ["secret.md"]
    assert found("docs/linked/**/*.md") == ["deep/deeper.md", "secret.md"]
    assert open_input(["docs/link.md"], ReadOptions()).warnings == ()


def test_a_pattern_of_links_only_says_why_nothing_is_left(docs: Path) -> None:
    """A pattern that matches nothing but links out of its root ends with 66 and names one."""
    with pytest.raises(InputMissing) as caught:
        open_input(["docs/li*.md"], ReadOptions())

    assert "docs/link.md is a link that leads out of docs" in (caught.value.hint or "")


@pytest.mark.timeout(20)
def test_a_pipe_in_a_folder_is_no_input(docs: Path) -> None:
    """A FIFO that a pattern or a folder finds is not waited for."""
    os.mkfifo(docs / "pipe.md")

    assert found("docs") == found("docs/**/*.md") == ["a.md", "sub/b.md"]


def test_what_a_run_wrote_is_no_input_of_a_pattern(docs: Path) -> None:
    """Outputs and failures files are left out by patterns as by folders, unless the pattern names them."""
    for name in ("x.failures.jsonl", "sub/y.failures.jsonl", "z.jsonl"):
        (docs / name).write_text('{"text": "t"}\n')

    assert found("docs/**/*.jsonl") == ["z.jsonl"]
    assert found("docs/*.failures.jsonl") == ["x.failures.jsonl"]


@pytest.mark.timeout(60)
def test_a_folder_deeper_than_the_stack_is_read(tmp_path: Path) -> None:
    """Folders in folders, a thousand deep and more, are walked through."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with os.fdopen(os.open("a.md", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "w") as file:
        file.write("deep")
    os.close(fd)
    counts = [len(found(tmp_path / "**/*.md")), len(found(tmp_path))]
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # what tidies up after tests is not as deep

    assert counts == [1, 1]


NAMES = st.text("ab.]", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
PARTS = st.sampled_from(["*", "**", "a", "b*", "*a", ".*", "[ab]*", "?", "*.b", ".a"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), max_size=6),
    pattern=st.lists(PARTS, min_size=1, max_size=3),
)
def test_patterns_mean_what_they_mean_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, paths: set[tuple[str, ...]], pattern: list[str]
) -> None:
    """Without links and outputs of ours, the files of a pattern are those of Python's glob."""
    root = tmp_path_factory.mktemp("glob")
    for parts in paths:
        path = root.joinpath(*parts)
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("text")
    wanted = glob.glob(f"{glob.escape(str(root))}/{'/'.join(pattern)}", recursive=True)
    files = sorted({os.path.relpath(path, root) for path in wanted if os.path.isfile(path)})
    try:
        source = open_input([f"{glob.escape(str(root))}/{'/'.join(pattern)}"], ReadOptions())
    except InputMissing:
        assert files == [] or not glob.has_magic("/".join(pattern))
        return

    assert sorted(os.path.relpath(file.path, root) for file in source.files) == files


def test_the_command_says_what_it_left_out(docs: Path) -> None:
    """`embed 'docs/**/*.md'` embeds what is below docs, and names the links that it did not follow."""
    ran = embedctl("embed", "docs/**/*.md", "-o", "out.parquet")

    assert ran.code == 0
    assert sorted(row["text"] for row in rows("out.parquet")) == ["a", "b"]
    assert "left out: 3 links that lead out of the folder" in ran.err

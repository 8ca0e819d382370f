"""Nothing that lies in a folder is the user's word: links in it are not followed, code in it is not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedctl import storage
from embedctl.errors import OutputRefused
from tests.support.running import embedctl

EMBEDCTL = Path(sys.executable).with_name("embedctl")

STATE_OF_A_FOLDER = ["_embedctl", "_embedctl/next", "_embedctl/kept", "_embedctl/failed", "_embedctl/journal"]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Somebody's files, which nothing here may touch."""
    folder = tmp_path / "Documents"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "letter.txt").write_text("dear")
    (folder / "part-000000.parquet").write_text("not ours")
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloned folder, the current one."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "notes.txt").write_text("a line\nanother line\n")
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_link_in_place_of_the_state_of_a_file_is_refused(project: Path, documents: Path) -> None:
    """A planted `.FILE.embedctl` that is a link ends the run with 73; what it leads to stays as it was."""
    before = contents(documents)
    (project / ".notes.embeddings.parquet.embedctl").symlink_to(documents)

    ran = embedctl("embed", "notes.txt")

    assert ran.code == 73
    assert "is a symbolic link" in ran.err
    assert contents(documents) == before


@pytest.mark.parametrize("name", STATE_OF_A_FOLDER)
def test_a_link_in_the_state_of_a_folder_is_refused(project: Path, documents: Path, name: str) -> None:
    """Every folder of `_embedctl/`, and it itself, must be a folder of this user's."""
    before = contents(documents)
    link = project / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(documents)

    ran = embedctl("batch", "run", "notes.txt", "-o", "out")

    assert ran.code == 73
    assert "is a symbolic link" in ran.err
    assert contents(documents) == before


def test_a_link_put_into_a_finished_output_is_refused(project: Path, documents: Path) -> None:
    """A rerun looks anew: an output that was ours may hold a link by now."""
    assert embedctl("batch", "run", "notes.txt", "-o", "out").code == 0
    before = contents(documents)
    (project / "out" / "_embedctl" / "kept").symlink_to(documents)

    assert embedctl("batch", "run", "notes.txt", "-o", "out").code == 73
    assert embedctl("batch", "run", "notes.txt", "-o", "out", "--overwrite").code == 73
    assert contents(documents) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_state_of_another_user_is_refused(project: Path) -> None:
    """A state folder that somebody else made is not ours, whatever it holds."""
    state = project / "out" / "_embedctl"
    state.mkdir(parents=True)
    os.chown(state, 12345, 12345)

    ran = embedctl("batch", "run", "notes.txt", "-o", "out")

    assert ran.code == 73
    assert "another user's" in ran.err


def test_a_pipe_in_the_state_is_refused(project: Path) -> None:
    """A FIFO among the state's files is no file: it would never end."""
    state = project / "out" / "_embedctl"
    state.mkdir(parents=True)
    os.mkfifo(state / "run.json")

    assert embedctl("batch", "run", "notes.txt", "-o", "out").code == 73


def test_removal_follows_no_link(tmp_path: Path, documents: Path) -> None:
    """`remove_tree` refuses a link at its root, and takes links below it away without what they lead to."""
    before = contents(documents)
    (tmp_path / "link").symlink_to(documents)
    ours = tmp_path / "ours"
    (ours / "deep").mkdir(parents=True)
    (ours / "deep" / "link").symlink_to(documents)

    with pytest.raises(OutputRefused):
        storage.remove_tree(storage.DISK, tmp_path / "link")
    storage.remove_tree(storage.DISK, ours)

    assert not ours.exists()
    assert contents(documents) == before


def test_removal_keeps_to_the_folder_it_opened(tmp_path: Path, documents: Path) -> None:
    """A folder that becomes a link while it is emptied leads nowhere: names are looked up in the open folder."""
    before = contents(documents)
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "part-000000.parquet").write_text("ours")

    class Swapping(storage.Disk):
        def open_own_folder(self, folder: Path, *, folder_fd: int | None = None) -> int | None:
            fd = super().open_own_folder(folder, folder_fd=folder_fd)
            ours.rename(tmp_path / "moved")
            ours.symlink_to(documents)
            return fd

    storage.remove_tree(Swapping(), ours)

    assert contents(documents) == before
    assert not any((tmp_path / "moved").iterdir())


def test_code_in_the_current_folder_is_not_run(project: Path) -> None:
    """Modules of a cloned folder are not imported by any command, nor by a process that one starts."""
    for name in ("orjson.py", "duckdb.py", "resource.py", "embedctl/__init__.py", "sitecustomize.py"):
        planted = project / name
        planted.parent.mkdir(exist_ok=True)
        planted.write_text(f"open({str(project / 'ran')!r}, 'a').write({name!r})\n")

    for words in (["usage", "sql", "select 1"], ["embed", "notes.txt"], ["doctor"], ["usage", "report"]):
        done = subprocess.run([EMBEDCTL, *words], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    assert not (project / "ran").exists()


@pytest.mark.parametrize("variable", ["PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME"])
def test_the_query_process_heeds_no_python_variable(
    project: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A relative entry of PYTHONPATH means the current folder to Python; `usage sql` imports nothing by it."""
    (project / "orjson.py").write_text(f"open({str(project / 'ran')!r}, 'w').close()\n")
    monkeypatch.setenv(variable, ".")

    ran = embedctl("usage", "sql", "select 41 + 1")

    assert ran.code == 0
    assert "42" in ran.out
    assert not (project / "ran").exists()


def test_the_query_process_knows_no_key(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`usage sql` gives its process an environment of its own."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1234567890")
    seen = project / "seen"
    python = project / "python"
    python.write_text(f'#!/bin/sh\nenv > {seen}\npwd >> {seen}\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))

    assert embedctl("usage", "sql", "select 1").code == 0
    assert "sk-secret" not in seen.read_text()
    assert str(project) not in seen.read_text().splitlines()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_bundled_model_is_silent(project: Path, tmp_path: Path, clean_environment: Path) -> None:
    """The bundled model opens no socket to a network, and makes no file outside of our places, also in a longer run."""
    (project / "many.txt").write_text("".join(f"line number {number} of a longer text\n" for number in range(1200)))
    log = tmp_path / "calls"

    watching = ["strace", "-f", "-qq", "-e", "trace=socket,openat,mkdir,mkdirat,connect,sendto", "-o", log]
    done = subprocess.run(
        [*watching, EMBEDCTL, "embed", "many.txt", "--split", "lines"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert len(calls) > 500
    assert not [call for call in calls if "AF_INET" in call or "resolv.conf" in call or "nsswitch" in call]
    home = Path(os.environ["HOME"])
    made = [path for path in home.rglob("*") if not path.is_relative_to(clean_environment)]
    assert made == []


def test_a_failures_file_that_somebody_broke(project: Path) -> None:
    """`batch failures` and `status` pass over lines that say nothing, and end in no bug's exit code."""
    (project / "rows.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": " "}\n')
    assert embedctl("batch", "run", "rows.jsonl", "-o", "out", "--job", "nightly").code == 0
    failures = project / "out" / "failures.jsonl"
    failures.write_bytes(b"{\n[]\n5\n" + b"[" * 100_000 + b"\n" + failures.read_bytes())

    told = embedctl("batch", "failures", "nightly", "--json")

    assert told.code == 0
    assert [row["id"] for row in told.json["failures"]] == ["b"]
    assert embedctl("batch", "run", "rows.jsonl", "-o", "out", "--job", "nightly", "--overwrite").code == 0

"""No interpreter, library or tool that embedctl starts heeds what lies in the current folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedctl.__main__ import LIBRARY_PATHS, drop_relative_paths
from tests.support import running

EMBEDCTL = Path(sys.executable).with_name("embedctl")
LINES = "".join(f"line number {number} of a text\n" for number in range(5))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloned folder, the current one."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "notes.txt").write_text(LINES)
    monkeypatch.chdir(folder)
    return folder


def run(*words: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of embedctl."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done.stderr
    return done


MATPLOTLIBRC = r"""
text.usetex : True
text.latex.preamble : \input{|touch ran}
figure.facecolor : black
savefig.dpi : 20
"""


def test_settings_of_plotting_libraries_are_not_obeyed(project: Path) -> None:
    """A matplotlibrc changes no picture and starts no LaTeX: here, at home, or named by a variable."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here")
    running.embedctl("embed", "notes.txt", "--split", "lines", "-o", "out.parquet")
    run(EMBEDCTL, "vectors", "map", "out.parquet", "-o", "plain.png")
    (project / "bin").mkdir()
    for tool in ("latex", "dvipng", "kpsewhich"):
        (project / "bin" / tool).write_text("#!/bin/sh\ntouch ran\nexit 1\n")
        (project / "bin" / tool).chmod(0o700)
    named, home = project.parent / "matplotlibrc", Path(os.environ["XDG_CONFIG_HOME"]) / "matplotlib" / "matplotlibrc"
    home.parent.mkdir(parents=True, exist_ok=True)
    for place in (project / "matplotlibrc", home, named):
        place.write_text(MATPLOTLIBRC)
    environment = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "MATPLOTLIBRC": str(named)}

    run(EMBEDCTL, "vectors", "map", "out.parquet", "-o", "again.png", **environment)

    assert not (project / "ran").exists()
    assert (project / "again.png").read_bytes() == (project / "plain.png").read_bytes()


@pytest.mark.parametrize("name", ["orjson.py", "signal.py", "tiktoken_ext/evil.py", "embedctl_evil.py"])
def test_python_m_runs_nothing_that_lies_here(project: Path, name: str) -> None:
    """`python -m embedctl` puts the current folder first; embedctl takes it away before it imports anything."""
    planted = project / name
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(f"open({str(project / 'ran')!r}, 'w').close()\n")

    run(sys.executable, "-m", "embedctl", "embed", "notes.txt")

    assert not (project / "ran").exists()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "words",
    [
        ["doctor"],
        ["usage", "report"],
        ["usage", "sql", "select 1"],
        ["usage", "report", "--html", "{elsewhere}/page.html"],
        ["models", "choose"],
        ["prices", "list"],
        ["vectors", "search", "{elsewhere}/out.parquet", "a line"],
        ["vectors", "map", "{elsewhere}/out.parquet", "-o", "{elsewhere}/map.png"],
        ["vectors", "map", "{elsewhere}/out.parquet", "-o", "{elsewhere}/map.html"],
        ["embed", "{elsewhere}/notes.txt", "-o", "{elsewhere}/again.parquet", "-m", "{model}"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_nothing_looks_into_the_current_folder(project: Path, tmp_path: Path, words: list[str]) -> None:
    """By system calls: of all files below the current folder, none is asked for but ./embedctl.toml."""
    running.embedctl("embed", "notes.txt", "--split", "lines", "-o", tmp_path / "out.parquet")
    shutil.move("notes.txt", tmp_path / "notes.txt")
    told = [word.format(elsewhere=tmp_path, model="onnx:all-MiniLM-L6-v2") for word in words]

    run("strace", "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", tmp_path / "log", EMBEDCTL, *told)

    calls = re.findall(r'^(\d+) +(\w+)\((?:AT_FDCWD, )?"([^"]*)"', (tmp_path / "log").read_text(), re.MULTILINE)
    assert len(calls) > 100
    folders, below = dict[str, str](), set[str]()
    for process, call, path in calls:
        absolute = os.path.join(folders.get(process, project), path)
        if call == "chdir":
            folders[process] = absolute
        if absolute.startswith(f"{project}/") and path not in ("", "."):
            below.add(absolute)
    assert below <= {f"{project}/embedctl.toml"}


def test_variables_that_name_paths_name_none_here(project: Path, tmp_path: Path) -> None:
    """A relative path in a library's variable is dropped; absolute ones and embedctl's own stay."""
    environment = dict.fromkeys(LIBRARY_PATHS, "cache") | {"EMBEDCTL_HOME": "state", "PATH": "bin"}
    drop_relative_paths(environment)

    assert environment == {"EMBEDCTL_HOME": "state", "PATH": "bin"}
    kept = {"HF_HOME": "/cache", "SSL_CERT_FILE": "~/ca.pem"}
    drop_relative_paths(kept)
    assert kept == {"HF_HOME": "/cache", "SSL_CERT_FILE": "~/ca.pem"}


def test_a_tokenizer_that_lies_here_counts_nothing(project: Path) -> None:
    """A vocabulary in the current folder is not taken for the library's own, whatever variables say."""
    from embedctl import tokens

    vocabulary = next((tokens.ASSETS / "tiktoken").glob("9b*"))
    (project / vocabulary.name).write_bytes(b"")
    snapshot = project / "hub" / "models--BAAI--bge-m3" / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    (project / "embedctl").mkdir()
    (project / "embedctl" / "config.toml").write_text("concurrency = 'stolen'")

    words = ["usage", "estimate", "notes.txt", "-m", "openai:text-embedding-3-small", "--json"]
    plain, libraries, homes = (
        {key: value for key, value in json.loads(run(EMBEDCTL, *words, **about).stdout).items() if key != "made_at"}
        for about in (
            {},
            dict.fromkeys(("TIKTOKEN_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE"), "."),
            dict.fromkeys(("HOME", "XDG_CONFIG_HOME"), "."),
        )
    )

    assert libraries == homes == plain
    assert (project / vocabulary.name).exists()

"""Names that are no UTF-8, and links that lead to themselves, wherever a command takes a path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from embedctl.records import printable, storable, stored, to_json
from tests.support.running import embedctl, rows

LATIN = os.fsdecode(b"caf\xe9")
EMBEDCTL = Path(sys.executable).with_name("embedctl")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of a latin-1 name, and links that lead to themselves."""
    monkeypatch.chdir(tmp_path)
    Path(f"{LATIN}.txt").write_text("hello there")
    Path("a.txt").write_text("hi")
    Path(f"{LATIN}.toml").write_text("concurrency = 2")
    Path("loop.txt").symlink_to("loop.txt")
    Path("loop.toml").symlink_to("loop.toml")
    Path("loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize("shape", [[], ["--json"]])
def test_a_file_of_any_name_is_embedded(shape: Sequence[str]) -> None:
    """`embed` of a file whose name is no UTF-8 works, again too, and shows its name escaped."""
    first = embedctl("embed", f"{LATIN}.txt", *shape)
    again = embedctl("embed", f"{LATIN}.txt", *shape)
    output = f"{LATIN}.embeddings.parquet"

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert r"caf\xe9.embeddings.parquet" in first.err + first.out.replace("\\\\", "\\")
    for words in (["info"], ["verify", "--input", f"{LATIN}.txt"], ["search", "hello"]):
        command, *others = words
        assert embedctl("vectors", command, output, *others, *shape).code == 0
    Path(output).rename("plain.parquet")  # as a library wants it
    assert [row["id"] for row in rows("plain.parquet")] == [r"caf\xe9.txt"]


def test_a_folder_of_any_name_is_an_output() -> None:
    """Runs into a folder whose name is no UTF-8 are registered, listed and continued."""
    first = embedctl("batch", "run", "a.txt", "-o", f"o-{LATIN}", "--job", "nightly")
    again = embedctl("batch", "run", "a.txt", "-o", f"o-{LATIN}", "--json")

    assert (first.code, again.code, again.json["reused"]) == (0, 0, 1)
    assert again.json["output"] == r"o-caf\xe9"
    assert embedctl("batch", "status", "nightly", "--json").json["output"].endswith(r"o-caf\xe9")
    assert embedctl("batch", "failures", "nightly", "--json").code == 0
    assert embedctl("doctor", "--json").code == 0


def test_a_current_folder_of_any_name_will_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in a folder whose name is no UTF-8 works."""
    (here / LATIN).mkdir()
    monkeypatch.chdir(here / LATIN)
    Path("b.txt").write_text("hi")
    Path("embedctl.toml").write_text("concurrency = 2")

    assert embedctl("embed", "b.txt").code == 0
    assert embedctl("config", "show", "--json").code == 0


REFUSED = {
    2: [
        ["embed", "a.txt", "--tag", f"k={LATIN}"],
        ["embed", "a.txt", "-m", LATIN],
        ["embed", "a.txt", "-w", LATIN],
        ["embed", "a.txt", "--text-column", LATIN],
        ["embed", "a.txt", "--keep", LATIN],
        ["providers", "test", LATIN],
    ],
    65: [["prices", "import", f"{LATIN}.txt"], ["usage", "rates", f"{LATIN}.txt"], ["usage", "rates", "loop.txt"]],
    66: [
        ["embed", "loop.txt"],
        ["embed", "loop"],
        ["embed", "loop/x.txt"],
        ["embed", "a.txt", "loop.txt"],
        ["vectors", "info", "loop.txt"],
        ["vectors", "info", f"no-{LATIN}.parquet"],
        ["batch", "status", LATIN],
    ],
    73: [
        ["embed", "a.txt", "-o", "loop.txt"],
        ["embed", "a.txt", "-o", "loop/x.parquet"],
        ["batch", "run", "a.txt", "-o", "loop"],
        ["config", "init", "--config", "loop.toml"],
    ],
    78: [
        ["embed", "a.txt", "--ledger", f"{LATIN}.duckdb"],
        ["usage", "report", "--ledger", f"{LATIN}.duckdb"],
        ["usage", "report", "--ledger", "loop.txt"],
        ["usage", "report", "--ledger", "loop/x.duckdb"],
        ["embed", "a.txt", "--config", "loop.toml"],
        ["batch", "run", "loop.toml", "-o", "out"],
        ["embed", "a.txt", "-m", "onnx:./loop"],
    ],
}


@pytest.mark.parametrize(
    ("code", "words"), [(code, words) for code, commands in REFUSED.items() for words in commands], ids=ascii
)
def test_what_cannot_be_is_refused_in_words(code: int, words: list[str]) -> None:
    """A name that cannot be used ends with its exit code, as text and as JSON, and never as a bug."""
    said = embedctl(*words)
    shaped = embedctl(*words, "--json")

    assert said.code == code, said.err
    assert said.err.startswith("error: ")
    assert shaped.json["exit_code"] in (code, 2)  # 2: it has no --json


@pytest.mark.parametrize("name", ["loop", f"home-{LATIN}"])
def test_a_home_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An EMBEDCTL_HOME that leads nowhere, or whose ledger DuckDB could not name, is 78; `doctor` says so."""
    monkeypatch.setenv("EMBEDCTL_HOME", str(Path(name).absolute()))

    assert embedctl("embed", "a.txt").code == 78
    assert embedctl("usage", "report", "--json").json["exit_code"] == 78
    assert embedctl("doctor", "--json").code == 69


def test_words_that_are_no_text_are_no_question() -> None:
    """`vectors search` for bytes that are no text ends with 2."""
    embedctl("embed", "a.txt", "-o", "b.parquet")

    assert embedctl("vectors", "search", "b.parquet", LATIN).code == 2


def test_settings_of_any_name_are_read() -> None:
    """--config names any file, and what is said of it is text and JSON."""
    assert embedctl("embed", "a.txt", "--config", f"{LATIN}.toml").code == 0
    assert embedctl("config", "show", "--config", f"{LATIN}.toml", "--json").json["files"] == [r"caf\xe9.toml"]
    assert embedctl("doctor", "--config", f"{LATIN}.toml", "--json").code == 0


def test_a_path_is_printed_with_its_own_bytes() -> None:
    """`config path` is for `$EDITOR`: the bytes of the name, also on a stream that takes text only."""
    done = subprocess.run(
        [EMBEDCTL, "config", "path", "--config", f"{LATIN}.toml"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        check=True,
    )

    assert done.stdout == b"caf\xe9.toml\n"


def test_paths_come_back_from_json() -> None:
    """What JSON cannot hold is stored so that it is found again, and shown so that it can be read."""
    names = [LATIN, "plain", "café", f"{LATIN}/{LATIN}0", "\0zz"]

    assert [stored(storable(name)) for name in names] == names
    assert printable(LATIN) == r"caf\xe9"
    assert to_json({LATIN: [Path(LATIN), (LATIN,)], "n": 1}, spelt=printable) == (
        rb'{"caf\\xe9":["caf\\xe9",["caf\\xe9"]],"n":1}'
    )

"""Bad input and bad commands: one line that says what, one with what to do, the right code, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import places
from tests.support.running import Ran, embedctl, ledger, rows

ROOT = places.ROOT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that can be wrong with an input."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("a.txt").write_text("hello")
    Path("empty-folder").mkdir()
    Path("binary.bin").write_bytes(b"\x7fELF\x00\x00\x01\x02")
    Path("latin.txt").write_bytes(b"first\ncaf\xe9 au lait")
    Path("table.csv").write_text("id,body,n\n1,one,5\n1,two,6\n2,,7\n")
    Path("own.csv").write_text("id,text,embedding\n1,one,2\n")
    Path("numbers.jsonl").write_text('{"id": 1, "n": 5}\n{"id": 2, "n": 6}\n')
    Path("broken.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": \n')
    pq.write_table(pa.table({"id": [1], "text": ["one"]}), "table.parquet")
    Path("corrupt.parquet").write_bytes(Path("table.parquet").read_bytes()[:200])
    Path("folder").mkdir()
    Path("foreign.parquet").write_text("somebody's own")
    return folder


def seen(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


BAD = {
    "no such file": (
        ["nope.txt"],
        66,
        "no such file: nope.txt",
        "paths are relative to the current folder",
    ),
    "glob without a match": (["*.rst"], 66, "*.rst", None),
    "folder without inputs": (["empty-folder"], 66, "no inputs in folder empty-folder", "name other files one by one"),
    "binary file": (
        ["binary.bin"],
        65,
        "binary.bin is binary: a program (it starts with b'\\x7fELF')",
        "extract its text first",
    ),
    "invalid UTF-8": (["latin.txt"], 65, "latin.txt: line 2: invalid UTF-8 at byte 4 (0xe9)", "--encoding cp1252"),
    "unknown encoding": (["a.txt", "--encoding", "klingon"], 2, "klingon", None),
    "corrupt Parquet": (["corrupt.parquet"], 65, "corrupt.parquet: not a Parquet file, or a damaged one", None),
    "no such column": (
        ["table.csv", "--text-column", "txt"],
        65,
        "table.csv: no column 'txt'",
        "columns: id (int64), body",
    ),
    "no such id column": (
        ["table.csv", "--id-column", "key"],
        65,
        "table.csv: no column 'key'",
        "columns: id (int64), body",
    ),
    "column that is not text": (["numbers.jsonl", "--text-column", "n"], 65, "'n'", "columns"),
    "duplicate ids": (
        ["table.csv", "--text-column", "body", "--id-column", "id", "--unique-ids"],
        65,
        "1 rows have an id that another row has, the first is '1'",
        "make ids unique",
    ),
    "column named like ours": (
        ["own.csv"],
        2,
        "own.csv: column 'embedding' carries the name of a column",
        "--keep none",
    ),
    "text and tables": (["a.txt", "table.csv"], 65, "text and tables do not mix", None),
    "output is a folder": (["a.txt", "-o", "folder"], 73, "folder is a folder", "-o names a file"),
    "output is not ours": (
        ["a.txt", "-o", "foreign.parquet"],
        73,
        "foreign.parquet exists and is not embedctl's",
        "--overwrite",
    ),
    "output below a file": (["a.txt", "-o", "table.csv/out.parquet"], 73, "table.csv is not a folder", None),
    "output below a file, deep": (["a.txt", "-o", "table.csv/x/y/out.parquet"], 73, "table.csv is not a folder", None),
    "name too long": (["a.txt", "-o", "x" * 300 + ".parquet"], 73, "cannot create", "choose a place you may write to"),
    "unknown provider": (["a.txt", "--provider", "opnai"], 2, "unknown provider: 'opnai'", "did you mean 'openai'?"),
    "no key": (["a.txt", "-m", "openai:text-embedding-3-small"], 78, "provider 'openai' has no key", "OPENAI_API_KEY"),
    "bad workspace": (["a.txt", "-w", "Not A Name"], 2, "bad workspace name: 'Not A Name'", "lower-case letters"),
    "bad number": (["a.txt", "--batch-size", "0"], 2, "--batch-size must be at least 1, not 0", None),
    "bad duration": (["a.txt", "--timeout", "soon"], 2, "--timeout must be a duration, like 90", None),
    "no time": (["a.txt", "--timeout", "0"], 2, "--timeout must be more than 0", "like 90, 90s or 2m"),
    "endless duration": (["a.txt", "--deadline", "1e400"], 2, "--deadline must be a duration, like 90", None),
    "too large a number": (["a.txt", "--concurrency", "9" * 20], 2, "--concurrency must be at most 10000", None),
    "bad amount": (["a.txt", "--max-cost", "much"], 2, "--max-cost is no amount: 'much'", "like 5 or 0.50, in USD"),
    "bad tag": (["a.txt", "--tag", "x"], 2, "--tag 'x' is not K=V", "like --tag team=search"),
    "bad choice": (
        ["a.txt", "--dtype", "int4"],
        2,
        "invalid value for '--dtype': 'int4' is not one of 'float32'",
        "--help",
    ),
    "bad flag": (["a.txt", "--modle", "x"], 2, "no such option: --modle", "did you mean --model"),
    "no input": ([], 2, "missing argument 'INPUT...'", "`embedctl embed --help` shows the flags"),
    "no value": (["a.txt", "-o"], 2, "option '-o' requires an argument", "--help"),
    "overlap": (["a.txt", "--chunk-size", "5", "--chunk-overlap", "5"], 2, "--chunk-overlap 5 must be smaller", None),
    "not trained to be cut": (
        ["a.txt", "--dimensions", "100"],
        2,
        "was not trained to be cut to 100 dimensions",
        "--force",
    ),
    "settings file": (
        ["a.txt", "--config", "nope.toml"],
        78,
        "no such settings file: nope.toml",
        "embedctl config init",
    ),
    "ledger is an input": (["a.txt", "--ledger", "a.txt"], 78, "a.txt is another file, not a ledger", "--ledger"),
    "ledger is a folder": (["a.txt", "--ledger", "folder"], 78, "the ledger folder cannot be reached: it is a", None),
    "ledger is nothing": (["a.txt", "--ledger", ""], 78, "the ledger . cannot be reached: it is a folder", None),
    "ledger is the root": (["a.txt", "--ledger", "/"], 78, "the ledger / cannot be reached: it is a folder", None),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_a_line_a_hint_and_a_code(here: Path, case: str) -> None:
    """Stderr is `error:` and `hint:` lines only; nothing is printed, written or left, and nothing is in the ledger."""
    words, code, message, hint = BAD[case]
    before = seen(here)
    done = embedctl("embed", *words)
    lines = done.err.splitlines()

    assert (done.code, done.out) == (code, "")
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "hint"])
    assert hint is None or hint in lines[1]
    assert seen(here) == before


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_object_for_programs(case: str) -> None:
    """With --json the same is {error, message, details, hint, exit_code} on stdout, and stderr is silent."""
    words, code, message, _ = BAD[case]
    done = embedctl("embed", "--json", *words)

    assert (done.code, done.err) == (code, "")
    assert list(done.json) == ["error", "message", "details", "hint", "exit_code"]
    assert message in done.json["message"]
    assert done.json["exit_code"] == code


def test_json_and_a_stream_both_want_stdout() -> None:
    """--json together with -o - is refused, as JSON."""
    done = embedctl("embed", "a.txt", "-o", "-", "--json")

    assert (done.code, done.json["error"], done.err) == (2, "usage", "")


def test_a_refused_run_makes_no_folder(here: Path) -> None:
    """An output in a new folder: the folder is there after a run, and not after a refusal."""
    before = seen(here)
    refused = embedctl("embed", "nope.txt", "-o", "new/deep/out.parquet")
    after = seen(here)
    done = embedctl("embed", "a.txt", "-o", "new/deep/out.parquet", "-q")

    assert (refused.code, after) == (66, before)
    assert done.code == 0
    assert len(rows("new/deep/out.parquet")) == 1


def test_an_empty_file_is_nothing_to_do() -> None:
    """A file without text exits with 0, has no vectors, and says so."""
    Path("empty.txt").write_text("")
    done = embedctl("embed", "empty.txt", "--json")

    assert done.code == 0
    assert (done.json["vectors"], done.json["failed"], done.json["requests"]) == (0, 0, 0)


def test_another_encoding_can_be_named() -> None:
    """--encoding reads what is no UTF-8."""
    done = embedctl("embed", "latin.txt", "--encoding", "cp1252", "-q")

    assert done == Ran(0, "", "")
    assert rows("latin.embeddings.parquet")[0]["text"] == "first\ncafé au lait"


def test_duplicate_ids_are_a_warning_with_the_count() -> None:
    """Rows with one id are embedded all the same, and the reader is told how many there are."""
    done = embedctl("embed", "table.csv", "--text-column", "body", "--id-column", "id")

    assert done.code == 0
    assert done.err.startswith("warning: 1 rows have an id that another row has, the first is '1'\n")
    assert [one["id"] for one in rows("table.embeddings.parquet")] == ["1", "1"]


def test_null_and_blank_cells_are_listed_and_skipped() -> None:
    """A cell without text is skipped and stands in the failures file; --on-blank fail makes it a failure (3)."""
    Path("t.jsonl").write_text('{"id": "a", "text": null}\n{"id": "b", "text": "  "}\n{"id": "c", "text": "see"}\n')
    skipped = embedctl("embed", "t.jsonl", "--json")
    listed = [json.loads(line) for line in Path("t.embeddings.parquet.failures.jsonl").read_text().splitlines()]
    failed = embedctl("embed", "t.jsonl", "--on-blank", "fail", "--json", "-o", "u.parquet")

    assert (skipped.code, skipped.json["skipped"], skipped.json["failures"]) == (
        0,
        2,
        "t.embeddings.parquet.failures.jsonl",
    )
    assert [(one["id"], one["reason"], one["skipped"]) for one in listed] == [("a", "null", True), ("b", "blank", True)]
    assert (failed.code, failed.json["failed"]) == (3, 2)


def test_a_broken_line_does_not_lose_the_others() -> None:
    """A line that is no JSON fails alone, and is named with its number."""
    done = embedctl("embed", "broken.jsonl")

    assert done.code == 3
    assert "1 vector, 1 failed" in done.err
    assert "broken.jsonl: line 2: not JSON" in Path("broken.embeddings.parquet.failures.jsonl").read_text()


@pytest.mark.parametrize("written", ['{\n  "a": {},\n  "b": [\n    {}\n  ]\n}\n', '{"a": 1,\n "b": {"text": "x"}}'])
def test_json_over_several_lines_is_no_row(written: str) -> None:
    """A file that is one JSON object, as settings and schemas are, is told as that, with what embeds it; exit 65."""
    Path("schema.json").write_text(written)
    done = embedctl("embed", "schema.json")

    assert done == Ran(
        65, "",
        "error: schema.json is one JSON object over several lines, not rows\n"
        "hint: --format text embeds it as a document; rows are one object a line, or an array of objects\n",
    )  # fmt: skip
    assert embedctl("embed", "schema.json", "--format", "text").code == 0


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    """Commands and subcommands: the nearest is named, else all are listed; exit 2."""
    assert embedctl("embde") == Ran(
        2, "", "error: no such command: embedctl embde\nhint: did you mean `embedctl embed`?\n"
    )
    assert embedctl("verify", "x").err.endswith("hint: did you mean `embedctl vectors verify`?\n")
    assert embedctl("verfy", "x").err.endswith("hint: did you mean `embedctl vectors verify`?\n")
    assert embedctl("serach", "x").err.endswith("hint: did you mean `embedctl search`?\n")
    assert embedctl("reprot").err.endswith("hint: did you mean `embedctl report`?\n")
    assert embedctl("list").err.count("` or `embedctl ") == 4  # batch, models, providers, prices, keys
    assert embedctl("config", "shwo").err.endswith("hint: did you mean `embedctl config show`?\n")
    assert embedctl("xyzzy").err.endswith(
        "hint: commands: embed, batch, vectors, models, providers, prices, serve, keys, usage, cache, config, doctor\n"
    )


def limited(size: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that may not write a file larger than `size` bytes, as on a disk that is full.

    Python would cut the bytecode that it keeps of libraries as well, and every later process would fail with it.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        [sys.executable, "-m", "embedctl", *words],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_a_full_disk_loses_nothing(here: Path) -> None:
    """When the disk takes no more the run ends with 74 and a hint, no half output; with room it is finished later."""
    Path("many.txt").write_text("\n".join(f"line number {i} of many" for i in range(200)))
    words = ("embed", "many.txt", "--split", "lines", "-o", "out.parquet")
    full = limited(200_000, *words)
    half = Path("out.parquet").exists()
    done = embedctl(*words, "--json")

    assert full.returncode == 74, full.stderr
    assert "Traceback" not in full.stderr
    assert "error: " in full.stderr
    assert "hint: " in full.stderr
    assert not half
    assert (done.code, done.json["vectors"]) == (0, 200)
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["batch", "run", "--help"], ["usage", "metrics"], ["usage", "report"]]
)
def test_help_that_cannot_be_printed_is_no_bug(words: list[str]) -> None:
    """A stdout that takes no more is an error of its own, for --help too, and for what Prometheus reads."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "embedctl", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    assert (done.returncode, done.stderr) == (74, "error: cannot write to stdout: No space left on device\n")


def test_results_leave_by_one_door() -> None:
    """No command prints past the door that knows of full disks, closed pipes and odd encodings."""
    printing = re.compile(r"\btyper\.(echo|secho)\(|(?<![\w.])print\(|sys\.stdout\.write\(")
    files = [path for path in (ROOT / "embedctl").rglob("*.py") if path.name not in ("terminal.py", "_completion.py")]
    lines = [(path.name, line) for path in files for line in path.read_text("utf-8").splitlines()]

    assert not [(name, line) for name, line in lines if printing.search(line) and "python3 -c" not in line]


def test_a_current_folder_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in a folder that was removed says so (66), also where it looks for an input's name first."""
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = embedctl("embed", "notes.txt")

    assert (done.code, done.err) == (66, "error: the current folder is gone\nhint: `cd` to one that is there\n")


@pytest.mark.parametrize("module", ["typer", "duckdb"])
def test_ctrl_c_during_an_import_is_quiet(module: str) -> None:
    """Ctrl-C while the program, or a library of its command, is imported is 130 for a shell, and no traceback."""
    program = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from embedctl.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-c", program, "usage", "report"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_leaves_is_no_error() -> None:
    """`embedctl ... | head -1` ends without a traceback."""
    Path("many.txt").write_text("\n".join(f"line {i}" for i in range(300)))
    command = f"{sys.executable} -m embedctl embed many.txt --split lines -o - -q | head -c 10"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    assert done.stdout == '{"id":"man'
    assert "Traceback" not in done.stderr


def test_a_key_is_in_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment shows in no error, no settings, and no ledger."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-indeed")
    Path("embedctl.toml").write_text("concurrency = 'x'")
    outputs = [
        embedctl("embed", "a.txt", "-m", "openai:text-embedding-3-small", "--base-url", "x"),
        embedctl("config", "show", "--json"),
        embedctl("embed", "a.txt"),
    ]
    Path("embedctl.toml").unlink()
    outputs += [embedctl("config", "show", "--json"), embedctl("embed", "a.txt", "--json")]

    assert not any("sk-very-secret-indeed" in one.out + one.err for one in outputs)
    assert "sk-very-secret-indeed" not in str(ledger("select usage_event::varchar from usage_event"))


def test_a_bug_ends_with_70_and_shows_no_values(tmp_path: Path) -> None:
    """An exception that nobody expected ends the program with 70, and its traceback names places, not values."""
    program = (
        "import embedctl.runs.run as run\n"
        "def broken(self, runner):\n"
        "    secret = 'sk-never-shown'\n"
        "    raise RuntimeError(secret)\n"
        "run.Run.execute = broken\n"
        "from embedctl.cli import main\n"
        "main()\n"
    )
    (tmp_path / "a.txt").write_text("a line\n")
    done = subprocess.run(
        [sys.executable, "-c", program, "embed", str(tmp_path / "a.txt")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 70
    assert "RuntimeError" in done.stderr
    assert "sk-never-shown" not in done.stderr.replace("secret = 'sk-never-shown'", "")

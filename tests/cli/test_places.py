"""Where people run it: users without a home, cron, umasks, spreadsheets, names that say another format."""

from __future__ import annotations

import csv
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.running import Ran, embedctl, user_settings

REPOSITORY = Path(__file__).parents[2]
NO_SUCH_USER = 54321


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(*texts: str) -> None:
    Path("texts.txt").write_text("\n".join(texts), "utf-8")


def embed(*more: object) -> Ran:
    return embedctl("embed", "texts.txt", "--split", "lines", *more)


# ── nobody's user ────────────────────────────────────────────────────────────────────────────────────────────────────


def alone(*words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user without HOME and without an entry in passwd."""
    program = (
        "import os, pwd, sys\n"
        "def nobody(*_): raise KeyError('no such user')\n"
        "pwd.getpwuid = pwd.getpwnam = nobody\n"
        "from embedctl.__main__ import main\n"
        "main()\n"
    )
    env = {"PATH": os.environ["PATH"], **({"EMBEDCTL_HOME": str(home)} if home else {})}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_user_without_a_home(tmp_path: Path) -> None:
    """With EMBEDCTL_HOME all works for a user without HOME and passwd entry; settings are looked for in there."""
    lines("one", "two")
    home = tmp_path / "state"

    done = [
        alone("embed", "texts.txt", "--split", "lines", "-o", "x.parquet", home=home),
        alone("config", "init", home=home),
        alone("usage", "report", "--json", home=home),
        alone("doctor", home=home),
        alone("models", "show", "onnx:~/nowhere", home=home),
    ]

    assert [one.returncode for one in done[:4]] == [0, 0, 0, 0], [one.stderr for one in done]
    assert "RuntimeError" not in done[4].stderr
    assert (home / "config.toml").is_file()


def test_a_user_without_any_place(tmp_path: Path) -> None:
    """Without EMBEDCTL_HOME such a user is told to set it (78)."""
    lines("one")

    done = alone("embed", "texts.txt")

    assert (done.returncode, "EMBEDCTL_HOME" in done.stderr) == (78, True), done.stderr


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root may become another user")
def test_a_number_for_a_user() -> None:
    """The same as the system does it: a process whose user is only a number."""
    place = Path(tempfile.mkdtemp())  # pytest's own folders are for nobody else
    (place / "texts.txt").write_text("one")
    os.chown(place, NO_SUCH_USER, NO_SUCH_USER)
    become = ["setpriv", f"--reuid={NO_SUCH_USER}", f"--regid={NO_SUCH_USER}", "--clear-groups"]
    words = [sys.executable, "-m", "embedctl", "embed", "texts.txt", "-o", "x.parquet"]
    env = {"PATH": os.environ["PATH"], "EMBEDCTL_HOME": str(place / "state")}

    done = subprocess.run([*become, *words], env=env, capture_output=True, text=True, check=False, cwd=place)

    shutil.rmtree(place)
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("this installation is not for other users")
    assert done.returncode == 0, done.stderr


# ── cron ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cron_gets_one_line(tmp_path: Path) -> None:
    """With -q a run whose rows failed says so in one line, with reasons, the flag that helps, and the file."""
    lines("short", "word " * 2000, "word " * 3000)

    done = embed("-o", "x.parquet", "-q")

    assert (done.code, done.out) == (3, "")
    assert done.err.splitlines() == [
        "error: 2 of 3 rows failed: 2 too_long (--on-too-long truncate, chunk, mean or skip); "
        "see x.parquet.failures.jsonl"
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nowhere.txt", "-q"], 66),
        (["texts.txt", "-q", "-m", "nobody:at-all"], 2),
        (["texts.txt", "-q", "--max-cost", "1", "-m", "openai:nobody-knows-it"], 2),
        (["texts.txt", "-q", "-o", "/proc/x.parquet"], 73),
        (["texts.txt", "-q", "-o", "-", "--split", "lines"], 3),
    ],
)
def test_no_exit_without_a_word(words: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every exit but 0 has a line on stderr that begins with `error:`, also with -q."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    lines("short", "word " * 2000)

    done = embedctl("embed", *words)

    assert done.code == code, done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1


def test_cron_hears_nothing_of_success() -> None:
    """With -q a run that ends well says nothing at all."""
    lines("short")

    assert embed("-q") == Ran(0, "", "")


# ── receipts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["embed", "batch run"])
def test_a_receipt_says_why_rows_failed(command: str) -> None:
    """Each reason with its count and what helps; a rerun, which does nothing, says the same."""
    lines("short", "", "word " * 2000, "word " * 3000)
    words = [*command.split(), "texts.txt", "--split", "lines", "--on-blank", "fail", "-o", "out"]

    for _ in range(2):
        done = embedctl(*words)
        assert done.code == 3
        assert "failed: 2 too_long: longer than the model takes (--on-too-long truncate, chunk, mean or" in done.err
        assert "failed: 1 blank: no text (--on-blank skip)" in done.err

    assert embedctl(*words, "--json").json["failed_reasons"] == {"too_long": 2, "blank": 1}


def test_a_row_of_many_chunks_fails_once(tmp_path: Path) -> None:
    """Reasons count rows: those of a stream, which has no failures file, too."""
    lines("short", "word " * 2000)

    done = embed("-o", "-")

    assert done.code == 3
    assert "failed: 1 too_long" in done.err


def test_no_line_about_a_file_that_is_not_there() -> None:
    """A run that embedded nothing names no output file, because there is none."""
    lines("", " ")
    user_settings('[providers.gate]\nprotocol = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n')

    done = embed("-o", "x.parquet", "-m", "gate:nobody-knows-how-wide")

    assert (done.code, Path("x.parquet").exists()) == (0, False)
    assert "output:" not in done.err


# ── names and modes ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [
        ["usage", "export", "--format", "focus", "-o", "x.parquet"],
        ["usage", "export", "--format", "parquet", "-o", "x.csv"],
        ["usage", "export", "--format", "cloudevents", "-o", "x.csv"],
        ["usage", "report", "--format", "focus", "-o", "x.parquet"],
        ["usage", "report", "--format", "json", "-o", "x.csv"],
        ["usage", "report", "-o", "x.csv"],
        ["embed", "texts.txt", "-o", "x.csv"],
        ["embed", "texts.txt", "-o", "x.JSONL"],
    ],
)
def test_a_name_that_says_another_format(words: list[str]) -> None:
    """No file gets a name that says another format than it has (2)."""
    lines("one")

    done = embedctl(*words)

    assert done.code == 2
    assert "name it *." in done.err + done.out
    assert not Path(words[-1]).exists()


@pytest.mark.parametrize("words", [["report", "--format", "csv", "-o", "a.csv"], ["export", "-o", "b.csv"]])
def test_a_name_that_says_the_format(words: list[str]) -> None:
    """Names that say what is written, and names that say nothing, are taken."""
    lines("one")

    assert embed("-o", "no-suffix").code == 0
    assert embedctl("usage", *words).code == 0


def test_a_textfile_is_for_its_collector(tmp_path: Path) -> None:
    """`usage metrics --textfile` makes a file that node_exporter can read, whatever the umask is."""
    lines("one")
    embed("-q")
    before = os.umask(0o077)
    try:
        assert embedctl("usage", "metrics", "--textfile", tmp_path).code == 0
    finally:
        os.umask(before)

    (made,) = tmp_path.glob("*.prom")
    assert stat.S_IMODE(made.stat().st_mode) == 0o644


# ── machine formats ──────────────────────────────────────────────────────────────────────────────────────────────────

ODD = ["=ideographic\u3000space", "no\u00a0break", "zero\u200cwidth", 'quo"te, comma', "tab\there"]


def test_csv_and_json_carry_every_character() -> None:
    """Texts of a search are in CSV and JSON as they are in the file; only the formula gets its apostrophe."""
    lines(*ODD)
    assert embed("-o", "x.parquet", "-q").code == 0
    ask = ["vectors", "search", "x.parquet", "space", "-k", "9"]

    guarded = embedctl(*ask, "--format", "csv").out
    raw = embedctl(*ask, "--format", "csv", "--csv-raw").out
    as_json = embedctl(*ask, "--json").json

    def texts(printed: str) -> list[str]:
        return sorted(row["text"] for row in csv.DictReader(io.StringIO(printed, newline="")))

    assert texts(raw) == sorted(ODD) == sorted(hit["text"] for hit in as_json["results"])
    assert texts(guarded) == sorted(f"'{text}" if text.startswith("=") else text for text in ODD)


def test_usage_sql_as_csv() -> None:
    """`usage sql --format csv` has the query's names, and numbers are numbers, the negative ones too."""
    done = embedctl("usage", "sql", "select -1 as a, -0.5 as b, 'x' as c, '-1+1' as d", "--format", "csv")

    assert done.out == "a,b,c,d\n-1,-0.5,x,'-1+1\n"

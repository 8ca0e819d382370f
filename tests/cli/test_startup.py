"""Start-up: a command imports what it uses and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = frozenset(
    {
        "pyarrow",
        "duckdb",
        "numpy",
        "onnxruntime",
        "httpx",
        "httpcore",
        "pycurl",
        "tiktoken",
        "tokenizers",
        "rich",
        "pydantic",
    }
)


def imported(*words: str) -> set[str]:
    """Top-level names of everything `embedctl WORDS` imports, as -X importtime tells."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "embedctl", *words],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    lines = [line.rsplit("|", 1) for line in done.stderr.splitlines() if line.startswith("import time:")]

    assert len(lines) > 50
    return {name.strip().split(".")[0] for _, name in lines}


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """--help and --version import no library of any door but the command line's own."""
    assert imported(*words) & (HEAVY | {"msgspec", "orjson", "platformdirs"}) == set()


@pytest.mark.parametrize("words", [["embed", "--help"], ["config", "path"], ["usage", "report", "--help"]])
def test_help_of_a_command_imports_nothing_heavy(words: list[str]) -> None:
    """A command's own --help, and where the settings are, need no library that computes, sends or stores."""
    assert imported(*words) & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["usage", "jobs", "--help"], "usage.report"),
        (["usage", "budget", "check", "--help"], "usage.budget"),
        (["models", "show", "text-embedding-3-small"], "models.show"),
        (["vectors", "info", "--help"], "vectors.about"),
        (["batch", "list"], "batch.listing"),
    ],
)
def test_a_command_imports_its_own_file_and_no_other(words: list[str], file: str) -> None:
    """Of a group only the file with the command is imported, and what commands share."""
    code = "import sys; from embedctl.cli import app; app(standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    below = f"embedctl.cli.{words[0]}."
    files = {name for name in done.stdout.splitlines()[-1].split() if name.startswith(below)}

    assert {name for name in files if not name.startswith(f"{below}_")} == {f"embedctl.cli.{file}"}


@pytest.mark.parametrize(
    "flags", [[], ["--workspace"], ["-w", "acme", "--by", "day,model"], ["--last", "7d", "--strict"]]
)
def test_a_report_imports_the_ledger_and_no_more(flags: list[str]) -> None:
    """`usage report` imports duckdb, and none of the libraries that read, embed, send, count or draw."""
    found = imported("usage", "report", *flags, "--format", "json")

    assert "duckdb" in found
    assert found & HEAVY == {"duckdb"}


def test_a_local_run_imports_no_other_tokenizer(tmp_path: Path) -> None:
    """The bundled model is run without the fallback tokenizer and without a library that draws."""
    text = tmp_path / "a.txt"
    text.write_text("hello")
    found = imported("embed", str(text), "-o", str(tmp_path / "a.parquet"), "-q")

    assert {"pyarrow", "onnxruntime", "tokenizers", "numpy"} <= found
    assert found & {"tiktoken", "rich", "pydantic"} == set()


def test_the_end_looks_for_no_cycles() -> None:
    """A command ends without the collector, which would look through all that was ever imported."""
    code = """
import atexit, gc, sys
from embedctl.cli import main
atexit.register(lambda: print(gc.get_freeze_count() > 0, len(gc.get_objects())))
sys.argv = ["embedctl", "--version"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frozen, left = done.stdout.splitlines()[-1].split()

    assert frozen == "True"
    assert int(left) < 1_000

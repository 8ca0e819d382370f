"""Start-up: a command imports what it uses and nothing else."""

from __future__ import annotations

import json
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


RUN = """
import atexit, json, sys, threading

first = {}

def note(event, given):
    if event == "import":
        first.setdefault(given[0], threading.current_thread().name)

sys.addaudithook(note)
atexit.register(lambda: print(json.dumps([sorted(sys.modules), first])))
from embedctl.cli import main
main()
"""
"""Runs a command; what it has imported, and in which thread."""

LEFT_OUT = frozenset({"tiktoken", "rich", "pydantic", "pandas", "email", "httpx", "httpcore", "pycurl", "obstore"})
"""What a run of the bundled model imports nothing of."""

ROOMS = frozenset({"engines", "evaluation", "reports", "server", "vectors"})
"""Of ours, what a run has no part in."""


def test_pandas_beside_embedctl_is_left_alone(tmp_path: Path) -> None:
    """No process of a run, or of a service's job, imports pandas, which pyarrow does where it finds it."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "pandas.py").write_text("import os; os._exit(9)")
    (tmp_path / "a.txt").write_text("hello")
    asked = {"folders": {"media": str(tmp_path / "out")}, "query": [0.1] * 384, "count": 1}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    run = ["embedctl", "batch", "run", "a.txt", "-q", "-o"]
    for words in ([*run, "out"], [*run, "other", "--workers", "2"], ["embedctl.server.jobs", "search", "asked.json"]):
        subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            check=True,
            env=dict(os.environ) | {"EMBEDCTL_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "beside")},
        )


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], dict[str, str]]:
    """The modules of a run of the bundled model, and the thread that imported each."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.txt").write_text("hello")
    done = subprocess.run(
        [sys.executable, "-c", RUN, "embed", "a.txt", "-o", "a.parquet", "-q"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ) | {"EMBEDCTL_HOME": str(folder / "home")},
    )
    modules, threads = json.loads(done.stdout)
    return set(modules), threads


def test_a_local_run_imports_what_it_uses(local_run: tuple[set[str], dict[str, str]]) -> None:
    """The bundled model is run without other tokenizers, clients and stores, and without other rooms of ours."""
    modules, first = local_run
    top = {name.partition(".")[0] for name in modules}

    assert {"pyarrow", "onnxruntime", "tokenizers", "numpy"} <= top
    assert {name for name in modules if name in LEFT_OUT} <= {"email"}  # dates of headers
    assert modules & {"numpy.ma", "pyarrow.compute", "pyarrow.dataset"} == set()
    assert {name for name in modules if name.startswith("embedctl.") and name.split(".")[1] in ROOMS} == set()
    assert modules & {"embedctl.runs.store_run", "embedctl.storage.object_store", "embedctl.doctor"} == set()
    order = list(first)
    assert {"duckdb", "importlib.metadata", "zipfile"} & set(order[: order.index("semantic_text_splitter")]) == set()


def test_a_local_run_imports_few_modules(local_run: tuple[set[str], dict[str, str]]) -> None:
    """A run imports no more of ours, and no more in all, than it did: who needs more says so here."""
    modules, _ = local_run

    assert sum(name.startswith("embedctl") for name in modules) <= 230
    assert len(modules) <= 690


def test_the_bundled_model_is_loaded_while_the_rest_is_imported(local_run: tuple[set[str], dict[str, str]]) -> None:
    """Onnxruntime is imported, and loads the model, in a thread that is not the run's."""
    _, threads = local_run

    assert threads["onnxruntime"] == "model-ahead"
    assert threads["embedctl.runs.run"] == "MainThread"


@pytest.mark.parametrize("words", [["--dry-run"], ["-m", "openai:text-embedding-3-small", "--dry-run"]])
def test_a_model_that_is_not_asked_is_not_loaded(words: list[str], tmp_path: Path) -> None:
    """Nobody loads the bundled model for an estimate."""
    text = tmp_path / "a.txt"
    text.write_text("hello")

    assert "onnxruntime" not in imported("embed", str(text), *words, "-q")


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

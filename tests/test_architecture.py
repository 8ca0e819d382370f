"""The house: imports point down, each library has its door, and every test states its rule."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "embedctl"
TESTS = ROOT / "tests"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The import contracts of pyproject.toml over the package in `folder`."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": str(Path(sys.executable).parent), "COLUMNS": "200"},
    )


def test_imports_keep_their_contracts() -> None:
    """Layers, doors and the purity of protocols and policies hold over the whole package."""
    done = lint_imports(ROOT)

    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


BREACHES = {
    "records.py": ("from embedctl import settings", "Imports point down"),
    "providers/cohere.py": ("from embedctl import storage", "Protocols know records and errors"),
    "embedding/leg.py": ("from embedctl.embedding import route", "No circles, inside rooms either"),
    "planning/packer.py": ("import time", "Policies do no I/O"),
    "runs/run.py": ("import httpx", "httpx (the network) has its door"),
    "runs/wiring.py": ("import pycurl", "pycurl (libcurl) has its door"),
    "runs/pipeline.py": ("import duckdb", "duckdb (the ledger, and queries as input) has its door"),
    "settings/__init__.py": ("import typer", "typer (the command line) has its door"),
}


def test_a_breach_of_each_kind_is_seen(tmp_path: Path) -> None:
    """An import that goes up, in a circle, past a door or into a pure part breaks its contract, and only its own."""
    shutil.copytree(SOURCE, tmp_path / "embedctl", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    for name, (line, _) in BREACHES.items():
        path = tmp_path / "embedctl" / name
        path.write_text(path.read_text("utf-8") + f"\n{line}\n", "utf-8")
    done = lint_imports(tmp_path)
    broken = set(re.findall(r"^(.+) BROKEN\b", done.stdout, re.MULTILINE))

    assert done.returncode == 1
    assert len(broken) == len(BREACHES)
    for _, contract in BREACHES.values():
        assert any(name.startswith(contract) for name in broken), contract


ROOMS_APART = {"__init__", "__main__", "terminal", "doctor", "tokens", "records", "errors", "dataclass"}


def test_every_module_stands_in_a_room() -> None:
    """At the top of the package stand only what is said to people and what every room knows."""
    assert {path.stem for path in SOURCE.glob("*.py")} == ROOMS_APART


def test_a_class_name_has_one_meaning() -> None:
    """No two classes of the package have the same name: who reads one knows which."""
    found: dict[str, list[str]] = {}
    for module, tree in modules(SOURCE):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module)

    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def modules(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(folder)), ast.parse(path.read_text("utf-8"))


def test_every_test_states_its_rule_in_a_sentence() -> None:
    """Each test function's docstring begins with one sentence: a capital or a sign first, a full stop at its end."""
    without = [
        f"{name}: {node.name}"
        for name, tree in modules(TESTS)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not re.match(r"\S[^\n]*[.:?!)]", ast.get_docstring(node) or "")
    ]

    assert without == []


def test_no_test_is_skipped_without_a_reason() -> None:
    """A skip says why."""
    bare = [
        f"{name}:{node.lineno}"
        for name, tree in modules(TESTS)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("mark.skip", "pytest.skip")))
        if not node.args and not node.keywords
    ] + [
        f"{name}:{node.lineno}"
        for name, tree in modules(TESTS)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in node.decorator_list
        if ast.unparse(decorator).endswith("mark.skip")
    ]

    assert bare == []


UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK|NotImplemented" + r"Error)\b")


@pytest.mark.parametrize("folder", [SOURCE, TESTS], ids=["embedctl", "tests"])
def test_nothing_is_left_for_later(folder: Path) -> None:
    """No file carries a note of unfinished work."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(folder.rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]

    assert found == []


def test_every_module_says_what_it_is() -> None:
    """Each module of the package opens with a docstring."""
    assert [name for name, tree in modules(SOURCE) if not ast.get_docstring(tree)] == []


LISTING = re.compile(r"\.r?glob\(|\.iterdir\(|\blistdir\(|\bscandir\(|\bos\.walk\(")
LISTED_APART = {
    "cli/_ledger.py": "a hint, and any refusal is no hint",
    "cli/models/pull.py": "the model that was just fetched",
    "doctor.py": "any refusal is told there",
    "inputs/files.py": "the user's files, each with its kind",
    "ledger/schema.py": "the package itself",
    "providers/_registry.py": "the package itself",
    "server/jobs/media.py": "as many names as may be, each with its kind",
    "server/jobs/store.py": "each name with its kind",
    "storage/files.py": "`paths_in` itself, and folders that are held open",
    "storage/store.py": "a tree, as a store lists it",
    "tokens.py": "the hub's own cache; it knows no storage",
}
"""What lists a folder without `storage.paths_in`, and why."""


def test_folders_are_listed_by_one_function() -> None:
    """A folder that another process removes holds nothing; `Path.glob` raises, so nobody calls it."""
    found = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if LISTING.search(path.read_text("utf-8"))}

    assert found == set(LISTED_APART)


def test_no_module_is_named_after_nothing() -> None:
    """No util, helper, manager, common or misc: a file's name says what is in it."""
    vague = re.compile(r"(util|helper|manager|common|misc|info)s?(_|$)")

    assert [name for name, _ in modules(SOURCE) if vague.search(Path(name).stem)] == []

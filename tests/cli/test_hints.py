"""Hints that name a command or a flag are real: each is parsed by the program that it is a hint for."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from embedctl.cli import COMMANDS, app
from tests.support.running import embedctl

SOURCE = Path(__file__).parents[2] / "embedctl"
OTHERS = {"--help", "--collector.textfile.directory", "--user", "--env-file", "--force-reinstall", "--head"}
"""Flags of every command, and of other programs."""

_CODE = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"\bembedctl ([a-z]+(?: [a-z]+)?)((?: (?:--[a-z-]+|-[a-z]\b))*)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![a-z-])(?:\.[a-z.]+)?")


def said(node: ast.AST) -> str:
    """A string of the source; what it is filled with is a word."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return ""


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string that is not a docstring, whole."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in node.values)
        if id(node) not in skipped and (words := said(node)):
            yield node.lineno, words  # type: ignore[attr-defined]


@cache
def root() -> Any:
    return typer.main.get_command(app)


@cache
def command(path: tuple[str, ...]) -> Any:
    """The command of these words; None when there is none."""
    found = root()
    for word in path:
        found = found.get_command(_context(found), word) if _is_group(found) else None
        if found is None:
            return None
    return found


def _is_group(found: Any) -> bool:
    return hasattr(found, "list_commands")


def _context(found: Any) -> Any:
    return found.context_class(found, info_name="embedctl")


@cache
def flags(path: tuple[str, ...]) -> frozenset[str]:
    found = command(path)
    listed = {flag for param in found.get_params(_context(found)) for flag in (*param.opts, *param.secondary_opts)}
    return frozenset(listed)


@cache
def all_flags() -> frozenset[str]:
    every: set[str] = {*OTHERS, *flags(())}
    waiting: list[tuple[str, ...]] = [(name,) for group in COMMANDS.values() for name in group]
    for path in waiting:
        every |= flags(path)
        here = command(path)
        waiting += [(*path, name) for name in here.list_commands(_context(here))] if _is_group(here) else []
    return frozenset(every)


FILES = sorted(SOURCE.rglob("*.py"))


def hints() -> Iterator[tuple[str, str]]:
    for file in FILES:
        for line, words in strings(ast.parse(file.read_text("utf-8"))):
            if "--" in words or "embedctl" in words or "`" in words:
                yield f"{file.relative_to(SOURCE)}:{line}", words


def commands_of(words: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each command that a string names, and the flags beside it."""
    for found in _COMMAND.finditer(words):
        path = tuple(found[1].split())
        if command(path[:1]) is None:
            continue  # "embedctl keeps its state": a sentence
        yield path if _is_group(command(path[:1])) else path[:1], found[2].split()
    for code in _CODE.findall(words):
        if code.split()[:1] and code.split()[0] not in ("embedctl", "pip", "chmod") and command((code.split()[0],)):
            yield tuple(word for word in code.split()[:2] if word.isalpha() and word.islower()), _FLAG.findall(code)


def test_commands_of_hints_are_there() -> None:
    """A command that a message names exists, and has the flags that stand beside its name."""
    wrong, seen = [], 0
    for place, words in hints():
        for path, named in commands_of(words):
            seen += 1
            if command(path) is None:
                wrong.append(f"{place}: embedctl {' '.join(path)}")
            else:
                wrong += [f"{place}: {' '.join(path)} {flag}" for flag in named if flag not in flags(path)]

    assert wrong == []
    assert seen > 30


def test_flags_of_hints_are_there() -> None:
    """A flag that a message names is one of some command."""
    wrong = [f"{place}: {flag}" for place, words in hints() for flag in _FLAG.findall(words) if flag not in all_flags()]

    assert wrong == []


_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\bX\b|[{}<>…$|]|\.\.\.")
_SETTING = re.compile(r"[a-z_]+ = ")


def whole_commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each command in backticks that stands there whole: nothing is to be filled in."""
    for place, words in hints():
        for code in _CODE.findall(words):
            path = shlex.split(code)[1:] if code.startswith("embedctl ") else code.split()
            if (
                path
                and not (_PLACEHOLDER.search(code) or _SETTING.match(code))
                and command(tuple(path[:1])) is not None
            ):
                yield place, tuple(path)


COMMANDS_OF_HINTS = sorted({words for _, words in whole_commands()})


@pytest.mark.parametrize("words", COMMANDS_OF_HINTS, ids=" ".join)
def test_a_hint_can_be_followed(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a message gives whole is run as it stands; one that it only names is asked for help."""
    monkeypatch.chdir(tmp_path)
    path = tuple(itertools.takewhile(lambda word: not word.startswith("-"), words))
    found = command(path)
    only_named = found is not None and (_is_group(found) or any(is_given(param) for param in found.params))
    only_named = only_named or path == ("serve",)  # it has no end

    done = embedctl(*(path if only_named else words), *(["--help"] if only_named else []))

    assert done.code not in (2, 70), done.err


def is_given(param: Any) -> bool:
    """Whether a command is of no use without this argument or flag."""
    return bool(param.required or param.nargs == -1)


def test_hints_are_run() -> None:
    """There are hints to run; a wrong one would be seen."""
    assert len(COMMANDS_OF_HINTS) > 10
    assert embedctl("usage", "ingest", "--nonsense").code == 2


@pytest.mark.parametrize("words", ["`embedctl usage nowhere`", "try `embedctl embed --no-such-flag`", "--never-heard"])
def test_a_wrong_hint_is_seen(words: str) -> None:
    """The two tests above see a command and a flag that are none."""
    found = [
        path
        for path, named in commands_of(words)
        if command(path) is None or any(flag not in flags(path) for flag in named)
    ]

    assert found or any(flag not in all_flags() for flag in _FLAG.findall(words))

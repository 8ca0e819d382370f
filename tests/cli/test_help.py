"""What --help shows of the flags of a run and of groups of commands."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import Any

import pytest
import typer

from embedctl.cli import app
from embedctl.cli._help import GROUPS
from embedctl.settings.options import Options
from tests.support.running import embedctl

RUNS = [("embed",), ("batch", "run")]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal 100 columns wide."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")


def command(words: tuple[str, ...]) -> tuple[Any, Any]:
    """The command of these words, and a context for it."""
    found: Any = typer.main.get_command(app)
    context = found.context_class(found, info_name="embedctl")
    for word in words:
        found = found.get_command(context, word)
        context = found.context_class(found, parent=context, info_name=word)
    return found, context


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of a --help, in its order."""
    parts = re.split(r"^(\S[^\n]*):\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("words", RUNS)
def test_flags_of_a_run_are_in_groups(words: tuple[str, ...]) -> None:
    """Every flag of `embed` and `batch run` stands once, under one of the headings, in their order."""
    out = embedctl(*words, "--help").out
    found, context = command(words)
    shown = [param for param in found.get_params(context) if param.get_help_record(context) is not None]
    longest = [max(param.opts, key=len) for param in shown if param.param_type_name == "option"]

    assert list(sections(out)) == ["Arguments", *GROUPS]
    assert len(longest) > 45
    for flag in longest:
        assert len(re.findall(rf"^  (?:-\w, )?{flag}(?![\w-])", out, re.M)) == 1, flag


def test_the_ten_of_every_day_come_first() -> None:
    """The first ten flags of `embed` are those a newcomer needs: model, output, who pays, columns, cost."""
    first = sections(embedctl("embed", "--help").out)["Every day"]

    assert re.findall(r"^  (?:-\w, )?(--[\w-]+)", first, re.M) == [
        "--model", "--output", "--workspace", "--text-column", "--id-column", "--max-cost", "--dry-run",
        "--overwrite", "--json", "--quiet",
    ]  # fmt: skip


def test_a_default_is_shown() -> None:
    """Each option of a run that has a value when nothing is said shows it, as it would be given."""
    found, context = command(("batch", "run"))
    told = {param.name: (param.get_help_record(context) or ("", ""))[1] for param in found.get_params(context)}
    silent = [
        entry.name
        for entry in fields(Options)
        if entry.default not in (None, MISSING) and "[default: " not in told[entry.name]
    ]

    assert silent == []
    assert told["timeout"].endswith("[default: 2m]")
    assert told["reuse"].endswith("[default: on]")
    assert told["keep"].endswith("[default: all]")


GROUPS_OF_COMMANDS = ["batch", "vectors", "models", "providers", "prices", "usage", "usage budget", "cache"]


@pytest.mark.parametrize("group", GROUPS_OF_COMMANDS)
def test_a_group_shows_whole_sentences(group: str) -> None:
    """`embedctl GROUP --help` says of each command all that its first sentence says."""
    out = " ".join(embedctl(*group.split(), "--help").out.split())
    found, context = command(tuple(group.split()))

    assert "..." not in out.replace("[ARGS]...", "")
    for name in found.list_commands(context):
        sentence = " ".join(found.get_command(context, name).help.split("\n\n")[0].split())
        assert f"{name} {sentence.split('. ')[0].rstrip('.')}" in out


def test_words_that_are_taken_for_each_other_are_told_apart() -> None:
    """--purpose is for the ledger, --input-type for the model, --force for dimensions: one line each."""
    lines = {entry.name: entry.metadata["help"] for entry in fields(Options)}

    assert "ledger" in lines["purpose"]
    assert "vectors stay the same" in lines["purpose"]
    assert "model is told" in lines["input_type"]
    assert "--overwrite" in lines["force"]
    assert max(len(lines[name]) for name in ("purpose", "input_type", "force")) <= 80

"""`usage estimate` and `usage diff`: what it would cost, and what it came to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from tests.support.wire.client import Wire

MODEL = "openai:text-embedding-3-small"
TEXTS = [f"The harbour opens at {number} and closes late." for number in range(40)]


@pytest.fixture
def folder(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with texts, in which openai is the wire server."""
    wire.reset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", wire.base_url())
    Path("in.txt").write_text("\n".join(TEXTS))
    return tmp_path


def told(*args: str, code: int = 0) -> Any:
    """The JSON document of `embedctl ARGS… --json`."""
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_an_estimate_sends_nothing(folder: Path, wire: Wire) -> None:
    """Texts, tokens and cost are told, the batch tier costs half, and neither provider nor ledger hear of it."""
    standard = told("usage", "estimate", "in.txt", "--split", "lines", "-m", MODEL)
    batch = told("usage", "estimate", "in.txt", "--split", "lines", "-m", MODEL, "--tier", "batch")

    assert (standard["rows"], standard["texts"], standard["tier"]) == (40, 40, "standard")
    assert standard["tokens_low"] <= standard["tokens"] <= standard["tokens_high"]
    assert Decimal(standard["cost"]) == standard["tokens"] * Decimal("0.00000002")
    assert Decimal(batch["cost"]) * 2 == Decimal(standard["cost"])
    assert wire.truth() == []
    assert sorted(path.name for path in folder.iterdir()) == ["in.txt"]


def test_a_price_nobody_knows(folder: Path, wire: Wire) -> None:
    """Without a price the cost is null, and the warning says so."""
    found = told("usage", "estimate", "in.txt", "-m", "openai:embed-x")

    assert (found["cost"], len(found["warnings"])) == (None, 1)


def test_what_it_came_to(folder: Path, wire: Wire) -> None:
    """After the run, `usage diff` shows the estimate beside what was spent since it was made, for that model alone."""
    args = ["--split", "lines", "-m", MODEL, "-w", "acme"]
    told("embed", "in.txt", "-o", "before.parquet", "--no-cache", *args)
    told("usage", "estimate", "in.txt", *args, "--save", "est.json")
    nothing = told("usage", "diff", "est.json")
    told("embed", "in.txt", "-o", "out.parquet", "--no-cache", *args)
    told("embed", "in.txt", "-o", "other.parquet", "--split", "lines", "-m", MODEL, "--no-cache", "-w", "kb")
    found = told("usage", "diff", "est.json")

    assert (nothing["tokens"], nothing["within"]) == (0, False)
    assert found["tokens"] == wire.billed() // 3
    assert found["tokens_change"] == found["tokens"] - found["tokens_estimated"]
    assert Decimal(found["cost"]) == found["tokens"] * Decimal("0.00000002")
    assert datetime.fromisoformat(found["estimate"]["made_at"]).tzinfo == UTC


@pytest.mark.parametrize(
    ("args", "code"),
    [(["none.json"], 66), (["in.txt"], 65), (["list.json"], 65), ([], 2), (["est.json", "--from", "today"], 2)],
)
def test_what_is_no_estimate_is_refused(folder: Path, args: list[str], code: int) -> None:
    """A missing or foreign file, and half a question, end with the code of their class."""
    Path("list.json").write_text("[1]")

    assert told("usage", "diff", *args, code=code)["exit_code"] == code

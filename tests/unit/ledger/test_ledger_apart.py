"""Ledgers side by side: what one command spends goes into the ledger it named, and into no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedctl import settings
from embedctl.cli import app
from embedctl.ledger import spool
from tests.support.ledger_events import event


def calls(*args: str) -> int:
    """Calls that `usage report ARGS…` finds."""
    told = CliRunner().invoke(app, ["usage", "report", "--json", *args])
    assert told.exit_code == 0, told.output
    return int(json.loads(told.stdout)["totals"]["calls"])


def test_a_run_pays_into_the_ledger_it_names(
    clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run and its report with --ledger leave nothing in the home's own ledger or spool, and the other way round."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("The harbour opens at seven.")
    told = CliRunner().invoke(app, ["embed", "a.txt", "--ledger", "team.duckdb", "-q"])

    assert told.exit_code == 0, told.output
    assert calls("--ledger", "team.duckdb") == 1
    assert not (clean_environment / "usage.duckdb").exists()
    assert not (clean_environment / "spool").exists()

    CliRunner().invoke(app, ["embed", "a.txt", "-o", "b.parquet", "-q"])

    assert (calls(), calls("--ledger", "team.duckdb")) == (1, 1)


def test_what_waits_for_another_ledger_is_left(
    clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report takes in its own ledger's spool only."""
    monkeypatch.chdir(tmp_path)
    spool.publish(clean_environment / "spool", "mine", [event()])
    spool.publish(tmp_path / "team.duckdb.spool", "theirs", [event(), event()])

    assert calls("--ledger", "team.duckdb") == 2
    assert [path.name for path in spool.pending(clean_environment / "spool")] == ["mine.spool"]
    assert calls() == 1


def test_the_home_is_one_place_however_it_is_named(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--ledger with the home's own ledger means the home's own spool; prices are the home's for every ledger."""
    clean_environment.mkdir()
    monkeypatch.chdir(clean_environment)
    own = settings.load(ledger=Path("usage.duckdb")).paths
    other = settings.load(ledger=Path("x.duckdb")).paths

    assert own.spool == clean_environment / "spool"
    assert other.spool == Path("x.duckdb.spool")
    assert own.price_file == other.price_file == clean_environment / "prices.toml"

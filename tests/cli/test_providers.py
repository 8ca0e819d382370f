"""`embedctl providers`: what is listed, and what a test of each kind of trouble says, costs and leaves behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from typer.testing import CliRunner, Result

from embedctl.cli import app
from embedctl.routing import learned
from embedctl.routing.circuits import Circuits
from embedctl.routing.learned import Account, Learned, Served
from embedctl.storage import locks
from tests.support.bad_servers import bad_server
from tests.support.wire.client import Wire, started

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture
def wire(server: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """The server, as `openai` of the user's config."""
    server.reset()
    config = tmp_path / "config.toml"
    config.write_text(f'[providers.openai]\nbase_url = "{server.base_url()}"\nprice_as = "openai"\n')
    monkeypatch.setenv("EMBEDCTL_CONFIG", str(config))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    return server


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def ledger() -> list[tuple[Any, ...]]:
    path = Path(os.environ["EMBEDCTL_HOME"]) / "usage.duckdb"
    with duckdb.connect(str(path), read_only=True) as opened:
        return opened.execute(
            "SELECT workspace_id, purpose, provider, status, billable, tokens_total, cost FROM usage_event"
        ).fetchall()


def test_an_answer(wire: Wire) -> None:
    """A provider that answers: width, tokens, cost, and one row of purpose `test` for the workspace that pays."""
    ended = run("providers", "test", "openai", "-w", "acme", "--json")

    assert ended.exit_code == 0, ended.output
    said = orjson.loads(ended.stdout)
    assert said["dimensions"] == 1536
    assert said["tokens"] == wire.billed() == 9
    assert said["cost"] == "0.00000018"
    (row,) = ledger()
    assert row[:6] == ("acme", "test", "openai", "ok", "yes", 9)
    assert format(row[6].normalize(), "f") == said["cost"]
    assert len(wire.truth()) == 1


def test_an_answer_for_people(wire: Wire) -> None:
    """One line says how fast, how wide, how much, and who pays."""
    ended = run("providers", "test", "openai")

    assert ended.stdout == ""
    assert "1536 dimensions, 9 tokens, 0.00000018 USD, paid by default" in ended.stderr


@pytest.mark.parametrize(
    ("fault", "code", "word"),
    [("unauthorized", 77, "key_rejected"), ("not_found", 78, "model_not_found"), ("quota", 69, "quota_exhausted")],
)
def test_a_refusal(wire: Wire, fault: str, code: int, word: str) -> None:
    """A rejected key, an unknown model and a used-up quota each end with their own code, and are in the ledger."""
    wire.plan(faults={fault: 1.0})

    ended = run("providers", "test", "openai", "--json")

    assert ended.exit_code == code
    said = orjson.loads(ended.stdout)
    assert (said["error"], said["exit_code"]) == (word, code)
    assert said["hint"]
    assert [row[3:6] for row in ledger()] == [("error", "no", 0)]


def test_a_wrong_key_is_named_by_its_variable(wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hint of a rejected key says which variable, or which file's variable, it came from."""
    wire.plan(faults={"unauthorized": 1.0})
    by_variable = orjson.loads(run("providers", "test", "openai", "--json").stdout)
    monkeypatch.delenv("OPENAI_API_KEY")
    file = tmp_path / "key"
    file.write_text("sk-from-a-file-0123456789")
    file.chmod(0o600)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(file))
    by_file = orjson.loads(run("providers", "test", "openai", "--json").stdout)

    assert by_variable["hint"] == "the key came from OPENAI_API_KEY; `embedctl providers test openai` tries another"
    assert by_file["hint"].startswith("the key came from OPENAI_API_KEY_FILE; ")


def test_no_key(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key is named with its variable, and nothing is sent."""
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("EMBEDCTL_CONFIG", str(Path.cwd() / "empty.toml"))
    Path("empty.toml").write_text("")

    ended = run("providers", "test", "openai")

    assert ended.exit_code == 78
    assert "error: provider 'openai' has no key" in ended.stderr
    assert "OPENAI_API_KEY" in ended.stderr
    assert wire.truth() == []


def test_nobody_there(wire: Wire) -> None:
    """A host that does not answer is named, with 69."""
    with bad_server("refuses") as port:
        Path("config.toml").write_text(f'[providers.openai]\nbase_url = "http://127.0.0.1:{port}/v1"\n')
        ended = run("providers", "test", "openai")

    assert ended.exit_code == 69
    assert f"127.0.0.1:{port} refuses the connection" in ended.stderr


def test_plain_http_elsewhere(wire: Wire) -> None:
    """A key does not go over plain http to another machine, unless the user's config says so."""
    Path("config.toml").write_text('[providers.openai]\nbase_url = "http://gpu.example/v1"\n')

    ended = run("providers", "test", "openai")

    assert ended.exit_code == 78
    assert "plain http to gpu.example" in ended.stderr
    assert "insecure = true" in ended.stderr


def test_not_allowed(wire: Wire) -> None:
    """A provider that a list forbids is not asked, and the list is named."""
    with Path("config.toml").open("a") as file:
        file.write('[allow]\nproviders = ["onnx"]\n')

    ended = run("providers", "test", "openai")

    assert ended.exit_code == 77
    assert "[allow]" in ended.stderr
    assert wire.truth() == []


def test_unknown(wire: Wire) -> None:
    """A misspelt provider is named with the nearest."""
    ended = run("providers", "test", "opnai")

    assert ended.exit_code == 2
    assert "did you mean 'openai'?" in ended.stderr


def test_list(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every provider is listed with its address, its key, and whether a list allows it; keys are never shown."""
    monkeypatch.setenv("VOYAGE_API_KEY", "pa-secret-secret-secret")

    ended = run("providers", "--json")

    rows = {row["provider"]: row for row in orjson.loads(ended.stdout)["data"]}
    assert rows["openai"]["base_url"] == wire.base_url()
    assert [rows[name]["key"] for name in ("openai", "voyage", "cohere", "onnx")] == ["set", "set", "missing", "none"]
    assert rows["openai"]["configured"]
    assert rows["openai"]["circuit"] == "closed"
    assert "secret" not in ended.output
    assert KEY not in ended.output


def test_list_online(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --online each server is asked for any answer, without a key: here only the one that is there answers."""
    monkeypatch.setattr("embedctl.routing.status.ONLINE_S", 60.0)
    Path("config.toml").write_text(
        f'[providers.openai]\nbase_url = "{wire.base_url()}"\n[providers.azure]\n[allow]\n'
        'providers = ["openai", "azure", "onnx"]\n'
    )

    ended = run("providers", "list", "--online", "--json")

    rows = {row["provider"]: row for row in orjson.loads(ended.stdout)["data"]}
    assert rows["openai"]["reachable"] == "yes"
    assert rows["onnx"]["reachable"] == "here"
    assert rows["azure"]["reachable"] == "no address"
    assert rows["cohere"]["reachable"] is None
    assert wire.truth() == []


def test_hints_and_circuits(wire: Wire) -> None:
    """What a server said, and what running jobs found, is listed; `reset` forgets the one and closes the other."""
    home = Path(os.environ["EMBEDCTL_HOME"])
    place = f"openai@{wire.base_url()}"
    began = time.monotonic()
    learned.update(
        home / "hints.json",
        lambda known: known.with_hold(Account(place, "x"), 1200, "come back later", _now()).with_floats_only(
            Served(place, "m"), _now()
        ),
        _now(),
    )
    circuits = home / "circuits"
    circuits.mkdir()
    (circuits / "run.json").write_bytes(
        orjson.dumps([{"provider": "openai", "model": "m", "state": "open", "reason": "HTTP 503", "openings": 1}])
    )
    with locks.hold(circuits / "run.lock"):
        listed = {row["provider"]: row for row in orjson.loads(run("providers", "--json").stdout)["data"]}["openai"]
        seconds = time.monotonic() - began
        ended = run("providers", "reset", "openai", "--json")

    assert (listed["circuit"], listed["reason"]) == ("open", "HTTP 503")
    assert 1199 - seconds <= listed["held_s"] <= 1200
    assert orjson.loads(ended.stdout) == {"provider": "openai", "forgotten": 3}
    assert learned.load(home / "hints.json")[0] == Learned()
    assert (circuits / "openai.reset").exists()
    after = {row["provider"]: row for row in orjson.loads(run("providers", "--json").stdout)["data"]}["openai"]
    assert (after["circuit"], after["held_s"]) == ("closed", None)


def test_a_reset_reaches_circuits_that_nobody_has_told_of(wire: Wire) -> None:
    """A job that has just given a provider up, and has not written that down yet, is asked to close its circuits."""
    home = Path(os.environ["EMBEDCTL_HOME"])
    job = Circuits(home / "circuits", "job")
    assert not job.asked_to_close("openai")
    ended = run("providers", "reset", "openai", "--json")

    assert orjson.loads(ended.stdout) == {"provider": "openai", "forgotten": 0}
    assert job.asked_to_close("openai")
    assert not job.asked_to_close("openai")
    assert not job.asked_to_close("cohere")
    assert not Circuits(home / "circuits", "a job that begins later").asked_to_close("openai")


def _now() -> float:
    return time.time()

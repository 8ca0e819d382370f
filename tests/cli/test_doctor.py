"""`embedctl doctor` finds what is broken, says what to do, changes nothing, and never shows a key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from embedctl import doctor, settings
from embedctl.cli import app
from embedctl.ledger import spool
from embedctl.records import uuid7
from embedctl.routing import learned
from embedctl.routing.learned import Account
from embedctl.runs.registry import RunEntry, RunRegistry
from embedctl.storage import locks
from tests.support.bad_servers import bad_server
from tests.support.wire import client

KEY = "sk-never-to-be-seen-0123456789"
ALWAYS = [
    "version", "home", "ledger folder", "settings", "model", "provider onnx", "provider static", "other providers",
    "remembered", "cache", "spool", "ledger", "jobs", "extras", "proxy",
]  # fmt: skip


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def told(*words: str) -> tuple[int, Mapping[str, Any]]:
    """Exit code of `doctor --json`, and its checks by name."""
    code, out, _ = run("doctor", "--json", *words)
    parsed = json.loads(out)
    assert parsed["status"] == ("degraded" if code else "ok")
    return code, {one["check"]: one for one in parsed["checks"]}


@pytest.fixture
def home(clean_environment: Path) -> Path:
    """The home, made."""
    clean_environment.mkdir(parents=True)
    return clean_environment


def config(home: Path, text: str) -> None:
    """Write the user's settings."""
    path = settings.user_config_path(os.environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_fresh_machine_is_well(clean_environment: Path) -> None:
    """Without anything set up: every check is there, all is well, exit 0, and nothing was made."""
    code, checks = told()

    assert (code, list(checks)) == (0, ALWAYS)
    assert {one["state"] for name, one in checks.items() if name != "extras"} == {"ok"}
    assert checks["model"]["detail"] == "onnx:all-MiniLM-L6-v2"
    assert not clean_environment.exists()


def test_it_is_for_people_too(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line per check; what is wrong stands below with what to do, and once more on stderr; exit 69."""
    monkeypatch.setenv("EMBEDCTL_MODEL", "openai:text-embedding-3-small")
    code, out, err = run("doctor")
    lines = out.splitlines()

    assert code == 69
    assert lines[0].split() == ["State", "Check", "Detail"]
    assert [line.split()[0] for line in lines if line.split()[1] == "model"] == ["bad"]
    assert any(line.startswith("! model: ") and "OPENAI_API_KEY" in line for line in lines)
    assert err == "error: degraded: model\n"


def test_broken_settings_are_the_finding(clean_environment: Path) -> None:
    """A settings file that cannot be read does not stop the doctor: it is what it tells."""
    config(clean_environment, "[providers.openai]\nbase_ulr = 'x'\n")
    code, checks = told()

    assert (code, list(checks)) == (69, ["version", "settings"])
    assert "base_ulr" in checks["settings"]["detail"]
    assert "base_url" in checks["settings"]["hint"]


def broken_ledger(home: Path) -> None:
    (home / "usage.duckdb").write_bytes(b"this is no database" * 1000)


def newer_ledger(home: Path) -> None:
    run("usage", "ingest")
    with duckdb.connect(str(home / "usage.duckdb")) as connection:
        connection.execute("INSERT INTO schema_migration VALUES (99, 'later', 'x', now(), '9')")


def held_provider(home: Path) -> None:
    now = datetime.now(UTC).timestamp()
    account = Account("openai@https://api.openai.com/v1", "0" * 16)
    learned.update(home / "hints.json", lambda known: known.with_hold(account, 600, "quota used up", now), now)


def old_events(home: Path) -> None:
    (home / "spool").mkdir()
    waiting = home / "spool" / f"x{spool.SUFFIX}"
    waiting.write_bytes(b"00000000 {}\n" * 3)
    os.utime(waiting, (0, 0))


def no_key(home: Path) -> None:
    config(home, "[providers.eu]\nprotocol='openai'\nbase_url='https://eu.example.com'\napi_key_env='EU_KEY'\n")


def bad_provider(home: Path) -> None:
    config(home, "[providers.eu]\nbase_url='https://eu.example.com'\n")


@pytest.mark.parametrize(
    ("spoil", "check", "word"),
    [
        (broken_ledger, "ledger", "damaged"),
        (newer_ledger, "ledger", "schema 99"),
        (held_provider, "provider openai", "quota used up"),
        (old_events, "spool", "3 events wait"),
        (no_key, "provider eu", "EU_KEY"),
        (bad_provider, "provider eu", "no protocol"),
    ],
)
def test_what_is_broken_is_found(home: Path, spoil: Callable[[Path], None], check: str, word: str) -> None:
    """One thing is broken: that check alone is bad, says what, and has a hint; exit 69."""
    spoil(home)
    code, checks = told()

    assert code == 69
    assert [name for name, one in checks.items() if one["state"] == "bad"] == [check]
    assert word in checks[check]["detail"]
    assert checks[check]["hint"]


def test_a_place_that_cannot_be_written_to_is_found(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home below a file, and a disk that is almost full, are bad before any run fails on them."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EMBEDCTL_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("EMBEDCTL_LEDGER", str(tmp_path / "usage.duckdb"))
    code, checks = told()

    assert (code, checks["home"]["state"], checks["ledger folder"]["state"]) == (69, "bad", "ok")

    monkeypatch.setenv("EMBEDCTL_HOME", str(home))
    full = doctor.folders(settings.load(), low_bytes=shutil.disk_usage(home.parent).free * 2)
    assert [one.state for one in full] == ["bad", "bad"]


def test_a_home_below_a_file_is_looked_at_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot look is bad, and all others are made: no one finding hides the rest."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMBEDCTL_HOME", str(tmp_path / "file" / "home"))
    code, checks = told()

    assert code == 69
    assert (checks["home"]["state"], checks["spool"]["state"], checks["proxy"]["state"]) == ("bad", "bad", "ok")


def test_a_busy_ledger_is_no_illness(home: Path) -> None:
    """A ledger that another program holds just now is a note: nothing is lost by it."""
    run("usage", "ingest")
    with duckdb.connect(str(home / "usage.duckdb")), locks.hold(home / "usage.duckdb.lock"):
        code, checks = told()

    assert (code, checks["ledger"]["state"]) == (0, "note")
    assert "in use" in checks["ledger"]["detail"]


def test_jobs_are_told(home: Path, tmp_path: Path) -> None:
    """Runs that are under way, and the outputs whose last run was interrupted, are counted and named."""
    registry = RunRegistry(home / "runs")
    for name in ("alive", "dead", "asked"):
        folder = tmp_path / name / "_embedctl"
        folder.mkdir(parents=True)
        output = "" if name == "asked" else str(tmp_path / name)
        registry.register(RunEntry(run_id=uuid7(), job_id=name, folder=folder, output=output, state="running"))
    with locks.hold(tmp_path / "alive" / "_embedctl" / "lock"):
        code, checks = told()
    facts = checks["jobs"]["facts"]

    assert (code, checks["jobs"]["state"]) == (0, "note")
    assert [one["job"] for one in facts["running"]] == ["alive"]
    assert [one["job"] for one in facts["interrupted"]] == ["dead"]


def test_keys_are_named_and_never_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a proxy's password and a key in a file are nowhere in what is printed."""
    key_file = home / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("COHERE_API_KEY_FILE", str(key_file))
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{KEY}@127.0.0.1:3128")
    code, out, err = run("doctor", "--json")
    checks = {one["check"]: one for one in json.loads(out)["checks"]}

    assert code == 0
    assert KEY not in out + err
    assert (checks["provider openai"]["facts"]["key"], checks["provider cohere"]["facts"]["key"]) == ("set", "set")
    assert (checks["proxy"]["state"], checks["proxy"]["facts"]["proxy"]) == ("note", "127.0.0.1:3128")
    assert KEY not in str(run("doctor"))


@pytest.mark.parametrize("proxy", ["http://[::1", "http://:3128", "socks5://127.0.0.1:1080", "http://proxy:99999"])
def test_a_proxy_that_cannot_be(home: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """A proxy that no run could use is bad (69), whatever the variable holds."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    code, out, _ = run("doctor", "--json")
    checks = {one["check"]: one for one in json.loads(out)["checks"]}

    assert (code, checks["proxy"]["state"], checks["proxy"]["hint"]) == (69, "bad", "http://HOST:PORT")


def test_online_asks_whether_they_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--online tells who answers and who does not, sends no text, and costs nothing."""
    monkeypatch.setattr("embedctl.routing.status.ONLINE_S", 60.0)
    with bad_server("refuses") as port, client.started() as wire:
        config(
            home,
            f"[providers.here]\nprotocol='openai'\nbase_url='{wire.base_url()}'\n"
            f"[providers.gone]\nprotocol='openai'\nbase_url='http://127.0.0.1:{port}/v1'\n",
        )
        code, checks = told("--online")
        truth = wire.truth()

    assert code == 69
    assert (checks["provider here"]["state"], checks["provider here"]["facts"]["reachable"]) == ("ok", "yes")
    assert (checks["provider gone"]["state"], checks["provider gone"]["hint"] is not None) == ("bad", True)
    assert sum(one["tokens_billed"] for one in truth) == 0


def test_missing_extras_say_how_to_get_them() -> None:
    """An extra that is not installed is a note with the command that installs it."""
    check = doctor.extras(lambda name: None)

    assert check.state == "note"
    assert check.hint == "pip install 'huggingface-hub>=0.30' 'matplotlib>=3.10.7' 'obstore>=0.11' 'ray>=2.60'"
    assert doctor.extras(lambda name: object()).state == "ok"

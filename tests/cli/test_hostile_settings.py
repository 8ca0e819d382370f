"""Settings, keys and state of a stranger's folder, or of a slip of the hand, seen from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.running import embedctl, rows
from tests.support.wire.client import Wire

KEY = "sk-proj-Zx81kQvLw93hTnYb77RmD0aJc5"
MODEL = "openai:text-embedding-3-small"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloned folder, the current one."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "notes.txt").write_text("a line\nanother line\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def config(project: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own settings, with the wire server as openai."""
    wire.reset()
    path = project.parent / "config.toml"
    path.write_text(f'[providers.openai]\nbase_url = "{wire.base_url()}"\nprice_as = "openai"\n')
    monkeypatch.setenv("EMBEDCTL_CONFIG", str(path))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return path


HOSTILE = {
    "a tokenizer that sees one token in any text": '[token_usage]\nfallback_tokenizer = "file:./tok.json"',
    "a tokenizer of a model": f'[models."{MODEL}"]\nfallback_tokenizer = "file:./tok.json"',
    "counting by a tokenizer": f'[models."{MODEL}"]\nusage_mode = "fallback"',
    "a cache that is emptied": "[cache]\nmax_bytes = 0",
    "a cache that is emptied for ever": "[cache]\nmax_bytes = -1",
    "a cache without days": "[cache]\nttl_days = 0",
    "no price needed": "allow_unpriced = true",
    "a workspace without a budget": 'workspace = "free"',
    "a budget": "[workspaces.default]\nbudget = { amount = 100000 }",
    "a host": '[providers.openai]\nbase_url = "https://evil.example"',
    "plain http": "insecure = true",
    "a tag of 20 MB": f"[tag]\nx = '{'x' * 1_000_000}'",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_project_that_asks_for_it_is_refused(project: Path, config: Path, wire: Wire, case: str) -> None:
    """A project's file that changes how money is counted or what is shared ends with 78; nothing is sent or made."""
    (project / "embedctl.toml").write_text(HOSTILE[case])
    (project / "tok.json").write_text("{}")

    ran = embedctl("embed", "notes.txt", "-m", MODEL, "--max-cost", "1")

    assert ran.code == 78, ran.err
    assert str(project / "embedctl.toml") in ran.err
    assert "hint" in ran.err or "tag" in ran.err
    assert wire.truth() == []
    assert sorted(path.name for path in project.iterdir()) == ["embedctl.toml", "notes.txt", "tok.json"]


def test_a_project_does_not_lift_the_most_that_a_run_may_cost(project: Path, config: Path, wire: Wire) -> None:
    """The user's own max_cost holds against a project's higher one, and `config show` and `doctor` say so."""
    config.write_text(f"max_cost = '0.000001'\n{config.read_text()}")
    (project / "embedctl.toml").write_text("max_cost = 1000\nconcurrency = 2")
    (project / "notes.txt").write_text("word " * 2000)

    ran = embedctl("embed", "notes.txt", "-m", MODEL)

    assert ran.code == 4, ran.err
    assert wire.truth() == []
    assert "max_cost = 1000 does not count: yours is 0.000001" in embedctl("config", "show").out
    assert "max_cost = 1000 does not count" in embedctl("config", "show", "--json").json["warnings"][0]
    looked = {check["check"]: check for check in embedctl("doctor", "--json").json["checks"]}
    assert looked["settings"]["state"] == "note"
    assert "max_cost = 1000" in looked["settings"]["detail"]


def test_a_project_that_keeps_to_its_place_works(project: Path, config: Path, wire: Wire) -> None:
    """A project may say what its texts are, and which of the user's workspaces pays."""
    config.write_text(f"{config.read_text()}[workspaces.acme]\n")
    (project / "embedctl.toml").write_text("model = 'onnx:all-MiniLM-L6-v2'\nworkspace = 'acme'\nsplit = 'lines'")

    ran = embedctl("embed", "notes.txt", "--json")

    assert (ran.code, ran.json["workspace"], ran.json["vectors"]) == (0, "acme", 2)
    assert [row["id"] for row in rows("notes.embeddings.parquet")] == ["notes.txt#1", "notes.txt#2"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_a_keys_file_that_has_no_end_is_refused(
    project: Path, config: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A key's file that is a pipe, or larger than any key, is refused at once, also where keys are only listed."""
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(project / "key"))
    if kind == "pipe":
        os.mkfifo(project / "key", 0o600)
    else:
        (project / "key").touch(0o600)
        os.truncate(project / "key", 8 << 30)

    ran = embedctl("embed", "notes.txt", "-m", MODEL)
    listed = embedctl("providers", "list", "--json")
    looked = embedctl("doctor")

    assert (ran.code, listed.code, looked.code) == (78, 0, 69)
    assert "OPENAI_API_KEY_FILE cannot be read: it is" in ran.err
    assert "OPENAI_API_KEY_FILE cannot be read: it is" in listed.out


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to itself", "deep", "huge"])
@pytest.mark.parametrize("name", ["hints.json", "prices.toml", "circuits/x.json"])
def test_state_that_is_no_file_of_ours_holds_nothing_up(
    project: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """What is remembered is passed over when it is no use; prices are the user's word: 78, unless the model is free."""
    path = clean_environment / name
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "deep":
        path.write_text("a = " * name.endswith("toml") + "[" * 100_000)
    else:
        path.touch()
        os.truncate(path, 8 << 30)

    codes = [embedctl(*words).code for words in (["embed", "notes.txt"], ["providers", "list"], ["prices", "list"])]

    assert codes == ([0, 0, 78] if name == "prices.toml" else [0, 0, 0])
    if name == "prices.toml":
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        for words in (["prices", "list"], ["embed", "notes.txt", "-m", MODEL, "--overwrite"]):
            refused = embedctl(*words)
            assert (refused.code, "prices.toml" in refused.err) == (78, True)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["usage.duckdb", "usage.duckdb.limits", "usage.duckdb.lock", "usage.duckdb.budgets"])
def test_a_pipe_among_the_ledgers_files_holds_nothing_up(
    project: Path, config: Path, clean_environment: Path, name: str
) -> None:
    """A FIFO in place of the ledger is refused (78); one beside it is passed over, or an error in words."""
    clean_environment.mkdir()
    os.mkfifo(clean_environment / name)
    config.write_text(f"{config.read_text()}[workspaces.default]\nbudget = {{ amount = 5 }}\n")

    codes = [embedctl(*words).code for words in (["embed", "notes.txt", "-m", MODEL], ["usage", "report"], ["doctor"])]

    assert codes == ([78, 78, 69] if name == "usage.duckdb" else codes)
    assert set(codes) <= {0, 69, 73, 74, 78}


def test_budgets_that_were_changed_by_hand_are_passed_over(clean_environment: Path) -> None:
    """A copy of the budgets that is no list of budgets costs what is wrong in it, and never ends a rebuild."""
    embedctl("usage", "budget", "set", "--workspace", "acme", "--amount", "5")
    ledger = clean_environment / "usage.duckdb"
    kept = json.loads((clean_environment / "usage.duckdb.limits").read_text())
    wrong = [{**kept[0], **change} for change in (
        {"amount": "1e99999999"}, {"amount": "x"}, {"amount": None}, {"period": "century"}, {"timezone": "../x"},
        {"warn_ratio": "NaN"}, {"more": 1},
    )]  # fmt: skip
    (clean_environment / "usage.duckdb.limits").write_text(json.dumps([*wrong, {}, kept[0]]))
    ledger.write_bytes(b"no database at all" * 1000)

    rebuilt = embedctl("usage", "ingest", "--rebuild")

    assert rebuilt.code == 0, rebuilt.err
    assert [one["workspace"] for one in embedctl("usage", "budget", "list", "--json").json["budgets"]] == ["acme"]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_settings_that_are_made_are_their_users_alone(project: Path, mask: int) -> None:
    """`config init` writes a file that only its user can read, whatever the umask, and takes no other's place."""
    before = os.umask(mask)
    try:
        made = embedctl("config", "init")
        path = Path(embedctl("config", "path").out.strip())
    finally:
        os.umask(before)

    assert made.code == 0
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert embedctl("config", "init").code == 73
    path.write_text("concurrency = 1")
    assert embedctl("config", "init", "--force").code == 0
    assert "concurrency = 1" not in path.read_text()


def test_settings_others_can_change_are_refused_everywhere(project: Path, config: Path) -> None:
    """No command takes the word of settings that others can change; `doctor` says what to do."""
    config.chmod(0o666)

    assert embedctl("embed", "notes.txt").code == 78
    assert embedctl("providers", "list").code == 78
    looked = embedctl("doctor")
    assert looked.code == 69
    assert f"chmod go-w {config}" in looked.out + looked.err


MISPLACED = {
    "a user name and password": f'[providers.openai]\nbase_url = "https://user:{KEY}@127.0.0.1:9/v1"',
    "a query": f'[providers.openai]\nbase_url = "https://127.0.0.1:9/v1?code={KEY}"',
    "a path": f'[providers.openai]\nbase_url = "https://127.0.0.1:9/v1/{KEY}"',
    "the name of a variable": f'[providers.openai]\napi_key_env = "{KEY}"',
    "a signing secret's variable": f'[providers.tldw]\njwt_secret_env = "{KEY}"\njwt_subject = "me"',
    "a header's name": f'[providers.openai]\nheaders = {{ "Authorization: Bearer {KEY}" = "x" }}',
    "a header of two lines": f'[providers.openai]\nheaders = {{ Authorization = "Bearer {KEY}\\n" }}',
    "a variable for the base URL": "",
}


@pytest.mark.parametrize("case", MISPLACED)
def test_a_key_in_the_wrong_place_is_refused_and_never_shown(
    project: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Wherever a key stands by mistake: a run ends with 78, `doctor` names the trouble, nothing shows or keeps it."""
    config = project.parent / "config.toml"
    config.write_text(MISPLACED[case])
    monkeypatch.setenv("EMBEDCTL_CONFIG", str(config))
    if not MISPLACED[case]:
        monkeypatch.setenv("OPENAI_BASE_URL", f"https://me:{KEY}@127.0.0.1:9/v1?key={KEY}")
    monkeypatch.setenv("OPENAI_API_KEY", "another-key-of-no-interest")
    provider = "tldw:x" if "tldw" in MISPLACED[case] else MODEL

    ran = embedctl("embed", "notes.txt", "-m", provider, "-v")
    told = [embedctl(*words) for words in (
        ["doctor"], ["doctor", "--json"], ["providers", "list"], ["providers", "list", "--json"], ["config", "show"],
        ["doctor", "--online", "--json"],
    )]  # fmt: skip

    assert ran.code == 78, ran.err
    assert told[0].code == told[1].code == 69
    assert [one for one in (ran, *told) if KEY in one.out + one.err] == []
    kept = [path for path in clean_environment.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert kept == []

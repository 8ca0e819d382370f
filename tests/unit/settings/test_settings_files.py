"""Settings files that a stranger wrote, or a slip of the hand: each is refused with its name and 78, and none hangs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from embedctl import settings
from embedctl.errors import ConfigurationInvalid, EmbedctlError
from embedctl.settings import Settings, toml_files


def load(folder: Path, **about: Any) -> Settings:
    environment = {"EMBEDCTL_HOME": str(folder / "home"), "HOME": str(folder), **about.pop("environment", {})}
    return settings.load(environment=environment, folder=folder / "project", **about)


def refusal(folder: Path, text: str | bytes) -> ConfigurationInvalid:
    path = folder / "user.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigurationInvalid) as caught:
        load(folder, config=path)
    return caught.value


BEYOND = {
    "lists in lists": "x = " + "[" * 100_000 + "]" * 100_000,
    "tables in tables": "x = " + "{a=" * 20_000 + "1" + "}" * 20_000,
    "a little too deep": "[providers.x]\nbody = " + "{a=" * 40 + "1" + "}" * 40,
    "dotted keys": ".".join("a" * 400_000) + " = 1",
    "a long dotted header": "[" + ".".join("a" * 200_000) + "]",
    "dotted keys below the dots that are counted": "\n".join(f"{'a.' * 400}b{number} = 1" for number in range(100)),
    "5,000 digits": "chunk_size = " + "9" * 5000,
    "5,000 digits with a point": "max_cost = 0." + "9" * 5000,
    "hexadecimal without end": "chunk_size = 0x" + "f" * 500_000,
    "beyond 64 bits": "[cache]\nttl_days = 9223372036854775808",
    "an exponent": "max_cost = 1e99999999",
    "a tiny exponent": "[workspaces.acme]\nbudget = { amount = 1e-99999999 }",
    "an exponent in a template": "[providers.x]\nbody = { a = 1e99999999 }",
    "a NUL": '[providers.x]\nca_file = "a\\u0000b"',
    "more than 1 MiB": "# " + "x" * (1 << 20),
    "no text": b"\x00\xff\xfe",
    "half a character": b'model = "\xc3',
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", BEYOND)
def test_what_no_settings_need_is_refused(tmp_path: Path, case: str) -> None:
    """Depth, digits, exponents and size have bounds; what is beyond ends with 78 and is not repeated."""
    said = refusal(tmp_path, BEYOND[case])

    assert str(tmp_path / "user.toml") in said.message
    assert len(said.message) < 300


OUT_OF_BOUNDS = [
    ("[cache]\nmax_bytes = -1", "[cache]: 'max_bytes' must be between 1048576 and "),
    ("[cache]\nmax_bytes = 0", "[cache]: 'max_bytes' must be between"),
    ("[cache]\nttl_days = 0", "[cache]: 'ttl_days' must be between 1 and 36500"),
    ("[cache]\nttl_days = 36501", "[cache]: 'ttl_days' must be between 1 and 36500"),
    ("[token_usage]\ncache_ttl_s = 0", "[token_usage]: 'cache_ttl_s' must be between 1 and "),
    ("[token_usage]\ncache_ttl_s = 9223372036854775807", "[token_usage]: 'cache_ttl_s' must be between"),
    ("[workspaces.a]\nbudget = { amount = nan }", "[workspaces.a] 'budget': 'amount' must be between 0 and"),
    ("[workspaces.a]\nbudget = { amount = inf }", "'amount' must be between"),
    ("[workspaces.a]\nbudget = { amount = '1e99999999' }", "'amount' must be between"),
    ("[workspaces.a]\nbudget = { amount = 'NaN' }", "'amount' must be between"),
    ("[workspaces.a]\nbudget = { amount = 'sNaN' }", "'amount' must be between"),
    ("[workspaces.a]\nbudget = { amount = '1e-99999999' }", "'amount' must be between"),
    ("max_cost = '1e-99999999'", "'max_cost' must be an amount"),
    ("[workspaces.a]\nbudget = { amount = -1 }", "'amount' must be between"),
    ("[workspaces.a]\nbudget = { amount = 1, warn_ratio = 0 }", "'warn_ratio' must be between"),
    ("[workspaces.a]\nbudget = { amount = 1, warn_ratio = nan }", "'warn_ratio' must be between"),
    ("[providers.a]\nconcurrency = 0", "[providers.a]: 'concurrency' must be between 1 and 10000"),
    ("[providers.a]\nburst = -5", "'burst' must be between"),
    ("[providers.a]\nrequests_per_minute = -1", "'requests_per_minute' must be between"),
    ("[providers.a]\ntimeout_s = nan", "'timeout_s' must be between"),
    ("[providers.a]\ntimeout_s = 0", "'timeout_s' must be between"),
    ("[providers.a]\nmax_items = 0", "'max_items' must be between"),
    ("timeout = nan", "'timeout' must be a duration"),
    ("deadline = inf", "'deadline' must be a duration"),
]


@pytest.mark.parametrize(("text", "message"), OUT_OF_BOUNDS)
def test_numbers_have_bounds(tmp_path: Path, text: str, message: str) -> None:
    """A number of a table that is out of its range, or none, is refused by name when it is read."""
    said = refusal(tmp_path, text).message

    assert message in said
    assert said.startswith(f"{tmp_path / 'user.toml'}: ")


KEYS = [
    "sk-proj-Zx81kQvLw93hTnYb77RmD0aJc5",
    "AIzaSyA1b2C3d4E5f6G7h8I9j0KlMnOpQrStUv",
    "hf_AbCdEfGhIjKlMnOpQrStUv1234567890",
    "0" * 32,
    "a b",
]


@pytest.mark.parametrize("name", ["api_key_env", "jwt_secret_env"])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_no_variables_name(tmp_path: Path, name: str, key: str) -> None:
    """A key where the name of its variable belongs is refused and never shown."""
    said = refusal(tmp_path, f"[providers.openai]\n{name} = '{key}'")

    assert f"{name!r} must be the name of an environment variable" in said.message
    assert key not in f"{said.message} {said.hint}"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_key", "_K", "AZURE_EU_KEY2", "ANOTHERVERYLONGVARIABLENAME_2"])
def test_a_variables_name_is_taken(tmp_path: Path, name: str) -> None:
    """Whatever a shell takes as a variable's name may hold the key."""
    (tmp_path / "user.toml").write_text(f"[providers.openai]\napi_key_env = '{name}'")

    assert load(tmp_path, config=tmp_path / "user.toml").providers["openai"].api_key_env == name


HEADERS = [
    ("headers = { 'bad name' = 'x' }", "'headers' must hold headers, but a name must be"),
    ("headers = { 'x:y' = 'x' }", "a name must be"),
    ("headers = { '' = 'x' }", "a name must be"),
    ("headers = { 'naïve' = 'x' }", "a name must be"),
    ("headers = { 'X-A\\r\\nB' = 'x' }", "a name must be"),
    ("headers = { Content-Length = '3' }", "a name must be no header that HTTP itself needs"),
    ("headers = { Transfer-Encoding = 'chunked' }", "a name must be no header"),
    ('headers = { X-A = "s3cret\\r\\nX-B: y" }', "'headers' must hold values of printable ASCII"),
    ("headers = { X-A = 's3cret“' }", "values of printable ASCII"),
    ("key_header = 'x y'", "'key_header' must be a header's name"),
]


@pytest.mark.parametrize(("text", "message"), HEADERS)
def test_headers_are_such_as_http_can_carry(tmp_path: Path, text: str, message: str) -> None:
    """A header that no HTTP can carry is refused when the settings are read, and its value is not shown."""
    said = refusal(tmp_path, f"[providers.openai]\n{text}").message

    assert message in said
    assert "s3cret" not in said


VALUES = st.recursive(
    st.sampled_from(
        ["1", "-1", "0", "1e400", "nan", "inf", "true", "''", "'x'", '"\\u0000"', "2026-01-01", "07:00:00", "9" * 30]
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    | st.dictionaries(st.sampled_from(["a", "amount", "providers", "path"]), inner, max_size=3).map(
        lambda items: f"{{{', '.join(f'{key} = {value}' for key, value in items.items())}}}"
    ),
    max_leaves=4,
)  # fmt: skip
KEYS_OF_FILES = st.sampled_from(
    ["model", "tag", "timeout", "max_cost", "cache", "fallback", "allow", "workspaces", "providers", "models", "keep",
     "token_usage", "concurrency", "workspaces.a", "workspaces.a.budget", "providers.a", "providers.a.headers",
     "providers.a.options", "providers.a.body", "providers.a.timeout_s", "cache.ttl_days", "models.a", "''", "'\\u1b'"]
)  # fmt: skip


@examples(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.dictionaries(KEYS_OF_FILES, VALUES, max_size=3), ours=st.booleans())
def test_no_file_breaks_the_program(tmp_path: Path, pairs: dict[str, str], *, ours: bool) -> None:
    """Whatever a file says under whatever key, it is settings, or an error of ours with 78 or 2."""
    path = tmp_path / "user.toml" if ours else tmp_path / "project" / "embedctl.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(f"{key} = {value}" for key, value in pairs.items()), "utf-8")
    try:
        load(tmp_path, config=path) if ours else load(tmp_path)
    except EmbedctlError as refused:
        code = refused.exit_code
    else:
        code = 0

    assert code in (0, 2, 78)


def test_templates_are_json(tmp_path: Path) -> None:
    """Numbers with a point and dates in a body template are what JSON has for them."""
    path = tmp_path / "user.toml"
    path.write_text("[providers.x]\nbody = { a = 0.5, on = 2026-01-02, deep = [{ b = 1.0 }] }\noptions = { c = 2.5 }")
    found = load(tmp_path, config=path).providers["x"]

    assert found.body == {"a": 0.5, "on": "2026-01-02", "deep": [{"b": 1.0}]}
    assert [type(found.body["a"]), type(found.options["c"])] == [float, float]


def test_paths_are_those_of_the_file_they_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in the user's settings means a file beside them, never one in the current folder."""
    (tmp_path / "config").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = tmp_path / "config" / "user.toml"
    path.write_text(
        "[providers.x]\nca_file = 'ca.pem'\n[providers.y]\nca_file = '~nobody-at-all/ca.pem'\n"
        "[token_usage]\nfallback_tokenizer = 'file:tok.json'\n"
        "[models.a]\nfallback_tokenizer = 'tiktoken:cl100k_base'\n[models.b]\nfallback_tokenizer = 'file:/b.json'"
    )
    found = load(tmp_path, config=path)

    assert found.providers["x"].ca_file == str(tmp_path / "config" / "ca.pem")
    assert found.token_usage.fallback_tokenizer == f"file:{tmp_path / 'config' / 'tok.json'}"
    assert [found.models[name].fallback_tokenizer for name in "ab"] == ["tiktoken:cl100k_base", "file:/b.json"]


# ── whose they are ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602, 0o777])
def test_settings_that_others_can_change_are_refused(tmp_path: Path, mode: int) -> None:
    """The file that says where keys go is its user's alone to write; the command that mends it is the hint."""
    path = tmp_path / "user.toml"
    path.write_text("concurrency = 1")
    path.chmod(mode)
    with pytest.raises(ConfigurationInvalid) as caught:
        load(tmp_path, config=path)

    assert "can be changed by other users" in caught.value.message
    assert caught.value.hint == f"chmod go-w {path}"
    path.chmod(0o644)
    assert load(tmp_path, config=path).options.concurrency == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_settings_of_another_user_are_refused(tmp_path: Path) -> None:
    """Another user's settings are not this user's word; root's are."""
    path = tmp_path / "user.toml"
    path.write_text("concurrency = 1")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigurationInvalid, match="belongs to another user") as caught:
        load(tmp_path, config=path)

    assert caught.value.hint == f"chown 0 {path}"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_home_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    """What lies in the home is believed, so nobody else may put anything there."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(mode)
    with pytest.raises(ConfigurationInvalid) as caught:
        load(tmp_path)

    assert "where embedctl keeps its state, can be changed by other users" in caught.value.message
    assert caught.value.hint == f"chmod go-w {tmp_path / 'home'}"
    (tmp_path / "home").chmod(0o755)
    assert load(tmp_path).paths.home == tmp_path / "home"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_home_of_another_user_is_refused(tmp_path: Path) -> None:
    """State that somebody else made is nothing to be believed."""
    (tmp_path / "home").mkdir(0o700)
    os.chown(tmp_path / "home", 12345, 12345)
    with pytest.raises(ConfigurationInvalid, match="belongs to another user"):
        load(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
@pytest.mark.parametrize("name", ["user.toml", "project/embedctl.toml"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    """A pipe, a folder, or a link that leads to itself is no settings file: 78 at once."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    {"pipe": os.mkfifo, "loop": lambda place: place.symlink_to(place), "folder": Path.mkdir}[kind](path)
    with pytest.raises(ConfigurationInvalid, match="cannot be read"):
        load(tmp_path, **({"config": path} if name == "user.toml" else {}))


@pytest.mark.timeout(20)
def test_a_job_file_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    """JOB.toml is opened like every small file."""
    os.mkfifo(tmp_path / "job.toml")
    with pytest.raises(ConfigurationInvalid, match="pipe or device"):
        settings.read_job(tmp_path / "job.toml")


def test_a_current_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in a folder that was removed ends with 66."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(EmbedctlError) as caught:
        settings.load(environment={"EMBEDCTL_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)})

    assert caught.value.exit_code == 66
    monkeypatch.chdir(tmp_path)


def test_the_most_that_is_read(tmp_path: Path) -> None:
    """A file of 1 MiB is read."""
    path = tmp_path / "user.toml"
    path.write_text("# " + "x" * (toml_files.MAX_BYTES - 2))

    assert load(tmp_path, config=path).files == (path,)

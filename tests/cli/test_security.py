"""Keys: where they may stand, where they may go, and that they appear in nothing that is written or said."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from embedctl.cli import app
from embedctl.providers import _foreign
from embedctl.providers._contract import HttpRequest
from embedctl.routing.credentials import exposure
from tests.support.wire.client import Wire, started

KEY = "sk-proj-Zx81kQvLw93hTnYb77RmD0aJc5"
SECOND = "Qm4Hx9-another-secret-0123456789-WvT"
MODEL = "text-embedding-3-small"


@dataclass(frozen=True)
class Way:
    """One way of placing keys."""

    config: str
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    model: str = f"mine:{MODEL}"
    protocol: str = "openai"


WAYS = {
    "the vendor's variable": Way(
        '[providers.openai]\nbase_url = "{url}"', {"OPENAI_API_KEY": KEY}, model=f"openai:{MODEL}"
    ),
    "a variable of one's own": Way(
        '[providers.mine]\nprotocol = "openai"\nbase_url = "{url}"\napi_key_env = "MY_KEY"', {"MY_KEY": KEY}
    ),
    "a file": Way(
        '[providers.mine]\nprotocol = "openai"\nbase_url = "{url}"\napi_key_env = "MY_KEY"',
        {"MY_KEY_FILE": "{folder}/key.txt"},
        {"key.txt": f"{KEY}\n"},
    ),
    "a header of azure's": Way(
        '[providers.azure]\nbase_url = "{url}"',
        {"AZURE_OPENAI_API_KEY": KEY},
        model=f"azure:{MODEL}",
        protocol="azure",
    ),
    "a header in the user's config": Way(
        f'[providers.mine]\nprotocol = "openai"\nbase_url = "{{url}}"\nheaders = {{ authorization = "Bearer {KEY}" }}',
    ),
    "a scheme of one's own": Way(
        f'[providers.mine]\nprotocol = "openai"\nbase_url = "{{url}}"\nheaders = {{ Authorization = "Token {KEY}" }}',
    ),
    "a key and a minted token": Way(
        '[providers.tldw]\nbase_url = "{url}"\njwt_secret_env = "SIGNING"\njwt_subject = "user-1"',
        {"SINGLE_USER_API_KEY": KEY, "SIGNING": SECOND},
        model=f"tldw:{MODEL}",
        protocol="tldw",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.reset()
    return server


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def prepare(way: Way, wire: Wire, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "config").mkdir()
    config = folder / "config" / "config.toml"
    config.write_text(way.config.replace("{url}", wire.base_url(way.protocol)))
    for name, content in way.files.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
    for name, value in way.environment.items():
        monkeypatch.setenv(name, value.replace("{folder}", str(folder)))
    monkeypatch.setenv("EMBEDCTL_CONFIG", str(config))
    (folder / "texts.txt").write_text("\n".join(f"line {i} of a text" for i in range(12)))


def written(folder: Path, home: Path) -> Iterator[tuple[str, bytes]]:
    """Everything a run wrote, raw, and decoded where it may be compressed; but not where keys were placed."""
    for root in (folder, home):
        for path in root.rglob("*"):
            if not path.is_file() or path.name in ("config.toml", "key.txt"):
                continue
            yield str(path), path.read_bytes()
            if path.suffix == ".parquet":
                yield f"{path} (read)", str([pq.read_table(path).to_pylist(), pq.read_metadata(path).metadata]).encode()
            if path.suffix == ".duckdb":
                yield f"{path} (read)", rows_of(path)


def rows_of(path: Path) -> bytes:
    with duckdb.connect(str(path), read_only=True) as ledger:
        tables = ledger.execute("SELECT table_name FROM information_schema.tables").fetchall()
        rows = [ledger.execute(f'SELECT CAST(t AS VARCHAR) FROM "{name}" t').fetchall() for (name,) in tables]
    return str(rows).encode()


def secrets() -> list[bytes]:
    """The keys, and what gives them away."""
    plain = [KEY, SECOND, f"Bearer {KEY}", KEY.lower(), SECOND.lower()]
    coded = [base64.b64encode(one.encode()).decode().rstrip("=") for one in (KEY, SECOND)]
    return [one.encode() for one in (*plain, *coded)]


_IN_HEADERS = dict.fromkeys(
    ("x-request-id", "x-embeddings-provider", "x-embeddings-dimensions-policy", "x-ratelimit-limit-requests"), "{key}"
)
REPEATED: dict[str, dict[str, object]] = {
    "an answer that repeats it": {"headers": _IN_HEADERS, "more": {"id": "id-{key}", "note": "{key}"}},
    "an answer that cannot be used and repeats it": {"headers": _IN_HEADERS, "body": "{key} is what I got"},
    "an error that repeats it": {
        "status": 400,
        "headers": _IN_HEADERS,
        "body": '{"code":"{key}","message":"got {key}!"}',
    },
    "a redirect that repeats it": {"status": 307, "headers": {"location": "https://{key}.example/{key}?{key}"}},
    "an encoding that repeats it": {"headers": {"content-encoding": "{key}"}},
}
"""What a server may do with the key that it was sent."""


@pytest.mark.parametrize(
    ("way", "outcome"),
    [
        *((way, outcome) for way in WAYS for outcome in ("ok", "unauthorized")),
        *((way, outcome) for way in ("a scheme of one's own", "a key and a minted token") for outcome in REPEATED),
        *(("the vendor's variable", outcome) for outcome in ("forbidden", "status", "html")),
    ],
)
def test_keys_stay_secret(
    wire: Wire, tmp_path: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch, way: str, outcome: str
) -> None:
    """A key is in nothing that a run says or writes, however it was given, whether the run succeeds or fails."""
    prepare(WAYS[way], wire, tmp_path, monkeypatch)
    good = outcome in ("ok", "an answer that repeats it")
    fault = {"says": {"p": 1.0, **REPEATED[outcome]}} if outcome in REPEATED else {outcome: 1.0}
    wire.plan(script=["ok"] if outcome == "ok" else [], faults={} if outcome == "ok" else fault)

    model = WAYS[way].model
    ends = [
        run("embed", "texts.txt", "--split", "lines", "-m", model, "-v", "--retries", "1", "--fallback", "off"),
        run("batch", "run", "texts.txt", "-o", "out", "-m", model, "-v", "--json", "--retries", "1"),
        run("providers", "test", model.partition(":")[0], "-m", model, "--json"),
        run("providers", "list", "-j"),
        run("config", "show"),
    ]

    assert {one["key"] for one in wire.truth()} == {KEY[-4:]}
    assert (ends[0].exit_code == 0) == good, ends[0].output
    assert {end.exit_code for end in ends}.isdisjoint({70})
    said = "".join(
        end.output + "".join(traceback.format_exception(end.exception) if end.exception else "") for end in ends
    ).encode()
    assert [one for one in secrets() if one in said] == []
    held = dict(written(tmp_path, clean_environment))
    assert len(held) > 3
    assert [(name, one) for name, content in held.items() for one in secrets() if one in content] == []


def test_echoes_are_struck_out() -> None:
    """Whatever header a key was sent in, a server that repeats it does not get it into a message."""
    sent = HttpRequest(url="", headers={"x-company": SECOND, "content-type": "application/json"})

    said = _foreign.clean(f"bad key {SECOND} for application/json", sent)

    assert said == "bad key *** for application/json"


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The search itself sees a key in a file and in a compressed column."""
    import pyarrow as pa

    (tmp_path / "log.txt").write_text(f"key={KEY}")
    pq.write_table(pa.table({"a": [KEY] * 3}), tmp_path / "a.parquet", compression="zstd")

    found = {Path(name.split(" ")[0]).name for name, content in written(tmp_path, tmp_path) if KEY.encode() in content}

    assert found == {"log.txt", "a.parquet"}


def test_a_minted_token_is_right(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is signed says who and until when, for a day, and nothing else."""
    from embedctl import settings
    from embedctl.routing import chain

    prepare(WAYS["a key and a minted token"], wire, tmp_path, monkeypatch)
    endpoint = chain.chain(settings.load(flags={"model": f"tldw:{MODEL}"}), wall=lambda: 1_800_000_000.0).first

    sent = endpoint.protocol.request(endpoint.place, MODEL, ["a"], endpoint.wire)

    head, claims, signature = sent.headers["authorization"].removeprefix("Bearer ").split(".")
    assert orjson.loads(base64.urlsafe_b64decode(claims + "==")) == {
        "sub": "user-1",
        "iat": 1_800_000_000,
        "exp": 1_800_086_400,
    }
    wanted = hmac.digest(SECOND.encode(), f"{head}.{claims}".encode(), hashlib.sha256)
    assert base64.urlsafe_b64decode(signature + "==") == wanted
    assert sent.headers["x-api-key"] == KEY
    assert KEY not in repr(sent) + repr(endpoint)
    assert SECOND not in repr(endpoint)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (f'[providers.openai]\nbase_url = "https://user:{KEY}@127.0.0.1/v1"', "holds a key"),
        (f'[providers.openai]\nbase_url = "http://127.0.0.1:9/v1?api_key={KEY}"', "holds a key"),
        ('[providers.openai]\nbase_url = "http://169.254.169.254/v1"', "link-local"),
        ('[providers.openai]\nbase_url = "http://gpu.example/v1"', "plain http"),
    ],
)
def test_addresses_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, said: str) -> None:
    """A key in a URL, a cloud machine's own credentials, plain http to elsewhere: 78, and the key is not repeated."""
    (tmp_path / "config.toml").write_text(config)
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    ended = run("embed", "a.txt", "-m", f"openai:{MODEL}", "--config", "config.toml")

    assert ended.exit_code == 78
    assert said in ended.stderr
    assert KEY not in ended.output


def test_a_redirect_gets_nothing(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect is an error; neither key nor text follows, and no path or query of it is shown."""
    prepare(WAYS["the vendor's variable"], wire, tmp_path, monkeypatch)
    target = f"{wire.base_url()}/elsewhere?token=abc"
    wire.plan(faults={"redirect": {"p": 1.0, "location": target}})

    ended = run("embed", "texts.txt", "-m", f"openai:{MODEL}", "--fallback", "off")

    assert ended.exit_code == 76
    assert "keys and texts do not follow" in ended.stderr
    assert "token=abc" not in ended.output
    assert len(wire.truth()) == 1


def test_a_projects_file_sends_keys_nowhere(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's own file may not say where a key goes."""
    prepare(WAYS["the vendor's variable"], wire, tmp_path, monkeypatch)
    (tmp_path / "embedctl.toml").write_text(f'[providers.openai]\nbase_url = "{wire.base_url()}"\n')

    ended = run("embed", "texts.txt", "-m", f"openai:{MODEL}")

    assert ended.exit_code == 78
    assert "may not set [providers.*]" in ended.stderr
    assert wire.truth() == []


def test_a_keys_file_is_its_owners_alone(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's file that everybody may read is refused."""
    prepare(WAYS["a file"], wire, tmp_path, monkeypatch)
    (tmp_path / "key.txt").chmod(0o644)

    ended = run("embed", "texts.txt", "-m", f"mine:{MODEL}")

    assert ended.exit_code == 78
    assert "chmod 600" in ended.stderr
    assert wire.truth() == []


@pytest.mark.parametrize(
    ("mode", "mine", "sealed", "verdict"),
    [
        (0o600, True, False, "fine"),
        (0o400, True, False, "fine"),
        (0o640, True, False, "warned"),
        (0o440, True, False, "warned"),
        (0o644, True, False, "refused"),
        (0o444, True, False, "refused"),
        (0o660, True, False, "refused"),
        (0o440, False, False, "fine"),  # given to this user's group by the one who may
        (0o444, False, False, "warned"),
        (0o646, False, False, "refused"),
        (0o444, False, True, "fine"),  # Docker
        (0o644, True, True, "fine"),  # Kubernetes, as root
        (0o440, False, True, "fine"),  # Kubernetes with fsGroup, systemd
    ],
)
def test_mounted_secrets(mode: int, mine: bool, sealed: bool, verdict: str) -> None:
    """A mounted secret is taken as it is; a file that others may change, or of one's own for all, is refused."""
    assert exposure(mode, mine=mine, sealed=sealed) == verdict


def test_a_keys_file_for_a_group(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's file that its group may read is used with a warning that names the file, not the key."""
    prepare(WAYS["a file"], wire, tmp_path, monkeypatch)
    (tmp_path / "key.txt").chmod(0o640)

    ended = run("embed", "texts.txt", "-m", f"mine:{MODEL}")

    assert ended.exit_code == 0, ended.stderr
    assert "others than its owner may read the key in" in ended.stderr
    assert KEY not in ended.stderr
    assert wire.truth() != []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_keys_file_of_root(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's file of another user, given to this one's group, needs no word."""
    prepare(WAYS["a file"], wire, tmp_path, monkeypatch)
    os.chown(tmp_path / "key.txt", 4321, 0)
    (tmp_path / "key.txt").chmod(0o440)

    ended = run("embed", "texts.txt", "-m", f"mine:{MODEL}")

    assert (ended.exit_code, "key.txt" in ended.stderr) == (0, False)


# ── allow-lists ──────────────────────────────────────────────────────────────────────────────────────────────────────

GLOBAL = '[allow]\nproviders = ["openai", "onnx"]\n'


@pytest.mark.parametrize(
    ("user", "project", "workspace", "rule"),
    [
        ('[allow]\nproviders = ["onnx"]\n', "", "default", "config.toml"),
        ('[allow]\nmodels = ["all-MiniLM-L6-v2"]\n', "", "default", "config.toml"),
        (GLOBAL, '[allow]\nproviders = ["onnx"]\n', "default", "embedctl.toml"),
        (GLOBAL + '[workspaces.acme]\nproviders = ["onnx"]\n', "", "acme", "[workspaces.acme]"),
        (GLOBAL + '[workspaces.acme]\nmodels = ["text-embedding-3-large"]\n', "", "acme", "[workspaces.acme]"),
        ('[allow]\nproviders = ["onnx"]\n', '[allow]\nproviders = ["openai", "onnx"]\n', "default", "config.toml"),
    ],
)
def test_lists_narrow(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, project: str, workspace: str, rule: str
) -> None:
    """Every list must allow it: a project or a workspace may narrow, never widen; 77 says which list forbids."""
    prepare(WAYS["the vendor's variable"], wire, tmp_path, monkeypatch)
    config = Path(os.environ["EMBEDCTL_CONFIG"])
    config.write_text(f"{config.read_text()}\n{user}")
    if project:
        (tmp_path / "embedctl.toml").write_text(project)

    ended = run("embed", "texts.txt", "-m", f"openai:{MODEL}", "-w", workspace)
    free = run("embed", "texts.txt", "-o", "free.parquet", "-w", workspace)

    assert ended.exit_code == 77
    assert rule in ended.stderr
    assert wire.truth() == []
    assert free.exit_code == (77 if "3-large" in user else 0)


def test_fallback_is_filtered(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that a list forbids does not take over either, and the end says why it was left out."""
    prepare(WAYS["the vendor's variable"], wire, tmp_path, monkeypatch)
    config = Path(os.environ["EMBEDCTL_CONFIG"])
    second = f'[providers.second]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\n'
    config.write_text(f'{config.read_text()}\n{second}[fallback]\nopenai = ["second:{MODEL}"]\n{GLOBAL}')
    wire.plan(script=["quota"])

    ended = run("embed", "texts.txt", "-m", f"openai:{MODEL}")

    assert ended.exit_code == 69
    assert f"not asked: second:{MODEL}: provider 'second' is not in providers of [allow]" in ended.stderr
    assert len(wire.truth()) == 1

"""Object stores on the command line: inputs, outputs that are looked at, options, and every error in one line."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from embedctl.storage import object_store
from tests.support.fault_proxy import FaultProxy
from tests.support.running import Ran, embedctl, rows, user_settings
from tests.support.stores import SECRET, StoreServer

TICKETS = {
    "in/a.csv": "id,text\n1,a broken lamp\n2,\n3,late parcel\n",
    "in/b.csv": "id,text\n4,wrong invoice\n5,a lamp that flickers\n",
}


@pytest.fixture(scope="module")
def filled(s3: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a prefix with inputs below in/, and an output of three shards at out."""
    url = s3.new()
    for name, content in TICKETS.items():
        s3.open(url).put_if_absent(name, content.encode())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "EMBEDCTL_HOME": str(tmp_path_factory.mktemp("home"))}.items():
            patch.setenv(name, value)
        ran = embedctl("batch", "run", f"{url}/in/", "-o", f"{url}/out", "--shard-rows", "1", "--job", "tickets")
    assert ran.code == 0, ran.err
    return url


@pytest.fixture(autouse=True)
def here(tmp_path: Path, s3: StoreServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and the variables by which the store is reached."""
    monkeypatch.chdir(tmp_path)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_inputs_of_a_store_are_embedded_once(filled: str) -> None:
    """A prefix, then the same again: all is reused, and the rows are those of the objects."""
    first = embedctl("embed", f"{filled}/in/*.csv", "-o", "x.parquet", "--json")
    again = embedctl("embed", f"{filled}/in/", "-o", "x.parquet", "--json")

    assert (first.code, first.json["rows"], first.json["vectors"], first.json["skipped"]) == (0, 5, 4, 1)
    assert (again.code, again.json["requests"], again.json["reused"]) == (0, 0, 4)
    assert [row["id"] for row in rows("x.parquet")] == ["1", "3", "4", "5"]


def test_an_output_on_a_store_is_looked_at(filled: str) -> None:
    """`info`, `verify`, `search`, `map` read an address as they read a folder."""
    info = embedctl("vectors", "info", f"{filled}/out", "--format", "json").json
    verified = embedctl("vectors", "verify", f"{filled}/out/", "-i", f"{filled}/in/", "--json")
    hits = embedctl("vectors", "search", f"{filled}/out", "lamps", "--json").json["results"]
    drawn = embedctl("vectors", "map", f"{filled}/out", "-o", "map.html")

    assert (info["path"], info["rows"], info["rows_read"], info["failures"]) == (f"{filled}/out", 4, 5, {"blank": 1})
    assert info["parts"] == 2
    assert (verified.code, verified.json["ok"], verified.json["rows"]) == (0, True, 4)
    assert {hit["id"] for hit in hits[:2]} == {"1", "5"}
    assert drawn.code == 0


def test_a_job_on_a_store_tells_how_it_stands(filled: str) -> None:
    """`batch status` and `batch failures` read the store alone: this machine knows nothing of the job."""
    status = embedctl("batch", "status", f"{filled}/out", "--json").json
    failures = embedctl("batch", "failures", f"{filled}/out", "--json").json

    assert (status["state"], status["job"], status["progress"]) == ("completed", "tickets", 1.0)
    assert status["shards"] == {"total": 2, "done": 2, "begun": 0, "drained": 0, "free": 0}
    assert (status["counts"]["read"], status["counts"]["vectors"], status["counts"]["skipped"]) == (5, 4, 1)
    assert [(one["id"], one["reason"]) for one in failures["failures"]] == [("2", "blank")]
    assert failures["output"] == f"{filled}/out"
    assert "2 of 2 done (100%)" in embedctl("batch", "status", f"{filled}/out").out
    assert (status["working"], status["tokens_unknown"], status["cost_is_lower_bound"]) == ([], 0, False)
    assert Decimal(status["cost"]) == 0


def test_a_row_of_a_job_on_a_store_is_found(filled: str) -> None:
    """`batch status URL --id` says what became of a row: embedded and in which part, skipped and why, or absent."""
    asked = [embedctl("batch", "status", f"{filled}/out", "--id", one, "--json").json for one in ("1", "2", "77")]

    assert [one["state"] for one in asked] == ["embedded", "skipped", "absent"]
    assert asked[0]["part"].startswith("part-00000-")
    assert len(asked[0]["chunks"]) == 1
    assert asked[1]["failure"]["reason"] == "blank"
    assert "skipped" in embedctl("batch", "status", f"{filled}/out", "--id", "2").out


def _copy(s3: StoreServer, source: str) -> tuple[str, Any]:
    """All that is under an address, under another."""
    target = s3.new()
    old, new = s3.open(source), s3.open(target)
    for name in old.list():
        new.put_if_absent(name, old.read(name))
    return target, new


def test_a_part_that_is_missing_or_changed_is_named(filled: str, s3: StoreServer) -> None:
    """The manifest says what must be there; what is not, or has another size, or is more, is wrong."""
    url, store = _copy(s3, f"{filled}/out")
    first, second = (name for name in store.list("part-"))
    content = store.read(first)
    store.remove(first)
    missing = embedctl("vectors", "verify", url, "--json")
    store.put_if_absent("part-99999-000000.parquet", content)
    more = embedctl("vectors", "verify", url, "--json")
    store.remove("part-99999-000000.parquet")
    store.put_if_absent(first, store.read(second))
    changed = embedctl("vectors", "verify", url, "--json")

    assert missing.code == more.code == changed.code == 65
    assert (first, "part_missing") in {(one["where"], one["check"]) for one in missing.json["findings"]}
    assert ("part-99999-000000.parquet", "not_ours") in {(o["where"], o["check"]) for o in more.json["findings"]}
    assert (first, "part_missing") in {(one["where"], one["check"]) for one in changed.json["findings"]}


def test_a_folder_that_was_copied_to_a_store_is_an_output_too(filled: str, s3: StoreServer, here: Path) -> None:
    """What `batch run` and `embed` wrote on a disk is verified where it was copied to."""
    assert embedctl("batch", "run", f"{filled}/in/", "-o", "local").code == 0
    assert embedctl("embed", f"{filled}/in/a.csv", "-o", "one.parquet").code == 0
    url = s3.new()
    store = s3.open(url)
    for path in [*here.rglob("local/*.*"), here / "local/_embedctl/run.json", *here.glob("one.parquet*")]:
        store.put_if_absent(str(path.relative_to(here)), path)

    assert embedctl("vectors", "verify", f"{url}/local").code == 0
    assert embedctl("vectors", "verify", f"{url}/one.parquet").code == 0
    assert embedctl("vectors", "info", f"{url}/one.parquet", "--format", "json").json["rows"] == 2


def test_a_store_may_have_settings_of_its_own(filled: str, s3: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`[stores."s3://bucket"]` says how a bucket is reached; its secrets are variables that it names."""
    for name in s3.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTHER_SECRET", SECRET)
    user_settings(
        f'[stores."s3://bucket"]\nendpoint = "http://127.0.0.1:{s3.port}"\nregion = "us-east-1"\n'
        'virtual_hosted_style_request = false\naccess_key_id = "x"\nsecret_access_key_env = "OTHER_SECRET"\n'
    )
    assert embedctl("embed", f"{filled}/in/a.csv", "-o", "x.parquet").code == 0

    # Flags are stronger.
    ran = embedctl("embed", f"{filled}/in/a.csv", "-o", "y.parquet", "--store-option", "endpoint=http://127.0.0.1:9")
    assert ran.code == 75

    monkeypatch.delenv("OTHER_SECRET")
    ran = embedctl("embed", f"{filled}/in/a.csv", "-o", "z.parquet")
    assert (ran.code, "the variable OTHER_SECRET is not set" in ran.err) == (78, True)


def _one_line(ran: Ran) -> str:
    (line,) = [line for line in ran.err.splitlines() if line.startswith("error:")]
    assert "Traceback" not in ran.err
    assert SECRET not in ran.err + ran.out
    return line


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["embed", "s3://no-such-bucket/x/"], 66, "s3://no-such-bucket: there is no such bucket"),
        (["embed", "s3://bucket/nothing/here/"], 66, "nothing is under s3://bucket/nothing/here/"),
        (["embed", "s3://key:CANARY-store-secret@bucket/x"], 2, "holds credentials"),
        (["embed", "s3://bucket/x", "--store-option", f"secret_access_key={SECRET}"], 78, "is a secret"),
        (["embed", "s3://bucket/x", "--store-option", "endpoint=http://u:p@h/"], 78, "holds a user or password"),
        (["embed", "s3://bucket/x", "--store-option", "regoin=eu"], 78, "regoin is no option of this kind of store"),
        (["embed", "s3://bucket/x", "--store-option", "region"], 2, "is not K=V"),
        (["embed", "s3://bucket/x", "--store-option", "allow_http=perhaps"], 78, "an option or variable"),
        (["embed", "s3://bucket/x", "-o", "s3://bucket/y.parquet"], 2, "is an address"),
        (["embed", "ftp://bucket/x"], 66, "no such file: ftp://bucket/x"),
        (["embed", "az://container/x"], 78, "no storage account is named"),
        (["batch", "status", "s3://bucket/nothing"], 66, "is no output of embedctl"),
        (["vectors", "info", "s3://bucket/nothing"], 66, "nothing is under s3://bucket/nothing"),
        (["vectors", "info", "s3://no-such-bucket/nothing"], 66, "there is no such bucket"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words: list[str], code: int, said: str) -> None:
    """Wrong addresses and options, buckets and objects that are not there: the right code, one line, no secret."""
    ran = embedctl(*words)

    assert ran.code == code, ran.err
    assert said in _one_line(ran)


def test_a_store_that_denies_and_one_that_is_away(
    faulty_s3: tuple[StoreServer, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denied is 77, overloaded and unreachable 75."""
    server, proxy = faulty_s3
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "RETRIES", 0)
    proxy.always = "denied"
    denied = embedctl("embed", "s3://bucket/x/")
    proxy.always = "unavailable"
    busy = embedctl("embed", "s3://bucket/x/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = embedctl("embed", "s3://bucket/x/")

    assert (denied.code, busy.code, away.code) == (77, 75, 75)
    assert "may not list objects (403 AccessDenied)" in _one_line(denied)
    assert "503 SlowDown" in _one_line(busy)
    assert "no connection" in _one_line(away)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address needs obstore: without it the command that installs it is the hint."""
    monkeypatch.setattr(object_store, "installed", lambda: False)
    ran = embedctl("embed", "s3://bucket/x/")

    assert ran.code == 78
    assert "s3://bucket needs a library that is not installed" in ran.err
    assert "pip install 'obstore" in ran.err


@pytest.mark.parametrize("text", ['[stores."s3://bucket"]\nendpoint = "http://h"\n', "[store_option]\nregion = 'x'\n"])
def test_only_the_user_says_where_credentials_go(text: str, here: Path) -> None:
    """Neither a project's file nor a job file may say how a store is reached."""
    (here / "embedctl.toml").write_text(text)
    ran = embedctl("embed", "s3://bucket/x/")
    assert ran.code == 78
    assert "a project's file may not set" in ran.err

    (here / "embedctl.toml").unlink()
    (here / "JOB.toml").write_text(f'input = "s3://bucket/x/"\noutput = "out"\n{text}')
    ran = embedctl("batch", "run", "JOB.toml")
    assert ran.code == 78


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[stores."s3://bucket/prefix"]\nregion = "x"\n', "must be the address of a bucket"),
        ('[stores."bucket"]\nregion = "x"\n', "is no address of a store"),
        (f'[stores."s3://bucket"]\nsecret_access_key = "{SECRET}"\n', "secret_access_key is a secret"),
        (
            f'[stores."s3://bucket"]\nsecret_access_key_env = "{SECRET}"\n',
            "must be the name of an environment variable",
        ),
        ('[stores."s3://bucket"]\nbucket = "other"\n', "bucket cannot be chosen"),
        ('[stores."s3://bucket"]\nregion = [1]\n', "must be a string"),
    ],
)
def test_settings_of_stores_are_checked(text: str, said: str) -> None:
    """A table that is wrong is named with its file and key, never with its value."""
    user_settings(text)
    ran = embedctl("embed", "s3://bucket/x/")

    assert ran.code == 78
    assert said in _one_line(ran)


def test_secrets_of_stores_are_nowhere(filled: str, s3: StoreServer, here: Path, clean_environment: Path) -> None:
    """Neither what is printed, nor the output, the store's objects, the ledger or anything kept holds a credential."""
    ran = embedctl("batch", "run", f"{filled}/in/", "-o", "out", "-v", "--job", "secrets")
    assert ran.code == 0

    kept = [path.read_bytes() for place in (here, clean_environment) for path in place.rglob("*") if path.is_file()]
    store = s3.open(f"{filled}/out")
    stored = [store.read(name) for name in store.list()]
    for content in [*kept, *stored, ran.err.encode(), ran.out.encode()]:
        assert SECRET.encode() not in content
        assert b"CANARY-store-key" not in content

"""A model that changed under us: three fixed texts are embedded again before anything is added to its vectors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.routing.canaries import TEXTS
from tests.support import model_server as models
from tests.support.model_server import Embed, ModelServer, rounded, served, states, unit
from tests.support.places import ROOT
from tests.support.processes import sentence
from tests.support.running import Ran, embedctl, ledger, user_settings
from tests.support.stores import StoreServer
from tests.support.wire.client import Wire

SENTENCES = [
    f"{topic} {place}."
    for topic in (
        "The ferry leaves at seven in the morning from the old pier in",
        "Fresh bread and coffee are sold all day long near the station of",
        "The court found that the contract about the house was void in",
        "Heavy snow closed the road over the pass above the village of",
    )
    for place in ("Bergen", "Trondheim", "Ålesund", "Lisbon and Porto", "Vienna", "a small town in Peru")
]
"""Texts that are near to each other, and to some others, as rows of one's own are."""


def pooled(how: Any) -> Embed:
    """Another pooling of the same model's tokens."""
    return lambda texts: unit(np.stack([how(one) for one in states(texts)]))


def on_vectors(how: Any) -> Embed:
    """Something that becomes of the model's vectors."""
    return lambda texts: np.asarray(how(models.as_it_is(texts)), np.float32)


def tuned(strength: float) -> np.ndarray:
    """A linear map near to none, as training on leaves it."""
    return np.eye(384) + np.random.default_rng(7).normal(0, strength * 3 / np.sqrt(384), (384, 384))


OTHER = np.random.default_rng(11).normal(size=(30522, 384)).astype(np.float32)


def other_model(texts: Any) -> np.ndarray:
    """A model of the same width: the mean of a table's rows."""
    return unit(np.stack([OTHER[one.ids].mean(axis=0) for one in models._tokenizer().encode_batch_fast(list(texts))]))


STOPPED: dict[str, Embed] = {
    "fewer dimensions": on_vectors(lambda vectors: unit(vectors[:, :256])),
    "dimensions cut, then filled with zeros": on_vectors(
        lambda vectors: np.hstack([unit(vectors[:, :256]), np.zeros((len(vectors), 128))])
    ),
    "another model of the same width": other_model,
    "pooling: first token": pooled(lambda one: one[0]),
    "pooling: maximum": pooled(lambda one: one.max(axis=0)),
    "pooling without special tokens": pooled(lambda one: one[1:-1].mean(axis=0)),
    "a prefix before each text": lambda texts: models.as_it_is([f"query: {text}" for text in texts]),
    "a tokenizer that keeps capitals": lambda texts: models.mean(states(texts, lower=False)),
    "texts cut at 16 tokens": lambda texts: models.mean(states(texts, cut=16)),
    "weights in fp8 (e4m3)": lambda texts: models.mean(states(texts, bits=3)),
    "weights in fp8 (e5m2)": lambda texts: models.mean(states(texts, bits=2)),
    "vectors that are not normalised": on_vectors(lambda vectors: vectors * 6.25),
    "trained on": on_vectors(lambda vectors: unit(vectors @ tuned(0.1))),
    "trained on, a little": on_vectors(lambda vectors: unit(vectors @ tuned(0.03))),
}
"""Kinds of change that end a run before a row is bought."""

PASSED: dict[str, tuple[Embed, str]] = {
    "half precision (fp16)": (on_vectors(lambda vectors: vectors.astype(np.float16)), "same"),
    "weights in bfloat16": (lambda texts: models.mean(states(texts, bits=7)), "same"),
    "vectors in int8": (on_vectors(lambda v: unit(np.round(v * 127 / np.abs(v).max()))), "same"),
    "vectors in fp8 (e4m3)": (on_vectors(lambda vectors: rounded(vectors, 3)), "same"),
    "vectors in fp8 (e5m2)": (on_vectors(lambda vectors: rounded(vectors, 2)), "arithmetic"),
    "texts cut at 128 tokens": (lambda texts: models.mean(states(texts, cut=128)), "same"),
    "trained on, hardly": (on_vectors(lambda vectors: unit(vectors @ tuned(0.01))), "same"),
}
"""Other arithmetic, which is no other model; and what three short texts cannot show: a cut at more tokens than they
have, and training that moves them by less than half precision of another kind does."""


@pytest.fixture(scope="module")
def running() -> Iterator[ModelServer]:
    with served() as server:
        yield server


@pytest.fixture(scope="module")
def grown() -> dict[str, Path]:
    """Where a first output and its home stand, once a test has made them."""
    return {}


@pytest.fixture
def model(running: ModelServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelServer:
    """The bundled model as another provider's; canaries are looked at in every run."""
    running.restore()
    monkeypatch.setenv("EMBEDCTL_CANARY", "always")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.chdir(tmp_path)
    user_settings(settings_of(running))
    return running


def settings_of(server: ModelServer, name: str = "mini") -> str:
    return (
        f'model = "{name}:all-MiniLM-L6-v2"\n[providers.{name}]\nprotocol = "openai"\nbase_url = "{server.base_url}"\n'
        'api_key_env = "OPENAI_API_KEY"\n'
    )


def write(count: int = len(SENTENCES), first: int = 0) -> None:
    lines = [
        json.dumps({"id": at, "text": SENTENCES[at % len(SENTENCES)] * (1 + at // len(SENTENCES))})
        for at in range(count)
    ]
    Path("in.jsonl").write_text("\n".join(lines[first:]))


def run(*words: object) -> Ran:
    return embedctl("embed", "in.jsonl", "-o", "out.parquet", "--json", "--no-progress", *words)


@pytest.fixture
def output(model: ModelServer, grown: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ModelServer:
    """An output of some rows, from a first run; one more row is to be added."""
    home = Path(os.environ["EMBEDCTL_HOME"])
    if not grown:
        write()
        assert run().code == 0
        grown["home"] = tmp_path_factory.mktemp("grown") / "home"
        grown["here"] = grown["home"].parent / "here"
        shutil.copytree(home, grown["home"])
        shutil.copytree(Path.cwd(), grown["here"])
    else:
        shutil.copytree(grown["home"], home, dirs_exist_ok=True)
        shutil.copytree(grown["here"], Path.cwd(), dirs_exist_ok=True)
        user_settings(settings_of(model))
    model.restore()
    write(len(SENTENCES) + 1)
    return model


def canary_requests(model: ModelServer) -> int:
    return sum(texts == list(TEXTS) for texts in model.asked)


def test_the_first_run_keeps_what_the_model_makes_of_three_texts(model: ModelServer) -> None:
    """A first run asks for its canaries once, books them as a test, and writes them beside its output."""
    write()
    done = run("-w", "acme")

    assert (done.code, canary_requests(model)) == (0, 1)
    lock = json.loads(Path("out.parquet.space.lock").read_text())
    assert (lock["space_lock"], lock["space"]["dimensions"], len(lock["canaries"]["vectors"])) == (1, 384, 3)
    assert lock["hosts"] == [lock["canaries"]["host"]]
    booked = ledger("SELECT purpose, workspace_id, sum(tokens_total) FROM usage_event GROUP BY ALL ORDER BY 1")
    assert [one[:2] for one in booked] == [("ingest", "acme"), ("test", "acme")]
    assert sum(one[2] for one in booked) == model.tokens


def test_a_run_that_sends_nothing_asks_nothing(output: ModelServer) -> None:
    """Neither a finished run nor one whose texts are all there embeds its canaries."""
    write(10)

    assert run().code == 0
    assert run().code == 0
    assert output.asked == []


def test_once_a_day_is_enough(output: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `daily` the canaries of a day serve all runs and outputs of it; the next day they are asked for again."""
    monkeypatch.setenv("EMBEDCTL_CANARY", "daily")
    assert run().code == 0
    assert embedctl("embed", "in.jsonl", "-o", "second.parquet", "--no-cache", "--no-progress").code == 0
    assert canary_requests(output) == 0
    assert Path("second.parquet.space.lock").exists()

    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    for path in (Path(os.environ["EMBEDCTL_HOME"]) / "canaries").glob("*.json"):
        path.write_text(path.read_text().replace(datetime.now(UTC).date().isoformat(), yesterday))
    write(len(SENTENCES) + 2)
    assert run().code == 0
    assert canary_requests(output) == 1


@pytest.mark.parametrize("change", STOPPED)
def test_another_model_ends_the_run_before_anything_is_bought(output: ModelServer, change: str) -> None:
    """A model that makes other vectors than it did ends the run (76): nothing is written, no row is sent."""
    before = Path("out.parquet").read_bytes()
    output.embed, output.version = STOPPED[change], "all-MiniLM-L6-v2-2027"
    done = run()

    assert done.code == 76, done
    assert Path("out.parquet").read_bytes() == before
    sent = {text for texts in output.asked for text in texts}
    assert not any(text == SENTENCES[0] * 2 for text in sent)
    if change != "fewer dimensions":
        assert "before: 20" in done.err
        assert "version all-MiniLM-L6-v2-2027" in done.err


@pytest.mark.parametrize("change", PASSED)
def test_other_arithmetic_is_no_other_model(output: ModelServer, change: str) -> None:
    """The same weights in half precision raise no alarm; nor does what three short texts cannot show."""
    output.embed, verdict = PASSED[change]
    done = run()

    assert done.code == 0, done.err
    seen = embedctl("vectors", "drift", "out.parquet", "--json").json["hosts"][0]["history"][-1]
    assert seen["verdict"] == verdict
    assert ("other arithmetic" in done.err) == (verdict == "arithmetic")
    sampled = [texts for texts in output.asked if SENTENCES[3] in texts]
    assert len(sampled) == (verdict == "arithmetic")


def test_arithmetic_that_was_looked_into_is_not_looked_into_again(output: ModelServer) -> None:
    """Ranks of the output's own texts are asked for once, not in each run."""
    output.embed = PASSED["vectors in fp8 (e5m2)"][0]
    assert run().code == 0
    write(len(SENTENCES) + 2)
    asked = len(output.asked)
    done = run()

    assert (done.code, done.err) == (0, "")
    assert len(output.asked) == asked + 2


def test_another_name_for_the_same_model_is_a_word(output: ModelServer) -> None:
    """A new version string with the same vectors ends nothing and is said once; --locked stops for it."""
    output.version = "all-MiniLM-L6-v2-2027"
    done = run()
    assert (done.code, "its vectors are the same" in done.err) == (0, True), done
    write(len(SENTENCES) + 2)
    done = run()
    assert (done.code, "its vectors are the same" in done.err) == (0, False), done
    assert embedctl("vectors", "drift", "out.parquet", "--json").json["hosts"][0]["history"][-1]["verdict"] == "version"

    write(len(SENTENCES) + 3)
    locked = run("--locked")
    assert (locked.code, "--locked" in locked.err) == (76, True), locked


def test_on_drift_warn_goes_on(output: ModelServer) -> None:
    """`--on-drift warn` says what changed and goes on; the output is compared with what it began with ever after."""
    output.embed = STOPPED["pooling: first token"]
    done = run("--on-drift", "warn")

    assert done.code == 0
    assert "is not the model that it was: cosine" in done.err
    write(len(SENTENCES) + 2)
    assert run().code == 76


def test_a_new_output_can_begin_with_the_changed_model(output: ModelServer) -> None:
    """--overwrite --on-drift warn embeds all anew, with a lock of its own: from then on there is no alarm."""
    output.embed = STOPPED["pooling: first token"]
    assert run("--overwrite").code == 76
    assert run("--overwrite", "--on-drift", "warn", "--no-cache").code == 0
    write(len(SENTENCES) + 2)

    assert run("--no-cache").code == 0


def test_a_changed_model_takes_what_it_left_in_the_shared_cache_with_it(output: ModelServer) -> None:
    """Vectors of before the change are in no new output: the cache of the model is emptied when the change is seen."""
    output.embed = STOPPED["pooling: first token"]
    words = ("embed", "in.jsonl", "--no-progress")
    stopped = embedctl(*words, "-o", "stopped.parquet")
    done = embedctl(*words, "-o", "new.parquet", "--on-drift", "warn")

    assert stopped.code == 76
    assert "the same command goes on" not in stopped.err, stopped.err
    assert "a new output, under another name and with --on-drift warn" in stopped.err
    assert done.code == 0, done.err
    found = pq.read_table("new.parquet").to_pydict()
    assert np.allclose(np.stack(found["embedding"]), output.embed(found["text"]), atol=1e-5)

    assert run().code == 76
    asked = len(output.asked)
    assert embedctl(*words, "-o", "third.parquet").code == 0
    assert len(output.asked) == asked  # seen again it is no news: what the model makes now stays in the cache


def test_a_sick_server_is_no_changed_model(output: ModelServer) -> None:
    """Canaries are tried again like any request; a server that stays ill ends the run as it would without them."""
    output.fail = [503]
    assert run().code == 0
    output.fail = [401]
    write(len(SENTENCES) + 2)
    assert run().code == 77


def test_another_host_must_agree_with_what_the_output_began_with(output: ModelServer) -> None:
    """An output that goes on with another host is compared with it; one that makes other vectors is refused (76)."""
    with served() as other:
        user_settings(settings_of(other))
        assert run().code == 0
        lock = json.loads(Path("out.parquet.space.lock").read_text())
        assert [str(one.port) in host for one, host in zip((output, other), lock["hosts"], strict=True)] == [True, True]
        other.embed = STOPPED["a prefix before each text"]
        write(len(SENTENCES) + 2)
        done = run()

    assert done.code == 76
    assert "beside" in done.err


def test_locked_buys_nothing_that_differs(output: ModelServer) -> None:
    """--locked names what differs from the lock, and sends nothing (76); without a lock it is 66."""
    done = run("--locked", "--chunk-size", "100")
    assert (done.code, "chunker: none here" in done.out) == (76, True), done
    with served() as other:
        user_settings(settings_of(other))
        done = run("--locked")
    assert (done.code, "host: " in done.out) == (76, True), done
    user_settings(settings_of(output))
    assert output.asked == []
    assert run("--locked").code == 0
    Path("out.parquet.space.lock").unlink()
    assert embedctl("embed", "in.jsonl", "-o", "other.parquet", "--locked", "--no-progress").code == 66


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda lock: lock | {"space_lock": 2}, "is of version 2"),
        (lambda lock: lock | {"space_id": "0" * 32}, "'space_id'"),
        (lambda lock: lock | {"hosts": ["\x1b[31m"]}, "'hosts'"),
        (lambda lock: lock | {"canaries": {**lock["canaries"], "vectors": ["AAAAAA=="] * 3}}, "zero"),
        (lambda lock: lock | {"space": {**lock["space"], "dimensions": 10**9}}, "'dimensions'"),
        (lambda lock: [], "missing"),
        (lambda lock: "x" * (5 << 20), "larger than"),
    ],
)
def test_a_lock_that_is_none_is_one_line(output: ModelServer, damage: Any, word: str) -> None:
    """A damaged, hostile or newer space.lock is 65 in one line, for runs and for those who look; nothing is sent."""
    path = Path("out.parquet.space.lock")
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))

    for words in (["vectors", "info", "out.parquet"], ["embed", "in.jsonl", "-o", "out.parquet", "--no-progress"]):
        done = embedctl(*words)
        assert done.code == 65, done
        assert word in done.err
        assert len(done.err.strip().splitlines()) <= 2
    assert output.asked == []


def test_vectors_lock_info_and_drift_show_the_record(output: ModelServer) -> None:
    """`vectors lock` writes the output's lock for an application, `info` shows it, `drift` shows what runs saw."""
    assert run().code == 0
    done = embedctl("vectors", "lock", "out.parquet", "-o", "app.lock")
    assert (done.code, "canaries of 20" in done.out) == (0, True)
    assert Path("app.lock").read_bytes() == Path("out.parquet.space.lock").read_bytes()
    Path("in.lock").write_text("{}")
    assert embedctl("vectors", "lock", "out.parquet", "-o", "in.lock").code == 73

    about = embedctl("vectors", "info", "out.parquet", "--json").json
    assert about["lock"]["canaries"]["version"] == "all-MiniLM-L6-v2"
    by_file = embedctl("vectors", "drift", "out.parquet", "--json").json
    by_space = embedctl("vectors", "drift", about["space_id"], "--json").json
    assert by_file["hosts"] == by_space["hosts"]
    assert [one["verdict"] for one in by_file["hosts"][0]["history"]] == ["first", "same"]
    assert embedctl("vectors", "drift", "0" * 32).code == 66


def test_a_run_that_is_killed_between_canaries_and_rows_loses_nothing(output: ModelServer) -> None:
    """What the provider bills lies between what the ledger confirms and what it confirms or does not know."""
    command = [sys.executable, "-m", "embedctl", "embed", "in.jsonl", "-o", "out.parquet", "--no-progress"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL) as process:
        output.before = lambda texts: texts == list(TEXTS) or process.send_signal(signal.SIGKILL)
        process.wait(60)
    output.before = lambda texts: None

    assert process.returncode == -signal.SIGKILL
    assert run().code == 0
    query = (
        "SELECT sum(tokens_total), coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0) FROM usage_event"
    )
    confirmed, unknown = ledger(query)[0]
    first = ledger("SELECT sum(tokens_total) FROM usage_event WHERE run_id = (SELECT min(run_id) FROM usage_event)")
    assert confirmed - first[0][0] <= output.tokens <= confirmed - first[0][0] + unknown


def test_batches_are_not_ordered_of_a_changed_model(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--mode batch` looks at the model, online, before it makes a batch and before it reads one; both end with 76."""
    wire.reset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDCTL_CANARY", "always")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", wire.base_url())
    user_settings("[providers.openai]\nbatch = true\nbatch_poll_s = 0.01\nbatch_grace_s = 0.05\n")
    words = ("batch", "run", "in.jsonl", "-o", "out", "-m", "openai:text-embedding-3-small", "--dimensions", 8)

    def with_rows(count: int, *more: str) -> Ran:
        Path("in.jsonl").write_text("".join(json.dumps({"id": at, "text": sentence(at)}) + "\n" for at in range(count)))
        return embedctl(*words, "--mode", "batch", *(more or ["--wait"]), "--json", "--no-progress")

    first = with_rows(6)
    assert (first.code, first.json["duplicates"]) == (0, 0), first
    assert Path("out/_embedctl/space.lock").exists()
    assert sorted(ledger("SELECT purpose, price_tier, sum(input_count) FROM usage_event GROUP BY ALL")) == [
        ("ingest", "batch", 6),
        ("test", "standard", 3),
    ]
    wire.plan(spaces={"text-embedding-3-small": "another"})
    batches = len(wire.batches()["batches"])
    assert with_rows(9).code == 76
    assert len(wire.batches()["batches"]) == batches

    wire.plan()
    wire.plan(batch={"each": {"polls": 1}})
    assert with_rows(9, "--no-wait").code == 75
    wire.plan(spaces={"text-embedding-3-small": "another"})
    stopped = with_rows(9, "--wait")
    assert (stopped.code, stopped.json["vectors"]) == (76, 0), stopped
    assert "--on-drift warn takes what they brought" in stopped.err, stopped.err
    assert "`embedctl batch cancel`" in stopped.err
    assert sum(table.num_rows for table in map(pq.read_table, Path("out").glob("part-*"))) == 6
    assert with_rows(9, "--wait", "--on-drift", "warn").code == 0
    assert [times["batch"] for times in wire.invoice()["texts"].values() if times["batch"]] == [1] * 9


def test_cancelled_batches_of_a_changed_model_are_booked_alone(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`batch cancel` looks at the model, too: of one that changed it books what was done, and the next run takes no
    vector of it, unless it is told to mix.
    """
    wire.reset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDCTL_CANARY", "always")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", wire.base_url())
    user_settings("[providers.openai]\nbatch = true\nbatch_poll_s = 0.01\nbatch_grace_s = 0.05\n")
    words = ("batch", "run", "in.jsonl", "-o", "out", "-m", "openai:text-embedding-3-small", "--dimensions", 8)
    words = (*words, "--mode", "batch", "--job", "nightly", "--no-progress", "--batch-size", 2)

    def table(rows: Iterable[int]) -> None:
        Path("in.jsonl").write_text("".join(json.dumps({"id": at, "text": sentence(at)}) + "\n" for at in rows))

    table(range(6))
    assert embedctl(*words, "--wait").code == 0
    table(range(30))
    wire.plan(batch={"each": {"seconds": 3600, "cancel_polls": 1}})
    assert embedctl(*words, "--no-wait").code == 75
    wire.plan(spaces={"text-embedding-3-small": "another"}, batch={"each": {"seconds": 3600, "cancel_polls": 1}})
    ended = embedctl("batch", "cancel", "nightly", "--json", "--no-progress")
    billed = wire.invoice()["models"]["text-embedding-3-small"]["batch"]
    wire.plan(spaces={"text-embedding-3-small": "another"})
    table(at for at in range(30) if wire.bought(sentence(at))["batch"])  # nothing is left to be bought
    stopped = embedctl(*words, "--wait")

    assert (ended.code, "only --on-drift warn takes it" in ended.err) == (0, True), ended
    assert 0 < ended.json["collected"] < 24
    assert stopped.code == 76, stopped
    assert sum(table.num_rows for table in map(pq.read_table, Path("out").glob("part-*"))) == 6
    booked = "SELECT sum(input_count), sum(tokens_total) FROM usage_event WHERE price_tier = 'batch'"
    assert ledger(booked) == [(6 + ended.json["collected"], billed)]
    mixed = embedctl(*words, "--wait", "--on-drift", "warn", "--json")
    assert (mixed.code, mixed.json["reused"]) == (0, 6 + ended.json["collected"]), mixed


def is_all_of(path: str, embed: Embed) -> bool:
    """Whether every vector of an output is what this model makes of its text."""
    found = pq.read_table(path).to_pydict()
    return np.allclose(np.stack(found["embedding"]), embed(found["text"]), atol=1e-5)


def killed(model: ModelServer, *words: object, requests: int = 2) -> None:
    """A run that is killed when it asks for its so-manieth request of rows."""
    command = [sys.executable, "-m", "embedctl", "embed", "in.jsonl", "-o", "out.parquet", "--no-progress", *words]
    rows = 0

    def before(texts: list[str]) -> None:
        nonlocal rows
        rows += texts != list(TEXTS)
        if rows == requests:
            while not [*(Path(os.environ["EMBEDCTL_HOME"]) / "canaries").glob("*.json")]:
                time.sleep(0.01)  # the first ones travel beside the rows
            process.send_signal(signal.SIGKILL)

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([str(word) for word in command], env=env, stderr=subprocess.DEVNULL) as process:
        model.before = before
        process.wait(60)
    model.before = lambda texts: None
    assert process.returncode == -signal.SIGKILL


def test_an_output_that_is_replaced_holds_nothing_that_the_cache_has_of_before(output: ModelServer) -> None:
    """--overwrite --on-drift warn: what the shared cache gave before the change was seen is made anew, once."""
    output.embed = STOPPED["pooling: first token"]
    done = run("--overwrite", "--on-drift", "warn", "--batch-size", 30)

    assert (done.code, "is not the model that it was" in done.err) == (0, True), done
    assert is_all_of("out.parquet", output.embed)
    assert sorted(text for texts in output.asked for text in texts if texts != list(TEXTS)) == sorted(
        pq.read_table("out.parquet")["text"].to_pylist()
    )
    asked = len(output.asked)
    assert run("--overwrite").code == 0  # all of it is in the cache now
    assert len(output.asked) == asked


def test_an_output_that_is_replaced_holds_nothing_that_a_killed_run_bought_before(output: ModelServer) -> None:
    """What a killed --overwrite left in its journal is taken by the next one, unless the model changed in between."""
    words = ("--overwrite", "--on-drift", "warn", "--no-cache", "--batch-size", "5", "--concurrency", "1")
    killed(output, *words, requests=4)
    output.embed = STOPPED["pooling: first token"]
    assert run(*words).code == 0
    assert is_all_of("out.parquet", output.embed)


def test_a_killed_run_is_not_gone_on_with_by_another_model(model: ModelServer) -> None:
    """A first run was killed; another output's run saw the model change and took it: the first one ends with 76."""
    write()
    words = ("--no-cache", "--batch-size", "5", "--concurrency", "1")
    killed(model, *words)
    model.embed = STOPPED["pooling: first token"]
    other = embedctl("embed", "in.jsonl", "-o", "other.parquet", "--no-progress", *words, "--on-drift", "warn")
    model.asked = []
    stopped = run(*words)

    assert (other.code, stopped.code) == (0, 76), stopped
    assert [texts for texts in model.asked if texts != list(TEXTS)] == []
    assert run(*words, "--overwrite").code == 0
    assert is_all_of("out.parquet", model.embed)


def test_parts_on_a_store_of_before_a_change_are_not_gone_on_with(
    model: ModelServer, s3: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard of a job is done; another output's run saw the model change and took it: the job ends with 76."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    Path("in").mkdir()
    for number in range(2):
        pq.write_table(pa.table({"text": SENTENCES[12 * number :][:12]}), f"in/{number}.parquet")
    job = ("batch", "run", "in", "-o", s3.new(), "--shard-rows", 12, "--no-progress", "--no-wait", "--lease", 1)
    assert embedctl(*job, "--shard", "0/2").code == 75
    model.embed = STOPPED["pooling: first token"]
    write()
    assert run("--no-cache", "--on-drift", "warn").code == 0
    model.asked = []
    stopped = embedctl(*job, "--shard", "1/2")

    assert (stopped.code, "is not the model that it was" in stopped.err) == (76, True), stopped
    assert [texts for texts in model.asked if texts != list(TEXTS)] == []


def test_a_change_that_another_run_saw_is_heeded_in_the_middle_of_a_run(
    output: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has looked today looks again as soon as anybody has seen its model change."""
    monkeypatch.setenv("EMBEDCTL_CANARY", "daily")
    write(len(SENTENCES) + 6)

    def before(texts: list[str]) -> None:
        if texts == list(TEXTS) or output.embed is not models.as_it_is:
            return
        output.embed = STOPPED["pooling: first token"]
        Path("one.txt").write_text("One text.")
        words = ["embed", "one.txt", "-o", "one.parquet", "--no-progress", "--on-drift", "warn"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "EMBEDCTL_CANARY": "always"}
        subprocess.run([sys.executable, "-m", "embedctl", *words], env=env, check=True, capture_output=True)

    output.before = before
    done = run("--batch-size", 1, "--concurrency", 1)
    output.before = lambda texts: None
    assert done.code == 76, done


def test_what_another_host_left_in_the_cache_is_not_taken_after_a_change(output: ModelServer) -> None:
    """Vectors of a host that did not change are in no output of one that did: the two were equal before."""
    settings = settings_of(output) + settings_of(output, "other").split("\n", 1)[1]
    user_settings(settings)
    words = ("embed", "in.jsonl", "--no-progress", "--overwrite", "--batch-size", 30)
    there = Path(os.environ["EMBEDCTL_HOME"]) / "cache.sqlite"
    there.unlink()
    write(len(SENTENCES))
    assert embedctl(*words, "-o", "theirs.parquet", "-m", "other:all-MiniLM-L6-v2").code == 0
    output.embed = STOPPED["pooling: first token"]
    write(len(SENTENCES) + 1)
    assert embedctl(*words, "-o", "new.parquet", "--on-drift", "warn").code == 0
    assert is_all_of("new.parquet", output.embed)


def test_parts_of_before_a_change_are_not_gone_on_with(output: ModelServer) -> None:
    """Parts that an interrupted --overwrite run has published tell when it was begun: after a change they are none."""
    from embedctl.outputs import Existing
    from embedctl.outputs.parquet import Part
    from embedctl.records import UNOBSERVED, RowCounts
    from embedctl.routing import canaries, chain
    from embedctl.runs import space_locks
    from embedctl.settings import load

    settings = load()
    endpoint = chain.endpoint(settings, "mini", "all-MiniLM-L6-v2")
    existing = Existing(parts=[Part(Path("out.parquet"), 384)])
    watch = space_locks.watch(settings, UNOBSERVED, None, existing, endpoint, overwrite=True)
    before = space_locks.without_older(existing, watch)
    canaries.note_change(settings.paths.canaries, canaries.host_of(endpoint), watch.begun_at - 0.001)
    after = space_locks.without_older(existing, watch)
    existing.done = {0: RowCounts()}

    assert before is not None
    assert after is not None
    assert (len(before.parts), len(after.parts)) == (1, 0)
    assert space_locks.without_older(existing, watch) is None

"""`embedctl models`: what may be used, what fits a wish and why, local folders, and models fetched from a hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from embedctl.cli import app
from embedctl.records import Space
from embedctl.tokens import ASSETS
from tests.support import static_models
from tests.support.bad_servers import bad_server
from tests.support.hub import hub
from tests.support.running import user_settings
from tests.support.wire.client import Wire

MINILM = ASSETS / "minilm"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def chosen(*words: str) -> dict[str, Any]:
    ended = run("models", "choose", *words, "--json")
    assert ended.exit_code == 0, ended.output
    return orjson.loads(ended.stdout)


# ── choose ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wishes", "canonical"),
    [
        ([], "openai/text-embedding-3-small"),
        (["--cost", "free"], "sentence-transformers/all-MiniLM-L6-v2"),
        (["--cost", "low"], "openai/text-embedding-3-small"),
        (["--quality", "highest"], "openai/text-embedding-3-large"),
        (["--speed", "fastest"], "sentence-transformers/all-MiniLM-L6-v2"),
        (["--multilingual"], "intfloat/multilingual-e5-large"),
        (["--multilingual", "--quality", "highest"], "openai/text-embedding-3-large"),
        (["--speed", "fastest", "--quality", "highest", "--cost", "free"], "sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_rules_in_order(wishes: list[str], canonical: str) -> None:
    """Cost comes before quality, quality before speed, speed before languages, whatever the order of the flags."""
    said = chosen(*wishes)

    assert said["candidates"][0]["canonical"] == canonical
    assert said["why"]


def test_what_is_not_fulfilled_is_said() -> None:
    """A wish that a stronger one overrules is named."""
    said = chosen("--quality", "highest", "--multilingual")

    assert said["candidates"][0]["model"] == "openai:text-embedding-3-large"
    assert "openai:text-embedding-3-large is not known to work in many languages" in said["warnings"]


@pytest.mark.parametrize("cost", [[], ["--cost", "free"], ["--cost", "low"]])
def test_many_languages_at_a_price(cost: list[str]) -> None:
    """--multilingual chooses a model that is, also among those that are free or cheap."""
    said = chosen("--multilingual", *cost)

    assert {one["multilingual"] for one in said["candidates"]} == {True}
    assert not [line for line in said["warnings"] if "languages" in line]


def test_what_is_free_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place whose key is there is chosen before one without; a missing key is named."""
    without = chosen("--quality", "highest")
    monkeypatch.setenv("AZURE_API_KEY", "azure-key-0123456789")
    with_azure = chosen("--quality", "highest")

    assert without["chosen"] == "openai:text-embedding-3-large"
    assert any("OPENAI_API_KEY" in line for line in without["warnings"])
    assert with_azure["chosen"] == "azure:text-embedding-3-large"


def test_an_input_is_priced(here: Path) -> None:
    """With an input each candidate's cost for it is said."""
    (here / "texts.txt").write_text("word " * 100_000)

    said = chosen("texts.txt", "--cost", "low")

    best = said["candidates"][0]
    assert best["usd_per_million"] == "0.02"
    assert 99_000 <= best["tokens"] <= 101_000
    assert best["cost"].startswith("0.002")


def test_lists_are_heeded(here: Path) -> None:
    """What no list allows is not chosen."""
    (here / "embedctl.toml").write_text('[allow]\nproviders = ["onnx"]\n')

    ended = run("models", "choose", "--quality", "highest")

    assert ended.exit_code == 77


# ── list ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


OWN = """
[providers.gpu]
protocol = "openai"
base_url = "http://127.0.0.1:9/v1"

[providers.eu]
protocol = "openai"
base_url = "https://eu.example/v1"
price_as = "openai"
models = { "text-embedding-3-small" = "deployed" }
"""


def test_models_of_own_places() -> None:
    """A model of a place of one's own is listed and shown once the settings name it, or it has a price."""
    user_settings(OWN)
    before = run("models", "show", "gpu:my-own", "--json")
    assert run("prices", "set", "gpu:my-own", "0.05").exit_code == 0

    listed = {
        (one["provider"], one["model"]): one for one in orjson.loads(run("models", "list", "--json").stdout)["data"]
    }
    shown = orjson.loads(run("models", "show", "gpu:my-own", "--json").stdout)["model"]
    only = orjson.loads(run("models", "list", "--provider", "eu", "--json").stdout)["data"]

    assert (before.exit_code, "prices set" in orjson.loads(before.stdout)["hint"]) == (2, True)
    assert listed["gpu", "my-own"] == shown
    assert (shown["usd_per_million"], shown["status"], shown["dimensions"]) == ("0.05", "own (prices)", None)
    assert [(one["model"], one["usd_per_million"], one["dimensions"]) for one in only] == [
        ("text-embedding-3-small", "0.02", 1536)
    ]


def test_models_that_answered(here: Path, wire: Wire) -> None:
    """A model of a place of one's own is listed once a run got vectors of it."""
    user_settings(OWN.replace("127.0.0.1:9", f"127.0.0.1:{wire.port}"))
    (here / "one.txt").write_text("one")
    assert run("embed", "one.txt", "-m", "gpu:my-own").exit_code == 0

    (found,) = orjson.loads(run("models", "list", "--provider", "gpu", "--json").stdout)["data"]

    assert (found["model"], found["status"], found["usd_per_million"]) == ("my-own", "own (runs)", None)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"])
def test_the_bundled_model_has_two_names(here: Path, name: str) -> None:
    """The weights' full name without a provider is the bundled model: nothing is sent, nothing is paid."""
    (here / "one.txt").write_text("one")

    ended = run("embed", "one.txt", "-m", name, "--dry-run", "--json")

    assert orjson.loads(ended.stdout)["model"] == "onnx:all-MiniLM-L6-v2"


def test_a_provider_that_nobody_knows(here: Path) -> None:
    """The hint names the lines that make it one and who serves the model, or what was meant; the lines work."""
    (here / "one.txt").write_text("one")
    unknown = orjson.loads(run("embed", "one.txt", "-m", "gpu:bge-m3", "--json").stdout)
    misspelt = orjson.loads(run("embed", "one.txt", "-m", "opnai:text-embedding-3-small", "--json").stdout)

    assert (unknown["exit_code"], unknown["message"]) == (2, "unknown provider: 'gpu' (of 'gpu:bge-m3')")
    for word in ("[providers.gpu]", 'protocol = "openai"', 'base_url = "http://127.0.0.1:PORT/v1"', "ollama:bge-m3"):
        assert word in unknown["hint"]
    assert "did you mean 'openai:text-embedding-3-small'?" in misspelt["hint"]

    user_settings('[providers.gpu]\nprotocol = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n')
    assert run("embed", "one.txt", "-m", "gpu:bge-m3", "--dry-run").exit_code == 0


def test_an_unpriced_estimate_says_how_to_price(here: Path) -> None:
    """--dry-run and `usage estimate` of a model without a price name `prices set` and price_as; doing it helps."""
    (here / "one.txt").write_text("one")
    user_settings(OWN)
    words = ("embed", "one.txt", "-m", "gpu:my-own", "--dry-run")

    said = run(*words).output
    estimated = run("usage", "estimate", "one.txt", "-m", "gpu:my-own").output
    (command,) = re.findall(r"`embedctl (prices set gpu:my-own )USD_PER_MILLION`", said)

    assert "price_as under [providers.gpu]" in said
    assert "prices set" in estimated
    assert "price_as under [providers.gpu]" in " ".join(estimated.split())
    assert run(*command.split(), "0.05").exit_code == 0
    assert "cost unknown" not in run(*words).output


def test_list(here: Path) -> None:
    """Each model says whether it is allowed and a default; the lists themselves are in the envelope."""
    (here / "embedctl.toml").write_text('[allow]\nproviders = ["onnx", "openai"]\nmodels = ["all-MiniLM-L6-v2"]\n')

    said = orjson.loads(run("models", "list", "--json").stdout)

    allowed = {(row["provider"], row["model"]) for row in said["data"] if row["allowed"]}
    assert allowed == {("onnx", "all-MiniLM-L6-v2")}
    assert said["allowed_providers"] == ["onnx", "openai"]
    assert said["allowed_models"] == ["all-MiniLM-L6-v2"]
    assert {row["model"] for row in said["data"] if row["default"] and row["provider"] == "onnx"} == {
        "all-MiniLM-L6-v2"
    }


@pytest.mark.parametrize("command", ["list", "choose"])
def test_headings_are_words_of_people(command: str) -> None:
    """The column of models is headed Model."""
    assert run("models", command).stdout.startswith("Model ")


# ── models that run here ─────────────────────────────────────────────────────────────────────────────────────────────


def folder_of(place: Path, **files: Any) -> Path:
    """The bundled model as a sentence-transformers folder."""
    (place / "1_Pooling").mkdir(parents=True)
    shutil.copy(MINILM / "model.onnx", place / "model.onnx")
    shutil.copy(MINILM / "tokenizer.json", place / "tokenizer.json")
    defaults = {
        "config.json": {"hidden_size": 384, "max_position_embeddings": 512},
        "sentence_bert_config.json": {"max_seq_length": 256},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    }
    for name, content in {**defaults, **files}.items():
        (place / name).write_bytes(orjson.dumps(content))
    return place


def embedded(model: str, out: str) -> np.ndarray:
    Path("a.txt").write_text("A short text.")
    ended = run("embed", "a.txt", "-m", model, "-o", out, "--json")
    assert ended.exit_code == 0, ended.output
    return np.array(pq.read_table(out)["embedding"].to_pylist(), dtype=np.float32)


def test_a_folder(here: Path) -> None:
    """A sentence-transformers folder is a model: the same weights give the same vectors, in a space of their own."""
    folder = folder_of(here / "mine")

    ours, bundled = embedded(f"onnx:{folder}", "one.parquet"), embedded("onnx:all-MiniLM-L6-v2", "two.parquet")

    np.testing.assert_array_equal(ours, bundled)
    spaces = [
        orjson.loads(pq.read_metadata(name).metadata[b"embedctl"])["space"] for name in ("one.parquet", "two.parquet")
    ]
    assert spaces[0]["model"].startswith("onnx:mine@")
    assert spaces[0] != spaces[1]


def spaced(name: str) -> dict[str, Any]:
    """The space of an output."""
    found: dict[str, Any] = orjson.loads(pq.read_metadata(name).metadata[b"embedctl"])["space"]
    return found


def in_words(folder: Path) -> None:
    """Another tokenizer: it keeps capitals."""
    path = folder / "tokenizer.json"
    said = orjson.loads(path.read_bytes())
    said["normalizer"]["lowercase"] = False
    path.write_bytes(orjson.dumps(said))


def in_cls(folder: Path) -> None:
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_bytes(orjson.dumps(modes))


def in_length(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_bytes(orjson.dumps({"max_seq_length": 100}))


@pytest.mark.parametrize("change", [in_words, in_cls, in_length])
def test_a_folder_is_known_by_all_that_makes_its_vectors(here: Path, change: Any) -> None:
    """Another tokenizer, pooling or longest text is another space: nothing is added to the output (73), nor found."""
    folder = folder_of(here / "mine")
    embedded(f"onnx:{folder}", "one.parquet")
    change(folder)
    Path("a.txt").write_text("Another short text.")
    ended = run("embed", "a.txt", "-m", f"onnx:{folder}", "-o", "one.parquet")

    assert (ended.exit_code, "revision: 'files:" in ended.output) == (73, True), ended.output
    asked = run("vectors", "search", "one.parquet", "text")
    assert (asked.exit_code, "revision: 'files:" in asked.output) == (2, True), asked.output
    assert run("embed", "a.txt", "-m", f"onnx:{folder}", "-o", "one.parquet", "--overwrite").exit_code == 0


def test_an_output_of_before_a_folder_was_known_so_is_gone_on_with(here: Path) -> None:
    """An older version's space said nothing of the tokenizer: its output is gone on with, with a word, in its space."""
    folder = folder_of(here / "mine")
    embedded(f"onnx:{folder}", "one.parquet")
    said = orjson.loads(pq.read_metadata("one.parquet").metadata[b"embedctl"])
    old = Space(**{**said["space"], "revision": None})
    said |= {"space": old.as_dict(), "space_id": old.space_id}
    table = pq.read_table("one.parquet")
    pq.write_table(table.replace_schema_metadata({b"embedctl": orjson.dumps(said)}), "one.parquet")
    Path("a.txt").write_text("A short text.\nAnother one.\n")

    words = ("embed", "a.txt", "--split", "lines", "-m", f"onnx:{folder}", "-o", "one.parquet", "--json")
    ended = run(*words)
    assert ended.exit_code == 0, ended.output
    assert ended.stderr.count("begun by an older version") == 1
    assert (orjson.loads(ended.stdout)["reused"], spaced("one.parquet")["revision"]) == (1, None)
    assert run("vectors", "search", "one.parquet", "text").exit_code == 0
    assert run("vectors", "lock", "one.parquet").exit_code == 0
    again = run(*words)
    assert (again.exit_code, orjson.loads(again.stdout)["requests"]) == (0, 0)
    assert run(*words, "--overwrite").exit_code == 0
    assert spaced("one.parquet")["revision"].startswith("files:")
    assert "older version" not in run(*words).stderr


def test_cls_pooling(here: Path) -> None:
    """A folder that pools by its first token gives other vectors than one that takes the mean."""
    cls = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = folder_of(here / "cls", **{"1_Pooling/config.json": cls})

    ours, mean = embedded(f"onnx:{folder}", "one.parquet"), embedded("onnx:all-MiniLM-L6-v2", "two.parquet")

    assert ours.shape == mean.shape
    assert not np.allclose(ours, mean)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_lasttoken": True}}, "pools by lasttoken"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "a step that is not ours: Dense"),
    ],
)
def test_a_folder_that_works_otherwise(here: Path, files: dict[str, Any], said: str) -> None:
    """A model that is pooled or projected in a way that is not ours is refused, not embedded wrongly."""
    folder = folder_of(here / "other", **files)
    Path("a.txt").write_text("A short text.")

    ended = run("embed", "a.txt", "-m", f"onnx:{folder}")

    assert ended.exit_code == 78
    assert said in ended.stderr


def test_no_such_local_model(here: Path) -> None:
    """A local model that is not here says how to get it; the bundled one never stands in for it."""
    Path("a.txt").write_text("A short text.")

    ended = run("embed", "a.txt", "-m", "onnx:intfloat/e5-small")

    assert ended.exit_code == 78
    assert "there is no local model 'intfloat/e5-small'" in ended.stderr
    assert "models pull intfloat/e5-small" in ended.stderr
    assert not Path("a.embeddings.parquet").exists()


def test_warmup() -> None:
    """The time to load, to the first vector and to the next one."""
    said = orjson.loads(run("models", "warmup", "--json").stdout)

    assert said["model"] == "onnx:all-MiniLM-L6-v2"
    assert said["dimensions"] == 384
    assert said["load_s"] >= 0
    assert said["next_vector_s"] > 0


def test_warmup_of_a_remote_model() -> None:
    """What does not run here is not warmed up."""
    ended = run("models", "warmup", "openai:text-embedding-3-small")

    assert ended.exit_code == 2
    assert "providers test openai" in ended.stderr


# ── pull ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def published() -> dict[str, bytes]:
    return {
        "onnx/model.onnx": (MINILM / "model.onnx").read_bytes(),
        "tokenizer.json": (MINILM / "tokenizer.json").read_bytes(),
        "config.json": orjson.dumps({"hidden_size": 384}),
        "pytorch_model.bin": b"not wanted",
    }


def test_pull(monkeypatch: pytest.MonkeyPatch, clean_environment: Path) -> None:
    """A repository's ONNX files are fetched, and nothing else of it; then onnx:OWNER/NAME is a model."""
    with hub(published()) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        ended = run("models", "pull", "me/model", "--json")

    assert ended.exit_code == 0, ended.output
    said = orjson.loads(ended.stdout)
    place = clean_environment / "models" / "me--model"
    assert (said["model"], said["dimensions"], said["pooling"]) == ("onnx:me/model", 384, "mean")
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == {
        "onnx/model.onnx",
        "tokenizer.json",
        "config.json",
    }
    assert sha256((place / "onnx/model.onnx").read_bytes()).digest() == sha256(published()["onnx/model.onnx"]).digest()
    np.testing.assert_array_equal(embedded("onnx:me/model", "one.parquet"), embedded("all-MiniLM-L6-v2", "two.parquet"))


def test_a_pulled_model_is_listed_as_it_is_called(monkeypatch: pytest.MonkeyPatch, clean_environment: Path) -> None:
    """`models list` and `show` have a pulled model before it was ever used, under the name that asks for it."""
    with hub(published()) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        run("models", "pull", "me/model")
    (clean_environment / "models" / "no--model").mkdir()
    found = orjson.loads(run("models", "list", "--json").stdout)["data"]
    listed = [row for row in found if row["status"] == "own (pulled)"]
    shown = orjson.loads(run("models", "show", "onnx:me/model", "--json").stdout)["model"]

    assert [(row["called"], row["dimensions"], row["usd_per_million"]) for row in listed] == [
        ("onnx:me/model", 384, "free")
    ]
    assert shown == listed[0]
    assert "onnx:me/model" in run("models", "show", "onnx:me/model").stdout
    Path("x.txt").touch()
    assert "onnx:me/model" in run("embed", "x.txt", "-m", "me/model").stderr


@pytest.mark.parametrize(
    "endpoint", ["not a url", "huggingface.co", "http://", "http://[::1", "http://127.0.0.1:99999", "file:///etc"]
)
@pytest.mark.parametrize("words", [["models", "pull", "me/model"], ["embed", "hf://datasets/org/name/a.parquet"]])
def test_an_odd_endpoint_is_one_line(monkeypatch: pytest.MonkeyPatch, words: list[str], endpoint: str) -> None:
    """HF_ENDPOINT that is no address is named, and not repeated (78), whoever asks the hub."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    ended = run(*words)

    assert ended.exit_code == 78
    assert ended.stderr.splitlines() == [
        "error: HF_ENDPOINT is no address of a hub",
        "hint: like https://huggingface.co, which it is when it is not set",
    ]


@pytest.mark.parametrize("words", [["models", "pull", "me/model"], ["embed", "hf://datasets/org/name/a.parquet"]])
def test_what_is_no_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """An address at which something else answers is one line that names HF_ENDPOINT (78)."""
    with bad_server("page") as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        ended = run(*words)

    assert ended.exit_code == 78, ended.stderr
    assert "the hub does not answer as a hub does" in ended.stderr.splitlines()[0]
    assert ended.stderr.splitlines()[1:] == ["hint: look at HF_ENDPOINT: it leads to something else"]


@pytest.mark.parametrize("variable", ["HF_HUB_DOWNLOAD_TIMEOUT=soon", "HF_HUB_ETAG_TIMEOUT="])
def test_a_library_that_does_not_start_is_one_line(variable: str) -> None:
    """Variables that huggingface_hub fails with when it is imported are named (78)."""
    name, _, value = variable.partition("=")
    command = [sys.executable, "-m", "embedctl", "models", "pull", "me/model"]
    ended = subprocess.run(command, env={**os.environ, name: value}, capture_output=True, text=True, check=False)

    assert ended.returncode == 78, ended.stderr
    assert ended.stderr.splitlines() == [
        "error: huggingface_hub does not start: ValueError",
        f"hint: look at {name}",
    ]


@pytest.mark.parametrize(
    ("name", "files", "code", "said"),
    [
        ("me/other", published, 78, "there is no repository me/other"),
        ("me/model", lambda: {"config.json": b"{}"}, 78, "me/model holds no model.onnx"),
        ("nonsense", published, 2, "not a repository: 'nonsense'"),
    ],
)
def test_pull_of_nothing(
    monkeypatch: pytest.MonkeyPatch, clean_environment: Path, name: str, files: Any, code: int, said: str
) -> None:
    """What cannot be fetched says why, and leaves nothing behind."""
    with hub(files()) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        ended = run("models", "pull", name)

    assert ended.exit_code == code, ended.output
    assert said in ended.stderr
    assert not list((clean_environment / "models").glob("*"))


def test_pull_without_network(monkeypatch: pytest.MonkeyPatch, clean_environment: Path) -> None:
    """A hub that is not reached is one line (69), whichever HTTP client its library brings."""
    with bad_server("refuses") as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        ended = run("models", "pull", "me/model")

    assert ended.exit_code == 69, ended.output
    assert ended.stderr.startswith("error: the hub cannot be reached: ")
    assert not list((clean_environment / "models").glob("*"))


@pytest.mark.parametrize(
    ("words", "code"), [(["models", "pull", "me/model"], 69), (["embed", "hf://datasets/org/name/a.parquet"], 75)]
)
def test_a_silent_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, words: list[str], code: int) -> None:
    """A hub that takes the connection and says nothing is one line, whoever asks it; an input's run may go on later."""
    monkeypatch.setattr("embedctl.storage.hub_access.ANSWER_S", 0.5)
    with bad_server("silent") as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        ended = run(*words)

    assert ended.exit_code == code, ended.output
    assert "the hub cannot be reached" in ended.stderr.splitlines()[0]


def test_a_damaged_file_is_not_pulled(monkeypatch: pytest.MonkeyPatch, clean_environment: Path) -> None:
    """Weights that are not the ones whose digest the hub names are refused, and nothing of them stays."""
    with hub(published(), damaged="onnx/model.onnx") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        ended = run("models", "pull", "me/model")

    assert ended.exit_code == 78, ended.output
    assert "onnx/model.onnx of me/model is not the file that the hub names" in ended.stderr
    assert not list((clean_environment / "models").glob("*"))


def test_pull_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without huggingface_hub the command says what is missing and how to install it."""
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    ended = run("models", "pull", "me/model")

    assert ended.exit_code == 78
    assert "pip install 'huggingface-hub>=0.30'" in ended.stderr


# ── static models ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_static_folder(here: Path) -> None:
    """A folder that model2vec saved is a model: vectors, tokens, cost 0, and a space that its files make."""
    folder = static_models.saved(here / "words")
    Path("a.txt").write_text("The cell is charged.")

    ended = run("embed", "a.txt", "-m", f"static:{folder}", "-o", "one.parquet", "--json")

    said = orjson.loads(ended.stdout)
    space = orjson.loads(pq.read_metadata("one.parquet").metadata[b"embedctl"])["space"]
    assert (ended.exit_code, said["vectors"], said["tokens"], said["cost"]) == (0, 1, 5, "0.00")
    assert (said["usage_source"], said["dimensions"]) == ("native", static_models.WIDTH)
    assert re.fullmatch(r"static:words@[0-9a-f]{16}", space["model"])
    assert space["normalized"] is True
    assert pq.read_table("one.parquet")["embedding_tokens"].to_pylist() == [5]


def test_another_table_is_another_space(here: Path) -> None:
    """An output goes on with the same files under any path of that name, and never with another table."""
    folder = static_models.saved(here / "words")
    embedded(f"static:{folder}", "one.parquet")
    shutil.move(folder, here / "elsewhere" / "words")
    again = run("embed", "a.txt", "-m", "static:elsewhere/words", "-o", "one.parquet", "--json")
    static_models.saved(here / "elsewhere" / "words", embeddings=static_models.table(seed=8))
    other = run("embed", "a.txt", "-m", "static:elsewhere/words", "-o", "one.parquet")

    assert (again.exit_code, orjson.loads(again.stdout)["reused"]) == (0, 1)
    assert other.exit_code == 73


def test_rows_without_a_vector_of_a_static_model(here: Path) -> None:
    """Too long, blank, and of no known word: each such row is named with its reason; the others have vectors."""
    folder = static_models.saved(here / "words", config={"max_length": 6})
    texts = ["noon", "", "xyzzy", "noon " * 7, "parcels leave", "日本 日本", "short"]
    Path("rows.jsonl").write_bytes(
        b"".join(orjson.dumps({"id": i, "text": text}) + b"\n" for i, text in enumerate(texts))
    )

    ended = run("embed", "rows.jsonl", "-m", f"static:{folder}", "-o", "one.parquet", "--json")

    failures = [orjson.loads(line) for line in Path("one.parquet.failures.jsonl").read_bytes().splitlines()]
    assert ended.exit_code == 3
    assert {one["id"]: one["reason"] for one in failures} == {
        1: "blank",
        2: "text_refused",
        3: "too_long",
        5: "text_refused",
    }
    assert pq.read_table("one.parquet")["id"].to_pylist() == [0, 4, 6]


def test_a_static_folder_is_no_onnx_model(here: Path) -> None:
    """A static model that is asked for as an ONNX one says how it is called."""
    folder = static_models.saved(here / "words")
    Path("a.txt").write_text("A short text.")

    ended = run("embed", "a.txt", "-m", f"onnx:{folder}")

    assert ended.exit_code == 78
    assert f"-m static:{folder}" in ended.stderr


def test_pull_of_a_static_model(monkeypatch: pytest.MonkeyPatch, clean_environment: Path, here: Path) -> None:
    """A repository that model2vec made is fetched without its ONNX export; then static:OWNER/NAME is a model."""
    published = static_models.files(static_models.saved(here / "published"))
    with hub({**published, "onnx/model.onnx": b"not wanted", "pytorch_model.bin": b"not wanted"}) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        ended = run("models", "pull", "me/model", "--json")

    assert ended.exit_code == 0, ended.output
    said = orjson.loads(ended.stdout)
    place = clean_environment / "models" / "me--model"
    assert (said["model"], said["dimensions"], said["max_tokens"]) == ("static:me/model", static_models.WIDTH, 512)
    assert static_models.files(place) == published
    np.testing.assert_array_equal(
        embedded("static:me/model", "one.parquet"), embedded(f"static:{here / 'published'}", "two.parquet")
    )


@pytest.mark.parametrize("tensors", [{"head": static_models.table()}, {"embeddings": static_models.table()[0]}])
def test_pull_of_a_static_model_that_is_none(
    monkeypatch: pytest.MonkeyPatch, clean_environment: Path, here: Path, tensors: dict[str, Any]
) -> None:
    """What is published as a static model and holds no table is refused, and leaves nothing behind."""
    with hub(static_models.files(static_models.saved(here / "published", **tensors))) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        ended = run("models", "pull", "me/model")

    assert ended.exit_code == 78
    assert "me/model/model.safetensors" in ended.stderr
    assert not list((clean_environment / "models").glob("*"))


@pytest.mark.parametrize(
    "words",
    [("list",), ("list", "--provider", "static"), ("show", "static:minishlab/potion-base-8M"),
     ("choose", "--speed", "fastest"), ("choose", "--cost", "free")],
)  # fmt: skip
def test_what_static_models_lose_is_said(words: tuple[str, ...]) -> None:
    """Where a static model is listed, shown or would fit, it is said what it loses against a small transformer."""
    said = orjson.loads(run("models", *words, "--json").stdout)

    assert [line for line in said["warnings"] if "82 % of all-MiniLM-L6-v2's retrieval score" in line]
    assert "82 % of all-MiniLM-L6-v2's" in " ".join(run("models", *words).stdout.split())


@pytest.mark.parametrize("words", [("list", "--provider", "openai"), ("choose", "--quality", "highest")])
def test_nothing_is_lost_where_none_is(words: tuple[str, ...]) -> None:
    """No word of it where there is no static model."""
    assert not any("static" in line for line in orjson.loads(run("models", *words, "--json").stdout)["warnings"])


def test_warmup_of_a_static_model(here: Path) -> None:
    """A static model is warmed up like any that runs here."""
    folder = static_models.saved(here / "words")

    assert (
        orjson.loads(run("models", "warmup", f"static:{folder}", "--json").stdout)["dimensions"] == static_models.WIDTH
    )

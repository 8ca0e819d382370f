"""Servers behind a gateway of OpenAI's dialect: what gets through, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Ran, embedctl, ledger, user_settings
from tests.support.wire.client import Wire, started

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as one:
        yield one


@pytest.fixture
def wire(server: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wire:
    server.reset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATE_KEY", KEY)
    (tmp_path / "texts.txt").write_text("\n".join(f"line {number} of a text" for number in range(4)))
    return server


def gate(wire: Wire, more: str = "", options: str = "") -> None:
    """A place of the OpenAI dialect with a name of its own."""
    url = wire.base_url("gateway")
    user_settings(
        f'[providers.gate]\nprotocol = "openai"\nbase_url = "{url}"\napi_key_env = "GATE_KEY"\n'
        f"options = {{ {options} }}\n{more}"
    )


def embed(model: str, *more: object) -> Ran:
    return embedctl("embed", "texts.txt", "--split", "lines", "-m", f"gate:{model}", "--retries", "0", *more)


# ── input types ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["embed-v4.0", "voyage-4", "nobody-knows-it"])
def test_an_input_type_that_would_be_lost(wire: Wire, model: str) -> None:
    """`--input-type query` is refused (2) where the place cannot hand it on; nothing is sent, and the key is named."""
    gate(wire)

    done = embed(model, "--input-type", "query")

    assert done.code == 2
    assert "input_type_field" in done.err
    assert wire.truth() == []


@pytest.mark.parametrize(
    ("model", "document", "query"),
    [
        ("embed-v4.0", "search_document", "search_query"),
        ("voyage-4", "document", "query"),
        ("nobody-knows-it", "document", "query"),
    ],
)
def test_an_input_type_field(wire: Wire, model: str, document: str, query: str) -> None:
    """Where the place names its field, the type goes there in the words of whoever makes the model."""
    gate(wire, options='input_type_field = "input_type"')

    codes = [embed(model, "-o", "a.parquet", "--input-type", word).code for word in ("document",)]
    codes.append(embed(model, "-o", "b.parquet", "--input-type", "query").code)

    assert codes == [0, 0]
    assert [one["input_type"] for one in wire.truth()] == [document, query]


def test_what_was_not_asked_for_is_said(wire: Wire) -> None:
    """Without the flag the run goes on, and one line says that the model is not told."""
    gate(wire)

    done = embed("embed-v4.0")

    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if "'document'" in line] != []


def test_search_says_it(wire: Wire) -> None:
    """`vectors search` asks as a query: sent where the place has a field, said where it has none."""
    gate(wire)
    assert embed("embed-v4.0", "-o", "a.parquet").code == 0
    lost = embedctl("vectors", "search", "a.parquet", "line 2")
    gate(wire, options='input_type_field = "input_type"')
    sent = embedctl("vectors", "search", "a.parquet", "line 2")

    assert (lost.code, sent.code) == (0, 0), lost.err + sent.err
    assert "'query'" in lost.err
    assert "'query'" not in sent.err
    assert [one["input_type"] for one in wire.truth()][-2:] == [None, "search_query"]


def test_symmetric_models_are_told_nothing(wire: Wire) -> None:
    """A model that tells no types apart takes any input type, and nothing is sent or said."""
    gate(wire, options='input_type_field = "input_type"')

    done = embed("text-embedding-3-small", "--input-type", "query")

    assert (done.code, done.err.count("input type")) == (0, 0)
    assert [one["input_type"] for one in wire.truth()] == [None]


# ── who answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_model_is_said(wire: Wire) -> None:
    """A server that says it answers from another model: one line on stderr, once a run."""
    gate(wire)
    wire.plan(faults={"other_model": {"p": 1.0, "model": "all-the-same"}})

    done = embed("text-embedding-3-small", "--batch-size", "1")

    assert done.code == 0
    assert [line for line in done.err.splitlines() if "all-the-same" in line] != []
    assert done.err.count("all-the-same") == 1


# ── money ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["openai:text-embedding-3-small", "openai/text-embedding-3-small"])
def test_whose_prices_is_no_part_of_the_name(wire: Wire, name: str) -> None:
    """`price_as` names whose prices; a gateway's prefix of the same name is no part of the model's."""
    gate(wire, more='price_as = "openai"\n')

    done = embed(name, "--json", "--max-cost", "1")

    assert done.code == 0, done.err
    assert float(done.json["cost"]) > 0
    embedctl("usage", "ingest")
    assert ledger("SELECT count(*) FROM usage_event WHERE cost IS NULL OR cost = 0") == [(0,)]


def test_another_providers_prefix_has_no_price(wire: Wire) -> None:
    """A prefix that names another than `price_as` is not taken off: its model is not priced as somebody else's."""
    gate(wire, more='price_as = "openai"\n')

    done = embed("cohere:text-embedding-3-small", "--json")

    assert done.code == 0, done.err
    assert done.json["cost"] is None


@pytest.mark.parametrize(
    ("said", "kept"),
    [("2.4e-06", "0.0000024"), ("0.0", None), ("None", None), ("-1", None), ("1e9", None), ("nan", None)],
)
def test_a_cost_in_a_header(wire: Wire, said: str, kept: str | None) -> None:
    """LiteLLM's stated cost is kept within the bounds of one in a body; its 0 means that it knows no price."""
    gate(wire, more='price_as = "openai"\n')
    wire.plan(faults={"says": {"p": 1.0, "headers": {"x-litellm-response-cost": said}, "more": {}}})

    done = embed("text-embedding-3-small", "--json")

    assert done.code == 0, done.err
    embedctl("usage", "ingest")
    found: Any = ledger("SELECT cost_provider, cost > 0 FROM usage_event")
    assert [(None if cost is None else f"{cost.normalize():f}", positive) for cost, positive in found] == [(kept, True)]


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("quoted", ['"{}"', "'{}'", ' "{}"\n'])
def test_a_key_in_the_quotes_of_an_env_file(wire: Wire, monkeypatch: pytest.MonkeyPatch, quoted: str) -> None:
    """Quotes that an env file left around a key are taken off, from a variable and from a file."""
    gate(wire)
    wire.plan(keys=[KEY])
    monkeypatch.setenv("GATE_KEY", quoted.format(KEY))

    assert embed("text-embedding-3-small").code == 0

    Path("key").write_text(quoted.format(KEY))
    Path("key").chmod(0o600)
    monkeypatch.delenv("GATE_KEY")
    monkeypatch.setenv("GATE_KEY_FILE", "key")
    assert embed("text-embedding-3-small", "-o", "again.parquet", "--no-cache").code == 0


@pytest.mark.parametrize("key", ['"' + KEY, KEY + "'", f"\"{KEY}'"])
def test_a_key_with_half_its_quotes(wire: Wire, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A key with one quote is refused with a word (78) before anything is sent; the key is not shown."""
    gate(wire)
    monkeypatch.setenv("GATE_KEY", key)

    done = embed("text-embedding-3-small")

    assert done.code == 78
    assert "quote" in done.err
    assert KEY not in done.err
    assert wire.truth() == []

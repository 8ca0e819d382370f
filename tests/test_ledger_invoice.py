"""The ledger is the provider's invoice, for every protocol, and never further off than it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from processes import World, Zygote, sentence, zygote

from embedctl import catalog, providers
from tests.wire.client import Wire, started

MODELS = {
    "openai": "text-embedding-3-small",
    "azure": "text-embedding-3-small",
    "cohere": "embed-v4.0",
    "voyage": "voyage-4",
    "google": "gemini-embedding-001",
    "mistral": "mistral-embed",
    "jina": "jina-embeddings-v3",
    "huggingface": "sentence-transformers/all-MiniLM-L6-v2",
    "tei": "tei-model",
    "ollama": "all-minilm",
    "nomic": "nomic-embed-text-v1.5",
    "bedrock": "amazon.titan-embed-text-v2:0",
    "tldw": "text-embedding-3-small",
    "json": "any",
}
JSON_CONFIG = """
path = "/make"
body = { documents = "{texts}", model_name = "{model}" }
vectors = "result.items[].vec"
index = "result.items[].n"
tokens = "spent.tokens"
each = { body = "{text}" }
"""
FAULTS = {
    "rate": {"p": 0.02, "form": "ms", "seconds": 0.02},
    "status": {"p": 0.05, "status": 503, "form": "ms", "seconds": 0.02},
    "reset_before": 0.03,
    "reset_after": 0.06,
    "truncated": 0.05,
    "count": 0.04,
}
TEXTS = 240
FEWER = {"bedrock": 40}  # one text a request
SHAPE = ("--batch-size", "8", "--rpm", "0", "--tpm", "0", "--fallback", "off", "--no-cache", "-q")


class Place(World):
    """A world in which one provider is the wire server."""

    def of(self, name: str) -> Place:
        """Settings and keys for this protocol."""
        (self.folder / "config.toml").write_text(
            f'[providers.{name}]\nprotocol = "{name}"\nbase_url = "{self.wire.base_url(name)}"\n'
            + (JSON_CONFIG if name == "json" else "")
        )
        self.keys = {key: "test-key" for key in (catalog.providers()[name].api_key_env if name != "json" else ())}
        return self

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")},
            "HOME": str(self.folder / "home"),
            "EMBEDCTL_HOME": str(self.home),
            "EMBEDCTL_CONFIG": str(self.folder / "config.toml"),
            **self.keys,
        }

    def rows_of_ledger(self) -> list[dict[str, Any]]:
        """Every event, after taking in what waits."""
        assert self.run("usage", "ingest").code == 0
        with duckdb.connect(str(self.home / "usage.duckdb"), read_only=True) as connection:
            cursor = connection.execute(
                "SELECT event_id::VARCHAR AS event_id, billable, tokens_total, tokens_estimated, usage_source FROM usage_event"
            )
            header = [column[0] for column in cursor.description]
            return [dict(zip(header, row, strict=True)) for row in cursor.fetchall()]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with started() as server:
        yield server


@pytest.fixture(scope="module")
def forks() -> Iterator[Zygote]:
    with zygote() as process:
        yield process


@dataclass(frozen=True)
class Books:
    """Both sides' books of one run."""

    requests: int
    events: int
    billed: int
    confirmed: int
    unknown: int
    sources: set[str]


def kept(name: str, folder: Path, wire: Wire, forks: Zygote, **plan: Any) -> Books:
    """The books after a run of this protocol."""
    wire.reset()
    wire.plan(**plan)
    world = Place(folder, wire, forks, slot_bytes=1 << 20).of(name)
    world.table([sentence(number) for number in range(FEWER.get(name, TEXTS))])
    ended = world.run("embed", "in.parquet", "-o", "out.parquet", "-m", f"{name}:{MODELS[name]}", *SHAPE)
    assert ended.code == 0, ended.err
    rows = world.rows_of_ledger()
    assert len({row["event_id"] for row in rows}) == len(rows)
    return Books(
        requests=len(wire.truth()),
        events=len(rows),
        billed=wire.billed(),
        confirmed=sum(row["tokens_total"] for row in rows if row["billable"] == "yes"),
        unknown=sum(row["tokens_estimated"] for row in rows if row["billable"] == "unknown"),
        sources={row["usage_source"] for row in rows if row["billable"] == "yes"},
    )


def test_every_protocol_is_billed_here() -> None:
    """No protocol that is sent anywhere stays outside of this suite."""
    assert set(MODELS) == {name for name in providers.PROTOCOLS if not providers.is_local(name)}


@pytest.mark.parametrize("name", MODELS)
def test_ledger_is_the_invoice(name: str, tmp_path: Path, wire: Wire, forks: Zygote) -> None:
    """Without faults every request is one event, and their tokens are what the provider billed, to the token."""
    books = kept(name, tmp_path, wire, forks)

    assert books.events == books.requests
    assert books.unknown == 0
    assert (books.confirmed, books.sources) == (books.billed, {"native"})


@pytest.mark.parametrize("name", MODELS)
def test_faults_are_bounded(name: str, tmp_path: Path, wire: Wire, forks: Zygote) -> None:
    """Under faults every request is one event, and confirmed <= invoice <= confirmed + unknown."""
    books = kept(name, tmp_path, wire, forks, faults=FAULTS, seed=len(name))

    assert books.events == books.requests > 30
    assert books.confirmed <= books.billed <= books.confirmed + books.unknown

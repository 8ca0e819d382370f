"""The ledger is the provider's invoice, for every protocol, and never further off than it says."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from embedctl import providers
from embedctl.ledger.ingest import ingest
from embedctl.ledger.paths import LedgerPaths
from embedctl.providers import catalog
from tests.support import calling
from tests.support.processes import World, Zygote, sentence
from tests.support.wire.client import Wire

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
    "ollama": "any",
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
FAULTED = ["reset_after", "truncated", "count"]
TEXTS = [sentence(number) for number in range(400)]
SHAPE = ("--batch-size", "8", "--rpm", "0", "--tpm", "0", "--fallback", "off", "--no-cache", "-q")


class Place(World):
    """A world in which one provider is the wire server."""

    name: str = ""

    def of(self, name: str) -> Place:
        """Settings and keys for this protocol."""
        self.name = name
        (self.folder / "config.toml").write_text(config(name, self.wire))
        return self

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")},
            "HOME": str(self.folder / "home"),
            "EMBEDCTL_HOME": str(self.home),
            "EMBEDCTL_CANARY": "off",
            "EMBEDCTL_CONFIG": str(self.folder / "config.toml"),
            **keys(self.name),
        }


def config(name: str, wire: Wire) -> str:
    """A config in which this protocol's provider is the wire server."""
    place = f'[providers.{name}]\nprotocol = "{name}"\nbase_url = "{wire.base_url(name)}"\n'
    return place + (JSON_CONFIG if name == "json" else "")


def keys(name: str) -> dict[str, str]:
    """The environment that has its key."""
    place = catalog.providers().get(name)
    return dict.fromkeys(place.api_key_env if place else (), "test-key")


@dataclass(frozen=True)
class Books:
    """What the ledger says, after taking in what waits."""

    events: int
    confirmed: int
    unknown: int
    sources: set[str]


def books(home: Path) -> Books:
    paths = LedgerPaths(home / "usage.duckdb", home / "spool", home / "prices.toml")
    ingest(paths, wait_s=5, now=datetime.now(UTC))
    with duckdb.connect(str(paths.database), read_only=True) as connection:
        rows = connection.execute(
            "SELECT event_id, billable, tokens_total, tokens_estimated, usage_source FROM usage_event"
        ).fetchall()
    assert len({row[0] for row in rows}) == len(rows)
    return Books(
        events=len(rows),
        confirmed=sum(row[2] for row in rows if row[1] == "yes"),
        unknown=sum(row[3] for row in rows if row[1] == "unknown"),
        sources={row[4] for row in rows if row[1] == "yes"},
    )


def test_every_protocol_is_billed_here() -> None:
    """No protocol that is sent anywhere stays outside of this suite."""
    assert set(MODELS) == {name for name in providers.PROTOCOLS if not providers.is_local(name)}


@pytest.mark.parametrize("name", MODELS)
def test_ledger_is_the_invoice(name: str, tmp_path: Path, wire: Wire, forks: Zygote) -> None:
    """Without faults every request of a run is one event, and the tokens are what the provider billed, to the token."""
    wire.reset()
    world = Place(tmp_path, wire, forks, slot_bytes=1 << 20).of(name)
    world.table(TEXTS[:80])
    ended = world.run("embed", "in.parquet", "-o", "out.parquet", "-m", f"{name}:{MODELS[name]}", *SHAPE)
    found = books(world.home)

    assert ended.code == 0, ended.err
    assert (found.events, found.unknown) == (len(wire.truth()), 0)
    assert (found.confirmed, found.sources) == (wire.billed(), {"native"})


@pytest.mark.parametrize("name", MODELS)
def test_faults_are_bounded(name: str, tmp_path: Path, wire: Wire) -> None:
    """Under faults, whether the run goes on or gives up, confirmed <= invoice <= confirmed + unknown."""
    wire.reset()
    wire.plan(script=["ok", *FAULTED], faults=FAULTS, seed=len(name))
    flags = {"model": f"{name}:{MODELS[name]}", "fallback": "off", "rpm": 0, "tpm": 0}
    found = calling.load(tmp_path, config(name, wire), keys(name), **flags)
    size = 1 if name == "bedrock" else 8
    batches = [TEXTS[start : start + size] for start in range(0, 30 * size, size)]
    done = calling.embed(found, batches, tmp_path, at_once=4)
    kept = books(tmp_path / "home")
    truth = wire.truth()

    assert kept.events == len(truth) == len(done.events) > 25
    assert kept.confirmed <= wire.billed() <= kept.confirmed + kept.unknown
    assert kept.unknown > 0


def test_a_miscounting_server_is_found(tmp_path: Path, wire: Wire, forks: Zygote) -> None:
    """A server that bills characters as tokens is found: the estimate counts, `usage drift` exits 3."""
    wire.reset()
    wire.plan(faults={"usage_characters": 1.0})
    world = Place(tmp_path, wire, forks, slot_bytes=1 << 20).of("openai")
    world.table(TEXTS[:80])
    ended = world.run("embed", "in.parquet", "-o", "out.parquet", "-m", f"openai:{MODELS['openai']}", *SHAPE)
    told = world.run("usage", "drift", "--json")
    (model,) = json.loads(told.out)["models"]
    report = json.loads(world.run("usage", "report", "--json").out)

    assert ended.code == 0, ended.err
    assert told.code == 3
    assert model["over"] is True
    assert model["weighted"] > 1
    assert any("usage drift" in line for line in report["warnings"])
    assert report["totals"]["tokens"] < int(model["tokens_native"])


def test_a_silent_server_in_native_mode_is_said(tmp_path: Path, wire: Wire, forks: Zygote) -> None:
    """In native mode an answer without usage is kept, its cost is unknown, and receipt, report and --strict say so."""
    wire.reset()
    wire.plan(faults={"usage_missing": 1.0})
    world = Place(tmp_path, wire, forks, slot_bytes=1 << 20).of("openai")
    model = f"openai:{MODELS['openai']}"
    with (tmp_path / "config.toml").open("a") as settings:
        settings.write(f'[models."{model}"]\nusage_mode = "native"\n')
    world.table(TEXTS[:8])
    ended = world.run("embed", "in.parquet", "-o", "out.parquet", "-m", model, "--fallback", "off", "--no-cache")
    report = world.run("usage", "report", "--json", "--strict")
    totals = json.loads(report.out)["totals"]

    assert ended.code == 0, ended.err
    assert "cost unknown: the provider gave no usage" in ended.err
    assert (totals["cost"], totals["tokens"], totals["cost_is_lower_bound"]) == (None, 0, True)
    assert "came without usage" in report.err
    assert report.code == 3

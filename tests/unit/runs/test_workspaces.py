"""`--workspace-column`: each row is held to the allow-lists and the budget of the workspace that it names."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import orjson
import pytest

from embedctl import settings
from embedctl.routing import chain as chains
from tests.support.processes import MODEL, World, Zygote, hash_of, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(12)]
WHO = ["acme", "zeta", "beta", None] * 3
RUN = ("batch", "run", "in.parquet", "-o", "out", "-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "2")
BY_ROW = ("--workspace-column", "who")
PRICE = Decimal("0.02")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.table(TEXTS, who=WHO)
    return found


def configure(world: World, text: str) -> None:
    place = world.folder / "config" / "embedctl"
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.toml").write_text(text)


def test_rows_of_a_workspace_that_may_not(world: World) -> None:
    """Rows whose workspace may not use the model fail, are listed with the rule, and are never sent; others go on."""
    configure(
        world, '[workspaces.zeta]\nproviders = ["onnx"]\n[workspaces.beta]\nmodels = ["text-embedding-3-large"]\n'
    )
    ended = world.run(*RUN, *BY_ROW, "--json")
    listed = [orjson.loads(line) for line in (world.folder / "out" / "failures.jsonl").read_bytes().splitlines()]

    assert (ended.code, ended.receipt["vectors"], ended.receipt["failed"]) == (3, 6, 6), ended.err
    assert [one["id"] for one in listed] == [1, 2, 5, 6, 9, 10]
    assert {one["reason"] for one in listed} == {"not_allowed"}
    assert listed[0]["message"] == "provider 'openai' is not in providers of [workspaces.zeta]"
    assert listed[1]["message"] == f"model '{MODEL}' is not in models of [workspaces.beta]"
    sent = {digest for one in world.wire.truth() for digest in one["text_hashes"]}
    assert sent == {hash_of(text) for text, who in zip(TEXTS, WHO, strict=True) if who in ("acme", None)}


def test_a_list_that_was_changed(world: World) -> None:
    """When a workspace is allowed the model after all, the same command embeds its rows, and nothing else."""
    configure(world, '[workspaces.zeta]\nproviders = ["onnx"]\n')
    assert world.run(*RUN, *BY_ROW).code == 3
    assert world.run(*RUN, *BY_ROW).code == 3
    before = world.wire.billed()
    configure(world, "")

    assert world.run(*RUN, *BY_ROW).code == 0
    assert before == 9 * 4
    assert world.wire.billed() == 12 * 4
    world.check_rows("out", TEXTS, dimensions=8)


def test_a_dry_run_tells(world: World) -> None:
    """--dry-run counts rows whose workspace may not use the model as rows that would fail."""
    configure(world, '[workspaces.zeta]\nproviders = ["onnx"]\n')
    told = world.run(*RUN, *BY_ROW, "--dry-run", "--json").receipt

    assert (told["failed"], told["texts"]) == (3, 9)


def test_a_budget_of_a_row(world: World) -> None:
    """A workspace's budget holds for the rows that name it; the run stops before it is passed and says whose it is."""
    configure(world, '[workspaces.zeta]\nbudget = { amount = "0.00000015", action = "block" }\n')
    ended = world.run(*RUN, *BY_ROW)
    world.run("usage", "ingest")
    report = world.run("usage", "report", "--by", "workspace", "--json").receipt
    spent = {group["workspace"]: group["tokens"] for group in report["groups"]}

    assert ended.code == 4, ended.err
    assert "budget of workspace zeta" in ended.err
    assert spent.get("zeta", 0) * PRICE / 1_000_000 <= Decimal("0.00000015")


@pytest.mark.parametrize(("lists", "kept"), [("", True), ('[workspaces.zeta]\nproviders = ["openai"]\n', False)])
def test_fallbacks_pass_every_list(tmp_path: Path, lists: str, kept: bool) -> None:
    """A fallback that a workspace of the rows may not use takes no part, and the chain says why."""
    (tmp_path / "config.toml").write_text(
        '[providers.eu]\nprotocol = "openai"\nbase_url = "https://eu.example"\n'
        f'models = {{ "{MODEL}" = "{MODEL}" }}\napi_key_env = "EU"\n[fallback]\nopenai = ["eu"]\n{lists}'
    )
    environment = {"HOME": str(tmp_path), "EMBEDCTL_HOME": str(tmp_path), "OPENAI_API_KEY": "k", "EU": "k"}
    flags = {"model": f"openai:{MODEL}", "workspace_column": "who"}
    found = settings.load(flags=flags, config=tmp_path / "config.toml", environment=environment, folder=tmp_path)
    chain = chains.chain(found)

    assert [one.provider for one in chain.endpoints] == ["openai", "eu"][: 1 + kept]
    assert kept or "[workspaces.zeta]" in str(chain.left_out[0])

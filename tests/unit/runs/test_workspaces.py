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
    place = world.home
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


def listed(world: World) -> dict[int, str]:
    """Row → reason of the failures file."""
    path = world.folder / "out" / "failures.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {one["id"]: one["reason"] for one in map(orjson.loads, lines)}


def test_a_tenant_whose_budget_is_used_up_fails_alone(world: World) -> None:
    """Its rows fail for `budget` and are not sent; the others go on; the receipt says who paid; exit 3."""
    configure(world, '[workspaces.zeta]\nbudget = { amount = "0.00000015", action = "block" }\n')
    ended = world.run(*RUN, *BY_ROW, "--json")
    report = world.run("usage", "report", "--by", "workspace", "--json").receipt
    spent = {group["workspace"]: group["tokens"] for group in report["groups"]}
    paid = {one["workspace"]: one["tokens"] for one in ended.receipt["workspaces"]}

    assert (ended.code, ended.receipt["vectors"], ended.receipt["failed"]) == (3, 9, 3), ended.err
    assert listed(world) == {1: "budget", 5: "budget", 9: "budget"}
    assert paid == spent == {"acme": 12, "beta": 12, "default": 12}
    assert "budget of workspace zeta" in ended.err
    sent = {digest for one in world.wire.truth() for digest in one["text_hashes"]}
    assert sent == {hash_of(text) for text, who in zip(TEXTS, WHO, strict=True) if who != "zeta"}


def test_rows_without_budget_are_bought_once_there_is_one(world: World) -> None:
    """The same command tries them again, without --retry-failed: for nothing while the budget is used up, then all."""
    configure(world, '[workspaces.zeta]\nbudget = { amount = "0.00000015", action = "block" }\n')
    world.run(*RUN, *BY_ROW)
    before = world.wire.billed()
    again = world.run(*RUN, *BY_ROW)
    between = world.wire.billed()
    configure(world, '[workspaces.zeta]\nbudget = { amount = "1", action = "block" }\n')
    last = world.run(*RUN, *BY_ROW)

    assert (again.code, before, between) == (3, 9 * 4, 9 * 4), again.err
    assert (last.code, world.wire.billed()) == (0, 12 * 4), last.err
    assert listed(world) == {}
    world.check_rows("out", TEXTS, dimensions=8)


def test_a_text_of_another_tenant_does_not_wait_for_a_budget(world: World) -> None:
    """A text that a tenant without money wants first is bought by the one after it who has some."""
    world.table([sentence(0), sentence(0), sentence(1), sentence(0)], who=["zeta", "acme", "acme", "beta"])
    configure(world, '[workspaces.zeta]\nbudget = { amount = "0.00000001", action = "block" }\n')
    ended = world.run(*RUN, *BY_ROW, "--json")

    assert (ended.code, ended.receipt["vectors"], ended.receipt["duplicates"]) == (3, 3, 1), ended.err
    assert listed(world) == {0: "budget"}


@pytest.mark.parametrize(("who", "warned"), [("acme", False), ("zeta", True)])
def test_only_who_pays_is_warned(world: World, who: str, warned: bool) -> None:
    """A budget past its line is said of a workspace that pays in this run, and of no other."""
    configure(world, '[workspaces.zeta]\nbudget = { amount = "0.000001", action = "warn", warn_ratio = 0.01 }\n')
    world.table(TEXTS[:2], who=["zeta", "zeta"])
    world.run(*RUN, *BY_ROW)
    world.table([sentence(100)], who=[who])
    told = world.run(*RUN, *BY_ROW, "--overwrite")

    assert told.code == 0, told.err
    assert ("budget of workspace zeta" in told.err) == warned


def test_the_runs_own_limit_still_ends_it(world: World) -> None:
    """--max-cost is everybody's: the run stops with 4, whoever pays."""
    assert world.run(*RUN, *BY_ROW, "--max-cost", "0.0000002").code == 4


def test_who_pays_is_said_where_nobody_has_paid(world: World) -> None:
    """A run that cost nothing is paid "per row (who)", in its receipt and in `batch status`; never by `default`."""
    world.run(*RUN, *BY_ROW, "--job", "nightly")
    again = world.run(*RUN, *BY_ROW, "--job", "nightly")
    status = world.run("batch", "status", "nightly")
    about = world.run("batch", "status", "nightly", "--json").receipt
    estimated = world.run("usage", "estimate", "in.parquet", "-m", f"openai:{MODEL}", *BY_ROW)

    assert "0 requests, 0 tokens, cost 0.00 USD, 0.00000096 USD saved, paid per row (who)" in again.err
    assert next(line for line in status.out.splitlines() if line.startswith("workspace")).endswith("  per row (who)")
    assert "paid per row (who)" in estimated.out
    assert "by default" not in again.err + status.out + estimated.out
    assert (about["workspace"], about["workspace_column"]) == ("default", "who")


ALONE = ("--workspace", "zeta")


@pytest.mark.parametrize(
    ("who", "amount", "more", "flags", "outcome", "code"),
    [
        (ALONE, "1", "", ("--max-cost", "0.0000015"), None, 0),
        (ALONE, "0", "", (), "used_up", 4),
        (BY_ROW, "0", "", (), "used_up", 3),
        (ALONE, "0.00000009", "", (), "passed", 4),
        (BY_ROW, "0.00000009", "", (), "passed", 3),
        (BY_ROW, "0.00000009", 'action = "warn"', (), "passed", 0),
        (ALONE, "0", 'action = "warn"', (), "used_up", 0),
        (ALONE, "0.000002", "warn_ratio = 0.1", (), "low", 0),
        (BY_ROW, "1", "", ("-m", "openai:mine"), "unpriced", 2),
        (ALONE, "0", "", ("-m", "openai:mine"), "unpriced", 2),
        (ALONE, "1", "", ("-m", "openai:mine", "--allow-unpriced"), None, 0),
        (BY_ROW, "1", "", ("--max-cost", "0.0000002"), "passed", 4),
    ],
)
def test_a_dry_run_foresees_limits(
    world: World, who: tuple[str, ...], amount: str, more: str, flags: tuple[str, ...], outcome: str | None, code: int
) -> None:
    """What a run would be refused, stopped or warned for, the dry run says: budgets of who pays, and --max-cost."""
    configure(world, f'[workspaces.zeta]\nbudget = {{ amount = "{amount}", {more} }}\n'.replace(",  }", " }"))
    dry = world.run(*RUN, *who, *flags, "--dry-run", "--json")
    real = world.run(*RUN, *who, *flags)

    assert (dry.code, [one["outcome"] for one in dry.receipt["limits"]]) == (0, [outcome] if outcome else []), dry.err
    assert real.code == code, real.err
    assert dry.err.startswith("warning: ") == (outcome is not None)
    said = {"unpriced": "refused with 2", "low": "nearly used up", "used_up": "is used up", "passed": "would be passed"}
    assert not outcome or said[outcome] in dry.err
    assert outcome != "low" or "nearly used up" in real.err
    assert code not in (3, 4) or f"exit {code}" in dry.err or f"with {code}" in dry.err


def test_a_dry_run_says_who_would_pay(world: World) -> None:
    """With --workspace-column each tenant's texts, tokens and cost are estimated; only those who pay are warned of."""
    configure(world, '[workspaces.other]\nbudget = { amount = "0", action = "block" }\n')
    told = world.run(*RUN, *BY_ROW, "--dry-run", "--json")
    people = world.run(*RUN, *BY_ROW, "--dry-run")

    assert {one["workspace"]: (one["texts"], one["tokens"]) for one in told.receipt["workspaces"]} == {
        "acme": (3, 12), "beta": (3, 12), "default": (3, 12), "zeta": (3, 12),
    }  # fmt: skip
    assert (told.receipt["limits"], told.err) == ([], "")
    assert "to be paid in USD by acme 0.00000024, beta 0.00000024, default 0.00000024, zeta 0.00000024" in people.out


def test_a_dry_run_counts_what_others_spend_meanwhile(world: World) -> None:
    """Spending that the ledger has not been told yet counts against a budget, as it does for the run itself."""
    configure(world, '[workspaces.zeta]\nbudget = { amount = "0.0000015", action = "block" }\n')
    words = (*RUN, "--workspace", "zeta")
    world.run(*words)
    world.table([sentence(number) for number in range(100, 112)])
    told = world.run(*words, "--dry-run")

    assert "the month's budget of workspace zeta would be passed: 0.000001 of 0.000002 USD" in told.err
    assert world.run(*words).code == 4


@pytest.mark.parametrize(("lists", "kept"), [("", True), ('[workspaces.zeta]\nproviders = ["openai"]\n', False)])
def test_fallbacks_pass_every_list(tmp_path: Path, lists: str, kept: bool) -> None:
    """A fallback that a workspace of the rows may not use takes no part, and the chain says why."""
    (tmp_path / "config.toml").write_text(
        '[providers.eu]\nprotocol = "openai"\nbase_url = "https://eu.example"\n'
        f'models = {{ "{MODEL}" = "{MODEL}" }}\napi_key_env = "EU"\n[fallback]\nopenai = ["eu"]\n{lists}'
    )
    environment = {"HOME": str(tmp_path), "EMBEDCTL_HOME": str(tmp_path), "OPENAI_API_KEY": "k", "EU": "k"}
    environment["EMBEDCTL_CANARY"] = "off"
    flags = {"model": f"openai:{MODEL}", "workspace_column": "who"}
    found = settings.load(flags=flags, config=tmp_path / "config.toml", environment=environment, folder=tmp_path)
    chain = chains.chain(found)

    assert [one.provider for one in chain.endpoints] == ["openai", "eu"][: 1 + kept]
    assert kept or "[workspaces.zeta]" in str(chain.left_out[0])

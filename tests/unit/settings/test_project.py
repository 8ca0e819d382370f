"""A project's ./embedctl.toml: what it may say, and that nothing in it lifts what the user allows."""

from __future__ import annotations

import itertools
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from embedctl import settings
from embedctl.errors import ConfigurationInvalid
from embedctl.routing import allow, credentials
from embedctl.settings import Settings, project
from embedctl.settings.options import Options

HOLDS = {
    "model": "'openai:text-embedding-3-small'",
    "workspace": "'acme'",
    "tag": "{ team = 'search' }",
    "text_column": "'body'",
    "template": "'{title}'",
    "id_column": "'key'",
    "keep": "'none'",
    "split": "'lines'",
    "chunk_size": "100",
    "chunk_overlap": "10",
    "input_type": "'query'",
    "dimensions": "256",
    "dimension_policy": "'pad'",
    "on_too_long": "'skip'",
    "on_blank": "'fail'",
    "on_bad_row": "'skip'",
    "on_bad_file": "'skip'",
    "fallback": "'off'",
    "max_cost": "'0.5'",
    "batch_size": "2",
    "concurrency": "2",
    "rpm": "5",
    "tpm": "500",
    "burst": "2",
    "retries": "1",
    "timeout": "'20s'",
    "max_wait": "'1m'",
    "deadline": "'1h'",
    "max_row_bytes": "1000",
}
"""A value of each option that a project may set."""


def load(folder: Path, user: str, by_project: str, **about: Any) -> Settings:
    """Settings where the user's own file and a project's hold these texts."""
    (folder / "project").mkdir(exist_ok=True)
    (folder / "user.toml").write_text(user, "utf-8")
    (folder / "project" / "embedctl.toml").write_text(by_project, "utf-8")
    environment = {"EMBEDCTL_HOME": str(folder / "home"), **about.pop("environment", {})}
    return settings.load(config=folder / "user.toml", folder=folder / "project", environment=environment, **about)


def refusal(folder: Path, by_project: str, user: str = "") -> ConfigurationInvalid:
    with pytest.raises(ConfigurationInvalid) as caught:
        load(folder, user, by_project)
    assert caught.value.exit_code == 78
    assert caught.value.message.startswith(str(folder / "project" / "embedctl.toml"))
    return caught.value


@pytest.mark.parametrize("key", project.OPTIONS)
def test_a_project_may_set_what_the_table_names(tmp_path: Path, key: str) -> None:
    """Each option of the table is taken from a project's file, and `config show` says whose it is."""
    found = load(
        tmp_path, "[workspaces.acme]", f"{key} = {HOLDS[key]}" + "\nchunk_size = 100" * (key == "chunk_overlap")
    )

    assert getattr(found.options, key) != getattr(Options(), key)
    assert found.origins[key] == str(tmp_path / "project" / "embedctl.toml")


def test_the_table_knows_options_only() -> None:
    """What a project may set are options; one that is new is refused until the table says how it is narrowed."""
    assert project.OPTIONS.keys() == HOLDS.keys()
    assert project.OPTIONS.keys() <= {entry.name for entry in fields(Options)}


@pytest.mark.parametrize("key", sorted({entry.name for entry in fields(Options)} - project.OPTIONS.keys()))
def test_every_other_option_is_refused_by_name(tmp_path: Path, key: str) -> None:
    """An option that is not in the table ends with 78, its name, and where it may be set."""
    said = refusal(tmp_path, f"{key} = true")

    assert f"a project's file may not set {key}" in said.message
    assert said.hint == project.HINT
    assert "embedctl config path" in project.HINT
    assert "--config" in project.HINT


TABLES = {
    "[providers.openai]\nbase_url = 'https://evil.example'": "[providers.*]: keys go only to hosts the user configured",
    "[workspaces.acme]\nbudget = { amount = 5000 }": "[workspaces.*]",
    "[models.'openai:text-embedding-3-small']\nfallback_tokenizer = 'file:./tok.json'": "[models.*]: it would change",
    "[models.x]\nusage_mode = 'fallback'": "[models.*]",
    "[token_usage]\nfallback_tokenizer = 'file:./tok.json'": "[token_usage]: it would change how tokens are counted",
    "[token_usage]\ncache = true": "[token_usage]",
    "[cache]\nmax_bytes = 0": "[cache]: the cache is shared with other projects",
    "[cache]\nttl_days = -1": "[cache]",
    "ledger = 'here.duckdb'": "ledger: it would change where money is counted",
    "usage_mode = 'fallback'": "usage_mode",
    "fallback_tokenizer = 'bytes/4'": "fallback_tokenizer",
    "[prices.x]\nusd = 0": "[prices]",
    "[budgets]\nx = 1": "[budgets]",
}


@pytest.mark.parametrize("text", TABLES)
def test_tables_of_the_users_are_refused_by_name(tmp_path: Path, text: str) -> None:
    """Providers, counting, the cache, the ledger, prices and budgets are none of a project's business."""
    assert f"a project's file may not set {TABLES[text]}" in refusal(tmp_path, text).message


def test_a_key_that_nobody_knows_is_named(tmp_path: Path) -> None:
    """A misspelt key of a project's file is an error that names the nearest."""
    said = refusal(tmp_path, "modal = 'x'")

    assert "unknown key 'modal'" in said.message
    assert said.hint == "did you mean 'model'?"


def test_the_same_file_is_the_users_word_when_it_is_named(tmp_path: Path) -> None:
    """--config and EMBEDCTL_CONFIG make a project's file the user's own."""
    text = "allow_unpriced = true\n[cache]\nttl_days = 1\n[token_usage]\ncache = true"
    refusal(tmp_path, text)
    file = tmp_path / "project" / "embedctl.toml"

    for way in ({"config": file}, {"environment": {"EMBEDCTL_CONFIG": str(file)}}):
        found = settings.load(folder=file.parent, **{"environment": {}, **way})  # type: ignore[arg-type]

        assert (found.options.allow_unpriced, found.cache.ttl_days, found.token_usage.cache) == (True, 1, True)


def test_a_workspace_must_be_one_of_the_users(tmp_path: Path) -> None:
    """A project charges only a workspace that the user's settings list, or the one that pays anyhow."""
    said = refusal(tmp_path, "workspace = 'free'", "workspace = 'kb'\n[workspaces.acme]")

    assert "may not set workspace to 'free'" in said.message
    assert "[workspaces.free]" in (said.hint or "")
    assert load(tmp_path, "[workspaces.acme]", "workspace = 'acme'").options.workspace == "acme"
    assert load(tmp_path, "workspace = 'kb'", "workspace = 'kb'").options.workspace == "kb"
    assert refusal(tmp_path, "workspace = 'default'", "workspace = 'kb'")


def test_a_workspace_that_does_not_count_is_not_asked_for(tmp_path: Path) -> None:
    """Where a flag names the workspace, a project's is nobody's business."""
    assert load(tmp_path, "", "workspace = 'free'", flags={"workspace": "kb"}).options.workspace == "kb"


def test_what_a_project_did_not_get_is_told(tmp_path: Path) -> None:
    """A limit above the user's does not count, and the settings say so."""
    found = load(tmp_path, "max_cost = 1\nretries = 2", "max_cost = 1000\nretries = 1\nfallback = 'any'")

    assert (found.options.max_cost, found.options.retries, found.options.fallback) == (Decimal(1), 1, "same-space")
    assert [line.partition(": ")[2] for line in found.unheeded] == [
        "max_cost = 1000 does not count: yours is 1",
        "fallback = any does not count: yours is same-space",
    ]
    assert found.origins["max_cost"] == str(tmp_path / "user.toml")


def test_a_rate_of_a_project_lifts_no_providers(tmp_path: Path) -> None:
    """A project's rate and timeout are held against the provider's own table, too; a flag's word is stronger."""
    user = "[providers.openai]\nrequests_per_minute = 10\nconcurrency = 4\ntimeout_s = 30\nburst = 5"
    asks = "rpm = 600\ntpm = 5000\nconcurrency = 8\ntimeout = 90\nburst = 7"
    found = load(tmp_path, user, asks)
    limits = credentials.rate_limits(found, "openai", local=False)

    assert (limits.requests_per_minute, limits.tokens_per_minute) == (10, 5000)
    assert (limits.concurrency, limits.burst, credentials.timeout_s(found, "openai")) == (4, 5, 30)
    by_flag = load(tmp_path, user, asks, flags={"rpm": 600})
    assert credentials.rate_limits(by_flag, "openai", local=False).requests_per_minute == 600


def test_a_chain_is_filtered_in_its_own_order() -> None:
    """A project's chain keeps entries of the user's, whole or by their provider, and adds none."""
    chain = ["eu", "onnx:all-MiniLM-L6-v2", "local_api"]

    assert project.narrowed_chain(chain, None) == chain
    assert project.narrowed_chain(chain, ["evil", "onnx", "eu"]) == ["eu", "onnx:all-MiniLM-L6-v2"]
    assert project.narrowed_chain(chain, ["onnx:other", "eu:dear"]) == []


@pytest.mark.parametrize(
    "lines", [["[tag]", *(f"k{number} = 'v'" for number in range(21))], [f"[tag]\nk = '{'v' * 201}'"]]
)
def test_tags_are_few_and_short(tmp_path: Path, lines: list[str]) -> None:
    """More than 20 tags, or one of more than 200 characters, are refused, whoever sets them."""
    assert "'tag'" in refusal(tmp_path, "\n".join(lines)).message
    with pytest.raises(ConfigurationInvalid, match="'tag'"):
        load(tmp_path, "\n".join(lines), "")
    fits = load(tmp_path, "", "[tag]\n" + "\n".join(f"k{number} = '{'v' * 200}'" for number in range(20)))

    assert len(fits.options.tag) == 20


# ── whatever a project says ──────────────────────────────────────────────────────────────────────────────────────────

NAMES = st.lists(st.sampled_from(["openai", "eu", "onnx", "voyage"]), max_size=3, unique=True)
LIMITS = {
    "max_cost": st.integers(0, 100),
    "batch_size": st.integers(1, 100),
    "concurrency": st.integers(1, 100),
    "rpm": st.integers(0, 100),
    "tpm": st.integers(0, 100),
    "burst": st.integers(1, 100),
    "retries": st.integers(0, 20),
    "timeout": st.integers(1, 1000),
    "max_wait": st.integers(1, 1000),
    "deadline": st.integers(1, 1000),
    "max_row_bytes": st.integers(1, 10**9),
}
ROOT = st.fixed_dictionaries(
    {},
    optional={
        **LIMITS,
        "fallback": st.sampled_from(["'off'", "'same-space'", "'any'"]),
        "workspace": st.sampled_from(["'acme'", "'default'", "'stranger'"]),
        "model": st.sampled_from(["'openai:text-embedding-3-small'", "'onnx:all-MiniLM-L6-v2'"]),
        "chunk_size": st.integers(1, 500),
    },
)
LISTS = st.fixed_dictionaries({}, optional={"providers": NAMES, "models": NAMES})
CHAINS = st.dictionaries(st.sampled_from(["openai", "eu"]), NAMES)
OTHERS = st.dictionaries(
    st.sampled_from(
        [
            "allow_unpriced",
            "insecure",
            "workspace_column",
            "purpose",
            "force",
            "cache",
            "ledger",
            "encoding",
            "provider",
        ]
    ),
    st.sampled_from(["true", "'x'"]),
    max_size=1,
)
PROVIDER = st.fixed_dictionaries(
    {},
    optional={
        "requests_per_minute": st.integers(0, 100),
        "tokens_per_minute": st.integers(0, 100),
        "concurrency": st.integers(1, 100),
        "burst": st.integers(1, 100),
        "timeout_s": st.integers(1, 100),
    },
)


def toml(root: dict[str, Any], **tables: dict[str, Any]) -> str:
    """Tables as a file; a table under "fallback" only where the option of that name is not set."""
    lines = [f"{key} = {value}" for key, value in root.items()]
    for name, table in tables.items():
        if table and not (name == "fallback" and "fallback" in root):
            lines += [f"[{name.replace('__', '.')}]", *(f"{key} = {value}" for key, value in table.items())]
    return "\n".join(lines)


def above(value: Any) -> float:
    """A limit as a number, where None and 0 are none."""
    return float(value) if value else float("inf")


@examples(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=ROOT,
    own_lists=LISTS,
    own_chains=CHAINS,
    own_table=PROVIDER,
    asks=ROOT,
    lists=LISTS,
    chains=CHAINS,
    others=OTHERS,
)
def test_no_project_lifts_anything(
    tmp_path: Path,
    user: dict[str, Any],
    own_lists: dict[str, Any],
    own_chains: dict[str, Any],
    own_table: dict[str, Any],
    asks: dict[str, Any],
    lists: dict[str, Any],
    chains: dict[str, Any],
    others: dict[str, Any],
) -> None:
    """With any project file, no limit, list, chain or budget is wider than without it, or the file is refused."""
    own = toml(
        {**user, "workspace": "'kb'"},
        allow=own_lists,
        fallback=own_chains,
        providers__openai=own_table,
        workspaces__acme={"budget": "{ amount = 5 }"},
    )
    without = load(tmp_path, own, "")
    whole = toml({**asks, **others}, allow=lists, fallback=chains)
    if others or asks.get("workspace") in ("'default'", "'stranger'"):
        refusal(tmp_path, whole, own)
        return
    found = load(tmp_path, own, whole)

    for name in ("max_cost", "deadline", "batch_size"):
        ours, theirs = getattr(without.options, name), getattr(found.options, name)
        assert ours is None or (theirs is not None and theirs <= ours)
    for name in ("concurrency", "burst", "retries", "timeout", "max_wait", "max_row_bytes"):
        assert getattr(found.options, name) <= getattr(without.options, name)
    strict = ("off", "same-space", "any")
    assert strict.index(found.options.fallback) <= strict.index(without.options.fallback)
    for provider in ("openai", "voyage"):
        ours, theirs = (credentials.rate_limits(one, provider, local=False) for one in (without, found))
        assert above(theirs.requests_per_minute) <= above(ours.requests_per_minute)
        assert above(theirs.tokens_per_minute) <= above(ours.tokens_per_minute)
        assert theirs.concurrency <= ours.concurrency
        assert theirs.burst <= ours.burst
        assert credentials.timeout_s(found, provider) <= credentials.timeout_s(without, provider)
    for workspace, provider, model in itertools.product(("kb", "acme"), ("openai", "eu", "x"), ("openai", "eu", "x")):
        if passes(found, workspace, provider, model):
            assert passes(without, workspace, provider, model)
    for name in ("openai", "eu", "voyage"):
        chain = without.chains.get(name, ("eu", "onnx"))
        assert set(project.narrowed_chain(chain, found.chain_filters.get(name))) <= set(chain)
    same = ("chains", "chain_override", "workspaces", "providers", "cache", "token_usage", "models", "paths")
    assert [getattr(found, name) for name in same] == [getattr(without, name) for name in same]
    assert found.options.workspace in ("kb", "acme")


def passes(found: Settings, workspace: str, provider: str, model: str) -> bool:
    return all(
        (rule.providers is None or provider in rule.providers) and (rule.models is None or model in rule.models)
        for rule in allow.lists(found, workspace)
    )


@pytest.mark.parametrize("key", ["insecure", "ledger"])
def test_a_job_file_sets_what_flags_can_but_not_these(tmp_path: Path, key: str) -> None:
    """A JOB.toml may be a stranger's: it opens no plain http and moves no ledger; both are refused by name."""
    job = tmp_path / "job.toml"
    job.write_text(f"{key} = {'true' if key == 'insecure' else repr('here.duckdb')}")
    with pytest.raises(ConfigurationInvalid) as caught:
        settings.read_job(job)

    assert f"a job file may not set {key}" in caught.value.message
    assert f"--{key}" in (caught.value.hint or "")
    job.write_text("allow_unpriced = true\nworkspace = 'acme'\nforce = true\nencoding = 'latin-1'")
    assert settings.read_job(job)["allow_unpriced"] is True

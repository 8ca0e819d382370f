"""Settings: which layer wins, and what is said about a file that is wrong."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from embedctl import settings
from embedctl.errors import ConfigurationInvalid, InputMissing, WrongUsage
from embedctl.settings import BudgetSettings, Settings


def load(tmp_path: Path, **about: Any) -> Settings:
    """Settings of a machine whose only files are those in tmp_path."""
    environment = {"EMBEDCTL_HOME": str(tmp_path / "home"), **about.pop("environment", {})}
    if "EMBEDCTL_CONFIG" not in environment and (tmp_path / "user.toml").exists():
        about.setdefault("config", tmp_path / "user.toml")
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    return settings.load(environment={"HOME": str(tmp_path), **environment}, folder=folder, **about)


def user(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "user.toml"
    path.write_text(text, "utf-8")
    return path


def project(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "project" / "embedctl.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return path


LAYERS = ("flag", "job", "environment", "project", "user")


@pytest.mark.parametrize("strongest", range(len(LAYERS) + 1))
def test_the_strongest_layer_that_speaks_wins(tmp_path: Path, strongest: int) -> None:
    """Flag > JOB.toml > environment > ./embedctl.toml > user config > default; and the origin is told."""
    spoken = LAYERS[strongest:]
    about: dict[str, Any] = {"environment": {}}
    if "flag" in spoken:
        about["flags"] = {"workspace": "flag"}
    if "job" in spoken:
        about["job"] = {"workspace": "job"}
    if "environment" in spoken:
        about["environment"] = {"EMBEDCTL_WORKSPACE": "environment"}
    if "project" in spoken:
        project(tmp_path, 'workspace = "project"')
    if "user" in spoken:
        user(tmp_path, 'workspace = "user"\n[workspaces.project]')
    found = load(tmp_path, **about)
    labels = [
        "flag",
        "job file",
        "EMBEDCTL_WORKSPACE",
        str(tmp_path / "project/embedctl.toml"),
        str(tmp_path / "user.toml"),
    ]

    assert found.options.workspace == (*LAYERS, "default")[strongest]
    assert found.origins["workspace"] == (*labels, "default")[strongest]


def test_layers_are_merged_option_by_option(tmp_path: Path) -> None:
    """A layer that does not speak of an option leaves it to the next."""
    user(tmp_path, 'workspace = "kb"\nconcurrency = 4\nretries = 2')
    project(tmp_path, "concurrency = 3")
    options = load(tmp_path, flags={"retries": 1, "model": None}).options

    assert (options.workspace, options.concurrency, options.retries, options.model) == ("kb", 3, 1, None)


def test_every_value_of_a_file_has_the_type_of_its_option(tmp_path: Path) -> None:
    """Amounts are Decimal, durations seconds, lists tuples, whatever TOML calls them."""
    user(
        tmp_path,
        'max_cost = 0.10\ntimeout = "2m"\ndeadline = 90\ndimensions = 256\nreuse = false\ntag = { team = "search" }\n'
        '[providers.eu]\nprotocol = "azure"\ntimeout_s = 60\nmodels = { a = "b" }\n'
        '[allow]\nproviders = ["eu"]\n'
        '[workspaces.acme]\nbudget = { amount = "50.00", warn_ratio = 0.9 }\n'
        '[fallback]\nopenai = ["eu", "onnx:all-MiniLM-L6-v2"]\n'
        '[models."openai:text-embedding-3-small"]\nusage_mode = "native"\n'
        "[cache]\nttl_days = 7\n[token_usage]\ncache = true",
    )
    found = load(tmp_path)

    assert (found.options.max_cost, found.options.timeout, found.options.deadline) == (Decimal("0.10"), 120.0, 90.0)
    assert (found.options.dimensions, found.options.reuse, found.options.tag) == (256, False, {"team": "search"})
    assert (found.providers["eu"].timeout_s, found.providers["eu"].models) == (60.0, {"a": "b"})
    assert found.narrowings[0][1].providers == ("eu",)
    assert found.workspaces["acme"].budget == BudgetSettings(amount=Decimal("50.00"), warn_ratio=Decimal("0.9"))
    assert found.chains["openai"] == ("eu", "onnx:all-MiniLM-L6-v2")
    assert found.models["openai:text-embedding-3-small"].usage_mode == "native"
    assert (found.cache.ttl_days, found.token_usage.cache) == (7, True)


BAD_FILES = {
    "unknown option": ('wrokspace = "a"', "unknown key 'wrokspace'", "did you mean 'workspace'?"),
    "unknown table": ("[provider.eu]\nprotocol = 'tei'", "'provider' must be a string", None),
    "unknown key of a provider": (
        "[providers.eu]\nbase_ulr = 'x'",
        "[providers.eu]: unknown key 'base_ulr'",
        "did you mean 'base_url'?",
    ),
    "unknown key of a budget": (
        "[workspaces.acme]\nbudget = { amuont = '5' }",
        "[workspaces.acme] 'budget': unknown key 'amuont'",
        "did you mean 'amount'?",
    ),
    "missing amount": (
        "[workspaces.acme]\nbudget = { period = 'day' }",
        "[workspaces.acme] 'budget': 'amount' is missing",
        None,
    ),
    "wrong type": ("concurrency = 'secret-many'", "'concurrency' must be a whole number", None),
    "true is no number": ("concurrency = true", "'concurrency' must be a whole number", None),
    "wrong word": ("fallback = 'secret-word'", "'fallback' must be one of 'same-space', 'any', 'off'", None),
    "wrong word in a table": (
        "[models.a]\nusage_mode = 'secret-mode'",
        "[models.a] 'usage_mode' must be one of 'native', 'fallback', 'auto'",
        None,
    ),
    "wrong duration": ("timeout = 'secret-soon'", "'timeout' must be a duration, like 90, 90s, 2m or 1h30m", None),
    "wrong amount": ("max_cost = 'secret-much'", "'max_cost' must be an amount", None),
    "no amount": ("max_cost = nan", "'max_cost' must be an amount, not NaN", None),
    "list of numbers": ("[allow]\nproviders = [1]", "[allow] 'providers' must be a list of strings", None),
    "chain is a string": ("[fallback]\nopenai = 'secret'", "[fallback] 'openai' must be a list of strings", None),
    "table expected": ("allow = 3", "[allow] must be a table", None),
    "entry is no table": ("[providers]\neu = 'secret'", "[providers.eu] must be a table", None),
    "out of range": ("batch_size = 0", "'batch_size' must be at least 1, not 0", None),
    "bad workspace": ("workspace = 'Acme Inc'", "bad workspace name: 'Acme Inc'", "lower-case letters"),
    "overlap": ("chunk_size = 10\nchunk_overlap = 10", "'chunk_overlap' 10 must be smaller than 'chunk_size' 10", None),
    "not TOML": ('workspace = "kb"\nmodel = secret', "Invalid value (at line 2, column 9)", "the file must be TOML"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_wrong_is_named_with_its_key(tmp_path: Path, case: str) -> None:
    """The message begins with the file, names the key and what belongs there, never the value; the exit code is 78."""
    text, message, hint = BAD_FILES[case]
    path = user(tmp_path, text)
    with pytest.raises(ConfigurationInvalid) as caught:
        load(tmp_path)
    said = f"{caught.value.message} {caught.value.hint}"

    assert caught.value.message == f"{path}: {message}" or case == "unknown table"
    assert "secret" not in said
    assert hint is None or hint in said
    assert caught.value.exit_code == 78


SECRET = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=12, max_size=30)


@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    secret=SECRET, key=st.sampled_from(["requests_per_minute", "headers", "models", "free", "timeout_s", "concurrency"])
)
def test_a_wrong_value_is_never_shown(tmp_path: Path, secret: str, key: str) -> None:
    """Whatever stands in a provider's table by mistake, a key perhaps, is in no message."""
    user(tmp_path, f'[providers.eu]\n{key} = "x{secret}"')
    with pytest.raises(ConfigurationInvalid) as caught:
        load(tmp_path)

    assert secret not in f"{caught.value.message} {caught.value.hint}"
    assert key in caught.value.message


def test_a_file_named_with_config_may_set_providers(tmp_path: Path) -> None:
    """The same file is the user's own when --config or EMBEDCTL_CONFIG names it."""
    path = project(tmp_path, "[providers.eu]\nprotocol = 'tei'")
    by_flag = load(tmp_path, config=path)
    by_variable = load(tmp_path, environment={"EMBEDCTL_CONFIG": str(path)})

    assert by_flag.providers["eu"].protocol == by_variable.providers["eu"].protocol == "tei"
    assert by_flag.files == by_variable.files == (path,)


@pytest.mark.parametrize("key", ["cache", "fallback"])
def test_a_word_that_is_an_option_and_a_table_is_read_as_what_it_is(tmp_path: Path, key: str) -> None:
    """`cache = false` is the option and [cache] the table; likewise fallback."""
    value, table = {"cache": ("false", "ttl_days = 1"), "fallback": ("'off'", "openai = ['eu']")}[key]
    user(tmp_path, f"{key} = {value}")
    as_option = load(tmp_path)
    user(tmp_path, f"[{key}]\n{table}")
    as_table = load(tmp_path)

    assert getattr(as_option.options, key) in (False, "off")
    assert as_table.origins[key] == "default"
    assert as_table.cache.ttl_days == 1 or as_table.chains == {"openai": ("eu",)}


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path, way: str) -> None:
    """--config and EMBEDCTL_CONFIG must name a file; the user's usual one may be missing."""
    path = tmp_path / "no.toml"
    named: dict[str, Any] = {"flag": {"config": path}, "variable": {"environment": {"EMBEDCTL_CONFIG": str(path)}}}
    with pytest.raises(ConfigurationInvalid, match=r"no such settings file: .*no\.toml") as caught:
        load(tmp_path, **named[way])

    assert caught.value.hint == "`embedctl config init` writes one"
    assert load(tmp_path).files == ()


def test_variables_name_home_ledger_model_and_chain(tmp_path: Path) -> None:
    """EMBEDCTL_HOME, _LEDGER, _MODEL, _WORKSPACE and _FALLBACK_CHAIN are read, and an empty one is as none."""
    found = load(
        tmp_path,
        environment={
            "EMBEDCTL_LEDGER": str(tmp_path / "other.duckdb"),
            "EMBEDCTL_MODEL": "openai:text-embedding-3-small",
            "EMBEDCTL_WORKSPACE": "",
            "EMBEDCTL_FALLBACK_CHAIN": "eu, onnx:all-MiniLM-L6-v2 ,",
        },
    )

    assert found.paths.ledger == tmp_path / "other.duckdb"
    assert found.paths.home == tmp_path / "home"
    assert (found.options.model, found.options.workspace) == ("openai:text-embedding-3-small", "default")
    assert found.chain_override == ("eu", "onnx:all-MiniLM-L6-v2")


def test_the_chain_may_have_its_older_name(tmp_path: Path) -> None:
    """EMBEDDINGS_FALLBACK_CHAIN counts where EMBEDCTL_FALLBACK_CHAIN is not set."""
    old = {"EMBEDDINGS_FALLBACK_CHAIN": "old"}

    assert load(tmp_path, environment=old).chain_override == ("old",)
    assert load(tmp_path, environment={**old, "EMBEDCTL_FALLBACK_CHAIN": "new"}).chain_override == ("new",)


def test_the_ledger_flag_is_stronger_than_its_variable(tmp_path: Path) -> None:
    """--ledger > EMBEDCTL_LEDGER > $EMBEDCTL_HOME/usage.duckdb."""
    variable = {"EMBEDCTL_LEDGER": "/by/variable"}

    assert load(tmp_path, ledger=Path("/by/flag"), environment=variable).paths.ledger == Path("/by/flag")
    assert load(tmp_path, environment=variable).paths.ledger == Path("/by/variable")
    assert load(tmp_path).paths.ledger == tmp_path / "home" / "usage.duckdb"


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    """A value that a variable may not have is a configuration error with the variable's name."""
    with pytest.raises(ConfigurationInvalid, match=r"^EMBEDCTL_WORKSPACE: bad workspace name: 'Not A Name'"):
        load(tmp_path, environment={"EMBEDCTL_WORKSPACE": "Not A Name"})


def test_a_wrong_flag_is_wrong_usage(tmp_path: Path) -> None:
    """The same mistake on the command line exits with 2 and is spelt as a flag."""
    with pytest.raises(WrongUsage, match=r"^--batch-size must be at least 1, not 0$"):
        load(tmp_path, flags={"batch_size": 0})


def test_options_of_two_layers_must_agree(tmp_path: Path) -> None:
    """A flag that contradicts a file is the flag's fault."""
    user(tmp_path, "chunk_overlap = 100")
    with pytest.raises(WrongUsage, match="--chunk-overlap 100 must be smaller than --chunk-size 50"):
        load(tmp_path, flags={"chunk_size": 50})


def test_keys_never_show_in_a_repr(tmp_path: Path) -> None:
    """The environment travels in the settings and is left out of their repr."""
    found = load(tmp_path, environment={"OPENAI_API_KEY": "sk-very-secret"})

    assert found.environment["OPENAI_API_KEY"] == "sk-very-secret"
    assert "sk-very-secret" not in repr(found)


def test_a_file_that_is_not_utf_8_names_the_byte(tmp_path: Path) -> None:
    """The place of the first bad byte is told, and not its neighbours; a byte order mark is no error."""
    path = tmp_path / "user.toml"
    path.write_bytes(b'model = "caf\xe9"')
    with pytest.raises(ConfigurationInvalid, match=r"user\.toml: byte 12 is not UTF-8"):
        load(tmp_path)
    path.write_bytes(b'\xef\xbb\xbfmodel = "a"\r\n')

    assert load(tmp_path).options.model == "a"


def test_a_job_file_holds_options_and_what_a_job_is(tmp_path: Path) -> None:
    """JOB.toml: any option, and input, output and job."""
    path = tmp_path / "nightly.toml"
    path.write_text('input = ["a.txt", "b/"]\noutput = "out"\njob = "nightly"\nmax_cost = "1.5"\ntimeout = "90s"')

    assert settings.read_job(path) == {
        "input": ["a.txt", "b/"],
        "output": "out",
        "job": "nightly",
        "max_cost": Decimal("1.5"),
        "timeout": 90.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inptu = 'a'", "unknown key 'inptu'"),
        ("input = 3", "'input' must be a string or a list of strings"),
        ("output = ['a']", "'output' must be a string"),
        ("concurrency = 'x'", "'concurrency' must be a whole number"),
        ("[providers.eu]\nprotocol = 'tei'", "unknown key 'providers'"),
    ],
)
def test_a_wrong_job_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    """Mistakes in JOB.toml exit with 78, with its name and the key; it may set no providers."""
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationInvalid) as caught:
        settings.read_job(path)

    assert caught.value.message == f"{path}: {message}"


def test_a_job_file_that_is_not_there_is_missing_input(tmp_path: Path) -> None:
    """A JOB.toml that does not exist exits with 66."""
    with pytest.raises(InputMissing, match="no such job file"):
        settings.read_job(tmp_path / "no.toml")

"""Settings: flag > environment > ./embedctl.toml > user config > default. Resolved once, then frozen.

A project's own ./embedctl.toml may hold everything but [providers.*]: a key goes only to the host that the user
configured next to it. What it says of allow-lists and workspaces may only narrow what the user's own file says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedctl.errors import ConfigurationInvalid, InputMissing, WrongUsage
from embedctl.settings import files as settings_files
from embedctl.settings import options as run_options
from embedctl.settings.files import NAMED_TABLES, SINGLE_TABLES, SettingsFile
from embedctl.settings.options import Options
from embedctl.settings.tables import (
    Allow,
    CacheSettings,
    ModelSettings,
    ProviderSettings,
    TokenUsage,
    WorkspaceSettings,
)

PROJECT_FILE = "embedctl.toml"
LEDGER_NAME = "usage.duckdb"
VARIABLES: Mapping[str, str] = {"EMBEDCTL_MODEL": "model", "EMBEDCTL_WORKSPACE": "workspace"}
"""Environment variables that are options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where state lives. All but the ledger and its spool are below `home`."""

    home: Path
    ledger: Path

    @property
    def spool(self) -> Path:
        """Usage events on their way to the ledger: in the home for its own, beside any other."""
        if self.ledger.absolute() == (self.home / LEDGER_NAME).absolute():
            return self.home / "spool"
        return self.ledger.with_name(self.ledger.name + ".spool")

    @property
    def price_file(self) -> Path:
        """The user's own prices."""
        return self.home / "prices.toml"

    @property
    def runs(self) -> Path:
        """One record per run."""
        return self.home / "runs"

    @property
    def journal(self) -> Path:
        """Journals of calls that have no output."""
        return self.home / "journal"

    @property
    def cache(self) -> Path:
        """The shared vector cache."""
        return self.home / "cache.sqlite"

    @property
    def models(self) -> Path:
        """Pulled local models."""
        return self.home / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command needs to know, resolved.

    Attributes:
        chains: Fallback order by the entry that was asked for; the user's own, before the catalog's defaults.
        chain_override: From EMBEDCTL_FALLBACK_CHAIN: the chain of whatever model is asked for.
        narrowings: Allow-lists to pass, all of them: the user's and the project's.
        origins: Where each option's value comes from, for `config show`.
        files: Settings files that were read, strongest first.
        environment: The process's environment; holds keys, so it never shows in a repr.
    """

    options: Options
    providers: Mapping[str, ProviderSettings]
    chains: Mapping[str, tuple[str, ...]]
    chain_override: tuple[str, ...] | None
    narrowings: tuple[tuple[str, Allow], ...]
    workspaces: Mapping[str, WorkspaceSettings]
    token_usage: TokenUsage
    models: Mapping[str, ModelSettings]
    cache: CacheSettings
    paths: Paths
    origins: Mapping[str, str]
    files: tuple[Path, ...]
    environment: Mapping[str, str] = field(repr=False)


def user_config_path(environment: Mapping[str, str]) -> Path:
    """The user's settings file, whether it is there or not."""
    import platformdirs

    named = environment.get("EMBEDCTL_CONFIG")
    return Path(named) if named else platformdirs.user_config_path("embedctl") / "config.toml"


def load(
    *,
    flags: Mapping[str, Any] | None = None,
    job: Mapping[str, Any] | None = None,
    config: Path | None = None,
    ledger: Path | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Resolve all settings.

    Args:
        flags: Options from the command line; None values are unset.
        job: Options of JOB.toml as `read_job` gives them, weaker than flags.
        config: `--config`, instead of the user's config.
        ledger: `--ledger`.
        folder: Where ./embedctl.toml is looked for; the current folder by default.

    Raises:
        ConfigurationInvalid: A file or a variable is wrong; the message names the key, never a value.
        WrongUsage: A flag is, or two options contradict each other.
    """
    env = dict(os.environ if environment is None else environment)
    files = _files(env, config, folder or Path.cwd())
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for label, layer in _layers(flags or {}, job or {}, env, files):
        for key in layer.keys() - values.keys():
            values[key], origins[key] = layer[key], label
    named, single = _merged(files)
    chain = env.get("EMBEDCTL_FALLBACK_CHAIN") or env.get("EMBEDDINGS_FALLBACK_CHAIN")
    return Settings(
        options=run_options.check(Options(**values)),
        providers=MappingProxyType(named["providers"]),
        chains=MappingProxyType(named["fallback"]),
        chain_override=tuple(part.strip() for part in chain.split(",") if part.strip()) if chain else None,
        narrowings=tuple((str(file.path), file.tables["allow"]) for file in files if "allow" in file.tables),
        workspaces=MappingProxyType(_narrowed(files)),
        token_usage=single["token_usage"],
        models=MappingProxyType(named["models"]),
        cache=single["cache"],
        paths=_paths(env, ledger),
        origins=MappingProxyType({entry.name: origins.get(entry.name, "default") for entry in fields(Options)}),
        files=tuple(file.path for file in files),
        environment=MappingProxyType(env),
    )


def read_job(path: Path) -> dict[str, Any]:
    """JOB.toml: options, and `input`, `output`, `job`.

    Raises:
        InputMissing: No such file.
        ConfigurationInvalid: It is no TOML, has an unknown key, or a wrong value.
    """
    if not path.is_file():
        raise InputMissing(f"no such job file: {path}", hint="a job file ends in .toml; inputs are named after it")
    content = settings_files.toml(path)
    own = ("input", "output", "job")
    job = {key: content[key] for key in own if key in content}
    for key, value in job.items():
        texts = value if key == "input" and isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            kind = "a string or a list of strings" if key == "input" else "a string"
            raise ConfigurationInvalid(f"{path}: {key!r} must be {kind}")
    return settings_files.options(content, str(path), hard_link=own) | job


def _layers(
    flags: Mapping[str, Any], job: Mapping[str, Any], env: Mapping[str, str], files: Sequence[SettingsFile]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Options of each layer and where they come from, strongest first."""
    given = {key: value for key, value in flags.items() if value is not None}
    yield "flag", settings_files.options(given, "", error=WrongUsage, spelt=run_options.flag)
    yield "job file", job
    for variable, key in VARIABLES.items():
        if env.get(variable):
            yield variable, settings_files.options({key: env[variable]}, variable)
    for file in files:
        yield str(file.path), file.options


def _paths(env: Mapping[str, str], ledger: Path | None) -> Paths:
    import platformdirs

    home = Path(env.get("EMBEDCTL_HOME") or platformdirs.user_data_path("embedctl"))
    return Paths(home=home, ledger=ledger or Path(env.get("EMBEDCTL_LEDGER") or home / LEDGER_NAME))


def _files(env: Mapping[str, str], config: Path | None, folder: Path) -> list[SettingsFile]:
    """The settings files, strongest first."""
    found: list[SettingsFile] = []
    user = config or user_config_path(env)
    project = folder / PROJECT_FILE
    if project.is_file() and project.resolve() != user.resolve():
        found.append(settings_files.read(project, may_set_providers=False))
    if user.is_file():
        found.append(settings_files.read(user, may_set_providers=True))
    elif config or env.get("EMBEDCTL_CONFIG"):
        raise ConfigurationInvalid(f"no such settings file: {user}", hint="`embedctl config init` writes one")
    return found


def _merged(files: Sequence[SettingsFile]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Named and single tables of all files: an entry, or a single table, of the stronger file wins whole."""
    named: dict[str, dict[str, Any]] = {key: {} for key in (*NAMED_TABLES, "fallback")}
    for file in reversed(files):
        for key, entries in named.items():
            entries.update(file.tables.get(key, {}))
    single = {
        key: next((file.tables[key] for file in files if key in file.tables), kind())
        for key, kind in SINGLE_TABLES.items()
    }
    return named, single


def _narrowed(files: Sequence[SettingsFile]) -> dict[str, WorkspaceSettings]:
    """Workspaces of all files: what all of them allow, and the budget of the user's own file before a project's."""
    merged: dict[str, WorkspaceSettings] = {}
    for file in reversed(files):
        for name, entry in file.tables["workspaces"].items():
            before = merged.get(name, entry)
            merged[name] = replace(
                before,
                providers=_both(before.providers, entry.providers),
                models=_both(before.models, entry.models),
                budget=before.budget or entry.budget,
            )
    return merged


def _both(these: tuple[str, ...] | None, those: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What two allow-lists allow together; None allows all."""
    if these is None or those is None:
        return those if these is None else these
    return tuple(name for name in these if name in those)

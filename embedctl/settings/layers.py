"""Settings: flag > environment > ./embedctl.toml > user config > default. Resolved once, then frozen.

What a project's own ./embedctl.toml may say, and how the user's word narrows it, is a table (`settings.project`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, InputMissing, WrongUsage
from embedctl.records import printable
from embedctl.settings import files as settings_files
from embedctl.settings import options as run_options
from embedctl.settings import project, toml_files
from embedctl.settings.files import SettingsFile
from embedctl.settings.options import Options
from embedctl.settings.tables import (
    Allow,
    CacheSettings,
    ModelSettings,
    ProviderSettings,
    ServeSettings,
    TokenUsage,
    WorkspaceSettings,
    keeps_counts,
)
from embedctl.storage.named import check_local
from embedctl.storage.stores import Stores

PROJECT_FILE = "embedctl.toml"
LEDGER_NAME = "usage.duckdb"
CONFIG_NAME = "config.toml"
VARIABLES: Mapping[str, str] = {
    "EMBEDCTL_MODEL": "model", "EMBEDCTL_WORKSPACE": "workspace", "EMBEDCTL_CANARY": "canary",
}  # fmt: skip
"""Environment variables that are options."""

COUNTS_VARIABLE = "EMBEDCTL_TOKEN_USAGE_CACHE"
_SWITCH: Mapping[str, bool | str] = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


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
    def attempts(self) -> Path:
        """What the attempts of runs cost whose journal is elsewhere, until it is in the spool."""
        return self.home / "attempts"

    @property
    def batches(self) -> Path:
        """What runs have of batches at their providers, once more."""
        return self.home / "batches"

    @property
    def cache(self) -> Path:
        """The shared vector cache."""
        return self.home / "cache.sqlite"

    @property
    def canaries(self) -> Path:
        """What models make of three fixed texts, a file for each space."""
        return self.home / "canaries"

    @property
    def models(self) -> Path:
        """Pulled local models."""
        return self.home / "models"

    @property
    def keys(self) -> Path:
        """Keys that a server takes, hashed."""
        return self.home / "keys.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command needs to know, resolved.

    Attributes:
        chains: Fallback order by the entry that was asked for; the user's own, before the catalog's defaults.
        chain_override: From EMBEDCTL_FALLBACK_CHAIN: the chain of whatever model is asked for.
        chain_filters: A project's chains: of what would take over, only what stands in them does.
        narrowings: Allow-lists to pass, all of them: the user's and the project's.
        narrowed: Options whose value is a project's limit: no provider's own value may pass it.
        unheeded: What a project asked for and the user's word did not let it have, a sentence each.
        origins: Where each option's value comes from, for `config show`.
        files: Settings files that were read, strongest first.
        misplaced: A sentence that says where the user's file belongs, when it is read from elsewhere.
        environment: The process's environment; holds keys, so it never shows in a repr.
    """

    options: Options
    providers: Mapping[str, ProviderSettings]
    chains: Mapping[str, tuple[str, ...]]
    chain_override: tuple[str, ...] | None
    chain_filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    narrowings: tuple[tuple[str, Allow], ...]
    narrowed: frozenset[str] = frozenset()
    unheeded: tuple[str, ...] = ()
    workspaces: Mapping[str, WorkspaceSettings]
    token_usage: TokenUsage
    models: Mapping[str, ModelSettings]
    cache: CacheSettings
    serve: ServeSettings = field(default_factory=ServeSettings)
    stores: Stores = field(default_factory=Stores)
    paths: Paths
    origins: Mapping[str, str]
    files: tuple[Path, ...]
    misplaced: str | None = None
    environment: Mapping[str, str] = field(repr=False)


def user_config_path(environment: Mapping[str, str]) -> Path:
    """The user's settings file, whether it is there or not: in EMBEDCTL_HOME where that is set.

    When it is only where it would be without EMBEDCTL_HOME, it is read there (see `misplaced`).

    Raises:
        ConfigurationInvalid: This user has no home folder, and neither variable is set.
    """
    if named := environment.get("EMBEDCTL_CONFIG"):
        return Path(named)
    usual = _usual_config_path()
    if not environment.get("EMBEDCTL_HOME"):
        return usual or home_of(environment) / CONFIG_NAME
    within = home_of(environment) / CONFIG_NAME
    return usual if usual and not _is_there(within) and _is_there(usual) else within


def misplaced(environment: Mapping[str, str], config: Path) -> str | None:
    """A sentence about the settings file `config` when it is read outside of EMBEDCTL_HOME, though that is set."""
    if environment.get("EMBEDCTL_CONFIG") or not environment.get("EMBEDCTL_HOME") or config != _usual_config_path():
        return None
    return f"EMBEDCTL_HOME is set, but the settings are in {config}: move them to {home_of(environment) / CONFIG_NAME}"


def _usual_config_path() -> Path | None:
    """Where the platform keeps settings; None for a user without a home folder."""
    import platformdirs

    try:
        return platformdirs.user_config_path("embedctl") / CONFIG_NAME
    except RuntimeError:  # no HOME, and no entry in passwd: `docker run --user 12345`
        return None


def home_of(environment: Mapping[str, str]) -> Path:
    """Where embedctl keeps its state.

    Raises:
        ConfigurationInvalid: EMBEDCTL_HOME is not set, and this user has no home folder.
    """
    import platformdirs

    if named := environment.get("EMBEDCTL_HOME"):
        return Path(named)
    try:
        return platformdirs.user_data_path("embedctl")
    except RuntimeError:
        raise ConfigurationInvalid(
            "this user has no home folder", hint="set EMBEDCTL_HOME to a folder in which embedctl may keep its state"
        ) from None


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
    own, by_project = _files(env, config, folder)
    files = tuple(file for file in (by_project, own) if file is not None)
    options = _options(flags or {}, job or {}, env, own, by_project)
    tables = own.tables if own else {}
    chain = env.get("EMBEDCTL_FALLBACK_CHAIN") or env.get("EMBEDDINGS_FALLBACK_CHAIN")
    return Settings(
        options=run_options.check(Options(**options.values)),
        providers=MappingProxyType(tables.get("providers", {})),
        chains=MappingProxyType(tables.get("fallback", {})),
        chain_override=tuple(part.strip() for part in chain.split(",") if part.strip()) if chain else None,
        chain_filters=MappingProxyType(by_project.tables.get("fallback", {}) if by_project else {}),
        narrowings=tuple((str(file.path), file.tables["allow"]) for file in files if "allow" in file.tables),
        narrowed=frozenset(options.narrowed),
        unheeded=tuple(options.unheeded),
        workspaces=MappingProxyType(tables.get("workspaces", {})),
        token_usage=_token_usage(tables.get("token_usage", TokenUsage()), env),
        models=MappingProxyType(tables.get("models", {})),
        cache=tables.get("cache", CacheSettings()),
        serve=tables.get("serve", ServeSettings()),
        stores=Stores(given=options.values.get("store_option", {}), by_root=tables.get("stores", {})),
        paths=_paths(env, ledger),
        origins=MappingProxyType({entry.name: options.origins.get(entry.name, "default") for entry in fields(Options)}),
        files=tuple(file.path for file in files),
        misplaced=misplaced(env, own.path) if own and config is None else None,
        environment=MappingProxyType(env),
    )


def _token_usage(asked: TokenUsage, env: Mapping[str, str]) -> TokenUsage:
    """How tokens are counted; EMBEDCTL_TOKEN_USAGE_CACHE is stronger than the file.

    Raises:
        ConfigurationInvalid: It is neither off, on, nor an address; which may hold a password, so it is not shown.
    """
    said = env.get(COUNTS_VARIABLE, "").strip()
    if not said:
        return asked
    cache = _SWITCH.get(said.lower(), said)
    if wrong := keeps_counts(cache):
        raise ConfigurationInvalid(f"{COUNTS_VARIABLE} {wrong.replace('true, false,', 'on, off,')}")
    return replace(asked, cache=cache)


def read_job(path: Path) -> dict[str, Any]:
    """JOB.toml: options, and `input`, `output`, `job`.

    Raises:
        InputMissing: No such file.
        ConfigurationInvalid: It is no TOML, has an unknown key, a wrong value, or sets what only a user may.
    """
    if not _is_there(path):
        raise InputMissing(f"no such job file: {path}", hint="a job file ends in .toml; inputs are named after it")
    content = toml_files.read(path)
    for key in _NEVER_A_JOBS:
        if key in content:
            raise ConfigurationInvalid(
                f"{path}: a job file may not set {key}", hint=f"give --{key}, or set it in your own settings"
            )
    own = ("input", "output", "job")
    job = {key: content[key] for key in own if key in content}
    for key, value in job.items():
        texts = value if key == "input" and isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            kind = "a string or a list of strings" if key == "input" else "a string"
            raise ConfigurationInvalid(f"{path}: {key!r} must be {kind}")
    return settings_files.options(content, str(path), hard_link=own) | job


_NEVER_A_JOBS = ("insecure", "ledger", "store_option")
"""A job file may be a stranger's: keys would be read on the way or sent elsewhere, money would be counted elsewhere."""


_RIVALS = {"text_column": "template", "template": "text_column"}
"""Two ways to say one thing: the stronger layer's counts."""


@dataclass(slots=True)
class _Resolved:
    """Options by name, where each comes from, and what became of a project's."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    narrowed: list[str] = field(default_factory=list)
    unheeded: list[str] = field(default_factory=list)

    def add(self, layer: Mapping[str, Any], label: str) -> None:
        """A layer that is weaker than those before it."""
        for key in layer.keys() - self.values.keys() - self._rivals():
            self.values[key], self.origins[key] = layer[key], label

    def _rivals(self) -> set[str]:
        """What a stronger layer has said in another way."""
        return {weaker for weaker, stronger in _RIVALS.items() if stronger in self.values}

    def add_project(self, file: SettingsFile, weaker: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
        """A project's layer, narrowed by what is weaker than it."""
        rivals = self._rivals()
        for key, asked in file.options.items():
            if key in self.values or key in rivals:
                continue
            ours = weaker[key]
            if key == "workspace":
                project.check_workspace(asked, ours, listed, str(file.path))
            holds = project.OPTIONS[key](asked, ours)
            if holds != asked:
                self.unheeded.append(f"{file.path}: {key} = {asked} does not count: yours is {ours}")
            elif project.is_limit(key):
                self.narrowed.append(key)
            if holds == asked:
                self.values[key], self.origins[key] = asked, str(file.path)


def _options(
    flags: Mapping[str, Any],
    job: Mapping[str, Any],
    env: Mapping[str, str],
    own: SettingsFile | None,
    by_project: SettingsFile | None,
) -> _Resolved:
    resolved = _Resolved()
    for label, layer in _strong_layers(flags, job, env):
        resolved.add(layer, label)
    if by_project is not None:
        default = Options()
        defaults = {entry.name: getattr(default, entry.name) for entry in fields(Options)}
        weaker = ChainMap(dict(own.options) if own else {}, defaults)
        resolved.add_project(by_project, weaker, own.tables.get("workspaces", {}) if own else {})
    if own is not None:
        resolved.add(own.options, str(own.path))
    return resolved


def _strong_layers(
    flags: Mapping[str, Any], job: Mapping[str, Any], env: Mapping[str, str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Options of each layer above the files and where they come from, strongest first."""
    given = {key: value for key, value in flags.items() if value is not None}
    yield "flag", settings_files.options(given, "", error=WrongUsage, spelt=run_options.flag)
    yield "job file", job
    for variable, key in VARIABLES.items():
        if env.get(variable):
            yield variable, settings_files.options({key: env[variable]}, variable)


def _paths(env: Mapping[str, str], ledger: Path | None) -> Paths:
    home = home_of(env)
    check_local(home)
    _check_home(home)
    paths = Paths(home=home, ledger=ledger or Path(env.get("EMBEDCTL_LEDGER") or home / LEDGER_NAME))
    check_local(paths.ledger)
    if (name := printable(str(paths.ledger))) != str(paths.ledger):
        raise ConfigurationInvalid(
            f"the ledger {name} cannot be: a byte of its path is not UTF-8",
            hint="DuckDB knows no such paths; choose another with --ledger, EMBEDCTL_LEDGER or EMBEDCTL_HOME",
        )
    try:
        kind = paths.ledger.stat().st_mode
        trouble = None if stat.S_ISREG(kind) else "it is a pipe or device, not a file"
        trouble = "it is a folder, not a file" if stat.S_ISDIR(kind) else trouble
    except OSError as problem:
        trouble = problem.strerror if problem.errno in (errno.ELOOP, errno.ENAMETOOLONG) else None
    if trouble:
        raise ConfigurationInvalid(
            f"the ledger {paths.ledger} cannot be reached: {trouble}", hint="choose another with --ledger"
        )
    return paths


def _check_home(home: Path) -> None:
    """What lies in the home is believed, so nobody else may put anything there.

    Raises:
        ConfigurationInvalid: Others may; or its name leads nowhere.
    """
    try:
        found = home.stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # it is made, or found out when it is needed
    except OSError as problem:
        raise ConfigurationInvalid(
            f"{home}, where embedctl keeps its state, cannot be reached: {problem.strerror}",
            hint="set EMBEDCTL_HOME to a folder",
        ) from None
    exposed = storage.exposure_to_others(home, stat.S_IMODE(found.st_mode), found.st_uid)
    if exposed and stat.S_ISDIR(found.st_mode):
        raise ConfigurationInvalid(f"{home}, where embedctl keeps its state, {exposed[0]}", hint=exposed[1])


def _files(
    env: Mapping[str, str], config: Path | None, folder: Path | None
) -> tuple[SettingsFile | None, SettingsFile | None]:
    """The user's settings file and the project's, where there are any."""
    user = config or user_config_path(env)
    here = (current_folder() if folder is None else folder) / PROJECT_FILE
    by_project = None
    if _is_there(here) and os.path.realpath(here) != os.path.realpath(user):
        by_project = settings_files.read_project(here)
    if _is_there(user):
        return settings_files.read_own(user), by_project
    if config or env.get("EMBEDCTL_CONFIG"):
        raise ConfigurationInvalid(f"no such settings file: {user}", hint="`embedctl config init` writes one")
    return None, by_project


def current_folder() -> Path:
    """Where relative paths begin.

    Raises:
        InputMissing: It was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise InputMissing("the current folder is gone", hint="`cd` to one that is there") from None


def _is_there(path: Path) -> bool:
    """Whether the name leads somewhere, or to trouble that reading it will tell."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True

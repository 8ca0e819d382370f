"""Settings: flag > environment > ./embedctl.toml > user config > default. Resolved once, then frozen.

A project's own ./embedctl.toml may hold everything but [providers.*]: a key goes only to the host that the user
configured next to it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import msgspec
import platformdirs

from embedctl import options as run_options
from embedctl.errors import ConfigurationInvalid, InputMissing, WrongUsage
from embedctl.options import Options

PROJECT_FILE = "embedctl.toml"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """`[providers.NAME]`: a place that serves models, or changes to a built-in one.

    Attributes:
        models: Canonical name → name on the wire.
        timeout_s: Seconds one request may take.
        price_as: Whose catalog prices apply; a place of one's own has none until told.
        free: This place costs nothing.
        insecure: Allow plain http to a host that is not loopback.
        body, vectors, index, ids, tokens, error, path: The json protocol's template and JMESPath expressions.
    """

    protocol: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    burst: int | None = None
    timeout_s: float | None = None
    price_as: str | None = None
    free: bool | None = None
    region: str | None = None
    insecure: bool = False
    ca_file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    api_version: str | None = None
    max_items: int | None = None
    max_tokens: int | None = None
    max_bytes: int | None = None
    jwt_secret_env: str | None = None
    jwt_subject: str | None = None
    pin: str | None = None
    path: str | None = None
    body: Mapping[str, Any] | str | None = None
    vectors: str | None = None
    index: str | None = None
    ids: str | None = None
    tokens: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """`[allow]`: None allows all."""

    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """`[workspaces.NAME] budget`: amount in USD per period."""

    amount: Decimal
    period: Literal["day", "week", "month"] = "month"
    action: Literal["warn", "block"] = "block"
    timezone: str = "UTC"
    warn_ratio: Decimal = Decimal("0.8")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceSettings:
    """`[workspaces.NAME]`: what a workspace may use, and how much."""

    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    budget: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """`[token_usage]`: how tokens are counted where the provider does not."""

    fallback_tokenizer: str = "tiktoken:cl100k_base"
    cache: bool = False
    cache_ttl_s: int = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """`[models."PROVIDER:MODEL"]`."""

    usage_mode: Literal["native", "fallback", "auto"] | None = None
    fallback_tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """`[cache]`: the shared vector cache."""

    max_bytes: int = 2 * 1024**3
    ttl_days: int = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where state lives. All but the ledger are below `home`."""

    home: Path
    ledger: Path

    @property
    def spool(self) -> Path:
        """Usage events on their way to the ledger."""
        return self.home / "spool"

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


_TABLES = {
    "providers": ProviderSettings,
    "workspaces": WorkspaceSettings,
    "models": ModelSettings,
}
_SINGLES = {"allow": Allow, "token_usage": TokenUsage, "cache": CacheSettings}


@dataclass(frozen=True, slots=True)
class _File:
    """One settings file, checked: its options and its tables."""

    label: str
    options: Mapping[str, Any]
    tables: Mapping[str, Any]


def user_config_path(environment: Mapping[str, str]) -> Path:
    """The user's settings file, whether it is there or not."""
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
        job: Options from JOB.toml, weaker than flags.
        config: `--config`, instead of the user's config.
        ledger: `--ledger`.
        folder: Where ./embedctl.toml is looked for; the current folder by default.

    Raises:
        ConfigurationInvalid: A file or a variable is wrong; the message names the key, never a value of a key line.
        WrongUsage: A flag is.
    """
    env = dict(os.environ if environment is None else environment)
    files = _files(env, config, folder or Path.cwd())
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("flag", {k: v for k, v in (flags or {}).items() if v is not None}),
        ("job file", job or {}),
        ("EMBEDCTL_MODEL", {"model": env["EMBEDCTL_MODEL"]} if env.get("EMBEDCTL_MODEL") else {}),
        (
            "EMBEDCTL_WORKSPACE",
            {"workspace": env["EMBEDCTL_WORKSPACE"]} if env.get("EMBEDCTL_WORKSPACE") else {},
        ),
        *((file.label, file.options) for file in files),
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for label, layer in layers:
        for key in layer.keys() - values.keys():
            values[key], origins[key] = layer[key], label
    options = run_options.check(_converted(values, Options, "options"))
    tables = _merged(files)
    home = Path(env.get("EMBEDCTL_HOME") or platformdirs.user_data_path("embedctl"))
    chain = env.get("EMBEDCTL_FALLBACK_CHAIN") or env.get("EMBEDDINGS_FALLBACK_CHAIN")
    return Settings(
        options=options,
        providers=MappingProxyType(tables["providers"]),
        chains=MappingProxyType(tables["fallback"]),
        chain_override=tuple(part.strip() for part in chain.split(",") if part.strip()) if chain else None,
        narrowings=tuple((f.label, f.tables["allow"]) for f in files if "allow" in f.tables),
        workspaces=MappingProxyType(tables["workspaces"]),
        token_usage=tables["token_usage"],
        models=MappingProxyType(tables["models"]),
        cache=tables["cache"],
        paths=Paths(home=home, ledger=ledger or Path(env.get("EMBEDCTL_LEDGER") or home / "usage.duckdb")),
        origins=MappingProxyType({f.name: origins.get(f.name, "default") for f in fields(Options)}),
        files=tuple(Path(file.label) for file in files),
        environment=MappingProxyType(env),
    )


def read_job(path: Path) -> dict[str, Any]:
    """JOB.toml: options, and `input`, `output`, `job`.

    Raises:
        InputMissing: No such file.
        ConfigurationInvalid: It is no TOML, or has an unknown key.
    """
    if not path.is_file():
        raise InputMissing(f"no such job file: {path}", hint="a job file ends in .toml; inputs are named after it")
    return _checked_options(_toml(path), str(path), also=("input", "output", "job"))


def _files(env: Mapping[str, str], config: Path | None, folder: Path) -> list[_File]:
    """The settings files, strongest first."""
    found: list[_File] = []
    user = config or user_config_path(env)
    project = folder / PROJECT_FILE
    if project.is_file() and project.resolve() != user.resolve():
        found.append(_checked_file(project, may_set_providers=False))
    if user.is_file():
        found.append(_checked_file(user, may_set_providers=True))
    elif config or env.get("EMBEDCTL_CONFIG"):
        raise ConfigurationInvalid(f"no such settings file: {user}", hint="`embedctl config init` writes one")
    return found


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(f"{path}: {error}", hint="the file must be TOML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"{path} cannot be read: {error}") from None


def _checked_file(path: Path, *, may_set_providers: bool) -> _File:
    content = _toml(path)
    label = str(path)
    if "providers" in content and not may_set_providers:
        raise ConfigurationInvalid(
            f"{path}: a project's file may not set [providers.*]: keys go only to hosts the user configured",
            hint="move the table to the user's config (`embedctl config path`), or name this file with --config",
        )
    tables: dict[str, Any] = {}
    for key, kind in _TABLES.items():
        entries = content.pop(key, {})
        _must_be_table(entries, f"{label}: [{key}]")
        tables[key] = {name: _converted(entry, kind, f"{label}: [{key}.{name}]") for name, entry in entries.items()}
    for key, kind in _SINGLES.items():
        if isinstance(content.get(key), dict):
            tables[key] = _converted(content.pop(key), kind, f"{label}: [{key}]")
    if isinstance(content.get("fallback"), dict):
        chains = content.pop("fallback")
        tables["fallback"] = _converted(chains, dict[str, tuple[str, ...]], f"{label}: [fallback]")
    known = (*_TABLES, *_SINGLES, "fallback")
    return _File(label, _checked_options(content, label, also_known=known), tables)


def _checked_options(
    content: Mapping[str, Any], label: str, *, also: tuple[str, ...] = (), also_known: tuple[str, ...] = ()
) -> dict[str, Any]:
    known = [f.name for f in fields(Options)]
    for key in content:
        if key not in known and key not in also:
            _unknown_key(key, [*known, *also, *also_known], label)
    return dict(content)


def _unknown_key(key: str, known: list[str], label: str) -> None:
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    raise ConfigurationInvalid(
        f"{label}: unknown key {key!r}",
        hint=f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}",
    )


def _must_be_table(value: object, label: str) -> None:
    if not isinstance(value, dict):
        raise ConfigurationInvalid(f"{label} must be a table")


def _converted(value: Any, kind: type[_T], label: str) -> _T:
    """`value` as `kind`; unknown keys and wrong types are errors that name the key, never the value."""
    if kind is Options:
        value = {k: run_options.seconds(v) if k in ("timeout", "max_wait", "deadline") else v for k, v in value.items()}
    if hasattr(kind, "__dataclass_fields__"):
        _must_be_table(value, label)
        known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
        for key in value:
            if key not in known:
                _unknown_key(key, known, label)
        for entry in fields(kind):  # type: ignore[arg-type]
            needed = entry.default is MISSING and entry.default_factory is MISSING
            if needed and entry.name not in value:
                raise ConfigurationInvalid(f"{label}: {entry.name!r} is missing")
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error)
        if label == "options":
            raise WrongUsage(f"bad option: {reason}") from None
        raise ConfigurationInvalid(f"{label}: {reason}") from None


def _merged(files: list[_File]) -> dict[str, Any]:
    """Tables of all files: entries of the stronger file win whole."""
    merged: dict[str, Any] = {key: {} for key in (*_TABLES, "fallback")}
    for file in reversed(files):
        for key in merged:
            merged[key] |= file.tables.get(key, {})
    for key, kind in _SINGLES.items():
        merged[key] = next((f.tables[key] for f in files if key in f.tables), kind())
    return merged

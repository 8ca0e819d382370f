"""Settings files → checked options and tables; every error names the file and the key, never a value."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, EmbedctlError, WrongUsage, nearest
from embedctl.settings import options as run_options
from embedctl.settings import project, toml_files
from embedctl.settings.options import Options
from embedctl.settings.tables import (
    Allow,
    CacheSettings,
    ModelSettings,
    ProviderSettings,
    ServeSettings,
    TokenUsage,
    WorkspaceSettings,
    names_a_variable,
)
from embedctl.storage.stores import checked_table

_T = TypeVar("_T")

NAMED_TABLES: Mapping[str, type[Any]] = {
    "providers": ProviderSettings,
    "workspaces": WorkspaceSettings,
    "models": ModelSettings,
}
"""Tables with an entry per name: `[providers.NAME]`."""

SINGLE_TABLES: Mapping[str, type[Any]] = {
    "allow": Allow,
    "token_usage": TokenUsage,
    "cache": CacheSettings,
    "serve": ServeSettings,
}

_ALSO_OPTIONS = ("cache", "fallback")
"""Keys that are a table or an option, whichever they hold."""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """One settings file, checked.

    Attributes:
        options: As Options has them.
        tables: Of NAMED_TABLES and "fallback": name → entry; of SINGLE_TABLES: the table itself.
        by_project: It lay in the current folder, and is nobody's word but its writer's.
    """

    path: Path
    options: Mapping[str, Any]
    tables: Mapping[str, Any]
    by_project: bool = False


_A_JOBS = ("sql", "attach")
"""Options that say what is read."""


def read_own(path: Path) -> SettingsFile:
    """The user's own settings: everything may stand there, so nobody else may have written it.

    Raises:
        ConfigurationInvalid: It is not as it should be, or others can change it.
    """
    opened = toml_files.opened(path)
    exposed = storage.exposure_to_others(path, opened.mode, opened.owner)
    if exposed and not opened.sealed:
        raise ConfigurationInvalid(f"{path} {exposed[0]}: it says where keys go", hint=exposed[1])
    content = toml_files.decoded(opened.content, str(path))
    for key in _A_JOBS:
        if key in content:
            raise ConfigurationInvalid(
                f"{path}: {key} belongs to one job, not to all", hint=f"give --{key}, or set it in a JOB.toml"
            )
    return _checked(path, content, by_project=False)


def read_project(path: Path) -> SettingsFile:
    """A project's settings: whoever wrote the folder wrote them.

    Raises:
        ConfigurationInvalid: They are not as they should be, or set what no project may.
    """
    content = toml_files.read(path)
    project.check_keys(content, str(path))
    return _checked(path, content, by_project=True)


def _checked(path: Path, content: dict[str, Any], *, by_project: bool) -> SettingsFile:
    label = str(path)
    tables: dict[str, Any] = {}
    for key, kind in NAMED_TABLES.items():
        entries = _table(content.pop(key, {}), f"{label}: [{key}]")
        tables[key] = {
            name: _beside(path, converted(entry, kind, f"{label}: [{key}.{name}]")) for name, entry in entries.items()
        }
    for key, kind in SINGLE_TABLES.items():
        if key in content and (key not in _ALSO_OPTIONS or isinstance(content[key], dict)):
            tables[key] = _beside(path, converted(content.pop(key), kind, f"{label}: [{key}]"))
    if isinstance(content.get("fallback"), dict):
        chains = content.pop("fallback")
        tables["fallback"] = {
            name: _value(chain, tuple[str, ...], f"{label}: [fallback] {name!r}") for name, chain in chains.items()
        }
    if "stores" in content:
        named = _table(content.pop("stores"), f"{label}: [stores]")
        tables["stores"] = dict(
            checked_table(name, _texts(entry, label), label, names_a_variable) for name, entry in named.items()
        )
    known = (*NAMED_TABLES, *SINGLE_TABLES, "fallback", "stores")
    return SettingsFile(path, options(content, label, also_known=known), tables, by_project=by_project)


def _texts(entry: Any, label: str) -> dict[str, str]:
    """A table's values as obstore takes them: true is "true"."""
    table = _table(entry, f"{label}: [stores]")
    for key, value in table.items():
        if not isinstance(value, str | bool | int):
            raise ConfigurationInvalid(f"{label}: [stores] {key!r} must be a string, a number, or true or false")
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in table.items()}


_PATHS = {"ca_file": "", "fallback_tokenizer": "file:"}
"""Keys whose value is the path of a file, behind these words."""


def _beside(path: Path, table: _T) -> _T:
    """The table with its relative paths as of the file it stands in: in the current folder anything may lie."""
    for key, before in _PATHS.items():
        value = getattr(table, key, None)
        if value and value.startswith(before):
            file = path.absolute().parent / os.path.expanduser(value.removeprefix(before))  # noqa: PTH111 - never raises
            table = replace(table, **{key: f"{before}{file}"})  # type: ignore[type-var]
    return table


def options(
    content: Mapping[str, Any],
    label: str,
    *,
    hard_link: tuple[str, ...] = (),
    also_known: tuple[str, ...] = (),
    error: type[EmbedctlError] = ConfigurationInvalid,
    spelt: Callable[[str], str] = repr,
) -> dict[str, Any]:
    """Options of one layer, with the types of `Options` and each within its range.

    Args:
        label: Where they stand, for people; begins every message.
        also: Keys that are none, and are left out.
        also_known: Other words a misspelt key may be like.
        spelt: How a key is shown.

    Raises:
        ConfigurationInvalid, or `error`: A key is unknown, or its value wrong.
    """
    known = [entry.name for entry in fields(Options)]
    given = {key: value for key, value in content.items() if key not in hard_link}
    for key in given:
        if key not in known:
            _unknown_key(key, [*known, *hard_link, *also_known], label, error)
    if not given:
        return {}
    hints = typing.get_type_hints(Options)
    before = f"{label}: " if label else ""
    values = {key: _option(value, hints[key], f"{before}{spelt(key)}", key, error) for key, value in given.items()}
    try:
        run_options.check(Options(**values), spelt=spelt)
    except WrongUsage as wrong:
        raise error(f"{before}{wrong.message}", hint=wrong.hint) from None
    return values


def converted(value: Any, kind: type[_T], label: str) -> _T:
    """A table as `kind`, a dataclass; so are its tables.

    Raises:
        ConfigurationInvalid: An unknown key, a missing one, or a value of another type.
    """
    table = _table(value, label)
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            _unknown_key(key, list(known), label, ConfigurationInvalid)
    for name, entry in known.items():
        if name not in table and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigurationInvalid(f"{label}: {name!r} is missing")
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {name: _value(found, hints[name], f"{label} {name!r}") for name, found in table.items()}
    for name, value in values.items():
        rule = known[name].metadata.get("rule")
        if value is not None and rule is not None and (wrong := rule(value)):
            raise ConfigurationInvalid(f"{label}: {name!r} {wrong}")
    return kind(**values)


@lru_cache(maxsize=64)
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    """Field → its type; a file of keys has thousands of one kind."""
    return typing.get_type_hints(kind)


def _option(value: Any, hint: Any, where: str, key: str, error: type[EmbedctlError]) -> Any:
    if key not in run_options.DURATIONS:
        return _value(value, hint, where, error)
    try:
        return run_options.seconds(value)
    except WrongUsage:
        raise error(f"{where} must be a duration, like 90, 90s, 2m or 1h30m") from None


def _value(value: Any, hint: Any, where: str, error: type[EmbedctlError] = ConfigurationInvalid) -> Any:
    """`value` as `hint`; digits and amounts may be strings."""
    import msgspec

    plain = _without_none(hint)
    if is_dataclass(plain):
        return converted(value, plain, where)  # type: ignore[arg-type]
    if Any in typing.get_args(plain) or Mapping[str, Any] in typing.get_args(plain):
        value = _for_json(value)
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        raise error(f"{where} must be {' or '.join(_expected(plain))}") from None


def _for_json(value: Any) -> Any:
    """A template as JSON has it: numbers with a point as float, dates as text."""
    if isinstance(value, dict):
        return {key: _for_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_for_json(one) for one in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


def _without_none(hint: Any) -> Any:
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return parts[0] if is_union and len(parts) == 1 else hint


def _expected(hint: Any) -> Iterator[str]:
    """What a value of a type is called in words."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        yield f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            if part is not types.NoneType:
                yield from _expected(part)
    else:
        words = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", Decimal: "an amount"}
        yield words.get(hint) or ("a list of strings" if origin is tuple else "a table of strings")


def _table(value: object, label: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationInvalid(f"{label} must be a table")
    return value


def _unknown_key(key: str, known: list[str], label: str, error: type[EmbedctlError]) -> None:
    close = nearest(key, known)
    raise error(
        f"{label}: unknown key {key!r}",
        hint=f"did you mean {close!r}?" if close else f"known: {', '.join(known)}",
    )

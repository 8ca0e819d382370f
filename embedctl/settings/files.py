"""Settings files → checked options and tables; every error names the file and the key, never a value."""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

from embedctl.errors import ConfigurationInvalid, EmbedctlError, WrongUsage
from embedctl.settings import options as run_options
from embedctl.settings.options import Options
from embedctl.settings.tables import (
    Allow,
    CacheSettings,
    ModelSettings,
    ProviderSettings,
    TokenUsage,
    WorkspaceSettings,
)

_T = TypeVar("_T")

NAMED_TABLES: Mapping[str, type[Any]] = {
    "providers": ProviderSettings,
    "workspaces": WorkspaceSettings,
    "models": ModelSettings,
}
"""Tables with an entry per name: `[providers.NAME]`."""

SINGLE_TABLES: Mapping[str, type[Any]] = {"allow": Allow, "token_usage": TokenUsage, "cache": CacheSettings}

_ALSO_OPTIONS = ("cache", "fallback")
"""Keys that are a table or an option, whichever they hold."""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """One settings file, checked.

    Attributes:
        options: As Options has them.
        tables: Of NAMED_TABLES and "fallback": name → entry; of SINGLE_TABLES: the table itself.
    """

    path: Path
    options: Mapping[str, Any]
    tables: Mapping[str, Any]


def toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; numbers with a point as Decimal.

    Raises:
        ConfigurationInvalid: It cannot be read, or is no TOML; the message says in which line.
    """
    try:
        return tomllib.loads(path.read_text("utf-8-sig"), parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(f"{path}: {error}", hint="the file must be TOML") from None
    except UnicodeDecodeError as error:
        raise ConfigurationInvalid(
            f"{path}: byte {error.start} is not UTF-8", hint="the file must be TOML in UTF-8"
        ) from None
    except OSError as error:
        raise ConfigurationInvalid(f"{path} cannot be read: {error.strerror}") from None


def read(path: Path, *, may_set_providers: bool) -> SettingsFile:
    """A settings file.

    Raises:
        ConfigurationInvalid: It is not as it should be, or sets providers where it must not.
    """
    content = toml(path)
    label = str(path)
    if "providers" in content and not may_set_providers:
        raise ConfigurationInvalid(
            f"{path}: a project's file may not set [providers.*]: keys go only to hosts the user configured",
            hint="move the table to the user's config (`embedctl config path`), or name this file with --config",
        )
    if "insecure" in content and not may_set_providers:
        raise ConfigurationInvalid(
            f"{path}: a project's file may not set insecure: it would let keys be read on the way",
            hint="give --insecure, or set it in the user's config",
        )
    tables: dict[str, Any] = {}
    for key, kind in NAMED_TABLES.items():
        entries = _table(content.pop(key, {}), f"{label}: [{key}]")
        tables[key] = {name: converted(entry, kind, f"{label}: [{key}.{name}]") for name, entry in entries.items()}
    for key, kind in SINGLE_TABLES.items():
        if key in content and (key not in _ALSO_OPTIONS or isinstance(content[key], dict)):
            tables[key] = converted(content.pop(key), kind, f"{label}: [{key}]")
    if isinstance(content.get("fallback"), dict):
        chains = content.pop("fallback")
        tables["fallback"] = {
            name: _value(chain, tuple[str, ...], f"{label}: [fallback] {name!r}") for name, chain in chains.items()
        }
    known = (*NAMED_TABLES, *SINGLE_TABLES, "fallback")
    return SettingsFile(path, options(content, label, also_known=known), tables)


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
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(found, hints[name], f"{label} {name!r}") for name, found in table.items()})


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
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        raise error(f"{where} must be {' or '.join(_expected(plain))}") from None


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
    from difflib import get_close_matches

    close = get_close_matches(key, known, n=1, cutoff=0.5)
    raise error(
        f"{label}: unknown key {key!r}",
        hint=f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}",
    )

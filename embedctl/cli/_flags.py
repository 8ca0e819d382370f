"""Flags that several commands share: those of a run, made from `options.Options`, and the common ones."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from embedctl.cli import _completion
from embedctl.errors import WrongUsage, nearest
from embedctl.settings.options import DURATIONS, Options, flag

FormatFlag = Annotated[
    Literal["table", "json", "csv", "md"],
    typer.Option("--format", help="How to print it.", show_default=True),
]
JsonFlag = Annotated[bool, typer.Option("--json", "-j", help="The same as --format json.")]
ConfigFlag = Annotated[
    Path | None, typer.Option("--config", help="Settings file. [default: as `embedctl config path` says]")
]
_COMPLETED = {
    "model": _completion.models,
    "provider": _completion.providers,
    "workspace": _completion.workspaces,
}
StoreOptionFlag = Annotated[
    list[str] | None,
    typer.Option("--store-option", help="How an object store is reached, like region=…; repeatable.", metavar="K=V"),
]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]
LedgerFlag = Annotated[
    Path | None, typer.Option("--ledger", help="Ledger file. [default: as `embedctl config show` says]")
]


def with_options(command: Callable[..., Any], *, name: str | None = None) -> Callable[..., Any]:
    """`command` with a flag for every field of Options; it gets those that were given as `flags`.

    In a command that has a --format of its own, the option of this name is --input-format.

    Args:
        name: Of the command, where it has options that others have not.
    """
    hints = typing.get_type_hints(Options)
    own_names = inspect.signature(command).parameters
    taken = {"format": "input_format"} if "form" in own_names else {}
    entries = [entry for entry in fields(Options) if entry.metadata["only"] in (None, name)]
    parameters = [_parameter(entry, hints[entry.name], taken.get(entry.name, entry.name)) for entry in entries]
    option_names = {taken.get(entry.name, entry.name): entry.name for entry in entries}

    def wrapper(**given: Any) -> Any:
        flags = {option_names[p.name]: given.pop(p.name) for p in parameters}
        return command(**given, flags=as_options({k: v for k, v in flags.items() if v is not None and v != []}))

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    wrapper.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *parameters]}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


def _parameter(entry: Any, hint: Any, name: str) -> inspect.Parameter:
    spelt = flag(name)
    text = entry.metadata["help"]
    kind: Any = str
    plain = get_args(hint)[0] if get_origin(hint) in (Union, typing.types.UnionType) else hint  # type: ignore[attr-defined]
    names = [spelt]
    if plain is bool:
        kind, names = bool, [f"{spelt}/--no-{spelt[2:]}"]
    elif plain is int or get_origin(plain) is Literal:
        kind = plain
    shown = entry.default if entry.default is not MISSING else None
    if shown is not None:
        text = f"{text} [default: {_default(entry.name, shown)}]"
    option: Any = typer.Option(
        *names,
        *([entry.metadata["short"]] if entry.metadata["short"] else []),
        help=text,
        metavar=entry.metadata["metavar"],
        autocompletion=_COMPLETED.get(entry.name),
    )
    annotation = list[str] if entry.name in _PAIRS else kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, option],
    )


def _default(name: str, value: Any) -> str:
    """A default as it would be given."""
    if name in DURATIONS:
        return f"{value / 60:g}m"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"


def as_options(flags: dict[str, Any]) -> Mapping[str, Any]:
    """Flag texts as option values."""
    for name in _PAIRS.keys() & flags.keys():
        flags[name] = pairs(flags[name], name)
    if "max_cost" in flags:
        try:
            amount = Decimal(flags["max_cost"])
        except ArithmeticError:
            amount = Decimal("nan")
        if not amount.is_finite():
            raise WrongUsage(f"--max-cost is no amount: {flags['max_cost']!r}", hint="like 5 or 0.50, in USD")
        flags["max_cost"] = amount
    return flags


_PAIRS = {
    "tag": ("K=V", "team=search"),
    "attach": ("NAME=PATH", "shop=/data/shop.duckdb"),
    "store_option": ("K=V", "region=eu-central-1"),
}
"""Options given as pairs: how one looks, and an example."""


def pairs(given: list[str], name: str = "tag") -> dict[str, str]:
    """Pairs of a repeated flag as a mapping.

    Raises:
        WrongUsage: One has no "=".
    """
    values: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            form, example = _PAIRS[name]
            raise WrongUsage(f"{flag(name)} {pair!r} is not {form}", hint=f"like {flag(name)} {example}")
        values[key] = value
    return values


def one_of(word: str, known: list[str], what: str) -> str:
    """`word` itself, when it is known.

    Raises:
        WrongUsage: It is not; the nearest is named.
    """
    if word in known:
        return word
    close = nearest(word, known)
    raise WrongUsage(
        f"unknown {what}: {word!r}",
        hint=f"did you mean {close!r}?" if close else f"known: {', '.join(known)}",
    )

"""Groups of commands: each command is made when it is called, checks plain values itself, and knows its neighbours."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperGroup

from embedctl import terminal
from embedctl.errors import WrongUsage, nearest


class SuggestingGroup(TyperGroup):
    """A group that names the nearest command when one is misspelt, and makes a command when it is asked for.

    Attributes:
        waiting: Commands that are not made yet: what a flag is made of costs a millisecond a flag.
    """

    waiting: Mapping[str, Callable[[], Any]] = MappingProxyType({})

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, made or not, in the order they were registered."""
        return [*self.waiting] or super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, None when there is none."""
        if cmd_name in self.waiting and cmd_name not in self.commands:
            self.commands[cmd_name] = self.waiting[cmd_name]()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with its whole first sentence."""
        made = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(limit=10_000)) for name, command in made if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def elsewhere(self) -> Mapping[str, Sequence[str]]:
        """Names that are commands below this group → how each is typed here."""
        return {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word, or WrongUsage that names the nearest."""
        name = args[0] if args else ""
        if ctx.resilient_parsing:  # a shell asks what could follow
            return super().resolve_command(ctx, args)
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            path = ctx.command_path
            elsewhere = self.elsewhere()
            word = name if name in elsewhere else nearest(name, [*known, *elsewhere])
            close = elsewhere.get(word, [word]) if word else []
            hint = " or ".join(f"`{path} {one}`" for one in close)
            raise WrongUsage(
                f"no such command: {path} {name}",
                hint=f"did you mean {hint}?" if close else f"commands: {', '.join(known)}",
            )
        return super().resolve_command(ctx, args)


class ListingGroup(SuggestingGroup):
    """`embedctl models` is `embedctl models list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` where no command is named."""
        is_named = any(not word.startswith("-") for word in args) or {"-h", "--help"} & set(args)
        if not is_named and not ctx.resilient_parsing:
            args = ["list", *args]
        return list(super().parse_args(ctx, args))


class RunningGroup(SuggestingGroup):
    """`embedctl batch INPUT…` means `embedctl batch run INPUT…`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word; `run` when that is an input."""
        if args and args[0] not in self.list_commands(ctx):
            if not any(mark in args[0] for mark in "./*-") and not Path(args[0]).exists():
                return super().resolve_command(ctx, args)
            args = ["run", *args]
        return super().resolve_command(ctx, args)


class Group(typer.Typer):
    """A group of commands. Each is made when it is called; one with a file of its own is imported then, too.

    Args:
        files: Command → file of `package` that has it, in the order of `--help`.

    Attributes:
        modules: Command → the module that has it; empty where the group's own module registers its commands.
    """

    def __init__(
        self,
        package: str = "",
        files: Mapping[str, str] = MappingProxyType({}),
        *,
        cls: type[SuggestingGroup] = SuggestingGroup,
        **settings: Any,
    ) -> None:
        super().__init__(cls=cls, no_args_is_help=True, rich_markup_mode=None, **settings)
        self.modules = {name: f"{package}.{file}" for name, file in files.items()}


@cache
def imported(module: str, name: str) -> Any:
    """The command `name` of a module that has an `app`; made once, though typer asks for it twice."""
    return command_of(imported_app(module), name)


def imported_app(module: str) -> typer.Typer:
    """The `app` of a module."""
    app: typer.Typer = importlib.import_module(module).app
    return app


def commands_of(app: typer.Typer) -> set[str]:
    """Names of a group's commands; none where it is a command itself."""
    return {*app.modules, *_registered(app)} if isinstance(app, Group) else set()


def command_of(app: typer.Typer, name: str) -> Any:
    """The command `name` of an app: the group that it is, or what is registered under this name."""
    if not isinstance(app, Group):
        return _registered(app)[name]()
    shell = copy(app)
    shell.registered_commands = []
    group: Any = typer.main.get_group(shell)
    group.name = name
    group.waiting = {command: partial(imported, module, command) for command, module in app.modules.items()}
    group.waiting |= _registered(app)
    return quick(group)


def _registered(app: typer.Typer) -> dict[str, Callable[[], Any]]:
    """Name and maker of each command that an app registers."""
    makers: dict[str, Callable[[], Any]] = {}
    for info in app.registered_commands:
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.registered_commands = [info]
        name = info.name or typer.main.get_command_name(info.callback.__name__)  # type: ignore[union-attr]
        makers[name] = partial(_made, alone)
    return makers


def quick(command: Any) -> Any:
    """The command, whose plain values typer need not check: it does so with pydantic, slower to import than duckdb."""
    listed = command.get_params

    def params(ctx: Any) -> list[Any]:
        """All parameters, --help too, which is made for a context."""
        parameters: list[Any] = listed(ctx)
        for param in parameters:
            if getattr(param, "_runtime_param", param) is None:
                param._runtime_param = _Plain(param)
            if "--help" in param.opts:
                param.callback = _help
        return parameters

    command.get_params = params
    return command


def _help(ctx: Any, param: Any, asked: bool) -> None:
    """`--help`, through the door that says when stdout takes no more."""
    if asked and not ctx.resilient_parsing:
        terminal.out(f"{ctx.get_help()}\n")
        ctx.exit()


class _Plain:
    """Takes the values of a parameter that are as they should be; all others go to typer, which says what is wrong."""

    def __init__(self, param: Any) -> None:
        self._param = param
        self._kind = param.type_descriptor.annotation
        about = param.type_descriptor.parameter_info
        self._unbound = about.min is None and about.max is None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """`value` as its type."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if self._kind is str and isinstance(value, str):
            return value
        if self._kind == list[str] and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return list(value)
        if get_origin(self._kind) is Literal and value in get_args(self._kind):
            return value
        if self._kind is bool and isinstance(value, bool):
            return value
        if self._kind is int and isinstance(value, str) and value.isascii() and value.isdigit() and self._unbound:
            return int(value)
        if self._kind is Path and isinstance(value, str) and (os.access(value, os.R_OK) or not os.path.lexists(value)):
            return Path(value)
        self._param._runtime_param = None
        return self._param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _made(app: typer.Typer) -> Any:
    """The command; one that prints CSV has --csv-raw too."""
    command = typer.main.get_command(app)
    if any("csv" in _choices(param) for param in command.params if "--format" in param.opts):
        command.params.append(_csv_raw())
    return quick(command)


def _choices(param: Any) -> tuple[Any, ...]:
    """The fixed words that a parameter takes; typer says them in one of two ways, by its version."""
    described = getattr(param, "type_descriptor", None)
    return tuple(getattr(param.type, "choices", ())) if described is None else get_args(described.annotation)


def _csv_raw() -> Any:
    """The flag, which the command itself never sees."""
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)

    @alone.command()
    def flags(
        csv_raw: Annotated[
            bool,
            typer.Option("--csv-raw", callback=terminal.leave_formulas, help="CSV: no apostrophe before formulas."),
        ] = False,
    ) -> None:
        """Only its flag is used."""

    option: Any = typer.main.get_command(alone).params[0]
    option.expose_value = False
    return option

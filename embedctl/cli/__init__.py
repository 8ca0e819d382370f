"""The command line: flags in, one call, exit code out. The only door to typer.

A command is a module of this folder; a group is one, too, or a folder that names the file of each of its commands. All
are imported when they are called: `--help` imports none of them, and `usage report` no other command of `usage`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NoReturn

import typer

from embedctl import __version__, terminal
from embedctl.cli import _completion
from embedctl.cli._groups import SuggestingGroup, commands_of, imported, imported_app, quick
from embedctl.errors import EmbedctlError, InvariantBroken, WrongUsage
from embedctl.runs import memory

COMMANDS = {
    "Embed": {
        "embed": "Embed files, folders or stdin into one Parquet file.",
        "batch": "Embed large inputs in resumable, incremental runs.",
        "vectors": "Look at vectors: info, verify, search, map.",
    },
    "Choose": {
        "models": "List, show, choose and compare models; pull and warm up local ones.",
        "providers": "List, test and reset providers.",
        "prices": "List, set, import and check prices.",
    },
    "Serve": {
        "serve": "Serve embeddings over HTTP, as OpenAI does.",
        "keys": "Create, list, rotate and revoke keys of the service.",
    },
    "Account": {
        "usage": "What was spent, by whom, on what, and how sure that is.",
        "cache": "The shared vector cache: stats, clear.",
    },
    "Set up": {
        "config": "Write, show and find the settings.",
        "doctor": "One look at everything that could be wrong.",
    },
}
"""Command groups as `--help` shows them; a name is a module of this folder that has an `app`."""

SHORT = {"search": ("vectors", "search"), "report": ("usage", "report")}
"""What may be typed without its group."""


class _Root(SuggestingGroup):
    """The root: finds commands by name, and turns every error of our tree into its exit code."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        quick(self)

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for group in COMMANDS.values() for name in group]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in SHORT:
            return imported(f"embedctl.cli.{'.'.join(SHORT[cmd_name])}", cmd_name)
        if cmd_name not in self.list_commands(ctx):
            return None
        return imported(f"embedctl.cli.{cmd_name}", cmd_name)

    def elsewhere(self) -> Mapping[str, Sequence[str]]:
        """Commands of all groups, for who forgot the group, and short names."""
        found: dict[str, list[str]] = {}
        for group in self.list_commands(None):
            for name in commands_of(imported_app(f"embedctl.cli.{group}")):
                found.setdefault(name, []).append(f"{group} {name}")
        return found | {name: [name] for name in SHORT}

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        as_json = wants_json(args)
        with _told(as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta["embedctl.json"] = as_json
        return context

    def invoke(self, ctx: Any) -> Any:
        with _told(ctx.meta["embedctl.json"]):
            return super().invoke(ctx)


@contextmanager
def _told(as_json: bool) -> Iterator[None]:
    """Every error a user can cause is one line and a hint, or one JSON object; then its exit code."""
    try:
        yield
    except EmbedctlError as error:
        _say(error, as_json)
    except _TyperUsage as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        _say(_wrong_usage(error), as_json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `| head` closed the pipe; nothing more can be said on it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as bug:
        import traceback

        sys.stderr.write("".join(traceback.format_tb(bug.__traceback__)))  # places, without values: those can be keys
        what = f"{type(bug).__name__} where none should be; what was embedded is kept"
        _say(InvariantBroken(what, hint="please report the lines above, with the command"), as_json)


def _say(error: EmbedctlError, as_json: bool) -> NoReturn:
    terminal.error(error, as_json=as_json)
    raise typer.Exit(error.exit_code) from None


_TyperUsage: Any = typer.BadParameter.__mro__[1]  # the UsageError that typer vendors has no public name


def _wrong_usage(error: Any) -> WrongUsage:
    """What typer found wrong with the command line, as ours."""
    close = sorted(getattr(error, "possibilities", None) or ())
    message = error.message if close else error.format_message().rstrip(".")
    message = message.replace("Value error, ", "").replace("Input should be", "should be")
    words = " ".join(str(message).split())
    first = words[:1].lower() + words[1:] if words[1:2].islower() else words
    path = error.ctx.command_path if error.ctx is not None else "embedctl"
    hint = f"did you mean {' or '.join(close)}?" if close else f"`{path} --help` shows the flags"
    return WrongUsage(first, hint=hint)


def wants_json(words: list[str]) -> bool:
    """Whether the command line asks for JSON, so that an error comes as JSON too."""
    if "--json" in words or "-j" in words or "--format=json" in words:
        return True
    return any(pair == ("--format", "json") for pair in pairwise(words))


def _version(show: bool) -> None:
    if show:
        terminal.out(f"embedctl {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich costs more start-up than all the rest of --help
    pretty_exceptions_enable=False,  # locals can hold keys
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(epilog="Example: embedctl embed handbook.md && embedctl usage report --workspace")
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Embed text in bulk, pay once, and account for every token."""


def main() -> None:
    """Entry point of the `embedctl` command."""
    memory.collect_seldom()
    memory.leave_pandas_out()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # keys are in memory
    terminal.stand_in_for_closed()
    try:
        if _completion.VARIABLE in os.environ:
            _completion.answer(app)
        else:
            app()
    finally:
        terminal.let_go()
        memory.collect_no_more()

"""The command line: flags in, one call, exit code out. The only door to typer.

Commands are modules of this folder, imported when they are called: `--help` imports none of them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperGroup

from embedctl import __version__
from embedctl.errors import EmbedctlError, WrongUsage

COMMANDS = {
    "Embed": {
        "embed": "Embed files, folders or stdin into one Parquet file.",
        "batch": "Embed large inputs in resumable, incremental runs.",
        "vectors": "Look at vectors: info, verify, search, map.",
    },
    "Choose": {
        "models": "List, show and choose models; pull and warm up local ones.",
        "providers": "List, test and reset providers.",
        "prices": "List, set, import and check prices.",
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


def nearest(word: str, known: list[str]) -> str | None:
    """The known word most like `word`, None when none is close."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return matches[0] if matches else None


class SuggestingGroup(TyperGroup):
    """A group that names the nearest command when one is misspelt."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word, or WrongUsage that names the nearest."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            close = nearest(name, known)
            path = ctx.command_path
            raise WrongUsage(
                f"no such command: {path} {name}",
                hint=f"did you mean `{path} {close}`?" if close else f"commands: {', '.join(known)}",
            )
        return super().resolve_command(ctx, args)


class _Root(SuggestingGroup):
    """The root: finds commands by name, and turns every error of our tree into its exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for group in COMMANDS.values() for name in group]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"embedctl.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        words = list(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta["embedctl.json"] = wants_json(words)
        return context

    def invoke(self, ctx: Any) -> Any:
        from embedctl import render

        try:
            return super().invoke(ctx)
        except EmbedctlError as error:
            render.error(error, as_json=ctx.meta["embedctl.json"])
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `| head` closed the pipe; nothing more can be said on it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None


def wants_json(words: list[str]) -> bool:
    """Whether the command line asks for JSON, so that an error comes as JSON too."""
    if "--json" in words or "-j" in words or "--format=json" in words:
        return True
    return any(pair == ("--format", "json") for pair in pairwise(words))


def _version(show: bool) -> None:
    if show:
        typer.echo(f"embedctl {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich costs more start-up than all the rest of --help
    pretty_exceptions_enable=False,  # locals can hold keys
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Example: embedctl embed handbook.md && embedctl usage report --workspace")
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Embed text in bulk, pay once, and account for every token."""


def main() -> None:
    """Entry point of the `embedctl` command."""
    app()

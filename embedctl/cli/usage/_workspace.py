"""The flag --workspace: whose usage or budget; in reports it may stand without a name, to group by workspace."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from embedctl.cli import _completion

Workspace = Annotated[str, typer.Option("--workspace", "-w", autocompletion=_completion.workspaces, help="Whose.")]
EACH = "\0each"
"""What a bare --workspace stands for: group by it."""

WorkspaceOrEach = Annotated[
    list[str] | None,
    typer.Option(
        "--workspace",
        "-w",
        autocompletion=_completion.workspaces,
        metavar="[NAME]",
        help="Only this workspace (repeatable); bare: group by it.",
    ),
]


class BareWorkspace(TyperCommand):
    """A command whose --workspace may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does, once each bare --workspace has a value."""
        return super().parse_args(ctx, with_values(args))


def with_values(args: list[str]) -> list[str]:
    """`args` with a value behind each --workspace that has none: the end or another flag follows."""
    filled = []
    for index, word in enumerate(args):
        filled.append(word)
        following = args[index + 1] if index + 1 < len(args) else None
        if word in ("--workspace", "-w") and (following is None or following.startswith("-")):
            filled.append(EACH)
    return filled


def split_workspaces(given: list[str] | None, by: list[str] | None) -> tuple[list[str], list[str]]:
    """(names to filter by, keys to group by) of --workspace and --by."""
    names = given or []
    keys = ["workspace"] if EACH in names else []
    keys += [key.strip() for text in by or [] for key in text.split(",") if key.strip()]
    return [name for name in names if name != EACH], list(dict.fromkeys(keys))

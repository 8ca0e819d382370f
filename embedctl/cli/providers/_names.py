"""The argument that names a provider, and the flag that names the workspace."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl.cli import _completion

Name = Annotated[str, typer.Argument(help="A provider's name.", metavar="NAME", autocompletion=_completion.providers)]
WorkspaceFlag = Annotated[
    str | None,
    typer.Option(
        "--workspace", "-w", autocompletion=_completion.workspaces, help="Workspace to charge; its allow-list applies."
    ),
]

"""The argument that names a provider, and the flag that names the workspace."""

from __future__ import annotations

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="A provider's name.", metavar="NAME")]
WorkspaceFlag = Annotated[
    str | None, typer.Option("--workspace", "-w", help="Workspace to charge; its allow-list applies.")
]

"""The runs that are known here, and the argument that names one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedctl.cli import _completion

if TYPE_CHECKING:
    from embedctl.runs.registry import RunRegistry
    from embedctl.settings import Paths

Job = Annotated[
    str,
    typer.Argument(
        help="Name of a job, or id of a run.", metavar="JOB|RUN_ID", autocompletion=_completion.jobs_and_runs
    ),
]
JobOrOutput = Annotated[
    str,
    typer.Argument(
        help="Name of a job, id of a run, or an output.",
        metavar="JOB|RUN_ID|OUTPUT",
        autocompletion=_completion.jobs_and_runs,
    ),
]


def registry(config: Path | None) -> RunRegistry:
    """The registry that the settings name."""
    from embedctl.runs.registry import RunRegistry

    return RunRegistry(paths(config).runs)


def paths(config: Path | None) -> Paths:
    """Where the settings say that state lives."""
    from embedctl import settings

    return settings.load(config=config).paths

"""The runs that are known here, and the argument that names one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedctl.cli import _completion
from embedctl.cli._flags import pairs

if TYPE_CHECKING:
    from embedctl.runs.registry import RunRegistry
    from embedctl.settings import Paths
    from embedctl.storage.store import Store

Job = Annotated[
    str,
    typer.Argument(
        help="Name of a job, or id of a run.", metavar="JOB|RUN_ID", autocompletion=_completion.jobs_and_runs
    ),
]
JobOrOutput = Annotated[
    str,
    typer.Argument(
        help="Name of a job, id of a run, or an output or its address.",
        metavar="JOB|RUN_ID|OUTPUT",
        autocompletion=_completion.jobs_and_runs,
    ),
]


def on_store(name: str, store_option: list[str] | None, config: Path | None) -> Store | None:
    """The store that an address leads to, or a folder that several workers have written; None for any other name."""
    from embedctl.runs.target import shared_folder
    from embedctl.storage import store_url

    if not store_url.is_store_url(name):
        return shared_folder(Path(name), workers=1)
    from embedctl import settings

    given = {"store_option": pairs(store_option, "store_option")} if store_option else {}
    return settings.load(config=config, flags=given).stores.open(store_url.parse(name))


def registry(config: Path | None) -> RunRegistry:
    """The registry that the settings name."""
    from embedctl.runs.registry import RunRegistry

    return RunRegistry(paths(config).runs)


def paths(config: Path | None) -> Paths:
    """Where the settings say that state lives."""
    from embedctl import settings

    return settings.load(config=config).paths

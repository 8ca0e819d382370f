"""The argument FILE: which output to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedctl.cli._flags import pairs

if TYPE_CHECKING:
    from embedctl.vectors.files import Stored

OutputPath = Annotated[
    Path,
    typer.Argument(
        help="A Parquet file or folder of parts that embedctl wrote; or its address, s3://…", metavar="FILE"
    ),
]


def opened(file: Path, store_option: list[str] | None, config: Path | None = None) -> Stored:
    """The output that FILE names.

    Raises:
        InputMissing, InputInvalid: It is not there, or none of ours.
    """
    from embedctl.storage import store_url

    if not store_url.is_store_url(str(file)):
        from embedctl.vectors.on_store import open_here

        return open_here(file)
    from embedctl import settings
    from embedctl.vectors.on_store import open_on_store

    given = {"store_option": pairs(store_option, "store_option")} if store_option else {}
    # A path has lost one of the slashes, and the last one.
    return open_on_store(store_url.parse(str(file)), settings.load(config=config, flags=given).stores)

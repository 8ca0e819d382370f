"""The argument FILE: which output to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OutputPath = Annotated[
    Path, typer.Argument(help="A Parquet file or folder of parts that embedctl wrote.", metavar="FILE")
]

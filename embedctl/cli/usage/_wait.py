"""The flag --wait: how long a command waits for a ledger that another process holds."""

from __future__ import annotations

from typing import Annotated

import typer

Wait = Annotated[
    float, typer.Option("--wait", min=0, help="Seconds to wait for another process that holds the ledger.")
]

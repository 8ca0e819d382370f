"""The flags --since, --until, --month and --last of commands whose days are days in UTC."""

from __future__ import annotations

from typing import Annotated

import typer

Since = Annotated[str | None, typer.Option(help="From this day or time on (UTC).")]
Until = Annotated[str | None, typer.Option(help="Up to this day or time, not included (UTC).")]
Month = Annotated[str | None, typer.Option(help="A whole month, like 2026-10.")]
Last = Annotated[
    str | None,
    typer.Option(help="7d, 24h, 4w, 3m, today, yesterday, week or month (the one before this), wtd or mtd (this one)."),
]

"""The flags --since, --until and --last of commands whose days are days in UTC."""

from __future__ import annotations

from typing import Annotated

import typer

Since = Annotated[str | None, typer.Option(help="From this day or time on (UTC).")]
Until = Annotated[str | None, typer.Option(help="Up to this day or time, not included (UTC).")]
Last = Annotated[str | None, typer.Option(help="7d, 24h, 4w, 3m, today, yesterday, week, month, mtd or prev-month.")]

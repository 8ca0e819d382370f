"""`embedctl cache`: the shared vector cache."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from embedctl import render
from embedctl.cli import SuggestingGroup
from embedctl.cli.flags import ConfigFlag, FormatFlag, JsonFlag

if TYPE_CHECKING:
    from embedctl.cache import Cache
    from embedctl.settings import Settings

app = typer.Typer(cls=SuggestingGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(epilog="Example: embedctl cache stats", context_settings={"help_option_names": ["-h", "--help"]})
def _cache() -> None:
    """Show or clear the vectors that `embed` keeps across outputs."""


def _opened(config: Path | None) -> tuple[Cache, Settings]:
    from embedctl import settings
    from embedctl.cache import Cache

    found = settings.load(config=config)
    kept = found.cache
    cache = Cache(found.paths.cache, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, warned=render.warning)
    return cache, found


@app.command(epilog="Example: embedctl cache stats --json", context_settings={"help_option_names": ["-h", "--help"]})
def stats(form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Show how many vectors are kept, of which spaces, and how much room they take."""
    cache, found = _opened(config)
    kept = cache.stats()
    cache.close()
    oldest = None if kept.oldest_at is None else datetime.fromtimestamp(kept.oldest_at, UTC)
    envelope = {
        "path": str(found.paths.cache),
        "entries": kept.entries,
        "bytes": kept.bytes,
        "max_bytes": found.cache.max_bytes,
        "ttl_days": found.cache.ttl_days,
        "oldest_at": oldest,
        "spaces": list(kept.spaces),
    }
    columns = [
        render.Column("model", "Model"),
        render.Column("space_id", "Space"),
        render.Column("entries", "Vectors", "right"),
        render.Column("bytes", "Bytes", "right"),
    ]
    totals = {"model": "Total", "entries": kept.entries, "bytes": kept.bytes}
    footer = [f"{found.paths.cache}: at most {found.cache.max_bytes:,} bytes, {found.cache.ttl_days} days"]
    table = render.Table(columns=columns, rows=kept.spaces, envelope=envelope, totals=totals, footer=footer)
    render.table(table, "json" if as_json else form)


@app.command(epilog="Example: embedctl cache clear", context_settings={"help_option_names": ["-h", "--help"]})
def clear(config: ConfigFlag = None) -> None:
    """Remove all kept vectors; outputs are not touched."""
    cache, found = _opened(config)
    entries = cache.stats().entries
    cache.clear()
    render.notice(f"{entries:,} vectors removed from {found.paths.cache}")

"""`embedctl cache`: the vectors and token counts that outputs share."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from embedctl import terminal
from embedctl.cli import SuggestingGroup
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag

if TYPE_CHECKING:
    from embedctl.settings import Settings
    from embedctl.storage.token_count_cache import SharedCounts
    from embedctl.storage.vector_cache import VectorCache

app = typer.Typer(cls=SuggestingGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(epilog="Example: embedctl cache stats", context_settings={"help_option_names": ["-h", "--help"]})
def _cache() -> None:
    """Show or clear the vectors, and the token counts, that are kept across outputs."""


def _opened(config: Path | None) -> tuple[VectorCache, SharedCounts, Settings]:
    from embedctl import settings
    from embedctl.storage.token_count_cache import SharedCounts
    from embedctl.storage.vector_cache import VectorCache

    found = settings.load(config=config)
    kept = found.cache
    cache = VectorCache(found.paths.cache, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, warned=terminal.warning)
    return cache, SharedCounts(found.paths.cache, ttl_s=found.token_usage.cache_ttl_s), found


@app.command(epilog="Example: embedctl cache stats --json", context_settings={"help_option_names": ["-h", "--help"]})
def stats(form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Show how many vectors and token counts are kept, how much room they take, and how often they were of use."""
    cache, counts, found = _opened(config)
    kept, looked_up = cache.stats(), cache.tally()
    cache.close()
    counted, count_tally = counts.kept(), counts.tally()
    counts.close()
    oldest = None if kept.oldest_at is None else datetime.fromtimestamp(kept.oldest_at, UTC)
    envelope = {
        "path": str(found.paths.cache),
        "entries": kept.entries,
        "bytes": kept.bytes,
        "max_bytes": found.cache.max_bytes,
        "ttl_days": found.cache.ttl_days,
        "oldest_at": oldest,
        "spaces": list(kept.spaces),
        **asdict(looked_up),
        "token_counts": {
            "on": found.token_usage.cache,
            "entries": counted,
            "ttl_s": found.token_usage.cache_ttl_s,
            **asdict(count_tally),
        },
    }
    columns = [
        terminal.Column("model", "Model"),
        terminal.Column("space_id", "Space"),
        terminal.Column("entries", "Vectors", "right"),
        terminal.Column("bytes", "Bytes", "right"),
    ]
    totals = {"model": "Total", "entries": kept.entries, "bytes": kept.bytes}
    footer = [
        f"{found.paths.cache}: at most {found.cache.max_bytes:,} bytes, {found.cache.ttl_days} days",
        f"vectors: {looked_up.hits:,} found, {looked_up.misses:,} not",
        f"token counts ({'on' if found.token_usage.cache else 'off'}): {counted:,} kept, "
        f"{count_tally.hits:,} found, {count_tally.misses:,} not",
    ]
    table = terminal.Table(columns=columns, rows=kept.spaces, envelope=envelope, totals=totals, footer=footer)
    terminal.table(table, "json" if as_json else form)


@app.command(epilog="Example: embedctl cache clear", context_settings={"help_option_names": ["-h", "--help"]})
def clear(config: ConfigFlag = None) -> None:
    """Remove all kept vectors and token counts; outputs are not touched."""
    cache, counts, found = _opened(config)
    entries, counted = cache.stats().entries, counts.kept()
    counts.close()
    cache.clear()
    terminal.notice(f"{entries:,} vectors and {counted:,} token counts removed from {found.paths.cache}")

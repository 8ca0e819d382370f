"""`embedctl cache`: the vectors and token counts that outputs share."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli._groups import Group

if TYPE_CHECKING:
    from embedctl.settings import Settings
    from embedctl.storage.token_count_cache import SharedCounts
    from embedctl.storage.vector_cache import VectorCache

app = Group(
    help="Show or clear the vectors, and the token counts, that are kept across outputs.",
    epilog="Example: embedctl cache stats",
)


def _opened(config: Path | None) -> tuple[VectorCache, SharedCounts, Settings]:
    from embedctl import settings
    from embedctl.storage.token_count_cache import SharedCounts
    from embedctl.storage.vector_cache import VectorCache

    loaded = settings.load(config=config)
    limits = loaded.cache
    cache = VectorCache(
        loaded.paths.cache, max_bytes=limits.max_bytes, ttl_days=limits.ttl_days, observer=terminal.TerminalObserver()
    )
    return cache, SharedCounts(loaded.paths.cache, ttl_s=loaded.token_usage.cache_ttl_s), loaded


@app.command(epilog="Example: embedctl cache stats --json")
def stats(form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Show how many vectors and token counts are kept, how much room they take, and how often they were of use."""
    cache, counts, loaded = _opened(config)
    stored, lookups = cache.stats(), cache.tally()
    cache.close()
    counted, count_tally = counts.kept(), counts.tally()
    counts.close()
    oldest = None if stored.oldest_at is None else datetime.fromtimestamp(stored.oldest_at, UTC)
    envelope = {
        "path": str(loaded.paths.cache),
        "entries": stored.entries,
        "bytes": stored.bytes,
        "max_bytes": loaded.cache.max_bytes,
        "ttl_days": loaded.cache.ttl_days,
        "oldest_at": oldest,
        "spaces": list(stored.spaces),
        **asdict(lookups),
        "token_counts": {
            "on": loaded.token_usage.cache,
            "entries": counted,
            "ttl_s": loaded.token_usage.cache_ttl_s,
            **asdict(count_tally),
        },
    }
    columns = [
        terminal.Column("model", "Model"),
        terminal.Column("space_id", "Space"),
        terminal.Column("entries", "Vectors", "right"),
        terminal.Column("bytes", "Bytes", "right"),
    ]
    totals = {"model": "Total", "entries": stored.entries, "bytes": stored.bytes}
    footer = [
        f"{loaded.paths.cache}: at most {loaded.cache.max_bytes:,} bytes, {loaded.cache.ttl_days} days",
        f"vectors: {lookups.hits:,} found, {lookups.misses:,} not",
        f"token counts ({'on' if loaded.token_usage.cache else 'off'}): {counted:,} kept, "
        f"{count_tally.hits:,} found, {count_tally.misses:,} not",
    ]
    table = terminal.Table(columns=columns, rows=stored.spaces, envelope=envelope, totals=totals, footer=footer)
    terminal.table(table, "json" if as_json else form)


@app.command(epilog="Example: embedctl cache clear")
def clear(config: ConfigFlag = None) -> None:
    """Remove all kept vectors and token counts; outputs are not touched."""
    cache, counts, loaded = _opened(config)
    entries, counted = cache.stats().entries, counts.kept()
    counts.close()
    cache.clear()
    terminal.notice(f"{entries:,} vectors and {counted:,} token counts removed from {loaded.paths.cache}")

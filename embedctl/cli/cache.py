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
    from embedctl.storage.token_count_cache import CountStore
    from embedctl.storage.vector_cache import VectorCache

app = Group(
    help="Show or clear the vectors, and the token counts, that are kept across outputs.",
    epilog="Example: embedctl cache stats",
)


def _opened(config: Path | None) -> tuple[VectorCache, CountStore, Settings]:
    from embedctl import settings
    from embedctl.storage.token_count_cache import SharedCounts, count_store
    from embedctl.storage.vector_cache import VectorCache

    loaded = settings.load(config=config)
    limits = loaded.cache
    cache = VectorCache(
        loaded.paths.cache, max_bytes=limits.max_bytes, ttl_days=limits.ttl_days, observer=terminal.TerminalObserver()
    )
    asked = loaded.token_usage
    counts = count_store(asked.cache, loaded.paths.cache, ttl_s=asked.cache_ttl_s)
    return cache, counts or SharedCounts(loaded.paths.cache, ttl_s=asked.cache_ttl_s), loaded


@app.command(epilog="Example: embedctl cache stats --json")
def stats(form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """Show how many vectors and token counts are kept, how much room they take, and how often they were of use."""
    cache, counts, loaded = _opened(config)
    stored, lookups = cache.stats(), cache.tally()
    cache.close()
    counted, count_tally = counts.kept(), counts.tally()
    counts.close()
    is_on = bool(loaded.token_usage.cache)
    where = ("" if counted is None else f"{counted:,} kept, ") + (f"in {counts.place}, " if counts.place else "")
    oldest = None if stored.oldest_at is None else datetime.fromtimestamp(stored.oldest_at, UTC)
    envelope = {
        "path": str(loaded.paths.cache),
        "entries": stored.entries,
        "bytes": stored.bytes,
        "max_bytes": loaded.cache.max_bytes,
        "ttl_days": loaded.cache.ttl_days,
        "oldest_at": oldest,
        "spaces": list(stored.spaces),
        "hits": lookups.hits,
        "misses": lookups.misses,
        "token_counts": {
            "on": is_on,
            "place": counts.place,
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
        f"token counts ({'on' if is_on else 'off'}): {where}{count_tally.hits:,} found, {count_tally.misses:,} not",
    ]
    table = terminal.Table(columns=columns, rows=stored.spaces, envelope=envelope, totals=totals, footer=footer)
    terminal.table(table, "json" if as_json else form)


@app.command(epilog="Example: embedctl cache clear")
def clear(config: ConfigFlag = None) -> None:
    """Remove all vectors and token counts that this home keeps; outputs are not touched."""
    from embedctl.storage.token_count_cache import SharedCounts

    cache, _, loaded = _opened(config)
    counts = SharedCounts(loaded.paths.cache, ttl_s=loaded.token_usage.cache_ttl_s)
    entries, counted = cache.stats().entries, counts.kept()
    counts.close()
    cache.clear()
    terminal.notice(f"{entries:,} vectors and {counted:,} token counts removed from {loaded.paths.cache}")

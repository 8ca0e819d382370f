"""A comparison as one HTML page that loads nothing from elsewhere: the frontier, and a table of everything."""

from __future__ import annotations

import html
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from embedctl import terminal
from embedctl.evaluation.comparison import Comparison, Variant
from embedctl.records import format_cents
from embedctl.reports import charts
from embedctl.storage import named

_MOST_WARNINGS = 30
_NAME_LETTERS = 80


def write(found: Comparison, place: Path, *, overwrite: bool = False) -> None:
    """Write the page to a new file.

    Raises:
        OutputRefused: Something is there, and `overwrite` is not set.
    """
    named.write(place, page(found).encode(), overwrite=overwrite)


def page(found: Comparison) -> str:
    """The HTML."""
    queries = found.query_set
    whence = "known items made of the texts" if queries.source == "known_items" else "questions of a file"
    head = f"{len(queries.queries):,} queries ({whence}), {len(queries.items):,} items, seed {found.seed}"
    body = [
        "<main><h1>Models compared</h1>",
        f'<p class="soft">{html.escape(head)}</p>',
        *(f'<p class="warn">{html.escape(terminal.safe(line))}</p>' for line in found.warnings[:_MOST_WARNINGS]),
        '<noscript><p class="warn">Charts and tables need JavaScript; the page loads nothing.</p></noscript>',
        '<div class="cards" id="charts"></div></main>',
    ]
    values = {"page": charts.inline(orjson.dumps(_values(found), default=str).decode())}
    return charts.page("embedctl models compare", body, script=charts.own("compare.js"), values=values)


def _values(found: Comparison) -> dict[str, Any]:
    """What the page's script reads."""
    told = found.as_dict()
    models = list(dict.fromkeys(one.model for one in found.variants))
    rows = [
        _point(one, row) | {"group": models.index(one.model)}
        for one, row in zip(found.variants, told["candidates"], strict=True)
    ]
    return {"models": [_name(model) for model in models], "rows": rows, "baseline": told["baseline"]}


def _point(one: Variant, row: dict[str, Any]) -> dict[str, Any]:
    expected = one.expected
    seconds = expected.seconds if expected.seconds is not None else expected.seconds_measured
    kept = ("dimensions", "dtype", "recall_at_1", "recall_at_10", "mrr", "intervals", "bytes", "pareto",
            "as_good_as_best", "cost_input", "cost_input_batch", "cost_month", "cost_month_batch")  # fmt: skip
    return {key: row[key] for key in kept} | {
        "cost": None if expected.cost is None else float(expected.cost),
        "bytes_shown": bytes_shown(one.bytes),
        "cost_shown": usd_shown(expected.cost),
        "batch_shown": None if expected.cost_batch is None else usd_shown(expected.cost_batch),
        "month_shown": usd_shown(expected.month),
        "seconds": seconds,
        "seconds_shown": seconds_shown(seconds),
    }


def _name(text: str) -> str:
    shown = terminal.safe(text)
    return shown if len(shown) <= _NAME_LETTERS else shown[: _NAME_LETTERS - 1] + "…"


def usd_shown(amount: Decimal | None) -> str:
    """An amount for people."""
    return "unknown" if amount is None else format_cents(amount)


def bytes_shown(count: int) -> str:
    """Bytes for people, of a thousand each."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def seconds_shown(seconds: float | None) -> str | None:
    """A time for people."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

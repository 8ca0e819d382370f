"""A report as one HTML page that loads nothing from elsewhere: figures, charts, tables, the month's end."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from embedctl import terminal
from embedctl.records import format_cents, format_money
from embedctl.reports import charts, forecast, pattern
from embedctl.reports.anomalies import Anomaly
from embedctl.reports.forecast import BudgetForecast, Forecast
from embedctl.reports.history import DailyUse, Measure
from embedctl.reports.page_content import PageContent, shown_name
from embedctl.reports.report import Report, counted
from embedctl.storage import named

_MOST_GROUPS = 100
_MOST_GROUPS_BYTES = 50_000
_MOST_WORKSPACES = 12  # with a curve of their month
_MOST_WARNINGS = 4  # more fold up
_TITLE = "embedctl usage"


def write(found: PageContent, place: Path, notes: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """Write the page to a new file.

    Args:
        notes: What else the reader should know; it stands first.

    Raises:
        OutputRefused: Something is there, and `overwrite` is not set.
    """
    named.check_free(place, overwrite=overwrite)  # before the work
    named.write(place, page(found, notes).encode(), overwrite=overwrite)


def page(found: PageContent, notes: Sequence[str] = ()) -> str:
    """The HTML."""
    whole = found.whole
    envelope = whole.envelope()
    groups, left = _that_fit(envelope["groups"])
    warnings = list(dict.fromkeys([*notes, *whole.warnings, *found.left_out]))
    if left:
        warnings.append(f"{counted(left, 'more group')} of the report are in the totals only: `--json` has all")
    told = list(dict.fromkeys([*whole.warnings, *notes]))
    document = terminal.document(envelope | {"groups": groups, "warnings": told}).decode()
    tiles = _tiles(whole.totals)
    body = [
        "<main><h1>Usage</h1>",
        f'<p class="soft">{_span(whole)} · prices as of {html.escape(whole.prices_as_of or "never")}</p>',
        '<p class="soft" id="scope" aria-live="polite"></p>',
        '<div class="tiles">', *_shown(tiles), *_shown(_month_tiles(found.month), _alarming(found.month)), "</div>",
        *_told(warnings),
        "<noscript><p class=\"warn\">Charts and tables need JavaScript; the page loads nothing.</p></noscript>",
        '<div class="filters" id="filters" role="group" aria-label="Filters"></div>',
        '<div class="cards" id="charts"></div>',
        '<p class="soft hidden" id="unfiltered">What follows is not filtered.</p>',
        '<div class="cards" id="tables"></div></main>',
    ]  # fmt: skip
    values = {"report": document, "page": _json(_values(found, tiles, left))}
    return charts.page(_TITLE, body, script=charts.own("report.js"), values=values)


def _told(warnings: Sequence[str]) -> list[str]:
    lines = [f'<p class="warn">{html.escape(terminal.safe(line))}</p>' for line in warnings]
    if len(lines) <= _MOST_WARNINGS:
        return lines
    first, more = lines[: _MOST_WARNINGS - 1], lines[_MOST_WARNINGS - 1 :]
    return [*first, f"<details><summary>{len(more)} more notes</summary>", *more, "</details>"]


def _values(found: PageContent, tiles: Mapping[str, tuple[str, str]], left: int) -> dict[str, Any]:
    """What the page's script reads."""
    usage, month = found.usage, found.month
    last = (month.first - timedelta(days=1)).replace(day=1)
    paid = any(cell[1] for cell in usage.cells.values())
    curves = [_curve(month, None), *(_curve(month, group["workspace"]) for group in month.groups[:_MOST_WORKSPACES])]
    return {
        "unit": usage.unit,
        "buckets": usage.buckets,
        "last": max(usage.buckets[-1], month.today) if usage.buckets else None,
        "measure": "cost" if paid else "tokens",
        "stack": found.stacked_by,
        "dimensions": [
            {
                "key": each.key,
                "title": each.title,
                "names": [shown_name(n) for n in each.names],
                "rest": int(each.rest > 0),
            }
            for each in usage.dimensions
        ],
        "cells": usage.encoded(),
        "tiles": {key: value for key, (_, value) in tiles.items()},
        "prices": [
            {
                "at": day,
                "model": shown_name(model),
                "old": format_money(old),
                "new": format_money(new),
                "number": number,
            }
            for number, (day, model, old, new) in enumerate(found.prices, 1)
        ],
        "confidence": pattern.CONFIDENCE,
        "month": f"{month.first:%Y-%m}",
        "last_month": f"{last:%Y-%m}",
        "months": curves,
        "months_left": max(0, len(month.groups) - _MOST_WORKSPACES),
        "budgets": [_budget(each) for each in month.budgets],
        "anomalies": [_strange(each) for each in found.anomalies],
        "groups_left": left,
        "by": {key: {"groups": each.groups, "left": each.left} for key, each in found.by.items()},
        "jobs": found.jobs.groups,
        "jobs_left": found.jobs.left,
        "tags": [
            {"number": number, "key": shown_name(each.key), "groups": each.groups, "left": each.left}
            for number, each in enumerate(found.tags)
        ],
    }


def _curve(month: Forecast, workspace: str | None) -> dict[str, Any]:
    """A month added up day by day, the one before beside it, and what is expected of its rest."""
    use = month.total_use if workspace is None else month.group_uses.get((workspace,))
    outcome = month.totals
    if workspace is not None:
        outcome = next(group for group in month.groups if group["workspace"] == workspace)
    measure: Measure = use.measure() if use else "cost"
    before = (month.first - timedelta(days=1)).replace(day=1)
    now = _added_up(use, measure, month.first, month.today + timedelta(days=1))
    made: dict[str, Any] = {
        "workspace": None if workspace is None else shown_name(workspace),
        "measure": measure,
        "last": _added_up(use, measure, before, month.first),
        "now": now,
        "so_far": outcome[measure],
        "last_month": outcome[f"{measure}_last_month"],
        "projected": outcome[f"{measure}_projected"],
        "least": outcome[f"{measure}_low"],
        "most": outcome[f"{measure}_high"],
        "reason": f"too little history for a projection: {counted(outcome['history_days'], 'whole day')}, "
        f"{pattern.LEAST_DAYS} are needed",
    }
    if made["projected"] is not None:
        passed = month.today.day - 1  # of the month, before today
        curves: dict[str, list[float | None]] = {name: [None] * passed for name in ("ahead", "low", "high")}
        for end in range((month.end - month.today).days):
            comes = forecast.projection(use, measure, month.today, month.today + timedelta(days=end + 1))
            assert comes is not None  # noqa: S101 - the same history as that of the whole month
            for name, amount in (("ahead", comes.expected), ("low", comes.low), ("high", comes.high)):
                curves[name].append(_digits((now[-1] if now else 0.0) + amount))
        made |= curves
    return made


def _added_up(use: DailyUse | None, measure: Measure, first: date, end: date) -> list[float]:
    running, sums = 0.0, []
    for ahead in range((end - first).days):
        running += use.on(first + timedelta(days=ahead), measure) if use else 0.0
        sums.append(_digits(running))
    return sums


def _digits(amount: float) -> float:
    return float(f"{amount:.7g}")


def _budget(each: BudgetForecast) -> dict[str, Any]:
    told = {
        "passed": "used up",
        "will_pass": f"will be passed on {each.passes_on}",
        "may_pass": "may be passed",
        "within": "holds",
        "unknown": "too little history",
    }
    found = each.as_dict()
    keys = ("period", "amount", "spent", "at_risk", "used_ratio", "projected", "outlook")
    return {key: found[key] for key in keys} | {
        "workspace": shown_name(found["workspace"]),
        "told": told[each.outlook],
    }


def _strange(each: Anomaly) -> dict[str, Any]:
    found = each.as_dict(())
    names = ("workspace", "job", "provider", "model")
    kept = {key: None if found[key] is None else shown_name(found[key]) for key in names}
    return kept | {key: found[key] for key in ("day", "measure", "amount", "expected")}


def _json(values: Mapping[str, Any]) -> str:
    return orjson.dumps(values, default=str).decode()


def _that_fit(groups: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """The first groups that a page can hold, and how many more there are."""
    kept = list(groups[:_MOST_GROUPS])
    while len(kept) > 1 and len(terminal.document(kept)) > _MOST_GROUPS_BYTES:
        kept = kept[: len(kept) // 2]
    return kept, len(groups) - len(kept)


def _span(whole: Report) -> str:
    told = whole.envelope()
    ends = [told[key].strftime("%Y-%m-%d %H:%M") if told[key] else "…" for key in ("since", "until")]
    filters = [f"{key} {', '.join(names)}" for key, names in told["filters"].items()]
    words = [" to ".join(ends) if ends != ["…", "…"] else "all time", told["timezone"], *filters]
    return html.escape(terminal.safe(" · ".join(words)))


def _tiles(totals: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Id → name and value of each figure."""
    share, rate = totals["fallback_share"], totals["success_rate"]
    return {
        "cost": ("Cost", _usd(totals["cost"], at_least=totals["cost_is_lower_bound"])),
        "cost_at_risk": ("At risk: sent, no answer", _usd(totals["cost_at_risk"])),
        "tokens": ("Tokens", f"{int(totals['tokens']):,}"),
        "fallback_share": ("Tokens estimated", "–" if share is None else f"{'~' if share else ''}{share:.1%}"),
        "unpriced_tokens": ("Tokens without a price", f"{int(totals['unpriced_tokens']):,}"),
        "calls": ("Calls", f"{totals['calls']:,}"),
        "success_rate": ("Successful", "–" if rate is None else f"{rate:.1%}"),
    }


def _month_tiles(month: Forecast) -> dict[str, tuple[str, str]]:
    totals = month.totals
    use = month.total_use
    measure: Measure = use.measure() if use else "cost"

    def shown(key: str) -> str:
        amount = totals[key]
        if measure == "cost":
            return _usd(amount)
        return "unknown" if amount is None else f"{int(amount):,} tokens"

    tiles = {
        "month_so_far": (f"This month so far ({month.first:%Y-%m})", shown(measure)),
        "month_last": ("Last month", shown(f"{measure}_last_month")),
    }
    if totals[f"{measure}_projected"] is None:
        return tiles | {"month_end": ("Month's end: too little history", "–")}
    ends = " to ".join(shown(f"{measure}_{end}").split(" ")[0] for end in ("low", "high"))
    return tiles | {"month_end": (f"Month's end, 90 %: {ends}", f"≈ {shown(f'{measure}_projected')}")}


def _alarming(month: Forecast) -> bool:
    return any(each.fails for each in month.budgets)


def _shown(tiles: Mapping[str, tuple[str, str]], alarm: bool = False) -> list[str]:
    return [
        f'<div class="tile{" alarm" if alarm and key == "month_end" else ""}"><b id="{key}">{html.escape(value)}</b>'
        f"<span>{html.escape(name)}</span></div>"
        for key, (name, value) in tiles.items()
    ]


def _usd(amount: Decimal | None, *, at_least: bool = False) -> str:
    if amount is None:
        return "unknown"
    return f"{'≥ ' if at_least else ''}{format_cents(amount)} USD"

"""A report as one HTML page that loads nothing from elsewhere: figures, charts over time, top jobs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedctl import terminal
from embedctl.reports import charts
from embedctl.reports.report import Report, ReportQuery, plain, report
from embedctl.storage import named

if TYPE_CHECKING:
    from embedctl.ledger.database import Connection

MOST_DAYS = 120
"""With more of them the charts show months."""

MOST_SERIES = 8
TOP_JOBS = 10
SPLITS = ("workspace", "model", "provider")
_TITLE = "embedctl usage"
_GREY = "rgba(128,128,128,.25)"
_STYLE = (
    "main{max-width:72rem;margin:0 auto;padding:1rem}h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.05rem}"
    "p{color:#777;margin:.2rem 0}.tiles{display:grid;gap:.6rem;margin:1rem 0;"
    "grid-template-columns:repeat(auto-fill,minmax(10rem,1fr))}"
    ".tile{border:1px solid #8884;border-radius:.5rem;padding:.6rem .8rem}"
    ".tile b{display:block;font-size:1.1rem;overflow-wrap:anywhere}.tile span{color:#777;font-size:.85rem}"
    ".charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,30rem),1fr))}"
    ".charts>div{min-width:0}.warn{border-left:3px solid #d80;padding:.2rem .7rem;margin:.4rem 0;color:inherit;"
    "overflow-wrap:anywhere}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;"
    "border-bottom:1px solid #8883}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
)


@dataclass(frozen=True, slots=True)
class PageContent:
    """What the page shows.

    Attributes:
        whole: The report that was asked for.
        over_time: Split (of SPLITS) → the same usage by day or month and that split.
        jobs: The same usage by job, the dearest.
    """

    whole: Report
    over_time: Mapping[str, Report]
    jobs: Report


def content(connection: Connection, question: ReportQuery, *, now: datetime) -> PageContent:
    """Everything that is on the page for a question, whatever it is grouped by."""
    whole = report(connection, question, now=now)
    days = report(connection, replace(question, by=["day"], top=None), now=now, known_names=False)
    unit = "day" if len(days.groups) <= MOST_DAYS else "month"
    over_time = {
        split: report(connection, replace(question, by=[unit, split], top=None), now=now, known_names=False)
        for split in SPLITS
    }
    jobs = report(connection, replace(question, by=["job"], top=TOP_JOBS), now=now, known_names=False)
    return PageContent(whole, over_time, jobs)


def write(found: PageContent, place: Path, notes: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """Write the page to a new file.

    Raises:
        OutputRefused: Something is there, and `overwrite` is not set.
        ExtraMissing: plotly is not installed.
    """
    named.check_free(place, overwrite=overwrite)  # before the work
    named.write(place, page(found, notes).encode(), overwrite=overwrite)


def page(found: PageContent, notes: Sequence[str] = ()) -> str:
    """The HTML.

    Raises:
        ExtraMissing: plotly is not installed.
    """
    whole = found.whole
    warnings = list(dict.fromkeys([*whole.warnings, *notes]))
    drawn = []
    for split, each in found.over_time.items():
        for measure, title in (("cost", "USD"), ("tokens", "Tokens")):
            drawn.append(charts.figure(_bars(each, split, measure, f"{title} by {split}"), f"{measure}-{split}"))
    document = terminal.document(whole.envelope() | {"warnings": warnings}).decode().replace("<", "\\u003c")
    parts = [
        "<main><h1>Usage</h1>",
        f"<p>{_span(whole)} · prices as of {html.escape(whole.prices_as_of or 'never')}</p>",
        '<div class="tiles">', *_tiles(whole.totals), "</div>",
        *(f'<p class="warn">{html.escape(terminal.safe(line))}</p>' for line in warnings),
        '<div class="charts">', *(f"<div>{one}</div>" for one in drawn), "</div>",
        "<h2>Top jobs</h2>", _table(found.jobs),
        f'<script type="application/json" id="report">{document}</script></main>',
    ]  # fmt: skip
    return charts.page(_TITLE, parts, _STYLE)


def _span(whole: Report) -> str:
    told = whole.envelope()
    ends = [told[key].strftime("%Y-%m-%d %H:%M") if told[key] else "…" for key in ("since", "until")]
    filters = [f"{key} {', '.join(names)}" for key, names in told["filters"].items()]
    words = [" to ".join(ends) if ends != ["…", "…"] else "all time", told["timezone"], *filters]
    return html.escape(terminal.safe(" · ".join(words)))


def _tiles(totals: Mapping[str, Any]) -> list[str]:
    share, rate = totals["fallback_share"], totals["success_rate"]
    shown = {
        "cost": ("Cost, USD", _usd(totals["cost"], at_least=totals["cost_is_lower_bound"])),
        "tokens": ("Tokens", f"{int(totals['tokens']):,}"),
        "cost_at_risk": ("At risk, USD: sent, no answer", _usd(totals["cost_at_risk"])),
        "fallback_share": ("Tokens estimated", "–" if share is None else f"{share:.1%}"),
        "unpriced_tokens": ("Tokens without a price", f"{int(totals['unpriced_tokens']):,}"),
        "calls": ("Calls", f"{totals['calls']:,}"),
        "success_rate": ("Successful", "–" if rate is None else f"{rate:.1%}"),
    }
    return [
        f'<div class="tile"><b id="{key}">{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for key, (name, value) in shown.items()
    ]


def _usd(amount: Decimal | None, *, at_least: bool = False) -> str:
    if amount is None:
        return "unknown"
    return f"{'≥ ' if at_least else ''}{plain(amount)}"


def _bars(found: Report, split: str, measure: str, title: str) -> dict[str, Any]:
    """Stacked bars over time; the smaller series together as "others"."""
    unit = found.question.by[0]
    sums: dict[str, dict[str, Decimal]] = {}
    weights: dict[str, tuple[Decimal, int]] = {}  # the same for every measure: a name keeps its colour
    for group in found.groups:
        name = str(group[split] if group[split] is not None else "–")
        cost, tokens = weights.get(name, (Decimal(0), 0))
        weights[name] = (cost + Decimal(group["cost"] or 0), tokens + int(group["tokens"] or 0))
        series = sums.setdefault(name, {})
        day = group[unit]
        series[day] = series.get(day, Decimal(0)) + Decimal(group[measure] or 0)
    ranked = sorted(sums, key=lambda name: weights[name], reverse=True)
    kept = {name: sums[name] for name in ranked[:MOST_SERIES]}
    for name in ranked[MOST_SERIES:]:
        others = kept.setdefault("others", {})
        for day, value in sums[name].items():
            others[day] = others.get(day, Decimal(0)) + value
    traces = [
        {
            "type": "bar",
            "name": charts.plain(terminal.safe(name)),
            "x": list(days),
            "y": [float(v) for v in days.values()],
        }
        for name, days in kept.items()
    ]
    axis = {"gridcolor": _GREY, "zerolinecolor": _GREY, "automargin": True, "rangemode": "tozero"}
    layout = {
        "title": {"text": title, "font": {"size": 15}, "x": 0.01},
        "barmode": "stack",
        "height": 320,
        "margin": {"l": 50, "r": 10, "t": 40, "b": 40},
        "xaxis": {"type": "date", "gridcolor": _GREY, "tickformat": "%Y-%m-%d"},
        "yaxis": axis,
        "legend": {"orientation": "h", "y": -0.2},
        "showlegend": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
    }
    return {"data": traces, "layout": layout}


def _table(jobs: Report) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(terminal.safe(group["job"] or "–"))}</td><td class="n">{int(group["tokens"]):,}</td>'
        f'<td class="n">{_usd(group["cost"], at_least=group["cost_is_lower_bound"])}</td>'
        f'<td class="n">{_usd(group["cost_at_risk"])}</td><td class="n">{group["errors"]:,}</td></tr>'
        for group in jobs.groups
    )
    names = ("Tokens", "Cost, USD", "At risk, USD", "Errors")
    head = "<th>Job</th>" + "".join(f'<th class="n">{name}</th>' for name in names)
    return f'<div class="wide"><table id="jobs"><tr>{head}</tr>{rows}</table></div>'

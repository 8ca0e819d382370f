"""What a page shows of a report: usage to filter, the dearest of everything, the month's end, changes of prices."""

# ruff: noqa: S608 - conditions are ours; every foreign value is bound

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from embedctl import terminal
from embedctl.dataclass import dataclass
from embedctl.ledger import periods
from embedctl.ledger.budgets import Budget
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.ledger.rating import moment
from embedctl.reports import anomalies, cube, forecast
from embedctl.reports.anomalies import Anomaly
from embedctl.reports.cube import Cube
from embedctl.reports.forecast import Forecast
from embedctl.reports.measures import measured
from embedctl.reports.query import UNITS, ReportQuery, where_clause
from embedctl.reports.report import Report, counted, report

TOP = 10
"""Jobs, and values of a tag."""

_MOST_TAGS = 3
_MOST_CHANGES = 20
_MOST_ANOMALIES = 30
_MOST_ANOMALY_DAYS = 366
_MOST_NAMES = 40  # workspaces, models
_NAME_LETTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """The dearest groups of one key.

    Attributes:
        left: How many more there are.
    """

    key: str
    groups: Sequence[Mapping[str, Any]]
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """What the page shows.

    Attributes:
        whole: The report that was asked for.
        stacked_by: The dimension of `usage` that the bars are stacked by.
        prices: Changes of prices that were used: day, model, before, after.
        left_out: What the page lacks of the ledger, in sentences.
    """

    whole: Report
    usage: Cube
    stacked_by: str
    by: Mapping[str, Grouped]
    jobs: Grouped
    tags: Sequence[Grouped]
    month: Forecast
    anomalies: Sequence[Anomaly]
    prices: Sequence[tuple[date, str, Decimal, Decimal]]
    left_out: Sequence[str]


def content(
    connection: Connection,
    question: ReportQuery,
    *,
    budgets_set: Iterable[Budget] = (),
    grouped: bool = True,
    now: datetime,
) -> PageContent:
    """Everything that is on the page for a question.

    Args:
        budgets_set: Those of the settings.
        grouped: Whether the question's keys were asked for; else the bars are stacked by workspace.
    """
    whole = report(connection, question, now=now)
    usage = cube.cube(connection, question, now=now)
    names = [key for key in question.by if key not in UNITS]
    stacked_by = "workspace"
    if grouped and names and names[0] != "workspace":
        dimensions = [dimension.key for dimension in usage.dimensions]
        stacked_by = "model" if names[0] == "model" or "asked" not in dimensions else "asked"
    month = forecast.forecast(
        connection, replace(question, by=["workspace"], top=None), budgets_set=budgets_set, now=now, known_names=False
    )
    changes = _price_changes(connection, question, usage)
    strange = _anomalies(connection, question, usage, now)
    left_out = _left_out(usage)
    if len(changes) > _MOST_CHANGES:
        left_out.append(f"{len(changes) - _MOST_CHANGES} older price changes are not on the page")
    if len(strange) > _MOST_ANOMALIES:
        left_out.append(f"{len(strange) - _MOST_ANOMALIES} more days far from the pattern: `embedctl usage anomalies`")
    return PageContent(
        whole=whole,
        usage=usage,
        stacked_by=stacked_by,
        by={
            "workspace": _grouped(connection, question, ["workspace"], _MOST_NAMES),
            "model": _grouped(connection, question, ["provider", "model"], _MOST_NAMES),
        },
        jobs=_grouped(connection, question, ["job"]),
        tags=[_grouped(connection, question, [f"tag:{key}"]) for key in _tag_keys(connection, question)],
        month=month,
        anomalies=strange[:_MOST_ANOMALIES],
        prices=changes[-_MOST_CHANGES:],
        left_out=left_out,
    )


def shown_name(text: object) -> str:
    """A foreign name as a page shows it: short, and harmless."""
    shown = terminal.safe(text)
    return shown if len(shown) <= _NAME_LETTERS else shown[: _NAME_LETTERS - 1] + "…"


def _left_out(usage: Cube) -> list[str]:
    sentences = []
    if usage.unit != usage.asked_unit:
        sentences.append(f"the bars are {usage.unit}s: by {usage.asked_unit} there are too many for a page")
    sentences.extend(
        f"{counted(each.rest, f'smaller {each.title} group')} together as “others”"
        for each in usage.dimensions
        if each.rest
    )
    return sentences


def _grouped(connection: Connection, question: ReportQuery, keys: Sequence[str], most: int = TOP) -> Grouped:
    """The dearest groups, under names that are safe to show; several keys are one name with colons."""
    groups, _ = measured(connection, replace(question, by=keys, top=None))
    groups.sort(key=lambda group: (-(group[1]["cost"] or 0), -int(group[1]["tokens"]), str(group[0])))
    measures = ("tokens", "estimated_share", "cost", "cost_is_lower_bound", "cost_at_risk", "calls", "errors")
    kept = [
        {"name": None if names[0] is None else shown_name(":".join(map(str, names)))}
        | {measure: found[measure] for measure in measures}
        for names, found in groups[:most]
    ]
    return Grouped(key=keys[-1].removeprefix("tag:"), groups=kept, left=len(groups) - len(kept))


def _tag_keys(connection: Connection, question: ReportQuery) -> list[str]:
    condition, values = where_clause(question)
    rows = connection.execute(
        "SELECT key FROM (SELECT unnest(json_keys(tags)) AS key FROM usage_event "
        f"WHERE {condition} AND tags IS NOT NULL) GROUP BY key ORDER BY count(*) DESC, key LIMIT {_MOST_TAGS}",
        values,
    ).fetchall()
    return [str(row[0]) for row in rows]


def _price_changes(
    connection: Connection, question: ReportQuery, usage: Cube
) -> list[tuple[date, str, Decimal, Decimal]]:
    """When the price of a model that was used changed within the days shown."""
    if not usage.buckets:
        return []
    condition, values = where_clause(replace(question, within=Range(until=question.within.until)))
    rows = connection.execute(
        "SELECT used.provider || ':' || used.model, price_tier, region, meter, unit_price, epoch_us(valid_from) FROM "
        f"(SELECT DISTINCT provider, model, price_id FROM usage_event WHERE {condition} AND price_id IS NOT NULL) used "
        "JOIN price USING (price_id) ORDER BY 1, 2, 3, 4, valid_from",
        values,
    ).fetchall()
    where = periods.zone(question.timezone)
    changes = []
    for before, after in itertools.pairwise(rows):
        day = moment(after[5]).astimezone(where).date()
        if before[:4] == after[:4] and before[4] != after[4] and day >= usage.buckets[0]:
            changes.append((day, after[0], before[4], after[4]))
    return sorted(changes)


def _anomalies(connection: Connection, question: ReportQuery, usage: Cube, now: datetime) -> list[Anomaly]:
    if not usage.buckets:
        return []
    where = periods.zone(question.timezone)
    first = max(usage.buckets[0], now.astimezone(where).date() - timedelta(days=_MOST_ANOMALY_DAYS))
    within = Range(periods.start_of(first, where), question.within.until)
    found = anomalies.anomalies(connection, replace(question, by=(), within=within), now=now, known_names=False)
    return list(found.found)

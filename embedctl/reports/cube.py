"""Usage by time, workspace and model, small enough for a page: what its filters and charts add up."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from operator import add
from typing import Any

import orjson

from embedctl.dataclass import dataclass
from embedctl.ledger import periods
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Unit
from embedctl.ledger.rating import moment
from embedctl.reports.query import UNITS, ReportQuery, keys, where_clause

MOST_BYTES = 110_000
"""What the cells may take in a page."""

_MOST_CELLS = 6000  # none that has more will take less

_NAMES = ((24, 16), (12, 10), (8, 8), (8, 5), (5, 5), (5, 3))  # kept at most: of workspaces, of other dimensions
_FEWEST_NAMES = ((3, 2), (1, 1))  # when months of the others are too many
_MOST_DAYS = 800  # days, weeks or months on the axis
_Cells = Iterable[tuple[tuple[int, ...], Sequence[float]]]  # (bucket, an index of each dimension's names), measures
_DENSE = ("tokens", "cost", "calls")
_SPARSE = ("risk", "fallback", "unpriced", "errors")  # mostly 0
_MEASURES = """
  coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0)::DOUBLE, coalesce(sum(cost), 0)::DOUBLE,
  count(*) FILTER (entry_kind = 'usage'), coalesce(sum(cost_at_risk), 0)::DOUBLE,
  coalesce(sum(tokens_total) FILTER (billable = 'yes' AND usage_source = 'fallback'), 0)::DOUBLE,
  coalesce(sum(tokens_total) FILTER (cost_status = 'unpriced'), 0)::DOUBLE,
  count(*) FILTER (entry_kind = 'usage' AND status <> 'ok')
"""


@dataclass(frozen=True, slots=True)
class Dimension:
    """What usage is told apart by.

    Attributes:
        names: The dearest first; the last one stands for `rest` others, if there are some.
    """

    key: str
    title: str
    names: Sequence[str]
    rest: int


@dataclass(frozen=True, slots=True)
class Cube:
    """Sums of every measure by time and names.

    Attributes:
        buckets: First days of all days, weeks or months from the first to the last, those without usage too.
        cells: (bucket, one index of each dimension's names) → tokens, cost, calls, risk, fallback, unpriced, errors.
        asked_unit: What the bars were to be; `unit` is coarser when that would be too much for a page.
    """

    unit: Unit
    asked_unit: Unit
    buckets: Sequence[date]
    dimensions: Sequence[Dimension]
    cells: dict[tuple[int, ...], list[float]]

    def encoded(self) -> dict[str, Any]:
        """For the page: steps from one cell's number to the next, and columns; of what is mostly 0, only the rest."""
        numbers = []
        for place in sorted(self.cells):
            number = place[0]
            for index, dimension in zip(place[1:], self.dimensions, strict=True):
                number = number * len(dimension.names) + index
            numbers.append(number)
        rows = [self.cells[place] for place in sorted(self.cells)]
        columns = dict(zip((*_DENSE, *_SPARSE), zip(*rows, strict=True), strict=True)) if rows else {}
        sparse = {}
        for name in _SPARSE:
            some = [(index, _digits(value)) for index, value in enumerate(columns.get(name, ())) if value]
            sparse[name] = [[index for index, _ in some], [value for _, value in some]]
        steps = [number - before for before, number in zip([0, *numbers], numbers, strict=False)]
        return {"steps": steps, "sparse": sparse} | {
            name: [_digits(value) for value in columns.get(name, ())] for name in _DENSE
        }


def cube(connection: Connection, question: ReportQuery, *, now: datetime) -> Cube:
    """What a page shows of `question`: by its time unit (else days), workspace, model, and what else it groups by.

    Raises:
        WrongUsage: An unknown key, filter or time zone.
    """
    unit: Unit = next((key for key in reversed(UNITS) if key in question.by), "day")  # type: ignore[misc]
    if "day" in question.by:
        unit = "day"
    others = [key for key in question.by if key not in (*UNITS, "workspace", "model")]
    if others == ["provider"]:
        others = ["provider"] if "model" not in question.by else []
    condition, values = where_clause(question)
    asked, bound = keys(connection, replace(question, by=others))
    found: list[tuple[Dimension, str, list[Any]]] = []
    for key, title, expression, its in (
        ("workspace", "workspace", "workspace_id", []),
        ("model", "model", "provider || ':' || model", []),
        *([("asked", ", ".join(others), _together(asked), bound)] if others else []),
    ):
        most = _NAMES[0][0 if key == "workspace" else 1]
        rows = connection.execute(
            f"SELECT name, count(*) OVER () FROM (SELECT {expression} AS name, coalesce(sum(cost), 0) AS paid, "
            f"sum(tokens_total) AS used FROM usage_event WHERE {condition} GROUP BY ALL) "
            f"ORDER BY paid DESC, used DESC, name LIMIT {most}",
            [*its, *values],
        ).fetchall()
        names = [str(row[0]) for row in rows]
        rest = rows[0][1] - len(names) if rows else 0
        found.append((Dimension(key, title, names, rest), expression, its))
    days = _days(connection, question, condition, values, now)
    while len(_buckets(days, unit)) > _MOST_DAYS and unit != "month":
        unit = "week" if unit == "day" else "month"
    rows = _rows(connection, question, unit, found, condition, values)
    return _fitted(rows, unit, days, [dimension for dimension, _, _ in found])


def _together(expressions: Sequence[str]) -> str:
    return " || ' · ' || ".join(f"coalesce({expression}, '–')" for expression in expressions)


def _rows(
    connection: Connection,
    question: ReportQuery,
    unit: Unit,
    found: Sequence[tuple[Dimension, str, list[Any]]],
    condition: str,
    values: Sequence[Any],
) -> list[tuple[Any, ...]]:
    """First day, an index of each dimension's names (their count for the others), and the measures."""
    (time,), _ = keys(connection, replace(question, by=[unit]))
    indexes, bound = [], []
    for dimension, expression, its in found:
        indexes.append(f"coalesce(list_position(?::VARCHAR[], {expression}), {len(dimension.names) + 1}) - 1")
        bound += [list(dimension.names), *its]
    return connection.execute(
        f"SELECT {time}, {', '.join(indexes)}, {_MEASURES} FROM usage_event WHERE {condition} GROUP BY ALL",
        [*bound, *values],
    ).fetchall()


def _fitted(
    rows: Sequence[tuple[Any, ...]], unit: Unit, days: tuple[date, date] | None, whole: list[Dimension]
) -> Cube:
    """With as many names, and bars as fine, as a page can hold."""
    units: list[Unit] = list(UNITS[UNITS.index(unit) :])  # type: ignore[arg-type]
    made = None
    after = len(whole) + 1
    for coarser in units:
        buckets = _buckets(days, coarser)
        place = {first: index for index, first in enumerate(buckets)}
        cells: _Cells = [((place[periods.floor(row[0], coarser)], *row[1:after]), row[after:]) for row in rows]
        for most in (*_NAMES, *(_FEWEST_NAMES if coarser == "month" else ())):
            dimensions = [_cut(each, most[0 if each.key == "workspace" else 1]) for each in whole]
            summed = _summed(cells, dimensions)
            made = Cube(coarser, unit, buckets, dimensions, summed)
            cells = summed.items()  # fewer names are sums of these
            if len(made.cells) <= _MOST_CELLS and len(orjson.dumps(made.encoded())) <= MOST_BYTES:
                return made
    assert made is not None  # noqa: S101
    return made


def _cut(whole: Dimension, most: int) -> Dimension:
    kept = list(whole.names[:most])
    rest = whole.rest + len(whole.names) - len(kept)
    return Dimension(whole.key, whole.title, [*kept, f"{rest:,} others"] if rest else kept, rest)


def _summed(cells: _Cells, dimensions: Sequence[Dimension]) -> dict[tuple[int, ...], list[float]]:
    last = [len(dimension.names) - 1 for dimension in dimensions]
    sums: dict[tuple[int, ...], list[float]] = {}
    for (bucket, *indexes), measures in cells:
        at = (bucket, *map(min, indexes, last))
        if at in sums:
            sums[at] = list(map(add, sums[at], measures))
        else:
            sums[at] = list(measures)
    return sums


def _days(
    connection: Connection, question: ReportQuery, condition: str, values: Sequence[Any], now: datetime
) -> tuple[date, date] | None:
    """The first and last day on the axis: of the usage, or of the range where that is not far off."""
    row = connection.execute(
        f"SELECT epoch_us(min(occurred_at)), epoch_us(max(occurred_at)) FROM usage_event WHERE {condition}",
        list(values),
    ).fetchone()
    if row is None or row[0] is None:
        return None
    where = periods.zone(question.timezone)
    first, last = (moment(at).astimezone(where).date() for at in row)
    since = question.within.since.astimezone(where).date() if question.within.since else first
    until = (question.within.until or now) - timedelta(microseconds=1)
    end = min(until, now).astimezone(where).date()
    near = timedelta(days=max(31, (last - first).days))
    return (since if first - since <= near else first), (max(last, end) if end - last <= near else last)


def _buckets(days: tuple[date, date] | None, unit: Unit) -> list[date]:
    if days is None:
        return []
    found = []
    day = periods.floor(days[0], unit)
    while day <= days[1]:
        found.append(day)
        day = periods.floor(day + timedelta(days={"day": 1, "week": 7, "month": 31}[unit]), unit)
    return found


def _digits(value: float) -> int | float:
    """Seven digits: more than a chart shows; whole numbers as such."""
    return int(value) if value == int(value) and abs(value) < 1 << 53 else float(f"{value:.7g}")

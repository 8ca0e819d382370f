"""What was used day by day, as the weekday pattern is read from."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Literal

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.ledger import periods
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.ledger.rating import moment
from embedctl.reports.query import UNITS, ReportQuery, keys, where_clause

Measure = Literal["cost", "tokens"]
Key = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class DailyUse:
    """The usage of a group, by local day; days without any are missing.

    Attributes:
        first: The day of its first usage ever: no history begins before.
        priced_since: The day of its first usage whose cost is known, None without any: no costs before are history.
        cost: Known cost of usage, without corrections.
        tokens: Confirmed.
        unpriced: Days of which some cost is not known.
    """

    first: date
    priced_since: date | None = None
    cost: dict[date, Decimal] = field(default_factory=dict)
    tokens: dict[date, int] = field(default_factory=dict)
    unpriced: set[date] = field(default_factory=set)

    def on(self, day: date, measure: Measure) -> float:
        """The amount of a day."""
        return float(self.cost.get(day, 0) if measure == "cost" else self.tokens.get(day, 0))

    def before(self, day: date, measure: Measure, most: int) -> list[float]:
        """Amounts of the days before `day`, at most so many, none before the first that is known."""
        first = self.priced_since if measure == "cost" else self.first
        count = 0 if first is None else max(0, min(most, (day - first).days))
        return [self.on(day - timedelta(days=ago), measure) for ago in range(count, 0, -1)]

    def measure(self) -> Measure:
        """Money where there is some; tokens where all is free or nobody knows a price."""
        return "cost" if any(self.cost.values()) else "tokens"


def check_keys(question: ReportQuery) -> None:
    """Refuse groups that have no days of their own.

    Raises:
        WrongUsage: A time unit, or runs: each is over before there is a pattern.
    """
    for key in question.by:
        if key in (*UNITS, "run"):
            raise WrongUsage(f"cannot group a pattern of days by {key!r}", hint="like workspace, model, job or tag:KEY")


def daily(connection: Connection, question: ReportQuery) -> Mapping[Key, DailyUse]:
    """Usage by the keys of `question` and by day.

    Raises:
        WrongUsage: An unknown key, filter or time zone.
    """
    where = periods.zone(question.timezone)
    count = len(question.by)
    everything = replace(question, within=Range())
    condition, values = where_clause(everything)
    expressions, bound = keys(connection, everything)
    names = "".join(f"{expression}, " for expression in expressions)
    rows = connection.execute(
        f"SELECT {names} epoch_us(min(occurred_at)), epoch_us(min(occurred_at) FILTER (cost IS NOT NULL)) "
        f"FROM usage_event WHERE {condition} AND entry_kind = 'usage' GROUP BY ALL",
        [*bound, *values],
    ).fetchall()
    found = {}
    for row in rows:
        first, priced = (None if at is None else moment(at).astimezone(where).date() for at in row[count:])
        if first is not None:
            found[_key(row[:count])] = DailyUse(first, priced)
    condition, values = where_clause(question)
    expressions, bound = keys(connection, replace(question, by=[*question.by, "day"]))
    names = "".join(f"{expression}, " for expression in expressions)
    rows = connection.execute(
        f"SELECT {names} coalesce(sum(cost), 0), coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0), "
        "count(*) FILTER (cost_status = 'unpriced') "
        f"FROM usage_event WHERE {condition} AND entry_kind = 'usage' GROUP BY ALL",
        [*bound, *values],
    ).fetchall()
    for row in rows:
        use, day = found[_key(row[:count])], row[count]
        use.cost[day] = row[count + 1]
        use.tokens[day] = int(row[count + 2])
        if row[count + 3]:
            use.unpriced.add(day)
    return found


def _key(names: tuple[object, ...]) -> Key:
    return tuple(None if name is None else str(name) for name in names)

"""What a report is asked: keys to group by, filters, a range and a time zone, as SQL with every foreign value bound."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import timedelta
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage, nearest
from embedctl.ledger import periods
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.ledger.rating import microseconds, moment
from embedctl.reports.exchange_rates import OWN, FxDate

_COLUMNS = {
    "workspace": "workspace_id",
    "provider": "provider",
    "model": "model",
    "job": "job_id",
    "run": "CAST(run_id AS VARCHAR)",
    "tier": "price_tier",
    "source": "usage_source",
    "status": "status",
    "purpose": "purpose",
}
UNITS = ("day", "week", "month")
KEYS = (*UNITS, *_COLUMNS)
"""What a report may be grouped by, beside `tag:KEY`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportQuery:
    """What a report is asked.

    Attributes:
        by: Keys to group by, from KEYS or "tag:KEY".
        only: Column (a key of KEYS but the times) → the values that count.
        timezone: IANA name; decides days, weeks and months.
        top: Keep the N dearest groups; None keeps all.
        descending: Latest first, where grouped by time.
        currency: Which money is shown in; other than USD by the rate of each event's `fx_date`.
    """

    by: Sequence[str] = ()
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    within: Range = field(default_factory=Range)
    timezone: str = "UTC"
    top: int | None = None
    descending: bool = False
    currency: str = OWN
    fx_date: FxDate = "day"


def where_clause(question: ReportQuery) -> tuple[str, list[Any]]:
    """SQL over usage_event, values bound, for the range and the filters of `question`.

    Raises:
        WrongUsage: An unknown filter.
    """
    parts: list[str] = ["true"]
    values: list[Any] = []
    if question.within.since is not None:
        parts.append("occurred_at >= make_timestamptz(?)")
        values.append(microseconds(question.within.since))
    if question.within.until is not None:
        parts.append("occurred_at < make_timestamptz(?)")
        values.append(microseconds(question.within.until))
    for key, wanted in question.only.items():
        if wanted:
            parts.append(f"{_COLUMNS[key]} IN ({', '.join('?' * len(wanted))})")
            values.extend(wanted)
    return " AND ".join(parts), values


def keys(connection: Connection, question: ReportQuery) -> tuple[list[str], list[Any]]:
    """One SQL expression per key, and the values they bind."""
    expressions, values = [], []
    for key in question.by:
        if key.startswith("tag:") and len(key) > 4:
            expressions.append("json_extract_string(tags, ?)")
            values.append("/" + key[4:].replace("~", "~0").replace("/", "~1"))
        elif key in UNITS:
            expressions.append(f"date_trunc('{key}', {_local_time(connection, question)})::DATE")
        elif key in _COLUMNS:
            expressions.append(_COLUMNS[key])
        else:
            close = nearest(key, KEYS)
            raise WrongUsage(
                f"cannot group by {key!r}",
                hint=f"did you mean {close}?" if close else f"one of {', '.join(KEYS)}, tag:KEY",
            )
    return expressions, values


def _local_time(connection: Connection, question: ReportQuery) -> str:
    """SQL for the local time of an event: UTC plus the offset of its stretch, which is whole seconds and ours."""
    where = periods.zone(question.timezone)
    ends = connection.execute(
        "SELECT epoch_us(min(occurred_at)), epoch_us(max(occurred_at)) FROM usage_event"
    ).fetchone()
    if ends is None or ends[0] is None:
        return "occurred_at::TIMESTAMP"
    since, until = question.within.since, question.within.until
    first = max(moment(ends[0]), since) if since else moment(ends[0])
    last = min(moment(ends[1]), until) if until else moment(ends[1])
    stretches = periods.offsets(where, first, max(first, last))
    if all(offset == timedelta() for _, offset in stretches):
        return "occurred_at::TIMESTAMP"
    cases = [
        f"WHEN epoch_us(occurred_at) < {microseconds(following[0])} THEN to_seconds({_seconds(stretch[1])})"
        for stretch, following in itertools.pairwise(stretches)
    ]
    rest = f"to_seconds({_seconds(stretches[-1][1])})"
    shift = f"CASE {' '.join(cases)} ELSE {rest} END" if cases else rest
    return f"occurred_at::TIMESTAMP + {shift}"


def _seconds(offset: timedelta) -> int:
    """An offset to UTC as SQL takes it."""
    return int(offset.total_seconds())


def refuse_unknown_names(connection: Connection, question: ReportQuery) -> None:
    """Tell an empty answer from a misspelt name.

    Raises:
        WrongUsage: A filter names what is nowhere in the ledger, though the ledger holds other names.
    """
    for key, wanted in question.only.items():
        rows = connection.execute(f"SELECT DISTINCT {_COLUMNS[key]} FROM usage_event").fetchall()
        known = sorted(str(row[0]) for row in rows if row[0] is not None)
        for name in wanted:
            if known and name not in known:
                close = nearest(name, known)
                raise WrongUsage(
                    f"no usage of {key} {name!r} is in the ledger",
                    hint=f"did you mean {close}?" if close else f"known: {', '.join(known[:10])}",
                )

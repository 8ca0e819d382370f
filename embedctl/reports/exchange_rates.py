"""Exchange rates by day, for reports in another currency. Only what is shown is converted; the ledger stays in USD."""

from __future__ import annotations

import bisect
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, WrongUsage
from embedctl.ledger.database import Connection
from embedctl.storage import given_files

OWN = "USD"
EVERY = ("day", "month-end")
FxDate = Literal["day", "month-end"]
STALE = timedelta(days=7)
"""Banks close for a few days at most; a rate that is older than this is none."""

_EXACT = Decimal("0.00000001")
_SMALLEST = Decimal("0.000000001")
"""What the ledger keeps of a rate."""


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """One `base` costs `rate` of `quote` on `day`."""

    base: str
    quote: str
    day: date
    rate: Decimal


def read(path: Path) -> list[ExchangeRate]:
    """Rates of a CSV file: `day,base,quote,rate`, or the European Central Bank's history (`Date,USD,JPY,...`, of EUR).

    Raises:
        InputMissing: No such file.
        InputInvalid: Neither of the two, or a value in it is no rate.

    Source: https://www.ecb.europa.eu/stats/eurofxref/eurofxref-hist.zip, columns of 2026-11.
    """
    lines = csv.DictReader(io.StringIO(given_files.read_text(path)))
    try:
        rows = [{name.strip(): value for name, value in row.items() if name is not None} for row in lines]
    except csv.Error as error:
        raise InputInvalid(f"{path} is no CSV: {error}") from None
    names = {name.lower() for row in rows[:1] for name in row}
    if not names & {"date", "day"}:
        raise InputInvalid(f"{path} has no rates by day", hint="columns day, base, quote, rate; or the ECB's history")
    found: list[ExchangeRate] = []
    for number, row in enumerate(rows, 2):
        try:
            found.extend(_rates(row, plain={"day", "base", "quote", "rate"} <= names))
        except (ValueError, InvalidOperation, KeyError) as error:
            raise InputInvalid(f"{path}, line {number}: {error}", hint="days like 2026-11-21, rates above 0") from None
    return found


def _rates(row: Mapping[str, str | None], *, plain: bool) -> Iterable[ExchangeRate]:
    lower = {name.lower(): (value or "").strip() for name, value in row.items()}
    if plain:
        yield _rate(lower["base"], lower["quote"], lower["day"], lower["rate"])
        return
    for name, value in row.items():
        if name.lower() not in ("date", "day", "") and (value or "").strip() not in ("", "N/A"):
            yield _rate("EUR", name, lower.get("date") or lower["day"], str(value))


def _rate(base: str, quote: str, day: str, rate: str) -> ExchangeRate:
    value = Decimal(rate.strip())
    if not value.is_finite() or not _SMALLEST <= value < 10**9:
        raise ValueError(f"{given_files.shortened(rate)} is no rate")
    return ExchangeRate(
        checked_currency(base), checked_currency(quote), date.fromisoformat(day), value.quantize(_SMALLEST)
    )


def checked_currency(code: str) -> str:
    """An ISO 4217 code, in capitals.

    Raises:
        ValueError: It is none.
    """
    code = code.strip().upper()
    if len(code) != 3 or not code.isascii() or not code.isalpha():
        raise ValueError(f"{given_files.shortened(code)} is no currency")
    return code


def put(connection: Connection, rates: Sequence[ExchangeRate], source: str) -> None:
    """Keep `rates`; those of the same day and pair are replaced."""
    rows = [[r.base, r.quote, r.day.isoformat(), format(r.rate, "f")] for r in rates]
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE fresh AS SELECT x[1] AS base, x[2] AS quote, x[3]::DATE AS day, "
        "x[4]::DECIMAL(18,9) AS rate FROM (SELECT unnest(from_json(?::JSON, '[[\"VARCHAR\"]]')) AS x)",
        [orjson.dumps(rows).decode()],
    )
    connection.execute("BEGIN")
    connection.execute("DELETE FROM fx_rate f USING fresh n WHERE (f.base, f.quote, f.day) = (n.base, n.quote, n.day)")
    connection.execute(
        "INSERT INTO fx_rate SELECT base, quote, day, any_value(rate), ? FROM fresh GROUP BY ALL", [source]
    )
    connection.execute("COMMIT")


def known(connection: Connection, currency: str) -> dict[date, Decimal]:
    """Day → what one USD costs in `currency`: as it stands, turned round, or by way of a third currency."""
    rows = connection.execute("SELECT base, quote, day, rate FROM fx_rate ORDER BY day").fetchall()
    by_day: dict[date, dict[tuple[str, str], Decimal]] = {}
    for base, quote, day, rate in rows:
        by_day.setdefault(day, {}).update({(base, quote): rate, (quote, base): 1 / rate})
    found = {}
    for day, pairs in by_day.items():
        direct = pairs.get((OWN, currency))
        others = (via for own, via in pairs if own == OWN and (via, currency) in pairs)
        crossed = next((pairs[OWN, via] * pairs[via, currency] for via in others), None)
        rate = direct if direct is not None else crossed
        if rate is not None:
            found[day] = rate.quantize(_EXACT)
    return found


def of_days(rates: Mapping[date, Decimal], days: Iterable[date], currency: str, every: FxDate) -> dict[date, Decimal]:
    """The rate for each day: its own or the last before it; by month: the last of its month.

    Raises:
        WrongUsage: A day has none that is not stale.
    """
    ordered = sorted(rates)
    found = {}
    for day in days:
        latest = day
        if every == "month-end":
            latest = (day.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        place = bisect.bisect_right(ordered, latest) - 1
        if place < 0 or day - ordered[place] > STALE:
            raise WrongUsage(
                f"no rate of {OWN} to {currency} is known for {day}",
                hint="`embedctl usage rates FILE` takes in the ECB's history, or a table of day, base, quote, rate",
            )
        found[day] = rates[ordered[place]]
    return found


def convert(connection: Connection, currency: str, every: FxDate, condition: str, values: list[object]) -> str:
    """SQL of usage_event in `currency`, each event by the rate of its UTC day.

    Args:
        condition: Which events matter; all their days need a rate.

    Raises:
        WrongUsage: A day has no rate.
    """
    days = connection.execute(
        f"SELECT DISTINCT occurred_at::DATE FROM usage_event WHERE {condition}",  # noqa: S608 - conditions are ours
        values,
    ).fetchall()
    rates = of_days(known(connection, currency), sorted(row[0] for row in days), currency, every)
    connection.execute("CREATE OR REPLACE TEMP TABLE fx (day DATE, rate DECIMAL(16,8))")
    connection.execute(
        "INSERT INTO fx SELECT x[1]::DATE, x[2]::DECIMAL(16,8) FROM "
        "(SELECT unnest(from_json(?::JSON, '[[\"VARCHAR\"]]')) AS x)",
        [orjson.dumps([[day.isoformat(), format(rate, "f")] for day, rate in rates.items()]).decode()],
    )
    money = ", ".join(
        f"(u.{name}::DECIMAL(22,12) * fx.rate)::DECIMAL(28,15) AS {name}"
        for name in ("cost", "cost_list", "cost_at_risk")
    )
    return f"(SELECT u.* REPLACE ({money}) FROM usage_event u JOIN fx ON fx.day = u.occurred_at::DATE)"  # noqa: S608

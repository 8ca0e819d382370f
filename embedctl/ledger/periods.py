"""Days, weeks and months in any time zone: half-open ranges, and one rule for which bucket a moment is in. Pure."""

from __future__ import annotations

import re
import zoneinfo
from bisect import bisect_right
from datetime import MAXYEAR, MINYEAR, UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage, nearest

Unit = Literal["day", "week", "month"]
_STEP = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Range:
    """Moments from `since` up to, not including, `until`; None is open."""

    since: datetime | None = None
    until: datetime | None = None


def zone(name: str) -> tzinfo:
    """The IANA time zone of this name.

    Raises:
        WrongUsage: There is none; the nearest name is in the hint.
    """
    if name.upper() == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = sorted(zoneinfo.available_timezones())
        close = nearest(name, known)
        raise WrongUsage(
            f"unknown time zone {name!r}",
            hint=f"did you mean {close}?" if close else "an IANA name, like Europe/Berlin or UTC",
        ) from None


def parse(text: str, where: tzinfo, flag: str) -> datetime:
    """A day (its start) or a time, as a moment.

    Raises:
        WrongUsage: It is neither.
    """
    moment = _moment(text, where)
    if moment is None or not MINYEAR < moment.year < MAXYEAR:  # their first and last days have no moment everywhere
        raise WrongUsage(f"{flag} {text!r} is no date", hint="like 2026-11-01, or 2026-11-01T12:00+01:00")
    return moment.astimezone(UTC)


def _moment(text: str, where: tzinfo) -> datetime | None:
    try:
        if re.fullmatch(r"\d{8}|\d{4}-\d{2}-\d{2}", text):
            return datetime.combine(date.fromisoformat(text), time(), where)
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=where)


def start_of(day: date, where: tzinfo) -> datetime:
    """The first moment of a local day, in UTC; where midnight is skipped, the first one after it."""
    return datetime.combine(day, time(), where).astimezone(UTC)


def chosen(
    since: str | None, until: str | None, last: str | None, where: tzinfo, now: datetime, *, month: str | None = None
) -> Range:
    """The range that the flags name.

    Raises:
        WrongUsage: Malformed, reversed or contradicting.
    """
    given = [name for name, value in (("--month", month), ("--last", last)) if value is not None]
    given += ["--since/--until"] if since is not None or until is not None else []
    if len(given) > 1:
        raise WrongUsage(f"{given[0]} and {given[1]} exclude each other")
    if month is not None:
        return _month(month, where)
    if last is not None:
        return _last(last, where, now)
    chosen = Range(
        None if since is None else parse(since, where, "--since"),
        None if until is None else parse(until, where, "--until"),
    )
    if chosen.since is not None and chosen.until is not None and chosen.since >= chosen.until:
        raise WrongUsage(
            f"--until {until} is not after --since {since}",
            hint="the range is half open: it ends before --until; for one day, name the next one",
        )
    return chosen


def named(text: str, where: tzinfo, now: datetime) -> Range:
    """A word of --last, a month like 2026-10, or SINCE..UNTIL.

    Raises:
        WrongUsage: It is none.
    """
    since, dots, until = text.partition("..")
    if dots:
        return chosen(since or None, until or None, None, where, now)
    return _month(text, where) if _MONTH.fullmatch(text) else _last(text, where, now, "the range")


_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


def _month(text: str, where: tzinfo) -> Range:
    """A whole month, "2026-10".

    Raises:
        WrongUsage: It is none.
    """
    parts = _MONTH.fullmatch(text)
    if parts is None or not MINYEAR < int(parts[1]) < MAXYEAR:
        raise WrongUsage(f"--month {text!r} is no month", hint="like 2026-10")
    first = date(int(parts[1]), int(parts[2]), 1)
    return Range(start_of(first, where), start_of(floor(first + timedelta(days=31), "month"), where))


_WHOLE: dict[str, Unit] = {"yesterday": "day", "day": "day", "week": "week", "month": "month", "prev-month": "month"}
_SO_FAR: dict[str, Unit] = {"today": "day", "wtd": "week", "mtd": "month"}


def _last(text: str, where: tzinfo, now: datetime, flag: str = "--last") -> Range:
    today = now.astimezone(where).date()
    count = re.fullmatch(r"([1-9]\d{0,3})([hdwm])", text)
    if text in _SO_FAR:
        return Range(start_of(floor(today, _SO_FAR[text]), where), now)
    if text in _WHOLE:
        after = floor(today, _WHOLE[text])
        return Range(start_of(floor(after - timedelta(days=1), _WHOLE[text]), where), start_of(after, where))
    if count is None:
        words = "7d, 24h, 4w, 3m, today, yesterday, week or month (the one before this), wtd or mtd (this one)"
        raise WrongUsage(
            f"{flag} {text!r} is no period", hint=f"--month {text} is one" if _MONTH.fullmatch(text) else words
        )
    number, unit = int(count[1]), count[2]
    if unit == "h":
        return Range(now - timedelta(hours=number), now)
    if unit == "m":
        first = today.replace(day=1)
        for _ in range(number):
            first = (first - timedelta(days=1)).replace(day=1)
        end = floor(first + timedelta(days=31), "month") - timedelta(days=1)
        return Range(start_of(first.replace(day=min(today.day, end.day)), where), now)
    days = number * (7 if unit == "w" else 1)
    return Range(start_of(today - timedelta(days=days - 1), where), now)


def floor(day: date, unit: Unit) -> date:
    """The first day of the day, week (from Monday) or month that `day` is in."""
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if unit == "month" else day


def current(unit: Unit, where: tzinfo, now: datetime) -> Range:
    """The whole day, week or month that `now` is in."""
    first = floor(now.astimezone(where).date(), unit)
    after = first + timedelta(days={"day": 1, "week": 7, "month": 31}[unit])
    return Range(start_of(first, where), start_of(floor(after, unit), where))


def offsets(where: tzinfo, first: datetime, last: datetime) -> list[tuple[datetime, timedelta]]:
    """(from when, offset to UTC) for every stretch of constant offset that touches [first, last].

    Buckets are cut by these in SQL: exact, from the same rules as `start_of`, and much faster than a conversion a row.
    """
    stretches = [(first, _offset(where, first))]
    moment = first
    while moment <= last:
        following = moment + _STEP
        if _offset(where, following) != stretches[-1][1]:
            change = _change(where, moment, following)
            stretches.append((change, _offset(where, change)))
        moment = following
    return stretches


def local_day(moment: datetime, stretches: list[tuple[datetime, timedelta]]) -> date:
    """The local day of a moment, by the rule that the reports use."""
    index = bisect_right([since for since, _ in stretches], moment) - 1
    return (moment + stretches[max(index, 0)][1]).date()


def _offset(where: tzinfo, moment: datetime) -> timedelta:
    return moment.astimezone(where).utcoffset() or timedelta()


def _change(where: tzinfo, low: datetime, high: datetime) -> datetime:
    """The first second in (low, high] with the offset of `high`."""
    after = _offset(where, high)
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        if _offset(where, middle) == after:
            high = middle
        else:
            low = middle
    return high.replace(microsecond=0)

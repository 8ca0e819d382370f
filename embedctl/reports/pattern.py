"""The weekday pattern of a history of daily amounts: what comes next, and which days do not fit. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from embedctl.dataclass import dataclass

HISTORY_DAYS = 56
"""Days before a day that say what is usual on it: eight weeks."""

LEAST_DAYS = 14
"""With fewer there is no pattern: each weekday must have been seen twice."""

CONFIDENCE = 0.9
"""How often an amount should fall into the interval of its projection."""

_SMOOTHING = 0.35  # of weekly totals: how fast the level follows; of .25, .35, .5 the one nearest to CONFIDENCE
_T95 = (math.nan, 6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895)  # Student's t at 95 %, by degrees of freedom
_FENCE = 3.5  # robust standard deviations; Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993)
_LEAST_SPREAD = 0.12  # of the logarithm: a history without noise would call every change far
_SOFTENING = 0.1  # of the level: keeps logarithms of quiet days finite
_ABOVE_ALL = 1.25  # a day is only high when it is so much above all days but those of the last week
_BELOW_ALL = 0.5  # and only low when it is so much below all such weekdays


@dataclass(frozen=True, slots=True)
class Projection:
    """What the days ahead add up to.

    Attributes:
        daily: Expected, for each day from today on; today's is what is left of it.
        expected: Their sum.
        low: Lower end of the interval, of the sum; not below 0.
        high: Its upper end.
    """

    daily: tuple[float, ...]
    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Usual:
    """What is usual on a day: amounts outside `low` to `high` are far from the pattern."""

    expected: float
    low: float
    high: float


def project(history: Sequence[float], ahead: int, so_far: float = 0.0) -> Projection | None:
    """Project `ahead` days, of which the first is today; None when the history is too short.

    The level is an exponentially smoothed weekly total, shared out by weekday. The interval is that of a local level
    model: the scatter of the weeks to come, how well the level is known, and how far it may wander.

    Args:
        history: One amount a day, the last of them yesterday's; the last HISTORY_DAYS count.
        so_far: Today's amount until now.
    """
    if len(history) < LEAST_DAYS:
        return None
    weeks = _weeks(history)
    totals = [sum(week) for week in weeks]
    by_weekday = [sum(week[day] for week in weeks) for day in range(7)]
    whole = sum(by_weekday)
    shares = [amount / whole if whole else 0.0 for amount in by_weekday]
    level = sum(totals[:2]) / 2
    errors = []
    for total in totals:
        errors.append(total - level)
        level += _SMOOTHING * (total - level)
    level = max(level, 0.0)
    daily = [level * shares[day % 7] for day in range(ahead)]
    if daily:
        daily[0] = max(0.0, daily[0] - so_far)
    expected = sum(daily)
    part = expected / level if level else 0.0  # in weeks
    spread = math.sqrt(sum(error * error for error in errors) / (len(totals) - 1))
    wandering = _SMOOTHING**2 * max(0.0, ahead / 7 - 1) / 2
    width = _T95[len(totals) - 1] * spread * math.sqrt(part + part**2 * (_SMOOTHING / (2 - _SMOOTHING) + wandering))
    return Projection(tuple(daily), expected, max(0.0, expected - width), expected + width)


def usual(history: Sequence[float]) -> Usual | None:
    """What is usual on the day after `history`; None when that is too short.

    Each weekday's median is what is expected; the spread is the median absolute deviation of all days from theirs, as
    ratios. A day is high only when it is further above its median than all days before but the last seven, so that
    neither a monthly job nor a new level goes on being high, while a trouble of several days does; low only when far
    below all such weekdays.

    Args:
        history: One amount a day, the last of them the day before; the last HISTORY_DAYS count.
    """
    if len(history) < LEAST_DAYS:
        return None
    weeks = _weeks(history)
    medians = [max(_median([week[day] for week in weeks]), 0.0) for day in range(7)]
    level = sum(medians) / 7
    lowest = min(week[0] for week in weeks)
    if not level:
        highest = max(day for week in weeks[:-1] for day in week)
        return Usual(0.0, 0.0, max(0.0, _ABOVE_ALL * highest))
    soft = _SOFTENING * level
    ratios = [[(max(week[day], 0.0) + soft) / (medians[day] + soft) for day in range(7)] for week in weeks]
    spread = 1.4826 * _median([abs(math.log(ratio)) for week in ratios for ratio in week])
    far = math.exp(_FENCE * max(spread, _LEAST_SPREAD))
    highest = max(ratio for week in ratios[:-1] for ratio in week)
    high = (medians[0] + soft) * max(far, _ABOVE_ALL * highest) - soft
    low = min((medians[0] + soft) / far - soft, _BELOW_ALL * lowest)
    return Usual(medians[0], max(0.0, low), high)


def _weeks(history: Sequence[float]) -> list[Sequence[float]]:
    """The last whole weeks; each begins with the weekday that comes next."""
    count = min(len(history), HISTORY_DAYS) // 7
    kept = history[-7 * count :]
    return [kept[start : start + 7] for start in range(0, 7 * count, 7)]


def _median(amounts: list[float]) -> float:
    """As that of `statistics`, whose import takes longer than most reports' queries."""
    ordered = sorted(amounts)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

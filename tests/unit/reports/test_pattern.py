"""The weekday pattern: intervals that hold as often as they say, and days far from it that are found."""

from __future__ import annotations

import math
import random
from datetime import date, timedelta
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.reports import pattern

HELD_OUT = range(10_000, 10_240)
"""Seeds of years that nothing was chosen by."""

KINDS = ("steady", "weekdays", "growth", "bursts", "new level", "weekly job")


def year(seed: int) -> tuple[str, list[float]]:
    """A year of daily amounts from 2025-01-01 on, of one of KINDS: weekday profile, noise with memory, and its kind."""
    chance = random.Random(seed)
    kind = chance.choice(KINDS)
    level = chance.lognormvariate(1, 1)
    profile = [chance.uniform(0.7, 1.3) for _ in range(7)]
    if kind == "weekdays":
        profile = [1, 1, 1.1, 1, 0.9, 0.1, 0.05]
    elif kind == "weekly job":
        profile = [1, 0, 0, 0, 0, 0, 0]
    noise, memory = chance.uniform(0.05, 0.5), chance.uniform(0, 0.5)
    growth = chance.uniform(-0.02, 0.03) if kind == "growth" else 0.0
    change = chance.randrange(60, 300) if kind == "new level" else None
    deviation, amounts = 0.0, []
    for ahead in range(365):
        if ahead == change:
            level *= chance.choice([0.4, 0.6, 1.7, 2.5])
        deviation = memory * deviation + chance.gauss(0, noise * math.sqrt(1 - memory**2))
        day = date(2025, 1, 1) + timedelta(days=ahead)
        amount = level * profile[day.weekday()] * math.exp(growth * ahead / 7 + deviation)
        if kind == "bursts" and chance.random() < 0.04:
            amount *= chance.uniform(3, 10)
        amounts.append(amount)
    return kind, amounts


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Over simulated years that nothing was chosen by, about 90 % of months end within their interval."""
    held: dict[str, list[bool]] = {}
    for seed in HELD_OUT:
        kind, amounts = year(seed)
        chance = random.Random(seed + 1)
        for at in (chance.randrange(60, 330) for _ in range(6)):
            today = date(2025, 1, 1) + timedelta(days=at)
            ahead = ((today.replace(day=1) + timedelta(days=32)).replace(day=1) - today).days
            found = pattern.project(amounts[max(0, at - 56) : at], ahead)
            assert found is not None
            held.setdefault(kind, []).append(found.low <= sum(amounts[at : at + ahead]) <= found.high)
    coverage = {kind: fmean(each) for kind, each in held.items()}
    print(f"coverage: {fmean(fmean(each) for each in held.values()):.3f}", coverage)

    assert 0.88 <= fmean(coverage.values()) <= 0.97
    assert min(coverage.values()) >= 0.82


def test_planted_anomalies_are_found_and_quiet_years_are_quiet() -> None:
    """Four average days' use on top of a day's, and a day without any, are found; few other days are called far."""
    called, days = 0, 0
    planted: dict[str, list[bool]] = {"four more": [], "two more": [], "nothing": []}
    for seed in HELD_OUT:
        kind, amounts = year(seed)
        if kind not in ("steady", "weekdays", "growth"):
            continue
        for at in range(60, 365):
            usual = pattern.usual(amounts[at - 56 : at])
            assert usual is not None
            called += not usual.low <= amounts[at] <= usual.high
            days += 1
        chance = random.Random(seed + 2)
        for at in (chance.randrange(60, 365) for _ in range(4)):
            usual = pattern.usual(amounts[at - 56 : at])
            assert usual is not None
            average = fmean(amounts[at - 56 : at])
            planted["four more"].append(amounts[at] + 4 * average > usual.high)
            planted["two more"].append(amounts[at] + 2 * average > usual.high)
            planted["nothing"].append(usual.low > 0)
    found = {name: fmean(each) for name, each in planted.items()}
    print(f"found: {found}, called far without cause: {called / days * 365:.1f} a year")

    assert found["four more"] >= 0.9
    assert found["nothing"] >= 0.9
    assert called / days * 365 <= 2.5


def test_a_trouble_of_several_days_is_found_on_each() -> None:
    """A level five times as high is far from the pattern for some eight days, and then the new pattern."""
    amounts = [10.0] * 56 + [50.0] * 14
    far = [
        amounts[at] > usual.high for at in range(56, 70) if (usual := pattern.usual(amounts[at - 56 : at])) is not None
    ]

    assert far == [True] * 8 + [False] * 6


def test_a_monthly_job_is_far_only_once() -> None:
    """A job that runs once a month stands out the first time; after that it was seen before."""
    amounts = [0.0 if at % 30 else 100.0 for at in range(1, 200)]
    far = [
        at
        for at in range(20, 199)
        if (usual := pattern.usual(amounts[max(0, at - 56) : at])) is not None and amounts[at] > usual.high
    ]

    assert far == [29]


def test_a_weekly_job_is_expected_on_its_day() -> None:
    """The projection knows the weekday: ten days hold the one Monday there is, or the two."""
    mondays = [7.0, 0, 0, 0, 0, 0, 0] * 8
    found = [pattern.project(mondays, days) for days in (1, 7, 8)]

    assert [each and round(each.expected, 6) for each in found] == [7, 7, 14]
    assert [each and each.daily[:2] for each in found][1] == (7.0, 0.0)


def test_what_is_left_of_today_is_what_is_expected_less_what_is_there() -> None:
    """Today's usage is not counted twice, and more than expected takes nothing from tomorrow."""
    found = [pattern.project([10.0] * 28, 2, so_far) for so_far in (0.0, 4.0, 25.0)]

    assert [each and [round(amount, 9) for amount in each.daily] for each in found] == [[10, 10], [6, 10], [0, 10]]


@pytest.mark.parametrize("days", [0, 1, 13])
def test_too_little_history_is_no_pattern(days: int) -> None:
    """With fewer than two weeks nothing is projected, and no day is far."""
    assert pattern.project([1.0] * days, 5) is None
    assert pattern.usual([1.0] * days) is None


amounts = st.lists(st.floats(0, 1e12), min_size=14, max_size=60)


@given(amounts, st.integers(0, 31), st.floats(0, 1e12))
def test_an_interval_is_around_what_is_expected(history: list[float], ahead: int, so_far: float) -> None:
    """Whatever the history, 0 <= low <= expected <= high, all finite, and the days add up."""
    found = pattern.project(history, ahead, so_far)

    assert found is not None
    assert 0 <= found.low <= found.expected <= found.high < math.inf
    assert len(found.daily) == ahead
    assert sum(found.daily) == pytest.approx(found.expected)


@given(amounts)
def test_the_expected_is_usual(history: list[float]) -> None:
    """Whatever the history, the expected amount is never far from the pattern."""
    found = pattern.usual(history)

    assert found is not None
    assert 0 <= found.low <= found.expected <= found.high < math.inf

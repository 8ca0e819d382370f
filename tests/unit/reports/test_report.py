"""Reports: every number is accounted for, in any time zone, and what is unknown is said."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from embedctl.errors import WrongUsage
from embedctl.ledger import database, periods
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.periods import Range
from embedctl.reports import report
from embedctl.reports.report import Report, ReportQuery
from tests.support.ledger_events import NOON, NOW, event, place, take

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "America/Havana",
    "Asia/Beirut",
    "Pacific/Apia",
    "America/Sao_Paulo",
    "Pacific/Chatham",
)


def ask(paths: LedgerPaths, **question: Any) -> Report:
    """The report that answers a question."""
    with database.reader(paths, now=NOW) as connection:
        return report.report(connection, ReportQuery(**question), now=NOW)


def test_a_report_counts_calls_operations_and_errors(tmp_path: Path) -> None:
    """Attempts are calls, those of one operation count once, and what is unknown stands beside what is known."""
    paths = place(tmp_path)
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(
        paths,
        event(operation_id="a", status="error", billable="no", tokens_total=0, tokens_native=None),
        event(operation_id="a", attempt=2, tokens_estimated=1000, **lost),
        event(operation_id="a", attempt=3),
        event(operation_id="b", usage_source="fallback", tokens_native=None, tokens_total=3000),
        event(operation_id="c", model="x", tokens_total=700),
        event(entry_kind="cache_hit", billable="no", tokens_total=0, tokens_native=None),
    )
    found = ask(paths)

    assert found.groups == []
    assert found.totals == {
        "tokens": 4700,
        "tokens_unknown": 1000,
        "cost": Decimal("0.00008"),
        "cost_is_lower_bound": True,
        "cost_list": Decimal("0.00008"),
        "cost_list_is_lower_bound": True,
        "adjustments": Decimal(0),
        "unpriced_tokens": 700,
        "cost_at_risk": Decimal("0.00002"),
        "fallback_share": 0.638298,
        "estimated_share": 0.638298,
        "calls": 5,
        "operations": 3,
        "errors": 2,
        "success_rate": 0.6,
    }
    assert found.incomplete
    assert found.warnings == [
        "700 tokens on pay:x have no price: the cost is a lower bound "
        "(`embedctl prices set pay:x USD --from DAY`, then `usage reprice --apply`)",
        "up to 0.000020 USD unconfirmed (1 call without an answer, 1,000 tokens); not included in the cost",
        "63.8% of the tokens are estimated (~)",
    ]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 3), st.sampled_from("ab"), st.sampled_from([None, "x:y"])),
        min_size=1,
        max_size=12,
    )
)
def test_operations_are_distinct_ids(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int, str, str | None]]
) -> None:
    """Whatever attempts and fallbacks there are, an operation counts once in each group and once in the total."""
    paths = place(tmp_path_factory.mktemp("operations"))
    events = [
        event(operation_id=f"op{operation}", attempt=attempt, model=model, fallback_from=origin)
        for operation, attempt, model, origin in calls
    ]
    take(paths, *events)
    found = ask(paths, by=["model"])

    assert found.totals["operations"] == len({call[0] for call in calls})
    for group in found.groups:
        assert group["operations"] == len({call[0] for call in calls if call[2] == group["model"]})


def test_nothing_called_is_no_success(tmp_path: Path) -> None:
    """An empty ledger has cost nothing, and no success rate."""
    found = ask(place(tmp_path), by=["model"])

    assert (found.groups, found.totals["cost"], found.totals["calls"], found.totals["success_rate"]) == ([], 0, 0, None)


def test_an_all_unknown_cost_is_none(tmp_path: Path) -> None:
    """Where no call has a known cost the cost is None, not 0."""
    paths = place(tmp_path)
    take(paths, event(model="x"), event(model="m"))
    found = ask(paths, by=["model"])

    assert [(group["model"], group["cost"]) for group in found.groups] == [("m", Decimal("0.00002")), ("x", None)]


def test_every_key_groups(tmp_path: Path) -> None:
    """By every key, the groups add up to the total."""
    paths = place(tmp_path)
    take(paths, event(), event(workspace_id="b", model="x", job_id="j", purpose="query", status="error"))
    for key in report.KEYS:
        found = ask(paths, by=[key])

        assert sum(group["tokens"] for group in found.groups) == found.totals["tokens"] == 2000
        assert all(next(iter(group)) == key for group in found.groups)


def test_tags_group(tmp_path: Path) -> None:
    """tag:KEY groups by a tag's value, whatever characters the key has."""
    paths = place(tmp_path)
    take(paths, event(tags={"a/b~'c": "x"}), event(tags={"a/b~'c": "y"}), event())
    found = ask(paths, by=["tag:a/b~'c"])

    assert sorted(str(group["tag:a/b~'c"]) for group in found.groups) == ["None", "x", "y"]


def test_filters_narrow(tmp_path: Path) -> None:
    """Workspace, provider, model and job filters leave only what they name."""
    paths = place(tmp_path)
    take(paths, event(), event(workspace_id="b", job_id="j"), event(workspace_id="b", model="x"))

    assert ask(paths, only={"workspace": ["b"]}).totals["calls"] == 2
    assert ask(paths, only={"workspace": ["b"], "model": ["x"]}).totals["calls"] == 1
    assert ask(paths, only={"workspace": ["b", "acme"], "job": ["j"]}).totals["calls"] == 1


def test_an_unknown_name_names_close_ones(tmp_path: Path) -> None:
    """A workspace that is nowhere in the ledger is an error that names the nearest."""
    paths = place(tmp_path)
    take(paths, event(workspace_id="handbook"), event(workspace_id="support"))
    with pytest.raises(WrongUsage) as caught:
        ask(paths, only={"workspace": ["hanbook"]})

    assert caught.value.hint == "did you mean handbook?"


def test_a_known_name_without_usage_in_range_is_zero(tmp_path: Path) -> None:
    """A workspace that had no usage in the range is not an error."""
    paths = place(tmp_path)
    take(paths, event())

    assert ask(paths, only={"workspace": ["acme"]}, within=Range(NOW, None)).totals["calls"] == 0


def test_sql_in_a_filter_is_a_name(tmp_path: Path) -> None:
    """A filter's text is bound, never run."""
    paths = place(tmp_path)
    evil = "'; DROP TABLE usage_event; --"
    take(paths, event(workspace_id=evil), event())

    assert ask(paths, only={"workspace": [evil]}, by=["workspace"]).totals["calls"] == 1
    assert ask(paths).totals["calls"] == 2


def test_ranges_are_half_open(tmp_path: Path) -> None:
    """The first moment belongs to the range, the last one does not."""
    paths = place(tmp_path)
    tick = timedelta(microseconds=1)
    start, end = datetime(2026, 11, 2, tzinfo=UTC), datetime(2026, 11, 3, tzinfo=UTC)
    take(paths, *(event(occurred_at=moment) for moment in (start - tick, start, end - tick, end)))
    within = periods.chosen("2026-11-02", "2026-11-03", None, UTC, NOW)

    assert ask(paths, within=within).totals["calls"] == 2


def test_top_keeps_the_dearest(tmp_path: Path) -> None:
    """--top N keeps the N dearest groups, and the total still counts all."""
    paths = place(tmp_path)
    take(paths, *(event(workspace_id=f"w{n}", tokens_total=n * 100) for n in range(5)))
    found = ask(paths, by=["workspace"], top=2)

    assert [group["workspace"] for group in found.groups] == ["w4", "w3"]
    assert found.totals["tokens"] == 1000
    assert "3 more groups are in the total only (--top 2)" in found.warnings


def test_drift_is_said(tmp_path: Path) -> None:
    """A model whose provider counts more than 5 % off is named under every report."""
    paths = place(tmp_path)
    take(paths, event(tokens_estimated=500))

    assert ask(paths).warnings == ["pay:m counts +100.0% against the tokenizer here (`embedctl usage drift`)"]


def test_a_price_change_within_a_month(tmp_path: Path) -> None:
    """A month with a price change sums each day at its own price."""
    paths = place(tmp_path)
    days = [datetime(2026, 11, day, 12, tzinfo=UTC) for day in (8, 9, 10, 11)]
    take(paths, *(event(model="moving", tokens_total=1_000_000, occurred_at=day) for day in days))
    found = ask(paths, by=["day"])

    assert [str(group["cost"].normalize()) for group in found.groups] == ["0.1", "0.1", "0.05", "0.05"]
    assert ask(paths, by=["month"]).totals["cost"] == Decimal("0.30")


@pytest.fixture(scope="module")
def ages(tmp_path_factory: pytest.TempPathFactory) -> LedgerPaths:
    """A ledger with an event about every hour of two years around clock changes, off the hour."""
    paths = place(tmp_path_factory.mktemp("ages"))
    start = datetime(2010, 1, 1, tzinfo=UTC)
    far = [datetime(2011, 12, 29, tzinfo=UTC) + timedelta(minutes=47 * n) for n in range(120)]
    near = [start + timedelta(minutes=61 * n, seconds=n % 7, microseconds=n) for n in range(9000)]
    take(paths, *(event(occurred_at=moment, tokens_total=n + 1) for n, moment in enumerate(near + far)))
    return paths


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zone=st.sampled_from(ZONES),
    first=st.dates(date(2010, 1, 1), date(2011, 12, 25)),
    days=st.integers(1, 400),
    unit=st.sampled_from(["day", "week", "month"]),
)
def test_the_parts_sum_to_the_range(ages: LedgerPaths, zone: str, first: date, days: int, unit: str) -> None:
    """In any time zone, days, weeks and months sum to the range, and each day is what a range of that day says."""
    where = periods.zone(zone)
    last = first + timedelta(days=days)
    within = Range(periods.start_of(first, where), periods.start_of(last, where))
    found = ask(ages, by=[unit], timezone=zone, within=within)
    total = ask(ages, timezone=zone, within=within)

    assert sum(group["tokens"] for group in found.groups) == total.totals["tokens"] == found.totals["tokens"]
    if unit != "day":
        return
    for group in found.groups[:1] + found.groups[-1:]:
        day = date.fromisoformat(group["day"])
        alone = Range(periods.start_of(day, where), periods.start_of(day + timedelta(days=1), where))
        assert first <= day < last
        assert ask(ages, timezone=zone, within=alone).totals["tokens"] == group["tokens"]


@given(
    zone=st.sampled_from(ZONES),
    moment=st.integers(631_152_000, 2_114_380_800).map(lambda second: datetime.fromtimestamp(second, UTC)),
    crumb=st.integers(0, 999_999),
)
def test_the_local_day_is_the_calendars(zone: str, moment: datetime, crumb: int) -> None:
    """The day an event is in is the one a calendar in that zone shows, also at the very moment a clock changes."""
    where = periods.zone(zone)
    stretches = periods.offsets(where, moment - timedelta(days=200, microseconds=crumb), moment + timedelta(days=1))
    changes = [since for since, _ in stretches[1:]]
    tick = timedelta(microseconds=1)

    for each in (moment, *changes, *(change - tick for change in changes)):
        assert periods.local_day(each, stretches) == each.astimezone(where).date()
    for change in changes:
        assert change.astimezone(where).utcoffset() != (change - tick).astimezone(where).utcoffset()


@given(zone=st.sampled_from(ZONES), day=st.dates(date(1990, 1, 1), date(2036, 1, 1)))
def test_days_neither_overlap_nor_leave_gaps(zone: str, day: date) -> None:
    """A local day starts at its first moment: it is that day then, and another just before."""
    where = periods.zone(zone)
    start = periods.start_of(day, where)
    before = (start - timedelta(microseconds=1)).astimezone(where).date()
    at_start = start.astimezone(where).date()

    assert before < at_start
    assert at_start >= day  # a day that a zone skipped (Apia, 2011-12-30) has no moments


@pytest.mark.parametrize(
    ("last", "since", "until"),
    [
        ("today", "2026-11-21T00:00", "2026-11-22T00:00"),
        ("yesterday", "2026-11-20T00:00", "2026-11-21T00:00"),
        ("7d", "2026-11-15T00:00", None),
        ("24h", "2026-11-20T12:00", None),
        ("2w", "2026-11-08T00:00", None),
        ("3m", "2026-08-21T00:00", None),
        ("week", "2026-11-09T00:00", "2026-11-16T00:00"),
        ("wtd", "2026-11-16T00:00", None),
        ("month", "2026-10-01T00:00", "2026-11-01T00:00"),
        ("mtd", "2026-11-01T00:00", None),
        ("prev-month", "2026-10-01T00:00", "2026-11-01T00:00"),
    ],
)
def test_last_names_a_range(last: str, since: str, until: str | None) -> None:
    """Each word of --last is a range that ends now or at a border."""
    found = periods.chosen(None, None, last, UTC, NOW)
    end = datetime.fromisoformat(f"{until}+00:00") if until else NOW

    assert found.since == datetime.fromisoformat(f"{since}+00:00")
    assert found.until == (NOW if last == "today" else end)


def test_a_month_is_named_by_itself() -> None:
    """--month is a whole month of the time zone, and excludes all other words for a range."""
    found = periods.chosen(None, None, None, periods.zone("Europe/Berlin"), NOW, month="2026-12")

    assert found.since == datetime(2026, 11, 30, 23, tzinfo=UTC)
    assert found.until == datetime(2026, 12, 31, 23, tzinfo=UTC)
    for month, last in (("2026-13", None), ("26-1", None), ("0000-01", None), ("9999-12", None), ("2026-10", "7d")):
        with pytest.raises(WrongUsage):
            periods.chosen(None, None, last, UTC, NOW, month=month)


def test_an_empty_period_says_where_usage_is(tmp_path: Path) -> None:
    """A report of a time without usage names the days that have some, of what was asked for."""
    paths = place(tmp_path)
    days = [NOON - timedelta(days=before) for before in (12, 6, 1)]
    take(paths, event(occurred_at=days[0]), event(occurred_at=days[1]), event(workspace_id="b", occurred_at=days[2]))
    early = Range(None, days[0])
    found = ask(paths, within=early, only={"workspace": ["acme"]})

    assert found.warnings == [
        f"no usage in this period: the ledger's begins on {days[0].date()} and ends on {days[1].date()}"
    ]
    assert "no usage" not in str(ask(paths).warnings)
    assert ask(place(tmp_path / "empty"), within=early).warnings == []


@pytest.mark.parametrize(
    "flags",
    [
        ("2026-11-03", "2026-11-02", None),
        ("2026-11-03", "2026-11-03", None),
        ("2026-13-01", None, None),
        ("yesterdy", None, None),
        ("2026-02-30", None, None),
        (None, None, "7 days"),
        (None, None, "0d"),
        (None, None, "99999d"),
        ("2026-11-01", None, "7d"),
        ("", None, None),
    ],
)
def test_wrong_ranges_are_refused(flags: tuple[str | None, str | None, str | None]) -> None:
    """Reversed, empty, malformed or contradicting ranges are a usage error."""
    with pytest.raises(WrongUsage):
        periods.chosen(*flags, UTC, NOW)


DATES = st.one_of(
    st.text(max_size=30), st.datetimes().map(str), st.dates().map(str), st.datetimes(timezones=st.timezones()).map(str)
)


@settings(deadline=None)
@given(since=DATES, until=st.none() | DATES, name=st.sampled_from(["UTC", "Pacific/Kiritimati", "Pacific/Niue"]))
@example("9999-12-31T23:59:59-12:00", None, "UTC")
@example("0001-01-01", None, "Pacific/Kiritimati")
def test_any_text_is_a_range_or_refused(since: str, until: str | None, name: str) -> None:
    """Whatever stands for a date, it is a range with moments in every zone, or a usage error."""
    where = periods.zone(name)
    try:
        found = periods.chosen(since, until, None, where, NOW)
    except WrongUsage:
        return

    assert all(end.astimezone(where) for end in (found.since, found.until) if end)


@pytest.mark.parametrize(
    "name", ["Europe/Berln", "CEST+1", "", "../../etc/passwd", "/etc/passwd", "a\0b", "Berlin " * 99]
)
def test_an_unknown_zone_is_refused(name: str) -> None:
    """A name that is no IANA time zone is a usage error, whatever it looks like."""
    with pytest.raises(WrongUsage):
        periods.zone(name)


def test_a_day_is_counted_where_it_happened(tmp_path: Path) -> None:
    """An event late in the evening in UTC is in the next day east of it."""
    paths = place(tmp_path)
    take(paths, event(occurred_at=NOON.replace(hour=23)))

    assert ask(paths, by=["day"]).groups[0]["day"] == "2026-11-15"
    assert ask(paths, by=["day"], timezone="Asia/Tokyo").groups[0]["day"] == "2026-11-16"

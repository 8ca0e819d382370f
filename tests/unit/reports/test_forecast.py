"""`usage forecast` and `usage anomalies`: where the month ends, budgets that do not hold, who made a strange day."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from embedctl.ledger import budgets, database
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.periods import Range
from embedctl.records import UsageEvent
from embedctl.reports import anomalies, forecast, outlook, prometheus
from embedctl.reports.query import ReportQuery
from tests.support.ledger_events import NOW, PRICES, event, place, take
from tests.support.running import embedctl

MILLION = 1_000_000  # tokens; 0.02 USD


def days(count: int, *, before: int = 0, tokens: int = MILLION, **about: Any) -> Iterator[UsageEvent]:
    """One event a day at noon, the last of them `before` days before today."""
    for ago in range(before, before + count):
        yield event(occurred_at=NOW - timedelta(days=ago), tokens_total=tokens, **about)


def ask(paths: LedgerPaths, now: datetime = NOW, **question: Any) -> forecast.Forecast:
    with database.reader(paths, now=now) as connection:
        return forecast.forecast(connection, ReportQuery(**question), now=now)


def look(paths: LedgerPaths, now: datetime = NOW, **question: Any) -> anomalies.Anomalies:
    with database.reader(paths, now=now) as connection:
        return anomalies.anomalies(connection, ReportQuery(**question), now=now)


def test_the_month_ends_where_its_days_lead(tmp_path: Path) -> None:
    """So far, last month and what is expected stand beside each other; a steady history leaves no doubt."""
    paths = place(tmp_path)
    take(paths, *days(80, before=1), event(occurred_at=NOW, tokens_total=MILLION))  # the 21st's, of 30 days
    found = ask(paths).totals

    assert found["cost"] == Decimal("0.42")
    assert found["cost_last_month"] == Decimal("0.62")
    assert [found[f"cost_{end}"] for end in ("projected", "low", "high")] == [Decimal("0.60")] * 3
    assert found["tokens_projected"] == 30 * MILLION
    assert (found["history_days"], found["too_little_history"]) == (56, False)


def test_groups_add_up_and_stand_dearest_first(tmp_path: Path) -> None:
    """By workspace each has its own projection, also one that was not used this month yet; the total has its own."""
    paths = place(tmp_path)
    take(paths, *days(60, workspace_id="a"), *days(60, workspace_id="b", tokens=2 * MILLION))
    take(paths, *days(30, before=25, workspace_id="old"))
    found = ask(paths, by=["workspace"])

    assert [group["workspace"] for group in found.groups] == ["b", "a", "old"]
    assert [group["cost_projected"] for group in found.groups[:2]] == [Decimal("1.20"), Decimal("0.60")]
    assert found.groups[2]["cost"] == 0
    assert found.totals["cost"] == sum(group["cost"] for group in found.groups)


@pytest.mark.parametrize("count", [0, 1, 13])
def test_too_little_history_is_said(tmp_path: Path, count: int) -> None:
    """With fewer than 14 whole days nothing is projected: null, and a warning that says how many there are."""
    paths = place(tmp_path)
    take(paths, *days(count, before=1))
    found = ask(paths)

    assert found.totals["cost_projected"] is found.totals["tokens_low"] is None
    assert (
        f"too little history for a projection: {count} whole day{'s' * (count != 1)}, 14 are needed" in found.warnings
    )
    assert look(paths).found == []


def test_months_are_those_of_the_time_zone(tmp_path: Path) -> None:
    """What happened at 23:30 UTC on the last of October is November's in Berlin."""
    paths = place(tmp_path)
    take(paths, event(occurred_at=datetime(2026, 10, 31, 23, 30, tzinfo=UTC), tokens_total=MILLION))

    assert (ask(paths).totals["cost"], ask(paths).totals["cost_last_month"]) == (0, Decimal("0.02"))
    berlin = ask(paths, timezone="Europe/Berlin").totals
    assert (berlin["cost"], berlin["cost_last_month"]) == (Decimal("0.02"), 0)


@pytest.mark.parametrize(
    ("amount", "outlook", "passes_on"),
    [("0.30", "passed", None), ("0.50", "will_pass", "2026-11-25"), ("9", "within", None)],
)
def test_budgets_that_will_be_passed_are_named_with_the_day(
    tmp_path: Path, amount: str, outlook: str, passes_on: str | None
) -> None:
    """A budget is passed, will be on a day, or holds; what is at risk counts."""
    paths = place(tmp_path)
    take(paths, *days(70))
    with database.writer(paths, wait_s=9, now=NOW) as connection:
        budgets.put(connection, budgets.Budget(workspace="acme", amount=Decimal(amount)))
        budgets.put(connection, budgets.Budget(workspace="other", amount=Decimal(amount)))
    (found, other) = ask(paths).budgets

    assert (found.outlook, found.passes_on and str(found.passes_on)) == (outlook, passes_on)
    assert found.projected == Decimal("0.60")
    assert other.outlook == "unknown"
    assert [each.standing.budget.workspace for each in ask(paths, only={"workspace": ["acme"]}).budgets] == ["acme"]


def test_a_strange_day_is_told_with_who_made_it(tmp_path: Path) -> None:
    """A day far above the pattern names the workspace, job and model whose use differs most; a quiet one too."""
    paths = place(tmp_path)
    take(
        paths,
        *days(60, before=3, workspace_id="a", job_id="nightly", tokens=10 * MILLION),
        *days(63, workspace_id="b", job_id="search", tokens=MILLION),
        event(occurred_at=NOW - timedelta(days=2), workspace_id="b", job_id="reindex", tokens_total=90 * MILLION),
        event(occurred_at=NOW - timedelta(days=2), workspace_id="a", job_id="nightly", tokens_total=10 * MILLION),
    )
    low, high = look(paths).found

    assert (str(high.day), high.direction, high.amount) == ("2026-11-19", "high", pytest.approx(2.02))
    assert {key: high.causes[0][key] for key in ("workspace", "job", "model")} == {
        "workspace": "b", "job": "reindex", "model": "m",
    }  # fmt: skip
    assert high.sentence(()) == "2026-11-19: 2.02 USD where 0.22 USD is usual (workspace b, job reindex)"
    assert (str(low.day), low.direction, low.causes[0]["job"]) == ("2026-11-20", "low", "nightly")
    assert {each.key for each in look(paths, by=["workspace"]).found} == {("a",), ("b",)}


def test_what_is_small_or_not_over_is_not_strange(tmp_path: Path) -> None:
    """Less than a cent more is not worth a look, and today may still become what it should."""
    paths = place(tmp_path)
    take(paths, *days(60, before=1, tokens=1000), *days(60, before=1, workspace_id="b", tokens=10 * MILLION))
    take(paths, event(occurred_at=NOW - timedelta(days=2), tokens_total=100_000))

    assert look(paths, by=["workspace"]).found == []


def test_what_is_free_is_judged_by_tokens(tmp_path: Path) -> None:
    """Where nothing costs anything tokens are compared."""
    paths = place(tmp_path)
    take(paths, *days(60, model="gift"), *days(1, before=1, model="gift", tokens=50 * MILLION))
    (found,) = look(paths).found

    assert (found.measure, found.as_dict(())["amount"]) == ("tokens", 51 * MILLION)


def test_a_price_that_begins_is_no_jump(tmp_path: Path) -> None:
    """Days whose cost nobody knows are not days without cost: they are no history of cost, and tokens are compared."""
    paths = place(tmp_path, PRICES.replace("2024-01-25", "2026-11-15"))
    take(paths, *days(70))
    found = ask(paths).totals

    assert look(paths).found == []
    assert (found["history_days"], found["cost_projected"], found["tokens_projected"]) == (6, None, 30 * MILLION)


def test_a_report_that_reaches_until_now_says_what_comes(tmp_path: Path) -> None:
    """The month's end, budgets and strange days stand beside a report, unless it is of the past."""
    paths = place(tmp_path)
    take(paths, *days(70), *days(1, before=1, job_id="big", tokens=50 * MILLION))
    with database.writer(paths, wait_s=9, now=NOW) as connection:
        budgets.put(connection, budgets.Budget(workspace="acme", amount=Decimal("1.5")))
    with database.reader(paths, now=NOW) as connection:
        found = outlook.outlook(connection, ReportQuery(), now=NOW)
        past = outlook.outlook(connection, ReportQuery(within=Range(until=NOW - timedelta(days=1))), now=NOW)

    assert found.month_end is not None
    assert found.month_end.startswith("2026-11 so far 1.42 USD; by 2026-11-30 about ")
    assert [line.split(":")[0] for line in found.warnings] == [
        "the budget of acme (1.50 USD a month) will be passed on 2026-11-23",
        "far from the pattern",
    ]
    assert (past.month_end, past.warnings) == (None, ())


def test_metrics_tell_the_month_and_the_strange_days(tmp_path: Path) -> None:
    """Projections, budgets and anomalies are gauges by workspace; where history is too short there is no sample."""
    paths = place(tmp_path)
    take(paths, *days(70), *days(1, before=1, tokens=50 * MILLION), *days(3, workspace_id="new"))
    with database.writer(paths, wait_s=9, now=NOW) as connection:
        budgets.put(connection, budgets.Budget(workspace="acme", amount=Decimal(2)))
    with database.reader(paths, now=NOW) as connection:
        text = prometheus.text(prometheus.collect(connection, paths, now=NOW))
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    assert 1.6 < float(lines['embedctl_usage_month_projected_usd{workspace="acme"}']) < 2.2
    assert float(lines['embedctl_budget_projected_ratio{workspace="acme",period="month"}']) > 0.8
    assert lines['embedctl_usage_anomalies{workspace="acme"}'] == "1"
    assert 'embedctl_usage_month_projected_usd{workspace="new"}' not in lines


def test_the_commands_speak_to_cron(clean_environment: Path) -> None:
    """Exit 0 when all is as usual; 3 when a budget will be passed or a day is strange; the JSON is a report's."""
    paths = place(clean_environment)
    now = datetime.now(UTC)
    take(paths, *(event(occurred_at=now - timedelta(days=ago, minutes=1), tokens_total=MILLION) for ago in range(70)))
    quiet = [embedctl("usage", "forecast", "--json"), embedctl("usage", "anomalies", "--workspace", "--json")]
    envelope = embedctl("usage", "report", "--json").json.keys()
    embedctl("usage", "budget", "set", "-w", "acme", "--amount", "0.001")
    take(paths, event(occurred_at=now - timedelta(days=2), job_id="big", tokens_total=90 * MILLION))
    loud = [embedctl("usage", "forecast", "--by", "workspace"), embedctl("usage", "anomalies")]

    assert [each.code for each in quiet] == [0, 0]
    assert all(envelope <= each.json.keys() for each in quiet)
    assert [each.code for each in loud] == [3, 3]
    assert "! the budget of acme (0.0010 USD a month) is used up" in loud[0].out
    assert "big" in loud[1].out
    assert [embedctl("usage", "forecast", "--by", key).code for key in ("day", "run", "modle")] == [2, 2, 2]
    assert embedctl("usage", "anomalies", "-w", "nobody").code == 2
    assert embedctl("usage", "forecast", "--timezone", "Mars").code == 2

"""Reports in another currency and in other columns: what is shown changes, the ledger never does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from embedctl.cli import app
from embedctl.errors import WrongUsage
from embedctl.ledger.adjustments import entry
from embedctl.ledger.paths import LedgerPaths
from embedctl.reports import exchange_rates
from tests.support.ledger_events import event, one, place, take

Run = Callable[..., Result]
ECB = "Date,USD,JPY,BGN,\n2026-11-10,1.25,160,N/A,\n2026-11-13,1.00,150,N/A,\n2026-10-30,2.00,100,N/A,\n"


def at(day: int, month: int = 11) -> datetime:
    return datetime(2026, month, day, 12, tzinfo=UTC)


@pytest.fixture
def paths(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """A ledger with 0.02 USD on two days, and the central bank's history in the current folder."""
    monkeypatch.chdir(tmp_path)
    found = place(clean_environment)
    take(found, *(event(occurred_at=at(day), tokens_total=1_000_000) for day in (10, 14)))
    Path("ecb.csv").write_text(ECB)
    return found


@pytest.fixture
def run(paths: LedgerPaths) -> Run:
    return lambda *args: CliRunner().invoke(app, ["usage", *args])


def shown(run: Run, *args: str) -> dict[str, str]:
    """Day → cost."""
    from json import loads

    told = run("daily", "--json", *args)
    assert told.exit_code == 0, told.output
    found = loads(told.stdout)
    assert sum(Decimal(group["cost"]) for group in found["groups"]) == Decimal(found["totals"]["cost"])
    return {group["day"]: group["cost"] for group in found["groups"]} | {"currency": found["currency"]}


def test_each_day_has_its_own_rate(run: Run, paths: LedgerPaths) -> None:
    """Money is shown by the rate of each event's day, or the last one before; the ledger stays as it was."""
    assert run("rates", "ecb.csv").exit_code == 0
    before = one(paths, "SELECT sum(cost) FROM usage_event")

    assert shown(run, "--currency", "eur") == {"2026-11-10": "0.016", "2026-11-14": "0.02", "currency": "EUR"}
    assert shown(run, "--currency", "JPY") == {"2026-11-10": "2.56", "2026-11-14": "3.00", "currency": "JPY"}
    assert shown(run, "--currency", "USD") == {"2026-11-10": "0.02", "2026-11-14": "0.02", "currency": "USD"}
    assert one(paths, "SELECT sum(cost) FROM usage_event") == before


def test_a_month_may_have_one_rate(run: Run) -> None:
    """By month-end all days of a month have its last rate, so that a month is one sum times one rate."""
    run("rates", "ecb.csv")
    found = shown(run, "--currency", "EUR", "--fx-date", "month-end")

    assert found == {"2026-11-10": "0.02", "2026-11-14": "0.02", "currency": "EUR"}
    assert "Cost EUR" in run("report", "--currency", "EUR").stdout


def test_a_day_without_a_rate_is_refused(run: Run, paths: LedgerPaths) -> None:
    """No rate is made up: a currency that nobody named, and a day more than a week after the last rate, exit 2."""
    without = run("report", "--currency", "EUR")
    run("rates", "ecb.csv")
    take(paths, event(occurred_at=at(25)))
    late = run("report", "--currency", "EUR")
    within = run("report", "--currency", "EUR", "--until", "2026-11-20")
    strange = [run("report", "--currency", name) for name in ("BGN", "GBP", "EURO", "'; drop", "")]

    assert (without.exit_code, late.exit_code, within.exit_code) == (2, 2, 0)
    assert "2026-11-25" in late.stderr
    assert "usage rates" in late.stderr
    assert {told.exit_code for told in strange} == {2}


def test_rates_are_replaced_by_day(run: Run, paths: LedgerPaths) -> None:
    """A rate told again replaces the one of its day and pair; a plain table does as well as the bank's."""
    run("rates", "ecb.csv")
    Path("own.csv").write_text("day,base,quote,rate\n2026-11-10,EUR,USD,1.6\n2026-11-10,eur,usd,1.6\n")
    run("rates", "own.csv")

    assert shown(run, "--currency", "EUR")["2026-11-10"] == "0.0125"
    assert one(paths, "SELECT count(*) FROM fx_rate WHERE base = 'EUR' AND quote = 'USD'") == 3


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "Date,USD\nsoon,1\n", "Date,USD\n2026-11-10,-1\n", "Date,USD\n2026-11-10,0\n",
                "day,base,quote,rate\n2026-11-10,EURO,USD,1\n", "Date,USD\n2026-11-10,NaN\n", ""],
)  # fmt: skip
def test_bad_rates_are_refused(run: Run, paths: LedgerPaths, content: str) -> None:
    """A file without rates by day, or with a value that is none, is named; nothing of it is kept."""
    Path("bad.csv").write_text(content)

    assert run("rates", "bad.csv").exit_code == 65
    assert run("rates", "none.csv").exit_code == 66
    assert one(paths, "SELECT count(*) FROM fx_rate") == 0


@settings(deadline=None)
@given(
    st.dictionaries(st.dates(date(2026, 1, 1), date(2026, 3, 31)), st.decimals("0.01", "99", places=4), min_size=1),
    st.dates(date(2026, 1, 1), date(2026, 4, 20)),
)
def test_the_rate_of_a_day_is_the_last_known(known: dict[date, Decimal], day: date) -> None:
    """For any day it is the youngest rate that is not after it, at most a week old; else there is none."""
    earlier = [one for one in known if one <= day]
    try:
        found = exchange_rates.of_days(known, [day], "EUR", "day")[day]
    except WrongUsage:
        assert not earlier or day - max(earlier) > timedelta(days=7)
    else:
        assert found == known[max(earlier)]


def test_columns_of_money(run: Run, paths: LedgerPaths) -> None:
    """--cost and --corrections choose what people see: list beside paid, refunds beside usage, or no money at all."""
    take(paths, event(model="agreed", tokens_total=10_000_000, occurred_at=at(14)))
    about = {"workspace": "acme", "reason": "why", "at": at(14), "provider": "pay", "model": "m"}
    take(paths, entry("refund", Decimal("-0.5"), **about))
    both = run("report", "--by", "model", "--cost", "both", "--corrections", "split").stdout.splitlines()
    none = run("report", "--cost", "none").stdout

    assert both[1].split("  ")[-4:] == ["List USD", "Cost USD", "Adjusted USD", "At risk USD"]
    assert [line.split()[-4:-1] for line in both if line.startswith(("m ", "agreed", "Total"))] == [
        ["1.30", "1.00", "-"],
        ["0.04", "0.04", "-0.50"],
        ["1.34", "1.04", "-0.50"],
    ]
    assert "USD" not in none.splitlines()[1]
    assert run("report", "--compact").stdout.splitlines()[1].split() == [
        "Provider", "Model", "Tokens", "Estimated", "%", "Cost", "USD",
    ]  # fmt: skip


def test_a_list_cost_that_lacks_something_says_so(run: Run, paths: LedgerPaths) -> None:
    """Where a price is only agreed and no list names it, the list cost is a lower bound."""
    take(paths, event(provider="place", price_as=None, model="told", occurred_at=at(14)))
    told = run("report", "--cost", "list").stdout

    assert next(line for line in told.splitlines() if line.startswith("place")).split()[-2:] == ["unknown", "-"]
    assert ">= 0.04" in told.splitlines()[-1]


def test_a_report_goes_to_a_file(run: Run, paths: LedgerPaths) -> None:
    """With -o the same document goes to a new file, whole, or with --overwrite in place of one; stdout stays empty."""
    printed = run("report", "--format", "csv").stdout
    Path("report.csv").write_text("older")
    assert run("report", "--format", "csv", "-o", "report.csv").exit_code == 73
    assert Path("report.csv").read_text() == "older"
    told = run("report", "--format", "csv", "-o", "report.csv", "--overwrite")

    assert (told.exit_code, told.stdout) == (0, "")
    assert Path("report.csv").read_text() == printed
    assert run("report", "-o", "none/report.csv").exit_code == 73
    assert run("report", "--html", "page.html", "-o", "report.csv").exit_code == 2

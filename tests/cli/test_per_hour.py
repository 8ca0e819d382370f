"""A place that costs by the hour: each call its share of the time, the rest a line of its own, and all of it money."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from embedctl.ledger.prices.price import cost
from tests.support import static_models
from tests.support.running import embedctl, ledger, user_settings
from tests.support.wire.client import Wire

MICROHOURS = re.compile(r"([\d,]+) microhours at ([\d.]+) USD an hour$")
RATE = Decimal("2.50")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wire: Wire) -> Path:
    """Forty lines, and a server of one's own that takes 20 ms for an answer, the first of which is that it failed."""
    monkeypatch.chdir(tmp_path)
    wire.reset()
    wire.plan(latency_s=0.02, script=[{"fault": "status", "status": 503}])
    place(wire, f"per_hour = {RATE}", "concurrency = 1")
    (tmp_path / "lines.txt").write_text("".join(f"line number {n}\n" for n in range(40)))
    return tmp_path


def place(wire: Wire, *lines: str) -> None:
    user_settings("\n".join(["[providers.gpu]", 'protocol = "openai"', f'base_url = "{wire.base_url()}"', *lines]))


RUN = (
    "embed",
    "lines.txt",
    "--split",
    "lines",
    "-m",
    "gpu:text-embedding-3-small",
    "--batch-size",
    "5",
    "-o",
    "o.parquet",
)


def events() -> list[tuple[str, str, str, int, Decimal | None, str]]:
    return ledger(
        "SELECT meter, status, billable, quantity, cost, reason FROM usage_event "
        "WHERE entry_kind = 'usage' ORDER BY event_id"
    )


def test_calls_are_charged_their_share_and_the_rest_is_a_line(here: Path) -> None:
    """Every answered call costs its microhours x rate, the rest is one line; receipt, ledger and report agree."""
    ended = embedctl(*RUN, "--json")

    found = events()
    said = [MICROHOURS.search(reason) for *_, reason in found]
    amounts = [cost(int(one[1].replace(",", "")), Decimal(one[2])) for one in said if one]
    idle = [row for row in found if row[0] == "idle_microhour"]
    total = sum(amounts)
    assert ended.code == 0, ended.err
    assert [row[4] for row in found if row[1] == "ok"] == amounts
    assert [row[4] for row in found if row[1] != "ok"] == [0]
    assert (len(found), len(idle)) == (10, 1)
    assert idle[0][4] == cost(idle[0][3], RATE)
    assert Decimal(ended.json["cost"]) == total > 0
    assert (ended.json["attempts"], ended.json["requests"], ended.json["cost_is_lower_bound"]) == (9, 8, False)
    report = embedctl("usage", "report", "--json").json
    assert Decimal(report["totals"]["cost"]) == Decimal(report["totals"]["cost_list"]) == total
    assert [report["totals"][key] for key in ("calls", "operations", "errors")] == [9, 8, 1]
    assert report["totals"]["tokens"] == ended.json["tokens"] > 0
    assert report["warnings"] == []


def test_every_report_knows_it_as_money(here: Path) -> None:
    """`explain` says the rate, FOCUS bills the same, `usage doctor` finds nothing wrong, `reprice` changes nothing."""
    run_id = embedctl(*RUN, "--json").json["run_id"]
    total = ledger("SELECT sum(cost) FROM usage_event")[0][0]

    explained = [line["sum"] for line in embedctl("usage", "explain", "--run", run_id, "--json").json["lines"]]
    embedctl("usage", "report", "--format", "focus", "-o", "charges.csv")
    billed = ledger("SELECT sum(BilledCost::DECIMAL(28,15)) FROM read_csv('charges.csv', all_varchar = true)")[0][0]
    assert sum(line.endswith("of its machine's time, at 2.50 USD an hour") for line in explained) == 2
    assert [line for line in explained if "microhours that no call was charged" in line]
    assert billed == total
    assert embedctl("usage", "doctor").code == 0
    embedctl("usage", "reprice", "--apply")
    assert ledger("SELECT sum(cost) FROM usage_event")[0][0] == total


def test_failures_leave_their_time_to_the_rest(here: Path, wire: Wire) -> None:
    """A call that failed costs nothing of its own, one without an answer stays unknown; the machine's time is paid."""
    wire.plan(latency_s=0.02, script=[{"fault": "status", "status": 503}, "reset_after"])
    ended = embedctl(*RUN, "--retries", "30", "--json")

    found = events()
    assert ended.code == 0, ended.err
    assert {row[4] for row in found if row[2] == "no"} == {0}
    assert {row[4] for row in found if row[2] == "unknown"} == {None}
    assert sum(row[0] == "idle_microhour" for row in found) == 1


def test_max_cost_holds(here: Path, wire: Wire) -> None:
    """--max-cost stops before it is passed, the time between calls included; more money, and it goes on."""
    wire.plan(latency_s=0.02)
    place(wire, "per_hour = 900", "timeout_s = 5", "concurrency = 1")  # 1.25 is set aside, an answer is 0.005 or more
    ended = embedctl(*RUN, "--max-cost", "1.26", "--json")
    spent = ledger("SELECT sum(cost) FROM usage_event")[0][0]
    again = embedctl(*RUN, "--max-cost", "1000", "--json")

    assert ended.code == 4, ended.err
    assert 0 < spent <= Decimal("1.26")
    assert (again.code, again.json["vectors"]) == (0, 40)


def test_a_budget_counts_it(here: Path, wire: Wire) -> None:
    """A workspace's budget is used up by a machine's time as by tokens."""
    wire.plan(latency_s=0.02)
    user_settings(
        f'[providers.gpu]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\nper_hour = 900\ntimeout_s = 5\n'
        'concurrency = 1\n[workspaces.default]\nbudget = { period = "month", amount = "1.26" }\n'
    )
    ended = embedctl(*RUN, "--json")

    assert ended.code == 4, ended.err
    assert 0 < ledger("SELECT sum(cost) FROM usage_event")[0][0] <= Decimal("1.26")


def test_an_estimate_does_not_guess_the_time(here: Path) -> None:
    """--dry-run and `usage estimate` say what an hour costs; how long it takes nobody knows, so the cost is unknown."""
    said = embedctl(*RUN, "--dry-run", "--json").json

    assert (said["cost"], said["per_hour"]) == (None, "2.50")
    assert "cost unknown: 2.50 USD for each hour that its machine runs" in embedctl(*RUN, "--dry-run").out
    assert embedctl("usage", "estimate", "lines.txt", "-m", RUN[5], "--json").json["cost"] is None


def test_models_that_run_here_may_cost_too(here: Path) -> None:
    """`per_hour` under a local provider charges inference here; `models list` says so."""
    folder = static_models.saved(here / "words")
    user_settings("[providers.static]\nper_hour = 0.25\n")
    (here / "words.txt").write_text("the cell is charged")
    ended = embedctl("embed", "words.txt", "-m", f"static:{folder}", "-o", "w.parquet", "--json")
    listed = embedctl("models", "list", "--provider", "static", "--json").json["data"]

    assert ended.code == 0, ended.err
    assert Decimal(ended.json["cost"]) == ledger("SELECT sum(cost) FROM usage_event")[0][0]
    assert {one["usd_per_million"] for one in listed} == {"0.25 an hour"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["per_hour = 0"], "must be an amount above 0"),
        (["per_hour = -1"], "must be an amount above 0"),
        (["per_hour = 0.0000000001"], "with at most 9 decimals"),
        (['per_hour = "nan"'], "must be an amount"),
        (["per_hour = 2", "free = true"], "free and per_hour exclude each other"),
        (["per_hour = 2", 'price_as = "openai"'], "per_hour and price_as exclude each other"),
    ],
)
def test_rates_that_are_none(wire: Wire, lines: list[str], said: str) -> None:
    """A rate that is no amount, or stands beside another word on the price, is refused (78)."""
    place(wire, *lines)
    ended = embedctl(*RUN)

    assert ended.code == 78
    assert said in ended.err

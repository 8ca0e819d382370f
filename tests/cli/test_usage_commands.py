"""`embedctl usage`: the commands, as typed."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.cli.usage._workspace import EACH, with_values
from embedctl.ledger import budget_copy, database, prices, spool
from embedctl.ledger import query as queries
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.prices import price_file
from embedctl.ledger.prices.price import Price
from embedctl.records import uuid7
from embedctl.reports import integrity, report
from embedctl.reports.focus import FOCUS_COLUMNS
from tests.support import places
from tests.support.ledger_events import NOON, event, one, place, rows, take
from tests.support.running import user_settings

SHAPE = ["by", "currency", "filters", "generated_at", "groups", "prices_as_of", "schema_version", "since", "timezone"]
SHAPE += ["totals", "until", "warnings"]
GOLDEN = places.GOLDEN


@dataclass(frozen=True)
class Told:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one JSON document."""
        return json.loads(self.out)


Run = Callable[..., Told]


@pytest.fixture
def paths(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """The ledger of a home of its own, with a few prices; the current folder is the test's."""
    monkeypatch.chdir(tmp_path)
    return place(clean_environment)


@pytest.fixture
def run(paths: LedgerPaths) -> Run:
    """Runs `embedctl ARGS…` in the home of the test."""

    def command(*args: str) -> Told:
        result = CliRunner().invoke(app, list(args))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Told(result.exit_code, result.stdout, result.stderr)

    return command


def month(paths: LedgerPaths) -> None:
    """A ledger with something of everything."""
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(
        paths,
        event(occurred_at=datetime(2026, 11, 14, 9, tzinfo=UTC), tokens_total=38_220_101, job_id="nightly"),
        event(usage_source="fallback", tokens_native=None, tokens_total=291_000, workspace_id="kb"),
        event(workspace_id="kb", model="embed-x", provider="newco", price_as="newco", tokens_total=700),
        event(tokens_estimated=980_000, **lost),
        event(status="error", billable="no", tokens_total=0, tokens_native=None, error_class="Throttled"),
    )


def test_a_report_looks_like_this(run: Run, paths: LedgerPaths) -> None:
    """The table, its total and its footer are what the golden file shows."""
    month(paths)
    told = run(
        "usage", "report", "--by", "day,workspace,provider,model", "--since", "2026-11-01", "--until", "2026-12-01"
    )

    assert told.code == 0
    assert told.out.replace(_price_day(paths), "PRICE-DAY") == (GOLDEN / "usage_report.txt").read_text()
    assert told.err == ""


def _price_day(paths: LedgerPaths) -> str:
    return str(one(paths, "SELECT CAST(max(valid_from)::TIMESTAMP::DATE AS VARCHAR) FROM price"))


def test_reports_have_one_envelope(run: Run, paths: LedgerPaths) -> None:
    """All reports print the same JSON shape: money as strings, null for unknown, warnings inside and on stderr."""
    month(paths)
    shapes = {}
    for name in ("report", "daily", "weekly", "monthly", "jobs"):
        told = run("usage", name, "--json")
        shapes[name] = (sorted(told.json), sorted(told.json["totals"]))
        assert told.err.count("warning: ") == len(told.json["warnings"]) == 3
    totals = told.json["totals"]

    assert len({str(shape) for shape in shapes.values()}) == 1
    assert shapes["report"][0] == SHAPE
    assert {"tokens", "cost", "cost_list", "unpriced_tokens", "cost_at_risk", "fallback_share", "calls", "operations",
            "errors", "success_rate"} <= totals.keys()  # fmt: skip
    assert (totals["cost"], totals["cost_at_risk"], totals["unpriced_tokens"]) == ("0.77022202", "0.0196", 700)


@pytest.mark.parametrize(
    ("args", "groups"),
    [
        (["--workspace"], ["acme", "kb"]),
        (["-w"], ["acme", "kb"]),
        (["--workspace", "--json"], ["acme", "kb"]),
        (["--workspace", "--by", "workspace"], ["acme", "kb"]),
        (["--workspace", "acme", "--by", "workspace"], ["acme"]),
        (["--workspace=kb", "--by", "workspace"], ["kb"]),
        (["-w", "acme", "-w", "kb", "--by", "workspace"], ["acme", "kb"]),
        (["-w", "acme", "-w"], ["acme"]),
    ],
)
def test_workspace_with_and_without_a_value(run: Run, paths: LedgerPaths, args: list[str], groups: list[str]) -> None:
    """--workspace with a value filters; without one, at the end or before another flag, it groups."""
    month(paths)
    told = run("usage", "report", *args, "--json")

    assert sorted(group["workspace"] for group in told.json["groups"]) == groups


def test_a_bare_flag_takes_no_other_flag_for_its_value() -> None:
    """Only a missing value is filled in."""
    assert with_values(["-w", "a", "-w", "--json", "--workspace"]) == [
        "-w",
        "a",
        "-w",
        EACH,
        "--json",
        "--workspace",
        EACH,
    ]


def test_csv_has_plain_numbers(run: Run, paths: LedgerPaths) -> None:
    """CSV has one row per group and numbers a program can read; a name that is a formula is defused."""
    month(paths)
    take(paths, event(workspace_id="=cmd()"))
    told = run("usage", "report", "--workspace", "--format", "csv")
    read = list(csv.DictReader(io.StringIO(told.out)))

    assert [(row["workspace"], row["tokens"], row["cost"]) for row in read] == [
        ("acme", "38220101", "0.76440202"),
        ("kb", "291700", "0.00582"),
        ("'=cmd()", "1000", "0.00002"),
    ]


def test_large_counts_stay_exact_in_json(run: Run, paths: LedgerPaths) -> None:
    """A count beyond 2^53 is a string in JSON, where other programs would lose its last digits."""
    take(paths, event(tokens_total=(1 << 53) + 1))
    told = run("usage", "report", "--json").json["totals"]

    assert (told["tokens"], told["calls"]) == ("9007199254740993", 1)


def test_strict_fails_on_the_unknown(run: Run, paths: LedgerPaths) -> None:
    """--strict exits 3 when something has no price or no outcome, after the report; else 0."""
    take(paths, event())
    fine = run("usage", "report", "--strict")
    take(paths, event(model="x"))
    told = run("usage", "report", "--strict")

    assert (fine.code, told.code) == (0, 3)
    assert "Total" in told.out


def test_strict_fails_on_an_old_price_list(run: Run, paths: LedgerPaths) -> None:
    """A list price is stale for a call 180 days after the list; a contract's never, and what is free has none."""
    listed = datetime.fromisoformat(run("usage", "report", "--json").json["prices_as_of"]).replace(tzinfo=UTC)
    then = listed + prices.STALE_AFTER
    take(
        paths,
        event(occurred_at=then - timedelta(seconds=1)),
        event(occurred_at=then, model="agreed"),
        event(occurred_at=then, model="gift"),
        event(occurred_at=then, cost_provider=Decimal("0.1")),
    )
    fine = run("usage", "report", "--strict")
    take(paths, event(occurred_at=then, tokens_total=1234))
    stale = run("usage", "report", "--strict", "--json")
    before = run("usage", "report", "--strict", "--until", then.isoformat())

    assert (fine.code, stale.code, before.code) == (0, 3, 0)
    assert f"1,234 tokens are priced by a list of {listed.date()}" in " ".join(stale.json["warnings"])
    assert "an old one" in stale.err


def test_a_fresh_ledger_has_the_catalogs_prices(run: Run, paths: LedgerPaths) -> None:
    """Before anything was spent, the date of the prices is the catalog's."""
    catalog = prices.load([("", prices.catalog_text())]).prices
    day = max(price.valid_from for price in catalog).date().isoformat()

    assert f"prices as of {day}\n" in run("usage", "report").out
    assert run("usage", "report", "--no-ingest", "--json").json["prices_as_of"] == day


def test_a_contract_is_no_newer_list(paths: LedgerPaths) -> None:
    """The date of the prices is the list's: what somebody agreed on since says nothing of other prices."""
    take(paths, event())
    with database.reader(paths, now=NOON) as connection:
        listed = datetime.fromisoformat(str(report.prices_as_of(connection, datetime.now(UTC)))).replace(tzinfo=UTC)
    later = listed + timedelta(days=5)
    agreed = {"provider": "pay", "model": "own", "usd_per_million": Decimal(1), "source": "7", "confidence": "listed"}
    price_file.add(paths.price_file, [Price(**agreed, kind="contract", valid_from=later)])
    take(paths, event())
    with database.reader(paths, now=NOON) as connection:
        as_of = report.prices_as_of(connection, later)

    assert one(paths, "SELECT count(*) FROM price WHERE model = 'own'") == 1
    assert as_of == listed.date().isoformat()


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--format", "parquet"], "--output usage.parquet"),
        (["--format", "focus"], "--output usage.csv"),
        (["--format", "focus", "-o", "f.csv", "--by", "day"], ""),
        (["--format", "focus", "-o", "f.csv", "--currency", "EUR"], ""),
        (["--format", "parquet", "-o", "f.parquet", "--html", "f.html"], ""),
        (["--format", "parquet", "-o", "no/folder/f.parquet", "--by", "modle"], "did you mean model?"),
        (["--workspace", "acmee"], "did you mean acme?"),
        (["--since", "2026-11-03", "--until", "2026-11-01"], "half open"),
        (["--since", "gestern"], "like 2026-11-01"),
        (["--timezone", "Mars/Phobos"], "IANA"),
        (["--by", "modle"], "did you mean model?"),
        (["--by", "'; drop table usage_event"], "one of day, week"),
        (["--order", "up"], ""),
        (["--last", "soon"], "7d"),
        (["--all", "--workspace", "acme"], ""),
    ],
)
def test_wrong_flags_exit_2(run: Run, paths: LedgerPaths, args: list[str], hint: str) -> None:
    """A wrong value is exit 2 with a hint that names what is right, and nothing on stdout."""
    take(paths, event())
    told = run("usage", "report", *args)

    assert (told.code, told.out) == (2, "")
    assert hint in told.err


def test_control_characters_never_reach_the_terminal(run: Run, paths: LedgerPaths) -> None:
    """Escape sequences in names are shown as text."""
    take(paths, event(workspace_id="a\x1b[31mred", model="m\x07\u202e", tags={"t": "\x1b]0;x"}))
    told = run("usage", "report", "--workspace", "--by", "workspace,model,tag:t")
    wrong = run("usage", "report", "--workspace", "\x1b[31m")

    assert not {"\x1b", "\x07", "\u202e"} & set(told.out + told.err + wrong.err)
    assert "a\\x1b[31mred" in told.out


def test_a_report_takes_in_what_waits(run: Run, paths: LedgerPaths) -> None:
    """A report counts events still in the spool; with --no-ingest it does not."""
    take(paths, event())
    spool.publish(paths.spool, "late", [event()])
    before = run("usage", "report", "--no-ingest", "--json")
    after = run("usage", "report", "--json")

    assert [told.json["totals"]["calls"] for told in (before, after)] == [1, 2]


def test_damage_in_the_spool_is_said(run: Run, paths: LedgerPaths) -> None:
    """Lines that were dropped are named under the report that dropped them."""
    paths.spool.mkdir()
    (paths.spool / "a.spool").write_bytes(spool.line(event()) + b"torn")
    told = run("usage", "report", "--json")

    assert told.json["warnings"] == ["1 spool lines were damaged or foreign and are not counted"]


def test_an_empty_home_reports_nothing(run: Run, paths: LedgerPaths) -> None:
    """On a fresh machine a report is empty, not an error."""
    told = run("usage", "report", "--workspace")

    assert told.code == 0
    assert "Total" in told.out


def test_ingest_says_what_it_did(run: Run, paths: LedgerPaths) -> None:
    """`usage ingest` counts what it took in; with --json as one object on stdout."""
    spool.publish(paths.spool, "a", [event(), event()])
    told = run("usage", "ingest", "--json")
    again = run("usage", "ingest")

    assert told.json == {
        "events": 2,
        "repeated": 0,
        "bad_lines": 0,
        "files": 1,
        "pruned": 0,
        "rebuilt_from": None,
        "unreadable": [],
    }
    assert (again.code, again.out) == (0, "")


def test_a_busy_ledger_exits_75(run: Run, paths: LedgerPaths) -> None:
    """`usage ingest` exits 75 when another process keeps the ledger."""
    take(paths, event())
    with database.held(paths, shared=True, wait_s=0):
        told = run("usage", "ingest", "--wait", "0")

    assert told.code == 75
    assert "is in use by another embedctl" in told.err


def test_ledger_flag_names_the_file(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """--ledger PATH is used instead of the one in the home."""
    told = run("usage", "budget", "set", "--amount", "1", "--ledger", str(tmp_path / "other.duckdb"))

    assert told.code == 0
    assert (tmp_path / "other.duckdb").is_file()
    assert not paths.database.exists()
    assert run("usage", "report", "--ledger", str(tmp_path / "other.duckdb")).code == 0


READERS = [
    "report", "report --no-ingest", "report --html page.html", "daily", "sql SELECT\v1", "metrics", "budget check",
    "budget list", "export -o charges.csv", "doctor", "backup copy.duckdb", "explain x", "drift", "forecast",
    "anomalies", "diff --from 2026-09 --to 2026-10", "reprice", "reprice --apply",
]  # fmt: skip


@pytest.mark.parametrize("words", [*(f"usage {words}" for words in READERS), "doctor"])
def test_who_only_reads_makes_no_ledger(run: Run, paths: LedgerPaths, tmp_path: Path, words: str) -> None:
    """A misspelt --ledger is one line, the nearest name and exit 66, whatever asks; no file comes to be."""
    (tmp_path / "usage.duckdb").touch()
    command = [word.replace("\v", " ") for word in words.split(" ")]
    told = run(*command, "--ledger", "usgae.duckdb")

    assert (told.code, told.out) == (66, "")
    assert told.err == "error: no such ledger: usgae.duckdb\nhint: did you mean usage.duckdb?\n"
    assert [path.name for path in tmp_path.iterdir()] == ["usage.duckdb"]
    assert not paths.database.exists()


@pytest.mark.parametrize("words", [words for words in READERS if "--apply" not in words])
def test_before_the_first_run_there_is_nothing_to_read(run: Run, paths: LedgerPaths, words: str) -> None:
    """Where nothing was ever booked, questions have an empty answer, and no ledger comes to be."""
    told = run("usage", *(word.replace("\v", " ") for word in words.split(" ")))

    assert told.code == {"explain x": 2, "backup copy.duckdb": 66}.get(words, 0), told.err
    assert not paths.database.exists()
    assert not paths.lock.exists()


def test_a_named_ledger_for_which_events_wait_is_made(run: Run, tmp_path: Path, clean_environment: Path) -> None:
    """A ledger that is not there yet, and whose events wait beside it, is made by who asks for it."""
    other = LedgerPaths(tmp_path / "other.duckdb", tmp_path / "other.duckdb.spool", clean_environment / "prices.toml")
    spool.publish(other.spool, uuid7().hex, [event()])

    told = run("usage", "report", "--json", "--ledger", str(other.database))

    assert told.json["totals"]["calls"] == 1
    assert other.database.is_file()


def test_explain_shows_the_arithmetic(run: Run, paths: LedgerPaths) -> None:
    """`usage explain EVENT` shows every attempt of the operation, tokens x price = cost, and whose price it is."""
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    answered = event(operation_id="op", attempt=2, tokens_total=1_500_000)
    take(paths, event(operation_id="op", tokens_estimated=1_400_000, **lost), answered)
    told = run("usage", "explain", str(answered.event_id))
    data = run("usage", "explain", "op", "--json").json

    assert [line["sum"] for line in data["lines"]] == [
        "~1,400,000 tokens sent, no answer: up to 0.028000 USD at 0.020000 USD per million",
        "1,500,000 tokens x 0.020000 USD per million = 0.030000 USD",
    ]
    assert data["lines"][1]["price"]["source"] == "list"
    assert all(line["sum"] in told.out for line in data["lines"])
    assert "price: list 0.02 USD per million since 2024-01-25" in told.out


def test_explain_a_run(run: Run, paths: LedgerPaths) -> None:
    """`usage explain --run` sums a run by price."""
    one_run = event().event_id
    take(paths, *(event(run_id=one_run) for _ in range(3)), event(run_id=one_run, model="x"))
    data = run("usage", "explain", "--run", str(one_run), "--json").json

    assert [(line["calls"], line["sum"]) for line in data["lines"]] == [
        (3, "3,000 tokens x 0.020000 USD per million = 0.000060 USD"),
        (1, "1,000 tokens, no price: unknown"),
    ]
    assert data["cost"] == "0.00006"


def test_explain_says_why_a_cost_is_unknown(run: Run, paths: LedgerPaths) -> None:
    """An answer whose provider said nothing of tokens is not one whose price is unknown."""
    silent = event(usage_mode="native", tokens_native=None, tokens_total=0, run_id=event().event_id)
    take(paths, silent)
    told = [run("usage", "explain", str(silent.event_id)), run("usage", "explain", "--run", str(silent.run_id))]

    assert all("answered, and nothing said of tokens: unknown" in one.out for one in told)


@pytest.mark.parametrize("args", [["nothing"], ["'; drop"], [], ["x", "--run", "y"], ["--run", "y"]])
def test_explain_refuses_the_unknown(run: Run, paths: LedgerPaths, args: list[str]) -> None:
    """What is not in the ledger cannot be explained."""
    take(paths, event())

    assert run("usage", "explain", *args).code == 2


def test_drift_is_found(run: Run, paths: LedgerPaths) -> None:
    """A server that counts 10 % more than the tokenizer is found, by tokens; below the threshold all is well."""
    take(paths, *(event(tokens_native=1100, tokens_total=1100, tokens_estimated=1000) for _ in range(5)))
    take(paths, event(model="moving", tokens_native=1010, tokens_estimated=1000), event(usage_source="fallback"))
    told = run("usage", "drift", "--json")
    fine = run("usage", "drift", "--threshold", "0.11")
    found = {model["model"]: model for model in told.json["models"]}

    assert (told.code, fine.code) == (3, 0)
    assert [found["m"][key] for key in ("pairs", "share_over", "over")] == [5, 1.0, True]
    assert found["m"]["weighted"] == pytest.approx(0.1)
    assert found["moving"]["over"] is False
    assert found["m"]["fallback_share"] == pytest.approx(1000 / 6500)


def test_budgets_warn_and_block(run: Run, paths: LedgerPaths) -> None:
    """`budget check` exits 0 within the budget, 5 past the warning line, 4 when it is used up; at-risk money counts."""
    now = datetime.now(UTC)
    run("usage", "budget", "set", "-w", "acme", "--amount", "1.00", "--period", "day")
    codes = []
    for tokens in (35_000_000, 10_000_000):
        take(paths, event(occurred_at=now, tokens_total=tokens))
        codes.append(run("usage", "budget", "check").code)
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(paths, event(occurred_at=now, tokens_estimated=9_000_000, **lost))
    codes.append(run("usage", "budget", "check", "-w", "acme").code)
    listed = run("usage", "budget", "list", "--json").json["budgets"][0]

    assert codes == [0, 5, 4]
    assert (listed["spent"], listed["at_risk"], listed["remaining"], listed["state"]) == (
        "0.90",
        "0.18",
        "0.00",
        "exceeded",
    )
    other = run("usage", "budget", "check", "-w", "default")
    assert (other.code, "default has no budget" in other.out) == (0, True)


def test_a_misspelt_workspace_has_no_budget_to_check(run: Run, paths: LedgerPaths) -> None:
    """`budget check -w` of a workspace that neither ledger nor settings know is refused, and the nearest is named."""
    take(paths, event(workspace_id="acme"))
    user_settings("[workspaces.initech]")

    told = run("usage", "budget", "check", "-w", "amce")

    assert (told.code, told.out) == (2, "")
    assert told.err == "error: no workspace 'amce' is in the ledger or in the settings\nhint: did you mean acme?\n"
    assert run("usage", "budget", "check", "-w", "initech").code == 0
    assert run("usage", "export", "-o", "charges.csv", "-w", "amce").code == 2


def test_budgets_outlive_a_damaged_ledger(run: Run, paths: LedgerPaths) -> None:
    """A ledger that is made anew from the spool has the budgets of the one that was damaged."""
    run("usage", "budget", "set", "-w", "acme", "--amount", "1.50", "--period", "day", "--warn-at", "0.5")
    run("usage", "budget", "set", "-w", "kb", "--amount", "7", "--action", "warn", "-z", "Europe/Berlin")
    take(paths, event())
    before = run("usage", "budget", "list", "--json").json["budgets"]
    paths.database.write_bytes(b"no database" * 1000)
    again = run("usage", "ingest", "--json")

    assert again.json["rebuilt_from"] is not None
    assert "the ledger was damaged: set aside as " in again.err
    assert "`embedctl usage rates FILE`" in again.err
    assert "the ledger is set aside as " in run("usage", "ingest", "--rebuild").err
    assert run("usage", "budget", "list", "--json").json["budgets"] == before
    assert [(one["workspace"], one["amount"]) for one in before] == [("acme", "1.50"), ("kb", "7.00")]


def test_runs_know_without_the_ledger_whether_there_is_a_budget(run: Run, paths: LedgerPaths) -> None:
    """What stands beside the ledger says whether it holds a budget, from the first one on; what is torn says yes."""
    take(paths, event())
    found = [budget_copy.there_are(paths)]
    assert not paths.limits.exists()
    run("usage", "budget", "set", "-w", "acme", "--amount", "1")
    found.append(budget_copy.there_are(paths))
    with duckdb.connect(str(paths.database)) as connection:
        connection.execute("DELETE FROM budget")
    take(paths, event())
    found.append(budget_copy.there_are(paths))
    paths.limits.write_bytes(b"[{")
    found.append(budget_copy.there_are(paths))

    assert found == [False, True, False, True]


def test_budgets_of_the_settings_count(run: Run, paths: LedgerPaths) -> None:
    """A budget of the settings is listed and checked like one of the ledger's."""
    user_settings('[workspaces.acme]\nbudget = { period = "month", amount = "0.00001" }\n')
    take(paths, event(occurred_at=datetime.now(UTC)))

    assert run("usage", "budget", "check").code == 4


def test_late_prices_fill_in(run: Run, paths: LedgerPaths) -> None:
    """A price told later fills in unknown costs once; what was known stays; the dry run writes nothing."""
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(paths, event(model="x"), event(), event(model="x", tokens_estimated=500, **lost))
    run("prices", "set", "pay:x", "2", "--from", "2026-01-01")
    dry = run("usage", "reprice", "--json").json
    before = one(paths, "SELECT count(*) FROM usage_event WHERE cost_status = 'unpriced'")
    applied = run("usage", "reprice", "--apply", "--json").json
    again = run("usage", "reprice", "--apply", "--json").json
    query = "SELECT model, cost, cost_at_risk, cost_status FROM usage_event ORDER BY ALL"

    assert (dry["filled_events"], dry["filled_cost"], dry["filled_at_risk"], before) == (2, "0.002", "0.001", 1)
    assert (applied["filled_events"], again["filled_events"], applied["corrections"]) == (2, 0, [])
    assert rows(paths, query) == [
        ("m", Decimal("0.00002"), None, "priced"),
        ("x", Decimal("0.002"), None, "priced"),
        ("x", None, Decimal("0.001"), "at_risk"),
    ]


def test_a_wrong_price_is_corrected_by_rows(run: Run, paths: LedgerPaths) -> None:
    """A corrected price adds signed rows per day, never changes one, and does so once; back again undoes it."""
    days = [NOON, NOON, NOON.replace(day=16)]
    take(paths, *(event(occurred_at=day, tokens_total=1_000_000) for day in days))
    text = paths.price_file.read_text()
    paths.price_file.write_text(text.replace('"0.02"', '"0.03"'))
    applied = run("usage", "reprice", "--apply", "--json").json
    again = run("usage", "reprice", "--apply", "--since", "2026-11-15T18:00", "--json").json
    total = one(paths, "SELECT sum(cost) FROM usage_event")
    kept = rows(paths, "SELECT DISTINCT unit_price FROM usage_event WHERE entry_kind = 'usage'")
    report = run("usage", "daily", "--json").json
    paths.price_file.write_text(text)
    back = run("usage", "reprice", "--apply", "--json").json

    assert [(row["day"], row["calls"], row["delta"]) for row in applied["corrections"]] == [
        ("2026-11-15", 2, "0.02"),
        ("2026-11-16", 1, "0.01"),
    ]
    assert (again["corrections"], total, kept) == ([], Decimal("0.09"), [(Decimal("0.02"),)])
    assert [(group["day"], group["cost"], group["calls"]) for group in report["groups"]] == [
        ("2026-11-15", "0.06", 2),
        ("2026-11-16", "0.03", 1),
    ]
    assert back["correction"] == "-0.03"


def test_a_place_told_later_finds_its_events(run: Run, paths: LedgerPaths) -> None:
    """Events of a place without prices are priced once its price is told, by its own name or by whose prices it has."""
    take(paths, event(provider="eu", price_as=None, model="m"))
    none = run("usage", "reprice", "--json").json["filled_events"]
    take(paths, event(provider="eu", price_as="pay", model="m"))
    found = run("usage", "reprice", "--apply", "--json").json["filled_events"]

    assert (none, found) == (0, 1)
    assert one(paths, "SELECT count(*) FROM usage_event WHERE unit_price = 0.02") == 2


def test_credits_and_refunds_are_rows(run: Run, paths: LedgerPaths) -> None:
    """A credit lowers the cost by a negative row with its reason, and survives a rebuild of the ledger."""
    take(paths, event(tokens_total=100_000_000))
    run(
        "usage",
        "adjust",
        "--credit",
        "1.25",
        "--provider",
        "pay",
        "--reason",
        "allowance",
        "-w",
        "acme",
        "--on",
        "2026-11-15",
    )
    run("usage", "adjust", "--refund", "0.25", "--provider", "pay", "--reason", "sorry", "-w", "acme")
    run("usage", "ingest", "--rebuild")
    query = "SELECT entry_kind, cost, cost_status, reason FROM usage_event WHERE entry_kind <> 'usage' ORDER BY 1"

    assert rows(paths, query) == [
        ("credit", Decimal("-1.25"), "manual", "allowance"),
        ("refund", Decimal("-0.25"), "manual", "sorry"),
    ]
    assert run("usage", "report", "--json").json["totals"]["cost"] == "0.50"
    assert run("usage", "adjust", "--credit", "1", "--refund", "1", "--provider", "p", "--reason", "r").code == 2
    assert run("usage", "adjust", "--credit", "-1", "--provider", "p", "--reason", "r").code == 2


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["adjust", "--credit", "1", "--provider", "opnai", "--reason", "r"], "openai"),
        (["adjust", "--credit", "1", "--provider", "openai", "--reason", "r", "-w", "A B"], "lower-case"),
        (["budget", "set", "--amount", "1", "-w", "../x"], "lower-case"),
        (["budget", "set", "--amount", "1e30"], "decimal places"),
        (["budget", "set", "--amount", "0.0000000000000001"], "decimal places"),
        (["budget", "set", "--amount", "NaN"], "decimal places"),
        (["reconcile", "--provider", "opnai", "--file", "bill.csv"], "openai"),
    ],
)
def test_money_for_nobody_is_refused(run: Run, paths: LedgerPaths, tmp_path: Path, args: list[str], hint: str) -> None:
    """Money is entered only for a provider that is known here, and for a workspace that can be one."""
    (tmp_path / "bill.csv").write_text("day,tokens\n2026-11-15,1\n")
    told = run("usage", *args)

    assert (told.code, told.out) == (2, "")
    assert hint in told.err


def test_the_invoice_is_met(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """Against an export, each day says whether the ledger explains it; a true-up makes the sums equal, once."""
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(
        paths,
        event(tokens_total=1_000_000),
        event(tokens_estimated=500_000, **lost),
        event(occurred_at=NOON.replace(day=16), tokens_total=2_000_000),
    )
    export = tmp_path / "bill.csv"
    export.write_text(
        "date,model,tokens,cost\n2026-11-15,m,1500000,0.03\n2026-11-16,m,2100000,0.042\n2026-12-01,m,5,1\n"
    )
    args = ["usage", "reconcile", "--provider", "pay", "--file", str(export), "--until", "2026-12-01", "--json"]
    seen = run(*args).json
    written = run(*args, "--write-true-up").json
    again = run(*args, "--write-true-up").json
    keys = ("day", "provider_tokens", "confirmed", "unknown", "difference", "explained", "cost_difference")

    assert [tuple(line[key] for key in keys) for line in seen["lines"]] == [
        ("2026-11-15", 1_500_000, 1_000_000, 500_000, 500_000, True, "0.01"),
        ("2026-11-16", 2_100_000, 2_000_000, 0, 100_000, False, "0.002"),
    ]
    assert [up["cost"] for up in written["true_ups"]] == ["0.01", "0.002"]
    assert again["true_ups"] == []
    assert one(paths, "SELECT sum(cost) FROM usage_event") == Decimal("0.072")


@pytest.mark.parametrize(
    ("content", "code"),
    [("model,tokens\nm,1\n", 65), ("day,tokens\n2026-11-15,many\n", 65), ("[1", 65), ("day,cost\nsoon,1\n", 65)],
)
def test_a_bad_export_is_refused(run: Run, paths: LedgerPaths, tmp_path: Path, content: str, code: int) -> None:
    """An export without days, or with values that are none, is named, row by row."""
    (tmp_path / "bill").write_text(content)

    assert run("usage", "reconcile", "--provider", "pay", "--file", str(tmp_path / "bill")).code == code
    assert run("usage", "reconcile", "--provider", "pay", "--file", str(tmp_path / "none")).code == 66


def test_doctor_finds_what_is_wrong(run: Run, paths: LedgerPaths) -> None:
    """`usage doctor` is silent about a good ledger, and exits 70 when an event is in it twice."""
    take(paths, event(occurred_at=datetime.now(UTC)))
    fine = run("usage", "doctor", "--json")
    with duckdb.connect(str(paths.database)) as connection:
        connection.execute(
            "INSERT INTO usage_event SELECT * REPLACE (TIMESTAMPTZ '2090-01-01' AS occurred_at) FROM usage_event"
        )
    told = run("usage", "doctor")

    assert {finding["state"] for finding in fine.json["findings"]} == {"ok"}
    assert told.code == 70
    assert "1 event is in the ledger twice" in told.out
    assert "1 event lies in the future" in told.out


def test_doctor_knows_network_disks(paths: LedgerPaths) -> None:
    """A ledger on a network file system is pointed out: the innermost mount counts, blanks in its name too."""
    take(paths, event())
    home = paths.database.parent
    inner = str(home).replace(" ", "\\040")
    tables = {
        "ok": f"srv:/x / nfs4 rw 0 0\n/dev/sda {inner} ext4 rw 0 0\n",
        "look": f"/dev/sda / ext4 rw 0 0\nsrv:/x {inner} nfs4 rw 0 0\nsrv:/y {inner}2 ext4 rw 0 0\n",
    }
    for state, table in tables.items():
        with database.reader(paths, now=NOON) as connection:
            found = list(integrity.findings(connection, paths, now=NOON, mounts=lambda table=table: table))
        assert [one.state for one in found if one.check == "place"] == [state]


def test_doctor_sees_a_clock_that_jumped(run: Run, paths: LedgerPaths) -> None:
    """An event whose id was minted a day or more from when it happened is pointed out; reports count it by its day."""
    take(paths, event(event_id=uuid7(now_s=NOON.timestamp()), occurred_at=NOON))
    before = run("usage", "doctor", "--json").json["findings"]
    take(paths, event(event_id=uuid7(now_s=NOON.timestamp()), occurred_at=NOON.replace(year=2024)))
    after = run("usage", "doctor", "--json").json["findings"]

    states = [{one["check"]: one["state"] for one in found} for found in (before, after)]
    assert [each["clock jumps"] for each in states] == ["ok", "look"]
    assert run("usage", "daily", "--json").json["groups"][0]["day"] == "2024-11-15"


def test_a_backup_is_the_ledger(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """A backup holds every row, opens as a ledger, and replaces a file only when told to, and never the ledger."""
    month(paths)
    copy = tmp_path / "copy.duckdb"
    told = run("usage", "backup", str(copy))
    wanted = rows(paths, "SELECT * EXCLUDE (occurred_at, recorded_at, rated_at) FROM usage_event ORDER BY event_id")

    assert told.code == 0
    assert (
        rows(
            replace(paths, database=copy),
            "SELECT * EXCLUDE (occurred_at, recorded_at, rated_at) FROM usage_event ORDER BY event_id",
        )
        == wanted
    )
    assert run("usage", "report", "--ledger", str(copy), "--no-ingest", "--json").json["totals"]["calls"] == 5
    assert run("usage", "backup", str(copy)).code == 73
    assert run("usage", "backup", str(copy), "--overwrite").code == 0
    assert run("usage", "backup", str(paths.database), "--overwrite").code == 73


def test_sql_reads(run: Run, paths: LedgerPaths) -> None:
    """`usage sql` answers a query with the ledger's views, money exact, times as text."""
    month(paths)
    told = run(
        "usage", "sql", "SELECT model, sum(cost) AS c, max(day_utc) AS d FROM usage_daily GROUP BY 1 ORDER BY 1", "-j"
    )

    assert told.json == {
        "columns": ["model", "c", "d"],
        "rows": [["embed-x", None, "2026-11-15"], ["m", "0.770222020000000", "2026-11-15"]],
        "cut": False,
    }


def test_sql_headings(run: Run, paths: LedgerPaths) -> None:
    """CSV has the query's headings, also twice the same; those from data harm no terminal; numbers are numbers."""
    month(paths)
    told = run("usage", "sql", "SELECT -1.50::DECIMAL(9,2) AS a, '-x' AS a", "--format", "csv")
    pivot = "PIVOT (SELECT chr(27) || '[2J<b>' AS y, 1 AS x) ON y USING sum(x)"

    assert told.out == "a,a\n-1.50,'-x\n"
    assert [run("usage", "sql", pivot, "--format", form).out.splitlines()[0] for form in ("table", "csv", "md")] == [
        "\\x1b[2J<b>", "\x1b[2J<b>", r"| \\x1b\[2J&lt;b&gt; |"
    ]  # fmt: skip


FORBIDDEN = [
    "SELECT * FROM read_text('/etc/hostname')",
    "FROM read_csv('/etc/passwd')",
    "FROM '/etc/passwd'",
    "FROM glob('/etc/*')",
    "COPY (SELECT 1) TO 'stolen.csv' (FORMAT csv)",
    "EXPORT DATABASE 'stolen.csv'",
    "IMPORT DATABASE 'x'",
    "ATTACH ':memory:' AS m",
    "LOAD 'x.duckdb_extension'",
    "SET TimeZone = 'Europe/Berlin'",
    "RESET lock_configuration",
    "PRAGMA enable_profiling = 'json'",
    "FROM duckdb_secrets()",
    "CREATE TABLE t AS SELECT 1",
    "",
    "COPY usage_event TO 'stolen.csv'",
    "DELETE FROM usage_event",
    "SELECT 1; SELECT 2",
    "SET memory_limit = '99GB'",
    "ATTACH 'x.duckdb'",
    "INSTALL httpfs",
    "SELECT * FROM paths",
    "SELEKT",
]


def test_sql_does_nothing_else(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """Files, other databases, extensions, settings, changes and second statements are refused with exit 2."""
    take(paths, event())
    task = {
        "database": paths.database,
        "spool": paths.spool,
        "price_file": paths.price_file,
        "rows": 9,
        "memory_mb": 99,
    }
    for forbidden in FORBIDDEN:
        assert queries._answer({**task, "sql": forbidden}).get("error") == "usage", forbidden
    for forbidden in FORBIDDEN[:3]:
        told = run("usage", "sql", forbidden)

        assert (told.code, told.out) == (2, ""), forbidden
    assert not (tmp_path / "stolen.csv").exists()
    assert one(paths, "SELECT count(*) FROM usage_event") == 1


ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b"


def test_no_query_outlives_its_time(run: Run, paths: LedgerPaths) -> None:
    """A command killed with -9 leaves no query behind that keeps writers out for longer than its --timeout."""
    take(paths, event())
    command = [sys.executable, "-m", "embedctl", "usage", "sql", ENDLESS, "--timeout", "2"]
    until = time.monotonic() + 120
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as asking:
        children = Path(f"/proc/{asking.pid}/task/{asking.pid}/children")
        while not (asked := children.read_text().split()) and time.monotonic() < until:
            time.sleep(0.02)
        query = Path("/proc", asked[0], "cmdline")
        left_behind = _runs(query)
        asking.kill()
    while _runs(query) and time.monotonic() < until:
        time.sleep(0.05)

    assert left_behind
    assert not _runs(query)


def _runs(command_line: Path) -> bool:
    """Whether the process is there and no zombie, whose command line is empty."""
    try:
        return command_line.read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sql_has_limits(run: Run, paths: LedgerPaths) -> None:
    """A query that takes too long, too much memory or too many rows ends."""
    take(paths, event())
    slow = run("usage", "sql", ENDLESS, "--timeout", "1.5")
    large = run("usage", "sql", "SELECT length(repeat('x', 2000000000))", "--memory", "64")
    spilling = run(
        "usage", "sql", "CREATE TEMP TABLE t AS SELECT md5(range::VARCHAR) FROM range(100000000)", "--memory", "64"
    )
    wide = run("usage", "sql", "SELECT repeat('x', 10000000) FROM range(10000)", "--memory", "64")
    many = run("usage", "sql", "FROM range(10)", "--rows", "3", "--json")

    assert (slow.code, large.code, spilling.code, wide.code) == (75, 74, 74, 74)
    assert "--timeout" in slow.err
    assert all("--memory" in told.err for told in (large, spilling, wide))
    assert [path.name for path in paths.database.parent.glob("usage.duckdb*")] == ["usage.duckdb", "usage.duckdb.lock"]
    assert (len(many.json["rows"]), many.json["cut"]) == (3, True)


def test_a_report_as_parquet(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """`report --format parquet` has the groups of the JSON report, typed and exact; all else is in its metadata."""
    month(paths)
    take(paths, event(tags={"te'am/x": 'a"b'}), event(tokens_total=(1 << 53) + 1))
    args = ["usage", "report", "--by", "day,model,tag:te'am/x", "--until", "2027-01-01"]
    told = run(*args, "--format", "parquet", "-o", "r.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "r.parquet")
    wanted = run(*args, "--json").json
    about = json.loads(table.schema.metadata[b"embedctl"])

    assert (told.code, told.out) == (0, "")
    assert "have no price" in told.err
    assert [{k: str(v) for k, v in row.items()} for row in map(_plain, table.to_pylist())] == [
        {k: str(v) for k, v in row.items()} for row in map(_plain, wanted["groups"])
    ]
    assert [str(table.schema.field(name).type) for name in ("day", "tokens", "cost", "cost_is_lower_bound")] == [
        "date32[day]", "int64", "decimal128(38, 15)", "bool"
    ]  # fmt: skip
    assert about.keys() == wanted.keys() - {"groups"}
    assert _plain(about["totals"]) == _plain(wanted["totals"])
    assert (about["until"], about["warnings"]) == (wanted["until"], wanted["warnings"])
    assert run(*args, "--format", "parquet", "-o", "r.parquet").code == 73
    assert run(*args, "--format", "parquet", "-o", "r.parquet", "--overwrite").code == 0
    assert run(*args, "--format", "parquet", "-o", "none/r.parquet").code == 73


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Money without the zeros behind it."""
    money = ("cost", "cost_list", "adjustments", "cost_at_risk")
    return row | {key: None if row[key] is None else Decimal(row[key]).normalize() for key in money}


def test_a_report_as_focus(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """`report --format focus` writes the charges that the report is made of, with its filters, in its range."""
    month(paths)
    take(paths, event(workspace_id="new"), event(workspace_id="new", model="cached"))
    told = run("usage", "report", "-w", "new", "-m", "m", "--format", "focus", "-o", "f.csv", "--strict")
    focus = list(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))

    assert (told.code, told.out) == (0, "")
    assert {(row["SubAccountId"], row["SkuId"]) for row in focus} == {("new", "pay/m/standard/input_token")}


def test_exports(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """FOCUS has every required column and sums to the cost; Parquet and CloudEvents have every event."""
    month(paths)
    for form, name in (("focus", "f.csv"), ("parquet", "f.parquet"), ("cloudevents", "f.jsonl")):
        assert run("usage", "export", "--format", form, "-o", name).code == 0
    focus = list(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))
    events = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]

    assert set(FOCUS_COLUMNS) <= focus[0].keys()
    assert all(name in FOCUS_COLUMNS or name.startswith("x_") for name in focus[0])
    assert sum(Decimal(row["BilledCost"]) for row in focus) == Decimal("0.77022202")
    assert {row["x_CostStatus"] for row in focus} == {"priced", "unpriced", "at_risk", "not_billable"}
    assert pyarrow.parquet.read_table(tmp_path / "f.parquet").num_rows == len(events) == 5
    assert {"specversion", "id", "source", "type", "time", "data"} <= events[0].keys()
    assert run("usage", "export", "-o", "f.csv").code == 73
    nowhere = run("usage", "export", "-o", "/proc/f.csv")
    assert (nowhere.code, nowhere.err.startswith("error: /proc/f.csv cannot be created")) == (73, True)
    assert run("usage", "export", "-o", "f.csv", "--overwrite", "--priced-only").code == 0


def test_metrics_are_exposition_format(run: Run, paths: LedgerPaths, tmp_path: Path) -> None:
    """The textfile has the promised names, whole, readable, with labels escaped and no time stamps."""
    month(paths)
    take(paths, event(fallback_from="openai:x"))
    folder = tmp_path / "textfile"
    folder.mkdir()
    told = run("usage", "metrics", "--textfile", str(folder))
    text = (folder / "embedctl_usage.prom").read_text()

    assert told.code == 0
    assert 'embedding_provider_failures_total{model="m",provider="pay",reason="Throttled"} 1.0\n' in text
    assert 'embedding_fallbacks_total{from_provider="openai",to_provider="pay"} 1.0\n' in text
    labels = 'model="m",provider="pay",source="native",workspace="acme"'
    assert f"embedctl_usage_tokens_total{{{labels}}} 3.8221101e+07\n" in text
    assert text.endswith("\n")
    assert [path.name for path in folder.iterdir()] == ["embedctl_usage.prom"]
    assert 'workspace="*"' in run("usage", "metrics", "--no-workspaces").out
    assert run("usage", "metrics", "--textfile", str(tmp_path / "none")).code == 73


def test_two_months_side_by_side(run: Run, paths: LedgerPaths) -> None:
    """`usage diff` shows for each model what it cost before, after, and the change; the unknown stays unknown."""
    october = NOON.replace(month=10)
    take(
        paths,
        event(occurred_at=october, tokens_total=2_000_000),
        event(tokens_total=3_000_000),
        event(model="x"),
        event(occurred_at=october, model="agreed", tokens_total=1_000_000),
    )
    told = run("usage", "diff", "--from", "2026-10-01..2026-11-01", "--to", "2026-11-01..2026-12-01", "--json")
    keys = ("model", "tokens_before", "tokens_after", "cost_before", "cost_after", "cost_change")

    assert [tuple(change[key] for key in keys) for change in told.json["changes"]] == [
        ("agreed", 1_000_000, 0, "0.10", "0.00", "-0.10"),
        ("m", 2_000_000, 3_000_000, "0.04", "0.06", "0.02"),
        ("x", 0, 1000, "0.00", None, None),
    ]
    assert told.json["total"]["cost_change"] == "-0.08"
    assert run("usage", "diff", "--from", "soon", "--to", "mtd").code == 2


def test_a_report_imports_only_what_it_uses(paths: LedgerPaths) -> None:
    """`usage report` starts without the libraries of embedding, and without what looks for runs."""
    take(paths, event())
    script = (
        "import sys; from embedctl.cli import app\n"
        "try: app(['usage', 'report', '--json'])\n"
        "except SystemExit: pass\n"
        "print(sorted(sys.modules.keys() & set(sys.argv[1:])), file=sys.stderr)"
    )
    heavy = ["pyarrow", "numpy", "httpx", "onnxruntime", "tiktoken", "tokenizers", "rich", "pandas", "msgspec",
             "pydantic", "embedctl.runs.registry", "embedctl.ledger.ingest"]  # fmt: skip
    bare = {name: value for name, value in os.environ.items() if name != "EMBEDCTL_CANARY"}  # a setting takes msgspec
    told = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=False, env=bare)

    assert told.stderr.strip() == "[]"

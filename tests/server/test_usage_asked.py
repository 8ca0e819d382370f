"""What was spent, asked of a running server: whole, exact, and everybody's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import MODEL, Reply, Serving, serving, until
from tests.support.wire.client import Wire

USAGE = "/api/v1/embeddings/usage"


class Spent(Serving):
    """A server whose ledger has something of everything.

    Attributes:
        key_of: Who → a key.
    """

    key_of: dict[str, str]

    def of(self, who: str, query: str = "", path: str = USAGE) -> Reply:
        return self.ask("GET", path + query, Authorization=f"Bearer {self.key_of[who]}")


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spent]:
    """Two workspaces that bought, hit the cache, and failed; one key has a budget."""
    wire.reset()
    settings = '[workspaces.acme]\nbudget = { period = "month", amount = "2", action = "block" }\n'
    with serving(tmp_path_factory.mktemp("usage"), wire, settings=settings) as found:
        found.__class__ = Spent
        found.key_of = {
            "admin": found.key("--role", "admin", workspace="office"),
            "acme": found.key("--budget", "1/day", "--name", "night"),
            "other": found.key(workspace="other"),
            "metrics": found.key("--role", "metrics", workspace="other"),
        }
        for who, texts in (("acme", ["a", "b"]), ("acme", ["a", "b"]), ("other", ["three small texts", "two", "one"])):
            assert found.embed(texts, key=found.key_of[who], user="somebody").status == 200
        assert found.embed("a", key=found.key_of["acme"], model="text-embedding-3-large").status == 200
        wire.plan(script=[{"fault": "status", "status": 503}])
        assert found.embed("failed first", key=found.key_of["other"]).status == 200
        until(lambda: found.of("admin").json["totals"]["calls"] == 5)
        yield found


def test_it_is_the_report_of_the_command_line(server: Spent, wire: Wire) -> None:
    """As `usage report --json`, of what this process has not handed over yet too, and as the provider's invoice."""
    told = server.of("admin", "?by=workspace,model").json
    report = json.loads(server.run("usage", "report", "--by", "workspace,model", "--json").stdout)
    same = ("schema_version", "timezone", "since", "until", "currency", "prices_as_of", "by", "groups", "totals")

    assert {name: told[name] for name in same} == {name: report[name] for name in same}
    assert told["totals"]["tokens"] == wire.billed()
    assert told["totals"]["calls"] == len(wire.truth())
    assert told.keys() - report.keys() == {"as_of"}
    assert told["as_of"] <= told["generated_at"]


def test_a_call_is_in_it_at_once(server: Spent) -> None:
    """Within the seconds for which an answer is kept, what has just been bought is told, without a restart."""
    before = server.of("other").json["totals"]["tokens"]
    bought = int(server.embed("just bought " * 9, key=server.key_of["other"]).headers["x-embedctl-tokens-billed"])

    until(lambda: server.of("other").json["totals"]["tokens"] == before + bought)


@pytest.mark.parametrize("path", [USAGE, f"{USAGE}/summary"])
def test_everybody_sees_its_own_and_admins_all(server: Spent, path: str) -> None:
    """A tenant's answer is about its workspace alone, whatever it asks; an admin's about all, or the one it names."""
    whose = {who: server.of(who, path=path) for who in ("admin", "acme", "other", "metrics")}
    foreign = server.of("acme", "?workspace=other", path=path)
    named = server.of("admin", "?workspace=acme", path=path)
    calls = {
        who: (reply.json.get("totals") or reply.json["of_month"])["calls"]
        for who, reply in {**whose, "named": named}.items()
    }

    assert (foreign.status, foreign.code) == (403, "workspace_denied")
    assert calls["named"] == calls["acme"] == 2
    assert calls["metrics"] == calls["other"]
    assert calls["admin"] == calls["acme"] + calls["other"]
    for who, other in (("acme", "other"), ("other", "acme"), ("metrics", "acme")):
        assert f'"{other}"' not in whose[who].body.decode()
    assert server.ask("GET", path).code == "missing_key"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?by=secret", "invalid_parameter"),
        ("?by=tag:", "invalid_parameter"),
        ("?since=yesterday-ish", "invalid_parameter"),
        ("?since=2026-02-01&until=2026-01-01", "invalid_parameter"),
        ("?last=7d&since=2026-01-01", "invalid_parameter"),
        ("?timezone=Mars/Olympus", "invalid_parameter"),
        ("?timezone=../../etc/passwd", "invalid_parameter"),
        ("?from=2026-01-01", "unknown_parameter"),
        ("?by=day&by=model", "invalid_parameter"),
        (f"?by={'x' * 300}", "invalid_parameter"),
    ],
)
def test_a_question_that_is_none(server: Spent, query: str, code: str) -> None:
    """Keys, times and zones that are none are the client's fault, and named."""
    found = server.of("acme", query)

    assert (found.status, found.code) == (400, code)


def test_what_is_not_there_is_empty(server: Spent) -> None:
    """A name without usage, and a hostile one, is an empty answer: no SQL, no error, nobody else's."""
    for query in ("?model=nothing", "?job=x'%20OR%20'1'='1", "?provider=%22;DROP%20TABLE%20usage_event;--"):
        found = server.of("acme", query)
        assert (found.status, found.json["totals"]["calls"], found.json["groups"]) == (200, 0, [])
    assert "somebody" in [one["tag:user"] for one in server.of("acme", "?by=tag:user").json["groups"]]
    assert server.of("acme").json["totals"]["calls"] == 2


def test_the_summary_agrees_with_the_reports(server: Spent) -> None:
    """Today and this month are the reports of these times; hits, latency, budgets and circuits stand beside them."""
    found = server.of("acme", "?timezone=Asia/Tokyo", f"{USAGE}/summary").json
    today = server.of("acme", f"?since={found['today']}&timezone=Asia/Tokyo").json
    month = server.of("acme", f"?since={found['month']}-01&timezone=Asia/Tokyo").json
    by_model = server.of("acme", f"?since={found['month']}-01&timezone=Asia/Tokyo&by=provider,model").json["groups"]
    series = found["by_day"]["model"]

    for key in ("of_today", "of_month"):
        expected = {"of_today": today, "of_month": month}[key]["totals"]
        assert {name: found[key][name] for name in expected} == expected
    assert (found["of_today"]["cache_hits"], found["of_today"]["texts_bought"]) == (2, 3)
    assert 0 <= found["of_today"]["latency_ms"]["median"] <= found["of_today"]["latency_ms"]["p95"]
    assert {one["name"]: one["cost"] for one in found["of_month_by"]["model"]["rows"]} == {
        f"{one['provider']}:{one['model']}": one["cost"] for one in by_model
    }
    assert sum(Decimal(one["cost"][-1]) for one in series) == Decimal(today["totals"]["cost"])
    assert len(found["days"]) == len(series[0]["cost"]) == 30
    assert found["by_day"].keys() == {"model"}
    own = server.key_of["acme"].split("_")[1]
    budgets = {(one["workspace"], one["key"]): one for one in found["budgets"]}
    assert budgets.keys() == {("acme", None), ("acme", own)}
    assert {Decimal(one["spent"]) for one in budgets.values()} == {Decimal(month["totals"]["cost"])}
    assert found["circuits"] == [{"provider": "openai", "state": "closed", "failure_count": 1}]
    assert server.of("admin", path=f"{USAGE}/summary").json["by_day"].keys() == {"model", "workspace"}


def test_the_ledger_is_free_between_questions(wire: Wire, tmp_path: Path) -> None:
    """The server holds the file no longer than a question takes; a ledger that another one holds is waited for."""
    with serving(tmp_path / "g", wire) as found:
        found.embed("a")
        assert found.ask("GET", USAGE).status == 200
        done = found.run("usage", "ingest", "--wait", "5")
        assert done.returncode == 0, done.stderr
        found.stop()
        assert found.ledger("SELECT count(*) FROM usage_event") == [(1,)]


def test_a_ledger_that_is_none_is_told_so(wire: Wire, tmp_path: Path) -> None:
    """A file that is no ledger is 503 with a word, not a traceback; requests are served all the same."""
    with serving(tmp_path / "g", wire) as found:
        (found.home / "usage.duckdb").mkdir(parents=True)
        told: Any = found.ask("GET", USAGE)

        assert told.status == 503
        assert told.code == "storage_failed"
        assert str(tmp_path) not in told.body.decode()
        assert found.embed("served").status == 200
        assert MODEL in found.embed("served").body.decode()


def test_nothing_is_missed_while_accounts_are_handed_over(wire: Wire, tmp_path: Path) -> None:
    """Budgets that change again and again begin new stretches of accounts; each answer is whole all the same."""
    wire.reset()
    with serving(tmp_path / "g", wire, constants={"embedctl.server.accounts:_LEDGER_WAIT_S": 60.0}) as found:
        key = found.key("--role", "admin")
        said = {"Authorization": f"Bearer {key}"}
        for number in range(6):
            done = found.run("usage", "budget", "set", "-w", "acme", "--amount", str(100 + number))
            assert done.returncode == 0, done.stderr
            assert found.embed(f"text {number}", key=key).status == 200
            replies = [found.ask("GET", USAGE, **said) for _ in range(5)]
            assert {one.status for one in replies} == {200}
        until(lambda: found.ask("GET", USAGE, **said).json["totals"]["calls"] == 6)
        assert found.ask("GET", USAGE, **said).json["totals"]["tokens"] == wire.billed()

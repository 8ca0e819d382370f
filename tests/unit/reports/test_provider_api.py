"""`usage reconcile` asks the provider itself: OpenAI's usage and costs API, over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.periods import Range
from embedctl.reports.provider_export import fetch_openai
from tests.support.ledger_events import event, one, place, take

KEY = "sk-admin-0123456789abcdef"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
YESTERDAY = TODAY - timedelta(days=1)
SMALL = "text-embedding-3-small"


class OpenAI(ThreadingHTTPServer):
    """One day a page. Costs are written as the JSON numbers they are on the wire."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.days: dict[datetime, tuple[int, str]] = {}
        self.status = 200

    def page(self, kind: str, query: dict[str, list[str]]) -> str:
        days = [day for day in sorted(self.days) if int(query["start_time"][0]) <= day.timestamp()]
        days = [day for day in days if day.timestamp() < int(query["end_time"][0])]
        number = int(query.get("page", ["0"])[0])
        buckets = [self.bucket(kind, day) for day in days[number : number + 1]]
        more = number + 1 < len(days)
        tail = f'"has_more": {json.dumps(more)}, "next_page": {json.dumps(str(number + 1) if more else None)}'
        return f'{{"object": "page", "data": [{", ".join(buckets)}], {tail}}}'

    def bucket(self, kind: str, day: datetime) -> str:
        tokens, cost = self.days[day]
        usage = {"input_tokens": tokens, "num_model_requests": 1, "model": f"{SMALL}-v1", "project_id": "proj_1"}
        money = (
            f'{{"amount": {{"value": {cost}, "currency": "usd"}}, "line_item": "{SMALL}-v1, input", '
            '"project_id": "proj_1", "quantity": 1, "quantity_unit": "1000_tokens"}'
        )
        result = json.dumps(usage) if kind == "usage" else money
        return f'{{"start_time": {int(day.timestamp())}, "results": [{result}]}}'


class Handler(BaseHTTPRequestHandler):
    server: OpenAI

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        kind = {"/v1/organization/usage/embeddings": "usage", "/v1/organization/costs": "costs"}[parts.path]
        self.server.asked.append(kind)
        assert query["bucket_width"] == ["1d"]
        assert query["group_by"] == [{"usage": "model", "costs": "line_item"}[kind], "project_id"]
        known = self.headers["authorization"] == f"Bearer {KEY}"
        status = self.server.status if known else 401
        text = self.server.page(kind, query) if status == 200 else '{"error": {"message": "no", "code": "invalid"}}'
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def openai() -> Iterator[OpenAI]:
    with OpenAI() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def paths(clean_environment: Path, openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """A ledger of two days with OpenAI: the second holds a lost call."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{openai.server_port}/v1")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    found = place(clean_environment)
    mine: dict[str, Any] = {
        "provider": "openai", "price_as": "openai", "model": SMALL, "response_model": f"{SMALL}-v1",
        "provider_account": "fingerprint"}  # fmt: skip
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(
        found,
        event(**mine, occurred_at=YESTERDAY, tokens_total=1_000_000),
        event(**mine, occurred_at=TODAY, tokens_total=2_000_000),
        event(**mine, occurred_at=TODAY, tokens_estimated=500_000, **lost),
    )
    openai.days = {YESTERDAY: (1_000_000, "0.02"), TODAY: (2_500_000, "0.0500000000000001")}
    return found


@pytest.fixture
def reconcile(paths: LedgerPaths) -> Callable[..., Any]:
    """Runs `embedctl usage reconcile --provider openai ARGS…`."""

    def command(*args: str) -> Any:
        return CliRunner().invoke(app, ["usage", "reconcile", "--provider", "openai", "--json", *args])

    return command


def test_the_provider_is_asked(reconcile: Callable[..., Any], openai: OpenAI) -> None:
    """Every page of usage and costs is read; each day says what was billed, confirmed and unknown."""
    told = reconcile("--last", "7d")
    lines = json.loads(told.stdout)["lines"]
    keys = ("day", "model", "provider_tokens", "confirmed", "unknown", "explained", "provider_cost")

    assert told.exit_code == 0
    assert openai.asked == ["usage", "usage", "costs", "costs"]
    assert [tuple(line[key] for key in keys) for line in lines] == [
        (f"{YESTERDAY:%Y-%m-%d}", f"{SMALL}-v1", 1_000_000, 1_000_000, 0, True, "0.02"),
        (f"{TODAY:%Y-%m-%d}", f"{SMALL}-v1", 2_500_000, 2_000_000, 500_000, True, "0.0500000000000001"),
    ]


def test_a_true_up_makes_ledger_and_invoice_equal(
    reconcile: Callable[..., Any], openai: OpenAI, paths: LedgerPaths
) -> None:
    """What the money differs by is entered once, exact to the ledger's last digit."""
    openai.days[TODAY] = (2_500_000, "0.0500000000000014")
    bill = Decimal("0.070000000000001") - Decimal(str(one(paths, "SELECT sum(cost) FROM usage_event") or 0))
    first = json.loads(reconcile("--write-true-up").stdout)["true_ups"]
    again = json.loads(reconcile("--write-true-up").stdout)["true_ups"]

    assert sum(Decimal(up["cost"]) for up in first) == bill
    assert one(paths, "SELECT sum(cost) FROM usage_event") == Decimal("0.070000000000001")
    assert again == []


@pytest.mark.parametrize(("status", "code"), [(401, 77), (429, 75), (500, 75), (404, 78)])
def test_a_refusal_has_its_exit_code(reconcile: Callable[..., Any], openai: OpenAI, status: int, code: int) -> None:
    """A rejected key, a throttle, a sick or a wrong server end with the code of their class; the key is never shown."""
    openai.status = status
    told = reconcile()

    assert told.exit_code == code
    assert KEY not in told.output


def test_without_an_admin_key(reconcile: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary key is never sent instead: the message names the variable, and --file as the other way."""
    monkeypatch.delenv("OPENAI_ADMIN_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ordinary-0123456789")
    told = reconcile()

    assert told.exit_code == 78
    assert "OPENAI_ADMIN_KEY" in json.loads(told.stdout)["message"]
    assert "--file" in json.loads(told.stdout)["hint"]
    assert CliRunner().invoke(app, ["usage", "reconcile", "--provider", "voyage"]).exit_code == 2


@pytest.mark.parametrize(
    "item",
    [f"{SMALL}, input", f"{SMALL}, batch input", f"Batch: {SMALL}, input", f"{SMALL} (batch), input", f"{SMALL}-batch"],
)
def test_what_was_bought_in_batches_is_the_same_model(item: str) -> None:
    """A line of the costs that tells batches from the rest counts for the model that they were of."""
    result = {"amount": {"value": 1, "currency": "usd"}, "line_item": item, "project_id": "proj_1"}
    page = {"data": [{"start_time": 1_700_000_000, "results": [result]}], "has_more": False}

    def fetch(path: str, query: Sequence[tuple[str, str]]) -> bytes:
        return json.dumps(page if path.endswith("costs") else {"data": [], "has_more": False}).encode()

    (billed,) = fetch_openai(fetch, Range(datetime(2023, 11, 1, tzinfo=UTC), datetime(2023, 12, 1, tzinfo=UTC)))

    assert billed.model == SMALL

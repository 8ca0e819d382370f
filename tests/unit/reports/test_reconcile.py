"""The ledger beside the provider's account: OpenAI's usage and costs API, read through an injected fetch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from embedctl.errors import AnswerUnusable, InputInvalid
from embedctl.ledger import database
from embedctl.ledger.periods import Range
from embedctl.reports import provider_export, reconcile
from tests.support.ledger_events import NOON, NOW, event, place, take

NOVEMBER = Range(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))


def start(day: int) -> int:
    """A UTC day of November 2026 as OpenAI names it."""
    return int(datetime(2026, 11, day, tzinfo=UTC).timestamp())


PAGES = {
    ("organization/usage/embeddings", None): {
        "data": [
            {
                "start_time": start(15),
                "results": [
                    {"input_tokens": 1_500_000, "num_model_requests": 2, "model": "ada-002-v2", "project_id": "proj"}
                ],
            }
        ],
        "has_more": True,
        "next_page": "two",
    },
    ("organization/usage/embeddings", "two"): {
        "data": [
            {
                "start_time": start(16),
                "results": [{"input_tokens": 7, "num_model_requests": 1, "model": "stranger", "project_id": "proj"}],
            }
        ],
        "has_more": False,
        "next_page": None,
    },
    ("organization/costs", None): {
        "data": [
            {
                "start_time": start(15),
                "results": [
                    {
                        "amount": {"value": 0.1, "currency": "usd"},
                        "line_item": "text-embedding-ada-002-v2, input",
                        "project_id": "proj",
                        "quantity": 1.5,
                    },
                    {"amount": {"value": 9, "currency": "usd"}, "line_item": "gpt-9", "project_id": "proj"},
                ],
            }
        ],
        "has_more": False,
    },
}


def fetch(path: str, pairs: Sequence[tuple[str, str]]) -> bytes:
    """Answers as OpenAI would."""
    query = dict(pairs)
    assert (query["start_time"], query["end_time"], query["bucket_width"]) == (str(start(1)), "1796083200", "1d")
    return json.dumps(PAGES[path, query.get("page")]).encode()


def test_openais_pages_become_days() -> None:
    """All pages are read, money is exact, and only embeddings count."""
    found = provider_export.fetch_openai(fetch, NOVEMBER)

    assert [(row.day.day, row.model, row.tokens, row.requests, row.cost) for row in found] == [
        (15, "ada-002-v2", 1_500_000, 2, None),
        (16, "stranger", 7, 1, None),
        (15, "text-embedding-ada-002-v2", None, None, Decimal("0.1")),
    ]


def test_the_answers_model_name_is_found(tmp_path: Path) -> None:
    """A provider that bills by the name it answered with meets the event that asked for another; strangers show."""
    paths = place(tmp_path)
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    mine = {"provider": "openai", "model": "ada-002", "provider_account": "proj"}
    take(
        paths,
        event(**mine, response_model="ada-002-v2", tokens_total=1_000_000),
        event(**mine, response_model="ada-002-v2", tokens_estimated=600_000, **lost),
        event(**mine, response_model="ada-002-v2", occurred_at=NOON.replace(day=17), tokens_total=5),
    )
    with database.reader(paths, now=NOW) as connection:
        lines = reconcile.compare(connection, "openai", provider_export.fetch_openai(fetch, NOVEMBER)[:2], NOVEMBER)
    found = [
        (line.day, line.model, line.provider_tokens, line.confirmed, line.unknown, line.explained) for line in lines
    ]

    assert found == [
        (date(2026, 11, 15), "ada-002-v2", 1_500_000, 1_000_000, 600_000, True),
        (date(2026, 11, 16), "stranger", 7, 0, 0, False),
        (date(2026, 11, 17), "ada-002-v2", None, 5, 0, None),
    ]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [{"results": [{}]}]}'])
def test_another_answer_is_refused(body: bytes) -> None:
    """An answer that is not the API's is a provider error, not a traceback."""
    with pytest.raises(AnswerUnusable):
        provider_export.fetch_openai(lambda _path, _query: body, NOVEMBER)


DEEP = b"[" * 200_000 + b"]" * 200_000
ROW = b'{"data":[{"start_time":1795000000,"results":[{"input_tokens":%s,"model":%s,"project_id":%s}]}]}'


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b'{"data":' + DEEP + b"}",
        ROW % (DEEP, b'"m"', b'"p"'),
        ROW % (b"1" + b"0" * 30, b'"m"', b'"p"'),
        ROW % (b"1" + b"0" * 5000, b'"m"', b'"p"'),
        ROW % (b"1e99999999", b'"m"', b'"p"'),
        ROW % (b"[1]", b'"m"', b'"p"'),
        ROW % (b"1.5", b'"m"', b'"p"'),
        b'{"data":[{"start_time":1e99,"results":[{}]}]}',
        b'{"data":[{"start_time":99999999999999999999,"results":[{}]}]}',
        b'{"data":[{"start_time":[],"results":[{}]}]}',
        b'{"data":[7]}',
        b'{"data":7}',
        b'{"data":[],"has_more":true,"next_page":"' + b"x" * 100_000 + b'"}',
    ],
    ids=range(14),
)
def test_a_hostile_account_is_refused(body: bytes) -> None:
    """An account nested without end, with numbers beyond any column or days beyond any calendar, is refused by name."""
    with pytest.raises(AnswerUnusable) as caught:
        provider_export.fetch_openai(lambda _path, _query: body, NOVEMBER)

    assert len(caught.value.message) < 400


def test_names_in_an_account_are_cut() -> None:
    """A model or project with a name of megabytes, or of another kind, is kept as 200 characters at most."""
    body = ROW % (b"7", b'"\\u202e' + b"m" * 1_000_000 + b'"', b"[[1],2]")

    (row, *_) = provider_export.fetch_openai(lambda _path, _query: body, NOVEMBER)

    assert (len(row.model or ""), row.account, row.tokens) == (200, "[[1],2]", 7)


@pytest.mark.parametrize("amount", ["1e13", "-1e13", "1e99999999", "NaN", "x"])
def test_an_amount_that_no_column_holds(tmp_path: Path, amount: str) -> None:
    """An export with an amount beyond the ledger's column is refused; credits and long tails are taken."""
    export = tmp_path / "export.csv"
    export.write_text(f"day,cost\n2026-11-15,{amount}\n")
    with pytest.raises(InputInvalid, match="row 1"):
        provider_export.read_export(export)

    export.write_text("day,cost\n2026-11-15,-3.20000000000000030000001\n")
    assert provider_export.read_export(export)[0].cost == Decimal("-3.20000000000000030000001")


@pytest.mark.parametrize(
    "content", [DEEP, b'{"data":[7]}', b"[7]", b'[["a"]]', b"day\n" + b"x" * 200_000, b"day\n\x00"]
)
def test_an_export_of_another_shape(tmp_path: Path, content: bytes) -> None:
    """A file that is no export, whatever it is instead, is refused by its name."""
    (tmp_path / "export").write_bytes(content)

    with pytest.raises(InputInvalid, match="export"):
        provider_export.read_export(tmp_path / "export")


def test_pages_without_end() -> None:
    """Pages that go on and on, each with another mark, are given up."""
    numbers = iter(range(10_000))

    def fetch_more(_path: str, _query: Sequence[tuple[str, str]]) -> bytes:
        return json.dumps({"data": [], "has_more": True, "next_page": str(next(numbers))}).encode()

    with pytest.raises(AnswerUnusable, match="no end"):
        provider_export.fetch_openai(fetch_more, NOVEMBER)


def test_an_endless_book_ends() -> None:
    """Pages that never end are given up on a page that repeats itself."""
    page = json.dumps({"data": [], "has_more": True, "next_page": "again"}).encode()
    with pytest.raises(AnswerUnusable):
        provider_export.fetch_openai(lambda _path, _query: page, NOVEMBER)

"""The ledger beside the provider's account: OpenAI's usage and costs API, read through an injected fetch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from embedctl.errors import AnswerUnusable
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


def test_an_endless_book_ends() -> None:
    """Pages that never end are given up on a page that repeats itself."""
    page = json.dumps({"data": [], "has_more": True, "next_page": "again"}).encode()
    with pytest.raises(AnswerUnusable):
        provider_export.fetch_openai(lambda _path, _query: page, NOVEMBER)

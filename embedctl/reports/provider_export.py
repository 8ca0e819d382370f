"""What a provider says it billed: from an export of any provider, or from OpenAI's usage and costs API."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from embedctl.errors import AnswerUnusable, InputInvalid
from embedctl.ledger.periods import Range
from embedctl.ledger.prices import price_entries
from embedctl.settings.tables import is_amount
from embedctl.storage import given_files
from embedctl.storage.given_files import shortened

_MOST, _MOST_USD = Decimal(10) ** 15, Decimal(10) ** 12

Fetch = Callable[[str, Sequence[tuple[str, str]]], bytes]
"""GET of a path below the provider's base URL with a query; the body of a 200, else an error of our tree."""

_NAMES = {
    "day": ("day", "date", "bucket_start", "start_time", "usage_date", "timestamp"),
    "model": ("model", "model_id", "snapshot_id"),
    "account": ("account", "provider_account", "project_id", "project"),
    "tokens": ("tokens", "input_tokens", "n_context_tokens_total", "total_tokens", "quantity"),
    "requests": ("requests", "num_model_requests", "n_requests", "calls"),
    "cost": ("cost", "cost_usd", "amount", "amount_value", "spend"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """What the provider says of one UTC day; None is what it does not say. Model or account None: of all."""

    day: date
    model: str | None = None
    account: str | None = None
    tokens: int | None = None
    requests: int | None = None
    cost: Decimal | None = None


def read_export(path: Path) -> list[Billed]:
    """A provider's export: CSV with a header, a JSON list, or the pages of OpenAI's usage and costs API.

    Raises:
        InputMissing: No such file.
        InputInvalid: No day column, or a value that is none.
    """
    text = given_files.read_text(path)
    if text.lstrip().startswith(("[", "{")):
        content = given_files.parse_json(text, str(path))
        try:
            found = list(buckets(content)) if isinstance(content, dict) else [{**row} for row in content]
        except _WRONG_SHAPE:
            raise InputInvalid(f"{path}: not the pages of a usage API, and no list of rows") from None
    else:
        try:
            found = [dict(row) for row in csv.DictReader(io.StringIO(text))]
        except csv.Error as error:
            raise InputInvalid(f"{path} is no CSV: {error}") from None
    return [_billed(row, f"{path}, row {index}") for index, row in enumerate(found, 1)]


_WRONG_SHAPE = (AttributeError, KeyError, TypeError)
"""What reading raises where a list, a table or a key is not what it should be."""


def buckets(page: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Flat rows of one page `{data: [{start_time, results: [...]}]}`.

    Source: OpenAI openapi.yaml, /organization/usage/embeddings and /organization/costs (facts/accounting.md 1.11).
    """
    for bucket in page.get("data", ()):
        for row in bucket.get("results", ()):
            amount = row.get("amount")
            flat = {key: value for key, value in row.items() if not isinstance(value, dict)}
            if isinstance(amount, dict):
                flat["cost"] = amount.get("value")
                flat.pop("quantity", None)  # in whatever unit
            yield flat | {"day": bucket["start_time"]}


def fetch_openai(fetch: Fetch, within: Range) -> list[Billed]:
    """Tokens and money per day, model and project from OpenAI's organization API (an admin key's).

    Raises:
        AnswerUnusable: A page is not what the API's description says.
    """
    assert within.since is not None and within.until is not None  # noqa: S101, PT018
    span = [("start_time", str(int(within.since.timestamp()))), ("end_time", str(int(within.until.timestamp())))]
    by_model = [*span, ("group_by", "model"), ("group_by", "project_id"), ("limit", "31")]
    by_item = [*span, ("group_by", "line_item"), ("group_by", "project_id"), ("limit", "180")]
    usage = [*_pages(fetch, "organization/usage/embeddings", by_model)]
    costs = _pages(fetch, "organization/costs", by_item)
    try:
        found = [_billed(row, "usage") for row in usage]
        for row in costs:
            item = str(row.get("line_item") or "")
            if "embedding" in item:
                found.append(_billed({**row, "model": item.partition(",")[0].strip()}, "costs"))
    except InputInvalid as wrong:
        raise AnswerUnusable(f"organization API: {wrong.message}") from None
    return found


def whole_days(within: Range, now: datetime) -> Range:
    """`within` widened to whole UTC days, with both ends; the last 30 days where it has no beginning."""
    midnight = {"hour": 0, "minute": 0, "second": 0, "microsecond": 0}
    until = min(within.until or now, now)
    since = within.since or until - timedelta(days=30)
    after = until.replace(**midnight)  # type: ignore[arg-type]
    return Range(since.replace(**midnight), after if after == until else after + timedelta(days=1))  # type: ignore[arg-type]


def _pages(fetch: Fetch, path: str, query: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    page: str | None = None
    seen: set[str] = set()
    while True:
        body = fetch(path, [*query, ("bucket_width", "1d"), *([("page", page)] if page else [])])
        try:
            content = given_files.parse_json(body, path)
            rows = list(buckets(content))
        except InputInvalid as wrong:
            raise AnswerUnusable(wrong.message) from None
        except _WRONG_SHAPE as error:
            raise AnswerUnusable(
                f"{path}: not the answer its description promises ({type(error).__name__}: {shortened(error)})"
            ) from None
        yield from rows
        page = content.get("next_page")
        if not content.get("has_more") or not isinstance(page, str) or not page:
            return
        if page in seen:
            raise AnswerUnusable(f"{path}: page {shortened(page)} follows on itself")
        seen.add(page)


def _billed(row: Mapping[str, Any], where: str) -> Billed:
    values = {str(key).strip().lower(): value for key, value in row.items() if value not in (None, "")}

    def first(name: str) -> Any:
        return next((values[key] for key in _NAMES[name] if key in values), None)

    day = first("day")
    if day is None:
        raise InputInvalid(f"{where} has no day", hint=f"a column named {', '.join(_NAMES['day'])}")
    try:
        cost = first("cost")
        return Billed(
            day=_day(day),
            model=_name(first("model")),
            account=_name(first("account")),
            tokens=_whole(first("tokens")),
            requests=_whole(first("requests")),
            cost=None if cost is None else _money(cost),
        )
    except (ArithmeticError, OSError, ValueError) as error:
        raise InputInvalid(
            f"{where}: {str(error) or type(error).__name__}", hint="days are dates or unix seconds in UTC"
        ) from None


def _day(value: Any) -> date:
    if isinstance(value, int) or (isinstance(value, str) and value.isdigit() and len(value) > 8):
        return datetime.fromtimestamp(int(value), UTC).date()
    return price_entries.moment(str(value)).date()


def _whole(value: Any) -> int | None:
    if value is None:
        return None
    number = Decimal(str(value).replace(",", ""))
    if not (number.is_finite() and abs(number) <= _MOST and number == number.to_integral_value()):
        raise ValueError(f"{shortened(value)} is no count")
    return int(number)


def _money(value: Any) -> Decimal:
    number = Decimal(str(value).replace("$", "").replace(",", ""))
    if not (is_amount(number) and abs(number) <= _MOST_USD):
        raise ValueError(f"{shortened(value)} is no amount")
    return number


def _name(value: Any) -> str | None:
    """A model or account as text."""
    if value is None:
        return None
    name = str(value) if isinstance(value, int) else value
    if not given_files.is_word(name):
        raise ValueError(f"{shortened(value)} is no name")
    return str(name)

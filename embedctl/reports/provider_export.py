"""What a provider says it billed: from an export of any provider, or from OpenAI's usage and costs API."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from embedctl.errors import AnswerUnusable, InputInvalid, InputMissing
from embedctl.ledger.periods import Range
from embedctl.ledger.prices import price_entries

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
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise InputMissing(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputInvalid(f"{path} cannot be read as text: {error}") from None
    if text.lstrip().startswith(("[", "{")):
        try:
            content = json.loads(text, parse_float=Decimal)
        except json.JSONDecodeError as error:
            raise InputInvalid(f"{path} is no JSON: {error}") from None
        found = list(buckets(content)) if isinstance(content, dict) else [dict(row) for row in content]
    else:
        found = [dict(row) for row in csv.DictReader(io.StringIO(text))]
    return [_billed(row, f"{path}, row {index}") for index, row in enumerate(found, 1)]


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
    found = [_billed(row, "usage") for row in usage]
    for row in costs:
        item = str(row.get("line_item") or "")
        if "embedding" in item:
            found.append(_billed({**row, "model": item.partition(",")[0].strip()}, "costs"))
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
            content = json.loads(body, parse_float=Decimal)
            yield from buckets(content)
        except (ValueError, KeyError, AttributeError) as error:
            raise AnswerUnusable(f"{path}: not the answer its description promises ({error})") from None
        page = content.get("next_page")
        if not content.get("has_more") or not page:
            return
        if page in seen:
            raise AnswerUnusable(f"{path}: page {page!r} follows on itself")
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
            model=first("model"),
            account=first("account"),
            tokens=_whole(first("tokens")),
            requests=_whole(first("requests")),
            cost=None if cost is None else Decimal(str(cost).replace("$", "").replace(",", "")),
        )
    except (ValueError, InvalidOperation, OverflowError) as error:
        raise InputInvalid(f"{where}: {error}", hint="days are dates or unix seconds in UTC") from None


def _day(value: Any) -> date:
    if isinstance(value, int) or (isinstance(value, str) and value.isdigit() and len(value) > 8):
        return datetime.fromtimestamp(int(value), UTC).date()
    return price_entries.moment(str(value)).date()


def _whole(value: Any) -> int | None:
    if value is None:
        return None
    number = Decimal(str(value).replace(",", ""))
    if number != number.to_integral_value():
        raise ValueError(f"{value!r} is no count")
    return int(number)

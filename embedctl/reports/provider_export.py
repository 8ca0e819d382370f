"""What a provider says it billed: from an export of any provider, or from OpenAI's usage and costs API."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import AnswerUnusable, InputInvalid
from embedctl.ledger.periods import Range
from embedctl.ledger.prices import price_entries
from embedctl.providers import _foreign
from embedctl.storage import given_files

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


_NOT_AS_DESCRIBED = (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error)
"""What reading JSON or CSV of another shape ends with, or of no shape that has an end."""

_BATCH = re.compile(r"^batch[\s:,-]+|[\s(-]+batch\b\)?", re.IGNORECASE)
"""What was bought in batches is an item of its own in a provider's costs, and the same model in its usage."""

_MOST_PAGES = 1000
_PAGE_CHARACTERS = 1000  # of the mark of a page
_MOST_COUNT = 2**53
_MOST_DECIMALS = 60  # of an amount: a sum of floats has up to 55; millions of zeros are nobody's money


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
    try:
        if text.lstrip().startswith(("[", "{")):
            content = given_files.parse_json(text, str(path))
            found = list(buckets(content)) if isinstance(content, dict) else [dict(row) for row in content]
        else:
            found = [dict(row) for row in csv.DictReader(io.StringIO(text))]
    except _NOT_AS_DESCRIBED as error:
        raise InputInvalid(f"{path} is no export: {_foreign.line(str(error))}") from None
    return [_billed(row, f"{path}, row {index}", name=_whole_name) for index, row in enumerate(found, 1)]


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
        found = [_billed(row, "usage", name=_cut_name) for row in usage]
        for row in costs:
            item = _foreign.shown(row.get("line_item") or "")
            if "embedding" in item:
                named = {**row, "model": _BATCH.sub("", item).partition(",")[0].strip()}
                found.append(_billed(named, "costs", name=_cut_name))
    except InputInvalid as error:
        raise AnswerUnusable(error.message) from None
    return found


def whole_days(within: Range, now: datetime) -> Range:
    """`within` widened to whole UTC days, with both ends; the last 30 days where it has no beginning."""
    midnight = {"hour": 0, "minute": 0, "second": 0, "microsecond": 0}
    until = min(within.until or now, now)
    since = within.since or until - timedelta(days=30)
    after = until.replace(**midnight)  # type: ignore[arg-type]
    return Range(since.replace(**midnight), after if after == until else after + timedelta(days=1))  # type: ignore[arg-type]


def _pages(fetch: Fetch, path: str, query: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    page = ""
    seen: set[str] = set()
    while True:
        body = fetch(path, [*query, ("bucket_width", "1d"), *([("page", page)] if page else [])])
        try:
            content = json.loads(body, parse_float=Decimal)
            yield from buckets(content)
            page = _foreign.shown(content.get("next_page") or "")
        except _NOT_AS_DESCRIBED as error:
            words = _foreign.line(str(error))
            raise AnswerUnusable(f"{path}: not the answer its description promises ({words})") from None
        if not content.get("has_more") or not page:
            return
        if page in seen or len(page) > _PAGE_CHARACTERS or len(seen) == _MOST_PAGES:
            raise AnswerUnusable(f"{path}: page {_foreign.line(page)!r} follows on itself, or there is no end of pages")
        seen.add(page)


def _billed(row: Mapping[str, Any], where: str, *, name: Callable[[Any], str]) -> Billed:
    values = {str(key).strip().lower(): value for key, value in row.items() if value not in (None, "")}

    def first(name: str) -> Any:
        return next((values[key] for key in _NAMES[name] if key in values), None)

    day = first("day")
    if day is None:
        raise InputInvalid(f"{where} has no day", hint=f"a column named {', '.join(_NAMES['day'])}")
    try:
        return Billed(
            day=_day(day),
            model=None if first("model") is None else name(first("model")),
            account=None if first("account") is None else name(first("account")),
            tokens=_whole(first("tokens")),
            requests=_whole(first("requests")),
            cost=_amount(first("cost")),
        )
    except (ValueError, ArithmeticError, OSError) as error:
        words = _foreign.line(str(error))
        raise InputInvalid(f"{where}: {words}", hint="days are dates or unix seconds in UTC") from None


def _day(value: Any) -> date:
    if isinstance(value, int) or (isinstance(value, str) and value.isdigit() and len(value) > 8):
        return datetime.fromtimestamp(int(value), UTC).date()
    return price_entries.moment(_foreign.shown(value)[:_PAGE_CHARACTERS]).date()


def _whole_name(value: Any) -> str:
    """A model or an account of a file, refused where it is none: its owner can mend the file."""
    name = str(value) if isinstance(value, str | int) else ""
    if not given_files.is_word(name):
        raise ValueError(f"{_foreign.shown(value)!r} is no name")
    return name


def _cut_name(value: Any) -> str:
    """A model or an account of an answer, which nobody here can mend: one odd name does not hold up the others."""
    return _foreign.line(_foreign.shown(value))


def _whole(value: Any) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if abs(number) >= _MOST_COUNT or number != int(number):
        raise ValueError(f"{_foreign.shown(value)!r} is no count")
    return int(number)


def _amount(value: Any) -> Decimal | None:
    """USD as exact as it is said; a credit is negative."""
    if value is None:
        return None
    amount = _number(value)
    if abs(amount) >= _foreign.MOST_USD or -amount.as_tuple().exponent > _MOST_DECIMALS:  # type: ignore[operator]
        raise ValueError(f"{_foreign.shown(value)!r} is no amount")
    return amount


def _number(value: Any) -> Decimal:
    if not isinstance(value, str | int | Decimal):
        raise ValueError(f"{_foreign.shown(value)!r} is no number")  # noqa: TRY004 - of what a file says
    return Decimal(str(value).replace("$", "").replace(",", ""))

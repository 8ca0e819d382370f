"""The ledger beside the provider's own account: per UTC day, model and account."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import duckdb

from embedctl.errors import AnswerUnusable, InputInvalid, InputMissing
from embedctl.ledger import entries, prices
from embedctl.ledger.periods import Range
from embedctl.ledger.rating import microseconds
from embedctl.records import UsageEvent

Fetch = Callable[[str, Mapping[str, str]], bytes]
"""GET of a path below the provider's base URL with a query; the body of a 200, else an error of our tree."""

_NAMES = {
    "day": ("day", "date", "bucket_start", "start_time", "usage_date", "timestamp"),
    "model": ("model", "model_id", "snapshot_id"),
    "account": ("account", "provider_account", "project_id", "project"),
    "tokens": ("tokens", "input_tokens", "n_context_tokens_total", "total_tokens", "quantity"),
    "requests": ("requests", "num_model_requests", "n_requests", "calls"),
    "cost": ("cost", "cost_usd", "amount", "amount_value", "spend"),
}
_NAMESPACE = uuid.UUID("5a7b2a0e-8f6d-5a43-9a55-6a9a4c1c1c02")


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """What the provider says of one UTC day; None is what it does not say. Model or account None: of all."""

    day: date
    model: str | None = None
    account: str | None = None
    tokens: int | None = None
    requests: int | None = None
    cost: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One line of a reconciliation.

    Attributes:
        unknown: Tokens that were perhaps billed. Explained while confirmed <= provider <= confirmed + unknown.
        explained: None when the provider gave no tokens.
    """

    day: date
    model: str | None
    account: str | None
    provider_tokens: int | None
    confirmed: int
    unknown: int
    provider_requests: int | None
    requests: int
    provider_cost: Decimal | None
    ledger_cost: Decimal | None

    @property
    def difference(self) -> int | None:
        """Tokens of the provider beyond the confirmed ones."""
        return None if self.provider_tokens is None else self.provider_tokens - self.confirmed

    @property
    def cost_difference(self) -> Decimal | None:
        """USD of the provider beyond the ledger's."""
        if self.provider_cost is None:
            return None
        return self.provider_cost - (self.ledger_cost or Decimal(0))

    @property
    def explained(self) -> bool | None:
        """Whether the ledger accounts for what the provider billed."""
        if self.provider_tokens is None:
            return None
        return self.confirmed <= self.provider_tokens <= self.confirmed + self.unknown

    def as_dict(self) -> dict[str, Any]:
        """All fields and what follows from them."""
        return asdict(self) | {
            "day": self.day.isoformat(),
            "difference": self.difference,
            "cost_difference": self.cost_difference,
            "explained": self.explained,
        }


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
    span = {"start_time": str(int(within.since.timestamp())), "end_time": str(int(within.until.timestamp()))}
    usage = [
        *_pages(fetch, "organization/usage/embeddings", span | {"group_by": "model,project_id", "limit": "31"}),
    ]
    costs = _pages(fetch, "organization/costs", span | {"group_by": "line_item,project_id", "limit": "180"})
    found = [_billed(row, "usage") for row in usage]
    for row in costs:
        item = str(row.get("line_item") or "")
        if "embedding" in item:
            found.append(_billed({**row, "model": item.partition(",")[0].strip()}, "costs"))
    return found


def _pages(fetch: Fetch, path: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    page: str | None = None
    seen: set[str] = set()
    while True:
        body = fetch(path, {**query, "bucket_width": "1d", **({"page": page} if page else {})})
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
    return prices.moment(str(value)).date()


def _whole(value: Any) -> int | None:
    if value is None:
        return None
    number = Decimal(str(value).replace(",", ""))
    if number != number.to_integral_value():
        raise ValueError(f"{value!r} is no count")
    return int(number)


def compare(
    connection: duckdb.DuckDBPyConnection, provider: str, billed: Iterable[Billed], within: Range
) -> Sequence[Compared]:
    """The provider's days beside the ledger's, in UTC, so that no border moves."""
    ledger = _ledger(connection, provider, within)
    names = {alias: key[1] for key in ledger for alias in (key[1], ledger[key]["asked"]) if alias}
    grouped: dict[tuple[date, str | None, str | None], list[Billed]] = {}
    for row in billed:
        start = datetime.combine(row.day, time(), UTC)
        outside = (within.since and start < within.since.replace(hour=0, minute=0, second=0, microsecond=0)) or (
            within.until and start >= within.until
        )
        if not outside:
            model = names.get(row.model or "", row.model)
            grouped.setdefault((row.day, model, row.account), []).append(row)
    lines = []
    seen: set[tuple[date, str, str | None]] = set()
    for (day, model, account), rows in grouped.items():
        own = [
            key
            for key in ledger
            if key[0] == day and model in (None, key[1]) and account in (None, key[2]) and key not in seen
        ]
        seen.update(own)
        lines.append(_line(day, model, account, rows, [ledger[key] for key in own]))
    for key in ledger.keys() - seen:
        lines.append(_line(key[0], key[1], key[2], [], [ledger[key]]))
    return sorted(lines, key=lambda line: (line.day, line.model or "", line.account or ""))


def _line(
    day: date, model: str | None, account: str | None, rows: Sequence[Billed], own: Sequence[Mapping[str, Any]]
) -> Compared:
    def total(name: str) -> Any:
        known = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        return sum(known) if known else None

    costs = [key["cost"] for key in own if key["cost"] is not None]
    return Compared(
        day=day,
        model=model,
        account=account,
        provider_tokens=total("tokens"),
        confirmed=sum(key["confirmed"] for key in own),
        unknown=sum(key["unknown"] for key in own),
        provider_requests=total("requests"),
        requests=sum(key["requests"] for key in own),
        provider_cost=total("cost"),
        ledger_cost=sum(costs, Decimal(0)) if costs else None,
    )


def _ledger(
    connection: duckdb.DuckDBPyConnection, provider: str, within: Range
) -> dict[tuple[date, str, str | None], dict[str, Any]]:
    condition, values = ["provider = ?"], [provider]
    for bound, sign in ((within.since, ">="), (within.until, "<")):
        if bound is not None:
            condition.append(f"occurred_at {sign} make_timestamptz({microseconds(bound)})")
    cursor = connection.execute(
        "SELECT occurred_at::DATE, coalesce(response_model, model), provider_account, any_value(model), "
        "coalesce(sum(tokens_total) FILTER (billable = 'yes'), 0)::BIGINT, "
        "coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0)::BIGINT, "
        "count(*) FILTER (entry_kind = 'usage' AND billable = 'yes'), sum(cost) "
        f"FROM usage_event WHERE {' AND '.join(condition)} GROUP BY 1, 2, 3",
        values,
    )
    return {
        (row[0], row[1], row[2]): {
            "asked": row[3],
            "confirmed": row[4],
            "unknown": row[5],
            "requests": row[6],
            "cost": row[7],
        }
        for row in cursor.fetchall()
    }


def record(connection: duckdb.DuckDBPyConnection, provider: str, lines: Iterable[Compared], now: datetime) -> None:
    """Keep a comparison in the `reconciliation` table."""
    for line in lines:
        start = datetime.combine(line.day, time(), UTC)
        connection.execute(
            "INSERT INTO reconciliation VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'USD', ?, ?, ?)",
            [provider, line.account, line.model, start, start + timedelta(days=1), line.provider_tokens,
             line.provider_requests, line.provider_cost, line.confirmed, line.ledger_cost, now],
        )  # fmt: skip


def true_ups(provider: str, lines: Iterable[Compared], workspace: str) -> list[UsageEvent]:
    """One row per line whose money differs, so that the ledger sums to the invoice; none when written before."""
    found = []
    for line in lines:
        delta = line.cost_difference
        if not delta:
            continue
        name = f"{provider}|{line.account}|{line.model}|{line.day}|{line.provider_cost}|{line.ledger_cost}"
        found.append(
            entries.entry(
                "true_up",
                delta,
                workspace=workspace,
                reason=f"reconciled with {provider}'s account of {line.day}",
                at=datetime.combine(line.day, time(23, 59, 59), UTC),
                provider=provider,
                model=line.model or "*",
                account=line.account,
                event_id=uuid.uuid5(_NAMESPACE, name),
            )
        )
    return found

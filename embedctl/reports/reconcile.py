"""The ledger beside the provider's own account: per UTC day, model and account."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.ledger import adjustments
from embedctl.ledger.database import Connection
from embedctl.ledger.periods import Range
from embedctl.ledger.rating import microseconds
from embedctl.records import UsageEvent
from embedctl.reports.provider_export import Billed

_PLACES = 15
"""Decimal places of the ledger's money; a binary float in a provider's JSON has a tail beyond them."""

_NAMESPACE = uuid.UUID("5a7b2a0e-8f6d-5a43-9a55-6a9a4c1c1c02")


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


def compare(connection: Connection, provider: str, billed: Iterable[Billed], within: Range) -> Sequence[Compared]:
    """The provider's days beside the ledger's, in UTC, so that no border moves.

    An account that the ledger does not know by this name (it knows fingerprints of keys, a provider its projects) is
    compared with all of the ledger's.
    """
    ledger = _ledger(connection, provider, within)
    accounts = {key[2] for key in ledger}
    names = {alias: key[1] for key in ledger for alias in (key[1], ledger[key]["asked"]) if alias}
    grouped: dict[tuple[date, str | None, str | None], list[Billed]] = {}
    for row in billed:
        start = datetime.combine(row.day, time(), UTC)
        outside = (within.since and start < within.since.replace(hour=0, minute=0, second=0, microsecond=0)) or (
            within.until and start >= within.until
        )
        if not outside:
            model = names.get(row.model or "", row.model)
            account = row.account if row.account in accounts else None
            grouped.setdefault((row.day, model, account), []).append(row)
    lines = []
    seen: set[tuple[date, str, str | None]] = set()
    for (day, model, account), rows in sorted(grouped.items(), key=lambda group: group[0].count(None)):
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


def _ledger(connection: Connection, provider: str, within: Range) -> dict[tuple[date, str, str | None], dict[str, Any]]:
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


def record(connection: Connection, provider: str, lines: Iterable[Compared], now: datetime) -> None:
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
        delta = round(line.cost_difference or Decimal(0), _PLACES)
        if not delta:
            continue
        name = f"{provider}|{line.account}|{line.model}|{line.day}|{line.provider_cost}|{line.ledger_cost}"
        found.append(
            adjustments.entry(
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

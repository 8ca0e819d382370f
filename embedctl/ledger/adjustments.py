"""Money entered by hand or by reconciliation: refunds, credits, true-ups. They pass through the spool like all else."""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal
from typing import Literal

from embedctl import __version__
from embedctl.errors import WrongUsage
from embedctl.ledger import spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import UsageEvent, uuid7

Kind = Literal["refund", "credit", "true_up", "correction"]


def entry(
    kind: Kind,
    amount: Decimal,
    *,
    workspace: str,
    reason: str,
    at: datetime,
    provider: str,
    model: str = "*",
    account: str | None = None,
    event_id: uuid.UUID | None = None,
) -> UsageEvent:
    """One signed row; a negative amount lowers what was spent.

    Raises:
        WrongUsage: No reason, or an amount the ledger cannot hold exactly.
    """
    if not reason.strip():
        raise WrongUsage("an entry needs a --reason")
    if not amount.is_finite() or abs(amount) >= Decimal(10) ** 13 or amount != round(amount, 15):
        raise WrongUsage(f"{amount} is no amount the ledger can hold: at most 15 decimal places")
    return UsageEvent(
        event_id=event_id or uuid7(),
        entry_kind=kind,
        workspace_id=workspace,
        operation_id=f"{kind}:{event_id or uuid7()}",
        operation_kind="manual",
        provider=provider,
        provider_account=account,
        model=model,
        occurred_at=at,
        status="ok",
        billable="no",
        tokens_total=0,
        input_count=0,
        usage_mode="native",
        usage_source="native",
        cost_provider=amount,
        reason=reason,
        tool_version=__version__,
    )


def publish(paths: LedgerPaths, entries: list[UsageEvent], name: str) -> bool:
    """Spool `entries` under `name`; False when that was done before."""
    return spool.publish(paths.spool, name, entries)

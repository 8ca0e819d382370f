"""What some operations cost: those that bought the vectors of an output."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from decimal import Decimal
from uuid import UUID

import duckdb

from embedctl.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class OperationCost:
    """What operations came to.

    Attributes:
        operations: How many of them are in this ledger.
        cost: USD, corrections included; None when nothing of it has a price, or nothing is known.
        is_lower_bound: Something billed has no price, or operations are missing.
        at_risk: USD that may have been billed, too; None when nobody knows.
    """

    operations: int
    cost: Decimal | None
    is_lower_bound: bool
    at_risk: Decimal | None


def spent(connection: duckdb.DuckDBPyConnection, operation_ids: Collection[str]) -> OperationCost:
    """Sum over all attempts of these operations."""
    row = connection.execute(
        "SELECT count(DISTINCT operation_id), sum(cost), sum(cost_at_risk), "
        "count(*) FILTER (cost IS NULL AND billable = 'yes') "
        "FROM usage_event WHERE operation_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(operation_ids)],
    ).fetchone()
    operations, cost, at_risk, unpriced = row or (0, None, None, 0)
    return OperationCost(
        operations=int(operations),
        cost=cost,
        is_lower_bound=bool(unpriced) or operations < len(operation_ids),
        at_risk=at_risk,
    )


def bought(
    connection: duckdb.DuckDBPyConnection, run_ids: Sequence[UUID] | None, model: str | None = None
) -> tuple[int, int] | None:
    """Tokens, and the texts that they were billed for, of answers to texts of an output; None when there are none.

    Args:
        run_ids: None: of all runs.
        model: None: of all models.
    """
    row = connection.execute(
        "SELECT sum(tokens_total), sum(input_count) FROM usage_event WHERE entry_kind = 'usage' AND status = 'ok' "
        "AND billable = 'yes' AND purpose <> 'test' AND tokens_total > 0 AND input_count > 0 "
        "AND ($1 IS NULL OR list_contains($1::UUID[], run_id)) AND ($2 IS NULL OR model = $2)",
        [None if run_ids is None else list(map(str, run_ids)), model],
    ).fetchone()
    return (int(row[0]), int(row[1])) if row and row[0] and row[1] else None

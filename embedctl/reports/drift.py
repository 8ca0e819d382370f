"""How far the providers' token counts are from the tokenizer's here."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.ledger.database import Connection
from embedctl.reports.query import ReportQuery, where_clause


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One model at one provider. Ratios are of the tokenizer's count: 0.5 = the provider counts half as much again.

    Attributes:
        pairs: Calls that both sides counted.
        weighted: Of the sums; None without pairs.
        p95: 95th percentile of the absolute drift of single calls.
        share_over: Share of pairs over the threshold.
        fallback_share: Share of the confirmed tokens that are estimates.
    """

    provider: str
    model: str
    tokenizer_id: str | None
    pairs: int
    tokens_native: int
    tokens_estimated: int
    weighted: float | None
    p95: float | None
    share_over: float | None
    fallback_share: float | None

    def over(self, threshold: float) -> bool:
        """Whether the sums differ by more than `threshold`."""
        return self.weighted is not None and abs(self.weighted) > threshold

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def drift(connection: Connection, question: ReportQuery, threshold: float) -> Sequence[Drift]:
    """Every model that was called, the most drifting first."""
    condition, values = where_clause(question)
    cursor = connection.execute(
        "WITH c AS (SELECT *, tokens_native IS NOT NULL AND tokens_estimated > 0 AS paired, "
        "abs(tokens_native - tokens_estimated) / tokens_estimated::DOUBLE AS apart FROM usage_event "
        f"WHERE {condition} AND entry_kind = 'usage') "
        "SELECT provider, model, any_value(tokenizer_id) FILTER (paired), count(*) FILTER (paired), "
        "coalesce(sum(tokens_native) FILTER (paired), 0)::BIGINT AS native, "
        "coalesce(sum(tokens_estimated) FILTER (paired), 0)::BIGINT AS estimated, "
        "native / nullif(estimated, 0)::DOUBLE - 1 AS weighted, "
        "quantile_cont(apart, 0.95) FILTER (paired), avg((apart > ?)::INTEGER) FILTER (paired), "
        "sum(tokens_total) FILTER (billable = 'yes' AND usage_source = 'fallback') "
        "  / nullif(sum(tokens_total) FILTER (billable = 'yes'), 0)::DOUBLE "
        "FROM c GROUP BY provider, model ORDER BY abs(weighted) DESC NULLS LAST, provider, model",
        [*values, threshold],
    )
    return [
        Drift(
            provider=row[0],
            model=row[1],
            tokenizer_id=row[2],
            pairs=row[3],
            tokens_native=row[4],
            tokens_estimated=row[5],
            weighted=row[6],
            p95=row[7],
            share_over=row[8],
            fallback_share=row[9],
        )
        for row in cursor.fetchall()
    ]

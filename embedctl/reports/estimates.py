"""An estimate kept in a file, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid
from embedctl.ledger.periods import Range
from embedctl.reports.query import ReportQuery
from embedctl.settings.tables import is_amount
from embedctl.storage import given_files

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEstimate:
    """What a run was thought to take. Money in USD, None where nobody knew a price.

    Attributes:
        tokens_low: With 95 % the tokens are between this and `tokens_high`.
        tier: Whose price `cost` is: "standard" or "batch".
        made_at: What was spent on this model from then on is what it came to.
    """

    made_at: datetime
    workspace: str
    provider: str
    model: str
    tier: str
    rows: int
    texts: int
    requests: int
    tokens: int
    tokens_low: int
    tokens_high: int
    cost: Decimal | None
    cost_low: Decimal | None
    cost_high: Decimal | None

    def as_dict(self) -> dict[str, Any]:
        """For the file."""
        return {"schema_version": SCHEMA_VERSION, "currency": "USD", **asdict(self)}

    def question(self) -> ReportQuery:
        """What the ledger is asked about it."""
        only = {"workspace": [self.workspace], "provider": [self.provider], "model": [self.model]}
        return ReportQuery(only=only, within=Range(since=self.made_at))


def read(path: Path) -> UsageEstimate:
    """An estimate that `usage estimate --save` wrote.

    Raises:
        InputMissing, InputInvalid: There is none; it is something else.
    """
    hint = "`embedctl usage estimate INPUT --save FILE` writes one"
    content = given_files.parse_json(given_files.read_text(path, missing_hint=hint), str(path))
    try:
        found = {key: value for key, value in content.items() if key not in ("schema_version", "currency")}
        for key in ("cost", "cost_low", "cost_high"):
            found[key] = None if found[key] is None else Decimal(found[key])
        found["made_at"] = datetime.fromisoformat(found["made_at"])
        estimate = UsageEstimate(**found)
        _check(estimate)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise InputInvalid(f"{path} is no estimate", hint=hint) from None
    return estimate


_MOST = 10**15


def _check(estimate: UsageEstimate) -> None:
    """Numbers and names are such.

    Raises:
        ValueError: One is not.
    """
    names = (estimate.workspace, estimate.provider, estimate.model, estimate.tier)
    counts = (
        estimate.rows,
        estimate.texts,
        estimate.requests,
        estimate.tokens,
        estimate.tokens_low,
        estimate.tokens_high,
    )
    money = [one for one in (estimate.cost, estimate.cost_low, estimate.cost_high) if one is not None]
    right = (
        all(given_files.is_word(name) for name in names)
        and all(type(count) is int and 0 <= count <= _MOST for count in counts)
        and all(is_amount(one) and 0 <= one <= _MOST for one in money)
        and estimate.made_at.tzinfo is not None
    )
    if not right:
        raise ValueError("no estimate")


def compared(estimate: UsageEstimate, totals: Mapping[str, Any]) -> dict[str, Any]:
    """The estimate beside what the ledger has.

    Returns:
        `within`: whether the tokens, with those perhaps billed, are in the estimate's interval.
    """
    tokens, unknown = int(totals["tokens"]), int(totals["tokens_unknown"])
    cost = totals["cost"]
    return {
        "tokens_estimated": estimate.tokens,
        "tokens": tokens,
        "tokens_unknown": unknown,
        "tokens_change": tokens - estimate.tokens,
        "cost_estimated": estimate.cost,
        "cost": cost,
        "cost_change": None if cost is None or estimate.cost is None else cost - estimate.cost,
        "within": tokens <= estimate.tokens_high and tokens + unknown >= estimate.tokens_low,
    }

"""An estimate kept in a file, and what it came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from embedctl.errors import InputInvalid, InputMissing
from embedctl.ledger.periods import Range
from embedctl.reports.query import ReportQuery

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
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputMissing(
            f"no such file: {path}", hint="`embedctl usage estimate INPUT --save FILE` writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise InputInvalid(f"{path} is no estimate: {error}") from None
    try:
        found = {key: value for key, value in content.items() if key not in ("schema_version", "currency")}
        for key in ("cost", "cost_low", "cost_high"):
            found[key] = None if found[key] is None else Decimal(found[key])
        found["made_at"] = datetime.fromisoformat(found["made_at"])
        return UsageEstimate(**found)
    except (AttributeError, KeyError, TypeError, ValueError, InvalidOperation):
        raise InputInvalid(
            f"{path} is no estimate", hint="`embedctl usage estimate INPUT --save FILE` writes one"
        ) from None


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

"""Two periods side by side: what changed, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.reports.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One group in both periods; a cost of None is unknown, a missing group has tokens and cost 0."""

    keys: Mapping[str, Any]
    tokens_before: int
    tokens_after: int
    cost_before: Decimal | None
    cost_after: Decimal | None

    @property
    def cost_change(self) -> Decimal | None:
        """USD more than before; None when either is unknown."""
        if self.cost_before is None or self.cost_after is None:
            return None
        return self.cost_after - self.cost_before

    def as_dict(self) -> dict[str, Any]:
        """Keys and numbers, flat."""
        numbers = {key: value for key, value in asdict(self).items() if key != "keys"}
        change = {"tokens_change": self.tokens_after - self.tokens_before, "cost_change": self.cost_change}
        return {**self.keys, **numbers, **change}


def changes(before: Report, after: Report) -> Sequence[Change]:
    """Every group of either report, which must have been grouped alike; the largest change of cost first."""
    names = tuple(after.question.by)
    sides = [{tuple(group[name] for name in names): group for group in report.groups} for report in (before, after)]
    nothing: Mapping[str, Any] = {"tokens": 0, "cost": Decimal(0)}
    found = []
    for key in dict.fromkeys([*sides[1], *sides[0]]):
        old, new = (side.get(key, nothing) for side in sides)
        found.append(_change(dict(zip(names, key, strict=True)), old, new))
    return sorted(found, key=lambda change: abs(change.cost_change or Decimal(0)), reverse=True)


def total(before: Report, after: Report) -> Change:
    """The change over all groups."""
    return _change({}, before.totals, after.totals)


def _change(keys: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    return Change(
        keys=keys,
        tokens_before=int(old["tokens"]),
        tokens_after=int(new["tokens"]),
        cost_before=old["cost"],
        cost_after=new["cost"],
    )

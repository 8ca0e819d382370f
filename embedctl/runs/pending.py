"""What waits at providers in batches, of all runs of a home: beside what the ledger has, and against budgets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.records import format_usd, total_cost
from embedctl.settings import Paths
from embedctl.storage import paths_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Batches that are made, or may be, and not collected.

    Attributes:
        cost_at_risk: USD at most, at the batches' price; None when nobody knows.
        results_until: The first moment at which results are lost when nobody collects them; None where unknown.
    """

    batches: int
    texts: int
    tokens: int
    cost_at_risk: Decimal | None
    providers: Sequence[str]
    results_until: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "batches": self.batches,
            "texts": self.texts,
            "tokens": self.tokens,
            "cost_at_risk": self.cost_at_risk,
            "providers": list(self.providers),
            "results_until": self.results_until,
        }

    def sentence(self) -> str:
        """For people, beside a total."""
        many = "1 batch" if self.batches == 1 else f"{self.batches:,} batches"
        upto = "an unknown amount" if self.cost_at_risk is None else f"up to {format_usd(self.cost_at_risk)} USD"
        return (
            f"{many} under way at {', '.join(self.providers)}, {self.tokens:,} tokens, {upto}: not included in the "
            "cost (`embedctl batch list --status waiting`)"
        )


def pending(paths: Paths, workspaces: Collection[str] = (), *, ledger: str | None = None) -> Pending | None:
    """What waits now; None when nothing does.

    Args:
        workspaces: Only what these pay for; none: everybody.
        ledger: Only what belongs to this one.
    """
    if not paths_in(paths.batches):
        return None
    from embedctl.journal.batches import known  # reports start without
    from embedctl.runs.registry import home_trust

    said = [one for _, batches, _ in known(paths.batches, home_trust(paths, make=False)) for one in batches]
    found = [one for one in said if one.pending and ledger in (None, one.ledger)]
    if workspaces:
        found = [one for one in found if not one.risk.keys().isdisjoint(workspaces)]
    if not found:
        return None
    names = set(workspaces)
    tokens = sum(count for one in found for name, count in one.risk.items() if not names or name in names)
    costs = [one.cost_at_risk(name) for one in found for name in one.risk if not names or name in names]
    ends = [one.results_until or one.expires_at for one in found]
    until = min((end for end in ends if end), default=None)
    return Pending(
        batches=len(found),
        texts=sum(one.texts for one in found),
        tokens=tokens,
        cost_at_risk=total_cost(costs),
        providers=sorted({one.provider for one in found}),
        results_until=None if until is None else datetime.fromtimestamp(until, UTC),
    )

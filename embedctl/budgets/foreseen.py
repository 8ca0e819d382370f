"""Which limits a run would meet, told before it is begun: `--dry-run`. Sends, sets aside and makes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from embedctl.budgets import limits
from embedctl.budgets.shared import Sums, peek
from embedctl.journal import Trust
from embedctl.ledger import budget_copy
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import LimitForeseen
from embedctl.settings import Settings
from embedctl.settings.share import share_of
from embedctl.storage import locks

_ZERO = Decimal(0)


def foreseen(
    paths: LedgerPaths,
    settings: Settings,
    costs: Mapping[str, Decimal | None],
    trust: Trust,
    *,
    state: Path,
    take_in: Callable[[], object],
) -> list[LimitForeseen]:
    """The limits that would stop a run, fail rows of it or be warned of, in the order of workspaces.

    Args:
        costs: Workspace → USD that the run would about cost it; None: nobody knows. Those alone pay.
        state: The state folder that the run would have.
        take_in: Puts what was spent by now into the ledger.

    Raises:
        Locked: The ledger cannot be read, so nobody knows how budgets stand.
    """
    options = settings.options
    found = []
    known = [cost for cost in costs.values() if cost is not None]
    if options.max_cost is not None and known:
        most = options.max_cost / share_of(options.shard).count
        found.append(LimitForeseen("--max-cost", _ZERO, most, sum(known, _ZERO), blocks=True, by_row=False))
    paying = {workspace: cost for workspace, cost in costs.items() if cost != 0}
    if paying and (budget_copy.there_are(paths) or limits.has_budget(settings)):
        found += _budgets(paths, settings, paying, trust, state, take_in)
    return [one for one in found if one.is_met]


def _budgets(
    paths: LedgerPaths,
    settings: Settings,
    paying: Mapping[str, Decimal | None],
    trust: Trust,
    state: Path,
    take_in: Callable[[], object],
) -> Sequence[LimitForeseen]:
    """Budgets of those who would pay; what living runs have spent and set aside counts, as it would for this one."""
    sums = peek(paths.budgets)
    living = Sums(
        shares={run: share for run, share in sums.shares.items() if locks.is_held(Path(share.folder) / "lock")}
    )
    is_unpriced = None in paying.values()
    found = []
    for one in limits.standings_of_workspaces(paths, settings, take_in, tuple(living.shares), trust=trust, state=state):
        budget, whose = one.budget, one.budget.workspace
        if whose in paying or (is_unpriced and budget.action == "block"):  # of whoever's, it cannot hold
            spent = one.spent.cost + one.spent.at_risk + living.spent(whose, budget.period) + living.reserved(whose)
            found.append(
                LimitForeseen(
                    limits.name_of(budget),
                    spent,
                    budget.amount,
                    paying.get(whose),
                    blocks=budget.action == "block",
                    by_row=settings.options.workspace_column is not None,
                    workspace=whose,
                    warn_at=budget.amount * budget.warn_ratio,
                    needs_price=not settings.options.allow_unpriced,
                )
            )
    return sorted(found, key=lambda each: each.workspace or "")

"""What jobs came to, as the ledger has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedctl.records import UNOBSERVED, format_money, utc_now
from embedctl.runs import foundations
from embedctl.settings import Settings

WAIT_S = 20


def costs(loaded: Settings, jobs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Job → tokens and money of all its runs, those of dead ones included.

    Raises:
        Locked: The ledger cannot be read now.
    """
    from embedctl.ledger import budgets
    from embedctl.ledger.database import reader

    foundations.taking_in(loaded, UNOBSERVED)()
    found = {}
    with reader(foundations.ledger_paths(loaded), wait_s=WAIT_S, now=utc_now()) as connection:
        for job in jobs:
            spent = budgets.spent_by_job(connection, job)
            cost = None if spent.cost is None else format_money(spent.cost)
            found[job] = {"tokens": spent.tokens, "cost_usd": cost, "at_risk_usd": format_money(spent.at_risk)}
    return found

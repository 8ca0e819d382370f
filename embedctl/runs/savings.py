"""What a run would have paid for vectors that it took from its output, the cache, or an equal text.

Tokens of each text are seldom known. What the texts of an output came to on average is: from the events of the runs
that bought them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from embedctl.errors import EmbedctlError
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.prices.price import cost
from embedctl.runs.registry import RunRegistry

WAIT_S = 2.0
"""For a ledger that is held: what was saved is good to know, and no reason to wait."""


def cost_saved(
    paths: LedgerPaths,
    runs: RunRegistry,
    state: Path,
    *,
    run_id: UUID,
    reused: int,
    duplicates: int,
    model: str,
    bought: tuple[int, int],
    unit_price: Decimal,
    now: datetime,
) -> Decimal | None:
    """USD; None when nobody knows how many tokens such texts have.

    Args:
        state: The state folder of the output: whose runs bought what is in it.
        run_id: Of this run, whose own events say nothing of what was there before.
        model: As events name it: when the ledger knows nothing of the output's runs, its texts of any run are taken.
        bought: Tokens and texts of this run.
        unit_price: USD per million tokens.
    """
    earlier = [run.run_id for run in runs.all() if run.folder == state.absolute() and run.run_id != run_id]
    own = bought if bought[1] else None
    before = _bought(paths, earlier, model, now) if reused or own is None else None
    amounts = [(reused, before or own), (duplicates, own or before)]
    if any(texts and each is None for texts, each in amounts):
        return None
    tokens = sum(each[0] * texts / each[1] for texts, each in amounts if each is not None)
    return cost(round(tokens), unit_price)


def _bought(paths: LedgerPaths, run_ids: Sequence[UUID], model: str, now: datetime) -> tuple[int, int] | None:
    """Tokens, and the texts that they were billed for; None when the ledger does not say."""
    if not paths.database.exists():
        return None
    from embedctl.ledger import database, operations

    try:
        with database.reader(paths, wait_s=WAIT_S, now=now) as connection:
            return operations.bought(connection, run_ids) or operations.bought(connection, None, model)
    except EmbedctlError:
        return None

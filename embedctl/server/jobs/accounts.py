"""What jobs came to, as the ledger has it. A program of its own: a service serves without DuckDB in its memory.

python -m embedctl.server.jobs.accounts [--config=FILE] [--ledger=FILE] JOB...       prints {JOB: {…}}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from embedctl import settings
from embedctl.errors import EmbedctlError
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


def main(words: list[str]) -> int:
    """The program; its exit code."""
    flags = {name: Path(value) for name, _, value in (word.partition("=") for word in words if word.startswith("--"))}
    try:
        loaded = settings.load(config=flags.get("--config"), ledger=flags.get("--ledger"))
        found = costs(loaded, [word for word in words if not word.startswith("--")])
    except EmbedctlError as problem:
        sys.stderr.write(f"error: {problem.message}\n")
        return problem.exit_code
    sys.stdout.buffer.write(orjson.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

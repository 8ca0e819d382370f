"""A copy of the ledger's budgets beside it, so that runs know without opening it whether there are any.

Most workspaces have none, and their runs need not wait for a ledger that another program holds, nor load duckdb. A
ledger that is made anew from the spool gets its budgets back from here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from embedctl import storage
from embedctl.errors import WrongUsage
from embedctl.ledger.paths import LedgerPaths

if TYPE_CHECKING:
    import duckdb

    from embedctl.ledger import budgets

MOST_USD = 10**13
"""What the ledger can hold."""

_MOST_BYTES = 1 << 24


def there_are(paths: LedgerPaths) -> bool:
    """Whether the ledger holds a budget; a copy that cannot be read counts as one: the ledger must be asked."""
    try:
        return _read(paths) != []
    except (OSError, ValueError):
        return True


def keep(connection: duckdb.DuckDBPyConnection, paths: LedgerPaths) -> None:
    """Make the copy say what the ledger says.

    Raises:
        StorageFailed: The disk refused.
    """
    from embedctl.ledger import budgets

    content = orjson.dumps([asdict(one) for one in budgets.stored(connection)], default=str)
    try:
        if storage.read_small(paths.limits, max_bytes=_MOST_BYTES, follow=False) == content:
            return
    except FileNotFoundError:
        if content == b"[]":
            return
    except OSError:
        pass  # it is replaced
    storage.replace(storage.DISK, paths.limits, content)


def restore(connection: duckdb.DuckDBPyConnection, paths: LedgerPaths) -> int:
    """Put the copy's budgets into a ledger that was made anew; how many."""
    import duckdb

    from embedctl.ledger import budgets

    try:
        kept = _read(paths)
    except (OSError, ValueError, RecursionError):
        return 0
    restored = 0
    for one in kept:
        try:
            budgets.put(connection, _budget(one))
        except (ArithmeticError, KeyError, TypeError, ValueError, WrongUsage, duckdb.Error):
            continue  # changed by hand
        restored += 1
    return restored


def _budget(one: dict[str, Any]) -> budgets.Budget:
    """As it was kept.

    Raises:
        ValueError, TypeError, KeyError, ArithmeticError: It is none.
    """
    from decimal import Decimal

    from embedctl.ledger import budgets

    money = {name: Decimal(one[name]) for name in ("amount", "warn_ratio")}
    if not all(value.is_finite() and 0 <= value < MOST_USD for value in money.values()):
        raise ValueError("no amount")
    return budgets.Budget(**(one | money))


def _read(paths: LedgerPaths) -> list[dict[str, Any]]:
    try:
        found = orjson.loads(storage.read_small(paths.limits, max_bytes=_MOST_BYTES, follow=False))
    except FileNotFoundError:
        return []
    if not isinstance(found, list):
        raise ValueError("no list")  # noqa: TRY004 - a foreign content, not a wrong call
    return found

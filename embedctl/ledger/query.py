"""`usage sql`: one read-only statement in a child process, without files, network or time to waste.

For the owner's convenience: SQL is code, and this is no boundary against other people's.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import Locked, StorageFailed, Temporary, WrongUsage
from embedctl.ledger.database import held
from embedctl.ledger.paths import LedgerPaths
from embedctl.storage import child as children

_OWN_MB = 512
"""For Python and DuckDB beside the query; some functions allocate outside of DuckDB's own limit."""

_GRACE_S = 5
"""The child ends itself in time, also when nobody is there any more to end it: it would keep writers out. Later than
that it hangs."""

_PLAIN = ("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "VARCHAR")
_NUMERIC = (
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
    "FLOAT", "DOUBLE", "DECIMAL",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Rows of a query; money and other exact decimals as strings.

    Attributes:
        numeric: For each column, whether its cells are numbers.
        cut: Whether there were more rows than asked for.
    """

    columns: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[Any]]
    cut: bool


def ask(
    paths: LedgerPaths,
    sql: str,
    *,
    rows: int = 10_000,
    timeout_s: float = 60,
    memory_mb: int = 1024,
    wait_s: float = 10,
) -> QueryResult:
    """Run one statement on the ledger; where there is none, on one without events.

    Raises:
        WrongUsage: It is no single statement that reads, or DuckDB refuses it.
        Temporary: It took longer than `timeout_s` and was killed.
        Locked: The ledger is being written for all of `wait_s`.
    """
    task = {
        "database": str(paths.database.absolute()),
        "spool": str(paths.spool.absolute()),
        "price_file": str(paths.price_file.absolute()),
        "sql": sql,
        "rows": rows,
        "memory_mb": memory_mb,
        "timeout_s": timeout_s,
    }
    there = paths.database.exists()
    try:
        with held(paths, shared=True, wait_s=wait_s) if there else nullcontext():
            child = subprocess.run(  # noqa: S603 - this Python, with our own words
                children.command("embedctl.ledger.query"),
                input=orjson.dumps(task),
                capture_output=True,
                timeout=timeout_s + _GRACE_S,
                check=False,
                cwd="/",
                env=children.environment(),
            )
    except subprocess.TimeoutExpired:
        raise _too_slow(timeout_s) from None
    if child.returncode == -signal.SIGALRM:
        raise _too_slow(timeout_s)
    if child.returncode != 0 or not child.stdout:
        why = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise StorageFailed(f"the query's process ended with {child.returncode}: {why}", hint="--memory allows more")
    found = orjson.loads(child.stdout)
    if "error" in found:
        kind = {"locked": Locked, "usage": WrongUsage}.get(found["error"], StorageFailed)
        raise kind(found["message"], hint=found["hint"])
    return QueryResult(found["columns"], found["numeric"], found["rows"], found["cut"])


def _too_slow(timeout_s: float) -> Temporary:
    return Temporary(f"the query ran for more than {timeout_s:g} s and was stopped", hint="--timeout allows more")


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    """In the child: the rows, or what was wrong."""
    import duckdb

    from embedctl.errors import EmbedctlError
    from embedctl.ledger import database

    paths = LedgerPaths(*(Path(task[name]) for name in ("database", "spool", "price_file")))
    try:
        with (
            database.translated(paths.database),
            closing(_locked_down(str(paths.database), task["memory_mb"])) as connection,
        ):
            try:
                return _run(connection, task["sql"], task["rows"])
            except (
                duckdb.ProgrammingError,
                duckdb.DataError,
                duckdb.PermissionException,
                duckdb.NotSupportedError,
            ) as error:
                why = " ".join(str(error).partition("\n\n")[0].split())
                hint = "tables: usage_event, price, budget …; views: usage_daily, usage_by_workspace, drift"
                return {"error": "usage", "message": why, "hint": hint}
            except (duckdb.OutOfMemoryException, MemoryError):
                message = f"the query takes more than {task['memory_mb']} MB of memory"
                return {"error": "storage", "message": message, "hint": "--memory allows more"}
    except EmbedctlError as error:
        return {"error": error.word, "message": error.message, "hint": error.hint}
    except duckdb.Error as error:
        return {"error": "usage", "message": str(error).strip(), "hint": None}


def _locked_down(database: str, memory_mb: int) -> Any:
    import duckdb

    from embedctl.ledger.database import fill_empty
    from embedctl.records import utc_now

    there = Path(database).exists()
    connection = duckdb.connect(
        database if there else ":memory:",
        read_only=there,
        config={
            "enable_external_access": "false",
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": "",  # or a query that needs more memory fills the disk, and stays there when it is killed
            "threads": "2",
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    if not there:
        fill_empty(connection, utc_now())
    connection.execute("SET enable_progress_bar = false")  # after two seconds it would be drawn, as for a notebook
    connection.execute("SET lock_configuration = true")
    return connection


def _run(connection: Any, sql: str, rows: int) -> dict[str, Any]:
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        return {"error": "usage", "message": f"one statement, not {len(statements)}", "hint": None}
    relation = connection.sql(sql)
    if relation is None:
        return {"columns": [], "numeric": [], "rows": [], "cut": False}
    kinds = [str(kind) for kind in relation.types]
    places = enumerate(kinds, 1)  # by place: two columns may have one name
    shown = relation.project(
        ", ".join(f"#{place}" if kind in _PLAIN else f"CAST(#{place} AS VARCHAR)" for place, kind in places)
    )
    found = shown.limit(rows + 1).fetchall()
    numeric = [kind.partition("(")[0] in _NUMERIC for kind in kinds]
    return {"columns": list(relation.columns), "numeric": numeric, "rows": found[:rows], "cut": len(found) > rows}


def main() -> None:
    """In the child: the task from stdin, the answer to stdout."""
    task = orjson.loads(sys.stdin.buffer.read())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, task["timeout_s"])  # its default is to end the process, wherever it is
    with suppress(ValueError, OSError):  # a system without this limit has DuckDB's own
        limit = (task["memory_mb"] + _OWN_MB) * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with children.answering() as out, suppress(BrokenPipeError):
        out.write(orjson.dumps(_answer(task), default=str))

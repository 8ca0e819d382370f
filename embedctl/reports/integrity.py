"""`usage doctor`: is the ledger what it promises to be?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from embedctl.dataclass import dataclass
from embedctl.ledger import missing, schema, spool
from embedctl.ledger.database import Connection
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.rating import microseconds
from embedctl.records import JOURNAL_DAMAGED
from embedctl.storage import paths_in

_DAY_MS = 86_400_000
_NAMED = 5
_ONE_OR_MORE = re.compile(r"\{([^|}]+)\|([^}]+)\}")
AHEAD = timedelta(minutes=5)
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs")
"""File systems on which neither flock nor DuckDB's own lock can be relied on (facts/accounting.md 2.5)."""


@dataclass(frozen=True, slots=True)
class IntegrityFinding:
    """One check: "ok", "look" (nothing is lost, but someone should know) or "broken" (a promise is)."""

    check: str
    state: str
    detail: str


def mounted() -> str:
    """What is mounted here, as Linux lists it; "" elsewhere."""
    try:
        return Path("/proc/self/mounts").read_text("utf-8", "replace")
    except OSError:
        return ""


def findings(
    connection: Connection,
    paths: LedgerPaths,
    *,
    now: datetime,
    mounts: Callable[[], str] = mounted,
    foreign: Sequence[Path] = (),
    broken_entries: Sequence[Path] = (),
    vanished: Sequence[str] = (),
) -> Iterator[IntegrityFinding]:
    """Every check, in the order of weight.

    Args:
        foreign: Journals in outputs of this home that it has not made, set aside.
        broken_entries: Files of the run registry that are none.
        vanished: Killed runs whose folder is gone, each as a person would say it.
    """

    def count(sql: str, *values: object) -> int:
        row = connection.execute(sql, list(values)).fetchone()
        return int(row[0] or 0) if row else 0

    events = count("SELECT count(*) FROM usage_event")
    doubled = events - count("SELECT count(DISTINCT event_id) FROM usage_event")
    yield _broken("event ids", doubled, f"{events:,} events, each once", "{event is|events are} in the ledger twice")
    lost = connection.execute(
        "SELECT count(*) FROM (SELECT spool_id, count(*) AS kept FROM usage_event GROUP BY spool_id) u "
        "FULL JOIN (SELECT spool_id, max(lines_done) AS lines FROM spool_offset GROUP BY spool_id) o USING (spool_id) "
        "WHERE coalesce(kept, 0) > coalesce(lines, 0)"
    ).fetchone()
    yield _broken(
        "spool offsets",
        lost[0] if lost else 0,
        "rows and spool files agree",
        "{file has|files have} more rows than lines",
    )
    twice = count("SELECT count(*) - count(DISTINCT spool_id) FROM spool_offset")
    yield _broken("spool files", twice, "each taken in once", "spool {file was|files were} taken in twice")
    shared = count(
        "SELECT count(*) FROM (SELECT operation_id FROM usage_event WHERE entry_kind = 'usage' AND attempt = 1 AND "
        "fallback_from IS NULL AND meter = 'input_token' AND operation_kind = 'request' "
        "GROUP BY operation_id HAVING count(*) > 1)"
    )
    yield _look(
        "operations", shared, "each has one first attempt", "{operation has|operations have} several first attempts"
    )
    steps = {step.version: step.checksum for step in schema.migrations()}
    applied = connection.execute("SELECT version, checksum FROM schema_migration").fetchall()
    differing = [version for version, checksum in applied if steps.get(version) != checksum]
    yield _look(
        "schema",
        len(differing),
        f"version {max(steps)}",
        "{migration differs|migrations differ} from what this version has",
    )
    bad = count("SELECT sum(lines_bad) FROM spool_offset")
    yield _look("spool lines", bad, "none was bad", "spool {line was|lines were} torn, foreign or damaged: not counted")
    unread = count("SELECT sum(content_bytes) FROM usage_event WHERE error_class = ?", JOURNAL_DAMAGED)
    yield _look(
        "journals", unread, "all read", "{byte|bytes} of killed runs' journals could not be read: counted as unknown"
    )
    away = missing.files(connection, paths)
    yield _look(
        "kept spool", len(away), "all in the ledger", "spool {file is|files are} missing from it (`usage ingest`)"
    )
    yield _history(connection)
    future = count(
        "SELECT count(*) FROM usage_event WHERE occurred_at > make_timestamptz(?)", microseconds(now + AHEAD)
    )
    yield _look(
        "clock", future, "no event is ahead of it", "{event lies|events lie} in the future: was the clock wrong?"
    )
    jumped = count(
        "SELECT count(*) FROM usage_event WHERE entry_kind = 'usage' "
        "AND substr(CAST(event_id AS VARCHAR), 15, 1) = '7' AND abs(epoch_ms(occurred_at) - "
        "('0x' || replace(substr(CAST(event_id AS VARCHAR), 1, 13), '-', ''))::BIGINT) > 86400000"
    )
    yield _look(
        "clock jumps", jumped, "ids and times agree", "{event is|events are} a day or more from the time in the id"
    )
    unpriced = count("SELECT count(*) FROM usage_event WHERE cost_status = 'unpriced'")
    yield _look(
        "prices", unpriced, "every billable call has one", "{call has|calls have} no price (`usage report` names them)"
    )
    yield _place(paths.database.absolute(), mounts())
    waiting = spool.pending(paths.spool)
    yield _look("spool", len(waiting), "empty", "spool {file waits|files wait} (`usage ingest`)")
    refused = [path.name for path in spool.pending(paths.aside)]
    yield _look(
        "spool aside",
        len(refused),
        "none",
        "spool {file|files} could not be taken in, and {lies|lie} in ",
        f"{paths.aside}: " + ", ".join(refused[:5]),
    )
    listed = ", ".join(map(str, foreign))
    yield _look("foreign journals", len(foreign), "none", "set aside, not counted: ", listed)
    names = ", ".join(path.name for path in broken_entries)
    yield _look(
        "run registry", len(broken_entries), "every entry can be read", "{entry|entries} cannot be read: ", names
    )
    listed = ", ".join(vanished[:_NAMED])
    yield _look(
        "killed runs",
        len(vanished),
        "every folder is there",
        "killed {run has its folder|runs have their folders} gone; what was spent is counted from the home's copy: ",
        listed,
    )
    aside = paths_in(paths.database.parent, paths.database.name + ".bad-*")
    names = ", ".join(path.name for path in aside)
    yield _look("set aside", len(aside), "none", "damaged {ledger lies|ledgers lie} beside it: ", names)


def _broken(check: str, number: int, fine: str, wrong: str) -> IntegrityFinding:
    return _found(check, "broken", number, fine, wrong)


def _look(check: str, number: int, fine: str, wrong: str, named: str = "") -> IntegrityFinding:
    return _found(check, "look", number, fine, wrong, named)


def _found(
    check: str, state: Literal["look", "broken"], number: int, fine: str, wrong: str, named: str = ""
) -> IntegrityFinding:
    """What is `wrong` so many times says {one thing of one|another of several}; what is `named` stands behind it."""
    if not number:
        return IntegrityFinding(check, "ok", fine)
    wrong = _ONE_OR_MORE.sub(lambda either: either[1 if number == 1 else 2], wrong)
    return IntegrityFinding(check, state, f"{number:,} {wrong}{named}")


def _history(connection: Connection) -> IntegrityFinding:
    """Whether the ledger is younger than what is in it: it was made anew, from what the spool had kept by then."""
    made = connection.execute("SELECT epoch_ms(min(applied_at)) FROM schema_migration").fetchone()
    first = connection.execute(
        "SELECT min(('0x' || spool_id[:12])::BIGINT) FROM spool_offset "
        "WHERE regexp_full_match(spool_id, '[0-9a-f]{12}7[0-9a-f]{19}')"
    ).fetchone()
    if not made or not first or first[0] is None or made[0] - first[0] < _DAY_MS:
        return IntegrityFinding("history", "ok", "as old as its first events")
    day = datetime.fromtimestamp(made[0] / 1000, UTC).date()
    return IntegrityFinding(
        "history", "look", f"made anew on {day}: what spool files said that had been pruned by then is not in it"
    )


def _place(database: Path, mounts: str) -> IntegrityFinding:
    """Whether the ledger is on a disk of this machine: the innermost mount point that it is below."""
    lines = [line.split(" ") for line in mounts.splitlines()]
    found = [(line[1].replace("\\040", " "), line[2]) for line in lines if len(line) > 2]
    above = [(len(point), kind) for point, kind in found if database.is_relative_to(point)]
    kind = max(above, default=(0, ""))[1]
    if kind not in NETWORK:
        return IntegrityFinding("place", "ok", "a disk of this machine")
    return IntegrityFinding(
        "place", "look", f"on {kind}: locks may not hold there; keep the ledger on a disk of this machine"
    )

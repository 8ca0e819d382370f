"""Lines of the spool as rows of the database, rated, each once. Within the caller's transaction."""

# ruff: noqa: S608 - column names and conditions are ours; every foreign value is bound

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice

import duckdb
import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.ledger import rating
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.spool import LINE_BYTES, SpoolFile
from embedctl.storage import DISK, private_folder

_COLUMNS = {
    "event_id": "UUID",
    "entry_kind": "VARCHAR",
    "corrects_event_id": "UUID",
    "workspace_id": "VARCHAR",
    "job_id": "VARCHAR",
    "run_id": "UUID",
    "operation_id": "VARCHAR",
    "operation_kind": "VARCHAR",
    "purpose": "VARCHAR",
    "attempt": "SMALLINT",
    "fallback_from": "VARCHAR",
    "provider": "VARCHAR",
    "model": "VARCHAR",
    "response_model": "VARCHAR",
    "region": "VARCHAR",
    "provider_account": "VARCHAR",
    "provider_request_id": "VARCHAR",
    "batch_id": "VARCHAR",
    "occurred_at": "TIMESTAMPTZ",
    "duration_ms": "INTEGER",
    "status": "VARCHAR",
    "error_class": "VARCHAR",
    "billable": "VARCHAR",
    "price_tier": "VARCHAR",
    "price_as": "VARCHAR",
    "meter": "VARCHAR",
    "quantity": "BIGINT",
    "tokens_total": "BIGINT",
    "tokens_cached": "BIGINT",
    "tokens_native": "BIGINT",
    "tokens_estimated": "BIGINT",
    "usage_mode": "VARCHAR",
    "usage_source": "VARCHAR",
    "tokenizer_id": "VARCHAR",
    "input_count": "INTEGER",
    "content_bytes": "BIGINT",
    "cost_provider": "VARCHAR",  # an amount that is none must not cost the tokens beside it
    "tags": "JSON",
    "reason": "VARCHAR",
    "tool_version": "VARCHAR",
    "spool_id": "VARCHAR",
}
_DEFAULTS = {
    "entry_kind": "'usage'",
    "operation_kind": "'request'",
    "purpose": "'ingest'",
    "attempt": "1",
    "region": "'*'",
    "price_tier": "'standard'",
    "meter": "'input_token'",
    "quantity": "tokens_total",
    "input_count": "1",
    "tool_version": "''",
}


PORTION = 2 * 122_880
"""Lines taken in at once: row groups of DuckDB, one for each of two cores to compress. Row groups that are not full
are copied into full ones when the file is closed: that takes as long as all the rest, and the file grows to twice the
size."""

_LONG = 1000  # bytes; longer lines are mostly strings, which fill the memory that DuckDB is given
_LONG_BYTES = 64 << 20  # of a portion, beyond that
_LINE = 2 * LINE_BYTES  # bytes a line may have; DuckDB sets aside twice as much for each core


_AMOUNT = "try_cast(cost_provider AS DECIMAL(28,15))"


@dataclass(frozen=True, slots=True)
class Taken:
    """A spool file whose lines are in the temporary table `batch`, as `spool_offset` remembers it."""

    spool_id: str
    size_bytes: int
    lines: int
    bad: int


def lines_of(files: Iterable[SpoolFile], taken: list[Taken]) -> Iterator[bytes]:
    """Every good line as `load` wants it; a file is in `taken` once its last line has been given."""
    for file in files:
        head = b'{"spool_id":%s,' % orjson.dumps(file.spool_id)
        for line in file.lines:
            yield head + line[1:] + b"\n"
        taken.append(Taken(file.spool_id, file.size_bytes, len(file.lines), file.bad))


def load(connection: duckdb.DuckDBPyConnection, paths: LedgerPaths, lines: Iterator[bytes]) -> int:
    """Fill the temporary table `batch` with the next lines, through a file: DuckDB parses it on all cores.

    Returns:
        How many lines that were; 0 at the end.
    """
    portion = _portion(lines)
    first = next(portion, None)
    if first is None:
        return 0
    with private_folder(DISK, paths.database) as folder:
        place = folder / "batch"
        try:
            with place.open("xb") as out:
                out.write(first)
                out.writelines(portion)
        except OSError as error:
            raise StorageFailed(f"{place} cannot be written: {error.strerror}") from error
        columns = ", ".join(f"'{name}': '{kind}'" for name, kind in _COLUMNS.items())
        values = ", ".join(f"coalesce({name}, {default}) AS {name}" for name, default in _DEFAULTS.items())
        values += f", {rating.not_believed('cost_provider', f'{_AMOUNT} IS NULL')} AS reason"
        row = connection.execute(
            f"CREATE OR REPLACE TEMP TABLE batch AS SELECT * EXCLUDE (cost_provider, tags) REPLACE ({values}), "
            f"{_AMOUNT} AS amount, CAST(tags AS VARCHAR) AS tags "
            f"FROM read_json(?, format = 'newline_delimited', columns = {{{columns}}}, maximum_object_size = {_LINE})",
            [str(place)],
        ).fetchone()
    return int(row[0]) if row else 0


def _portion(lines: Iterator[bytes]) -> Iterator[bytes]:
    left = _LONG_BYTES
    for line in islice(lines, PORTION):
        yield line
        left -= max(0, len(line) - _LONG)
        if left <= 0:
            return


def insert(connection: duckdb.DuckDBPyConnection, now: datetime) -> int:
    """Rate `batch` and insert what is not there yet; by a window of ids, so that old row groups are not read."""
    row = connection.execute("SELECT min(event_id), max(event_id), count(*), count(DISTINCT event_id) FROM batch")
    low, high, lines, events = row.fetchone() or (None, None, 0, 0)
    twice = events < lines  # to tell them apart costs as much as all the rest
    once = "DISTINCT ON (event_id)" if twice else ""
    what_is_known_first = "ORDER BY event_id, status = 'interrupted', tokens_total DESC" if twice else ""
    inserted = connection.execute(
        f"INSERT INTO usage_event BY NAME SELECT {once} *, ?::TIMESTAMPTZ AS recorded_at, "
        "CASE WHEN cost_status <> 'unpriced' THEN ?::TIMESTAMPTZ END AS rated_at "
        f"FROM ({rating.RATED}) n WHERE NOT EXISTS "
        "(SELECT 1 FROM usage_event u WHERE u.event_id BETWEEN ? AND ? AND u.event_id = n.event_id) "
        f"{what_is_known_first}",
        [now, now, low, high],
    ).fetchone()
    return int(inserted[0]) if inserted else 0


def remember_aliases(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep whose prices each provider is charged by, when that is news."""
    news = connection.execute(
        "SELECT a.provider, nullif(a.latest, '') FROM "
        "(SELECT provider, arg_max(coalesce(price_as, ''), occurred_at) AS latest "
        "FROM batch WHERE entry_kind = 'usage' GROUP BY provider) a "
        "WHERE NOT EXISTS (SELECT 1 FROM price_alias p "
        "WHERE p.provider = a.provider AND coalesce(p.price_as, '') = a.latest)"
    ).fetchall()
    for provider, price_as in news:
        connection.execute("DELETE FROM price_alias WHERE provider = ?", [provider])
        connection.execute("INSERT INTO price_alias VALUES (?, ?)", [provider, price_as])

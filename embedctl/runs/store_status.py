"""What `batch status` and `batch failures` say of a job on a store: from the store alone, whoever works on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from embedctl.errors import InputMissing
from embedctl.journal.shard_log import SHARDS
from embedctl.ledger import spool
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.outputs import FAILURES
from embedctl.outputs.parquet import Part
from embedctl.records import utc_now
from embedctl.runs import store_plan
from embedctl.runs.receipt import Spending
from embedctl.storage.store import Store, StoredObject
from embedctl.storage.store_file import StoreFile

READS_AT_ONCE = 16

_AHEAD = 1 << 16
"""Of a part only its footer and its ids are read."""


def status(store: Store, price_file: Path) -> dict[str, Any]:
    """How a job stands, and what was spent for it by all its workers, as far as they have said it.

    Args:
        price_file: The user's own prices.

    Raises:
        InputMissing: There is none.
        OutputRefused: Something else stands in its place.
        StoreDenied, StoreUnreachable: The store cannot be read.
    """
    plan = store_plan.read_plan(store)
    if plan is None:
        raise InputMissing(f"{store.url} is no output of embedctl", hint="name what `batch run -o` was given")
    found = store_plan.read_manifest(store)
    done = set(range(len(plan.shards))) if found else store_plan.done_ordinals(store, plan)
    tails = [] if found else [(shard, tail) for shard, tail in store_plan.tails(store, plan, done) if tail is not None]
    begun = [tail for _, tail in tails]
    spending = _spent(store, price_file)
    if found is not None:
        counts, reasons = found.counts, dict(found.failed_reasons)
    else:
        counts, reasons = _so_far(store, plan, done)
    shards = len(plan.shards)
    return {
        "output": store.url,
        "job": plan.job,
        "job_id": plan.job_id,
        "state": "completed" if found else "running" if begun or done else "planned",
        "model": plan.model,
        "workspace": plan.workspace,
        "workspace_column": plan.workspace_column,
        "planned_at": plan.at or None,
        "version": plan.version,
        "progress": round(len(done) / shards, 4) if shards else 1.0,
        "shards": {"total": shards, "done": len(done), "begun": len(begun),
                   "drained": sum(tail.is_drained for tail in begun), "free": shards - len(done) - len(begun)},
        "working": [{"shard": plan.label(shard), "rows": shard.rows, "worker": tail.worker, "drained": tail.is_drained,
                     "parts": len(store.list(f"part-{plan.label(shard)}-"))} for shard, tail in tails],
        "workers": sorted({tail.worker for tail in begun if tail.worker and not tail.is_drained}),
        "counts": asdict(counts),
        "failed_reasons": reasons,
        "cost": spending.cost if spending.priced or not spending.attempts else None,
        "cost_is_lower_bound": spending.unpriced,
        "cost_at_risk": spending.cost_at_risk,
        "tokens": spending.tokens,
        "tokens_unknown": spending.tokens_unknown,
        "attempts": spending.attempts,
    }  # fmt: skip


def _spent(store: Store, price_file: Path) -> Spending:
    """What is among the job's usage: of shards that are not done, their workers' last half minute is still to come."""
    spending = Spending(RunPrices(price_file, utc_now()).price)
    with ThreadPoolExecutor(READS_AT_ONCE) as reading:
        for content in reading.map(store.read, store.list(store_plan.USAGE)):
            for event in spool.events(content):
                spending.count(event)
    return spending


def whereabouts(store: Store, row_id: str) -> dict[str, Any]:
    """What became of one row: embedded, failed, skipped; waiting while the job is not finished, else absent.

    Raises:
        InputMissing, OutputRefused, StoreDenied, StoreUnreachable: As `status`.
    """
    plan = store_plan.read_plan(store)
    if plan is None:
        raise InputMissing(f"{store.url} is no output of embedctl", hint="name what `batch run -o` was given")
    found = store_plan.read_manifest(store, plan)
    unfinished = () if found else [name for name in store.list(SHARDS) if "/failed/" in name]
    for failure in (
        failure for name in [*store.list(store_plan.FAILURES), *unfinished] for failure in _of(store, name)
    ):
        if str(failure["id"]) == row_id:
            return {"id": row_id, "state": "skipped" if failure.get("skipped") else "failed", "failure": failure}
    for name in [part.name for part in found.parts] if found else store.list("part-"):
        one = store.stat(name)
        if one is None:
            continue

        def opened(one: StoredObject = one) -> BinaryIO:
            url = f"{store.url}/{one.name}"
            return cast("BinaryIO", StoreFile(store, one.name, one.size, one.etag, url=url, ahead=_AHEAD))

        if chunks := Part(Path(name), 0, opened).rows_of(row_id):
            return {"id": row_id, "state": "embedded", "part": name, "chunks": chunks}
    return {"id": row_id, "state": "absent" if found else "waiting"}


def _so_far(store: Store, plan: store_plan.StorePlan, done: set[int]) -> tuple[Any, dict[str, int]]:
    """Counts of the shards that are done, and why rows of them failed."""
    with ThreadPoolExecutor(READS_AT_ONCE) as reading:
        shards = (shard for shard in plan.shards if shard.ordinal in done)
        ended = [one for one in reading.map(partial(store_plan.read_done, store, plan), shards) if one is not None]
    reasons: dict[str, int] = {}
    for one in ended:
        for reason, count in one.failed_reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return store_plan.total([one.counts for one in ended]), reasons


def failures(store: Store) -> Iterator[Mapping[str, Any]]:
    """Every failure that is listed; lines that somebody broke say nothing."""
    for name in [*store.list(store_plan.FAILURES), FAILURES]:
        yield from _of(store, name)


def _of(store: Store, name: str) -> Iterator[Mapping[str, Any]]:
    with suppress(FileNotFoundError):
        for line in store.read(name).splitlines():
            with suppress(orjson.JSONDecodeError, RecursionError):
                failure = orjson.loads(line)
                if isinstance(failure, dict) and "id" in failure:
                    yield failure

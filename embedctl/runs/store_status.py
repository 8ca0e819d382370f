"""What `batch status` and `batch failures` say of a job on a store: from the store alone, whoever works on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import orjson

from embedctl.errors import InputMissing
from embedctl.outputs import FAILURES
from embedctl.runs import store_plan
from embedctl.storage.store import Store

READS_AT_ONCE = 16


def status(store: Store) -> dict[str, Any]:
    """How a job stands.

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
    begun = [] if found else [tail for _, tail in store_plan.tails(store, plan, done) if tail is not None]
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
        "planned_at": plan.at or None,
        "version": plan.version,
        "progress": round(len(done) / shards, 4) if shards else 1.0,
        "shards": {"total": shards, "done": len(done), "begun": len(begun),
                   "drained": sum(tail.is_drained for tail in begun), "free": shards - len(done) - len(begun)},
        "workers": sorted({tail.worker for tail in begun if tail.worker and not tail.is_drained}),
        "counts": asdict(counts),
        "failed_reasons": reasons,
    }  # fmt: skip


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
        with suppress(FileNotFoundError):
            for line in store.read(name).splitlines():
                with suppress(orjson.JSONDecodeError, RecursionError):
                    failure = orjson.loads(line)
                    if isinstance(failure, dict) and "id" in failure:
                        yield failure

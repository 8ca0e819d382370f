"""What a job on a store has spent, on its way into a ledger here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from embedctl.dataclass import dataclass
from embedctl.errors import Locked
from embedctl.journal import Trust, recover
from embedctl.journal.shard_log import Patience, ShardLog, boot_time, is_there, tail
from embedctl.journal.shipping import fetch
from embedctl.ledger import spool
from embedctl.records import UsageEvent, uuid7
from embedctl.runs import store_plan
from embedctl.runs.store_plan import USAGE, StorePlan
from embedctl.storage import DISK, Disk
from embedctl.storage.store import AT_ONCE, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedUsage:
    """What came of it.

    Attributes:
        files: Usage objects that were not known here.
        open_shards: Not done: what their workers have not yet put among the usage is not counted.
        sealed: Shards whose dead workers' spending was booked.
    """

    files: int
    open_shards: int
    sealed: int = 0


def spool_to(log: ShardLog, segment_id: str, events: Sequence[UsageEvent]) -> bool:
    """Put a segment's events among the job's usage; whether they are there and ours."""
    return log.put(f"{USAGE}{segment_id}{spool.SUFFIX}", spool.content(events))


def copy(store: Store, into: Path, *, patience: Patience | None = None, disk: Disk = DISK) -> int:
    """Copy what is among the job's usage into a spool, as far as it is not known there; how many files.

    Raises:
        StoreUnreachable: The store cannot be reached.
    """
    patience = patience or Patience()
    new = []
    for name in patience.with_(lambda: store.list(USAGE)):
        spool_id = name.removeprefix(USAGE).removesuffix(spool.SUFFIX)
        if name.endswith(spool.SUFFIX) and spool.is_id(spool_id) and not spool.is_known(into, spool_id):
            new.append((spool_id, name))
    copied = 0
    with ThreadPoolExecutor(AT_ONCE, "usage") as readers:
        read = readers.map(lambda one: patience.with_(lambda: store.read(one[1])), new)
        for (spool_id, _), content in zip(new, read, strict=True):
            copied += spool.copy(into, spool_id, content, disk=disk)
    return copied


def take_in(
    store: Store,
    into: Path,
    *,
    seal: bool = False,
    lease_s: float = 60.0,
    patience: Patience | None = None,
    disk: Disk = DISK,
    clock: Callable[[], float] = boot_time,
    sleep: Callable[[float], object] = time.sleep,
) -> CopiedUsage:
    """Take in what a job has spent by now.

    Args:
        into: The ledger's spool.
        seal: Claim every shard that is not done, and book what dead workers began and did not end as unknown.

    Raises:
        OutputRefused: There is no job.
        Locked: A living worker holds a shard that was to be sealed.
    """
    patience = patience or Patience()
    plan = patience.with_(lambda: store_plan.plan_of(store))
    sealed = _sealed(store, plan, lease_s, patience, clock, sleep) if seal else 0
    left = len(plan.shards) - len(patience.with_(lambda: store_plan.done_ordinals(store, plan)))
    return CopiedUsage(files=copy(store, into, patience=patience, disk=disk), open_shards=left, sealed=sealed)


def _sealed(
    store: Store,
    plan: StorePlan,
    lease_s: float,
    patience: Patience,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> int:
    """Book what the open shards of dead workers have begun; how many those were."""
    worker = str(uuid7())
    done = patience.with_(lambda: store_plan.done_ordinals(store, plan))
    begun = {}
    for shard in plan.shards:
        name = plan.label(shard)
        end = None if shard.ordinal in done else patience.with_(lambda n=name: tail(store, n))  # type: ignore[misc]
        if end is not None:
            begun[name] = end
    if any(not end.is_drained for end in begun.values()):
        began = clock()
        while clock() - began < lease_s:  # one lease for all of them
            sleep(min(1.0, lease_s / 10))
    for name, end in begun.items():
        log = ShardLog(store, name, worker, lease_s=lease_s, patience=patience, clock=clock)
        if is_there(store, name, end.number + 1) or not log.claim(end.number + 1):
            raise Locked(
                f"a living worker holds shard {name} of {store.url}",
                hint="wait for it, or stop it; without --seal what is booked by now is taken in",
            )
        book(log, plan)
    return len(begun)


def book(log: ShardLog, plan: StorePlan) -> None:
    """Put what a shard's earlier holders have begun among the job's usage, and let it go.

    Args:
        log: Claimed.
    """
    with TemporaryDirectory() as folder:
        fetch(log, Path(folder) / "journal")
        for segment in recover(Path(folder) / "journal", trust(plan), fenced=True).segments:
            if segment.events:
                spool_to(log, segment.segment_id, segment.events)
    log.release(drained=True)


def trust(plan: StorePlan) -> Trust:
    """Believes the journals of a job's workers."""
    return Trust(bytes.fromhex(plan.secret))

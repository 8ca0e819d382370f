"""What the metadata of a very large job comes to, with real files: seconds, bytes and calls of the store for each step.

    python benchmarks/scale.py --rows 100000000 1000000000 [--events 500000]

No text is embedded: inputs are files of 1,000,000 rows in 10 row groups, shards 1,000,000 rows, parts of 24,400,
requests of 294. The store is a folder. The ledger takes in as many events as --events says; more are extrapolated,
marked "~".
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ledger

from embedctl.inputs.source import FileSize
from embedctl.journal.shard_log import done_name
from embedctl.outputs import parquet
from embedctl.outputs.parts import PublishedPart
from embedctl.planning import shards
from embedctl.records import RowCounts
from embedctl.runs import store_plan
from embedctl.runs.store_plan import ShardDone, StorePlan
from embedctl.runs.store_run import _listing, _units
from embedctl.storage.store import LocalStore, Store, StoredObject

FILE_ROWS, GROUPS, PART_ROWS, REQUEST_ROWS = 1_000_000, 10, 24_400, 294


class Counted:
    """A store that counts calls; of a listing each thousand names are one."""

    def __init__(self, inner: LocalStore) -> None:
        self.inner, self.url, self.calls = inner, inner.url, 0

    def put_if_absent(self, name: str, content: Any, *, write_id: str | None = None) -> bool:
        self.calls += 1
        path = self.inner.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return False
        path.write_bytes(content)  # without fsync: a store's own time is not measured here
        return True

    def read(self, name: str) -> bytes:
        self.calls += 1
        return self.inner.read(name)

    def read_range(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        self.calls += 1
        return self.inner.read_range(name, start, end, etag=etag)

    def view(self, name: str, start: int, end: int, *, etag: str | None = None) -> Any:
        return self.read_range(name, start, end, etag=etag)

    def stat(self, name: str) -> StoredObject | None:
        self.calls += 1
        return self.inner.stat(name)

    def list(self, prefix: str = "") -> Sequence[str]:
        found = self.inner.list(prefix)
        self.calls += 1 + len(found) // 1000
        return found

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        for number, one in enumerate(self.inner.objects(prefix)):
            self.calls += number % 1000 == 0
            yield one

    def remove(self, name: str) -> None:
        self.calls += 1
        (self.inner.folder / name).unlink(missing_ok=True)


def planned(rows: int) -> tuple[bytes, StorePlan]:
    """`inputs.parquet`, and the plan."""
    files = -(-rows // FILE_ROWS)
    folder = "s3://bucket/input/year=2026"
    marks = [(f"{folder}/part-{number:07d}.parquet", 1 << 30, f'"{number:032x}"') for number in range(files)]
    sizes = [FileSize(size_bytes=1 << 30, rows=FILE_ROWS, group_rows=(FILE_ROWS // GROUPS,) * GROUPS)] * files
    cut = shards.cut(list(_units(sizes)), "0" * 32)
    plan = StorePlan(
        job_id="job", version="1", binding="0" * 32, input={}, options={}, model="openai:text-embedding-3-small",
        workspace="default", ledger="ledger", secret="0" * 64, shard_rows=shards.SHARD_ROWS, shards=cut,
    )  # fmt: skip
    return _listing(marks, sizes), plan


def done(plan: StorePlan, ordinal: int) -> ShardDone:
    counts = RowCounts(read=FILE_ROWS, vectors=FILE_ROWS)
    parts = [
        PublishedPart(
            name=f"part-{plan.label(plan.shards[ordinal])}-{number:06d}.parquet", number=number, id="0" * 32,
            rows=PART_ROWS, bytes=150 << 20, sha256="0" * 64, counts=RowCounts(read=PART_ROWS, vectors=PART_ROWS),
            rows_hash="0" * 32,
        )
        for number in range(-(-FILE_ROWS // PART_ROWS))
    ]  # fmt: skip
    shard = plan.shards[ordinal]
    return ShardDone(ordinal=ordinal, key=shard.key, counts=counts, parts=parts, space_id="space", worker="0" * 36)


def step(name: str, store: Counted, work: Callable[[], Any], size: Callable[[Any], int] | None = None) -> Any:
    """Do it, and print what it took."""
    before, began = store.calls, time.perf_counter()
    found = work()
    seconds = time.perf_counter() - began
    shown = f"{size(found):,}" if size else ""
    print(f"  {name:<46}{seconds:>9.3f}{shown:>14}{store.calls - before or '':>9}", flush=True)
    return found


def looked_for(store: Store, plan: StorePlan, finished: set[int]) -> int:
    """What a worker looks at before it takes a shard: the ends of all logs that are not done."""
    return sum(end is None for _, end in store_plan.tails(store, plan, finished))


def measure(rows: int, events: int, folder: Path) -> None:
    store = Counted(LocalStore(folder / "store"))
    print(f"{rows:,} rows{'':<32}{'s':>15}{'bytes':>14}{'calls':>9}")
    listing, plan = step("cut the shards, inputs.parquet", store, lambda: planned(rows), lambda found: len(found[0]))
    step("read inputs.parquet", store, lambda: parquet.read_listing(listing))
    content = step("plan.json", store, lambda: store_plan.encoded(plan), len)
    store.put_if_absent("_embedctl/plan.json", content)
    step("read plan.json", store, lambda: store_plan.read_plan(store))
    step("a look at all shards", store, lambda: looked_for(store, plan, set()))
    made = [done(plan, number) for number in range(len(plan.shards))]
    lists = [store_plan.encoded(one) for one in made]
    for shard, text in zip(plan.shards, lists, strict=True):
        store.put_if_absent(done_name(plan.label(shard)), text)
        for part in made[shard.ordinal].parts:
            (store.inner.folder / part.name).touch()
    parts = sum(len(one.parts) for one in made)
    step("which shards are done", store, lambda: store_plan.done_ordinals(store, plan))
    step(f"list {parts:,} parts", store, lambda: store.list("part-"))
    manifest = step("manifest from all done/", store, lambda: store_plan.manifest(store, plan))
    step("manifest.json", store, lambda: store_plan.encoded(manifest), len)
    step("finish", store, lambda: store_plan.finish(store, plan))
    step("read the manifest", store, lambda: store_plan.read_manifest(store, plan))
    print(f"  {'all done/':<46}{'':>9}{sum(map(len, lists)):>14,}")
    whole = rows // REQUEST_ROWS
    taken = min(events, whole)
    paths = ledger.of(folder / "home")
    paths.price_file.parent.mkdir(parents=True)
    paths.price_file.write_text(ledger.PRICES)
    ledger.fill(paths, taken, 0, taken, random.Random(7))
    seconds, _, peak = ledger.in_a_process(paths)
    times, mark = whole / taken, "~" if taken < whole else ""
    size = paths.database.stat().st_size
    name, shown_s = f"ledger takes in {whole:,} events", f"{mark}{seconds * times:.1f}"
    shown = f"{mark}{size * times:,.0f}"
    print(f"  {name:<46}{shown_s:>9}{shown:>14}   peak {peak:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10**8, 10**9])
    parser.add_argument("--events", type=int, default=500_000)
    args = parser.parse_args()
    for rows in args.rows:
        folder = Path(tempfile.mkdtemp(prefix="embedctl-scale-"))
        try:
            measure(rows, args.events, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""What a worker does with a job on a store, beside dying."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import ConfigurationInvalid, EmbedctlError, OutputRefused, WrongUsage
from embedctl.journal.shard_log import ShardLog, label, tail
from embedctl.outputs.parquet import matrix
from embedctl.records import utc_now
from embedctl.runs import store_plan, store_status, store_usage
from embedctl.runs.receipt import Receipt
from embedctl.storage.locks import hold
from tests.support.crashed_runs import MODEL, WIDTH
from tests.support.processes import sentence
from tests.support.store_world import WORKERS_DIE, CrashingStore, StoreWorld
from tests.support.wire.client import Wire, expected, hash_of

pytestmark = WORKERS_DIE

TEXTS = [sentence(number) for number in range(12)]


@pytest.fixture
def world(store_world: StoreWorld) -> StoreWorld:
    store_world.fill(TEXTS)
    return store_world


def done(ended: Receipt | EmbedctlError | None, code: int = 0) -> Receipt:
    assert isinstance(ended, Receipt), ended
    assert ended.exit_code == code, ended.error
    return ended


def lines(world: StoreWorld, name: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in world.place.read(name).splitlines()]


def test_rows_that_fail_are_listed_shard_by_shard(world: StoreWorld) -> None:
    """A refused text is in the failures of its shard, also when the worker that found it died after its part."""
    world.wire.plan(poison=[TEXTS[0], TEXTS[7]])
    dying = CrashingStore(world.place, 16, after=True)
    assert world.work(dying) is None
    receipt = done(world.work(), 3)

    assert (receipt.rows, receipt.vectors, receipt.failed) == (12, 10, 2)
    assert receipt.failures == f"{world.place.url}/failures/"
    assert receipt.failed_reasons == {"text_refused": 2}
    names = world.place.list("failures/")
    assert [(name, line["id"]) for name in names for line in lines(world, name)] == [
        ("failures/00000.jsonl", 0), ("failures/00001.jsonl", 7)
    ]  # fmt: skip
    manifest = store_plan.read_manifest(world.place)
    assert manifest is not None
    assert list(manifest.failures) == list(names)
    world.check_bill()


def test_a_large_file_is_cut_between_row_groups(world: StoreWorld) -> None:
    """Shards of one Parquet file are row groups of it; rows without an id are numbered over the whole input."""
    for old in (world.folder / "in").iterdir():
        old.unlink()
    texts = pa.table({"text": TEXTS})
    pq.write_table(texts, world.folder / "in" / "all.parquet", row_group_size=3)
    done(world.work())

    plan = store_plan.plan_of(world.place)
    assert [(shard.first_row, shard.rows) for shard in plan.shards] == [(0, 6), (6, 6)]
    assert [shard.pieces for shard in plan.shards] == [((0, (0, 2)),), ((0, (2, 4)),)]
    world.check_rows(TEXTS)


def test_rows_nobody_has_counted_are_numbered_too(world: StoreWorld) -> None:
    """JSON Lines are cut by whole files; their rows are counted once, so that each has its number in the input."""
    for old in (world.folder / "in").iterdir():
        old.unlink()
    for number in range(3):
        some = TEXTS[number * 4 : number * 4 + 4]
        content = b"".join(orjson.dumps({"text": text}) + b"\n" for text in some)
        (world.folder / "in" / f"{number}.jsonl").write_bytes(content)
    done(world.work(flags={"shard_rows": 1}))

    assert len(store_plan.plan_of(world.place).shards) == 3
    world.check_rows(TEXTS)


def test_an_input_without_rows(world: StoreWorld) -> None:
    """A header without rows is an output without rows: one empty part, so that readers find its columns."""
    for old in (world.folder / "in").iterdir():
        old.unlink()
    nothing = pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())})
    pq.write_table(nothing, world.folder / "in" / "none.parquet")
    receipt = done(world.work())

    assert (receipt.rows, receipt.vectors) == (0, 0)
    assert len(world.table()) == 0


def test_two_workers_share_a_job(world: StoreWorld) -> None:
    """Two at once: every shard is one worker's, nothing is bought twice, and both end when all is done."""
    world.fill([sentence(number) for number in range(36)], files=6)
    ended = side_by_side(world, {"lease": 60.0}, {"lease": 60.0})

    assert [done(one).vectors for one in ended] == [36, 36]  # type: ignore[arg-type]
    world.check_rows([sentence(number) for number in range(36)])
    assert {times["standard"] for times in world.wire.invoice()["texts"].values()} == {1}


def test_who_is_about_to_begin_is_not_dead(world: StoreWorld) -> None:
    """A worker's folder with a lock that it has not taken yet stays; one of a dead worker is removed."""
    scratch = world.job().scratch
    beginning, dead = scratch / "beginning", scratch / "dead"
    for folder in (beginning, dead):
        folder.mkdir(parents=True)
    (beginning / "lock").touch()
    hold(dead / "lock").release()
    done(world.work())

    assert (beginning / "lock").exists()
    assert not dead.exists()


def side_by_side(world: StoreWorld, *flags: dict[str, Any]) -> list[object]:
    """Workers at once, each with its flags; how each ended."""
    ended: dict[int, object] = {}

    def work(number: int) -> None:
        ended[number] = world.work(hurried=False, flags=flags[number])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(flags))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [ended[number] for number in range(len(flags))]


def share(number: int, of: int = 2, **flags: Any) -> dict[str, Any]:
    return {"shard": f"{number}/{of}", **flags}


def test_shares_are_worked_on_side_by_side(world: StoreWorld) -> None:
    """Two shares of a job with limits: both end with 0 when all is done, every text is bought once, nothing is left."""
    texts = [sentence(number) for number in range(36)]
    world.fill(texts, files=6)
    limits = {"max_cost": Decimal(1), "rpm": 100_000, "tpm": 10**9}
    ended = side_by_side(world, share(0, **limits), share(1, **limits))

    assert [done(one).vectors for one in ended] == [36, 36]  # type: ignore[arg-type]
    world.check_rows(texts)
    world.check_bill()
    world.check_no_leftovers()
    assert {times["standard"] for times in world.wire.invoice()["texts"].values()} == {1}


def test_a_share_leaves_the_others_alone(world: StoreWorld) -> None:
    """With --no-wait it ends with 75 when its own shards are done; the last one makes the manifest, and ends with 0."""
    world.fill([sentence(number) for number in range(36)], files=6)
    first = world.work(flags=share(1, wait=False))
    assert done(first, 75).error is not None
    plan = store_plan.plan_of(world.place)
    assert store_plan.done_ordinals(world.place, plan) == {1, 3, 5}
    assert len(world.wire.invoice()["texts"]) == 18

    done(world.work(flags=share(0, wait=False)))
    world.check_rows([sentence(number) for number in range(36)])


def test_a_share_is_killed_and_run_again(world: StoreWorld) -> None:
    """One dies while another works: the other waits for it, its rerun goes on, and the bill stays bounded."""
    texts = [sentence(number) for number in range(36)]
    world.fill(texts, files=6)
    assert world.work(CrashingStore(world.place, 14), flags=share(0)) is None
    ended = side_by_side(world, share(1), share(0))

    assert [done(one).vectors for one in ended] == [36, 36]  # type: ignore[arg-type]
    world.check_rows(texts)
    world.check_bill()
    again = sum(times["standard"] - 1 for times in world.wire.invoice()["texts"].values())
    assert again <= (2 + 2) * 3  # two requests in flight, two answers on their way


def test_a_share_spends_its_part(world: StoreWorld) -> None:
    """--max-cost is of the whole job: a share stops at its part of it, also after a rerun, whatever others spend."""
    world.fill([sentence(number) for number in range(36)], files=6)
    most = Decimal("0.00000198")  # a share of it is what `test_max_cost_is_of_the_whole_job` stops at
    for _ in range(3):
        assert done(world.work(flags=share(0, wait=False, max_cost=most)), 4).error is not None
        assert world.wire.billed() * Decimal("0.02") / 1_000_000 <= most / 2
    billed = world.wire.billed()
    assert done(world.work(flags=share(1, wait=False, max_cost=most)), 4).error is not None

    assert world.wire.billed() > billed
    assert world.wire.billed() * Decimal("0.02") / 1_000_000 <= most


@pytest.mark.parametrize("other", [{}, share(0, 3)])
def test_limits_are_divided_once(world: StoreWorld, other: dict[str, Any]) -> None:
    """A worker with another number of shares, or with none, would send more than the job may: 78, nothing is sent."""
    limits = {"tpm": 10**9}
    done(world.work(flags=share(1, 2, wait=False, **limits)), 75)
    seen = len(world.wire.truth())
    refused = world.work(flags={**other, **limits})

    assert isinstance(refused, ConfigurationInvalid), refused
    assert "--shard I/2" in refused.message
    assert len(world.wire.truth()) == seen


class Budgeted(StoreWorld):
    @property
    def config(self) -> str:
        path = self.folder / "config.toml"
        path.write_text('[workspaces.default]\nbudget = { period = "month", amount = "2", action = "block" }\n')
        return str(path)


def test_budgets_are_not_divided(tmp_path: Path, wire: Wire) -> None:
    """A workspace's budget is kept by each machine's own ledger: a share of such a job is refused, nothing is sent."""
    wire.reset()
    world = Budgeted(tmp_path, wire)
    world.fill(TEXTS)

    assert isinstance(world.work(flags=share(0)), ConfigurationInvalid)
    assert wire.truth() == []


def test_workers_do_not_share_a_budget(world: StoreWorld) -> None:
    """A job with --max-cost is one worker's: another one that finds it at work is refused, 78."""
    with alive(holding(world, max_cost="5")):
        refused = world.work(hurried=False, flags={"max_cost": Decimal(5), "lease": 60.0})

    assert isinstance(refused, ConfigurationInvalid), refused
    assert "--shard I/N" in str(refused.hint)
    assert world.wire.truth() == []


def holding(world: StoreWorld, **flags: Any) -> list[ShardLog]:
    """All shards of the job in the hands of a worker on another machine."""
    options = {name: Decimal(value) for name, value in flags.items()}
    dying = CrashingStore(world.place, 5, after=True)  # the plan is there
    assert world.work(dying, flags=options) is None
    plan = store_plan.plan_of(world.place)
    logs = []
    for shard in plan.shards:
        end = tail(world.place, plan.label(shard))
        log = ShardLog(world.place, plan.label(shard), "elsewhere", lease_s=60)
        assert log.claim(0 if end is None else end.number + 1)
        logs.append(log)
    world.wire.reset()
    return logs


@contextmanager
def alive(logs: Sequence[ShardLog]) -> Iterator[None]:
    """Their worker says again and again that it lives."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            for log in logs:
                log.append({"beat": "now"})

    beats = threading.Thread(target=beat)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()


@pytest.mark.parametrize("ahead", [timedelta(days=365), timedelta(days=-365)])
def test_who_does_not_wait_ends_with_75(world: StoreWorld, ahead: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    """--no-wait ends when all that is left is held by workers that live; without news of a lease it is taken. Whatever
    the clocks of their machines show.
    """
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("embedctl.journal.shard_log.utc_now", lambda: utc_now() + ahead)
        logs = holding(world)
    with alive(logs):
        ended = world.work(hurried=False, flags={"wait": False, "lease": 60.0})
    assert done(ended, 75).error is not None

    done(world.work())
    world.check_rows(TEXTS)


def test_a_job_that_is_worked_on_tells_who_does_what(world: StoreWorld) -> None:
    """Status names the shards in work, their rows and workers; cost is what the usage says, also when all is done."""
    holding(world)
    prices = world.order().settings.paths.price_file
    status = store_status.status(world.place, prices)

    assert (status["state"], status["shards"]["free"]) == ("running", 0)
    assert sum(one["rows"] for one in status["working"]) == 12
    assert {one["worker"] for one in status["working"]} == {"elsewhere"}
    assert store_status.whereabouts(world.place, "3") == {"id": "3", "state": "waiting"}

    done(world.work())
    status = store_status.status(world.place, prices)
    assert status["working"] == []
    assert status["cost"] == world.wire.billed() * Decimal("0.02") / 1_000_000
    assert store_status.whereabouts(world.place, "3")["state"] == "embedded"


def test_max_cost_is_of_the_whole_job(world: StoreWorld) -> None:
    """What dead workers have spent counts against --max-cost of the next one."""
    most = {"max_cost": Decimal("0.00000099")}  # ten requests of 12 tokens at 0.02 USD are more
    dying = CrashingStore(world.place, 17)
    assert world.work(dying, flags=most) is None
    stopped = world.work(flags=most)

    assert done(stopped, 4).error is not None
    assert world.wire.billed() * Decimal("0.02") / 1_000_000 <= most["max_cost"]


def test_a_job_that_is_given_up_is_sealed(world: StoreWorld, tmp_path: Path) -> None:
    """--seal books what a dead worker began as perhaps billed; the ledger's bounds hold, and a job may still go on."""
    dying = CrashingStore(world.place, 15)
    assert world.work(dying) is None
    copied = store_usage.take_in(world.place, tmp_path / "home" / "spool", seal=True, lease_s=0.1)
    world._take_in(world.order().settings.paths)  # type: ignore[arg-type]

    assert copied.sealed >= 1
    world.check_bill()
    done(world.work())
    world.check_rows(TEXTS)
    world.check_bill()


@pytest.mark.parametrize(
    ("flags", "about"),
    [
        ({"cache": True}, {}),
        ({"mode": "batch"}, {}),
        ({"unique_ids": True}, {}),
        ({}, {"overwrite": True}),
        ({}, {"retry_failed": True}),
    ],
)
def test_what_stores_cannot_is_refused(world: StoreWorld, flags: dict[str, Any], about: dict[str, Any]) -> None:
    """Nothing is sent, and the code is 2."""
    assert isinstance(world.work(flags=flags, **about), WrongUsage)
    assert world.wire.truth() == []


def test_another_output_is_not_touched(world: StoreWorld) -> None:
    """A prefix with something else under it, or with a plan that is none, is refused: 73."""
    world.place.put_if_absent("notes.txt", b"mine")
    assert isinstance(world.work(), OutputRefused)
    world.place.remove("notes.txt")
    world.place.put_if_absent("_embedctl/plan.json", b"{}")
    assert isinstance(world.work(), OutputRefused)
    assert world.wire.truth() == []


def test_a_store_that_overwrites_is_refused(world: StoreWorld) -> None:
    """Two creations that both succeed: 73, before anything is sent."""

    class Overwriting(CrashingStore):
        def put_if_absent(self, name: str, content: Any, *, write_id: str | None = None) -> bool:
            self.inner.remove(name)
            return self.inner.put_if_absent(name, content, write_id=write_id)

    assert isinstance(world.work(Overwriting(world.place)), OutputRefused)
    assert world.wire.truth() == []


def in_order(world: StoreWorld) -> list[str]:
    """Texts as the newest manifest has them."""
    manifest = store_plan.read_manifest(world.place)
    assert manifest is not None
    tables = [pq.read_table(pa.BufferReader(world.place.read(part.name))) for part in manifest.parts]
    whole = pa.concat_tables(tables)
    texts = whole.column("text").to_pylist()
    assert np.allclose(matrix(whole.column("embedding"), WIDTH), expected(texts, MODEL, WIDTH), atol=1e-6)
    assert set(world.place.list("part-")) == {part.name for part in manifest.parts}
    return list(texts)


def test_a_rerun_buys_what_is_new(world: StoreWorld) -> None:
    """Unchanged shards keep their parts; changed ones take known texts from the parts that are there."""
    world.fill(TEXTS, files=4)
    cut = {"shard_rows": 3}
    done(world.work(flags=cut))
    before = world.place.list("part-")
    world.wire.reset()
    changed = [*TEXTS[6:9], sentence(100)]
    path = world.folder / "in" / "2.parquet"
    pq.write_table(pa.table({"id": range(6, 10), "text": changed}), path)
    receipt = done(world.work(flags=cut))

    assert in_order(world) == [*TEXTS[:6], *changed, *TEXTS[9:]]
    assert list(world.wire.invoice()["texts"]) == [hash_of(sentence(100))]
    assert (receipt.rows, receipt.vectors, receipt.reused) == (13, 13, 12)
    kept = set(before) & set(world.place.list("part-"))
    assert len(kept) == 3
    assert {name for name in world.place.list("part-") if name.startswith("part-g0002-00002-")}
    world.check_no_leftovers(generations=2)

    seen = len(world.wire.truth())
    assert done(world.work(flags=cut)).reused == 13
    assert len(world.wire.truth()) == seen


def test_a_rerun_for_touched_files_buys_nothing(world: StoreWorld) -> None:
    """Files that only look new are read again: every text has its vector in the parts that are there."""
    done(world.work())
    world.wire.reset()
    world.fill(TEXTS)
    os.utime(world.folder / "in" / "0.parquet", (1, 1))
    done(world.work())

    assert in_order(world) == TEXTS
    assert world.wire.truth() == []


def test_rows_that_failed_stay_failed(world: StoreWorld) -> None:
    """A refused text of a changed shard is not asked for again until it changes."""
    world.wire.plan(poison=[TEXTS[1]])
    done(world.work(), 3)
    world.wire.reset()
    world.fill([*TEXTS[:11], sentence(200)])
    os.utime(world.folder / "in" / "0.parquet", (1, 1))
    receipt = done(world.work(), 3)

    assert receipt.failed == 1
    assert list(world.wire.invoice()["texts"]) == [hash_of(sentence(200))]


def test_a_job_that_is_not_finished_keeps_its_input(world: StoreWorld) -> None:
    """A changed input is no reason to leave what was begun: 73, naming the file."""
    assert world.work(CrashingStore(world.place, 20)) is None
    world.fill([*TEXTS[:11], sentence(200)])
    refused = world.work()

    assert isinstance(refused, OutputRefused), refused
    assert ".parquet" in refused.message


def test_names_of_shards_sort_in_the_order_of_the_input() -> None:
    """Of the first plan nothing is said in a name; later ones have their number in it."""
    assert (label(42), label(42, 2)) == ("00042", "g0002-00042")

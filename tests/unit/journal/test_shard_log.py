"""The log of a shard: one holder at a time, and a sleeper finds out before it does anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from embedctl.errors import ShardLost, StorageFailed, StoreUnreachable
from embedctl.journal.shard_log import Patience, ShardLog, done_name, folder_of, tail
from embedctl.storage.store import LocalStore


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def log(folder: Path, worker: str, clock: Clock | None = None) -> ShardLog:
    return ShardLog(LocalStore(folder), "00000", worker, lease_s=60, clock=clock or Clock())


def test_one_of_two_gets_a_shard(tmp_path: Path) -> None:
    """Whoever creates entry 0 has the shard; the other one is told so."""
    assert log(tmp_path, "a").claim(0)
    assert not log(tmp_path, "b").claim(0)


def test_who_finds_its_number_taken_has_lost(tmp_path: Path) -> None:
    """After a take-over the first holder writes nothing more, and says so again whenever it is asked."""
    first, second = log(tmp_path, "a"), log(tmp_path, "b")
    assert first.claim(0)
    first.append({"segment": "s", "offset": 0}, b"frames")
    assert second.claim(2)

    with pytest.raises(ShardLost):
        first.append({"segment": "s", "offset": 6}, b"more")
    with pytest.raises(ShardLost):
        first.check()
    second.append({"beat": "now"})
    assert [(entry.number, entry.about["by"], entry.body) for entry in second.entries()] == [
        (0, "a", b""), (1, "a", b"frames"), (2, "b", b""), (3, "b", b"")
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["done", "log"])
def test_a_sleeper_looks_before_it_writes(tmp_path: Path, what: str) -> None:
    """After more than a lease by a clock that counts suspended machines: the job may be over, and its log removed."""
    clock, store = Clock(), LocalStore(tmp_path)
    sleeper = log(tmp_path, "a", clock)
    assert sleeper.claim(0)
    if what == "done":
        store.put_if_absent(done_name("00000"), b"{}")
    else:
        store.remove(f"{folder_of('00000')}log/{0:010d}")
    clock.now += 61

    with pytest.raises(ShardLost):
        sleeper.put_beside(f"{sleeper.folder}answers/x.0", b"vectors")
    with pytest.raises(ShardLost):
        sleeper.append({"beat": "now"})
    assert not [name for name in store.list() if name.endswith(("0000000001", "x.0"))]


def test_what_was_long_on_its_way_is_taken_back(tmp_path: Path) -> None:
    """An entry that arrives after the job was finished is no claim: it is removed, and the shard is lost."""
    clock, store = Clock(), LocalStore(tmp_path)
    sleeper = log(tmp_path, "a", clock)
    assert sleeper.claim(0)

    class Slow:
        url = store.url
        stat, remove = store.stat, store.remove

        def put_if_absent(self, name: str, content: object, *, write_id: str | None = None) -> bool:
            clock.now += 61
            store.remove(f"{folder_of('00000')}log/{0:010d}")
            store.put_if_absent(done_name("00000"), b"{}")
            return store.put_if_absent(name, content, write_id=write_id)  # type: ignore[arg-type]

    sleeper.store = Slow()  # type: ignore[assignment]
    with pytest.raises(ShardLost):
        sleeper.append({"beat": "now"})

    assert store.list() == [done_name("00000")]


def test_an_orderly_end_is_told(tmp_path: Path) -> None:
    """The last entry says that the shard may be taken at once, and who wrote it."""
    held = log(tmp_path, "a")
    assert tail(held.store, "00000") is None
    assert held.claim(0)
    before = tail(held.store, "00000")
    held.release(drained=True)
    after = tail(held.store, "00000")

    assert before is not None
    assert after is not None
    assert (before.number, before.worker, before.is_drained) == (0, "a", False)
    assert (after.number, after.worker, after.is_drained) == (1, "a", True)


def test_a_lost_entry_is_said(tmp_path: Path) -> None:
    """A store that has lost what it acknowledged ends the run: what stood there is not guessed."""
    held = log(tmp_path, "a")
    assert held.claim(0)
    held.append({"beat": "now"})
    held.append({"beat": "now"})
    held.store.remove(f"{held.folder}log/{1:010d}")

    with pytest.raises(StorageFailed):
        list(held.entries())


def test_patience_ends() -> None:
    """A store that stays away is tried for so long, and less long once the run is told to stop."""
    clock, waits = Clock(), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds

    def away() -> None:
        raise StoreUnreachable("away")

    patient = Patience(600, clock=clock, sleep=sleep)
    with pytest.raises(StoreUnreachable):
        patient.with_(away)
    assert 590 < clock.now <= 600
    patient.hurry()
    began = clock.now
    with pytest.raises(StoreUnreachable):
        patient.with_(away)
    assert clock.now - began <= 10

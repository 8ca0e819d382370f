"""The log of a shard on a store: claim, fence and journal in one. Entries are numbered, and only ever created.

    0 claim ─▶ 1 intents ─▶ 2 intents ─▶ 3 part ─▶ … ─▶ n drained        by one worker
                                             ─▶ m claim ─▶ …             by the next, who saw nothing new for a lease

Who finds its next number taken has lost the shard and sends nothing more: safety needs no clock. A lease only decides
when a take-over is tried. An entry is one line of JSON, then bytes:

    {"claim": worker, "at", "host", "version", "format"}    {"segment", "offset"} + frames of its intents file
    {"beat"}    {"part", "id", …}    {"drained"}            of an orderly end: may be taken over at once

Each also says `by`, the worker that wrote it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken, ShardLost, StorageFailed, StoreUnreachable
from embedctl.journal import frames
from embedctl.records import utc_now, uuid7
from embedctl.storage.files import Content
from embedctl.storage.store import Store

SHARDS = "_embedctl/shards/"
DONE = "_embedctl/done/"

PATIENCE_S = 600.0
"""How long a store that cannot be reached is tried again before the run ends, resumable."""

PATIENCE_TOLD_TO_STOP_S = 10.0

_FIRST_WAIT_S = 0.1
_MOST_WAIT_S = 5.0
_BEATS_PER_LEASE = 3
_READERS = 16

_Result = TypeVar("_Result")


def boot_time() -> float:
    """Seconds of a clock that goes on while the machine is suspended, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def label(ordinal: int, generation: int = 1) -> str:
    """How a shard is called in names of objects; in the order of the input when sorted.

    Args:
        generation: Of the plan: of the first one nothing is said.
    """
    return f"{ordinal:05d}" if generation == 1 else f"g{generation:04d}-{ordinal:05d}"


def folder_of(shard: str) -> str:
    """Where a shard's log and answers are."""
    return f"{SHARDS}{shard}/"


def done_name(shard: str) -> str:
    """What says that a shard is done."""
    return f"{DONE}{shard}.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as read.

    Attributes:
        about: Its JSON.
        body: What follows.
    """

    number: int
    about: Mapping[str, Any]
    body: bytes = b""

    @property
    def is_drained(self) -> bool:
        """Whether its writer ended in order: nobody holds the shard."""
        return "drained" in self.about


class Patience:
    """How long a store is waited for; less once the run is told to stop. For several threads.

    Args:
        sleep: Waits, in a thread.
    """

    def __init__(
        self, seconds: float = PATIENCE_S, *, clock: Callable[[], float] = time.monotonic, sleep: Any = time.sleep
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._until: float | None = None
        self._answered = False

    def hurry(self) -> None:
        """The run is told to stop."""
        self._until = self._until or self._clock() + min(self._seconds, PATIENCE_TOLD_TO_STOP_S)

    def with_(self, call: Callable[[], _Result]) -> _Result:
        """What a call of a store gives; it may be repeated as often as is needed.

        Raises:
            StoreUnreachable: It is not to be reached for as long as is waited; at once where it never was: then its
                name or the network is wrong, and nothing is at stake.
        """
        began, wait_s = self._clock(), _FIRST_WAIT_S
        while True:
            try:
                found = call()
            except StoreUnreachable:
                if not self._answered:
                    raise
                until = min(began + self._seconds, self._until or float("inf"))
                if self._clock() + wait_s > until:
                    raise
            else:
                self._answered = True
                return found
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, _MOST_WAIT_S)


class ShardLog:
    """The log of one shard, in the hands of this worker once `claim` has said so. From any thread.

    Args:
        shard: Its label.
        worker: Id of this worker, new for each run.
        lease_s: After so long without an entry of its own a worker looks whether the shard is still its own.
        clock: Goes on while the machine is suspended.
    """

    def __init__(
        self,
        store: Store,
        shard: str,
        worker: str,
        *,
        lease_s: float,
        patience: Patience | None = None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self.store = store
        self.shard = shard
        self.folder = folder_of(shard)
        self.worker = worker
        self.lease_s = lease_s
        self.patience = patience or Patience()
        self._clock = clock
        self._lane = threading.RLock()
        self._next = 0
        self._is_new = False
        self._said_at = clock()
        self._lost: ShardLost | None = None
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    @property
    def is_lost(self) -> bool:
        """Whether another worker has it."""
        return self._lost is not None

    @property
    def is_new(self) -> bool:
        """Whether nobody had the shard before: there is nothing of others."""
        return self._is_new

    @property
    def end(self) -> int:
        """The number that the next entry gets."""
        return self._next

    def claim(self, number: int) -> bool:
        """Take the shard with entry `number`, the first that is not there; whether it is ours now."""
        about = {
            "claim": self.worker,
            "at": utc_now().isoformat(),
            "host": socket.gethostname(),
            "version": __version__,
            "format": frames.FORMAT,
        }
        began = self._clock()
        if not self._put(number, about):
            return False
        self._next, self._said_at, self._is_new = number + 1, began, number == 0
        return True

    def append(self, about: Mapping[str, Any], body: bytes = b"") -> None:
        """Write the next entry; it is on the store when this returns, and the shard was ours until then.

        Raises:
            ShardLost: Another worker has it. Nothing more may be sent.
            StoreUnreachable: Nobody knows.
        """
        with self._lane:
            self.check()
            began = self._clock()
            if self.is_silent:
                self._look_again()
            if not self._put(self._next, about, body):
                self._lose()
            self._check_arrived(_entry_name(self.shard, self._next), began)
            self._next, self._said_at = self._next + 1, began

    @property
    def is_silent(self) -> bool:
        """Whether nothing was said for longer than a lease: this worker slept, or could not reach the store."""
        return self._clock() - self._said_at > self.lease_s

    def hold(self) -> None:
        """Find out whether the shard is still ours, when nothing was said for longer than a lease.

        Raises:
            ShardLost: Another worker has it. Nothing more may be sent.
            StoreUnreachable: Nobody knows.
        """
        with self._lane:
            if self.is_silent:
                self._beat()

    def check(self) -> None:
        """Raise ShardLost when it is known that another worker has it."""
        if self._lost is not None:
            raise ShardLost(self._lost.message, hint=self._lost.hint)

    def put_beside(self, name: str, content: bytes | memoryview) -> None:
        """Put what only serves the work on the shard, under a name that nobody else can have.

        Raises:
            ShardLost: Another worker has the shard; nothing is left of it.
        """
        self.check()
        began = self._clock()
        if self.is_silent:
            self._look_again()
        self.put_new(name, content)
        self._check_arrived(name, began)

    def _check_arrived(self, name: str, began: float) -> None:
        """Whether what an object was put for is still there, when it was long on its way; else it is removed."""
        if self._clock() - began <= self.lease_s:
            return
        try:
            self._look_again()
        except ShardLost:
            with suppress(StoreUnreachable):
                self.store.remove(name)
            raise

    def keep(self, lost: Callable[[ShardLost], object]) -> None:
        """Write a beat now and then, when nothing else was written, until `release`.

        Args:
            lost: Told, in a thread, when a beat finds that another worker has the shard.
        """

        def beat() -> None:
            pause_s = self.lease_s / _BEATS_PER_LEASE
            while not self._ended.wait(pause_s / 2):
                try:
                    with self._lane:
                        if self._clock() - self._said_at >= pause_s and not self._ended.is_set():
                            self._beat()
                except ShardLost as error:
                    lost(error)
                    return
                except (StoreUnreachable, StorageFailed):  # who has something to say will find out
                    continue

        self._beating = threading.Thread(target=beat, name=f"shard-{self.shard}-beat", daemon=True)
        self._beating.start()

    def _beat(self) -> None:
        self.append({"beat": utc_now().isoformat()})

    def release(self, *, drained: bool) -> None:
        """No more is written.

        Args:
            drained: All that was bought is on the store: another worker may take the shard at once.
        """
        self._ended.set()
        if drained and not self.is_lost:
            with suppress(ShardLost, StoreUnreachable, StorageFailed):
                self.append({"drained": utc_now().isoformat()})
        if self._beating is not None and self._beating is not threading.current_thread():
            self._beating.join(5)

    def entries(self, end: int | None = None) -> Iterator[Entry]:
        """All entries before `end` (default: before the next one), in order.

        Raises:
            StorageFailed: One is missing: the store has lost what it acknowledged.
        """
        numbers = range(self._next if end is None else end)
        with ThreadPoolExecutor(_READERS) as readers:
            yield from readers.map(lambda number: self.patience.with_(lambda: self.read(number)), numbers)

    def read(self, number: int) -> Entry:
        """One entry.

        Raises:
            StorageFailed: It is missing, or none.
        """
        found = read_entry(self.store, self.shard, number)
        if found is None:
            raise StorageFailed(
                f"{self.store.url}: entry {number} of shard {self.shard} is gone",
                hint="the store has lost what it had acknowledged, or somebody removed it",
            )
        return found

    def put(self, name: str, content: Content | Path) -> bool:
        """Put an object beside the log; whether it is there and ours."""
        write_id = uuid7().hex
        return self.patience.with_(lambda: self.store.put_if_absent(name, content, write_id=write_id))

    def put_new(self, name: str, content: Content | Path) -> None:
        """Put an object whose name nobody else can have.

        Raises:
            InvariantBroken: Somebody has.
        """
        if not self.put(name, content):
            raise InvariantBroken(f"{self.store.url}: {name} is there already")

    def _put(self, number: int, about: Mapping[str, Any], body: bytes = b"") -> bool:
        content = orjson.dumps({**about, "by": self.worker}) + b"\n" + body
        return self.put(_entry_name(self.shard, number), content)

    def _look_again(self) -> None:
        """Nothing was said for longer than a lease: others may have ended the job, and removed the log."""
        last, done = _entry_name(self.shard, self._next - 1), done_name(self.shard)
        gone = self.patience.with_(lambda: self.store.stat(last)) is None
        if gone or self.patience.with_(lambda: self.store.stat(done)) is not None:
            self._lose()

    def _lose(self) -> None:
        self._lost = ShardLost(
            f"another worker has taken shard {self.shard} of {self.store.url} over: nothing more is sent for it",
            hint="run the same command again: it takes what is free; --lease says how long a worker may be silent",
        )
        self.check()


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a shard's log, as another worker sees it.

    Attributes:
        number: Of the last entry.
        worker: Who wrote it.
    """

    number: int
    worker: str
    is_drained: bool


def tail(store: Store, shard: str) -> Tail | None:
    """The end of a shard's log; None: nobody has it."""
    folder = f"{folder_of(shard)}log/"
    numbers = [int(digits) for name in store.list(folder) if (digits := name.removeprefix(folder)).isdecimal()]
    entry = read_entry(store, shard, max(numbers)) if numbers else None  # None: the job has just been finished
    return None if entry is None else Tail(entry.number, str(entry.about.get("by", "")), entry.is_drained)


def is_there(store: Store, shard: str, number: int) -> bool:
    """Whether a log has an entry of this number."""
    return store.stat(_entry_name(shard, number)) is not None


def read_entry(store: Store, shard: str, number: int) -> Entry | None:
    """One entry of a log; None where it is not there.

    Raises:
        StorageFailed: Something else stands there.
    """
    try:
        head, _, body = store.read(_entry_name(shard, number)).partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        about = orjson.loads(head)
    except orjson.JSONDecodeError:
        about = None
    if not isinstance(about, dict):
        raise StorageFailed(f"{store.url}: entry {number} of shard {shard} is no entry of a log")
    return Entry(number, about, body)


def _entry_name(shard: str, number: int) -> str:
    if number < 0:
        raise InvariantBroken(f"entry {number} of a log")
    return f"{folder_of(shard)}log/{number:010d}"

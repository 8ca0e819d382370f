"""Token counts in a Redis that machines share. The only door to redis.

What it does not know, or does not say at once, is counted here: nothing waits for it longer than `ANSWER_S`, and after
a failure nobody asks for a while. Numbers that come from it are looked at by who uses them: others may write there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from importlib import util
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from embedctl.dataclass import dataclass
from embedctl.errors import install_command
from embedctl.records import UNOBSERVED, Observer, Warned
from embedctl.storage.sqlite_cache import CacheStats, SqliteCache

_T = TypeVar("_T")

KIND = "token count in redis"

CONNECT_S = 0.25
ANSWER_S = 0.1
"""Counting a request takes 10 ms: what is slower than this is no help."""

AGAIN_S = 30.0
MOST_AGAIN_S = 480.0
"""Seconds after a failure until it is asked again; twice as many after each further one."""

_KEYS_AT_ONCE = 1000
_FRESH_AT_ONCE = 1024
_WRITES_WAITING = 8
_CLOSE_S = 0.25
_MOST_DIGITS = 10
_PREFIX = b"embedctl:tokens:1:"


def place_of(url: str) -> str:
    """What may be shown of its address: host and port, or the socket; never the user, password or options."""
    try:
        parts = urlsplit(url)
        host = parts.path if parts.scheme == "unix" else parts.hostname or "localhost"
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "redis"


class RedisCounts:
    """Counts in Redis, kept for a time to live; from any thread.

    Args:
        url: redis://, rediss:// (TLS) or unix://; holds a password, so it is never shown.
        ttl_s: Seconds until Redis forgets a count.
        tallies: This home's cache file, which keeps how often Redis was of use here.
        observer: Told once when it is of no use.
        clock: Seconds.
    """

    def __init__(
        self,
        url: str,
        tallies: Path,
        *,
        ttl_s: int,
        observer: Observer = UNOBSERVED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place_of(url)
        self._url = url
        self._ttl_s = ttl_s
        self._observer = observer
        self._clock = clock
        self._tallies = SqliteCache(tallies, KIND, "")
        self._fresh: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._worker = _Worker()
        self._client: Any = None
        self._coming: Any = None
        self._told = False
        self._again_s = AGAIN_S
        self._not_before = float("-inf")

    def __repr__(self) -> str:
        return f"RedisCounts({self.place})"

    def look_up(self, tokenizer: str, hashes: Sequence[bytes]) -> dict[bytes, int]:
        """The counts of those texts that it has; nothing while it is of no use."""
        if not hashes or not self._is_asked():
            return {}
        keys = [_key(tokenizer, one) for one in hashes]
        started = self._clock()

        def ask() -> list[Any]:
            parts = [keys[at : at + _KEYS_AT_ONCE] for at in range(0, len(keys), _KEYS_AT_ONCE)]
            return [value for part in parts for value in self._connected().mget(part)]

        values = self._within(ask, ANSWER_S if self._client is not None else CONNECT_S + ANSWER_S)
        if values is None:
            return {}
        self._again_s = AGAIN_S
        counts = {one: count for one, value in zip(hashes, values, strict=False) if (count := _count(value))}
        self._tallies.saw(len(counts), len(hashes) - len(counts), self._clock() - started)
        return counts

    def put(self, tokenizer: str, counts: Mapping[bytes, int]) -> None:
        """Keep these counts; sent in bundles, and nobody waits for it."""
        with self._lock:
            self._fresh.update({_key(tokenizer, one): tokens for one, tokens in counts.items()})
            full = len(self._fresh) >= _FRESH_AT_ONCE
        if full:
            self._write()

    def _write(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if not fresh or not self._is_asked():
            return

        def send() -> None:
            try:
                pipeline = self._connected().pipeline(transaction=False)
                for key, tokens in fresh.items():
                    pipeline.set(key, tokens, ex=self._ttl_s)
                pipeline.execute()
            except Exception as problem:
                self._failed(_why(problem))

        self._worker.later(send)

    def kept(self) -> int | None:
        """How many counts there are: nobody counts them there."""
        return None

    def seen(self) -> CacheStats:
        """What this process has looked up."""
        return self._tallies.seen

    def tally(self) -> CacheStats:
        """How often it had a text, and how often not, for the commands of this home."""
        return self._tallies.tally()

    def close(self) -> None:
        """Send what is not sent yet, for a moment at most, and let go of it."""
        self._write()
        self._worker.idle(_CLOSE_S)
        if self._client is not None:
            with suppress(Exception):
                self._client.connection_pool.disconnect()
            self._client = None
        self._tallies.close()

    # whether it is asked

    def _is_asked(self) -> bool:
        if self._clock() < self._not_before:
            return False
        if self._client is None and util.find_spec("redis") is None:
            self._failed(f"it needs the extra redis: {install_command('redis')}")
            return False
        return True

    def _within(self, ask: Callable[[], _T], seconds: float) -> _T | None:
        """What `ask` gives; None, and a word of it, when it fails or takes longer."""
        _library()  # takes longer than a connection; not what the limit is for
        try:
            return self._worker.now(ask, seconds)
        except TimeoutError:
            self._failed("no answer in time")
            self._cut()
        except Exception as problem:
            self._failed(_why(problem))
        return None

    def _failed(self, why: str) -> None:
        with self._lock:
            self._not_before = self._clock() + self._again_s
            self._again_s = min(self._again_s * 2, MOST_AGAIN_S)
            told, self._told = self._told, True
        if not told:
            self._observer.notify(Warned("count_cache", self.place, why))

    def _cut(self) -> None:
        """End what is still being read: a server that speaks on and on would fill the memory."""
        client, self._client, self._coming = self._client or self._coming, None, None
        if client is not None:
            with suppress(Exception):
                client.connection_pool.disconnect(inuse_connections=True)

    def _connected(self) -> Any:
        """The client, once it is let in: who is not is told so of a short command only."""
        if self._client is None:
            client = _library().Redis.from_url(
                self._url,
                protocol=2,
                decode_responses=False,
                socket_connect_timeout=CONNECT_S,
                socket_timeout=ANSWER_S,
                retry=None,
                retry_on_error=[],
                max_connections=1,
            )
            self._coming = client
            client.ping()
            self._client, self._coming = client, None
        return self._client


def _library() -> Any:
    import redis

    return redis


def _key(tokenizer: str, text_hash: bytes) -> bytes:
    return _PREFIX + tokenizer.encode() + b":" + text_hash.hex().encode()


def _count(value: object) -> int | None:
    """A count as it was written; None of anything else that stands there."""
    plain = isinstance(value, bytes) and value.isdigit() and len(value) <= _MOST_DIGITS
    return int(value) if plain else None  # type: ignore[call-overload]


def _why(problem: BaseException) -> str:
    """What went wrong, in fixed words: an exception's own could repeat the address, and with it the password."""
    from redis import exceptions

    words: Sequence[tuple[type[BaseException], str]] = (
        (exceptions.AuthenticationError, "it refuses the password"),
        (exceptions.NoPermissionError, "it refuses this user"),
        (exceptions.TimeoutError, "no answer in time"),
        (exceptions.InvalidResponse, "what answers there is no Redis"),
        (exceptions.ReadOnlyError, "it is a replica that takes nothing"),
        (exceptions.BusyLoadingError, "it is loading its data"),
        (exceptions.ResponseError, "it refuses what it is asked"),
        (exceptions.ConnectionError, "no connection"),
        (ValueError, "its address cannot be read"),
    )
    return next((said for kind, said in words if isinstance(problem, kind)), f"{type(problem).__name__}")


@dataclass(slots=True)
class _Task:
    work: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None
    given_up: bool = False


class _Worker:
    """One thread that speaks with the server: who waits for it can stop waiting, and the process never does."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[_Task] = queue.Queue(_WRITES_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def now(self, work: Callable[[], _T], seconds: float) -> _T:
        """What `work` gives.

        Raises:
            TimeoutError: Not within so many seconds; it may end later, unheard.
        """
        task = _Task(work)
        self._add(task, seconds)
        if not task.done.wait(seconds):
            task.given_up = True
            raise TimeoutError
        if task.error is not None:
            raise task.error
        return task.result  # type: ignore[no-any-return]

    def later(self, work: Callable[[], None]) -> None:
        """Do it when there is time; not at all when too much waits already."""
        with suppress(TimeoutError):
            self._add(_Task(work), 0)

    def idle(self, seconds: float) -> None:
        """Wait until everything is done, but no longer than so."""
        if self._thread is not None:
            with suppress(TimeoutError):
                self.now(lambda: None, seconds)

    def _add(self, task: _Task, seconds: float) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="redis", daemon=True)
                self._thread.start()
        try:
            self._tasks.put(task, block=seconds > 0, timeout=seconds or None)
        except queue.Full:
            raise TimeoutError from None

    def _run(self) -> None:
        while True:
            task = self._tasks.get()
            if not task.given_up:
                try:
                    task.result = task.work()
                except BaseException as problem:
                    task.error = problem
            task.done.set()

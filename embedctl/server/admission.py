"""Who is served now: rates of a key, requests and bytes in flight, and a queue in which keys take turns."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from embedctl.dataclass import dataclass
from embedctl.routing.bucket import Bucket
from embedctl.server.authentication import Client
from embedctl.server.refusals import Refused

_TOKEN_BURST_S = 60.0  # a minute's tokens may go at once: the limit is said per minute


@dataclass(slots=True)
class _KeyRates:
    """The buckets of one key; None: no limit."""

    limits: tuple[int | None, int, int | None]
    requests: Bucket | None
    tokens: Bucket | None


@dataclass(frozen=True, slots=True)
class RateStatus:
    """What is left of a key's requests a minute."""

    limit: int
    remaining: int
    reset_s: int


class KeyRates:
    """Requests and tokens a minute, for each key.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._keys: dict[str, _KeyRates] = {}

    def take(self, client: Client) -> None:
        """A request came, whatever becomes of it.

        Raises:
            Refused: `rate_limited`, and when the next one may come.
        """
        requests, now = self._of(client).requests, self._clock()
        if requests is None:
            return
        if wait_s := requests.ready_in(now, 1.0):
            raise Refused("rate_limited", f"more than {client.rpm} requests a minute", retry_after_s=wait_s)
        requests.take(now, 1.0)

    def take_tokens(self, client: Client, tokens: int) -> None:
        """So many tokens are about to be bought, as far as that can be told.

        Raises:
            Refused: `token_rate_limited`.
        """
        bucket, now = self._of(client).tokens, self._clock()
        if bucket is None:
            return
        if wait_s := bucket.ready_in(now, tokens):
            raise Refused("token_rate_limited", f"more than {client.tpm} tokens a minute", retry_after_s=wait_s)
        bucket.take(now, tokens)

    def correct_tokens(self, client: Client, more: int) -> None:
        """So many tokens more, or fewer, than was thought."""
        bucket = self._of(client).tokens
        if bucket is not None:
            bucket.take(self._clock(), more)

    def status(self, client: Client) -> RateStatus | None:
        """How a key stands; None without a limit."""
        requests = self._of(client).requests
        if requests is None or client.rpm is None:
            return None
        level = requests.level(self._clock())
        missing = requests.capacity - level
        return RateStatus(client.rpm, max(0, int(level)), -int(-missing / requests.per_second // 1))

    def _of(self, client: Client) -> _KeyRates:
        limits = (client.rpm, client.burst, client.tpm)
        found = self._keys.get(client.id)
        if found is None or found.limits != limits:
            now = self._clock()
            requests = Bucket(client.rpm / 60, max(1.0, client.burst), now) if client.rpm else None
            tokens = Bucket(client.tpm / 60, client.tpm / 60 * _TOKEN_BURST_S, now) if client.tpm else None
            found = self._keys[client.id] = _KeyRates(limits, requests, tokens)
        return found


class Slot:
    """One request in flight; held by its answer, and by what is still under way when that was given up."""

    __slots__ = ("_admission", "_client", "_holders", "bytes")

    def __init__(self, admission: AdmissionQueue, client: Client, size: int) -> None:
        self._admission = admission
        self._client = client
        self._holders = 1
        self.bytes = size

    def grow(self, size: int) -> None:
        """It takes so much more memory than was known; nobody new comes in until there is room again."""
        self.bytes += size
        self._admission.bytes += size

    def hold(self) -> None:
        """One more holder."""
        self._holders += 1

    def release(self) -> None:
        """One fewer; the last one gives it up."""
        self._holders -= 1
        if not self._holders:
            self._admission.leave(self._client, self.bytes)


class AdmissionQueue:
    """Requests in flight, and those that wait for it.

    Args:
        most: In flight.
        most_bytes: Of their bodies and answers.
        queue: Waiting, at most.
        jitter: Uniform in [0, 1), so that those who are told to come again do not come together.
    """

    def __init__(self, *, most: int, most_bytes: int, queue: int, jitter: Callable[[], float] = random.random) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._queue = queue
        self._jitter = jitter
        self.in_flight = 0
        self.bytes = 0
        self._of_key: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()
        self._waiters = 0

    async def enter(self, client: Client, size: int, *, wait_s: float) -> Slot:
        """A place in flight; keys take turns.

        Args:
            size: Bytes that its body takes at most.

        Raises:
            Refused: `concurrency_limited` when the key has as many as it may, `overloaded` when too many wait.
        """
        if client.in_flight is not None and self._of_key[client.id] >= client.in_flight:
            raise Refused(
                "concurrency_limited", f"more than {client.in_flight} requests at once", retry_after_s=self._soon()
            )
        self._of_key[client.id] += 1
        try:
            if self._waiters or not self._fits(size):
                await self._wait(client, size, wait_s)
            else:
                self._take(size)
        except BaseException:
            self._forget(client)
            raise
        return Slot(self, client, size)

    def leave(self, client: Client, size: int) -> None:
        """A request is over."""
        self.in_flight -= 1
        self.bytes -= size
        self._forget(client)
        self._wake()

    def _forget(self, client: Client) -> None:
        self._of_key[client.id] -= 1
        if not self._of_key[client.id]:
            del self._of_key[client.id]

    def _fits(self, size: int) -> bool:
        return not self.in_flight or (self.in_flight < self._most and self.bytes + size <= self._most_bytes)

    def _take(self, size: int) -> None:
        self.in_flight += 1
        self.bytes += size

    async def _wait(self, client: Client, size: int, wait_s: float) -> None:
        if self._waiters >= self._queue:
            raise Refused("overloaded", "too many requests are waiting", retry_after_s=self._soon())
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client.id, deque()).append((size, mine))
        self._waiters += 1
        try:
            async with asyncio.timeout(wait_s):
                await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():  # it was given just now
                self.in_flight -= 1
                self.bytes -= size
            else:
                self._waiters -= 1
                mine.cancel()
            self._wake()
            if isinstance(error, TimeoutError):
                raise Refused("overloaded", "no place became free in time", retry_after_s=self._soon()) from None
            raise

    def _wake(self) -> None:
        """Let in whoever fits, one of each key in turn."""
        while self._waiting:
            client_id, queue = next(iter(self._waiting.items()))
            while queue and queue[0][1].done():
                queue.popleft()
            if not queue:
                del self._waiting[client_id]
                continue
            size, first = queue[0]
            if not self._fits(size):
                return
            queue.popleft()
            self._waiting.move_to_end(client_id)
            if not queue:
                del self._waiting[client_id]
            self._waiters -= 1
            self._take(size)
            first.set_result(None)

    def _soon(self) -> float:
        return 1.0 + 2.0 * self._jitter()
